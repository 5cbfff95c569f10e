"""Causes that show only between the GPUs of one job: what must be found, and what must not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.collector.fleets import BASE, Column, recording

from unidle_collector.detectors import Verdict, give_way, percent
from unidle_collector.detectors.pipeline_imbalance import stages_of
from unidle_collector.model import Finding, GpuRef
from unidle_collector.pergpu import Bools
from unidle_collector.recording import Recording
from unidle_collector.replay import Result, replay
from unidle_collector.signs.jobmates import natural

PERIOD_S = 5.0
MINE = {"straggler", "pipeline_imbalance", "checkpoint_stall", "tcp_fallback"}
GPUS = 8


def per_gpu(values: Sequence[float], before: float | None = None, from_min: float = 0.0) -> Column:
    """One value per GPU from minute `from_min` on, `before` until then; with 2 % of noise."""
    random = np.random.default_rng(11)

    def build(instants: int, gpus: int) -> NDArray[np.float64]:
        assert gpus == len(values)
        late = np.arange(instants)[:, None] >= from_min * instants / MINUTES
        levels = np.where(late, np.array(values), np.array(values) if before is None else before)
        return levels * random.normal(1.0, 0.02, (instants, gpus))

    return build


MINUTES = 40.0


def job(
    columns: dict[str, Column], *, nodes: int = 1, name: str | None = "4711", period_s: float = PERIOD_S
) -> Recording:
    """40 minutes of one job on 8 GPUs that lie on `nodes` nodes."""
    one = recording(columns, minutes=MINUTES, period_s=period_s, job=name, gpus=GPUS)
    each = GPUS // nodes
    refs = tuple(
        GpuRef(f"node-{ref.index // each + 9}", ref.gpu, ref.index % each, ref.model)
        for ref in one.gpus
        if ref.index is not None
    )
    return replace(one, gpus=refs)


def waiting(
    work: Sequence[float],
    *,
    spin_sm: float = 0.35,
    from_min: float = 0.0,
    link: float = 2e9,
    period_s: float = PERIOD_S,
) -> dict[str, Column]:
    """A synchronous job whose GPUs work these shares of each step, and spin for the rest of it."""
    share = np.array(work)

    def falls(level: float, floor: float = 0.0) -> Column:
        return per_gpu(list(floor + (level - floor) * share), level, from_min)

    return BASE | {
        "gpu_util_ratio": 1.0,
        "sm_active_ratio": falls(0.87, spin_sm),
        "tensor_active_ratio": falls(0.55),
        "dram_active_ratio": falls(0.37),
        "power_w": falls(650, 280),
        "energy_j": lambda t, g: falls(650, 280)(t, g) * period_s,
        "sm_clock_hz": 1.75e9,
        "memory_used_bytes": 60e9,
        "nvlink_tx_bytes_per_s": link,
        "clock_event_reasons": float(0x4),
    }


ONE_SLOW = (0.55, 0.55, 0.55, 1.0, 0.55, 0.55, 0.55, 0.55)
NODE_SLOW = (0.6, 0.6, 0.6, 0.6, 1.0, 1.0, 1.0, 1.0)
LAST_HEAVY = (0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 1.0, 1.0)
TCP: dict[str, Column] = BASE | {
    "gpu_util_ratio": 0.99,
    "sm_active_ratio": 0.45,
    "tensor_active_ratio": 0.08,
    "dram_active_ratio": 0.15,
    "power_w": 370.0,
    "memory_used_bytes": 60e9,
    "nvlink_tx_bytes_per_s": 2e9,
    "net_received_bytes": 1.1e9 * PERIOD_S,
    "net_sent_bytes": 1.1e9 * PERIOD_S,
    "ib_received_bytes": 1e6 * PERIOD_S,
    "ib_sent_bytes": 1e6 * PERIOD_S,
    "ib_ports_active": 8.0,
}


def saves(
    length_s: float, every_s: float, *, written: float = 1e9, period_s: float = PERIOD_S, sm: float = 0.0
) -> dict[str, Column]:
    """All GPUs stop for `length_s` each `every_s` while the node writes `written` bytes per second."""

    def either(at_work: float, at_pause: float) -> Column:
        def build(instants: int, gpus: int) -> NDArray[np.float64]:
            paused = (np.arange(instants) * period_s) % every_s >= every_s - length_s
            return np.repeat(np.where(paused, at_pause, at_work)[:, None], gpus, axis=1)

        return build

    return BASE | {
        "gpu_util_ratio": either(1.0, 1.0 if sm else 0.0),
        "sm_active_ratio": either(0.87, sm),
        "tensor_active_ratio": either(0.55, 0.0),
        "power_w": either(650, 130),
        "memory_used_bytes": 60e9,
        "disk_written_bytes": either(1e6 * period_s, written * period_s),
        "cpu_iowait_ratio": either(0.01, 0.2),
    }


def told(result: Result) -> dict[str, str]:
    return {f.kind: f.cause for f in result.findings if f.told_ns is not None}


def one(result: Result) -> Finding:
    (finding,) = (f for f in result.findings if f.told_ns is not None)
    return finding


def seconds(result: Result, gpu: int, state: str) -> float:
    return result.gpus[gpu].causes.get(state, 0.0)


@dataclass(frozen=True)
class Case:
    title: str
    recording: Callable[[], Recording]
    told: dict[str, str]


MUST_FIRE = [
    Case(
        "one slow GPU in a data-parallel job",
        lambda: job(waiting(ONE_SLOW)),
        {"straggler": "straggler"},
    ),
    Case(
        "a node that turns slow after ten minutes",
        lambda: job(waiting(NODE_SLOW, from_min=10), nodes=2),
        {"straggler": "straggler"},
    ),
    Case(
        "stragglers whose job reduces over InfiniBand only",
        lambda: job(
            waiting(NODE_SLOW, from_min=10, link=0.0)
            | {"ib_sent_bytes": 4e10, "ib_received_bytes": 4e10, "ib_ports_active": 8.0},
            nodes=2,
        ),
        {"straggler": "straggler"},
    ),
    Case(
        "a heavy last stage from the first step on",
        lambda: job(waiting(LAST_HEAVY)),
        {"pipeline_imbalance": "pipeline_imbalance"},
    ),
    Case(
        "a stage per node, the second one heavy from the first step on",
        lambda: job(waiting(NODE_SLOW), nodes=2),
        {"pipeline_imbalance": "pipeline_imbalance"},
    ),
    Case(
        "checkpoints of 90 s each 6 min",
        lambda: job(saves(90, 360)),
        {"checkpoint_stall": "checkpoint"},
    ),
    Case(
        "checkpoints in which the other ranks spin in a barrier",
        lambda: job(saves(90, 360, sm=0.04)),
        {"checkpoint_stall": "checkpoint"},
    ),
    Case(
        "collectives over Ethernet on nodes with InfiniBand",
        lambda: job(TCP, nodes=2),
        {"tcp_fallback": "tcp_fallback"},
    ),
    Case(
        "sockets over IPoIB: the fabric carries no more than the interfaces",
        lambda: job(
            TCP | dict.fromkeys(("ib_received_bytes", "ib_sent_bytes"), 1150000000.0 * PERIOD_S), nodes=4
        ),
        {"tcp_fallback": "tcp_fallback"},
    ),
    Case(
        "sockets over IPoIB on nodes that receive more than they send",
        lambda: job(
            TCP
            | {
                "net_received_bytes": 1.6e9 * PERIOD_S,
                "net_sent_bytes": 1.1e9 * PERIOD_S,
                "ib_received_bytes": 1.66e9 * PERIOD_S,
                "ib_sent_bytes": 1.14e9 * PERIOD_S,
            },
            nodes=4,
        ),
        {"tcp_fallback": "tcp_fallback"},
    ),
    Case(
        "the same where nobody says whether there is InfiniBand: cannot tell",
        lambda: job({name: value for name, value in TCP.items() if not name.startswith("ib_")}, nodes=2),
        {"tcp_fallback": "undetermined"},
    ),
    Case(
        "the same on nodes without InfiniBand: cannot tell",
        lambda: job(TCP | {"ib_ports_active": 0.0}, nodes=2),
        {"tcp_fallback": "undetermined"},
    ),
]


def replicas(load: Sequence[float], *, util: float = 1.0, dram: float = 0.6) -> dict[str, Column]:
    """Independent inference servers: what they compute follows their load, what they read less so."""
    share = np.array(load)
    return BASE | {
        "gpu_util_ratio": util,
        "sm_active_ratio": per_gpu(list(0.85 * share)),
        "tensor_active_ratio": per_gpu(list(0.3 * share)),
        "dram_active_ratio": dram,
        "power_w": per_gpu(list(200 + 300 * share)),
        "memory_used_bytes": 70e9,
    }


MUST_NOT_FIRE = [
    Case("healthy data parallel", lambda: job(waiting((1.0,) * 8)), {}),
    Case("a pipeline of four stages, one 8 % heavier", lambda: job(waiting((0.92,) * 6 + (1.0, 1.0))), {}),
    Case(
        "inference replicas with uneven load, each on its own GPU",
        lambda: job(replicas((1.0, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7))),
        {},
    ),
    Case(
        "tensor-parallel replicas with uneven load: all they do falls together",
        lambda: job(
            replicas((1.0, 1.0, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7))
            | {"nvlink_tx_bytes_per_s": 5e9, "dram_active_ratio": per_gpu((0.5, 0.5) + (0.35,) * 6)}
        ),
        {},
    ),
    Case(
        "an actor and its critics: other work, not less of the same",
        lambda: job(waiting(LAST_HEAVY) | {"dram_active_ratio": 0.55}),
        {},
    ),
    Case(
        "one GPU works, seven wait in a barrier in which nothing is sent",
        lambda: job(waiting((0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0), spin_sm=0.7, link=1e6, from_min=15)),
        {},
    ),
    Case(
        "an MPI job in double precision, unevenly loaded",
        lambda: job(waiting(ONE_SLOW) | {"tensor_active_ratio": 0.0}),
        {},
    ),
    Case(
        "an MPI job over Ethernet that computes",
        lambda: job(TCP | {"sm_active_ratio": 0.85, "tensor_active_ratio": 0.0}, nodes=2),
        {},
    ),
    Case("one node: it sends for no job over nodes", lambda: job(TCP | {"sm_active_ratio": 0.6}), {}),
    Case(
        "a data set that comes over Ethernet: one way only",
        lambda: job(TCP | {"net_sent_bytes": 2e7 * PERIOD_S, "sm_active_ratio": 0.6}, nodes=2),
        {},
    ),
    Case(
        "files written to NFS are not collectives",
        lambda: job(TCP | {"nfs_written_bytes": 1.05e9 * PERIOD_S, "sm_active_ratio": 0.6}, nodes=2),
        {},
    ),
    Case(
        "InfiniBand carries the job, Ethernet something else",
        lambda: job(
            TCP
            | dict.fromkeys(("ib_received_bytes", "ib_sent_bytes"), 4000000000.0 * PERIOD_S)
            | {"sm_active_ratio": 0.72},
            nodes=2,
        ),
        {},
    ),
    Case("checkpoints of 20 s each 10 min", lambda: job(saves(20, 600)), {}),
    Case("a checkpoint of 60 s each 30 min", lambda: job(saves(60, 1800)), {}),
    Case(
        "a sweep of independent trainings on two nodes that read over InfiniBand",
        lambda: job(
            waiting(ONE_SLOW, link=0.0)
            | {"ib_received_bytes": 4e10, "ib_sent_bytes": 1e8, "ib_ports_active": 8.0},
            nodes=2,
        ),
        {},
    ),
    Case(
        "a sweep of independent trainings on one node, which send nothing to each other",
        lambda: job(waiting(ONE_SLOW, link=1e6)),
        {},
    ),
    Case(
        "uneven GPUs of which DRAM activity is not known: it could be other work",
        lambda: job(waiting(ONE_SLOW) | {"dram_active_ratio": None}),
        {},
    ),
    Case("a job that nobody names", lambda: job(waiting(ONE_SLOW), name=None), {}),
    Case(
        "uneven GPUs of which only utilization is known",
        lambda: job(
            {
                name: value
                for name, value in waiting(ONE_SLOW).items()
                if name not in ("sm_active_ratio", "tensor_active_ratio", "dram_active_ratio")
            }
        ),
        {},
    ),
]


@pytest.mark.parametrize("case", MUST_FIRE + MUST_NOT_FIRE, ids=lambda case: case.title)
def test_what_is_told_of_jobs(case: Case) -> None:
    result = replay(case.recording())
    assert told(result) == case.told


def test_pauses_in_which_nothing_is_written_are_no_checkpoints() -> None:
    """An evaluation on the CPU, a data set that is prepared: something else."""
    result = replay(job(saves(90, 360, written=1e6)))
    assert not MINE & {f.kind for f in result.findings}
    assert seconds(result, 0, "starved.checkpoint") == 0.0


def test_pauses_of_a_session_are_no_checkpoints_whatever_its_node_writes() -> None:
    assert "checkpoint_stall" in told(replay(job(saves(60, 300))))
    assert "checkpoint_stall" not in told(replay(job(saves(60, 300), name="jupyter-4711")))


def test_a_job_whose_samples_all_fell_into_work_was_not_even_where_some_drew_less() -> None:
    """A heavy stage seen once by the middle of its steps, then by all of them: it stays a stage."""
    seen = waiting(LAST_HEAVY, from_min=10.0)
    uneven = per_gpu([work * 370 + 280 for work in LAST_HEAVY])
    energy: Column = lambda instants, gpus: uneven(instants, gpus) * PERIOD_S  # noqa: E731
    assert "straggler" in told(replay(job(seen)))
    assert told(replay(job(seen | {"energy_j": energy}))) == {"pipeline_imbalance": "pipeline_imbalance"}


def test_a_pause_of_all_ranks_but_one_is_no_straggler() -> None:
    """One rank evaluates for 25 s each 10 min while the others spin, as if they waited in each step."""
    columns = waiting((1.0,) * 8, period_s=1.0)

    def pauses(work: float, spin: float) -> Column:
        def build(instants: int, gpus: int) -> NDArray[np.float64]:
            paused = (np.arange(instants)[:, None] % 600 >= 575) & (np.arange(gpus) > 0)
            return np.where(paused, spin, work)

        return build

    columns |= {
        "sm_active_ratio": pauses(0.87, 0.35),
        "tensor_active_ratio": pauses(0.55, 0.0),
        "dram_active_ratio": pauses(0.37, 0.0),
        "energy_j": pauses(650.0, 280.0),
    }
    result = replay(job(columns, period_s=1.0))
    assert not MINE & {f.kind for f in result.findings}
    assert seconds(result, 7, "starved.straggler") == 0.0


def over_infiniband(work: Sequence[float], tensor: float = 0.40) -> Recording:
    """A job on four nodes whose waiting looks like collectives, in samples of half a minute; four GPUs are
    not quite in step, so that no straggler is found."""
    period_s = 30.0
    columns = waiting(work, link=3e10, period_s=period_s)
    share = np.array(work)
    columns |= {
        "tensor_active_ratio": per_gpu(list(tensor * share)),
        "dram_active_ratio": per_gpu([0.37 * (one if n % 2 else 1.0) for n, one in enumerate(work)]),
        "sm_active_ratio": per_gpu(list(0.15 + 0.7 * share)),
    }
    return job(columns, nodes=4, period_s=period_s)


def test_who_may_wait_for_another_gpu_of_its_job_does_not_wait_for_the_network() -> None:
    finding = one(replay(over_infiniband((0.4,) * 6 + (1.0, 1.0))))
    assert (finding.kind, finding.cause) == ("starvation", "undetermined")
    assert f"other GPUs of the job do more (these {percent(0.4)} of the most)" in finding.advice
    assert "slow rank or a heavier stage" in finding.advice


def test_where_nobody_of_a_job_works_all_wait_for_the_network_though_not_alike() -> None:
    """A real tensor- and pipeline-parallel job on two nodes showed 11 to 16 % of tensor activity."""
    finding = one(replay(over_infiniband((0.6,) * 4 + (0.8,) * 4, tensor=0.19)))
    assert (finding.kind, finding.cause) == ("starvation", "communication")


def test_a_job_with_one_gpu_idle_on_purpose_has_no_straggler() -> None:
    columns = waiting((1.0,) * 8)
    for name in ("gpu_util_ratio", "sm_active_ratio", "tensor_active_ratio", "dram_active_ratio"):
        columns[name] = per_gpu((0.9,) * 7 + (0.0,))
    assert set(told(replay(job(columns)))) <= {"idle"}


def test_the_lost_time_of_those_that_wait_is_booked_and_the_slow_one_is_productive() -> None:
    result = replay(job(waiting(ONE_SLOW)))
    assert seconds(result, 0, "starved.straggler") == pytest.approx(2400, abs=60)
    assert result.gpus[3].states["starved"] == 0.0
    finding = one(result)
    assert "GPU 3 of node-9" in finding.title
    assert len(finding.gpus) == 7
    assert finding.cost_per_h.gpu_h == pytest.approx(7 * 0.45, rel=0.1)
    assert [(ref.node, ref.index) for ref in finding.held_back_by] == [("node-9", 3)]
    assert [(c.cause, c.probability) for c in finding.runners_up] == [("pipeline_imbalance", 0.15)]


@pytest.mark.parametrize(
    ("slow", "from_min", "confidence"),
    [
        pytest.param(7, 0.0, 0.65, id="the last rank, as a stage that holds the loss would be"),
        pytest.param(0, 0.0, 0.65, id="the first rank, as a stage that embeds would be"),
        pytest.param(4, 0.0, 0.8, id="one between others"),
        pytest.param(7, 10.0, 0.9, id="one that was as fast as the others before"),
    ],
)
def test_a_straggler_is_told_the_less_surely_the_more_it_could_be_a_stage(
    slow: int, from_min: float, confidence: float
) -> None:
    work = tuple(1.0 if gpu == slow else 0.55 for gpu in range(GPUS))
    finding = one(replay(job(waiting(work, from_min=from_min))))
    assert [ref.index for ref in finding.held_back_by] == [slow]
    assert finding.confidence == confidence


def test_the_gpus_of_the_heaviest_stage_are_named() -> None:
    finding = one(replay(job(waiting(LAST_HEAVY))))
    assert [ref.index for ref in finding.held_back_by] == [6, 7]
    assert {ref.index for ref in finding.gpus} == set(range(6))


def test_gpus_that_wait_for_a_network_wait_for_no_other_gpu() -> None:
    assert one(replay(job(TCP, nodes=2))).held_back_by == ()


def test_a_node_is_named_by_its_name_and_a_low_clock_by_what_to_do() -> None:
    slow = waiting(NODE_SLOW) | {
        "clock_event_reasons": per_gpu((4.0,) * 8),
        "sm_clock_hz": per_gpu((1.75e9,) * 4 + (1.1e9,) * 4),
    }
    (finding,) = (f for f in replay(job(slow, nodes=2)).findings if f.kind in MINE)
    assert (finding.kind, finding.title.rpartition(" ")[2]) == ("straggler", "node-10")
    assert "--exclude=node-10" in finding.advice
    assert "clocks are low" in finding.advice


def test_a_slower_model_among_faster_ones_is_told_as_that() -> None:
    whole = job(
        waiting(NODE_SLOW, from_min=10) | {"sm_clock_hz": per_gpu((1.75e9,) * 4 + (1.3e9,) * 4)}, nodes=2
    )
    refs = tuple(
        replace(ref, model="NVIDIA A100-SXM4-80GB") if ref.node == "node-10" else ref for ref in whole.gpus
    )
    finding = one(replay(replace(whole, gpus=refs)))
    assert "another model, NVIDIA A100-SXM4-80GB among NVIDIA H100" in finding.advice


def test_a_slow_node_that_heat_throttles_is_two_findings_the_cause_and_what_it_costs_the_others() -> None:
    slow = waiting(NODE_SLOW, from_min=10) | {
        "clock_event_reasons": lambda t, g: np.where(
            (np.arange(t)[:, None] > t / 4) & (np.arange(g) >= 4), 0x20, 0x4
        ).astype(float),
        "sm_clock_hz": per_gpu((1.75e9,) * 4 + (1.1e9,) * 4, 1.75e9, 10),
    }
    result = replay(job(slow, nodes=2))
    assert told(result) == {"straggler": "straggler", "throttling_thermal": "software_thermal"}
    assert seconds(result, 0, "starved.straggler") > 1500
    assert seconds(result, 7, "throttled.software_thermal") > 1500


def test_a_long_checkpoint_is_neither_idle_nor_starved_by_storage() -> None:
    """Pauses of 3 min: longer than the grace of idle; the I/O wait of writing is not that of reading."""
    result = replay(job(saves(180, 600)))
    causes = result.gpus[0].causes
    assert causes["starved.checkpoint"] == pytest.approx(4 * 180, abs=30)
    assert {name for name in causes if name.startswith(("idle", "starved"))} == {"starved.checkpoint"}


def test_a_pause_that_is_known_late_for_a_checkpoint_is_booked_as_one_from_its_begin() -> None:
    """The kernel holds back what is written for 140 s of 180: the GPUs are idle before it is known why."""
    columns = saves(180, 600)

    def late(instants: int, gpus: int) -> NDArray[np.float64]:
        writes = (np.arange(instants) * PERIOD_S) % 600 >= 600 - 40
        return np.repeat(np.where(writes, 5e9 * PERIOD_S, 0.0)[:, None], gpus, axis=1)

    causes = replay(job(columns | {"disk_written_bytes": late})).gpus[0].causes
    assert causes.pop("starved.checkpoint") == pytest.approx(4 * 180, abs=30)
    assert sum(causes.values()) == 0.0


def test_the_cost_of_checkpoints_is_the_share_of_the_time_that_they_take() -> None:
    finding = one(replay(job(saves(90, 360))))
    assert finding.cost_per_h.gpu_h == pytest.approx(8 * 0.25, rel=0.05)
    lasted_h = (finding.updated_ns - finding.since_ns) / 3.6e12
    assert finding.cost_so_far.gpu_h == pytest.approx(8 * 0.25 * lasted_h, rel=0.1)
    assert "async_save" in finding.advice


def test_what_never_ends_is_no_checkpoint() -> None:
    """A write that hangs: idle says it after 15 min."""
    result = replay(job(saves(1500, 2400)))
    assert seconds(result, 0, "idle.held") > 1200
    assert told(result).keys() <= {"idle"}


@pytest.mark.parametrize("period_s", [1.0, 15.0, 30.0])
@pytest.mark.parametrize(
    ("columns", "nodes", "kind"),
    [
        (lambda p: waiting(ONE_SLOW, period_s=p), 1, "straggler"),
        (lambda p: waiting(LAST_HEAVY, period_s=p), 1, "pipeline_imbalance"),
        (lambda p: saves(90, 360, period_s=p), 1, "checkpoint_stall"),
        (
            lambda p: (
                TCP
                | dict.fromkeys(("net_received_bytes", "net_sent_bytes"), 1100000000.0 * p)
                | dict.fromkeys(("ib_received_bytes", "ib_sent_bytes"), 1000000.0 * p)
            ),
            2,
            "tcp_fallback",
        ),
    ],
    ids=["straggler", "pipeline_imbalance", "checkpoint_stall", "tcp_fallback"],
)
def test_job_causes_are_found_at_every_sampling_period(
    columns: Callable[[float], dict[str, Column]], nodes: int, kind: str, period_s: float
) -> None:
    result = replay(job(columns(period_s), nodes=nodes, period_s=period_s))
    assert list(told(result)) == [kind]


def each_10_s(bytes_per_s: float) -> Column:
    """A counter that is read each 10 s, in rows of each second: all of it at once."""

    def build(instants: int, gpus: int) -> NDArray[np.float64]:
        read = np.arange(instants) % 10 == 9
        return np.repeat(np.where(read, bytes_per_s * 10, np.nan)[:, None], gpus, axis=1)

    return build


@pytest.mark.parametrize(
    ("ib_bytes_per_s", "expected"),
    [(1e6, {"tcp_fallback": "tcp_fallback"}), (8e9, {"starvation": "communication"})],
    ids=["unused", "in use"],
)
def test_infiniband_that_is_read_each_10_s_is_known_all_the_time(
    ib_bytes_per_s: float, expected: dict[str, str]
) -> None:
    columns = TCP | {
        "net_received_bytes": 1.1e9,
        "net_sent_bytes": 1.1e9,
        "ib_received_bytes": each_10_s(ib_bytes_per_s),
        "ib_sent_bytes": each_10_s(ib_bytes_per_s),
        "ib_ports_active": each_10_s(0.8),
    }
    assert told(replay(job(columns, nodes=2, period_s=1.0))) == expected


def test_a_checkpoint_shorter_than_two_samples_is_not_named() -> None:
    result = replay(job(saves(45, 360, period_s=30.0), period_s=30.0))
    assert not MINE & set(told(result))


def in_parts_of_steps(energy: bool) -> Recording:
    """Healthy steps of 20 s, 14 s of work; sampled each 30 s, so that one node is always caught at work."""
    columns = waiting((1.0,) * 8)

    def caught(work: float, spin: float) -> Column:
        def build(instants: int, gpus: int) -> NDArray[np.float64]:
            at_s = np.arange(instants)[:, None] * 30.0 + np.where(np.arange(gpus) < 4, 0.0, 7.0)
            late = np.arange(instants)[:, None] > instants / 4
            return np.where(late & (at_s % 20 >= 14), spin, work)

        return build

    columns |= {
        "sm_active_ratio": caught(0.87, 0.35),
        "tensor_active_ratio": caught(0.55, 0.0),
        "dram_active_ratio": caught(0.37, 0.0),
        "energy_j": 570.0 * 30 if energy else None,
    }
    return job(columns, nodes=2, period_s=30.0)


@pytest.mark.parametrize("energy", [True, False])
def test_nodes_sampled_in_other_parts_of_long_steps_have_no_straggler(energy: bool) -> None:
    result = replay(in_parts_of_steps(energy))
    assert not MINE & {f.kind for f in result.findings}
    assert result.gpus[7].states["starved"] == 0.0


def test_stages_are_the_fewest_equal_blocks_that_work_alike() -> None:
    assert stages_of(np.array([0.7, 0.7, 0.71, 0.7, 1.0, 1.0, 0.99, 1.0])) == pytest.approx([0.7025, 0.9975])
    assert stages_of(np.array([0.7, 0.7, 0.8, 0.8, 1.0, 1.0])) == pytest.approx([0.7, 0.8, 1.0])
    assert stages_of(np.array([0.7, 1.0, 0.7, 0.7, 0.7, 0.7])) is None
    assert stages_of(np.array([0.7, 1.0, 0.7, 1.0, 0.7])) is None


def test_nodes_are_ordered_as_people_number_them() -> None:
    names = ["node10", "node2", "rack1-node3", "node1"]
    assert sorted(names, key=natural) == ["node1", "node2", "node10", "rack1-node3"]
    assert all(natural(a) <= natural(b) for a, b in pairwise(sorted(names, key=natural)))


class _Says:
    def __init__(self, kind: str, explains: tuple[str, ...] = ()) -> None:
        self.kind, self.explains = kind, explains


def _verdict(on: list[bool], explains: list[bool] | None = None) -> Verdict:
    def bools(values: list[bool]) -> Bools:
        return np.array(values)

    count = len(on)
    return Verdict(
        bools(on), np.zeros(count, np.int64), np.zeros(count, np.int16), np.zeros(count),
        explains=None if explains is None else bools(explains),
    )  # fmt: skip


def test_a_broader_detector_gives_way_only_where_and_to_whom_it_is_said() -> None:
    said = give_way(
        [
            (_Says("broad"), _verdict([True, True, False])),  # type: ignore[list-item]
            (_Says("other"), _verdict([True, True, True])),  # type: ignore[list-item]
            (_Says("narrow", ("broad",)), _verdict([False, True, False], [False, True, False])),  # type: ignore[list-item]
        ]
    )
    assert {detector.kind: verdict.on.tolist() for detector, verdict in said} == {
        "broad": [True, False, False],
        "other": [True, True, True],
        "narrow": [False, True, False],
    }
