"""A recorded machine in place of this one: the file of `unidle agent record`, played for ever.

The same child process, the same calls, another library under them (`unidle_agent.answers.stand_in`).
Every field's source is `replay`, so that the rows are SIMULATED wherever they are shown. When the file
ends it begins again: counters such as energy fall back then, as they do when a driver is loaded anew.
"""

from __future__ import annotations

from dataclasses import replace

from unidle_agent.sample import REPLAY, GpuReading, Reading, Source


class ReplaySource:
    """What `inner` reads, marked as a replay."""

    name = REPLAY
    precedence = 10

    def __init__(self, inner: Source) -> None:
        self._inner = inner

    def read(self) -> Reading:
        """As the inner source. A row without values cannot carry the mark: it is left out."""
        reading = self._inner.read()
        gpus = tuple(_marked(row) for row in reading.gpus if row.values)
        return replace(reading, gpus=gpus, problems=tuple(f"SIMULATED: {text}" for text in reading.problems))

    def close(self) -> None:
        """End the inner source."""
        self._inner.close()


def _marked(row: GpuReading) -> GpuReading:
    return replace(row, facts=replace(row.facts, sources=dict.fromkeys(row.values, REPLAY)))
