"""The simulated fleet: one seed one fleet, physical states, and signatures as measured."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from unidle_agent.errors import UnidleError
from unidle_agent.fields import BY_NAME, GPU_FIELDS, HOST_FIELDS, UNKNOWN_U8
from unidle_collector.simulator.faults import HISTORY, LIVE, NODES_WITH_FAULTS, ONE_GPU, Fault
from unidle_collector.simulator.fleet import (
    FEWEST_GPUS_PER_NODE,
    FEWEST_NODES,
    GPM_FIELDS,
    SECOND_NS,
    Block,
    Fleet,
)
from unidle_collector.simulator.hardware import hardware, levels
from unidle_collector.simulator.jobs import MEMORY_RATIO, sawtooth
from unidle_collector.up.score import KINDS

ACME = Path(__file__).parents[3] / "shared" / "data" / "acme-philly-cdfs" / "cdfs.parquet"
HISTORY_S = 5400
LIVE_S = 60
NODES, ON_A_NODE = FEWEST_NODES, FEWEST_GPUS_PER_NODE
Columns = dict[str, NDArray[np.float64]]


@cache
def story() -> tuple[Fleet, Columns, Columns, Block]:
    """A whole history and one live minute: the fleet, GPU columns [T, G] and host columns [T, N] with
    unknowns as NaN, and the raw blocks put together."""
    fleet = Fleet(7, NODES, ON_A_NODE, start_ns=1_700_000_000 * SECOND_NS, history_s=HISTORY_S)
    blocks = [fleet.step(60) for _ in range(HISTORY_S // 60)]
    fleet.go_live()
    blocks.append(fleet.step(LIVE_S))
    gpu = {name: np.concatenate([block.gpu[name] for block in blocks]) for name in blocks[0].gpu}
    host = {name: np.concatenate([block.host[name] for block in blocks]) for name in blocks[0].host}
    times_ns = np.concatenate([block.times_ns for block in blocks])
    job = np.concatenate([_global(block) for block in blocks])
    ahead_ns = np.concatenate([block.ahead_ns for block in blocks])
    pushes = np.concatenate([block.pushes for block in blocks])
    raw = Block(times_ns, gpu, host, job, (), ahead_ns, pushes)
    return fleet, {n: _known(n, v) for n, v in gpu.items()}, {n: _known(n, v) for n, v in host.items()}, raw


def _global(block: Block) -> NDArray[np.int32]:
    """[n, G] a number that is the same for a job in every block."""
    numbers = np.array([hash(job.name) & 0x7FFFFFFF for job in block.jobs] + [-1], dtype=np.int32)
    return numbers[block.job]


def _known(name: str, values: NDArray[np.generic]) -> NDArray[np.float64]:
    out = values.astype(np.float64)
    if BY_NAME[name].dtype == "u8":
        out[values == UNKNOWN_U8] = np.nan
    return out


def fault(kind: str, cause: str = "", live: bool = False) -> Fault:
    """The first injected fault of that kind and cause, in history or in the live part."""
    fleet = story()[0]
    return next(
        each
        for each in fleet.faults
        if each.kind == kind and cause in ("", each.cause) and (each.start_s >= HISTORY_S) == live
    )


def during(each: Fault, after_s: int = 0) -> tuple[slice, NDArray[np.int64]]:
    """Rows and GPUs of a fault, `after_s` after it began."""
    end = HISTORY_S + LIVE_S if each.end_s is None else min(each.end_s, HISTORY_S + LIVE_S)
    return slice(each.start_s + after_s, end), each.gpus


def mean(field: str, each: Fault, after_s: int = 0) -> float:
    rows, gpus = during(each, after_s)
    return float(np.nanmean(story()[1][field][rows, gpus]))


def host_mean(field: str, each: Fault) -> float:
    return float(np.mean(story()[2][field][during(each)[0], each.node]))


def healthy_gpus() -> slice:
    """The GPUs of nodes without faults."""
    return slice(NODES_WITH_FAULTS * ON_A_NODE, None)


def test_one_seed_is_one_fleet_however_time_is_cut() -> None:
    whole, cut = Fleet(3, NODES, ON_A_NODE), Fleet(3, NODES, ON_A_NODE)
    at_once = whole.step(120)
    parts = [cut.step(seconds) for seconds in (1, 59, 7, 53)]
    for name, values in at_once.gpu.items():
        np.testing.assert_array_equal(values, np.concatenate([p.gpu[name] for p in parts]), err_msg=name)
    for name, values in at_once.host.items():
        np.testing.assert_array_equal(values, np.concatenate([p.host[name] for p in parts]), err_msg=name)


def test_another_seed_is_another_fleet() -> None:
    one, other = Fleet(3, NODES).step(5), Fleet(4, NODES).step(5)
    assert not np.array_equal(one.gpu["power_w"], other.gpu["power_w"])


NOT_SIMULATED = {
    "cpus_online",
    "tasks_running",
    "tasks_blocked",
    "major_faults",
    "page_cache_refaults",
    "allocation_stalls",
    "nfs_read_bytes",
    "nfs_written_bytes",
    "nfs_retransmits",
}
"""Host fields that the simulated fleet has not: to its readers they are unknown."""


def test_every_field_that_nvml_and_the_host_give_is_there_in_its_dtype() -> None:
    block = Fleet(3, NODES, ON_A_NODE).step(2)
    assert set(block.gpu) == {field.name for field in GPU_FIELDS if field.nvml} | {"dtype_code"}
    assert set(block.host) == {field.name for field in HOST_FIELDS} - NOT_SIMULATED
    for name, values in {**block.gpu, **block.host}.items():
        assert values.dtype == np.dtype(BY_NAME[name].dtype), name
        assert values.shape == (2, NODES * ON_A_NODE if name in block.gpu else NODES), name


def test_a_fleet_too_small_for_its_faults_is_refused() -> None:
    with pytest.raises(UnidleError, match=f"at least {FEWEST_NODES} nodes"):
        Fleet(1, nodes=4)


def test_counters_never_go_back() -> None:
    _, _, _, raw = story()
    counters = {n: v for n, v in {**raw.gpu, **raw.host}.items() if BY_NAME[n].kind == "counter"}
    assert len(counters) > 15
    for name, values in counters.items():
        for column in values.T:
            known = column[column != UNKNOWN_U8]
            assert (known[1:] >= known[:-1]).all(), name


def test_energy_is_the_integral_of_power() -> None:
    _, gpu, _, _ = story()
    energy = gpu["energy_j"]
    known = ~np.isnan(energy[0]) & ~np.isnan(energy[-1])
    joules = (energy[-1] - energy[0])[known] * 1e-3
    np.testing.assert_allclose(
        joules, np.nanmean(gpu["power_w"][1:], axis=0)[known] * (len(energy) - 1), rtol=2e-3
    )


def test_states_stay_physical() -> None:
    hw, gpu = hardware(), story()[1]
    assert np.nanmax(gpu["sm_clock_hz"]) <= hw.sm_clock_max_hz
    assert np.nanmin(gpu["sm_clock_hz"]) >= hw.sm_clock_empty_hz
    assert np.nanmax(gpu["power_w"]) <= 1.02 * hw.power_limit_w
    assert np.nanmin(gpu["power_w"]) > 100
    assert np.nanmax(gpu["temperature_c"]) <= hw.temperature_limit_c - hw.shutdown_margin_c
    assert np.nanmin(gpu["temperature_c"]) >= hw.inlet_c - 5
    for field in BY_NAME.values():
        if field.name.endswith("_ratio") and field.name in gpu:
            assert 0 <= np.nanmin(gpu[field.name]) <= np.nanmax(gpu[field.name]) <= 1, field.name
    known = ~np.isnan(gpu["memory_used_bytes"])
    parts = gpu["memory_used_bytes"] + gpu["memory_free_bytes"] + gpu["memory_reserved_bytes"]
    np.testing.assert_array_equal(parts[known], gpu["memory_total_bytes"][known])


def test_a_missing_sample_is_unknown_in_every_field_and_a_missing_profile_only_there() -> None:
    _, gpu, _, raw = story()
    lost = fault("gpu_lost", live=True).gpus
    gpu = {name: np.delete(values, lost, axis=1) for name, values in gpu.items()}
    no_row = np.isnan(gpu["power_w"])
    assert 0 < no_row.mean() < 1e-3
    for name, values in gpu.items():
        assert np.isnan(values[no_row]).all(), name
    no_profile = np.isnan(gpu["sm_active_ratio"]) & ~no_row
    assert no_profile.sum() > no_row.sum()
    assert all(np.isnan(gpu[name][no_profile]).all() for name in GPM_FIELDS)
    assert not np.isnan(gpu["gpu_util_ratio"][no_profile]).any()
    assert (np.delete(raw.gpu["energy_j"], lost, axis=1)[no_row] == UNKNOWN_U8).all()


def test_every_kind_that_is_judged_begins_in_history_and_what_is_told_at_once_live() -> None:
    at_once = {"throttling_thermal", "throttling_power", "gpu_lost", "stale_agent"}
    kinds = set(KINDS) - {"gpu_lost", "stale_agent"}
    assert {each.kind for each in HISTORY} == kinds
    assert {each.kind for each in LIVE} == at_once
    begun = [each for each in story()[0].faults if each.start_s < HISTORY_S + 10]
    assert {each.kind for each in begun if each.start_s < HISTORY_S} == kinds
    assert all(0 <= each.start_s - HISTORY_S <= 10 for each in begun if each.start_s >= HISTORY_S)


def test_no_two_faults_share_a_node() -> None:
    taken = [node for each in (*HISTORY, *LIVE) for node in range(each.node, each.node + each.nodes)]
    assert sorted(taken) == list(range(NODES_WITH_FAULTS))


def test_a_fault_of_the_history_ends_in_history_and_one_ends_live() -> None:
    thermal, brake = fault("throttling_thermal"), fault("throttling_power")
    assert thermal.end_s is not None
    assert thermal.end_s < HISTORY_S
    assert brake.end_s == HISTORY_S + 15
    reasons = story()[1]["clock_event_reasons"][:, brake.gpus]
    assert (np.nan_to_num(reasons[brake.end_s - 1]).astype(int) & 0x80).any()
    assert not (np.nan_to_num(reasons[brake.end_s :]).astype(int) & 0x80).any()


@pytest.mark.parametrize("cause", ["held", "no_process"])
def test_an_idle_gpu_does_nothing_and_draws_its_floor(cause: str) -> None:
    each = fault("idle", cause)
    for field in ("gpu_util_ratio", "sm_active_ratio", "tensor_active_ratio", "dram_active_ratio"):
        assert mean(field, each) == 0.0
    rows, gpus = during(each, 60)
    power = story()[1]["power_w"][rows, gpus]
    assert np.nanmax(np.nanstd(power, axis=0)) < 1.0
    assert (story()[3].job[rows, gpus] >= 0).all()
    held = cause == "held"
    assert (0.12 if not held else 0.18) < np.nanmean(power) / hardware().power_limit_w < 0.21
    assert mean("process_count", each) == (1.0 if held else 0.0)
    assert (mean("memory_used_bytes", each) > 100e9) == held
    assert each.start_s <= HISTORY_S - 2700


def test_a_fatal_xid_ends_its_job_and_nobody_gets_the_node() -> None:
    each = fault("xid")
    _, gpu, _, raw = story()
    (position,) = each.gpus
    known = ~np.isnan(gpu["last_xid"][:, position])
    after = np.arange(len(known)) >= each.start_s
    assert (gpu["last_xid"][known & after, position] == 119).all()
    assert (gpu["recovery_action"][known & ~after, position] == 0).all()
    assert (raw.job[each.start_s - 1 : each.start_s + 10, position] >= 0).all()
    assert (raw.job[each.start_s + 30 :, each.node * ON_A_NODE : (each.node + 1) * ON_A_NODE] < 0).all()


def test_a_lost_gpu_says_that_it_is_lost_and_nothing_else() -> None:
    each = fault("gpu_lost", live=True)
    rows, gpus = during(each)
    gpu = story()[1]
    states = gpu["gpu_state"][rows, gpus]
    assert set(states[~np.isnan(states)]) == {1.0}
    assert all(np.isnan(values[rows, gpus]).all() for name, values in gpu.items() if name != "gpu_state")


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [("ecc", "row_remap_pending", 1), ("nvlink", "nvlink_links_up", 12), ("pcie", "pcie_width", 8)],
)
def test_a_broken_part_shows_on_one_gpu_whose_job_goes_on(kind: str, field: str, value: float) -> None:
    each = fault(kind)
    rows, gpus = during(each)
    assert len(gpus) == 1
    assert mean(field, each) == value
    assert (story()[3].job[rows, gpus] >= 0).all()
    siblings = np.setdiff1d(np.arange(each.node * ON_A_NODE, (each.node + 1) * ON_A_NODE), gpus)
    assert np.nanmean(story()[1][field][rows, siblings]) != value


def test_energy_of_an_idle_gpu_is_its_floor_and_not_zero() -> None:
    each = fault("idle", "held")
    rows, gpus = during(each, 60)
    energy = story()[1]["energy_j"][rows, gpus]
    watts = (energy[-1] - energy[0]) * 1e-3 / (len(energy) - 1)
    assert ((watts > hardware().idle_low_w - 1) & (watts < hardware().idle_high_w + 1)).all()


@pytest.mark.parametrize("cause", ["storage", "cpu_preprocessing"])
def test_a_starved_job_is_a_sawtooth(cause: str) -> None:
    each = fault("starvation", cause)
    rows, gpus = during(each)
    zero = np.nanmean(story()[1]["gpu_util_ratio"][rows, gpus] < 0.01)
    assert 0.60 <= zero <= 0.80
    assert 0.08 <= mean("sm_active_ratio", each) <= 0.2
    sm = story()[1]["sm_active_ratio"][rows, gpus]
    assert np.nanpercentile(sm, 95) > 0.5
    assert np.nanpercentile(sm, 5) == 0.0
    assert 0.15 < mean("power_w", each) / hardware().power_limit_w < 0.45
    assert mean("pcie_rx_bytes_per_s", each) < 2e8


def apart(field: str, each: Fault, odd: slice) -> tuple[float, float]:
    """Mean over the odd ones of a fault's GPUs, and over the others."""
    rows, gpus = during(each, 5)
    values = story()[1][field][rows, gpus[0] : gpus[-1] + 1]
    return float(np.nanmean(values[:, odd])), float(np.nanmean(np.delete(values, odd, axis=1)))


