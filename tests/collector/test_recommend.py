"""What is recommended: every statement complete, nothing executed, names never reach a shell raw."""

from __future__ import annotations

import shlex
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.collector.fleets import HEALTHY, HELD, recording
from tests.collector.test_detectors import one_gpu
from tests.collector.test_faults import after, sticky

from unidle_collector.model import Finding, GpuRef
from unidle_collector.recommend import HORIZON_H, gain_if_it_lasts, recommend
from unidle_collector.replay import replay

HOUR_NS = 3600 * 10**9


def idle(**changes: object) -> Finding:
    (finding,) = replay(recording(HELD, minutes=60, period_s=10)).findings
    return replace(finding, **changes)  # type: ignore[arg-type]


def throttled() -> Finding:
    columns = HEALTHY | {
        "clock_event_reasons": one_gpu(0x24, 0x4, 2, 6),
        "sm_clock_hz": one_gpu(1.2e9, 1.75e9, 2, 6),
    }
    return replay(recording(columns, minutes=6)).findings[0]


def broken(**columns: object) -> Finding:
    (finding,) = replay(recording(HEALTHY | columns, minutes=12)).findings  # type: ignore[arg-type]
    return finding


def fatal(code: int, asks: float | None = None) -> Finding:
    asked = {} if asks is None else {"recovery_action": after(6, asks, 0)}
    return broken(last_xid=sticky(6, code), **asked)


def lost() -> Finding:
    return broken(gpu_state=after(6, 1, 0, each_s=1))


@pytest.mark.parametrize(
    "finding",
    [idle(), throttled(), fatal(119), fatal(79), lost()],
    ids=["idle", "throttled", "xid", "off the bus", "lost"],
)
def test_every_statement_of_a_recommendation_is_there(finding: Finding) -> None:
    (item,) = recommend([finding], finding.updated_ns)
    empty = [part.name for part in fields(item) if getattr(item, part.name) in ("", ())]
    assert set(empty) <= {"job", "user"}
    assert item.finding_ids == (finding.id,)
    assert 0 < item.gain.low.gpu_h < item.gain.expected.gpu_h < item.gain.high.gpu_h


@pytest.mark.parametrize(
    ("kind", "cause", "recommended"),
    [
        ("straggler", "straggler", "leave_out_straggler"),
        ("pipeline_imbalance", "pipeline_imbalance", "even_stages"),
        ("checkpoint_stall", "checkpoint", "save_asynchronously"),
        ("tcp_fallback", "tcp_fallback", "return_to_fabric"),
    ],
)
def test_causes_between_the_gpus_of_a_job_call_for_one_change_to_it(
    kind: str, cause: str, recommended: str
) -> None:
    finding = idle(kind=kind, cause=cause)
    (item,) = recommend([finding], finding.updated_ns)
    assert (item.kind, item.lever, item.finding_ids) == (recommended, "fix", (finding.id,))
    assert {part.name for part in fields(item) if getattr(item, part.name) in ("", ())} <= {"job", "user"}


SLOW = (GpuRef("node-2", "GPU-b", 3), GpuRef("node-2", "GPU-c", 5), GpuRef("node-9", "GPU-d", None))


def test_a_straggler_is_left_out_by_its_own_node_and_gpus() -> None:
    finding = idle(kind="straggler", cause="straggler", held_back_by=SLOW, job="4711")
    (item,) = recommend([finding], finding.updated_ns)
    lines = item.command.splitlines()
    assert "ssh node-2 nvidia-smi -q -d CLOCK,PERFORMANCE -i 3,5" in lines
    assert "ssh node-9 nvidia-smi -q -d CLOCK,PERFORMANCE -i GPU-d" in lines
    assert [line.split()[2] for line in lines if "State=drain" in line] == [
        "NodeName=node-2",
        "NodeName=node-9",
    ]
    assert lines[-1].startswith("scontrol requeue 4711 ")
    assert item.undo.splitlines() == [
        f"scontrol update NodeName={node} State=resume" for node in ("node-2", "node-9")
    ]


def test_a_straggler_under_kubernetes_has_its_node_cordoned() -> None:
    finding = idle(kind="straggler", cause="straggler", held_back_by=SLOW[:1], job="team/pod-1")
    (item,) = recommend([finding], finding.updated_ns)
    assert "kubectl cordon node-2" in item.command.splitlines()
    assert item.undo == "kubectl uncordon node-2"
    assert "scontrol" not in item.command


@pytest.mark.parametrize(
    "finding", [throttled(), fatal(119), fatal(79), lost()], ids=["hot", "xid", "bus", "lost"]
)
def test_a_node_under_kubernetes_is_never_repaired_by_commands_of_slurm(finding: Finding) -> None:
    (item,) = recommend([replace(finding, job="team/pod-1")], finding.updated_ns)
    lines = item.command.splitlines()
    assert lines[0] == "kubectl cordon node-1"
    assert item.undo == "kubectl uncordon node-1"
    assert not any(word in item.command for word in ("scontrol", "squeue"))


