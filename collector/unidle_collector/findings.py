"""The book of findings: from conditions on single GPUs to what a person is told.

GPUs of one subject (job, else node) with one kind of finding are one finding. A finding develops,
is told once its delay is over, and ends; one that ends before it was told is never heard of.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from unidle_collector.detectors import About, Detector, Verdict, give_way, plural
from unidle_collector.inventory import Inventory
from unidle_collector.model import CauseShare, Cost, Finding, GpuRef
from unidle_collector.pergpu import SECOND_NS, Floats, PerGpu, Positions, known_or
from unidle_collector.signals import View
from unidle_collector.signs.jobmates import natural

REFRESH_NS = 10 * SECOND_NS, 30 * SECOND_NS
"""Least and most time after which a finding is said anew: REFRESH_SHARE of its age, or of its delay while
nobody was told."""
REFRESH_SHARE = 0.05
RELEARN_NS = 1500 * SECOND_NS
"""Longer than any detector needs to see a lasting condition again: OOM risk judges 20 minutes."""
JOULES_PER_KWH = 3.6e6
WORTH_A_WORD = 0.01
"""Causes less likely than this are not named."""


@dataclass(frozen=True, slots=True)
class Change:
    """A finding that was told, changed after it was told, or ended after it was told."""

    what: Literal["told", "updated", "ended"]
    finding: Finding
    asks_flight: bool = False
    """Whether the flight recorders of its GPUs would help to understand it; of what was just told."""


@dataclass(slots=True)
class _Open:
    """A finding as it develops."""

    subject_kind: Literal["job", "node"]
    subject: str
    since_ns: int
    gpus: set[int] = field(default_factory=set)
    all_gpus: set[int] = field(default_factory=set)
    left: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    """Lost GPU-seconds, EUR and joules of GPUs for which it is over."""
    votes: Counter[str] = field(default_factory=Counter)
    shares: dict[str, float] = field(default_factory=dict)
    """Cause -> sum of its probabilities, each time that it was said."""
    finding: Finding | None = None
    told_ns: int | None = None
    refreshed_ns: int = 0
    asks_flight: bool = False
    told_after_s: float | None = None
    """Instead of the delay of its cause."""

    def changed(self) -> None:
        """Other GPUs belong to it: what was told is said anew at once, what nobody was told in its turn."""
        if self.told_ns is not None:
            self.refreshed_ns = 0


class Book:
    """All findings that are open, by detector and subject."""

    def __init__(
        self, inventory: Inventory, detectors: Iterable[Detector], site: str, silence: tuple[str, ...] = ()
    ) -> None:
        self._inventory = inventory
        self._site = site
        self._silence = frozenset(silence)
        self._detectors = {detector.kind: detector for detector in detectors}
        self._open: dict[str, dict[tuple[str, str], _Open]] = {kind: {} for kind in self._detectors}
        self._place: dict[str, dict[int, tuple[str, str]]] = {kind: {} for kind in self._detectors}
        self._known: dict[tuple[str, str, str], Finding] = {}
        self._first_ns: int | None = None
        self._a = PerGpu(inventory.capacity)
        for kind in self._detectors:
            self._a.make(f"{kind}.on", np.bool_, False)
            self._a.make(f"{kind}.lost", np.float64, 0.0, 3)  # GPU-seconds, EUR, joules

    def resize(self, size: int) -> None:
        """Grow to `size` GPUs."""
        self._a.resize(size)

    def remember(self, finding: Finding) -> None:
        """A finding told before a restart: when it is seen again it keeps its id, since and told time."""
        if finding.told_ns is None:
            return
        entry = self._open.get(finding.kind, {}).get((finding.subject_kind, finding.subject))
        if entry is None:
            self._known[finding.kind, finding.subject_kind, finding.subject] = finding
        else:
            entry.since_ns, entry.told_ns, entry.finding = finding.since_ns, finding.told_ns, finding

    def kept(self) -> list[dict[str, Any]]:
        """Every open finding as JSON values, for a restart; its sentences are said anew."""
        return [
            {
                "kind": kind,
                "subject_kind": entry.subject_kind,
                "subject": entry.subject,
                "since_ns": entry.since_ns,
                "told_ns": entry.told_ns,
                "refreshed_ns": entry.refreshed_ns,
                "gpus": sorted(entry.gpus),
                "all_gpus": sorted(entry.all_gpus),
                "left": [None if math.isnan(value) else value for value in entry.left],
                "votes": dict(entry.votes),
                "shares": entry.shares,
            }
            for kind, group in self._open.items()
            for entry in group.values()
        ]

    def take_back(self, kept: Iterable[Mapping[str, Any]]) -> None:
        """Go on with what `kept` gave, at the same positions of the GPUs."""
        for item in kept:
            entry = _Open(item["subject_kind"], item["subject"], item["since_ns"])
            entry.told_ns, entry.refreshed_ns = item["told_ns"], item["refreshed_ns"]
            entry.gpus, entry.all_gpus = set(item["gpus"]), set(item["all_gpus"])
            entry.left = [math.nan if value is None else value for value in item["left"]]
            entry.votes, entry.shares = Counter(item["votes"]), dict(item.get("shares", {}))
            key = (entry.subject_kind, entry.subject)
            self._open[item["kind"]][key] = entry
            self._place[item["kind"]].update(dict.fromkeys(entry.gpus, key))

    def update(self, view: View, verdicts: Iterable[tuple[Detector, Verdict]]) -> list[Change]:
        """Take one step's verdicts."""
        changes = self._forget_unseen(view.step.end_ns)
        for detector, verdict in give_way(verdicts):
            self._members(detector, verdict, view)
            changes += self._tell(detector, verdict, view)
        return changes

    def _forget_unseen(self, now: int) -> list[Change]:
        """What was told before a restart and is not seen again within RELEARN_NS is over."""
        if self._first_ns is None:
            self._first_ns = now
        if not self._known or now - self._first_ns < RELEARN_NS:
            return []
        over = [replace(finding, updated_ns=now, ended_ns=now) for finding in self._known.values()]
        self._known.clear()
        return [Change("ended", finding) for finding in over]

    def findings(self) -> list[Finding]:
        """All that is open now, told or still developing: in the words said last, at the cost until now."""
        return [
            replace(entry.finding, cost_so_far=_cost(self._lost(kind, entry)))
            for kind, group in self._open.items()
            for entry in group.values()
            if entry.finding is not None
        ]

    def _lost(self, kind: str, entry: _Open) -> Floats:
        """[GPU-seconds, EUR, joules] until now."""
        out: Floats = self._a[f"{kind}.lost"][:, sorted(entry.gpus)].sum(axis=1) + np.array(entry.left)
        return out

    # -- membership ------------------------------------------------------------------------------

    def _members(self, detector: Detector, verdict: Verdict, view: View) -> None:
        """Who joined, who left, and what the step cost those inside."""
        kind = detector.kind
        was, lost = self._a[f"{kind}.on"], self._a[f"{kind}.lost"]
        inside = np.flatnonzero(verdict.on)
        if not inside.size and not np.count_nonzero(was):
            return
        for position in np.flatnonzero(was & ~verdict.on):
            self._leave(kind, int(position))
        for position in np.flatnonzero(verdict.on & ~was):
            self._join(detector, verdict, int(position))
        power = known_or(view.step.get("power_w")[inside])
        price = self._inventory.a["eur_per_h"][inside] / 3600
        seconds = view.step.sampled[inside] * (view.step.period_ns / SECOND_NS)
        back_s = (view.step.start_ns - verdict.since[inside]) / SECOND_NS
        seconds = seconds + np.where(was[inside], 0.0, np.maximum(back_s, 0.0))
        gpu_s = seconds * verdict.loss[inside] * self._inventory.a["share"][inside]
        lost[:, inside] += np.stack((gpu_s, gpu_s * price, gpu_s * power))
        was[:] = verdict.on

    def _join(self, detector: Detector, verdict: Verdict, position: int) -> None:
        key = self._subject(detector, position)
        group = self._open[detector.kind]
        since = max(int(verdict.since[position]), 0)
        entry = group.get(key)
        if entry is None:
            known = self._known.pop((detector.kind, *key), None)
            entry = _Open("job" if key[0] == "job" else "node", key[1], known.since_ns if known else since)
            entry.told_ns = known.told_ns if known else None
            entry.finding = known
            group[key] = entry
        entry.since_ns = min(entry.since_ns, since) if entry.told_ns is None else entry.since_ns
        entry.gpus.add(position)
        entry.all_gpus.add(position)
        entry.changed()
        self._place[detector.kind][position] = key
        self._a[f"{detector.kind}.lost"][:, position] = 0.0

    def _leave(self, kind: str, position: int) -> None:
        key = self._place[kind].pop(position)
        entry = self._open[kind][key]
        entry.gpus.discard(position)
        lost = self._a[f"{kind}.lost"]
        for number in range(3):
            entry.left[number] += float(lost[number, position])
        lost[:, position] = 0.0
        entry.changed()

    def _subject(self, detector: Detector, position: int) -> tuple[str, str]:
        owner = self._inventory.owner(position)
        if detector.groups_by == "job" and owner.job:
            return "job", owner.job
        return "node", self._inventory.refs[position].node

    # -- telling ---------------------------------------------------------------------------------

    def _tell(self, detector: Detector, verdict: Verdict, view: View) -> list[Change]:
        changes = []
        now = view.step.end_ns
        group = self._open[detector.kind]
        for key, entry in list(group.items()):
            if not entry.gpus:
                del group[key]
                if entry.finding is not None and entry.told_ns is not None:
                    changes.append(Change("ended", self._ended(entry, entry.finding, now)))
                continue
            silenced = f"{detector.kind}:{entry.subject}" in self._silence
            due = not silenced and _is_due(entry, detector, now)
            seen = verdict.seen is None or bool(verdict.seen[list(entry.gpus)].any())
            if now < entry.refreshed_ns + _refresh_ns(entry, detector, now) and not due:
                continue
            before = entry.finding
            entry.refreshed_ns = now
            if not seen and before is not None and len(before.gpus) == len(entry.gpus):
                continue  # what is only remembered stays as it was said: there is nothing new to say it by
            entry.finding = self._say(detector, verdict, view, entry)
            if entry.told_ns is None:
                if silenced or not seen or not _is_due(entry, detector, now):
                    continue
                entry.told_ns = now
                entry.finding = replace(entry.finding, told_ns=now)
                changes.append(Change("told", entry.finding, entry.asks_flight))
            elif before is None or (before.cause, before.severity) != (
                entry.finding.cause,
                entry.finding.severity,
            ):
                changes.append(Change("updated", entry.finding))
        return changes

    def _say(self, detector: Detector, verdict: Verdict, view: View, entry: _Open) -> Finding:
        """The finding in words and numbers, as of this step."""
        positions: Positions = np.array(sorted(entry.gpus), dtype=np.intp)
        here = Counter(detector.causes[int(number)] for number in verdict.cause[positions])
        entry.votes.update(here)
        cause = entry.votes.most_common(1)[0][0]
        now = view.step.end_ns
        about = detector.about(view, positions, cause, (now - entry.since_ns) / SECOND_NS)
        if entry.subject_kind == "job" and detector.compares_gpus:
            about = _bounded(about, self._inventory.beyond(entry.subject))
        entry.asks_flight, entry.told_after_s = about.asks_flight, about.told_after_s
        confidence, runners_up = _likely(entry, about, cause)
        inventory = self._inventory
        members = sorted(entry.gpus)
        refs = _in_order(inventory.refs[position] for position in members)
        owners = [inventory.owner(position) for position in members]
        jobs = {owner.job for owner in owners if owner.job}
        users = {owner.user for owner in owners if owner.user}
        return Finding(
            id=finding_id(self._site, detector.kind, entry.subject, entry.since_ns),
            kind=detector.kind,
            cause=cause,
            severity=about.severity,
            confidence=confidence,
            subject_kind=entry.subject_kind,
            subject=entry.subject,
            title=about.title,
            since_ns=entry.since_ns,
            updated_ns=now,
            told_ns=entry.told_ns,
            job=", ".join(sorted(jobs)),
            user=", ".join(sorted(users)),
            nodes=tuple(dict.fromkeys(ref.node for ref in refs)),
            gpus=refs,
            held_back_by=about.held_back_by,
            runners_up=runners_up,
            evidence=about.evidence,
            cost_so_far=_cost(self._lost(detector.kind, entry)),
            cost_per_h=self._rate(verdict.loss, view, positions),
            advice=about.advice,
            confirm=about.confirm,
            simulated=any(inventory.simulated[position] for position in members),
        )

    def _rate(self, loss: Floats, view: View, positions: Positions) -> Cost:
        """What it costs in an hour as it is now."""
        weight = loss[positions] * self._inventory.a["share"][positions]
        price, power = self._inventory.a["eur_per_h"][positions], view.means.mean("power_w")[positions]
        power = np.where(np.isnan(power), view.step.get("power_w")[positions], power)
        known = power[~np.isnan(power)]
        return Cost(
            gpu_h=float(weight.sum()),
            eur=None if np.isnan(price).any() else float((weight * price).sum()),
            kwh=float(weight.mean() * known.mean() * positions.size / 1000) if known.size else None,
        )

    def _ended(self, entry: _Open, last: Finding, now: int) -> Finding:
        """The finding as it closes: all GPUs it ever had, and the whole cost."""
        refs = _in_order(self._inventory.refs[position] for position in entry.all_gpus)
        return replace(
            last,
            updated_ns=now,
            ended_ns=now,
            gpus=refs,
            nodes=tuple(dict.fromkeys(ref.node for ref in refs)),
            cost_so_far=_cost(np.array(entry.left)),
            cost_per_h=Cost(0.0, 0.0, 0.0),
        )