def test_the_others_spin_until_the_straggler_comes() -> None:
    each = fault("straggler")
    one = len(each.gpus) // 4 + ONE_GPU
    assert len(each.gpus) == 8 * ON_A_NODE
    works, waits = apart("tensor_active_ratio", each, slice(one, one + 1))
    assert waits / works == pytest.approx(0.6, abs=0.02)
    assert min(apart("gpu_util_ratio", each, slice(one, one + 1))) > 0.97
    works, waits = apart("sm_active_ratio", each, slice(one, one + 1))
    assert waits / works > 0.75
    before = story()[1]["tensor_active_ratio"][each.start_s - 300 : each.start_s, each.gpus]
    assert np.nanmean(before, axis=0).min() > 0.95 * np.nanmean(before, axis=0).max()


def test_one_stage_of_four_is_heavier_from_the_first_step_on() -> None:
    each = fault("pipeline_imbalance")
    stages = np.nanmean(story()[1]["tensor_active_ratio"][during(each)[0], each.gpus], axis=0)
    by_stage = stages.reshape(4, -1).mean(axis=1)
    assert by_stage[:3] / by_stage[3] == pytest.approx(0.6, abs=0.02)
    start_up = story()[1]["tensor_active_ratio"][each.start_s - 100 : each.start_s, each.gpus]
    assert np.nanmax(start_up) == 0.0