def test_a_straggler_that_nobody_names_drains_no_node() -> None:
    finding = idle(kind="straggler", cause="straggler", held_back_by=())
    (item,) = recommend([finding], finding.updated_ns)
    assert "State=drain" not in item.command
    assert finding.id in item.command


def test_the_heaviest_stage_is_named_where_its_layers_are_to_be_moved() -> None:
    finding = idle(kind="pipeline_imbalance", cause="pipeline_imbalance", held_back_by=SLOW[:2])
    (item,) = recommend([finding], finding.updated_ns)
    assert "the stage on GPU 3, 5 of node-2" in item.command


def test_a_fallback_that_is_not_certain_calls_for_nothing() -> None:
    finding = idle(kind="tcp_fallback", cause="undetermined")
    assert recommend([finding], finding.updated_ns) == []


def test_a_fatal_xid_is_repaired_as_the_driver_asks_else_as_the_catalogue_says() -> None:
    commands = {}
    for name, finding in (
        ("catalogue: reset", fatal(119)),
        ("catalogue: reboot", fatal(54)),
        ("driver: reboot", fatal(119, asks=2)),
        ("driver: reset", fatal(54, asks=1)),
    ):
        (item,) = recommend([finding], finding.updated_ns)
        assert item.kind == "repair_xid"
        commands[name] = item.command.splitlines()
    for name, lines in commands.items():
        assert lines[0].startswith("scontrol update NodeName=node-1 State=drain Reason="), name
        assert ("scontrol reboot ASAP" in lines[1]) == name.endswith("reboot"), name
    assert commands["catalogue: reset"][2:] == [
        "ssh node-1 unidle agent release --for 10m",
        "ssh node-1 nvidia-smi --gpu-reset -i 0",
        "ssh node-1 unidle agent release --now",
        "scontrol update NodeName=node-1 State=resume",
    ]


@pytest.mark.parametrize(
    ("field", "replaced"),
    [("row_remap_pending", False), ("row_remap_failed", True), ("sram_threshold_exceeded", True)],
)
def test_memory_is_reset_or_replaced_and_no_gain_is_claimed(field: str, replaced: bool) -> None:
    finding = broken(**{field: after(6, 1, 0)})
    (item,) = recommend([finding], finding.updated_ns)
    assert (item.kind, item.lever) == ("repair_memory", "fix")
    assert item.gain.high.gpu_h == 0
    assert ("have it replaced" in item.command) == replaced
    assert ("unidle agent release --for 10m" in item.command) == (not replaced)


def test_spares_that_are_used_up_call_for_nothing_yet() -> None:
    finding = broken(bank_groups_no_spares=after(6, 1, 0))
    assert finding.severity == "info"
    assert "bank_groups_no_spares is 1" in [item.text for item in finding.evidence]
    assert recommend([finding], finding.updated_ns) == []


def test_a_lost_gpu_wants_its_node_off_and_on() -> None:
    (item,) = recommend([lost()], lost().updated_ns)
    assert item.kind == "power_cycle_lost"
    assert "poweroff" in item.command
    assert "gpu-reset" not in item.command


@pytest.mark.parametrize(
    "finding",
    [fatal(119), fatal(79), lost(), idle(kind="straggler", cause="straggler")],
    ids=["reset", "reboot", "lost", "straggler"],
)
def test_a_nodes_name_never_becomes_a_second_command(finding: Finding) -> None:
    odd = GpuRef("a;rm -rf /", "a;rm -rf /")
    (item,) = recommend([replace(finding, nodes=(odd.node,), held_back_by=(odd,))], finding.updated_ns)
    for line in item.command.splitlines():
        assert not any(
            word in (";", "rm") or word.startswith("rm") for word in shlex.split(line, comments=True)
        )


def test_a_developing_finding_calls_for_nothing_yet() -> None:
    finding = idle(told_ns=None)
    assert recommend([finding], finding.updated_ns) == []


@given(st.floats(0.0, 1e4))
def test_a_gain_never_goes_beyond_its_horizon(lasted_h: float) -> None:
    finding = _finding
    gain = gain_if_it_lasts(finding, finding.since_ns + int(lasted_h * HOUR_NS))
    assert gain.low.gpu_h <= gain.expected.gpu_h <= gain.high.gpu_h
    assert gain.high.gpu_h <= finding.cost_per_h.gpu_h * HORIZON_H + 1e-9


_finding = idle()


@given(st.text(min_size=1).filter(lambda text: "\n" not in text and "\r" not in text and "\0" not in text))
def test_a_name_never_becomes_a_second_command(name: str) -> None:
    finding = replace(_finding, job=f"team/{name.replace('/', '')}", nodes=(name,))
    (item,) = recommend([finding], finding.updated_ns)
    words = shlex.split(item.command, comments=True)
    assert not {";", "&&", "|", "`"} & set(words) - {name, name.replace("/", "")}


def test_the_most_worth_comes_first() -> None:
    small = replace(_finding, id="idle-small", cost_per_h=replace(_finding.cost_per_h, eur=1.0))
    items = recommend([small, _finding], _finding.updated_ns)
    assert [item.finding_ids[0] for item in items] == [_finding.id, "idle-small"]
