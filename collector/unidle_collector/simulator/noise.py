"""The fleet's randomness from second to second: one stream per purpose, each drawn in order of time.

So the same seed gives the same samples whether a minute is drawn at once or second by second.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Draw:
    """Noise for n seconds of G GPUs; every array is [n, G]."""

    activity: Floats32
    """Normal: what moves all activity of a GPU together."""
    pipe: Floats32
    """Normal: what moves its parts against each other."""
    link: Floats32
    """Normal."""
    meter: Floats32
    """Normal: power meters and thermometers."""
    lost: Floats32
    """Uniform in 0-1: which samples go missing, and rarer events."""


class Noise:
    """The streams of one fleet."""

    def __init__(self, seed: int) -> None:
        self._streams = [np.random.Generator(np.random.SFC64([seed, 1, number])) for number in range(6)]

    def draw(self, seconds: int, gpus: int) -> Draw:
        """The next `seconds` of the GPUs."""
        shape = (seconds, gpus)
        normal = [stream.standard_normal(shape, dtype=np.float32) for stream in self._streams[:4]]
        activity, pipe, link, meter = normal
        return Draw(activity, pipe, link, meter, self._streams[4].random(shape, dtype=np.float32))

    def hosts(self, seconds: int, nodes: int) -> Floats32:
        """[seconds, nodes] normal: the next `seconds` of the hosts."""
        return self._streams[5].standard_normal((seconds, nodes), dtype=np.float32)
