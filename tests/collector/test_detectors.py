"""What must be found, and what must not: whole recordings through the product's own defaults."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.collector.fleets import BASE, EMPTY, HEALTHY, HELD, START_NS, Column, between, noisy, recording

from unidle_collector.recording import Recording
from unidle_collector.replay import replay


@dataclass(frozen=True)
class Case:
    title: str
    recording: Recording
    told: dict[str, str]
    """kind -> cause of findings that people are told."""
    states: dict[str, float]
    """state -> seconds of GPU 0."""


def saw(high: float, busy_s: int, each_s: int, seed: int = 3) -> Column:
    random = np.random.default_rng(seed)

    def build(instants: int, gpus: int) -> NDArray[np.float64]:
        on = (np.arange(instants)[:, None] % each_s) < busy_s
        return np.where(on, random.uniform(0.6, 1.0, (instants, gpus)) * high, 0.0)

    return build


def one_gpu(inside: float, outside: float, first_min: float, last_min: float) -> Column:
    def build(instants: int, gpus: int) -> NDArray[np.float64]:
        column = np.full((instants, gpus), outside)
        column[round(first_min * 60) : round(last_min * 60), 0] = inside
        return column

    return build


def staircase(first: float, last: float, step: float, each_s: float) -> Column:
    def build(instants: int, gpus: int) -> NDArray[np.float64]:
        column = np.minimum(last, first + np.floor(np.arange(instants) / each_s) * step)
        return np.repeat(column[:, None], gpus, axis=1)

    return build


STARVED = BASE | {
    "gpu_util_ratio": saw(1.0, 2, 10),
    "sm_active_ratio": saw(0.7, 2, 10),
    "tensor_active_ratio": 0.06,
    "dram_active_ratio": 0.04,
    "power_w": noisy(186, 60),
    "memory_used_bytes": 32e9,
}
TENSOR_PARALLEL = BASE | {
    "gpu_util_ratio": noisy(0.98, 0.005),
    "sm_active_ratio": noisy(0.49, 0.03),
    "tensor_active_ratio": 0.13,
    "dram_active_ratio": 0.34,
    "nvlink_tx_bytes_per_s": 5e10,
    "power_w": noisy(450, 20),
    "memory_used_bytes": 35e9,
}

MUST_FIRE = [
    Case(
        "a loaded model without requests is idle, held",
        recording(HELD, minutes=40),
        {"idle": "held"},
        {"idle": 2400},
    ),
    Case(
        "a job that never starts a process is idle since it got the GPU",
        recording(EMPTY, minutes=30, job="4711"),
        {"idle": "no_process"},
        {"idle": 1800},
    ),
    Case(
        "a job that stops after half an hour is idle from that minute on",
        recording(
            HEALTHY | {name: between(0.0, 1.0, 30, 90) for name in ("gpu_util_ratio", "sm_active_ratio")},
            minutes=70,
        ),
        {"idle": "held"},
        {"productive": 1800, "idle": 2400},
    ),
    Case(
        "short probes of a tool do not end idleness",
        recording(HELD | {"gpu_util_ratio": between(0.03, 0.0, 20.0, 20.05)}, minutes=40),
        {"idle": "held"},
        {},
    ),
    Case(
        "a sawtooth with iowait is starved by storage",
        recording(STARVED | {"cpu_iowait_ratio": 0.3, "cpu_busy_ratio": 0.1}, minutes=20),
        {"starvation": "storage"},
        {"starved": 1200},
    ),
    Case(
        "a sawtooth with all cores pinned is starved by preprocessing",
        recording(STARVED | {"cpu_iowait_ratio": 0.01, "cpu_busy_ratio": 0.95}, minutes=20),
        {"starvation": "cpu_preprocessing"},
        {},
    ),
    Case(
        "a sawtooth with PCIe busy in between is starved by transfers",
        recording(STARVED | {"pcie_rx_bytes_per_s": 1.42e9}, minutes=20),
        {"starvation": "host_to_device"},
        {},
    ),
    Case(
        "small kernels look busy and use a quarter of the SMs",
        recording(
            BASE
            | {
                "gpu_util_ratio": noisy(0.69, 0.05),
                "sm_active_ratio": noisy(0.24, 0.03),
                "tensor_active_ratio": 0.037,
                "dram_active_ratio": 0.148,
                "power_w": 207.0,
                "memory_used_bytes": 18e9,
            },
            minutes=20,
        ),
        {"starvation": "small_kernels"},
        {},
    ),
    Case(
        "waiting in collectives looks fully busy",
        recording(TENSOR_PARALLEL, minutes=20),
        {"starvation": "communication"},
        {},
    ),
    Case(
        "waiting in collectives over InfiniBand looks fully busy, too",
        recording(
            TENSOR_PARALLEL
            | {"nvlink_tx_bytes_per_s": 5e9, "ib_sent_bytes": 3e10, "ib_received_bytes": 3e10},
            minutes=20,
        ),
        {"starvation": "communication"},
        {},
    ),
    Case(
        "a CPU quota that holds the job back is preprocessing, though the host has cores to spare",
        recording(STARVED | {"cpu_busy_ratio": 0.15, "job_cpu_throttled_s": 3.0}, minutes=20),
        {"starvation": "cpu_preprocessing"},
        {},
    ),
    Case(
        "utilization alone shows that something starves, not why",
        recording(BASE | {"gpu_util_ratio": saw(1.0, 2, 10), "memory_used_bytes": 32e9}, minutes=20),
        {"starvation": "undetermined"},
        {},
    ),
    Case(
        "one hot GPU among eight is throttled for as long as the bit is set",
        recording(
            HEALTHY
            | {
                "clock_event_reasons": one_gpu(0x24, 0x4, 10, 20),
                "sm_clock_hz": one_gpu(1.2e9, 1.75e9, 10, 20),
            },
            minutes=30,
        ),
        {"throttling_thermal": "software_thermal"},
        {"throttled": 615, "productive": 1185},
    ),
    Case(
        "a thermal throttle time that grows is enough",
        recording(
            {k: v for k, v in HEALTHY.items() if k != "clock_event_reasons"}
            | {
                "hw_thermal_throttle_s": one_gpu(0.9, 0.0, 10, 20),
                "sm_clock_hz": one_gpu(1.2e9, 1.75e9, 10, 20),
            },
            minutes=30,
        ),
        {"throttling_thermal": "hardware_thermal"},
        {},
    ),
    Case(
        "without reasons, heat at its limit and a clock below the siblings tell",
        recording(
            {k: v for k, v in HEALTHY.items() if k != "clock_event_reasons"}
            | {"temperature_c": one_gpu(88, 62, 10, 20), "sm_clock_hz": one_gpu(1.2e9, 1.75e9, 10, 20)},
            minutes=30,
        ),
        {"throttling_thermal": "software_thermal"},
        {},
    ),
    Case(
        "without reasons, heat and half the clock of a whole node are the hardware's doing",
        recording(
            {k: v for k, v in HEALTHY.items() if k != "clock_event_reasons"}
            | {
                "temperature_c": between(91.0, 62.0, 10, 40),
                "sm_clock_hz": between(0.9e9, 1.75e9, 10, 40),
            },
            minutes=40,
        ),
        {"throttling_thermal": "hardware_thermal"},
        {"throttled": 1800},
    ),
    Case(
        "a power brake is told apart from heat",
        recording(
            HEALTHY
            | {
                "clock_event_reasons": one_gpu(0x88, 0x4, 10, 20),
                "sm_clock_hz": one_gpu(0.9e9, 1.75e9, 10, 20),
            },
            minutes=30,
        ),
        {"throttling_power": "power_brake"},
        {},
    ),
    Case(
        "a power cap that costs one GPU its siblings' clock is found",
        recording(HEALTHY | {"sm_clock_hz": one_gpu(1.3e9, 1.75e9, 10, 20)}, minutes=30),
        {"throttling_power": "power_cap"},
        {},
    ),
    Case(
        "memory that rises until little is left is a risk",
        recording(HEALTHY | {"memory_used_bytes": staircase(50e9, 79e9, 0.6e9, 45)}, minutes=45),
        {"oom_risk": "rising_memory"},
        {"productive": 2700},
    ),
    Case(
        "a leak too slow to be seen in 20 minutes is a risk",
        recording(HEALTHY | {"memory_used_bytes": staircase(68e9, 79e9, 0.1e9, 120)}, minutes=200),
        {"oom_risk": "rising_memory"},
        {},
    ),
    Case(
        "a lost GPU has failed",
        recording(HEALTHY | {"gpu_state": one_gpu(1, 0, 10, 30)}, minutes=30),
        {"gpu_lost": "lost"},
        {"failed": 1200, "productive": 600},
    ),
]

MUST_NOT_FIRE = [
    Case(
        "a GPU at its limit beside lighter work, of which nobody names the jobs, is not capped unfairly",
        recording(
            HEALTHY
            | {
                "sm_clock_hz": one_gpu(1.4e9, 1.75e9, 5, 30),
                "tensor_active_ratio": one_gpu(0.72, 0.45, 0, 30),
                "clock_event_reasons": one_gpu(float(0x4), 0.0, 0, 30),
            },
            minutes=30,
        ),
        {},
        {"productive": 1800},
    ),
    Case(
        "compute bound at the power limit is healthy",
        recording(HEALTHY, minutes=60),
        {},
        {"productive": 3600},
    ),
    Case(
        "memory-bandwidth bound is not starved",
        recording(
            HEALTHY | {"sm_active_ratio": 0.45, "tensor_active_ratio": 0.03, "dram_active_ratio": 0.75},
            minutes=40,
        ),
        {},
        {"productive": 2400},
    ),
    Case("nobody's GPU is unallocated, not idle", recording(EMPTY, minutes=60), {}, {"unallocated": 3600}),
    Case(
        "idle for 20 minutes is accounted, but nobody is told",
        recording(HELD, minutes=20),
        {},
        {"idle": 1200},
    ),
    Case(
        "a model load of eight minutes is start-up",
        recording(
            HEALTHY
            | {name: between(0.0, 1.0, 0, 9) for name in ("gpu_util_ratio", "sm_active_ratio")}
            | {"memory_used_bytes": between(5e6, 70e9, 0, 1)},
            minutes=40,
        ),
        {},
        {"productive": 2340},
    ),
    Case(
        "checkpoints of 20 s each 10 min starve nobody",
        recording(
            HEALTHY
            | {
                name: (lambda t, g: np.where((np.arange(t)[:, None] % 600) < 20, 0.0, 0.9) * np.ones((1, g)))
                for name in ("gpu_util_ratio", "sm_active_ratio")
            },
            minutes=60,
        ),
        {},
        {"productive": 3600},
    ),
    Case(
        "a framework that preallocates 98 % of memory at once is no risk",
        recording(HEALTHY | {"memory_used_bytes": 78.5e9}, minutes=60),
        {},
        {},
    ),
    Case(
        "memory that grew in the first minutes and is flat since is no risk",
        recording(HEALTHY | {"memory_used_bytes": staircase(40e9, 77e9, 8e9, 45)}, minutes=60),
        {},
        {},
    ),
    Case(
        "a thermal bit on a GPU that keeps its clock is no incident",
        recording(HEALTHY | {"clock_event_reasons": one_gpu(0x24, 0x4, 5, 15)}, minutes=20),
        {},
        {},
    ),
    Case(
        "a thermal blink of two seconds is no incident",
        recording(HEALTHY | {"clock_event_reasons": one_gpu(0x24, 0x4, 10, 10.034)}, minutes=20),
        {},
        {},
    ),
    Case("nothing known is unknown, not idle", recording(BASE | {"temperature_c": 40.0}, minutes=40), {}, {}),
]


@pytest.mark.parametrize("case", MUST_FIRE + MUST_NOT_FIRE, ids=lambda case: case.title)
def test_what_is_told(case: Case) -> None:
    result = replay(case.recording)
    assert {f.kind: f.cause for f in result.findings if f.told_ns is not None} == case.told
    for state, seconds in case.states.items():
        assert result.gpus[0].states[state] == pytest.approx(seconds, abs=45), state


@pytest.mark.parametrize("period_s", [1.0, 5.0, 15.0, 30.0, 60.0])
def test_idle_is_found_at_every_sampling_period(period_s: float) -> None:
    result = replay(recording(HELD, minutes=60, period_s=period_s))
    assert [f.kind for f in result.findings if f.told_ns] == ["idle"]
    assert result.gpus[3].states["idle"] == pytest.approx(3600)


@pytest.mark.parametrize("period_s", [15.0, 30.0])
def test_samples_between_two_pieces_of_work_are_not_idle_where_the_energy_says_so(period_s: float) -> None:
    """All samples fall into the gaps of a sawtooth; it drew 220 W, not 120."""
    seen = HELD | {"cpu_iowait_ratio": 0.3, "energy_j": 220.0 * period_s}
    assert replay(recording(seen, minutes=40, period_s=period_s)).gpus[0].states["idle"] == 0.0
    held = seen | {"energy_j": 121.0 * period_s}
    assert replay(recording(held, minutes=40, period_s=period_s)).gpus[0].states["idle"] == 2400.0


def test_energy_of_a_missing_sample_is_no_work() -> None:
    """A call that fails once leaves its GPU out of one row; the next one tells the energy of both."""
    twice = np.full((2400, 8), 121.0)
    twice[1200], twice[1201] = np.nan, 242.0
    seen = HELD | {"energy_j": lambda _t, _g: twice}
    assert replay(recording(seen, minutes=40, period_s=1.0)).gpus[0].states["idle"] == 2400.0


@pytest.mark.parametrize(("drawn_w", "idle_s"), [(121.0, 2400), (220.0, 0)])
def test_energy_that_stands_still_has_not_been_read_anew(drawn_w: float, idle_s: float) -> None:
    """Rows each 5 s of an exporter that samples each 30 s."""

    def energy(instants: int, gpus: int) -> NDArray[np.float64]:
        anew = np.arange(instants) % 6 == 0
        return np.repeat(np.where(anew, 30 * drawn_w, 0.0)[:, None], gpus, axis=1)

    seen = recording(HELD | {"energy_j": energy}, minutes=40, period_s=5.0)
    assert replay(seen).gpus[0].states["idle"] == pytest.approx(idle_s, abs=40)


@pytest.mark.parametrize("anew_each_s", [5, 30])
def test_pauses_that_samples_fell_into_are_known_by_energy_that_is_read_rarely(anew_each_s: int) -> None:
    """Rows each 5 s: two of five in work, three in the waits of long steps, whose energy is mostly work's."""
    rows = anew_each_s // 5

    def either(work: float, spin: float) -> Column:
        return lambda t, g: np.repeat(np.where(np.arange(t) % 5 < 2, work, spin)[:, None], g, axis=1)

    def energy(instants: int, gpus: int) -> NDArray[np.float64]:
        anew = np.arange(instants) % rows == rows - 1
        return np.repeat(np.where(anew, 600.0 * anew_each_s, 0.0)[:, None], gpus, axis=1)

    columns = TENSOR_PARALLEL | {
        "sm_active_ratio": either(0.87, 0.2),
        "tensor_active_ratio": either(0.55, 0.0),
        "power_w": either(650.0, 330.0),
        "nvlink_tx_bytes_per_s": 1e9,
    }
    (told,) = replay(recording(columns, minutes=30, period_s=5.0)).findings
    assert told.kind == "starvation"
    assert replay(recording(columns | {"energy_j": energy}, minutes=30, period_s=5.0)).findings == []


