"""Series of a server as one table of GPUs x instants: units, owners and MIG as with the exporter's pages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from unidle_agent.dcgm import (
    DRIVER_LABEL,
    SPLIT_BY_SHARE,
    gpu_and_host,
    job_of,
    page_of,
    parts_of_board,
    ratio_factor,
)
from unidle_agent.dcgm_values import DOUBLE_BLANK, INT32_BLANK, INT64_BLANK
from unidle_agent.fields import HOST_FIELDS, Field
from unidle_agent.wire import GpuFacts, Owner
from unidle_collector.model import GpuRef
from unidle_collector.prometheus.api import Series
from unidle_collector.prometheus.names import (
    ALLOCATED,
    CARRIED,
    INFO,
    JOB_INFO,
    SIMULATED,
    Carried,
    plain,
    told_job,
)
from unidle_collector.recorded.pages import settled
from unidle_collector.recorded.rows import NOBODY, NOT_SAID, Rows

MOST_OF_UNIT = {"1": 1.5, "Cel": 200.0, "W": 5_000.0, "Hz": 1e10, "By": 1e14}
"""No GPU has more: a mean over samples and DCGM's numbers for "no value" does."""

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
ANY_GPU = "DCGM_FI_DEV_GPU_UTIL"
"""A name under which the parser takes labels of a GPU in, whatever they came with."""


@dataclass(slots=True)
class _Gpu:
    """One GPU or MIG instance while it is being read."""

    labels: dict[tuple[tuple[str, str], ...], dict[str, str]] = field(default_factory=dict)
    """Every distinct label set, by its items."""
    own_host: str = ""
    """Host of unidle's own series, which have host fields beside them."""
    values: dict[str, Floats] = field(default_factory=dict)
    own: set[str] = field(default_factory=set)
    """Fields that unidle's own series gave."""
    jobs: dict[str, Bools] = field(default_factory=dict)
    allocated: Floats | None = None


