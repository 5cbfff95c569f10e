"""Reads the text that dcgm-exporter serves, of every generation, into readings in base units.

Why not a general Prometheus parser: it drops a whole page for one bad line, renames counters, and
costs ten times as much per page. Here a line that cannot be read loses itself only and is reported,
label sets are parsed once per page, and DCGM's own "no value" numbers never become values.

What the pages hold and how they lie is in docs/telemetry.md; names and units come from `fields`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from unidle_agent.dcgm_faults import FAMILIES, Counted
from unidle_agent.dcgm_values import METRICS, Metric, base_value, missing, number
from unidle_agent.sample import GpuReading, Value
from unidle_agent.wire import GpuFacts, Owner

MAX_PROBLEMS = 20
"""Most bad lines that are described one by one; all are counted."""

SPLIT_BY_SHARE = frozenset({"power_w", "power_instant_w", "power_limit_w", "energy_j"})
"""What belongs to the whole board but is printed for every MIG instance: an instance gets its part."""

DRIVER_LABEL = "dcgm_fi_system_driver_version"
"""The driver's label since 4.9, in lower case."""

FOUR_SLICE_MODELS = ("A30", "RTX PRO 6000", "RTX-PRO-6000")
"""GPUs whose largest MIG profile is 4g; all others go to 7g (NVIDIA MIG user guide, supported profiles)."""


@dataclass(frozen=True, slots=True)
class Page:
    """What one page says. Values are in base units, counters whole numbers of their resolution.

    A MIG instance is a GPU of its own with UUID `PARENT/GI<instance id>` and `facts.share` from its
    profile (3g of 7 slices: 3/7). Power, power limit and energy, which the exporter repeats for every
    instance, are divided among a GPU's instances in proportion to their shares, so that they add up to
    the board; the other values that belong to the board (temperatures, clocks, XID) are repeated.
    `memory_total_bytes` is used + free + reserved where the page does not print it.
    """

    gpus: tuple[GpuReading, ...]
    """Each GPU or MIG instance once, in order of index and UUID."""
    nodes: tuple[str, ...]
    """`nodes[i]` is the host label of `gpus[i]`: pages of several hosts may be joined."""
    host: str
    """The first host label on the page; empty when there is none."""
    samples: int
    """Well-formed sample lines, used or not."""
    bad_lines: int
    """Lines that are no sample, comment or blank: titles, torn and garbled lines."""
    problems: tuple[str, ...]
    """What was wrong, in words; the first `MAX_PROBLEMS` bad lines one by one."""
    unmapped: dict[str, int] = field(default_factory=dict)
    """Family that no field carries (or that is no GPU's) -> samples."""
    missing: dict[str, int] = field(default_factory=dict)
    """Why a sample has no value (`blank`, `not supported`, `nan`, ...) -> samples."""
    shared: tuple[str, ...] = ()
    """UUIDs that several jobs or pods hold at once (time-slicing): their samples came once per job."""
    times_ns: tuple[int, ...] = ()
    """The distinct timestamps that samples carry, ascending; usually none."""
    faults: Counted = field(default_factory=Counted)
    """XIDs and SXids that it counts."""