def _bounded(about: About, beyond: tuple[int, int] | None) -> About:
    """A comparison that did not see all GPUs of a job says so: what matters may be among the others."""
    if beyond is None:
        return about
    here, whole = beyond
    text = (
        f" Only {here} of the job's {plural(whole, 'GPU')} were compared, those that one collector or shard "
        "sees: look at the others, too, before you leave a node out."
    )
    title = f"{about.title} ({here} of {plural(whole, 'GPU')} of the job compared)"
    return replace(about, title=title, advice=about.advice + text)


def _likely(entry: _Open, about: About, cause: str) -> tuple[float, tuple[CauseShare, ...]]:
    """Probability of `cause`, and the other causes worth a word, the likeliest first."""
    for name, share in about.shares.items():
        entry.shares[name] = entry.shares.get(name, 0.0) + share
    total = sum(entry.shares.values())
    if not total:
        return about.confidence, tuple(CauseShare(name, share) for name, share in about.runners_up)
    others = sorted(
        ((share / total, name) for name, share in entry.shares.items() if name != cause), reverse=True
    )
    runners_up = tuple(CauseShare(name, share) for share, name in others if share >= WORTH_A_WORD)
    return entry.shares.get(cause, 0.0) / total, runners_up


def _is_due(entry: _Open, detector: Detector, now: int) -> bool:
    """Is its delay over by the cause that it had last, before anybody was told."""
    if entry.told_ns is not None or entry.finding is None:
        return False
    wait_s = detector.delay_s(entry.finding.cause) if entry.told_after_s is None else entry.told_after_s
    return (now - entry.since_ns) / SECOND_NS >= wait_s