@pytest.mark.parametrize("hole_s", [5, 9, 40])
def test_work_in_a_hole_of_the_samples_ends_idleness_where_the_energy_says_so(hole_s: int) -> None:
    """Samples are missing for a while, and the next one tells the energy of all of it."""

    def since_min(drawn_w: float) -> float:
        energy, keep = np.full((2400, 8), 121.0), np.ones((2400, 8), dtype=np.bool_)
        keep[1200 : 1200 + hole_s] = False
        energy[1200 + hole_s] += hole_s * drawn_w
        seen = recording(HELD | {"energy_j": lambda _t, _g: energy}, minutes=40, keep=keep)
        (finding,) = replay(seen).findings
        return (finding.since_ns - START_NS) / 60e9

    assert since_min(121.0) == pytest.approx(0.0, abs=0.1)
    assert since_min(500.0) == pytest.approx(20 + hole_s / 60, abs=0.1)


@pytest.mark.parametrize("period_s", [1.0, 5.0])
def test_samples_that_come_late_do_not_end_idleness(period_s: float) -> None:
    """Each second sample is 0.4 s late: the energy since the one before is that of more or less time."""

    def energy(instants: int, gpus: int) -> NDArray[np.float64]:
        late_s = np.where(np.arange(instants + 1) % 2, 0.4, 0.0)
        return np.repeat(120.0 * (period_s + np.diff(late_s))[:, None], gpus, axis=1)

    seen = recording(HELD | {"energy_j": energy}, minutes=40, period_s=period_s)
    assert replay(seen).gpus[0].states["idle"] == pytest.approx(2400.0)