def parse_page(text: str | bytes, *, complete: bool = True) -> Page:
    """Read one page; never raises, whatever came.

    A last line without line end is kept when it is well formed, and said in `problems`. Pass
    `complete=False` when the body is known to have been cut: then it is dropped as torn.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    reader = _Reader()
    lines = text.removeprefix("\ufeff").split("\n")
    if tail := lines[-1].strip():
        if not complete:
            reader.bad(len(lines), tail, "the page was cut here")
            lines.pop()
        elif not tail.startswith("#"):
            reader.problems.append(
                f"line {len(lines)}: expected a line end, the page may be cut: {tail[-40:]!r}"
            )
    for at, line in enumerate(lines, 1):
        if line and not line.startswith("#"):
            reader.line(at, line)
    return reader.page()


def page_of(samples: Iterable[tuple[str, Mapping[str, str], Value]]) -> Page:
    """The same from samples that are read already: (name, labels, value) of one instant, as they come from
    a Prometheus. Labels of several samples may be one mapping, which is then looked at once."""
    reader = _Reader()
    series: dict[int, _Series] = {}
    kept = []  # an id stays unique only as long as what it is of lives
    for name, labels, value in samples:
        known = series.get(id(labels))
        if known is None:
            kept.append(labels)
            known = series[id(labels)] = _series_of({key.lower(): text for key, text in labels.items()})
            reader.series[str(len(kept))] = known
        reader.samples += 1
        reader.take(name, METRICS.get(name), known, value)
    return reader.page()


def gpu_and_host(labels: Mapping[str, str]) -> tuple[str, str]:
    """What identifies the GPU or MIG instance that a series with these labels is of (the UUID, else host and
    index; empty for no GPU), and its host label."""
    series = _series_of({key.lower(): text for key, text in labels.items()})
    return series.key, series.host


def job_of(labels: Mapping[str, str]) -> str:
    """The job that a series with these labels names: Slurm's, else `namespace/pod`, else none."""
    series = _series_of({key.lower(): text for key, text in labels.items()})
    return ",".join(_jobs(_Gpu(series, seen=[series]), "exported_pod" in series.labels))


@dataclass(slots=True)
class _Series:
    """What the labels of a sample say, parsed once per distinct label text."""

    key: str
    """Identity on this page; empty when the sample belongs to no GPU (link, switch, CPU, exporter)."""
    labels: dict[str, str]
    """Label name in lower case -> value."""
    host: str
    entry: _Gpu | None = None


@dataclass(slots=True)
class _Gpu:
    """One GPU or instance while its page is being read."""

    series: _Series
    values: dict[str, Value] = field(default_factory=dict)
    seen: list[_Series] = field(default_factory=list)
    """Every distinct label set, for owners and facts."""


