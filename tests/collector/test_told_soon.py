"""How soon a fault of a link or a clock is told where the agent looks again at once, and what is not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.collector.fleets import HEALTHY, START_NS, Column, recording
from tests.collector.pushing import START_S, batch, site

from unidle_collector.engine import Engine
from unidle_collector.pergpu import SECOND_NS
from unidle_collector.replay import enter, play
from unidle_collector.signals import RESET, Happened

ONSET_S = 301
EACH_S = 15
"""The usual readings."""


def answers(inside: float, outside: float, *, odd: int | None = None, again: int = 6) -> Column:
    """Of GPU 0: `inside` from the onset on, or for `odd` seconds; asked `again` times at once."""

    def build(instants: int, gpus: int) -> NDArray[np.float64]:
        second = np.arange(instants)
        asked = (second % EACH_S == ONSET_S % EACH_S) | ((second >= ONSET_S) & (second <= ONSET_S + again))
        column = np.full((instants, gpus), float(outside))
        column[ONSET_S : None if odd is None else ONSET_S + odd, 0] = inside
        column[~asked] = np.nan
        return column

    return build


def comes(seconds: tuple[int, ...], by: float) -> Column:
    """Of GPU 0: grows at these seconds after the onset; known at every second."""

    def build(instants: int, gpus: int) -> NDArray[np.float64]:
        column = np.zeros((instants, gpus))
        column[[ONSET_S + second for second in seconds], 0] = by
        return column

    return build


def between_s(inside: float, outside: float) -> Column:
    """Of GPU 0: `inside` from the onset on, known at every second."""

    def build(instants: int, gpus: int) -> NDArray[np.float64]:
        column = np.full((instants, gpus), outside)
        column[ONSET_S:, 0] = inside
        return column

    return build


def told_after_s(columns: dict[str, Column], *, asks_again: bool = True, minutes: int = 7) -> dict[str, int]:
    """`kind.cause` -> seconds from the end of the step of the onset until it was told."""
    run = recording(HEALTHY | columns, minutes=minutes)
    engine = Engine(run.period_s, keep_accounts_ns=None)
    positions = enter(run, engine)
    engine.inventory.a["asks_again"][positions] = asks_again
    out: dict[str, int] = {}
    shown_ns = START_NS + ONSET_S * SECOND_NS
    for changes in play(run, engine, positions):
        for change in changes:
            one = change.finding
            assert one.told_ns is not None
            out.setdefault(f"{one.kind}.{one.cause}", (one.told_ns - shown_ns) // SECOND_NS)
    return out


WIDTH = {"pcie_width": answers(8, 16), "pcie_width_max": 16.0}
DOWN = {"nvlink_links": 18.0, "nvlink_links_up": answers(12, 18)}
PORTS = {"ib_ports_active": answers(7, 8), "ib_ports_inactive": answers(1, 0), "ib_ports_slow": 0.0}


@dataclass(frozen=True)
class Case:
    title: str
    columns: dict[str, Column]
    kind: str
    most_s: int


SOON = [
    Case("half of the lanes", WIDTH, "pcie.width", 5),
    Case(
        "an older generation under load",
        {"pcie_generation": answers(3, 5), "pcie_generation_max": 5.0},
        "pcie.generation",
        5,
    ),
    Case("links that go down", DOWN, "nvlink.links_down", 5),
    Case("a port that goes down", PORTS, "infiniband.port_down", 5),
    Case(
        "a port that slows down",
        {"ib_ports_active": 8.0, "ib_ports_inactive": 0.0, "ib_ports_slow": answers(1, 0)},
        "infiniband.slow_port",
        5,
    ),
    Case("a storm on NVLink", {"nvlink_errors": comes(tuple(range(7)), 40.0)}, "nvlink.errors", 6),
    Case("a storm on a cable", {"ib_link_errors": comes(tuple(range(7)), 200.0)}, "infiniband.errors", 6),
]


@pytest.mark.parametrize("case", SOON, ids=lambda case: case.title)
def test_told_within_seconds_where_the_agent_looks_again_at_once(case: Case) -> None:
    told = told_after_s(case.columns)
    assert told.keys() == {case.kind}
    assert told[case.kind] <= case.most_s


@pytest.mark.parametrize("case", SOON[:5], ids=lambda case: case.title)
def test_told_later_where_nobody_looks_again(case: Case) -> None:
    assert 10 <= told_after_s(case.columns, asks_again=False)[case.kind] <= 16


@pytest.mark.parametrize(
    "columns",
    [
        pytest.param(WIDTH | {"pcie_width": answers(8, 16, odd=1)}, id="one odd width"),
        pytest.param(WIDTH | {"pcie_width": answers(8, 16, odd=3)}, id="a width that comes back after 3 s"),
        pytest.param(DOWN | {"nvlink_links_up": answers(12, 18, odd=3)}, id="links that train again"),
        pytest.param(
            PORTS | {"ib_ports_active": answers(7, 8, odd=3), "ib_ports_inactive": answers(1, 0, odd=3)},
            id="a port that comes back after 3 s",
        ),
        pytest.param(
            PORTS | {"ib_ports_active": answers(7, 8, odd=1, again=0), "ib_ports_inactive": 0.0},
            id="a port of which only one answer is bad",
        ),
        pytest.param({"nvlink_errors": comes((0, 1, 2), 400.0)}, id="errors of one training, in 3 s"),
        pytest.param({"nvlink_errors": comes((0, 3, 7), 5.0)}, id="a few errors within seconds"),
        pytest.param({"nvlink_errors": comes((0,), 4000.0)}, id="many errors at once"),
        pytest.param({"ib_link_errors": comes((0, 1, 2), 9000.0)}, id="symbol errors of one training"),
        pytest.param({"ib_link_errors": comes((0, 4, 8), 50.0)}, id="some symbol errors within seconds"),
    ],
)
def test_what_is_over_within_seconds_is_not_told(columns: dict[str, Column]) -> None:
    assert told_after_s(columns) == {}


CLOCK = between_s(1.3e9, 1.75e9)


@pytest.mark.parametrize(
    ("columns", "told_s"),
    [
        pytest.param(
            {"power_limit_w": between_s(450.0, 700.0), "power_w": between_s(448.0, 690.0)},
            5,
            id="a lower limit, and it is at it",
        ),
        pytest.param({"power_limit_w": 700.0, "power_w": 690.0}, 60, id="the same limit as its siblings"),
        pytest.param(
            {"power_limit_w": between_s(450.0, 700.0), "power_w": between_s(300.0, 690.0)},
            60,
            id="a lower limit that it does not reach",
        ),
        pytest.param(
            {"power_limit_w": between_s(450.0, 700.0), "power_w": between_s(448.0, 400.0)},
            60,
            id="a lower limit that would do for its siblings",
        ),
    ],
)
def test_a_power_cap_is_told_at_once_only_with_a_limit_that_explains_it(
    columns: dict[str, Column], told_s: int
) -> None:
    told = told_after_s({"sm_clock_hz": CLOCK} | columns)
    assert told == {"throttling_power.power_cap": pytest.approx(told_s, abs=1)}


@pytest.mark.parametrize(
    ("ahead_s", "told_s"),
    [
        pytest.param([0, 0, 0, 9, 9, 9, 9], 25, id="ahead: with the second push"),
        pytest.param([0, 0, 0, -9, -9.3, -9, -9], 25, id="behind: with the second, too"),
        pytest.param([0, 0, 0, -9, -9.8, 0, 0], None, id="two pushes that were late, not alike"),
        pytest.param([0, 0, 0, 9, 9.8, 9, 9], 25, id="ahead: nothing but a clock makes a push early"),
        pytest.param([0, 0, 0, -9, -12, -6, -8.5], None, id="pushes that were late differently"),
        pytest.param([0, 9, 0, 0, 9, 0, 0], None, id="one push, and later another one like it"),
    ],
)
def test_a_clock_is_told_when_pushes_agree(tmp_path: Path, ahead_s: list[float], told_s: int | None) -> None:
    told: list[int] = []
    with site(tmp_path) as here:
        for number, off_s in enumerate(ahead_s):
            first_s = 5 * number
            for node in ("n1", "n2"):
                values = {"gpu_util_ratio": 0.9, "power_w": 600.0, "memory_used_bytes": 3e10}
                item = batch(number, first_s, 5, values, node=node, gpus=(f"GPU-{node}",))
                here.clock.at_s = START_S + first_s + 5
                shown_s = here.clock.at_s + (off_s if node == "n2" else 0.0)
                assert here.push(item, clock_s=shown_s)[0] == 200
            here.settle(first_s + 5)
            told += [first_s + 5] * bool(here.get("incidents"))
    assert told[:1] == ([] if told_s is None else [told_s])


@pytest.mark.parametrize(
    ("pushed", "period_s", "first_bad_s", "told"),
    [
        pytest.param(True, 1.0, 80, True, id="an agent with a row each second looks again"),
        pytest.param(True, 5.0, 80, False, id="an agent with a row each 5 s cannot"),
        pytest.param(False, 1.0, 80, False, id="whoever is only scraped does not"),
        pytest.param(True, 1.0, 40, False, id="links may come up in the minute after a boot"),
    ],
)
def test_only_an_agent_with_dense_rows_is_believed_within_seconds(
    tmp_path: Path, pushed: bool, period_s: float, first_bad_s: int, told: bool
) -> None:
    well = {"gpu_util_ratio": 0.9, "power_w": 600.0, "memory_used_bytes": 3e10}
    with site(tmp_path) as here:
        for number in range(first_bad_s // 5 + 2):
            first_s = 5 * number
            lanes = {"pcie_width": 8.0 if first_s >= first_bad_s else 16.0, "pcie_width_max": 16.0}
            item = replace(batch(number, first_s, 5, well | lanes), period_s=period_s)
            here.clock.at_s = START_S + first_s + 5
            assert here.push(item, clock_s=here.clock.at_s if pushed else None)[0] == 200
            here.settle(first_s + 5)
        assert bool(here.get("incidents")) == told


def test_links_that_train_after_a_reset_have_longer_to_come_up() -> None:
    run = recording(HEALTHY | DOWN | {"nvlink_links_up": answers(0, 18, odd=10, again=12)}, minutes=7)
    engine = Engine(run.period_s, keep_accounts_ns=None)
    positions = enter(run, engine)
    engine.inventory.a["asks_again"][positions] = True

    def reset(instant: int) -> tuple[Happened, ...]:
        time_ns = START_NS + ONSET_S * SECOND_NS
        return (Happened(int(positions[0]), time_ns, RESET),) if instant == ONSET_S else ()

    assert not [change for changes in play(run, engine, positions, reset) for change in changes]
    assert told_after_s(DOWN | {"nvlink_links_up": answers(0, 18, odd=10, again=12)})
