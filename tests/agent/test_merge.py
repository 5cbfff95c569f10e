"""One row per GPU from several sources."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from unidle_agent.sample import GpuReading, Memory, Reading, merge
from unidle_agent.wire import GpuFacts, Owner


def seen(facts: GpuFacts, **values: float) -> Reading:
    return Reading((GpuReading(facts, dict(values)),))


def test_the_same_gpu_from_two_sources_is_one_row_and_the_lower_precedence_wins_per_field() -> None:
    nvml = seen(GpuFacts("GPU-a", 0, "B200", driver="570"), power_w=100.0)
    dcgm = seen(GpuFacts("GPU-a", model="NVIDIA-B200", pci_bus_id="0:1"), power_w=99.0, sm_active_ratio=0.5)
    tick = merge(7, [("dcgm-exporter", 20, dcgm), ("nvml", 10, nvml)])
    (row,) = tick.gpus
    assert row.values == {"power_w": 100.0, "sm_active_ratio": 0.5}
    assert row.facts.sources == {"power_w": "nvml", "sm_active_ratio": "dcgm-exporter"}
    assert (row.facts.index, row.facts.model, row.facts.driver) == (0, "B200", "570")
    assert row.facts.pci_bus_id == "0:1"


def test_a_source_may_name_the_source_of_a_field_more_finely() -> None:
    reading = seen(GpuFacts("GPU-a", sources={"sm_active_ratio": "gpm"}), power_w=1.0, sm_active_ratio=0.5)
    (row,) = merge(0, [("nvml", 10, reading)]).gpus
    assert row.facts.sources == {"power_w": "nvml", "sm_active_ratio": "gpm"}


def test_facts_that_did_not_change_are_the_same_object_at_the_next_tick() -> None:
    memory = Memory()
    nvml, dcgm = GpuFacts("GPU-a", 0, "B200"), GpuFacts("GPU-a", pci_bus_id="0:1")

    def facts_of(given: GpuFacts, **values: float) -> GpuFacts:
        readings = [("nvml", 10, seen(given, **values)), ("dcgm-exporter", 20, seen(dcgm, last_xid=0))]
        return merge(0, readings, memory).gpus[0].facts

    whole = facts_of(nvml, power_w=1.0, temperature_c=50.0)
    assert facts_of(nvml, power_w=2.0) is whole, "a field that is left out once has the same source"
    assert facts_of(replace(nvml), power_w=2.0) is whole, "an equal copy says nothing new"
    more = facts_of(nvml, power_w=2.0, sm_active_ratio=0.5)
    assert more.sources == {**whole.sources, "sm_active_ratio": "nvml"}
    moved = facts_of(replace(nvml, index=3), power_w=2.0)
    assert (moved.index, moved.sources) == (3, {"power_w": "nvml", "last_xid": "dcgm-exporter"})
    assert merge(0, [("nvml", 10, seen(nvml, power_w=1.0))]).gpus[0].facts.sources == {"power_w": "nvml"}


def test_the_owner_with_a_job_wins_whoever_says_it() -> None:
    inferred = GpuFacts("GPU-a", owner=Owner(True, source="processes", confidence="inferred"))
    labelled = GpuFacts("GPU-a", owner=Owner(True, job="42", source="dcgm-labels"))
    (row,) = merge(0, [("nvml", 10, seen(inferred)), ("dcgm-exporter", 20, seen(labelled))]).gpus
    assert row.facts.owner.job == "42"
    (row,) = merge(0, [("nvml", 10, seen(inferred)), ("dcgm-exporter", 20, seen(GpuFacts("GPU-a")))]).gpus
    assert row.facts.owner.allocated is True


def test_rows_are_in_order_of_index_and_those_without_come_last() -> None:
    readings = [GpuReading(GpuFacts(uuid, index), {}) for uuid, index in [("z", 1), ("y", None), ("x", 0)]]
    tick = merge(0, [("nvml", 10, Reading(tuple(readings)))])
    assert [gpu.facts.uuid for gpu in tick.gpus] == ["x", "z", "y"]


def test_problems_name_their_source() -> None:
    assert merge(0, [("host", 50, Reading(problems=("no PSI",)))]).problems == ("host: no PSI",)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["nvml", "dcgm-exporter", "host"]),
            st.integers(0, 9),
            st.dictionaries(
                st.sampled_from("abc"),
                st.dictionaries(st.sampled_from(["power_w", "last_xid"]), st.just(0.0)),
            ),
        ),
        max_size=5,
    )
)
def test_no_gpu_is_lost_or_doubled_and_a_zero_stays(
    answers: list[tuple[str, int, dict[str, dict[str, float]]]],
) -> None:
    readings = [
        (name, rank, Reading(tuple(GpuReading(GpuFacts(u), dict(v)) for u, v in gpus.items())))
        for name, rank, gpus in answers
    ]
    rows = {gpu.facts.uuid: gpu for gpu in merge(0, readings).gpus}
    assert len(rows) == len(merge(0, readings).gpus)
    expected: dict[str, set[str]] = {}
    for _, _, gpus in answers:
        for uuid, values in gpus.items():
            expected.setdefault(uuid, set()).update(values)
    assert {uuid: set(row.values) for uuid, row in rows.items()} == expected
    assert all(value == 0.0 for row in rows.values() for value in row.values.values())
