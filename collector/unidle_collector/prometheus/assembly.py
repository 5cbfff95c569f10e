"""Samples that come in any order and cut become the pages of the targets that they were scraped from.

A server sends the samples of one scrape in several requests, over several connections and within five
seconds (its batch_send_deadline); all of them carry the time of the scrape. So what has the same target
and time is collected, and is a page once SETTLE_S have gone by since its first sample.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from statistics import median

from unidle_agent.dcgm import page_of
from unidle_agent.fields import Field
from unidle_agent.sample import REPLAY, GpuReading, Reading, Value
from unidle_agent.wire import GpuFacts, Owner
from unidle_collector.prometheus.names import (
    ALLOCATED,
    CARRIED,
    JOB_INFO,
    SIMULATED,
    plain,
    told_job,
    understood,
)
from unidle_collector.prometheus.write_request import is_stale, labels, series

SETTLE_S = 7.0
ASSUMED_S = 15.0
"""Scrape interval of a target until two of its scrapes have come."""
MOST_SERIES = 2_000_000
"""Series that are remembered by their bytes; beyond that all are forgotten and parsed again."""
MOST_OPEN = 4_000_000
"""Samples that may wait for the rest of their scrape."""
OWN_WINS_S = 300.0
"""A GPU that unidle's own series were of this recently is not taken from an exporter's as well."""
ANY_GPU = "DCGM_FI_DEV_GPU_UTIL"

OWN, DCGM = ("unidle-agent", 10), ("dcgm-exporter", 20)
"""Source and precedence."""

Target = tuple[str, str]
"""`job` and `instance` of the server."""
Readings = dict[str, list[tuple[str, int, Reading]]]
"""Node -> what the page says of it."""


@dataclass(frozen=True, slots=True)
class _Known:
    """A series by the bytes of its labels."""

    name: str
    labels: Mapping[str, str]
    """The same object for every series with the same labels."""
    target: Target


@dataclass(slots=True)
class _Open:
    """A scrape of which samples may be missing yet."""

    begun_s: float
    samples: list[tuple[str, Mapping[str, str], float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Scrape:
    """What was collected of one scrape."""

    time_ns: int
    period_s: float
    nodes: Readings


@dataclass(slots=True)
class Counts:
    """Samples since the start."""

    taken: int = 0
    ignored: int = 0
    """Of series that carry nothing."""
    stale: int = 0
    """Markers of series that have ended, and other NaN: no value."""


class Assembler:
    """Collects samples; not for several threads at once."""

    def __init__(self) -> None:
        self._known: dict[bytes, _Known | None] = {}
        self._shared: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
        self._open: dict[tuple[Target, int], _Open] = {}
        self._waiting = 0
        self._times_ms: dict[Target, deque[int]] = {}
        self._own_seen_s: dict[str, float] = {}
        self.counts = Counts()

    @property
    def full(self) -> bool:
        """Wait so many samples that no more should come now."""
        return self._waiting >= MOST_OPEN

    def take(self, request: bytes, now_s: float) -> None:
        """Take in an unpacked WriteRequest, all of it or nothing; raises WriteError."""
        for known, samples in [(self._series(block), samples) for block, samples in series(request)]:
            if known is None:
                self.counts.ignored += len(samples)
                continue
            for value, time_ms in samples:
                if math.isnan(value):
                    self.counts.stale += is_stale(value)
                    continue
                scrape = self._open.get((known.target, time_ms))
                if scrape is None:
                    scrape = self._open[known.target, time_ms] = _Open(now_s)
                scrape.samples.append((known.name, known.labels, value))
                self.counts.taken += 1
                self._waiting += 1

    def settled(self, now_s: float, everything: bool = False) -> list[Scrape]:
        """The scrapes to which nothing more will come, in the order of time; `everything` to end."""
        due = [key for key, scrape in self._open.items() if everything or now_s - scrape.begun_s >= SETTLE_S]
        return [self._closed(*key, now_s) for key in sorted(due, key=lambda key: key[1])]

    def _series(self, block: bytes) -> _Known | None:
        try:
            return self._known[block]
        except KeyError:
            pass
        if len(self._known) >= MOST_SERIES:
            self._known.clear()
            self._shared.clear()
        named = labels(block)
        name = named.get("__name__", "")
        known = None
        if understood(name):
            bare = plain(named)
            bare = self._shared.setdefault(tuple(sorted(bare.items())), bare)
            known = _Known(name, bare, (named.get("job", ""), named.get("instance", "")))
        self._known[block] = known
        return known

    def _closed(self, target: Target, time_ms: int, now_s: float) -> Scrape:
        scrape = self._open.pop((target, time_ms))
        self._waiting -= len(scrape.samples)
        nodes = self._dcgm(scrape, now_s)
        for node, reading in _own(scrape).items():
            self._own_seen_s |= {gpu.facts.uuid: now_s for gpu in reading.gpus}
            nodes.setdefault(node, []).append((*OWN, reading))
        if any(name == SIMULATED and value == 1 for name, _, value in scrape.samples):
            nodes = {
                node: [(REPLAY, each[1], _unsourced(each[2])) for each in readings]
                for node, readings in nodes.items()
            }
        return Scrape(time_ms * 1_000_000, self._period_s(target, time_ms), nodes)

    def _dcgm(self, scrape: _Open, now_s: float) -> Readings:
        page = page_of(
            (name, labels, int(value) if value.is_integer() else value)
            for name, labels, value in scrape.samples
            if name in CARRIED and not CARRIED[name].own and math.isfinite(value)
        )
        gpus: dict[str, list[GpuReading]] = {}
        for node, gpu in zip(page.nodes, page.gpus, strict=True):
            if now_s - self._own_seen_s.get(gpu.facts.uuid, -math.inf) > OWN_WINS_S:
                gpus.setdefault(node or "node", []).append(gpu)
        return {node: [(*DCGM, Reading(tuple(mine)))] for node, mine in gpus.items()}

    def _period_s(self, target: Target, time_ms: int) -> float:
        times = self._times_ms.setdefault(target, deque(maxlen=5))
        if time_ms not in times:
            times.append(time_ms)
        ordered = sorted(times)
        gaps = [later - earlier for earlier, later in pairwise(ordered)]
        return median(gaps) / 1000 if gaps else ASSUMED_S


def _unsourced(reading: Reading) -> Reading:
    gpus = tuple(replace(gpu, facts=replace(gpu.facts, sources={})) for gpu in reading.gpus)
    return replace(reading, gpus=gpus)


def _own(scrape: _Open) -> dict[str, Reading]:
    """Node -> what unidle's own series of a scrape say."""
    values: dict[str, dict[str, dict[str, Value]]] = {}
    hosts: dict[str, dict[str, Value]] = {}
    about: list[tuple[str, Mapping[str, str], float]] = []
    identified: dict[int, Mapping[str, str]] = {}
    scrape_job = ""
    for name, named, value in scrape.samples:
        node = named.get("instance", "") or "node"
        carried = CARRIED.get(name)
        if name != JOB_INFO:
            scrape_job = scrape_job or named.get("job", "")
        if carried is None:
            about.append((name, named, value))
        elif carried.own and carried.field.scope == "host":
            hosts.setdefault(node, {})[carried.field.name] = _counted(carried.field, value)
        elif carried.own:
            gpu = values.setdefault(node, {}).setdefault(named.get("uuid", ""), {})
            gpu[carried.field.name] = _counted(carried.field, value)
        if name.startswith("unidle_gpu_"):
            identified[id(named)] = named
    facts = {
        gpu.facts.uuid: gpu.facts
        for gpu in page_of((ANY_GPU, named, 0) for named in identified.values()).gpus
    }
    owners = _owners(about, scrape_job)
    out = {}
    for node in values.keys() | hosts.keys():
        gpus = tuple(
            GpuReading(
                replace(facts.get(uuid, GpuFacts(uuid)), owner=owners.get(uuid, Owner())),
                mine,
            )
            for uuid, mine in values.get(node, {}).items()
            if uuid
        )
        out[node] = Reading(gpus, hosts.get(node, {}))
    return out


def _counted(spec: Field, value: float) -> Value:
    """As rows have it: a counter as a whole number of its resolution, a state as an integer."""
    if not math.isfinite(value):
        return math.nan
    if spec.kind == "counter":
        return round(value * round(1 / spec.resolution))
    return int(value) if spec.dtype == "u8" else value


def _owners(about: list[tuple[str, Mapping[str, str], float]], scrape_job: str) -> dict[str, Owner]:
    """UUID -> who holds it, as the agent said."""
    out: dict[str, Owner] = {}
    for name, named, value in about:
        if name == ALLOCATED:
            out.setdefault(named.get("uuid", ""), Owner(value != 0, source="unidle-agent"))
    for name, named, _ in about:
        if name == JOB_INFO:
            uuid = named.get("uuid", "")
            out[uuid] = Owner(
                allocated=out.get(uuid, Owner()).allocated,
                job=told_job(named, scrape_job),
                user=named.get("user", ""),
                source=named.get("source", ""),
                confidence=named.get("confidence", ""),
                note=named.get("note", ""),
                used_by=named.get("used_by", ""),
            )
    return out
