"""Nodes that are sampled rarely: the live window, in which a row speaks for many steps, and a recording of
the same rows say the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.collector.fleets import HEALTHY, HELD, Column, recording
from tests.collector.test_detectors_jobs import LAST_HEAVY, ONE_SLOW, job, saves, waiting
from tests.collector.test_starving import SPINS, WAITS

from unidle_agent.fields import BY_NAME
from unidle_collector.engine import Engine
from unidle_collector.recording import Recording
from unidle_collector.replay import enter, play, replay

Made = Callable[[float], Recording]
Told = set[tuple[str, str]]
States = list[dict[str, float]]


def live(seen: Recording) -> tuple[Told, States]:
    """(kind and cause told, seconds by cause of each GPU) by the steps of a live window, one a second."""
    steps = round(seen.period_s)
    columns = {
        name: np.repeat(values, steps, axis=0) / (steps if BY_NAME[name].kind == "counter" else 1)
        for name, values in seen.columns.items()
    }
    each_second = replace(
        seen,
        start_ns=seen.start_ns - (steps - 1) * 10**9,
        period_s=1.0,
        columns=columns,
        sampled=np.repeat(seen.sampled, steps, axis=0),
        job=np.repeat(seen.job, steps, axis=0),
    )
    engine = Engine(1.0, keep_accounts_ns=None)
    positions = enter(each_second, engine)
    engine.inventory.a["period_s"][positions] = seen.period_s
    changes = [change for step in play(each_second, engine, positions) for change in step]
    told = {(c.finding.kind, c.finding.cause) for c in changes if c.what == "told"}
    return told, [engine.ledger.durations()[int(position)][1] for position in positions]


def recorded(seen: Recording) -> tuple[Told, States]:
    result = replay(seen)
    told = {(f.kind, f.cause) for f in result.findings if f.told_ns is not None}
    return told, [gpu.causes for gpu in result.gpus]


def now_and_then(value: float) -> Column:
    """In one sample after six of nothing."""

    def build(instants: int, gpus: int) -> NDArray[np.float64]:
        return np.repeat(np.where(np.arange(instants) % 7, 0.0, value)[:, None], gpus, axis=1)

    return build


@pytest.mark.parametrize(
    "period_s", [30.0, *(pytest.param(period_s, marks=pytest.mark.slow) for period_s in (15.0, 60.0))]
)
@pytest.mark.parametrize(
    "made",
    [
        pytest.param(lambda s: recording(HELD | {"energy_j": 120.0 * s}, minutes=70, period_s=s), id="held"),
        pytest.param(
            lambda s: recording(HELD | {"energy_j": 220.0 * s}, minutes=40, period_s=s),
            id="work between the samples",
        ),
        pytest.param(
            lambda s: recording(HELD | {"gpu_util_ratio": now_and_then(0.6)}, minutes=60, period_s=s),
            id="a server that is asked now and then",
        ),
        pytest.param(
            lambda s: recording(HELD, minutes=70, period_s=s, job="jupyter-7"),
            id="a session of which the energy is not known",
        ),
        pytest.param(lambda s: recording(WAITS, minutes=40, period_s=s, job="7"), id="starved"),
        pytest.param(lambda s: recording(SPINS, minutes=40, period_s=s, job="7"), id="waits in collectives"),
        pytest.param(
            lambda s: recording(
                HEALTHY | {"clock_event_reasons": now_and_then(32.0)}, minutes=40, period_s=s
            ),
            id="hot in single samples",
        ),
        pytest.param(lambda s: job(saves(s, 600, period_s=s), period_s=s), id="saves in single samples"),
        pytest.param(lambda s: job(waiting(ONE_SLOW, period_s=s), period_s=s), id="one rank is slow"),
        pytest.param(lambda s: job(waiting(LAST_HEAVY, period_s=s), period_s=s), id="a heavy stage"),
    ],
)
def test_a_row_of_many_seconds_is_one_sample(made: Made, period_s: float) -> None:
    seen = made(period_s)
    (told, states), (told_live, states_live) = recorded(seen), live(seen)
    assert told_live == told
    for one, other in zip(states, states_live, strict=True):
        for cause in one.keys() | other.keys():
            assert other.get(cause, 0.0) == pytest.approx(one.get(cause, 0.0), abs=4 * period_s), cause
