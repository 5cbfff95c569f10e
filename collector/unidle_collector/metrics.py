"""The collector's own /metrics page: what it received, what is lost, what is open."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unidle_agent.exporter.own_names import metric_name
from unidle_agent.fields import GPU_FIELDS
from unidle_collector import reading
from unidle_collector.live import Live
from unidle_collector.model import TargetNow
from unidle_collector.prometheus.scraper import counted
from unidle_collector.series.feed import COUNTERS as FEED_COUNTERS
from unidle_collector.series.feed import Feed
from unidle_collector.timings import Timings

QUANTILES = (0.5, 0.9, 0.99)

COUNTERS = {
    "rows_ingested": "Rows received; a row is one GPU at one instant.",
    "rows_late": "Rows received after their instant was accounted.",
    "rows_future": "Rows refused because they lie in the future of the collector's clock.",
    "events_received": "Events of GPUs received, XIDs and the like.",
    "flights_received": "Windows of flight recorders received.",
    "flights_asked": "Windows of flight recorders asked for.",
    "flights_dropped": "Windows of flight recorders lost because the state database took nothing.",
    "batches_malformed": "Batches refused because they could not be read.",
    "batches_duplicate": "Batches received again; they count once.",
    "batches_forbidden": "Batches refused because the token or certificate is another node's.",
    "batches_too_large": "Batches refused for their size.",
    "batches_clock_corrected": "Batches whose node's clock was corrected.",
    "counter_resets": "Counters that started anew.",
    "values_refused": "Impossible values that became unknown.",
    "requests_unauthorized": "Requests without the right token.",
    "pushes_busy": "Pushes that were asked to come again.",
    "window_broken": "Times that something unexpected broke at batches that are stored, but in no account.",
    "pushes_broken": "Pushes at which something unexpected broke; they are sent again.",
    "steps_broken": "Steps of event time at which something unexpected broke: they are not accounted.",
    "collector_broken": "Rounds of the collector at which something unexpected broke.",
    "silences_filled": "Silences of nodes that late rows have filled in.",
    "pushes_store_full": "Pushes that the store could not take.",
    "remote_write_requests": "Requests of a Prometheus by remote_write.",
    "remote_write_refused": "Requests of remote_write that could not be read.",
    "remote_write_busy": "Requests of remote_write that were asked to come again.",
    "remote_write_samples": "Samples received by remote_write that carry something.",
    "remote_write_samples_ignored": "Samples received by remote_write that carry nothing for a GPU or host.",
    "remote_write_samples_stale": "Markers of series that have ended, received by remote_write.",
    "remote_write_rows": "Rows made of samples of remote_write; a row is one GPU at one instant.",
    "remote_write_batches_dropped": "Batches of such rows that were given up.",
    "scrapes": "Scrapes of dcgm-exporters.",
    "scrapes_failed": "Scrapes of dcgm-exporters that brought no GPU.",
    "scrape_batches_dropped": "Batches of scraped rows that were given up.",
    "steps": "Steps of event time that were looked at.",
    "findings_told": "Findings that people were told.",
    "findings_ended": "Findings that are over.",
}


SHOWN_AS = {"counter_resets": "values_reset"}
"""A metric's name must not say what type it has."""


def render(live: Live, targets: list[TargetNow]) -> str:
    """Prometheus text."""
    lines: list[str] = []
    for name, text in COUNTERS.items():
        shown = SHOWN_AS.get(name, name)
        _add(lines, f"unidle_collector_{shown}_total", "counter", text, [("", live.counters[name])])
    scraped = [(f'{{state="{state}"}}', count) for state, count in counted(targets).items()]
    _add(lines, "unidle_collector_scrape_targets", "gauge", "dcgm-exporters to scrape, by state.", scraped)
    for name, (text, timings) in {
        "tick": ("One step of all detectors, accounts and findings over the fleet.", live.tick_s),
        "finding_delay": (
            "From the arrival of the row that decided a finding to the finding.",
            live.finding_delay_s,
        ),
    }.items():
        _summary(lines, f"unidle_collector_{name}_seconds", text, timings)
    fleet = reading.fleet(live, 3600)
    states = [(f'{{state="{state}"}}', count) for state, count in sorted(fleet.states.items())]
    _add(lines, "unidle_fleet_gpus", "gauge", "GPUs by their present state.", states)
    account = fleet.account
    _add(
        lines,
        "unidle_fleet_lost_gpu_seconds",
        "gauge",
        "GPU-seconds lost to jobs within the last hour.",
        [("", account.lost.gpu_h * 3600)],
    )
    if account.effective_ratio is not None:
        _add(
            lines,
            "unidle_fleet_effective_ratio",
            "gauge",
            "Effective utilization of the last hour.",
            [("", account.effective_ratio)],
        )
    kinds: dict[str, int] = {}
    for finding in live.engine.findings():
        if finding.told_ns is not None:
            kinds[finding.kind] = kinds.get(finding.kind, 0) + 1
    rows = [(f'{{kind="{kind}"}}', count) for kind, count in sorted(kinds.items())]
    _add(lines, "unidle_open_findings", "gauge", "Open findings that people were told.", rows)
    _add_findings(lines, live)
    _add_accounts(lines, live)
    _add_means(lines, live)
    _add_scheduler(lines, live)
    _add_series(lines, live.feed)
    sides = {"0": fleet.gpus - fleet.simulated_gpus, "1": fleet.simulated_gpus}
    rows = [(f'{{simulated="{side}"}}', count) for side, count in sides.items()]
    _add(lines, "unidle_gpus", "gauge", "GPUs ever seen, real and simulated.", rows)
    _add_store(lines, live)
    flag = [("", int(fleet.simulated))]
    _add(lines, "unidle_simulated", "gauge", "1 when anything here is SIMULATED.", flag)
    return "\n".join(lines) + "\n"