class _Reader:
    """Collects one page line by line."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.bad_lines = 0
        self.samples = 0
        self.unmapped: dict[str, int] = {}
        self.missing: dict[str, int] = {}
        self.times: set[str] = set()
        self.series: dict[str, _Series | None] = {}
        self.gpus: dict[str, _Gpu] = {}
        self.families: dict[str, set[str]] = {}
        self.faults = Counted()
        self.pending: list[tuple[_Gpu, Metric, Value]] = []

    def bad(self, at: int, line: str, why: str) -> None:
        self.bad_lines += 1
        if self.bad_lines <= MAX_PROBLEMS:
            self.problems.append(f"line {at}: {why}, lost: {line.strip()[:80]!r}")

    def line(self, at: int, line: str) -> None:
        """Take in one line that is neither empty nor a comment."""
        end = line.rfind("}")
        if end > 0:
            name, brace, raw = line[:end].partition("{")
            parts = line[end + 1 :].split()
            if not brace:
                return self.bad(at, line, "expected '{' before '}'")
        else:
            name, *parts = line.split() or [""]
            raw = ""
            if not name or name.startswith("#"):
                return None
        try:
            series = self.series[raw]
        except KeyError:
            series = self.series[raw] = _read_series(raw)
        metric = METRICS.get(name)
        if metric is None:
            name = name.strip()
            if not name.replace(":", "_").isidentifier():
                return self.bad(at, line, "expected a metric name")
            metric = METRICS.get(name)
        if series is None:
            return self.bad(at, line, 'expected labels as name="value"')
        if not 1 <= len(parts) <= 2:
            return self.bad(at, line, "expected a value and at most a timestamp")
        value = number(parts[0])
        if value is None:
            return self.bad(at, line, "expected a number")
        if len(parts) == 2:
            if parts[1] not in self.times and _time_ns(parts[1]) is None:
                return self.bad(at, line, "expected a timestamp after the value")
            self.times.add(parts[1])
        self.samples += 1
        self.take(name, metric, series, value)
        return None

    def take(self, name: str, metric: Metric | None, series: _Series, value: Value | str) -> None:
        """Take in one sample."""
        if series.host not in self.families:
            self.families[series.host] = set()
        self.families[series.host].add(name)
        if metric is None or not series.key:
            uuid = series.key.rpartition("\n")[2]
            if name in FAMILIES and self.faults.take(name, uuid, series.labels, value):
                return
            self.unmapped[name] = self.unmapped.get(name, 0) + 1
            return
        gpu = series.entry
        if gpu is None:
            gpu = self.gpus.get(series.key)
            if gpu is None:
                gpu = self.gpus[series.key] = _Gpu(series)
            gpu.seen.append(series)
            series.entry = gpu
        why = value if isinstance(value, str) else missing(metric, value)
        if why:
            self.missing[why] = self.missing.get(why, 0) + 1
        elif metric.by_evidence:
            self.pending.append((gpu, metric, value))  # type: ignore[arg-type]
        else:
            gpu.values[metric.field.name] = base_value(metric, value)  # type: ignore[arg-type]

    def page(self) -> Page:
        """Everything read so far."""
        self._settle_units()
        _hand_down(self.gpus)
        owners, shared = _owners(self.gpus)
        facts = {key: _facts(gpu, owners[key]) for key, gpu in self.gpus.items()}
        parts = parts_of_board(facts)
        rows = sorted(
            (
                (gpu.series.host, GpuReading(facts[key], _completed(gpu.values, parts[key])))
                for key, gpu in self.gpus.items()
            ),
            key=lambda row: (row[0], _order(row[1].facts)),
        )
        if self.bad_lines > MAX_PROBLEMS:
            self.problems.append(f"and {self.bad_lines - MAX_PROBLEMS} more bad lines")
        hosts = (series.host for series in self.series.values() if series and series.host)
        return Page(
            gpus=tuple(reading for _, reading in rows),
            nodes=tuple(host for host, _ in rows),
            host=next(hosts, ""),
            samples=self.samples,
            bad_lines=self.bad_lines,
            problems=tuple(self.problems),
            unmapped=self.unmapped,
            missing=self.missing,
            shared=shared,
            faults=self.faults,
            times_ns=tuple(sorted(time for text in self.times if (time := _time_ns(text)) is not None)),
        )

    def _names_driver(self, host: str) -> bool:
        return any(
            series and series.host == host and DRIVER_LABEL in series.labels
            for series in self.series.values()
        )

    def _settle_units(self) -> None:
        """Decide per host whether ratios of unclear generation are 0-1 or 0-100; 0 is 0 in both."""
        printed: dict[str, list[Value]] = {}
        for gpu, _, value in self.pending:
            printed.setdefault(gpu.series.host, []).append(value)
        factors = {
            host: ratio_factor(self.families[host], self._names_driver(host), values)
            for host, values in printed.items()
        }
        unclear = 0
        for gpu, metric, value in self.pending:
            factor = factors[gpu.series.host]
            if factor is None and value:
                unclear += 1
            elif metric.field.name not in gpu.values:
                gpu.values[metric.field.name] = base_value(replace(metric, factor=factor or 1.0), value)
        if unclear:
            self.missing["unit unknown"] = self.missing.get("unit unknown", 0) + unclear
            self.problems.append(
                f"{unclear} values of *_UTIL_RATIO left out: 1 may be 100 % (DCGM 4.7 and newer) or 1 % "
                "(older), and nothing on the page says which"
            )


def ratio_factor(families: Collection[str], names_driver: bool, values: Iterable[Value]) -> float | None:
    """Factor from `*_UTIL_RATIO` to a ratio by what else the same host shows: the names of its families,
    whether it has 4.9's label for the driver, and the values; None when nothing decides."""
    for family in families:
        if family.endswith(("_HERTZ", "_JOULES_TOTAL", "_THROTTLE_SECONDS_TOTAL")):
            return 1.0
        if family.startswith("DCGM_FI_DEV_FB_") and family.endswith("_BYTES"):
            return 1.0
    if names_driver:
        return 1.0
    printed = list(values)
    if any(value > 1 for value in printed):
        return 0.01
    # The old field is an integer: a fraction can only be the new one.
    return 1.0 if any(value != int(value) for value in printed) else None


