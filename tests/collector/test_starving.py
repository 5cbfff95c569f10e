"""Why a GPU starves: which signs decide, what an unknown sign does, and how sure it is said."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.collector.fleets import BASE, H100, Column, between, noisy, recording

from unidle_collector.model import Finding
from unidle_collector.pergpu import Floats
from unidle_collector.replay import replay
from unidle_collector.signs import starving
from unidle_collector.signs.starving import ORDER, UNDETERMINED, Signs, Thresholds
from unidle_collector.signs.starving_words import cannot_tell

AT = Thresholds()
UNKNOWN = {each.name: np.array([np.nan]) for each in dataclasses.fields(Signs)}

WAITS: dict[str, Column] = BASE | {
    "gpu_util_ratio": noisy(0.16, 0.02),
    "sm_active_ratio": noisy(0.1, 0.01),
    "tensor_active_ratio": 0.05,
    "dram_active_ratio": 0.04,
    "power_w": 190.0,
    "memory_used_bytes": 32e9,
    "nvlink_tx_bytes_per_s": 1e9,
    "pcie_rx_bytes_per_s": 2e8,
    "pcie_tx_bytes_per_s": 1e8,
    "cpu_busy_ratio": 0.2,
    "cpu_iowait_ratio": 0.01,
    "psi_io_some_s": 0.02,
    "psi_cpu_some_s": 0.02,
}
"""Starved, many times in each second, and nothing says by what."""
COPIES: dict[str, Column] = {"pcie_rx_bytes_per_s": 1.4e9, "pcie_tx_bytes_per_s": 0.8e9}
SPINS: dict[str, Column] = BASE | {
    "gpu_util_ratio": noisy(0.98, 0.005),
    "sm_active_ratio": noisy(0.47, 0.02),
    "power_w": 450.0,
    "memory_used_bytes": 35e9,
    "nvlink_tx_bytes_per_s": 5e10,
    "pcie_rx_bytes_per_s": 2.3e9,
    "pcie_tx_bytes_per_s": 2.3e9,
}
"""Tensor parallel on two nodes, of which tensor and DRAM activity were not recorded."""


def found(columns: dict[str, Column]) -> Finding:
    (finding,) = replay(recording(columns, minutes=4, gpus=2)).findings
    return finding


def signs(**known: float) -> Signs:
    return Signs(**(UNKNOWN | {name: np.array([value]) for name, value in known.items()}))


@pytest.mark.parametrize(
    ("columns", "cause"),
    [
        pytest.param(WAITS | COPIES, "host_to_device", id="offloading that stalls within each second"),
        pytest.param(
            WAITS | COPIES | {"cpu_busy_ratio": 0.95},
            "host_to_device",
            id="offloading whose optimizer keeps the CPU busy",
        ),
        pytest.param(
            WAITS | COPIES | {"cpu_iowait_ratio": 0.3}, "storage", id="offloading to a slow disk"
        ),
        pytest.param(
            WAITS | {"psi_cpu_some_s": 0.5}, "cpu_preprocessing", id="tasks that wait for a CPU"
        ),
        pytest.param(
            WAITS | {"pcie_rx_bytes_per_s": 4e8}, UNDETERMINED, id="samples fed at the rate of the work"
        ),
        pytest.param(
            WAITS | COPIES | {"gpu_util_ratio": 0.45, "sm_active_ratio": 0.12},
            UNDETERMINED,
            id="copies beside kernels that do not fill the GPU",
        ),
        pytest.param(
            WAITS | COPIES | {"gpu_util_ratio": 0.7, "sm_active_ratio": 0.2},
            "small_kernels",
            id="small kernels beside copies",
        ),
        pytest.param(SPINS, UNDETERMINED, id="collectives, without the counters that would tell"),
        pytest.param(
            {name: value for name, value in SPINS.items() if name != "gpu_util_ratio"},
            UNDETERMINED,
            id="collectives, without GPU_UTIL either",
        ),
        pytest.param(
            SPINS | {"tensor_active_ratio": 0.13, "dram_active_ratio": 0.34, "gpu_util_ratio": None}
            | {"graphics_active_ratio": 0.99},
            "communication",
            id="collectives, of which graphics activity says that they always run",
        ),
    ],
)  # fmt: skip
def test_the_cause_of_starving(columns: dict[str, Column], cause: str) -> None:
    assert found(columns).cause == cause


def test_offloading_between_two_samples_a_minute_apart_is_no_idleness() -> None:
    """Most samples find no kernel; the copies go on."""
    rng = np.random.default_rng(2)

    def bursts(high: float) -> Column:
        return lambda instants, gpus: np.where(rng.random((instants, gpus)) < 0.17, high, 0.0)

    seen = BASE | COPIES | {"gpu_util_ratio": bursts(0.8), "memory_used_bytes": 32e9, "power_w": 150.0}
    result = replay(recording(seen, minutes=120, period_s=60.0, gpus=4))
    assert {finding.cause for finding in result.findings} == {"host_to_device"}
    assert sum(gpu.states["idle"] for gpu in result.gpus) == 0.0


def test_probabilities_are_those_of_the_findings_whole_life() -> None:
    """Clear for half of the time, then just above the threshold."""

    def waits(instants: int, gpus: int) -> Floats:
        column: Floats = np.repeat(np.where(np.arange(instants) < 120, 0.4, 0.102)[:, None], gpus, axis=1)
        return column

    clear, fading = found(WAITS | {"cpu_iowait_ratio": 0.4}), found(WAITS | {"cpu_iowait_ratio": waits})
    assert clear.confidence > 0.94
    assert 0.7 < fading.confidence < clear.confidence - 0.02
    total = fading.confidence + sum(other.probability for other in fading.runners_up)
    assert total == pytest.approx(1.0, abs=0.05)


def test_what_cannot_be_told_names_what_is_missing_and_how_to_get_it() -> None:
    finding = found(
        {name: value for name, value in WAITS.items() if not name.startswith(("cpu_", "psi_", "pcie"))}
    )
    assert finding.cause == UNDETERMINED
    assert finding.advice.startswith(
        "Cannot tell the cause, because nothing is known of the host's CPU and I/O"
    )
    assert "run unidle agent on the node" in finding.advice
    assert "DCGM_FI_PROF_PCIE_RX_BYTES" in finding.advice
    assert "TENSOR" not in finding.advice


def test_where_nothing_is_missing_the_nearest_cause_is_named() -> None:
    seen = signs(
        iowait=0.09, io_stalled=0.02, cpu_busy=0.3, pcie_bytes_per_s=1e8, sm=0.1, tensor=0.1, dram=0.1,
        nvlink_bytes_per_s=1e9,
    )  # fmt: skip
    words = cannot_tell(seen, starving.margins(seen, AT), AT)
    assert "nearest is storage" in words


EXCLUDED = -4.0


def of(**margins: float) -> Floats:
    """Margins of one GPU; what is not named is far below its threshold."""
    return np.array([[margins.get(cause, EXCLUDED)] for cause in ORDER])


def test_at_its_threshold_a_cause_is_as_likely_as_not() -> None:
    shares = starving.likely(of(storage=0.0))
    assert shares["storage"] == pytest.approx(0.95 * 0.5)
    assert shares[UNDETERMINED] == pytest.approx(1 - 0.95 * 0.5)


def test_a_cause_a_quarter_beyond_its_threshold_is_told_as_28_to_1() -> None:
    shares = starving.likely(of(storage=np.log2(1.25)))
    assert shares["storage"] / 0.95 == pytest.approx(28 / 29, abs=0.002)


@pytest.mark.parametrize("beyond", [1.0, 4.0])
def test_one_in_twenty_is_kept_for_what_nobody_thought_of_however_clear_a_cause_is(beyond: float) -> None:
    shares = starving.likely(of(storage=beyond))
    assert shares["storage"] == pytest.approx(0.95, abs=1e-4)
    assert shares[UNDETERMINED] == pytest.approx(0.05, abs=1e-4)


def test_causes_of_which_no_sign_is_measured_are_equally_likely() -> None:
    nan = float("nan")
    shares = starving.likely(of(storage=nan, host_to_device=nan, cpu_preprocessing=nan))
    for cause in ("storage", "host_to_device", "cpu_preprocessing"):
        assert shares[cause] == pytest.approx(0.95 / 4, abs=1e-6)


def test_what_is_asked_first_and_not_measured_makes_a_later_cause_less_sure() -> None:
    both = starving.likely(of(host_to_device=float("nan"), cpu_preprocessing=2.0))
    assert both["cpu_preprocessing"] == pytest.approx(0.95 * 0.8, abs=1e-4)
    assert both["host_to_device"] == pytest.approx(0.95 * 0.1, abs=1e-4)
    after = starving.likely(of(cpu_preprocessing=2.0, small_kernels=float("nan")))
    assert after["cpu_preprocessing"] == pytest.approx(0.95, abs=1e-4)


def test_a_cause_needs_all_its_signs_and_one_against_it_is_enough() -> None:
    fits = signs(pcie_per_activity=2e10, pcie_bytes_per_s=2e9, resident=0.3)
    unsure = signs(pcie_per_activity=2e10, pcie_bytes_per_s=2e9)
    against = signs(pcie_per_activity=2e10, resident=0.99)
    copies = ORDER.index("host_to_device")
    assert starving.margins(fits, AT)[copies, 0] > 0
    assert np.isnan(starving.margins(unsure, AT)[copies, 0])
    assert starving.margins(against, AT)[copies, 0] < 0


known = st.floats(0, 1) | st.just(float("nan"))


@given(st.lists(known, min_size=len(UNKNOWN), max_size=len(UNKNOWN)))
def test_probabilities_add_up_to_one_and_no_unknown_sign_decides(values: list[float]) -> None:
    seen = Signs(*(np.array([value]) for value in values))
    of = starving.margins(seen, AT)
    assert sum(starving.likely(of).values()) == pytest.approx(1.0)
    decided = int(starving.decided(of)[0])
    assert decided == len(ORDER) or of[decided, 0] >= 0
    assert int(starving.decided(starving.margins(signs(), AT))[0]) == len(ORDER)


def test_the_words_of_a_finding_carry_value_threshold_and_window() -> None:
    (finding,) = replay(recording(WAITS | COPIES, minutes=4, gpus=2, model=H100)).findings
    (ratio,) = (piece for piece in finding.evidence if piece.field == "pcie_per_activity")
    assert finding.evidence.index(ratio) == 1  # right after the activity
    assert (ratio.threshold, ratio.window_s) == (AT.pcie_per_activity, 60.0)
    assert ratio.text.startswith("PCIe traffic of 22 GB/s for a fully used GPU (offloading: 6 GB/s or more")
    assert "-i 0,1 on node-1" in finding.confirm


def halves(light: float, busy: float, spread: float = 0.02) -> Column:
    """GPU 0 to 3 at `light`, 4 to 7 at `busy`."""
    random = np.random.default_rng(5)
    return lambda instants, gpus: (
        np.where(np.arange(gpus) < 4, light, busy) * random.normal(1.0, spread, (instants, gpus))
    )


HALF_NODE: dict[str, Column] = {
    "gpu_util_ratio": halves(0.06, 0.99, 0.003),
    "sm_active_ratio": halves(0.03, 0.86),
    "tensor_active_ratio": halves(0.0, 0.48),
    "power_w": halves(131.0, 685.0),
    "pcie_rx_bytes_per_s": halves(2e7, 5e7),
    "pcie_tx_bytes_per_s": halves(1e7, 2e7),
    "nvlink_tx_bytes_per_s": halves(0.0, 2.4e10),
}
"""Light inference beside a training, GPU counters alone: as measured on 8xH100."""


def test_half_a_node_that_is_hardly_used_is_told_by_gpu_beside_the_half_that_works() -> None:
    result = replay(recording(HALF_NODE, minutes=12))
    (told,) = result.findings
    assert [gpu.causes.get("starved.undetermined", 0.0) > 690 for gpu in result.gpus] == [True] * 4 + [
        False
    ] * 4
    assert [gpu.states["productive"] > 690 for gpu in result.gpus] == [False] * 4 + [True] * 4
    assert [ref.index for ref in told.gpus] == [0, 1, 2, 3]
    assert told.title == "4 GPUs at 3.0 % SM activity for 12 min: hardly used"
    assert "GPU 4-7 of node-1 at 86 % meanwhile" in [piece.text for piece in told.evidence]
    assert "if they serve requests, those are few" in told.advice
    assert "nothing is known of the host's CPU and I/O" in told.advice


@pytest.mark.parametrize(
    ("changes", "light"),
    [
        ({"gpu_util_ratio": halves(0.16, 0.99, 0.003)}, False),
        ({"pcie_rx_bytes_per_s": 2e8}, False),
        ({"pcie_rx_bytes_per_s": None, "pcie_tx_bytes_per_s": None}, False),
        ({}, True),
    ],
    ids=["kernels more often", "data is fed", "nobody knows whether data is fed", "neither"],
)
def test_hardly_used_is_said_only_of_gpus_that_get_neither_kernels_nor_data(
    changes: dict[str, Column], light: bool
) -> None:
    (told,) = replay(recording(HALF_NODE | changes, minutes=4)).findings
    assert ("hardly used" in told.title) is light


def test_a_job_that_is_started_again_in_its_allocation_loads_as_a_new_one_does() -> None:
    """Trained for 40 min, then 9 min of load: memory let go and filled from the host, hardly a kernel."""
    load = {"gpu_util_ratio": 0.02, "sm_active_ratio": 0.002, "tensor_active_ratio": 0.0, "power_w": 130.0}
    work = {"gpu_util_ratio": 1.0, "sm_active_ratio": 0.88, "tensor_active_ratio": 0.5, "power_w": 680.0}
    columns = {name: between(load[name], work[name], 40, 49, 30.0) for name in load}
    columns["pcie_rx_bytes_per_s"] = between(5e9, 2e8, 40, 49, 30.0)

    def memory(lets_go: bool) -> Column:
        def build(instants: int, gpus: int) -> Floats:
            minute = np.arange(instants)[:, None] / 2
            filled = np.where((minute >= 40) & (minute < 49), (minute - 39.5) / 10, 1.0)
            return 70e9 * (filled if lets_go else np.ones_like(filled)) * np.ones((1, gpus))

        return build

    def told(lets_go: bool) -> set[str]:
        seen = BASE | columns | {"memory_used_bytes": memory(lets_go)}
        result = replay(recording(seen, minutes=70, period_s=30.0, job="4711"))
        return {finding.kind for finding in result.findings}

    assert told(lets_go=True) == set()
    assert told(lets_go=False) == {"starvation"}


def loading(until_min: float, memory_bytes: float, first_bytes: float) -> Column:
    """Memory that fills until this minute."""

    def build(instants: int, gpus: int) -> Floats:
        filled = np.minimum(np.arange(instants) / (until_min * 60), 1.0)
        return (first_bytes + filled * (memory_bytes - first_bytes))[:, None] * np.ones((1, gpus))

    return build


@pytest.mark.parametrize(("first_bytes", "productive_s"), [(2e9, 240), (35e9, 0)])
def test_a_load_with_which_a_recording_begins_is_no_starvation(
    first_bytes: float, productive_s: float
) -> None:
    """Three minutes of copies to the GPU, then work that is starved: of a load only memory tells."""
    quiet = {"gpu_util_ratio": 0.02, "sm_active_ratio": 0.002, "tensor_active_ratio": 0.0, "power_w": 130.0}
    work = {"gpu_util_ratio": 0.3, "sm_active_ratio": 0.2, "tensor_active_ratio": 0.1, "power_w": 250.0}
    columns = {name: between(quiet[name], work[name], 0, 3) for name in quiet}
    seen = BASE | COPIES | columns | {"memory_used_bytes": loading(3, 35e9, first_bytes)}
    for gpu in replay(recording(seen, minutes=10, gpus=2)).gpus:
        assert gpu.states["productive"] == pytest.approx(productive_s, abs=25)
        assert gpu.states["starved"] == pytest.approx(600 - productive_s, abs=25)


def test_memory_that_grows_in_a_job_that_works_is_no_load() -> None:
    seen = WAITS | COPIES | {"memory_used_bytes": loading(4, 35e9, 10e9)}
    (gpu, _) = replay(recording(seen, minutes=4, gpus=2)).gpus
    assert gpu.causes == {"starved.host_to_device": 240.0}


HANGS: dict[str, Column] = BASE | {
    "gpu_util_ratio": 1.0,
    "sm_active_ratio": noisy(0.12, 0.002),
    "tensor_active_ratio": 0.0,
    "dram_active_ratio": noisy(0.0003, 0.0001),
    "power_w": 175.0,
    "memory_used_bytes": 60e9,
}


@pytest.mark.parametrize(("dram", "cause"), [(0.0003, UNDETERMINED), (0.02, "small_kernels")])
def test_kernels_that_touch_nothing_are_no_small_kernels(dram: float, cause: str) -> None:
    """All ranks spin in a collective that hangs."""
    told = found(HANGS | {"dram_active_ratio": noisy(dram, dram / 10)})
    assert told.cause == cause
    assert ("a collective that hangs" in told.advice) is (cause == UNDETERMINED)


def test_data_is_not_waited_for_by_a_gpu_that_has_kernels_all_the_time() -> None:
    """Nothing is known of the host: where kernels rest it may be storage or the CPU, else not."""
    spins, rests = (starving.likely(starving.margins(signs(resident=share), AT)) for share in (0.99, 0.3))
    assert spins["storage"] + spins["cpu_preprocessing"] < 0.01
    assert rests["storage"] == rests["cpu_preprocessing"] > 0.2


def ranks(slow: float, waiting: float) -> Column:
    """GPU 0 at `slow`, the others, which wait for it, at `waiting`."""
    random = np.random.default_rng(6)
    return lambda instants, gpus: (
        np.where(np.arange(gpus) == 0, slow, waiting) * random.normal(1.0, 0.01, (instants, gpus))
    )


@pytest.mark.parametrize(
    ("link", "cause"),
    [(ranks(4e9, 4e9), UNDETERMINED), (ranks(4e9, 4e8), "small_kernels"), (ranks(0.0, 0.0), "small_kernels")],
    ids=["at one rate on NVLink", "at another rate", "without NVLink"],
)
def test_who_may_wait_for_a_slow_rank_that_nobody_names_has_no_small_kernels(
    link: Column, cause: str
) -> None:
    columns: dict[str, Column] = {
        "gpu_util_ratio": ranks(0.99, 0.99),
        "sm_active_ratio": ranks(0.85, 0.45),
        "tensor_active_ratio": ranks(0.46, 0.08),
        "dram_active_ratio": ranks(0.36, 0.12),
        "power_w": ranks(600.0, 300.0),
        "nvlink_tx_bytes_per_s": link,
    }
    (told,) = replay(recording(BASE | columns, minutes=12)).findings
    assert told.cause == cause
    assert [ref.index for ref in told.gpus] == [1, 2, 3, 4, 5, 6, 7]
    assert ("GPUs of the node that are linked to them do more" in told.advice) is (cause == UNDETERMINED)


def test_evidence_above_its_threshold_says_until_where_it_counts() -> None:
    """Starved at 30 %, then above where it begins and below where it ends."""
    seen = WAITS | COPIES | {"gpu_util_ratio": 0.9, "sm_active_ratio": between(0.52, 0.3, 3, 99)}
    (told,) = replay(recording(seen, minutes=8, gpus=1)).findings
    assert told.evidence[0].text.startswith(
        "SM activity 52 % over 60 s, starved below 50 % and until above 55 %"
    )
    (told,) = replay(recording(WAITS | COPIES, minutes=4, gpus=1)).findings
    assert "until" not in told.evidence[0].text


def test_a_finding_keeps_its_evidence_when_the_job_ends_and_frees_its_memory_in_two_steps() -> None:
    """As a mean over the second in which it is freed shows it, and a recording that ends 20 s later."""

    def memory(instants: int, gpus: int) -> Floats:
        left = np.arange(instants)[:, None] - (instants - 20)
        return np.where(left < 0, 32e9, np.where(left == 0, 4e9, 5e8)) * np.ones((1, gpus))

    def until_the_end(working: float, resting: float) -> Column:
        return lambda instants, gpus: (
            np.where(np.arange(instants)[:, None] < instants - 20, working, resting) * np.ones((1, gpus))
        )

    ends: dict[str, Column] = {
        "gpu_util_ratio": until_the_end(0.16, 0.0),
        "sm_active_ratio": until_the_end(0.1, 0.0),
        "memory_used_bytes": memory,
        "pcie_rx_bytes_per_s": until_the_end(1.4e9, 0.0),
        "pcie_tx_bytes_per_s": until_the_end(0.8e9, 0.0),
    }
    (told,) = replay(recording(WAITS | ends, minutes=5, gpus=2)).findings
    assert told.title.startswith("2 GPUs at 10 % SM activity for ")
    assert told.cost_per_h.gpu_h > 1.7
    assert all(piece.value is not None for piece in told.evidence)