def _add_findings(lines: list[str], live: Live) -> None:
    """By kind, never by subject: a series per job would be a new one with every job."""
    counts: dict[tuple[str, str, str], int] = {}
    for finding in live.engine.findings():
        state = "developing" if finding.told_ns is None else "told"
        key = (finding.kind, state, str(int(finding.simulated)))
        counts[key] = counts.get(key, 0) + 1
    rows = [
        (f'{{kind="{kind}",state="{state}",simulated="{side}"}}', count)
        for (kind, state, side), count in sorted(counts.items())
    ]
    _add(lines, "unidle_findings", "gauge", "Findings that are told or still developing.", rows)


def _add_accounts(lines: list[str], live: Live) -> None:
    """Counters of settled time: see `settled`."""
    live.settled.advance(live.window.time_ns)
    counts = {
        f'{{state="{state}",cause="{cause}",simulated="{side}"}}': count
        for (state, cause, side), count in sorted(live.settled.counts.items())
    }
    for name, text, rows in (
        ("gpu", "GPU-seconds by state and cause.", [(key, one.gpu_s) for key, one in counts.items()]),
        (
            "lost_gpu",
            "GPU-seconds lost, by loss weight.",
            [(key, one.lost_gpu_s) for key, one in counts.items()],
        ),
    ):
        _add(lines, f"unidle_account_{name}_seconds_total", "counter", text, rows)
    energy = [(key, one.lost_j) for key, one in counts.items()]
    _add(lines, "unidle_account_lost_joules_total", "counter", "Energy drawn in lost time.", energy)


def _add_means(lines: list[str], live: Live) -> None:
    """Gauges at the last step: over the GPUs that have a value, real and simulated apart."""
    last, count = live.engine.last, len(live.engine.inventory)
    simulated = np.array(live.engine.inventory.simulated, dtype=np.bool_)
    for spec in GPU_FIELDS:
        if last is None or spec.kind != "gauge" or spec.name not in last.columns:
            continue
        column = last.columns[spec.name][:count]
        known = ~np.isnan(column)
        rows = []
        for side, members in (("0", ~simulated), ("1", simulated)):
            chosen = known & members[: column.size]
            if chosen.any():
                rows.append((f'{{simulated="{side}"}}', float(column[chosen].mean())))
        name = metric_name(spec).replace("unidle_gpu_", "unidle_fleet_mean_", 1)
        _add(lines, name, "gauge", f"Mean over the GPUs that say it now: {spec.doc}.", rows)


def _add_store(lines: list[str], live: Live) -> None:
    counts = [(f'{{what="{name}"}}', count) for name, count in sorted(live.store.counters().items())]
    text = "What the store has done and dropped since the start: rows, bytes, records or files."
    _add(lines, "unidle_collector_store_total", "counter", text, counts)
    sizes = [(f'{{what="{name}"}}', size) for name, size in sorted(live.store.sizes().items())]
    _add(lines, "unidle_collector_store_bytes", "gauge", "Disk that the store takes.", sizes)
    window = [("", live.window.bytes)]
    _add(lines, "unidle_collector_window_bytes", "gauge", "Memory of the live window.", window)


def _add_scheduler(lines: list[str], live: Live) -> None:
    """Families without a series where no scheduler is asked."""
    now = live.attribution.status()
    label = f'{{scheduler="{now.scheduler}"}}' if now else ""
    age = [(label, now.age_s)] if now and now.age_s is not None else []
    failures = [(label, now.failures)] if now else []
    waiting = reading.queue(live).gpus
    gpus = [] if waiting is None else [(label, waiting)]
    _add(lines, "unidle_scheduler_age_seconds", "gauge", "Age of the scheduler's last good answer.", age)
    _add(
        lines, "unidle_scheduler_failures", "gauge", "Looks at the scheduler in a row that failed.", failures
    )
    _add(lines, "unidle_scheduler_gpus_waiting", "gauge", "GPUs that waiting jobs ask for.", gpus)


def _add_series(lines: list[str], feed: Feed | None) -> None:
    """What is written to a series store elsewhere; zeros where there is none."""
    for name, text in FEED_COUNTERS.items():
        count = feed.counters[name] if feed else 0
        _add(lines, f"unidle_collector_series_{name}_total", "counter", text, [("", count)])
    text = "Age of the oldest batch that is not in the series store yet."
    _add(lines, "unidle_collector_series_lag_seconds", "gauge", text, [("", feed.lag_s if feed else 0)])
    text = "Disk that waits for the series store."
    _add(lines, "unidle_collector_series_queue_bytes", "gauge", text, [("", feed.queue_bytes if feed else 0)])


def _summary(lines: list[str], name: str, text: str, timings: Timings) -> None:
    """Quantiles are of the last 1,024."""
    rows = [(f'{{quantile="{share}"}}', timings.quantile_s(share)) for share in QUANTILES]
    _add(lines, name, "summary", text, [(labels, value) for labels, value in rows if value is not None])
    lines += [f"{name}_sum {timings.sum_s:g}", f"{name}_count {timings.count}"]


def _add(lines: list[str], name: str, kind: str, text: str, rows: Sequence[tuple[str, float]]) -> None:
    lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
    lines += [f"{name}{labels} {value:.10g}" for labels, value in rows]
