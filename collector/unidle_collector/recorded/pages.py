"""Reads saved dcgm-exporter pages: one scrape per file, or many in one.

A file is cut into scrapes where its timestamps change, where a series comes again, or at a line that
is a time (`date -Is >> pages.txt; curl ... >> pages.txt`). When a scrape was made says, in this order:
the timestamps of its samples, the time line before it, the file's name, the file's modification time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from unidle_agent.dcgm import Page, parse_page
from unidle_agent.fields import BY_NAME
from unidle_collector.model import GpuRef
from unidle_collector.recorded.rows import NOBODY, NOT_SAID, RecordingError, Rows
from unidle_collector.recorded.times import to_ns, written_time

_SAMPLE = re.compile(rb"^[a-zA-Z_:][a-zA-Z0-9_:]*\s*\{[^\n]*\}\s*\S+|^# (HELP|TYPE) \S+", re.MULTILINE)
_TIME_IN_NAME = re.compile(r"(20\d\d)-?(\d\d)-?(\d\d)[T_.-]?(\d\d)[-:_]?(\d\d)(?:[-:_]?(\d\d))?(?!\d)")
_EPOCH_IN_NAME = re.compile(r"(?<!\d)(1\d{9}|1\d{12}|1\d{15}|1\d{18})(?!\d)")


@dataclass(slots=True)
class _Scrape:
    """The lines of one scrape and when it was made, as far as the text says."""

    lines: list[str] = field(default_factory=list)
    time_ns: int | None = None
    seen: set[str] = field(default_factory=set)
    """Names with labels that it holds."""


@dataclass(frozen=True, slots=True)
class SavedPage:
    """One scrape, read."""

    time_ns: int
    page: Page
    guessed: bool
    """The time is the file's modification time: nothing in the file or its name says one."""


def looks_like_page(head: bytes) -> bool:
    """Does a text that begins with `head` hold samples or HELP/TYPE lines."""
    return _SAMPLE.search(head) is not None


def read(
    text: str, where: str, modified_ns: int, period_s: float | None
) -> tuple[list[SavedPage], list[str]]:
    """The scrapes of one file, and what is to be said about them.

    Of several scrapes without any time only the last is used, unless `period_s` says how far apart they
    are (`rows_of_pages` then spreads them). Raises RecordingError when there is no GPU in the file.
    """
    notes: list[str] = []
    scrapes = _cut(text)
    untimed = [scrape for scrape in scrapes if scrape.time_ns is None]
    if len(untimed) > 1 and period_s is None:
        scrapes = [scrape for scrape in scrapes if scrape.time_ns is not None or scrape is untimed[-1]]
        notes.append(
            f"{where}: {len(untimed)} scrapes carry no time, only the last is used; say how far apart they "
            "are with --period"
        )
    name_ns = time_in_name(where)
    if untimed and name_ns is None:
        notes.append(f"{where}: no time in the page or in its name: the file's modification time is used")
    pages = [
        SavedPage(
            time_ns=next(at for at in (scrape.time_ns, name_ns, modified_ns) if at is not None),
            page=parse_page("\n".join(scrape.lines) + "\n"),
            guessed=scrape.time_ns is None and (name_ns is None or len(untimed) > 1),
        )
        for scrape in scrapes
    ]
    if not any(saved.page.gpus for saved in pages):
        samples = sum(saved.page.samples for saved in pages)
        raise RecordingError(
            f"{where}: expected a dcgm-exporter page, came {samples} samples and no GPU metric among them"
        )
    return pages, notes + _troubles(where, pages)


def _troubles(where: str, pages: list[SavedPage]) -> list[str]:
    notes = []
    bad = sum(saved.page.bad_lines for saved in pages)
    if bad:
        first = next(problem for saved in pages for problem in saved.page.problems)
        notes.append(f"{where}: {bad} lines are no samples and were left out, the first: {first}")
    unmapped = sorted(
        {name for saved in pages for name in saved.page.unmapped if name.lower().startswith("dcgm")}
    )
    if unmapped:
        notes.append(f"{where}: no field carries {', '.join(unmapped)}")
    if any("unit unknown" in saved.page.missing for saved in pages):
        notes.append(f"{where}: " + next(p for s in pages for p in s.page.problems if "_UTIL_RATIO" in p))
    return notes


def _cut(text: str) -> list[_Scrape]:
    """One piece per scrape, in order. Comments and titles go with the piece that follows."""
    by_time: dict[int, _Scrape] = {}
    scrapes: list[_Scrape] = []
    current = _Scrape()
    for line in text.removeprefix("\ufeff").split("\n"):
        bare = line.strip()
        if not bare or bare.startswith(("# HELP", "# TYPE", "# EOF")):
            continue
        series, stamp = _series_and_stamp(bare)
        if series is None:
            marked = _time_line(bare)
            if marked is None:
                current.lines.append(line)
            else:
                scrapes.append(current)
                current = _Scrape(time_ns=marked)
        elif stamp is not None:
            # Samples with their own time may come in any order, one series after the other.
            by_time.setdefault(stamp, _Scrape(time_ns=stamp)).lines.append(line)
        else:
            if series in current.seen:
                scrapes.append(current)
                current = _Scrape()
            current.seen.add(series)
            current.lines.append(line)
    scrapes.append(current)
    return [scrape for scrape in scrapes if scrape.seen] + [by_time[stamp] for stamp in sorted(by_time)]


