"""Metrics of a fleet, whoever serves them: a collector of its own, or any collector of shards of all of them.

What a part of a site gives for it (`take`) can be put together with that of others: counters stay apart by
part, because each begins anew when its part is taken up elsewhere, and a mean carries how many GPUs it is of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unidle_agent.exporter.own_names import metric_name
from unidle_agent.fields import GPU_FIELDS
from unidle_collector.live import Live
from unidle_collector.model import Finding, Fleet, Queue


@dataclass(frozen=True, slots=True)
class Counted:
    """Settled time of one state and cause, since this part was taken up: see `settled`."""

    state: str
    cause: str
    simulated: bool
    gpu_s: float
    lost_gpu_s: float
    lost_j: float


@dataclass(frozen=True, slots=True)
class Mean:
    """Of one gauge at the last step, over the GPUs that have a value, real or simulated ones."""

    field: str
    simulated: bool
    mean: float
    gpus: int


@dataclass(frozen=True, slots=True)
class Sums:
    """What the pages tell of a fleet, or of a part of one, that is in no other answer."""

    counts: tuple[Counted, ...]
    means: tuple[Mean, ...]


def take(live: Live) -> Sums:
    """As of now; runs in the thread that owns `live`."""
    live.settled.advance(live.window.time_ns)
    counts = tuple(
        Counted(state, cause, side == "1", count.gpu_s, count.lost_gpu_s, count.lost_j)
        for (state, cause, side), count in sorted(live.settled.counts.items())
    )
    return Sums(counts, tuple(_means(live)))


def _means(live: Live) -> Iterable[Mean]:
    last, count = live.engine.last, len(live.engine.inventory)
    simulated = np.array(live.engine.inventory.simulated, dtype=np.bool_)
    for spec in GPU_FIELDS:
        if last is None or spec.kind != "gauge" or spec.name not in last.columns:
            continue
        column = last.columns[spec.name][:count]
        known = ~np.isnan(column)
        for side, members in ((False, ~simulated), (True, simulated)):
            chosen = known & members[: column.size]
            if chosen.any():
                yield Mean(spec.name, side, float(column[chosen].mean()), int(chosen.sum()))


def together(parts: Sequence[Sums]) -> tuple[Mean, ...]:
    """The means of all parts, each weighted by its GPUs."""
    found: dict[tuple[str, bool], list[Mean]] = {}
    for mean in (mean for part in parts for mean in part.means):
        found.setdefault((mean.field, mean.simulated), []).append(mean)
    out = []
    for (field, simulated), means in found.items():
        gpus = sum(mean.gpus for mean in means)
        out.append(Mean(field, simulated, sum(mean.mean * mean.gpus for mean in means) / gpus, gpus))
    return tuple(out)


# -- as Prometheus text --------------------------------------------------------------------------


def add_family(lines: list[str], name: str, kind: str, text: str, rows: Sequence[tuple[str, float]]) -> None:
    """One metric with its series: labels as they stand in the text, and the value."""
    lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
    lines += [f"{name}{labels} {value:.10g}" for labels, value in rows]


def add_fleet(lines: list[str], fleet: Fleet) -> None:
    """The fleet at a glance, over the last hour."""
    states = [(f'{{state="{state}"}}', count) for state, count in sorted(fleet.states.items())]
    add_family(lines, "unidle_fleet_gpus", "gauge", "GPUs by their present state.", states)
    lost = [("", fleet.account.lost.gpu_h * 3600)]
    text = "GPU-seconds lost to jobs within the last hour."
    add_family(lines, "unidle_fleet_lost_gpu_seconds", "gauge", text, lost)
    if fleet.account.effective_ratio is not None:
        text = "Effective utilization of the last hour."
        effective = [("", fleet.account.effective_ratio)]
        add_family(lines, "unidle_fleet_effective_ratio", "gauge", text, effective)
    flag = [("", int(fleet.simulated))]
    add_family(lines, "unidle_simulated", "gauge", "1 when anything here is SIMULATED.", flag)


def add_gpus(lines: list[str], real: int, simulated: int) -> None:
    """How many GPUs there are."""
    rows = [('{simulated="0"}', real), ('{simulated="1"}', simulated)]
    add_family(lines, "unidle_gpus", "gauge", "GPUs ever seen, real and simulated.", rows)


def add_findings(lines: list[str], findings: Sequence[Finding]) -> None:
    """By kind, never by subject: a series per job would be a new one with every job."""
    kinds: dict[str, int] = {}
    counts: dict[tuple[str, str, str], int] = {}
    for finding in findings:
        if finding.told_ns is not None:
            kinds[finding.kind] = kinds.get(finding.kind, 0) + 1
        state = "developing" if finding.told_ns is None else "told"
        key = (finding.kind, state, str(int(finding.simulated)))
        counts[key] = counts.get(key, 0) + 1
    told = [(f'{{kind="{kind}"}}', count) for kind, count in sorted(kinds.items())]
    add_family(lines, "unidle_open_findings", "gauge", "Open findings that people were told.", told)
    rows = [
        (f'{{kind="{kind}",state="{state}",simulated="{side}"}}', count)
        for (kind, state, side), count in sorted(counts.items())
    ]
    add_family(lines, "unidle_findings", "gauge", "Findings that are told or still developing.", rows)


def add_accounts(lines: list[str], parts: Mapping[str, Sums]) -> None:
    """Counters of settled time; a key of `parts` is what their labels begin with."""
    counts = {
        f'{{{part}state="{one.state}",cause="{one.cause}",simulated="{int(one.simulated)}"}}': one
        for part, sums in parts.items()
        for one in sums.counts
    }
    for name, text, rows in (
        ("gpu_seconds", "GPU-seconds by state and cause.", [(key, one.gpu_s) for key, one in counts.items()]),
        (
            "lost_gpu_seconds",
            "GPU-seconds lost, by loss weight.",
            [(key, one.lost_gpu_s) for key, one in counts.items()],
        ),
        (
            "lost_joules",
            "Energy drawn in lost time.",
            [(key, one.lost_j) for key, one in counts.items()],
        ),
    ):
        add_family(lines, f"unidle_account_{name}_total", "counter", text, rows)


def add_means(lines: list[str], means: Sequence[Mean]) -> None:
    """Gauges at the last step, real and simulated apart."""
    for spec in GPU_FIELDS:
        rows = [
            (f'{{simulated="{int(one.simulated)}"}}', one.mean) for one in means if one.field == spec.name
        ]
        if rows:
            name = metric_name(spec).replace("unidle_gpu_", "unidle_fleet_mean_", 1)
            text = f"Mean over the GPUs that say it now: {spec.doc}."
            add_family(lines, name, "gauge", text, rows)


def add_queue(lines: list[str], queue: Queue) -> None:
    """Families without a series where no scheduler is asked."""
    now = queue.scheduler
    label = f'{{scheduler="{now.scheduler}"}}' if now else ""
    age = [(label, now.age_s)] if now and now.age_s is not None else []
    failures = [(label, now.failures)] if now else []
    gpus = [] if queue.gpus is None else [(label, queue.gpus)]
    text = "Age of the scheduler's last good answer."
    add_family(lines, "unidle_scheduler_age_seconds", "gauge", text, age)
    text = "Looks at the scheduler in a row that failed."
    add_family(lines, "unidle_scheduler_failures", "gauge", text, failures)
    text = "GPUs that waiting jobs ask for."
    add_family(lines, "unidle_scheduler_gpus_waiting", "gauge", text, gpus)