# Labels


def _read_series(raw: str) -> _Series | None:
    labels = _labels(raw)
    return None if labels is None else _series_of(labels)


def _series_of(labels: dict[str, str]) -> _Series:
    """`labels` have names in lower case."""
    host = labels.get("hostname") or labels.get("kubernetes_node") or labels.get("node")
    host = host or labels.get("instance", "")
    if "nvlink" in labels or "nvswitch" in labels or "cpu" in labels:
        return _Series("", labels, host)
    index, uuid = labels.get("gpu", ""), labels.get("uuid") or labels.get("gpu_uuid", "")
    # Without a UUID, an index means something only on its own host.
    key = uuid or (f"{host}\n{index}" if index else "")
    if key and labels.get("gpu_i_id"):
        key += f"/GI{labels['gpu_i_id']}"
    return _Series(key, labels, host)


def _labels(raw: str) -> dict[str, str] | None:
    """`a="x", b="y"` -> {"a": "x", "b": "y"} with names in lower case; None when it is not that."""
    out: dict[str, str] = {}
    at = 0
    while True:
        equals = raw.find("=", at)
        if equals < 0:
            return out if not raw[at:].strip(" ,\t") else None
        name = raw[at:equals].strip()
        start = raw.find('"', equals)
        if not name.isidentifier() or start < 0 or raw[equals + 1 : start].strip():
            return None
        end = raw.find('"', start + 1)
        while end > 0 and _escaped(raw, start, end):
            end = raw.find('"', end + 1)
        if end < 0:
            return None
        value = raw[start + 1 : end]
        if "\\" in value:
            value = _unescape(value)
        out[name.lower()] = "" if value.startswith("<<<") and value.endswith(">>>") else value
        rest = raw[end + 1 :].lstrip()
        if rest and rest[0] != ",":
            return None
        at = len(raw) - len(rest) + 1 if rest else len(raw)


def _escaped(raw: str, start: int, at: int) -> bool:
    """Is the quote at `at` preceded by an odd number of backslashes."""
    first = at
    while first - 1 > start and raw[first - 1] == "\\":
        first -= 1
    return (at - first) % 2 == 1


def _unescape(text: str) -> str:
    parts = text.split("\\\\")
    return "\\".join(part.replace('\\"', '"').replace("\\n", "\n") for part in parts)


def _time_ns(text: str) -> int | None:
    """Milliseconds (the exposition format), or seconds where the number can only be seconds."""
    value = number(text)
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return int(value * 1_000_000) if abs(value) > 1e11 else int(value * 1_000_000_000)


# GPUs


def _hand_down(gpus: dict[str, _Gpu]) -> None:
    """Where a page has both a GPU and its MIG instances, only the instances are kept."""
    for key in [key for key in gpus if "/GI" in key]:
        parent = key.rpartition("/GI")[0]
        if parent in gpus:
            gpus[key].values = {**gpus[parent].values, **gpus[key].values}
    for parent in {key.rpartition("/GI")[0] for key in gpus if "/GI" in key}:
        gpus.pop(parent, None)


def _facts(gpu: _Gpu, owner: Owner) -> GpuFacts:
    labels: dict[str, str] = {}
    for series in reversed(gpu.seen):
        labels |= {name: value for name, value in series.labels.items() if value}
    index, minor = labels.get("gpu", ""), labels.get("device", "").removeprefix("nvidia")
    model, profile = labels.get("modelname") or labels.get("model_name", ""), labels.get("gpu_i_profile", "")
    return GpuFacts(
        uuid=gpu.series.key.rpartition("\n")[2],
        index=int(index) if index.isdecimal() else None,
        model=model,
        pci_bus_id=labels.get("pci_bus_id", ""),
        minor=int(minor) if minor.isdecimal() else None,
        driver=labels.get("dcgm_fi_driver_version") or labels.get("dcgm_fi_system_driver_version", ""),
        mig_profile=profile,
        share=_share(profile, model) if "/GI" in gpu.series.key else 1.0,
        owner=owner,
    )