def _series_and_stamp(bare: str) -> tuple[str | None, int | None]:
    """Name and labels of a sample line, and its timestamp in ns; (None, None) for any other line."""
    end = bare.rfind("}")
    if end < 0:
        return None, None
    parts = bare[end + 1 :].split()
    if len(parts) == 2 and (stamp := _epoch_ns(parts[1])) is not None:
        return bare[: end + 1], stamp
    return (bare[: end + 1], None) if len(parts) == 1 else (None, None)


def _time_line(bare: str) -> int | None:
    """The time that a line of its own says: epoch, ISO 8601, or what `date` prints."""
    text = bare.lstrip("#- ").rstrip("- ")
    if (epoch := _epoch_ns(text)) is not None:
        return epoch
    found = re.search(r"20\d\d-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?", text)
    if not found and not re.search(r"\d\d:\d\d", text):
        return None
    moment = written_time(found.group(0) if found else text)
    return to_ns(moment) if moment else None


def _epoch_ns(text: str) -> int | None:
    """An epoch in s (fractions allowed), ms, us or ns of this century; None for any other text."""
    if not re.fullmatch(r"\d{10}(\.\d+)?|\d{13}|\d{16}|\d{19}", text):
        return None
    whole, _, part = text.partition(".")
    nanoseconds_each = int("1" + "0" * (19 - len(whole)))
    return int(whole) * nanoseconds_each + int((part + "0" * 9)[:9])


def time_in_name(name: str) -> int | None:
    """The time in a file name: an epoch or 2026-10-16T12:00:00 with any separators, UTC."""
    base = name.replace("\\", "/").rpartition("/")[2]
    if found := _EPOCH_IN_NAME.search(base):
        return _epoch_ns(found.group(1))
    if not (found := _TIME_IN_NAME.search(base)):
        return None
    try:
        return to_ns(datetime(*(int(part or 0) for part in found.groups())))  # type: ignore[arg-type]
    except ValueError:
        return None


def rows_of_pages(pages: list[SavedPage], node: str, period_s: float | None, notes: list[str]) -> Rows:
    """Rows of all scrapes of a recording together: when the untimed ones were made and who holds a GPU
    is settled over the whole of it."""
    pages = _timed(pages, period_s, notes)
    places: dict[tuple[str, str], int] = {}
    refs: list[GpuRef] = []
    jobs: dict[str, int] = {"": NOBODY}
    times: list[int] = []
    gpus: list[int] = []
    owners: list[int] = []
    values: dict[str, list[float]] = {}
    for saved in pages:
        for host, reading in zip(saved.page.nodes, saved.page.gpus, strict=True):
            facts = reading.facts
            key = (host or node or "node", facts.uuid)
            if key not in places:
                places[key] = len(refs)
                refs.append(GpuRef(key[0], facts.uuid, facts.index, facts.model))
            for name, value in reading.values.items():
                column = values.setdefault(name, [])
                column.extend([np.nan] * (len(times) - len(column)))
                spec = BY_NAME[name]
                column.append(value * spec.resolution if spec.kind == "counter" else float(value))
            times.append(saved.time_ns)
            gpus.append(places[key])
            owner = facts.owner
            allocated = jobs.setdefault(owner.job, len(jobs)) if owner.job else NOBODY
            owners.append(NOT_SAID if owner.allocated is None else allocated)
    gpu = np.asarray(gpus, dtype=np.int32)
    return Rows(
        time_ns=np.asarray(times, dtype=np.int64),
        gpu=gpu,
        gpus=tuple(refs),
        values={
            name: np.asarray(column + [np.nan] * (len(times) - len(column)))
            for name, column in values.items()
        },
        job=settled(np.asarray(owners, dtype=np.int32), gpu, refs, notes),
        jobs=tuple(jobs),
        notes=tuple(dict.fromkeys(notes)),
    )


def _timed(pages: list[SavedPage], period_s: float | None, notes: list[str]) -> list[SavedPage]:
    """Scrapes with a guessed time set `period_s` apart per host, in the order of files and of the text."""
    guessed: dict[str, list[int]] = {}
    for at, saved in enumerate(pages):
        if saved.guessed:
            guessed.setdefault(saved.page.host, []).append(at)
    out = list(pages)
    for host, places in guessed.items():
        last_ns = max(pages[at].time_ns for at in places)
        if period_s is not None:
            for back, at in enumerate(reversed(places)):
                out[at] = replace(pages[at], time_ns=last_ns - round(back * period_s * 1e9))
        elif len({pages[at].time_ns // 1_000_000_000 for at in places}) < len(places):
            notes.append(
                f"{len(places)} pages of {host or 'one host'} carry no time and some of their files were "
                "written in the same second; say how far apart they are with --period"
            )
    return out


def _filled(column: list[float], size: int) -> NDArray[np.float64]:
    return np.asarray(column + [np.nan] * (size - len(column)))


def settled(
    job: NDArray[np.int32], gpu: NDArray[np.int32], refs: list[GpuRef], notes: list[str]
) -> NDArray[np.int32]:
    """A node that ever names a job has an exporter that knows them: its silence means nobody."""
    nodes = {name: at for at, name in enumerate(dict.fromkeys(ref.node for ref in refs))}
    node = np.asarray([nodes[ref.node] for ref in refs], dtype=np.int32)[gpu]
    told = np.unique(node[job > NOBODY])
    silent = (job == NOT_SAID) & np.isin(node, told)
    if silent.any():
        notes.append("GPUs without a pod or job label count as free on nodes where other pages name one")
    return np.where(silent, np.int32(NOBODY), job)
