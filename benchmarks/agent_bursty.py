"""How true the rows are of GPUs that are busy for half of each period of 0.3 to 3 s, one period each.

Means of 10 s as a reader of the rows would take them, against what the signal was; with three kinds of
drivers, of which the worst counts.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator

from tests import nvml_library

from benchmarks.agent_bench import GPUS, Bench, FirstSample, say
from unidle_agent.wire import Batch

WINDOW_S = 10.0
DRIVER_WINDOW_S = 1 / 6
"""The shortest window that nvml.h gives for utilization."""
SIGNAL_S = 30.0
SETTLE_ROWS = 3
"""A GPU is found to be restless, or its buffer to be dense, in the first of its rows."""
BURST_PERIODS_S = (0.3, 0.5, 0.6, 0.75, 1.0, 1.5, 2.0, 3.0)
"""One per GPU; each fits into SIGNAL_S a whole number of times."""


def busy_share(period_s: float, from_s: float, to_s: float) -> float:
    """Share of the time in which a signal is on that is on for the first half of each period."""

    def busy_s(until_s: float) -> float:
        whole, rest_s = divmod(until_s, period_s)
        return whole * period_s / 2 + min(rest_s, period_s / 2)

    return (busy_s(to_s) - busy_s(from_s)) / (to_s - from_s)


def by_instant() -> str:
    """A driver whose utilization is that of the instant."""
    changes: dict[float, list[str]] = {}
    for number, period_s in enumerate(BURST_PERIODS_S):
        for half in range(round(2 * SIGNAL_S / period_s)):
            line = f"gpu.{number}.utilization.gpu={100 * (half % 2 == 0):d}"
            changes.setdefault(round(half * period_s / 2, 6), []).append(line)
    return "\n".join(line for at_s in sorted(changes) for line in (f"[t={at_s}]", *changes[at_s]))


def by_window() -> str:
    """As a driver shows such signals: each sixth of a second, the share of the sixth before it."""
    lines = []
    for step in range(round(SIGNAL_S / DRIVER_WINDOW_S)):
        lines.append(f"[t={step * DRIVER_WINDOW_S:.6f}]")
        lines += [
            f"gpu.{number}.utilization.gpu={percent_before(step, period_s)}"
            for number, period_s in enumerate(BURST_PERIODS_S)
        ]
    return "\n".join(lines)


def by_buffer() -> str:
    """The same, with a driver that keeps the sixths of a second in its ring buffer."""
    rings = [
        ";".join(
            f"{step * DRIVER_WINDOW_S:.6f}:{percent_before(step, period_s)}"
            for step in range(round(SIGNAL_S / DRIVER_WINDOW_S))
        )
        for period_s in BURST_PERIODS_S
    ]
    buffers = [f"gpu.{number}.samples.1=u;{ring}" for number, ring in enumerate(rings)]
    return "\n".join([*buffers, by_window()])


SHOWN: dict[str, Callable[[], str]] = {"instant": by_instant, "window": by_window, "buffer": by_buffer}
"""What drivers are like: the figure is that of the worst."""


def percent_before(step: int, period_s: float) -> int:
    """What the driver's window that ends with this step shows of the signal."""
    at_s = step * DRIVER_WINDOW_S
    return round(100 * busy_share(period_s, at_s - DRIVER_WINDOW_S, at_s))


def bursty(bench: Bench, seconds: float) -> float:
    """RMS error in points of the 10 s means that a reader of the rows would take, of the worst driver."""
    return max(bursty_one(bench, seconds, shown) for shown in SHOWN)


def window_means(rows: list[tuple[float, float]]) -> Iterator[tuple[float, float, float]]:
    """Mean of each ten rows (time, value), and from when to when: a row speaks for the second before it."""
    width = round(WINDOW_S)
    for end in range(width, len(rows), width):
        values = [value for _, value in rows[end - width + 1 : end + 1]]
        yield statistics.fmean(values), rows[end - width][0], rows[end][0]


def bursty_one(bench: Bench, seconds: float, shown: str) -> float:
    """RMS error in points where the driver is `shown`."""
    answers, begins_s = bench.folder / f"bursty-{shown}.txt", time.monotonic()
    gpus = [{**nvml_library.gpu(number), "samples.1": None} for number in range(GPUS)]
    nvml_library.write(answers, [{key: one for key, one in gpu.items() if one is not None} for gpu in gpus])
    with answers.open("a") as file:
        file.write(f"begins_s={begins_s}\nlength_s={SIGNAL_S}\n{SHOWN[shown]()}\n")
    first, rows = FirstSample(), [list[tuple[float, float]]() for _ in range(GPUS)]
    to_signal_s = time.monotonic() - time.time() - begins_s

    def take(batch: Batch) -> None:
        first(batch)
        for place, value in enumerate(batch.columns.get("gpu_util_ratio", ())):
            instant, gpu = divmod(place, len(batch.gpus))
            if not math.isnan(value):
                rows[gpu].append((batch.times_ns[instant] / 1e9 + to_signal_s, value))

    with bench.agent(f"bursty-{shown}", answers, take):
        first.wait()
        time.sleep(seconds)
    errors = [
        100 * (mean - busy_share(period_s, from_s, to_s))
        for of_gpu, period_s in zip(rows, BURST_PERIODS_S, strict=True)
        for mean, from_s, to_s in window_means(of_gpu[SETTLE_ROWS:])
    ]
    rms = math.sqrt(statistics.fmean(error**2 for error in errors))
    say(
        f"bursty, by {shown}: {len(errors)} means of {WINDOW_S:g} s, off by {rms:.2f} points (RMS), "
        f"the worst by {max(map(abs, errors)):.1f}"
    )
    return rms
