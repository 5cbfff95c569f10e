"""When batches close, and what is in them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.call_count import calls_of

from unidle_agent.batcher import FORGET_S, ONSET_S, Batcher, facts_id, sendable
from unidle_agent.fields import BY_NAME, GPU_FIELDS, UNKNOWN_U8
from unidle_agent.sample import GpuReading, Reading, Tick, Value, merge
from unidle_agent.wire import Batch, Event, GpuFacts, Owner, column

A = GpuFacts("GPU-a", 0, "B200", driver="570", sources={"power_w": "nvml"})
B = GpuFacts("GPU-b", 1, "B200", driver="570", sources={"power_w": "nvml"})


def tick(second: float, *gpus: GpuFacts, values: dict[str, Value] | None = None) -> Tick:
    known = {"power_w": 100.0, "gpu_state": 0} if values is None else values
    return Tick(int(second * 1e9), tuple(GpuReading(gpu, known) for gpu in gpus), {"load_1m": 1.0}, ())


def feed(batcher: Batcher, *ticks: Tick) -> list[Batch]:
    return [batch for one in ticks for batch in batcher.add(one)]


def lengths(batches: list[Batch]) -> list[int]:
    return [len(batch.times_ns) for batch in batches]


def test_first_tick_goes_at_once_with_facts_then_every_five_seconds_without() -> None:
    batches = feed(Batcher("n", 1.0, 5.0), *(tick(second, A) for second in range(11)))
    assert lengths(batches) == [1, 5, 5]
    assert batches[0].facts == (A,)
    assert [batch.facts for batch in batches[1:]] == [None, None]
    assert len({batch.facts_id for batch in batches}) == 1


def test_ticks_that_come_a_hair_late_do_not_lengthen_a_batch() -> None:
    times = [0, 1.0003, 2.0001, 3.0004, 3.9999, 5.0002]
    assert lengths(feed(Batcher("n", 1.0, 5.0), *(tick(second, A) for second in times))) == [1, 5]


def test_a_batch_whose_last_tick_is_missing_closes_with_the_next_one() -> None:
    assert lengths(feed(Batcher("n", 1.0, 5.0), *(tick(second, A) for second in (0, 1, 2, 7)))) == [1, 2]


def test_batches_close_on_whole_multiples_whenever_an_agent_began() -> None:
    batches = feed(Batcher("n", 1.0, 5.0), *(tick(second, A) for second in (3.2, 4, 5, 6, 7, 8, 9, 10)))
    assert [[round(t / 1e9) for t in batch.times_ns] for batch in batches] == [[3], [4, 5], [6, 7, 8, 9, 10]]


def test_only_what_cannot_wait_is_urgent() -> None:
    batcher, urgent = Batcher("n", 1.0, 5.0), []
    for second in range(11):
        gpus = (A,) if second < 7 else (A, B)
        urgent += [batcher.urgent] * len(batcher.add(tick(second, *gpus)))
        if batcher.urgent:
            assert second in (0, 7)
    assert lengths(feed(batcher, tick(11, A, B))) == []


def test_a_new_gpu_closes_the_open_batch_and_goes_at_once() -> None:
    batches = feed(Batcher("n", 1.0, 5.0), tick(0, A), tick(1, A), tick(2, A), tick(3, A, B))
    assert [(batch.gpus, len(batch.times_ns)) for batch in batches] == [
        (("GPU-a",), 1),
        (("GPU-a",), 2),
        (("GPU-a", "GPU-b"), 1),
    ]
    assert batches[2].facts == (A, B)


def test_a_new_owner_goes_at_once() -> None:
    owned = replace(A, owner=Owner(True, job="42", source="slurm"))
    batches = feed(Batcher("n", 1.0, 5.0), tick(0, A), tick(1, A), tick(2, owned))
    assert lengths(batches) == [1, 1, 1]
    assert batches[2].facts == (owned,)
    assert batches[1].facts_id != batches[2].facts_id


def test_a_lost_gpu_goes_at_once() -> None:
    batches = feed(Batcher("n", 1.0, 5.0), tick(0, A), tick(1, A), tick(2, A, values={"gpu_state": 1}))
    assert lengths(batches) == [1, 2]
    assert list(batches[1].columns["gpu_state"]) == [0, 1]


XID = Event(2 * 10**9, "GPU-a", "xid", 79, "the driver reported XID 79")


def test_an_event_goes_at_once_and_once() -> None:
    struck = replace(tick(2, A), events=(XID,))
    batches = feed(Batcher("n", 1.0, 5.0), tick(0, A), tick(1, A), struck, *(tick(s, A) for s in range(3, 8)))
    assert lengths(batches) == [1, 2, 3]
    assert [batch.events for batch in batches] == [(), (XID,), ()]


def reasons(second: float, bits: int) -> Tick:
    return tick(second, A, values={"gpu_state": 0, "clock_event_reasons": bits})


@pytest.mark.parametrize("bit", [0x8, 0x20, 0x40, 0x80])
def test_the_onset_of_throttling_goes_at_once(bit: int) -> None:
    batches = feed(Batcher("n", 1.0, 9.0), reasons(0, 0x1), reasons(1, 0x4), reasons(2, bit | 0x4))
    assert lengths(batches) == [1, 2]


@pytest.mark.parametrize("bit", [0x1, 0x2, 0x4, 0x10, 0x100])
def test_clocks_lowered_by_choice_or_idleness_do_not_hurry(bit: int) -> None:
    assert lengths(feed(Batcher("n", 1.0, 9.0), reasons(0, 0), reasons(1, bit), reasons(2, bit))) == [1]


def test_throttling_that_goes_on_or_flickers_does_not_hurry_again() -> None:
    flicker = [reasons(second, 0x40 * (second % 2)) for second in range(1, 20)]
    assert lengths(feed(Batcher("n", 1.0, 99.0), reasons(0, 0), *flicker)) == [1, 1]


def test_throttling_that_begins_anew_goes_at_once_again() -> None:
    calm = [reasons(second, 0) for second in range(2, 2 + int(ONSET_S))]
    batches = feed(
        Batcher("n", 1.0, 99.0), reasons(0, 0), reasons(1, 0x40), *calm, reasons(2 + int(ONSET_S), 0x40)
    )
    assert lengths(batches) == [1, 1, int(ONSET_S) + 1]


def test_statistics_travel_beside_their_field() -> None:
    values: dict[str, Value] = {"gpu_util_ratio": 0.5, "gpu_util_ratio.zero": 0.25}
    (batch,) = feed(Batcher("n", 1.0, 1.0), tick(0, A, values=values))
    assert {name: list(column) for name, column in batch.columns.items()} == {
        "gpu_util_ratio": [0.5],
        "gpu_util_ratio.zero": [0.25],
    }


def test_values_find_their_column_in_whatever_order_and_company_they_come() -> None:
    batcher = Batcher("n", 1.0, 5.0)
    rows: list[dict[str, Value]] = [
        {"power_w": 1.0, "temperature_c": 11.0},
        {"temperature_c": 12.0, "power_w": 2.0},
        {"power_w": 3.0, "sm_clock_hz": 33.0},
    ]
    feed(batcher, tick(0, A))
    for second, values in enumerate(rows, 1):
        feed(batcher, tick(second, A, values=values))
    batch = batcher.flush()
    assert batch is not None
    assert list(batch.columns["power_w"]) == [1.0, 2.0, 3.0]
    assert [value == value for value in batch.columns["temperature_c"]] == [True, True, False]
    assert list(batch.columns["temperature_c"])[:2] == [11.0, 12.0]
    assert list(batch.columns["sm_clock_hz"])[2:] == [33.0]


def test_a_batch_of_rows_with_the_same_fields_costs_few_calls_per_column() -> None:
    names = [field.name for field in GPU_FIELDS]
    values: dict[str, Value] = dict.fromkeys(names, 1)
    gpus = [replace(A, uuid=f"GPU-{number}", index=number) for number in range(8)]
    batcher = Batcher("n", 1.0, 5.0)
    feed(batcher, *(tick(second, *gpus, values=values) for second in range(5)))
    # Asking each of the 32 waiting rows for each field would be 32 calls and more per column.
    assert calls_of(batcher.flush) <= 10 * len(names)


def test_a_gpu_left_out_of_a_tick_keeps_its_place_as_unknown() -> None:
    batcher = Batcher("n", 1.0, 3.0)
    batches = feed(batcher, tick(0, A, B), tick(1, A, B), tick(2, B), tick(3, A, B))
    assert lengths(batches) == [1, 3]
    power = list(batches[1].columns["power_w"])
    assert [math.isnan(value) for value in power] == [False, False, True, False, False, False]
    assert batches[1].columns["gpu_state"][2] == UNKNOWN_U8
    assert batcher.rows == 7


def test_a_gpu_that_stays_away_is_gone_after_a_minute() -> None:
    batcher = Batcher("n", 1.0, 5.0)
    feed(batcher, tick(0, A, B))
    batches = feed(batcher, *(tick(second, A) for second in range(1, int(FORGET_S) + 2)))
    assert batches[-2].gpus == ("GPU-a", "GPU-b")
    assert batches[-1].gpus == ("GPU-a",)
    assert batches[-1].facts == (A,)


def test_facts_come_again_when_the_collector_asks() -> None:
    batcher = Batcher("n", 1.0, 1.0)
    assert feed(batcher, tick(0, A))[0].facts is not None
    assert feed(batcher, tick(1, A))[0].facts is None
    batcher.request_facts()
    assert feed(batcher, tick(2, A))[0].facts == (A,)
    assert feed(batcher, tick(3, A))[0].facts is None


def test_facts_of_no_gpus_are_sent_too_so_that_a_node_without_gpus_is_known() -> None:
    assert feed(Batcher("n", 1.0, 1.0), tick(0))[0].facts == ()


def test_a_source_that_is_late_for_one_tick_changes_no_facts() -> None:
    thin = GpuFacts("GPU-a", 0, sources={"last_xid": "dcgm-exporter"})
    batches = feed(Batcher("n", 1.0, 2.0), tick(0, A), tick(1, thin), tick(2, A), tick(3, thin), tick(4, A))
    # The exporter's field is new at tick 1; nothing is ever taken away again.
    assert [batch.facts is not None for batch in batches] == [True, True, False, False]
    assert batches[1].facts is not None
    assert batches[1].facts[0].model == "B200"


def test_a_clock_that_is_set_back_starts_a_new_batch() -> None:
    batches = feed(Batcher("n", 1.0, 3.0), tick(100, A), tick(101, A), tick(50, A), tick(51, A), tick(52, A))
    assert [list(batch.times_ns) for batch in batches] == [
        [100 * 10**9],
        [101 * 10**9],
        [50 * 10**9, 51 * 10**9],
    ]


@pytest.mark.parametrize(
    ("readings", "period_s"),
    [
        pytest.param([("nvml", 10)], 1.0, id="seen by NVML each second"),
        pytest.param([("dcgm-exporter", 20)], 5.0, id="seen by the exporter alone"),
        pytest.param([("nvml", 10), ("dcgm-exporter", 20)], 1.0, id="seen by both"),
    ],
)
def test_period_is_the_spacing_at_which_gpus_have_samples(
    readings: list[tuple[str, int]], period_s: float
) -> None:
    values: dict[str, dict[str, Value]] = {"nvml": {"power_w": 1.0}, "dcgm-exporter": {"last_xid": 0}}
    merged = merge(
        0, [(name, rank, Reading((GpuReading(GpuFacts("GPU-a"), values[name]),))) for name, rank in readings]
    )
    (batch,) = Batcher("n", 1.0, 5.0, {"dcgm-exporter": 5.0}).add(merged)
    assert batch.period_s == period_s


def test_simulated_fields_mark_the_batch() -> None:
    simulated = replace(A, sources={"power_w": "nvml", "last_xid": "simulator"})
    assert feed(Batcher("n", 1.0, 1.0), tick(0, A, B))[0].simulated is False
    assert feed(Batcher("n", 1.0, 1.0), tick(0, simulated))[0].simulated is True


def test_facts_id_is_the_same_in_another_process_and_whatever_the_order_of_sources() -> None:
    one = replace(A, sources={"a": "nvml", "b": "gpm"})
    other = replace(A, sources={"b": "gpm", "a": "nvml"})
    assert facts_id([one]) == facts_id([other]) == 228084842049718
    assert facts_id([one]) != facts_id([replace(one, driver="580")])


@pytest.mark.parametrize(
    ("field", "value", "sent"),
    [
        ("energy_j", -1, None),
        ("energy_j", 2**64 - 1, None),
        ("energy_j", 2**64 - 2, 2**64 - 2),
        ("energy_j", 2**70, None),
        ("power_w", math.inf, None),
        ("power_w", math.nan, None),
        ("power_w", 1e300, None),
        ("memory_used_bytes", 1e300, 1e300),
        ("thermal_margin_c", -3.0, -3.0),
        ("power_w", 0.0, 0.0),
    ],
)
def test_values_that_no_column_can_hold_are_unknown_and_zero_stays_zero(
    field: str, value: Value, sent: Value | None
) -> None:
    assert sendable(BY_NAME[field], value) == sent


ANY_VALUE = st.none() | st.integers(-(2**70), 2**70) | st.floats(width=32) | st.just(1e300)


@given(st.sampled_from(["energy_j", "power_w", "memory_used_bytes"]), st.lists(ANY_VALUE, min_size=1))
def test_a_column_holds_each_value_or_unknown_whatever_stands_beside_it(
    field: str, values: list[Value | None]
) -> None:
    spec = BY_NAME[field]
    batcher = Batcher("n", 1.0, len(values))
    ticks = [
        tick(second, A, values={"gpu_state": 0} if value is None else {"gpu_state": 0, field: value})
        for second, value in enumerate(values)
    ]
    batches = feed(batcher, *ticks)
    if (rest := batcher.flush()) is not None:
        batches.append(rest)
    unknown = UNKNOWN_U8 if spec.dtype == "u8" else math.nan
    sent = [
        value
        for batch in batches
        for value in batch.columns.get(field, [unknown] * len(batch.times_ns))  # type: ignore[attr-defined]
    ]
    expected = column(spec, [sendable(spec, value) for value in values])
    assert [repr(value) for value in sent] == [repr(value) for value in expected]
