"""The small languages inside Slurm's answers: lists of hosts, lists of numbers, generic resources."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

MOST_NAMES = 100_000
"""More than any cluster has: a list that says more is refused, not expanded."""

_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_GRES = re.compile(r"(?P<head>[^()]+)(?P<notes>(?:\([^()]*\))*)")
_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
_COUNT = re.compile(r"(\d+)([KMGT]?)", re.IGNORECASE)
NO_INDEX = "N/A"
REMEMBERED = 8192
"""Texts whose meaning is remembered: a poll says much the same as the one before."""


@dataclass(frozen=True, slots=True)
class Gres:
    """One generic resource of a list: `gpu:b200:2(IDX:0-1)`."""

    name: str
    kind: str
    count: int
    indices: tuple[int, ...] | None
    """None where the text has none; empty where it says that none is used."""


def split(text: str) -> list[str]:
    """The parts of `text` between commas that are in no bracket; raises ValueError on unequal brackets."""
    parts, depth, begin = [], 0, 0
    for at, letter in enumerate(text):
        if letter in "[(":
            depth += 1
        elif letter in "])":
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append(text[begin:at])
            begin = at + 1
        if depth < 0:
            break
    if depth != 0:
        raise ValueError(f"expected brackets in pairs, came {text[:80]!r}")
    parts.append(text[begin:])
    return [part.strip() for part in parts if part.strip()]


def numbers(text: str) -> list[str]:
    """`01-03,7` as texts, the zeros in front kept; raises ValueError on anything else."""
    out: list[str] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"expected numbers such as 0-2,7, came {text[:80]!r}")
        first, last = match[1], match[2] or match[1]
        if int(last) < int(first) or int(last) - int(first) >= MOST_NAMES - len(out):
            raise ValueError(f"expected a rising range of at most {MOST_NAMES} numbers, came {part[:80]!r}")
        out += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return out


@lru_cache(REMEMBERED)
def hosts(text: str) -> tuple[str, ...]:
    """Every name of a list of hosts such as `gpu[01-03,07],login`, in order; raises ValueError."""
    names: list[str] = []
    for part in split(text):
        found = [""]
        for fixed, ranges in re.findall(r"([^\[\]]*)(?:\[([^\[\]]*)\])?", part):
            ends = [fixed + number for number in numbers(ranges)] if ranges else [fixed]
            if len(found) * len(ends) > MOST_NAMES:
                raise ValueError(f"expected at most {MOST_NAMES} hosts, came {text[:80]!r}")
            found = [begin + end for begin in found for end in ends]
        names += found
        if len(names) > MOST_NAMES:
            raise ValueError(f"expected at most {MOST_NAMES} hosts, came {text[:80]!r}")
    return tuple(names)


@lru_cache(REMEMBERED)
def gres(text: str) -> tuple[Gres, ...]:
    """Generic resources: `gpu:a100:4(IDX:0-2,7),shard:0`, also as `gres/gpu:2`; raises ValueError."""
    return tuple(_gres(part) for part in split(text) if part not in (NO_INDEX, "(null)"))


def _gres(text: str) -> Gres:
    match = _GRES.fullmatch(text)
    if match is None:
        raise ValueError(f"expected a resource such as gpu:b200:8, came {text[:80]!r}")
    words = re.split(r"[:=]", re.sub(r"^gres[:/]", "", match["head"]))
    count = 1
    if len(words) > 1 and (found := _COUNT.fullmatch(words[-1])):
        count = int(found[1]) * _UNITS[found[2].upper()]
        words.pop()
    indices = None
    for note in re.findall(r"\(([^()]*)\)", match["notes"]):
        if note.startswith("IDX:"):
            listed = note.removeprefix("IDX:")
            indices = () if listed == NO_INDEX else tuple(int(one) for one in numbers(listed))
    return Gres(words[0], ":".join(words[1:]), count, indices)


def gpus(found: tuple[Gres, ...]) -> tuple[int, tuple[int, ...] | None, str]:
    """Number, indices and kind of the GPUs in a list; the indices are None as soon as one is not told."""
    of = [one for one in found if one.name == "gpu"]
    told = [one.indices for one in of if one.count]
    indices = None if None in told else tuple(sorted(n for part in told for n in part or ()))
    kinds = dict.fromkeys(one.kind for one in of if one.kind)
    return sum(one.count for one in of), indices, ",".join(kinds)


@lru_cache(REMEMBERED)
def tres(text: str) -> int | None:
    """GPUs in a list of trackable resources, `cpu=4,gres/gpu=2,gres/gpu:b200=2`; None where it names none.

    Sites account the sum, the types or both: the sum counts where it is there.
    """
    total: int | None = None
    typed: int | None = None
    for part in split(text):
        name, _, value = part.partition("=")
        if not value.isdecimal():
            continue
        if name == "gres/gpu":
            total = int(value)
        elif name.startswith("gres/gpu:"):
            typed = (typed or 0) + int(value)
    return total if total is not None else typed