def _refresh_ns(entry: _Open, detector: Detector, now: int) -> int:
    """How long what was said of it holds: the longer it lasts, the less a few seconds change."""
    if entry.finding is None:
        return 0
    delay_s = 0.0 if entry.told_ns is not None else detector.delay_s(entry.finding.cause)
    share_ns = REFRESH_SHARE * max(delay_s * SECOND_NS, float(now - entry.since_ns))
    least, most = REFRESH_NS
    return int(min(most, max(least, share_ns)))


def finding_id(site: str, kind: str, subject: str, since_ns: int) -> str:
    """A stable id: the same recording gives the same ids."""
    digest = hashlib.sha256(f"{site}\0{kind}\0{subject}\0{since_ns}".encode()).digest()
    return f"{kind.split('_')[0]}-{base64.b32encode(digest[:5]).decode().lower()}"


def _in_order(refs: Iterable[GpuRef]) -> tuple[GpuRef, ...]:
    """By node, node2 before node10, and number."""
    found = tuple(refs)
    nodes = sorted({ref.node for ref in found}, key=natural)
    place = {node: number for number, node in enumerate(nodes)}
    return tuple(sorted(found, key=lambda ref: (place[ref.node], ref.index or 0, ref.gpu)))


def _cost(lost: Floats) -> Cost:
    """[GPU-seconds, EUR, joules] as a cost; NaN money is unknown."""
    return Cost(
        gpu_h=float(lost[0]) / 3600,
        eur=None if np.isnan(lost[1]) else float(lost[1]),
        kwh=float(lost[2]) / JOULES_PER_KWH if lost[2] > 0 or lost[0] == 0 else None,
    )