def in_pauses(caught: float, period_s: float = 30.0) -> Recording:
    """Steps of which nine tenths are work; `caught` of the samples fall into the rest, where it spins."""
    random = np.random.default_rng(5)

    def either(work: float, spin: float) -> Column:
        def build(instants: int, gpus: int) -> NDArray[np.float64]:
            spins = random.permutation(np.arange(instants) < caught * instants)
            return np.repeat(np.where(spins, spin, work)[:, None], gpus, axis=1)

        return build

    columns = TENSOR_PARALLEL | {
        "sm_active_ratio": either(0.87, 0.4),
        "tensor_active_ratio": either(0.55, 0.01),
        "power_w": either(650.0, 330.0),
        "energy_j": (0.9 * 650 + 0.1 * 330) * period_s,
    }
    return recording(columns, minutes=60, period_s=period_s)


@pytest.mark.parametrize("caught", [1.0, 0.8])
def test_samples_that_fall_into_the_pauses_of_long_steps_say_nothing_of_the_work(caught: float) -> None:
    """By the samples it waits in collectives; by the energy it worked nearly all the time."""
    seen = in_pauses(caught)
    result = replay(seen)
    assert [f.kind for f in result.findings] == []
    assert result.gpus[0].states["starved"] == 0.0
    unsaid = replay(replace(seen, columns={**seen.columns, "energy_j": np.full(seen.sampled.shape, np.nan)}))
    assert unsaid.gpus[0].states["starved"] > 1800, "without the energy it cannot be known"


