"""The file of answers: `key=value` lines, first what holds from the start, then what changes, by time.

    driver.version=575.57.08
    length_s=60.0
    gpu.0.name=NVIDIA H100 80GB HBM3
    [t=0.0]
    gpu.0.utilization.gpu=93
    [t=1.0]
    gpu.0.utilization.gpu=95

`[t=SECONDS]` begins what holds from then on; a key keeps its value until a later section gives another.
After `length_s` the file begins again; without it, what came last stays. A key that is absent is "not
supported", `error:CODE` a return code. `#` begins a comment. All keys: tests/nvml/README.md.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator, Mapping
from typing import TextIO

from unidle_agent.errors import SourceError

SECTION = re.compile(r"\[t=(\d+(?:\.\d+)?)\]")


class Answers:
    """The answers of a file at any instant."""

    def __init__(self, text: str, name: str = "answers") -> None:
        """Raises SourceError naming the line that is no answer."""
        self._instants: dict[str, list[float]] = {}
        self._values: dict[str, list[str]] = {}
        from_s = 0.0
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip() or line.startswith("#"):
                continue
            if section := SECTION.fullmatch(line.strip()):
                if float(section[1]) < from_s:
                    raise SourceError(
                        f"{name}, line {number}: expected sections in order of time, came {line}"
                    )
                from_s = float(section[1])
                continue
            key, equals, value = line.partition("=")
            if not equals:
                raise SourceError(
                    f"{name}, line {number}: expected key=value or [t=SECONDS], came {line[:60]!r}"
                )
            self._instants.setdefault(key, []).append(from_s)
            self._values.setdefault(key, []).append(value)
        self.length_s = self._length_s(name)

    def at(self, key: str, time_s: float) -> str | None:
        """What `key` is, `time_s` seconds after the beginning; None where the file says nothing."""
        if self.length_s:
            time_s %= self.length_s
        place = bisect.bisect_right(self._instants.get(key, ()), time_s)
        return self._values[key][place - 1] if place else None

    def since(self, key: str, from_s: float, to_s: float) -> Iterator[tuple[str, float]]:
        """All that `key` was between two times, each with the time at which that round of the file began."""
        first = int(max(0.0, from_s) // self.length_s) if self.length_s else 0
        last = int(to_s // self.length_s) if self.length_s else 0
        for number in range(first, last + 1):
            zero_s = number * self.length_s
            instants = self._instants.get(key, [])
            begin = max(0, bisect.bisect_right(instants, from_s - zero_s) - 1)
            for place in range(begin, bisect.bisect_right(instants, to_s - zero_s)):
                yield self._values[key][place], zero_s

    def _length_s(self, name: str) -> float:
        """Seconds after which the file begins again; 0 is never."""
        text = self.at_first("length_s") or "0"
        try:
            length_s = float(text)
        except ValueError:
            length_s = -1.0
        if not 0 <= length_s < float("inf"):
            raise SourceError(f"{name}: expected length_s to be a number of seconds, came {text!r}")
        return length_s

    def at_first(self, key: str) -> str | None:
        """The first thing that the file says of `key`."""
        return self._values[key][0] if key in self._values else None


class Writer:
    """Writes answers as they come, each only where it is another than before."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._written: dict[str, str] = {}

    def comment(self, text: str) -> None:
        """A line for people."""
        self._out.write(f"# {text}\n")

    def instant(self, time_s: float, answers: Mapping[str, str]) -> None:
        """What holds from `time_s` on; before the first second it is the head of the file."""
        fresh = {key: value for key, value in answers.items() if self._written.get(key) != value}
        if fresh:
            self._out.write(f"[t={time_s:.3f}]\n")
            self._lines(fresh)

    def head(self, answers: Mapping[str, str]) -> None:
        """What holds from the beginning."""
        self._lines(answers)

    def _lines(self, answers: Mapping[str, str]) -> None:
        self._written.update(answers)
        # A line end inside a value would be a line of its own.
        self._out.writelines(f"{key}={' '.join(value.split())}\n" for key, value in answers.items())