def per_s(field: str, each: Fault, node: int = 0) -> float:
    """Mean increase of a host counter while a fault lasts, on its n-th node."""
    counter = story()[3].host[field][during(each, 5)[0], each.node + node].astype(np.float64)
    return float((counter[-1] - counter[0]) / (len(counter) - 1))


def test_jobs_on_several_nodes_talk_over_infiniband_but_for_the_one_that_fell_back_to_tcp() -> None:
    tcp, talks, alone = fault("tcp_fallback"), fault("starvation", "communication"), fault("ecc")
    for node in range(2):
        assert per_s("ib_sent_bytes", tcp, node) == per_s("ib_received_bytes", tcp, node) == 0.0
        assert min(per_s("net_sent_bytes", tcp, node), per_s("net_received_bytes", tcp, node)) > 1e9
        assert per_s("ib_sent_bytes", talks, node) > 1e9
        assert per_s("net_sent_bytes", talks, node) < 1e8
    assert per_s("ib_sent_bytes", alone) == 0.0
    ports = story()[3].host["ib_ports_active"][:, tcp.node]
    assert (ports == ON_A_NODE).all()


def test_a_port_goes_down_on_one_node_and_another_collects_link_errors() -> None:
    down, errors = fault("infiniband", "port_down"), fault("infiniband", "errors")
    host = story()[3].host
    assert (host["ib_ports_active"][during(down)[0], down.node] == ON_A_NODE - 1).all()
    assert (host["ib_ports_inactive"][during(down)[0], down.node] == 1).all()
    assert (host["ib_ports_inactive"][: down.start_s] == 0).all()
    assert per_s("ib_link_errors", errors) == pytest.approx(4.0, abs=0.2)
    assert per_s("ib_link_errors", down) == 0.0