def test_an_empty_gpu_forgets_what_the_job_before_had_reached_though_nobody_named_it() -> None:
    """A job at 95 % SM activity for 40 min, 2 min of nothing, then one at 57 %: that is what it can."""

    def then(first: float, nothing: float, second: float) -> Column:
        def build(instants: int, gpus: int) -> NDArray[np.float64]:
            levels = np.repeat([first, nothing, second], [40, 2, instants // 12 - 42])
            return np.repeat(np.repeat(levels, 12)[:, None], gpus, axis=1)

        return build

    seen = HEALTHY | {
        "gpu_util_ratio": then(1.0, 0.0, 1.0),
        "sm_active_ratio": then(0.95, 0.0, 0.57),
        "memory_used_bytes": then(7e10, 0.0, 7e10),
    }
    assert replay(recording(seen, minutes=80, period_s=5.0)).findings == []
    kept = seen | {"memory_used_bytes": 7e10}
    assert [f.kind for f in replay(recording(kept, minutes=80, period_s=5.0)).findings] == ["starvation"]


def test_nobody_is_told_of_starvation_that_was_seen_only_before_everything_became_unknown() -> None:
    keep = np.ones((20 * 60, 8), dtype=np.bool_)
    keep[240:] = False
    seen = recording(STARVED | {"cpu_iowait_ratio": 0.3}, minutes=20, keep=keep)
    (developing,) = replay(seen).findings
    assert (developing.kind, developing.told_ns) == ("starvation", None)
    keep[240:1000:40] = True  # a sample now and then tells no mean either
    assert [f.told_ns for f in replay(replace(seen, sampled=keep)).findings] == [None]
    keep[900:] = True
    (told,) = replay(recording(STARVED | {"cpu_iowait_ratio": 0.3}, minutes=20, keep=keep)).findings
    assert told.told_ns is not None


def test_an_increase_that_comes_after_missing_samples_is_shared_by_them() -> None:
    """A tenth of the time waits for I/O; each sample but every third is missing, and tells all three."""
    keep = np.repeat((np.arange(1200) % 3 == 0)[:, None], 8, axis=1)
    waits = STARVED | {"psi_io_some_s": 0.3, "cpu_busy_ratio": 0.1, "pcie_rx_bytes_per_s": 1.42e9}
    (finding,) = replay(recording(waits, minutes=20, keep=keep)).findings
    assert finding.cause == "host_to_device"


@pytest.mark.parametrize("missing", [0.1, 0.3])
def test_missing_samples_change_no_verdict(missing: float) -> None:
    keep = np.random.default_rng(5).random((2400, 8)) > missing
    idle = replay(recording(HELD, minutes=40, keep=keep))
    assert [f.kind for f in idle.findings if f.told_ns] == ["idle"]
    assert idle.gpus[0].states["idle"] > 2300
    healthy = replay(recording(HEALTHY, minutes=40, keep=keep))
    assert healthy.findings == []


def test_one_cause_on_eight_gpus_of_a_node_is_one_finding() -> None:
    result = replay(recording(HELD, minutes=40))
    assert [len(finding.gpus) for finding in result.findings] == [8]


def test_a_half_idle_node_is_told_by_gpu_not_by_its_mean() -> None:
    def half(idle: float, busy: float) -> Column:
        return lambda t, g: np.where(np.arange(g)[None, :] < 4, idle, busy) * np.ones((t, 1))

    result = replay(
        recording(
            HEALTHY
            | {"gpu_util_ratio": half(0, 1), "sm_active_ratio": half(0, 0.86), "power_w": half(120, 685)},
            minutes=40,
        )
    )
    (finding,) = result.findings
    assert finding.kind == "idle"
    assert sorted(ref.index or 0 for ref in finding.gpus) == [0, 1, 2, 3]


def test_the_cost_of_a_finding_is_what_was_lost() -> None:
    (finding,) = replay(recording(HELD, minutes=60)).findings
    assert finding.cost_so_far.gpu_h == pytest.approx(8.0, rel=0.01)
    assert finding.cost_so_far.eur == pytest.approx(8 * 2.73, rel=0.01)
    assert finding.cost_so_far.kwh == pytest.approx(8 * 0.120, rel=0.02)


def test_an_unknown_model_has_no_price_rather_than_a_wrong_one() -> None:
    (finding,) = replay(recording(HELD, minutes=40, model="Something New")).findings
    assert finding.cost_so_far.gpu_h > 5
    assert finding.cost_so_far.eur is None


def test_the_same_recording_gives_the_same_ids() -> None:
    first, second = (replay(recording(STARVED, minutes=15)).findings for _ in range(2))
    assert [f.id for f in first] == [f.id for f in second]


def test_the_evidence_of_throttling_is_of_when_it_was_not_of_when_its_finding_ends() -> None:
    slowed = {
        "clock_event_reasons": one_gpu(0x24, 0x4, 10, 10.5),
        "sm_clock_hz": one_gpu(1.2e9, 1.75e9, 10, 10.5),
        "temperature_c": one_gpu(87, 62, 10, 10.5),
    }
    result = replay(recording(HEALTHY | slowed, minutes=15))
    finding = next(one for one in result.findings if one.kind == "throttling_thermal")
    assert finding.ended_ns is not None
    assert finding.ended_ns - finding.since_ns > 40e9, "it is said anew after the clock is back"
    values = {item.field: (item.value, item.threshold) for item in finding.evidence}
    assert values["sm_clock_hz"] == (pytest.approx(1.2e9), pytest.approx(1.75e9, rel=0.01))
    assert values["clock_event_reasons"][0] == 0x24
    assert values["temperature_c"][0] == 87