class Table:
    """Takes series in, gives rows. Instant k is at `start_s + k * step_s`; `hide` makes of a job on an
    exporter's labels what may be kept of its name."""

    def __init__(
        self, start_s: float, step_s: float, instants: int, hide: Callable[[str], str] = str
    ) -> None:
        self._hide = hide
        self._start_s, self._step_s, self._instants = start_s, step_s, instants
        self._gpus: dict[str, _Gpu] = {}
        self._hosts: dict[str, dict[str, Floats]] = {}
        self._families: dict[str, set[str]] = {}
        self._names_driver: set[str] = set()
        self._pending: list[tuple[str, str, Carried, Floats]] = []
        self._scrape_jobs: dict[str, str] = {}
        """Host -> the server's own `job` label of unidle's target there."""
        self._told: list[tuple[str, dict[str, str], Bools]] = []
        self._notes: list[str] = []
        self.simulated = False
        self.facts: tuple[GpuFacts, ...] = ()
        """Of each GPU of the rows, without its owner; known once `rows` was called."""

    def add(self, name: str, series: Series) -> None:
        """Take in one series; one that no GPU or host is named on is left out."""
        labels = plain({**series.labels, "__name__": name})
        if name == SIMULATED:
            self.simulated |= bool((series.values == 1).any())
            return
        values = self._on_grid(series)
        key, host = gpu_and_host(labels)
        carried = CARRIED.get(name)
        if carried is not None and carried.field.scope == "host":
            columns = self._hosts.setdefault(labels.get("instance", host), {})
            _fill(columns, carried.field.name, values)
            return
        if not key:
            return
        gpu = self._gpus.setdefault(key, _Gpu())
        if name.startswith("unidle_"):
            gpu.own_host = labels.get("instance", host)
            if name != JOB_INFO and labels.get("job"):
                self._scrape_jobs[gpu.own_host] = labels["job"]
        if name == JOB_INFO:
            self._told.append((key, labels, ~np.isnan(values)))
            return
        if name == ALLOCATED:
            gpu.allocated = values if gpu.allocated is None else _merged(gpu.allocated, values)
            return
        gpu.labels.setdefault(tuple(sorted(labels.items())), labels)
        if carried is None or name == INFO:
            return
        self._families.setdefault(host, set()).add(name)
        if any(label.lower() == DRIVER_LABEL for label in labels):
            self._names_driver.add(host)
        if not carried.own and (job := job_of(labels)):
            _mark(gpu, self._hide(job), ~np.isnan(values))
        values = _without_blanks(carried.field, values)
        if carried.by_evidence:
            self._pending.append((key, host, carried, values))
        else:
            _put(gpu, carried, values * carried.factor)

    def rows(self) -> Rows:
        """Everything taken in, as rows: N = instants x GPUs, those without any value included."""
        self._settle_units()
        self._settle_jobs()
        facts = self._facts()
        _hand_down(self._gpus)
        keys = [key for key in facts if key in self._gpus and self._gpus[key].values]
        parts = parts_of_board({key: facts[key][1] for key in keys})
        for key in keys:
            for name in SPLIT_BY_SHARE & self._gpus[key].values.keys():
                self._gpus[key].values[name] = self._gpus[key].values[name] * parts[key]
        refs = [
            GpuRef(host or "node", each.uuid, each.index, each.model)
            for host, each in (facts[key] for key in keys)
        ]
        self.facts = tuple(replace(facts[key][1], owner=Owner()) for key in keys)
        count = len(keys)
        gpu = np.tile(np.arange(count, dtype=np.int32), self._instants)
        job, jobs = self._jobs(keys)
        step_ns = round(self._step_s * 1e9)
        times = round(self._start_s * 1e9) + np.arange(self._instants, dtype=np.int64) * step_ns
        present = self._present(keys).ravel()
        rows_job = np.where(present, job.ravel(), NOT_SAID).astype(np.int32)
        return Rows(
            time_ns=np.repeat(times, count)[present],
            gpu=gpu[present],
            gpus=tuple(refs),
            values={name: column.ravel()[present] for name, column in self._columns(keys).items()},
            job=settled(rows_job[present], gpu[present], refs, self._notes),
            jobs=jobs,
            notes=tuple(dict.fromkeys(self._notes)),
            simulated=self.simulated,
        )

    def _on_grid(self, series: Series) -> Floats:
        """[T] values of a series, NaN where it has none."""
        # The table's times are half an interval before those that were asked for.
        at = np.floor((series.times_s - self._start_s) / self._step_s + 1e-6).astype(np.int64)
        good = (at >= 0) & (at < self._instants)
        out = np.full(self._instants, np.nan)
        out[at[good]] = series.values[good]
        return out

    def _settle_units(self) -> None:
        printed: dict[str, set[float]] = {}
        for _, host, _, values in self._pending:
            known = values[~np.isnan(values)]
            seen = printed.setdefault(host, set())
            seen.update((float(known.max()), float(known.min())) if known.size else ())
            seen.update(known[known != np.floor(known)][:1].tolist())
        unclear = 0
        for key, host, carried, values in self._pending:
            families = self._families.get(host, set())
            factor = ratio_factor(families, host in self._names_driver, printed[host])
            if factor is None:
                unclear += int(np.count_nonzero(values > 0))
                values = np.where(values == 0, values, np.nan)
            _put(self._gpus[key], carried, values * (factor or 1.0))
        if unclear:
            self._notes.append(
                f"{unclear} values of *_UTIL_RATIO left out: 1 may be 100 % (DCGM 4.7 and newer) or 1 % "
                "(older), and nothing beside them says which"
            )

    def _settle_jobs(self) -> None:
        for key, labels, present in self._told:
            host = labels.get("instance", "")
            if job := told_job(labels, self._scrape_jobs.get(host, "")):
                _mark(self._gpus[key], job, present)

    def _facts(self) -> dict[str, tuple[str, GpuFacts]]:
        """Key -> (node, facts); of a MIG parent too, where no page would keep it."""
        out = {}
        for key, gpu in self._gpus.items():
            if not gpu.labels:
                continue
            # Labels with a host name come first: an address of a target is the second best.
            ordered = sorted(gpu.labels.values(), key=lambda labels: "hostname" not in map(str.lower, labels))
            page = page_of((ANY_GPU, labels, 0) for labels in ordered)
            if page.gpus:
                out[key] = (page.nodes[0], page.gpus[0].facts)
        return out

    def _jobs(self, keys: list[str]) -> tuple[NDArray[np.int32], tuple[str, ...]]:
        """[T, G] job per instant and GPU."""
        job = np.full((self._instants, len(keys)), NOT_SAID, dtype=np.int32)
        names: dict[str, int] = {"": NOBODY}
        for at, key in enumerate(keys):
            gpu = self._gpus[key]
            if gpu.allocated is not None:
                job[gpu.allocated == 0, at] = NOBODY
            for place, holders in _holders(gpu.jobs):
                job[place, at] = names.setdefault(holders, len(names))
        return job, tuple(names)

    def _present(self, keys: list[str]) -> Bools:
        present = np.zeros((self._instants, len(keys)), dtype=np.bool_)
        for at, key in enumerate(keys):
            for values in self._gpus[key].values.values():
                present[:, at] |= ~np.isnan(values)
        return present

    def _columns(self, keys: list[str]) -> dict[str, Floats]:
        """Field -> [T, G]."""
        unknown = np.full(self._instants, np.nan)
        gpus = [self._gpus[key] for key in keys]
        fields = sorted({name for gpu in gpus for name in gpu.values})
        out = {name: np.stack([gpu.values.get(name, unknown) for gpu in gpus], axis=1) for name in fields}
        hosts = [self._hosts.get(gpu.own_host, {}) for gpu in gpus]
        for spec in HOST_FIELDS:
            if any(spec.name in host for host in hosts):
                out[spec.name] = np.stack([host.get(spec.name, unknown) for host in hosts], axis=1)
        return out