def test_half_of_the_gpus_are_asked_for_and_never_used() -> None:
    each = fault("over_provisioned", "fewer_gpus")
    half = slice(len(each.gpus) // 2, None)
    rows = slice(each.start_s - 120, HISTORY_S)
    for field in ("gpu_util_ratio", "sm_active_ratio", "process_count", "memory_used_bytes"):
        assert np.nanmax(story()[1][field][rows, each.gpus[half]]) == 0.0, field
    assert apart("sm_active_ratio", each, half)[1] > 0.8


def test_a_small_service_has_a_gpu_to_itself() -> None:
    each = fault("over_provisioned", "large_gpu")
    assert len(each.gpus) == 1
    assert mean("gpu_util_ratio", each) == pytest.approx(0.18, abs=0.01)
    assert mean("memory_used_bytes", each, 200) < 0.12 * hardware().memory_total_bytes
    others = story()[3].job[during(each)[0], each.node * ON_A_NODE : (each.node + 1) * ON_A_NODE]
    assert len(np.unique(others[-1])) == ON_A_NODE


def test_offloading_moves_data_and_small_kernels_leave_the_gpu_empty() -> None:
    offload, small = fault("starvation", "host_to_device"), fault("starvation", "small_kernels")
    moved = mean("pcie_rx_bytes_per_s", offload) + mean("pcie_tx_bytes_per_s", offload)
    assert moved > 1e9
    assert mean("sm_active_ratio", offload) == pytest.approx(0.09, abs=0.02)
    assert mean("gpu_util_ratio", small) == pytest.approx(0.688, abs=0.01)
    assert mean("sm_active_ratio", small) == pytest.approx(0.238, abs=0.01)


def test_a_checkpoint_stops_the_whole_job_for_a_minute_each_eight() -> None:
    each = fault("checkpoint_stall")
    still = np.nanmax(story()[1]["sm_active_ratio"][during(each)[0], each.gpus], axis=1) < 0.01
    assert still.mean() == pytest.approx(60 / 480, abs=0.01)
    assert still[each.evident_s - each.start_s - 1]
    assert not still[each.evident_s - each.start_s]
    written = np.diff(story()[3].host["disk_written_bytes"][during(each)[0], each.node].astype(np.float64))
    assert written[still[1:]].min() > 20 * written[~still[1:]].max()


def test_the_reporter_in_a_job_names_its_number_format() -> None:
    each = fault("tensor_cores_unused")
    codes = story()[1]["dtype_code"]
    assert mean("dtype_code", each) == 1.0
    assert mean("tensor_active_ratio", each) < 0.01
    assert mean("fp32_active_ratio", each) > 0.6
    known = set(np.unique(codes[~np.isnan(codes)]))
    assert known == {1.0, 4.0}
    assert np.isnan(codes).any()


def test_silent_counters_say_zero_and_their_sums_stand_still_while_the_gpu_works() -> None:
    each = fault("silent_zeros")
    rows, gpus = during(each)
    assert mean("gpu_util_ratio", each) > 0.95
    assert mean("power_w", each) > 0.6 * hardware().power_limit_w
    assert np.nanmax(story()[1]["sm_active_ratio"][rows, gpus]) == 0.0
    total = story()[1]["sm_active_s"][rows, gpus]
    assert np.nanmax(total) == np.nanmin(total)


def test_an_open_session_says_that_a_person_sits_at_it() -> None:
    block = Fleet(3, NODES, ON_A_NODE).step(1)
    sessions = [job for job in block.jobs if job.interactive]
    assert [(job.name, len(job.gpus)) for job in sessions] == [("sim-015-00", 1)]
    assert mean("gpu_util_ratio", fault("idle", "interactive")) == 0.0


def test_a_clock_jumps_ahead_and_an_agent_falls_silent_for_a_while() -> None:
    skew, stale = fault("clock_skew"), fault("stale_agent", live=True)
    raw = story()[3]
    assert set(np.unique(raw.ahead_ns[during(skew)[0], skew.node])) == {8 * SECOND_NS}
    assert np.count_nonzero(raw.ahead_ns) == HISTORY_S + LIVE_S - skew.start_s
    assert not raw.pushes[during(stale)[0], stale.node].any()
    assert raw.pushes[: stale.start_s].all()


def test_storage_starves_with_waiting_cpus_and_preprocessing_with_busy_ones() -> None:
    storage, cpu = fault("starvation", "storage"), fault("starvation", "cpu_preprocessing")
    assert host_mean("cpu_iowait_ratio", storage) > 0.25
    assert host_mean("cpu_busy_ratio", storage) < 0.15
    assert host_mean("cpu_iowait_ratio", cpu) < 0.01
    assert host_mean("cpu_busy_ratio", cpu) > 0.9
    rows = during(storage)[0]
    stalled = story()[2]["psi_io_some_s"][rows, storage.node]
    assert 0.6e6 < (stalled[-1] - stalled[0]) / (len(stalled) - 1) < 0.9e6


def test_heat_slows_a_gpu_and_says_so() -> None:
    for each in (fault("throttling_thermal"), fault("throttling_thermal", live=True)):
        rows, gpus = during(each, 12)
        gpu = story()[1]
        clock = np.nanmedian(gpu["sm_clock_hz"][rows, gpus]) / hardware().sm_clock_max_hz
        assert 0.65 <= clock <= 0.75
        assert np.nanmax(gpu["thermal_margin_c"][rows, gpus]) < -3
        reasons = gpu["clock_event_reasons"][rows, gpus]
        assert (reasons[~np.isnan(reasons)].astype(int) & 0x60 == 0x60).all()
        for counter in ("thermal_throttle_s", "hw_thermal_throttle_s"):
            grown = gpu[counter][rows.stop - 1, gpus] - gpu[counter][rows.start, gpus]
            assert (grown == (rows.stop - 1 - rows.start) * 1e9).all()
    assert len(fault("throttling_thermal", live=True).gpus) == 1


def test_a_power_brake_halves_the_clock_far_below_the_limit() -> None:
    each = fault("throttling_power")
    assert 0.45 <= mean("sm_clock_hz", each) / hardware().sm_clock_max_hz <= 0.55
    assert mean("power_w", each) < 0.5 * hardware().power_limit_w
    rows, gpus = during(each)
    reasons = story()[1]["clock_event_reasons"][rows, gpus]
    assert (reasons[~np.isnan(reasons)].astype(int) & 0x88 == 0x88).all()
    braked = story()[1]["power_brake_s"]
    assert (
        braked[rows.stop - 1, gpus] - braked[rows.start, gpus] == (rows.stop - 1 - rows.start) * 1e9
    ).all()


def test_a_leak_rises_without_flattening_until_the_job_dies() -> None:
    first, second = (each for each in story()[0].faults if each.kind == "oom_risk")
    used = story()[1]["memory_used_bytes"] / hardware().memory_total_bytes
    rows, gpus = during(first)
    ratio = np.nanmean(used[rows, gpus], axis=1)
    assert ratio[0] == pytest.approx(0.60, abs=0.02)
    assert ratio[-2] > 0.96
    assert (np.diff(ratio[~np.isnan(ratio)]) >= 0).all()
    for part in np.array_split(ratio, 6):
        assert part[-1] - part[0] > 0.02
    assert ratio[first.evident_s - first.start_s] >= 0.9
    assert first.evident_s - first.start_s > 600
    assert first.end_s is not None
    assert np.nanmean(used[first.end_s + 2, gpus]) < 0.01
    assert second.end_s is not None
    assert second.evident_s < HISTORY_S < second.end_s
    assert 0.7 < mean("sm_active_ratio", second) < 0.8


def test_healthy_work_looks_as_it_was_measured() -> None:
    """8xH100 compute bound: SM 87.7, tensor 58.3, DRAM 36.9 %, 689 of 700 W, bit 0x4 all the time."""
    gpu, raw = story()[1], story()[3]
    compute = (gpu["tensor_active_ratio"] > 0.48) & (raw.job >= 0)
    assert compute[:, healthy_gpus()].any()
    assert np.nanmean(gpu["sm_active_ratio"][compute]) == pytest.approx(0.877, abs=0.01)
    assert np.nanmean(gpu["tensor_active_ratio"][compute]) == pytest.approx(0.583, abs=0.01)
    assert np.nanmean(gpu["dram_active_ratio"][compute]) == pytest.approx(0.369, abs=0.01)
    power = gpu["power_w"][compute] / hardware().power_limit_w
    assert np.nanmean(power) == pytest.approx(0.985, abs=0.005)
    reasons = gpu["clock_event_reasons"][compute]
    assert (reasons[~np.isnan(reasons)] == 0x4).all()


def test_no_healthy_job_gives_reason_for_a_finding() -> None:
    """Between start-up and end: SM at least 0.6, checkpoints of at most 20 s, flat memory, full clocks."""
    _, gpu, _, raw = story()
    for position in range(NODES_WITH_FAULTS * ON_A_NODE, raw.job.shape[1]):
        column = raw.job[:, position]
        for name in np.unique(column[column >= 0]):
            rows = np.flatnonzero(column == name)
            begun = rows[0] > 0
            rows = rows[300 if begun else 0 : -20]
            if len(rows) < 300:
                continue
            sm = gpu["sm_active_ratio"][rows, position]
            assert np.nanmean(sm) > 0.6
            stops = np.diff(np.flatnonzero(np.concatenate([[1], np.nan_to_num(sm, nan=1.0) > 0.1, [1]])))
            assert stops.max() <= 21
            used = gpu["memory_used_bytes"][rows[120:], position]
            assert np.nanmax(used) == np.nanmin(used)
            reasons = gpu["clock_event_reasons"][rows, position]
            assert not (reasons[~np.isnan(reasons)].astype(int) & 0xE8).any()


def test_jobs_come_in_all_sizes_and_gpus_are_given_back_between_them() -> None:
    block = Fleet(1).step(1)
    sizes = {len(job.gpus) for job in block.jobs}
    assert sizes == {1, 8, 16, 64}
    allocated = (story()[3].job >= 0).mean()
    assert 0.85 < allocated < 0.999
    assert max(MEMORY_RATIO.values()) == 0.95


def test_the_sawtooth_runs_for_the_share_of_its_bursts() -> None:
    busy_s, idle_s = levels().sawtooth_s[levels().index["starved_storage"]]
    pattern = sawtooth(busy_s, idle_s, seed=5, seconds=20_000)
    assert ((pattern >= 0) & (pattern <= 1)).all()
    expected = np.mean(busy_s) / (np.mean(busy_s) + np.mean(idle_s))
    assert pattern.mean() == pytest.approx(expected, rel=0.05)


@pytest.mark.skipif(not ACME.is_file(), reason=f"needs the public Acme distributions at {ACME}")
def test_utilization_is_bimodal_as_on_real_clusters() -> None:
    """Real fleets: a GPU does nothing or its driver says that it is busy; hardly anything between."""
    import pyarrow.parquet as pq

    table = pq.read_table(ACME).to_pydict()

    def real(metric: str) -> NDArray[np.float64]:
        rows = zip(table["metric"], table["value"], strict=True)
        return np.array([value for name, value in rows if name == metric]) / 100.0

    util = story()[1]["gpu_util_ratio"][:, healthy_gpus()]
    sm = story()[1]["sm_active_ratio"][:, healthy_gpus()]
    ours = np.nanmean((util > 0.1) & (util < 0.4))
    for cluster in ("seren", "kalos"):
        theirs = real(f"{cluster}.gpu_util_pct")
        assert ours < ((theirs > 0.1) & (theirs < 0.4)).mean() + 0.02
        assert np.nanmean(util[util >= 0.1]) == pytest.approx(theirs[theirs >= 0.1].mean(), abs=0.06)
        busy = real(f"{cluster}.sm_active_pct")
        assert np.nanmean(sm[sm >= 0.01]) > busy[busy >= 0.01].mean()  # healthy jobs only
