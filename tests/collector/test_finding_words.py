"""What findings of idle and throttled GPUs tell a person to do, with which evidence, and how sure."""

from __future__ import annotations

import numpy as np
from tests.collector.fleets import EMPTY, HEALTHY, HELD, Column, recording

from unidle_collector.findings import _in_order
from unidle_collector.model import Finding, GpuRef
from unidle_collector.replay import replay


def first(inside: float, outside: float) -> Column:
    """GPU 0 beside its siblings, from the third minute on."""

    def build(instants: int, gpus: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        column = np.full((instants, gpus), outside)
        column[180:, 0] = inside
        return column

    return build


def only(columns: dict[str, Column], minutes: float = 6, job: str | None = None) -> Finding:
    (finding,) = replay(recording(columns, minutes=minutes, job=job)).findings
    return finding


def evidence(finding: Finding, field: str) -> str:
    return next(piece.text for piece in finding.evidence if piece.field == field)


def test_a_capped_gpu_is_to_get_the_limit_of_its_siblings() -> None:
    capped = HEALTHY | {"sm_clock_hz": first(1.3e9, 1.75e9), "power_limit_w": first(450.0, 700.0)}
    finding = only(capped)
    assert (finding.cause, finding.confidence) == ("power_cap", 0.95)
    assert finding.advice == "On node-1: nvidia-smi -i 0 -pl 700 (its siblings' limit; now 450 W)."
    assert finding.runners_up == ()
    assert "drawn, limit 450 W" in evidence(finding, "power_w")


def test_a_cap_that_no_limit_explains_points_to_the_heat() -> None:
    finding = only(HEALTHY | {"sm_clock_hz": first(1.3e9, 1.75e9)})
    assert finding.confidence == 0.8
    assert [(other.cause, other.probability) for other in finding.runners_up] == [("undetermined", 0.2)]
    assert "look at its temperature" in finding.advice
    assert " -pl " not in finding.advice


def test_the_drivers_reasons_are_told_in_words_and_the_node_to_drain_is_named() -> None:
    hot = {"clock_event_reasons": first(0x24, 0x4), "sm_clock_hz": first(1.2e9, 1.75e9)}
    finding = only(HEALTHY | hot | {"temperature_c": first(88.0, 62.0)})
    assert finding.confidence == 0.95
    assert finding.runners_up == ()
    assert evidence(finding, "clock_event_reasons").endswith(
        "software power cap, software thermal slowdown (0x24)"
    )
    assert "instead of 17" in evidence(finding, "sm_clock_hz")
    assert evidence(finding, "temperature_c") == "88 °C core, limit 87 °C"
    assert finding.advice.startswith("scontrol update NodeName=node-1 State=DRAIN")
    assert finding.confirm == "nvidia-smi -q -d TEMPERATURE,PERFORMANCE -i 0 on node-1"


def test_heat_that_no_reason_confirms_is_less_sure() -> None:
    silent = {name: column for name, column in HEALTHY.items() if name != "clock_event_reasons"}
    finding = only(silent | {"temperature_c": first(88.0, 62.0), "sm_clock_hz": first(1.2e9, 1.75e9)})
    assert finding.confidence == 0.8
    assert [other.cause for other in finding.runners_up] == ["hardware_thermal"]


def test_a_gpu_that_only_its_empty_memory_calls_free_of_processes_may_be_held_all_the_same() -> None:
    guessed = only(EMPTY, minutes=12, job="4711")
    assert (guessed.cause, guessed.confidence) == ("no_process", 0.8)
    assert [other.cause for other in guessed.runners_up] == ["held"]
    counted = only(EMPTY | {"process_count": 0.0}, minutes=12, job="4711")
    assert (counted.confidence, counted.runners_up) == (0.95, ())
    assert evidence(counted, "process_count") == "no process on them"
    assert "--gpus=N" in counted.advice


def test_one_gpu_is_it_and_several_are_them() -> None:
    several, one = HELD | {"process_count": 1.0}, HEALTHY | {"process_count": 1.0}
    alone = one | {name: first(0.0, 1.0) for name in ("gpu_util_ratio", "sm_active_ratio")}
    assert only(several, minutes=4).title.endswith("a process holds them")
    assert only(alone, minutes=8).title.endswith("a process holds it")


def test_gpus_of_a_finding_are_in_the_order_of_nodes_and_numbers() -> None:
    refs = [GpuRef(node, f"GPU-{node}-{index}", index) for node in ("n10", "n2") for index in (10, 2)]
    assert [(ref.node, ref.index) for ref in _in_order(refs)] == [
        ("n2", 2),
        ("n2", 10),
        ("n10", 2),
        ("n10", 10),
    ]


def test_a_held_gpu_is_told_by_what_holds_it() -> None:
    finding = only(HELD | {"process_count": 1.0}, minutes=4)
    assert evidence(finding, "process_count") == "1 process on each"
    assert "minReplicas: 0" in finding.advice
    assert finding.confirm.endswith("-i 0,1,2,3,4,5,6,7 on node-1")