def _merged(first: Floats, second: Floats) -> Floats:
    return np.where(np.isnan(first), second, first)


def _fill(columns: dict[str, Floats], name: str, values: Floats) -> None:
    columns[name] = _merged(columns[name], values) if name in columns else values


def _put(gpu: _Gpu, carried: Carried, values: Floats) -> None:
    """Unidle's own series count before an exporter's; a counter of both is one of the two, never mixed."""
    name = carried.field.name
    most = MOST_OF_UNIT.get(carried.field.unit)
    values = values if most is None else np.where(values > most, np.nan, values)
    if not carried.own and name in gpu.own:
        if carried.field.kind != "counter":
            gpu.values[name] = _merged(gpu.values[name], values)
        return
    if carried.own and name not in gpu.own:
        gpu.own.add(name)
        older = gpu.values.pop(name, None)
        _fill(gpu.values, name, values)
        if older is not None and carried.field.kind != "counter":
            gpu.values[name] = _merged(gpu.values[name], older)
        return
    _fill(gpu.values, name, values)


def _without_blanks(spec: Field, values: Floats) -> Floats:
    """DCGM's numbers for "no value", infinities and what is below zero become unknown."""
    bad = np.isinf(values) | ((values >= INT32_BLANK) & (values <= 0x7FFFFFFF)) | (values >= INT64_BLANK)
    if spec.dtype == "u8":
        bad |= (values >= DOUBLE_BLANK) & (values <= DOUBLE_BLANK + 3)
    else:
        bad |= values >= DOUBLE_BLANK
    if spec.unit != "Cel":
        bad |= values < 0
    return np.where(bad, np.nan, values)


def _mark(gpu: _Gpu, job: str, present: Bools) -> None:
    known = gpu.jobs.get(job)
    gpu.jobs[job] = present.copy() if known is None else known | present


def _holders(jobs: dict[str, Bools]) -> list[tuple[Bools, str]]:
    """Which jobs hold a GPU when: (instants, their names joined).

    Where one job ends and another begins within one step, the step is the second's.
    """
    masks = {job: mask.copy() for job, mask in jobs.items() if mask.any()}
    first = {job: int(np.argmax(mask)) for job, mask in masks.items()}
    last = {job: len(mask) - 1 - int(np.argmax(mask[::-1])) for job, mask in masks.items()}
    for ending in masks:
        if any(first[other] == last[ending] > first[ending] for other in masks if other != ending):
            masks[ending][last[ending]] = False
    several = np.sum(list(masks.values()), axis=0) > 1 if masks else np.zeros(0, dtype=np.bool_)
    out = [(mask & ~several, job) for job, mask in masks.items()]
    combined: dict[str, list[int]] = {}
    for at in np.flatnonzero(several).tolist():
        combined.setdefault(",".join(job for job, mask in masks.items() if mask[at]), []).append(at)
    for names, places in combined.items():
        mask = np.zeros(len(several), dtype=np.bool_)
        mask[places] = True
        out.append((mask, names))
    return out


def _hand_down(gpus: dict[str, _Gpu]) -> None:
    """Where there are both a GPU and its MIG instances, only the instances are kept."""
    parents: set[str] = set()
    for key, gpu in gpus.items():
        parent, is_instance, _ = key.rpartition("/GI")
        if is_instance and parent in gpus:
            parents.add(parent)
            for name, values in gpus[parent].values.items():
                _fill(gpu.values, name, values)
    for parent in parents:
        del gpus[parent]
