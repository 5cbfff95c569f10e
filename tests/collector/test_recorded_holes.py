"""Runs of several days in one recording: the hours between them cost little and change nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unidle_collector.commands.diagnose import sampling
from unidle_collector.model import GpuRef
from unidle_collector.recorded.grid import to_grid
from unidle_collector.recorded.rows import RecordingError, Rows
from unidle_collector.recording import Recording
from unidle_collector.replay import replay

SECOND = 1_000_000_000
START = 1_760_000_000 * SECOND
EACH_S = 60
LASTS_S = 1800


def run(
    begin_s: int, util: float, power_w: float, lasts_s: int = LASTS_S, each_s: int = EACH_S
) -> dict[str, NDArray[np.float64]]:
    at = begin_s + np.arange(0.0, lasts_s, each_s)
    return {"at": at, "gpu_util_ratio": np.full(at.size, util), "power_w": np.full(at.size, power_w)}


def rows(*runs: dict[str, NDArray[np.float64]]) -> Rows:
    """Of one GPU that holds 40 GB all the time, with an energy counter that goes on between the runs."""
    whole = {name: np.concatenate([each[name] for each in runs]) for name in runs[0]}
    at = whole.pop("at")
    return Rows(
        time_ns=START + (at * SECOND).astype(np.int64),
        gpu=np.zeros(at.size, dtype=np.int32),
        gpus=(GpuRef("n1", "GPU-0", 0, "NVIDIA H100 80GB HBM3"),),
        values={**whole, "memory_used_bytes": np.full(at.size, 4e10), "energy_j": 120.0 * at},
        job=np.full(at.size, -1, dtype=np.int32),
        jobs=("",),
        notes=(),
    )


def with_each_step(recording: Recording) -> Recording:
    """The same with an instant for each step of its holes."""
    steps, shape = recording.steps, (int(recording.steps[-1]) + 1, len(recording.gpus))

    def spread(column: NDArray[Any], fill: float) -> NDArray[Any]:
        out = np.full(shape, fill, dtype=column.dtype)
        out[steps] = column
        return out

    return replace(
        recording,
        columns={name: spread(column, np.nan) for name, column in recording.columns.items()},
        sampled=spread(recording.sampled, 0),
        job=spread(recording.job, -1),
        kept=None,
    )


@pytest.mark.parametrize(("hole_h", "each_s"), [(2, 10), (26.51, 60)])
@pytest.mark.parametrize(
    "runs",
    [((1.0, 650.0), (0.0, 120.0)), ((0.0, 120.0), (0.0, 120.0)), ((0.2, 200.0), (0.2, 200.0))],
    ids=["work, then idle", "idle on both days", "starved on both days"],
)
def test_a_hole_says_the_same_with_most_of_its_instants_left_out(
    hole_h: float, each_s: int, runs: tuple[tuple[float, float], ...]
) -> None:
    gap_s = LASTS_S + int(hole_h * 3600)
    kept = to_grid(rows(*(run(number * gap_s, *each, each_s=each_s) for number, each in enumerate(runs))))
    dense = with_each_step(kept)
    assert kept.instants < dense.instants
    ours, theirs = replay(kept), replay(dense)
    assert ours.gpus == theirs.gpus
    assert ours.account == theirs.account
    assert [(f.kind, f.cause, f.since_ns, f.told_ns) for f in ours.findings] == [
        (f.kind, f.cause, f.since_ns, f.told_ns) for f in theirs.findings
    ]
    for one, other in zip(ours.findings, theirs.findings, strict=True):  # forgotten within a minute
        assert (one.ended_ns or 0) - (other.ended_ns or 0) in range(60 * SECOND)
    assert sampling(kept) == sampling(dense)


def test_the_time_line_shows_the_hole_as_unknown_and_adds_up() -> None:
    (gpu,) = replay(to_grid(rows(run(0, 1.0, 650.0), run(86_400, 0.0, 120.0)))).gpus
    assert [span.state for span in gpu.spans] == ["productive", "unknown", "idle"]
    lengths = {span.state: (span.end_ns - span.begin_ns) / SECOND for span in gpu.spans}
    assert lengths == {state: seconds for state, seconds in gpu.states.items() if seconds}
    assert lengths["unknown"] == 86_400 - LASTS_S - 2 * EACH_S  # for which the next sample speaks


def test_three_runs_in_a_year_take_no_more_room_than_their_samples_and_an_instant_an_hour() -> None:
    year_s = 365 * 86_400
    recording = to_grid(rows(run(0, 1.0, 650.0), run(year_s // 2, 1.0, 650.0), run(year_s, 1.0, 650.0)))
    assert recording.instants < 3 * (LASTS_S + 4000) / EACH_S + year_s / 3600
    assert recording.lasts_s == year_s + LASTS_S
    assert int(recording.sampled.sum()) == 3 * LASTS_S / EACH_S


def test_a_time_years_away_is_still_taken_for_a_mistake() -> None:
    stray = run(-50 * 365 * 86_400, 1.0, 650.0, lasts_s=EACH_S)
    fast = {name: np.repeat(column, 4) for name, column in run(0, 1.0, 650.0).items()}
    fast["at"] = np.arange(fast["at"].size, dtype=np.float64)
    with pytest.raises(RecordingError, match="check for a stray time"):
        to_grid(rows(stray, fast))