def parts_of_board(facts: dict[str, GpuFacts]) -> dict[str, float]:
    """Which part of its board's power each GPU or instance answers for."""
    total: dict[str, float] = {}
    for key, item in facts.items():
        board = key.partition("/GI")[0]
        total[board] = total.get(board, 0.0) + item.share
    return {key: item.share / total[key.partition("/GI")[0]] for key, item in facts.items()}


def _completed(values: dict[str, Value], part: float) -> dict[str, Value]:
    """With its part of what is the board's, and the derived memory size."""
    out = dict(values)
    if part != 1.0:
        for name in SPLIT_BY_SHARE & out.keys():
            out[name] = int(out[name] * part) if name == "energy_j" else out[name] * part
    if "memory_total_bytes" not in out and "memory_used_bytes" in out and "memory_free_bytes" in out:
        reserved = out.get("memory_reserved_bytes", 0.0)
        out["memory_total_bytes"] = out["memory_used_bytes"] + out["memory_free_bytes"] + reserved
    return out


def _share(profile: str, model: str) -> float:
    """Share of the GPU that a MIG profile is: `3g.20gb` 3 of 7 slices, `1c.3g.20gb` 1 of 7."""
    slices = 4 if any(name in model for name in FOUR_SLICE_MODELS) else 7
    head = profile.partition(".")[0]
    count = head[:-1] if head[-1:] in ("g", "c") else ""
    return min(1.0, int(count) / slices) if count.isdecimal() and int(count) else 1.0 / slices


def _order(facts: GpuFacts) -> tuple[int, str]:
    return (facts.index if facts.index is not None else 1 << 30, facts.uuid)


# Owners


def _owners(gpus: dict[str, _Gpu]) -> tuple[dict[str, Owner], tuple[str, ...]]:
    """Who holds each GPU by its labels, and which are held by several.

    An empty or absent label says "nobody" only where another GPU of the same host carries a job:
    an exporter without Kubernetes or job mapping prints no owner for any GPU.
    """
    # Prometheus moves the workload's labels to exported_*; the plain ones are then the exporter's own.
    moved = any("exported_pod" in series.labels for gpu in gpus.values() for series in gpu.seen)
    jobs = {key: _jobs(gpu, moved) for key, gpu in gpus.items()}
    told = {gpus[key].series.host for key, names in jobs.items() if names}
    owners = {}
    for key, names in jobs.items():
        if names:
            owners[key] = Owner(True, ",".join(names), source="dcgm-labels", confidence="high")
        elif gpus[key].series.host in told:
            owners[key] = Owner(False, source="dcgm-labels", confidence="medium")
        else:
            owners[key] = Owner()
    return owners, tuple(sorted(key.rpartition("\n")[2] for key, names in jobs.items() if len(names) > 1))


def _jobs(gpu: _Gpu, moved: bool) -> list[str]:
    """The distinct jobs of a GPU: Slurm's `hpc_job` where there is one, else `namespace/pod`."""
    hpc, pods = {}, {}
    for series in gpu.seen:
        labels = series.labels
        if labels.get("hpc_job", "0") not in ("", "0"):
            hpc[labels["hpc_job"]] = True
        pod, space, container = (
            (labels.get("exported_pod"), labels.get("exported_namespace"), labels.get("exported_container"))
            if moved
            else (
                labels.get("pod") or labels.get("pod_name"),
                labels.get("namespace") or labels.get("pod_namespace"),
                labels.get("container") or labels.get("container_name"),
            )
        )
        if pod and "dcgm-exporter" not in (container or ""):
            pods[f"{space}/{pod}" if space else pod] = True
    return list(hpc or pods)
