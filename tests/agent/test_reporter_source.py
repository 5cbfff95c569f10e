"""The agent's end of the in-job reporter: who may say what, and what becomes of it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unidle_agent.config import AgentSettings
from unidle_agent.errors import SourceError
from unidle_agent.fields import BY_NAME
from unidle_agent.injob import unidle_reporter
from unidle_agent.runtime import sources
from unidle_agent.sample import GpuReading, Reading, merge
from unidle_agent.sources import reporter
from unidle_agent.sources.reporter import ReporterSource
from unidle_agent.sources.reporter_ledger import FORGET_S, MAX_GPUS, Ledger, Message, parse
from unidle_agent.wire import GpuFacts

UUID = "GPU-5f587dd4-1111-2222-3333-444455556666"
OTHER = "GPU-5f587dd4-1111-2222-3333-444455556667"
GIB = 2**30


def document(number: int = 1, pid: int | None = None, **changes: Any) -> dict[str, Any]:
    gpu = {
        "i": 0,
        "uuid": UUID,
        "allocated": [10 * GIB, 12 * GIB],
        "reserved": [20 * GIB, 20 * GIB],
        "active": [11 * GIB, 13 * GIB],
        "inactive_split": [2 * GIB, 3 * GIB],
        "retries": 0,
        "ooms": 0,
    }
    gpu.update({key: changes.pop(key) for key in list(changes) if key in gpu})
    return {
        "v": 1,
        "n": number,
        "pid": os.getpid() if pid is None else pid,
        "rank": 0,
        "local_rank": 0,
        "steps": 10 * number,
        "step_time_s": 0.25,
        "wait_s": 0.5 * number,
        "dtype": "bfloat16",
        "gpus": [gpu],
        **changes,
    }


def message(number: int = 1, **changes: Any) -> Message:
    return parse(json.dumps(document(number, **changes)).encode())


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def source(tmp_path: Path, clock: Clock) -> Iterator[ReporterSource]:
    source = ReporterSource(tmp_path / "run" / "socket", proc=tmp_path / "proc", monotonic=clock)
    yield source
    source.close()


def send(source: ReporterSource, *messages: bytes | dict[str, Any]) -> None:
    """Send all, waiting for room: the tests want every one of them heard."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        for one in messages:
            sender.sendto(one if isinstance(one, bytes) else json.dumps(one).encode(), str(source._path))


def until(what: Callable[[], bool]) -> None:
    """Wait until the listening thread has done `what`."""
    end_s = time.monotonic() + 30
    while not what():
        assert time.monotonic() < end_s
        threading.Event().wait(0.005)


def test_what_a_job_says_is_a_reading_of_its_gpu(source: ReporterSource) -> None:
    send(source, document(1), document(2, retries=3))
    until(lambda: source.counts["messages"] == 2)
    (gpu,) = source.read().gpus
    assert gpu.facts.uuid == UUID
    assert gpu.values == {
        "torch_allocated_bytes": 10 * GIB,
        "torch_reserved_bytes": 20 * GIB,
        "torch_inactive_split_bytes": 2 * GIB,
        "torch_alloc_retries": 3,
        "torch_ooms": 0,
        "steps": 20,
        "step_time_s": 0.25,
        "data_wait_s": 1_000_000,
        "dtype_code": 4,
    }
    assert set(gpu.values) <= set(BY_NAME)


def test_a_real_job_is_heard_by_a_real_agent(source: ReporterSource) -> None:
    path = f"{Path(__file__).with_name('torch_tree')}:{Path(unidle_reporter.__file__).parent}"
    script = "import torch, unidle_reporter as u; u.start(); torch.optim.SGD([torch.Parameter()]).step()"
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": path, "UNIDLE_REPORTER": str(source._path)}
    subprocess.run([sys.executable, "-c", script], env=environ, check=True, timeout=60)
    until(lambda: source.counts["messages"] == 1)
    (gpu,) = source.read().gpus
    assert (gpu.values["steps"], gpu.values["dtype_code"]) == (1, 1)


def test_values_older_than_five_seconds_are_unknown(source: ReporterSource, clock: Clock) -> None:
    send(source, document())
    until(lambda: source.counts["messages"] == 1)
    clock.now_s += 5.0
    assert source.read().gpus
    clock.now_s += 0.1
    assert source.read().gpus == ()


def test_no_message_can_invent_a_gpu(source: ReporterSource) -> None:
    claim = document()
    claim["gpus"].append({**claim["gpus"][0], "uuid": OTHER})
    send(source, claim)
    until(lambda: source.counts["messages"] == 1)
    nvml = Reading((GpuReading(GpuFacts(OTHER, 0), {"power_w": 5.0}),))
    (row,) = merge(0, [("reporter", 30, source.read()), ("nvml", 10, nvml)]).gpus
    assert row.facts.uuid == OTHER
    assert row.values["power_w"] == 5.0
    assert row.values["torch_reserved_bytes"] == 20 * GIB
    assert row.facts.sources["torch_reserved_bytes"] == "reporter"


def test_a_message_in_the_name_of_another_process_is_forged(source: ReporterSource) -> None:
    send(source, document(pid=os.getppid()), document(pid=1), document())
    until(lambda: source.counts["messages"] == 1)
    assert source.counts["forged"] == 2
    assert len(source.read().gpus) == 1


def test_a_process_in_a_container_may_use_the_number_it_has_there(
    source: ReporterSource, tmp_path: Path
) -> None:
    status = tmp_path / "proc" / str(os.getpid()) / "status"
    status.parent.mkdir(parents=True)
    status.write_text(f"Name:\tpython\nNSpid:\t{os.getpid()}\t17\n")
    send(source, document(pid=17), document(pid=18))
    until(lambda: source.counts["forged"] == 1)
    assert source.counts["messages"] == 1


def test_a_sender_that_the_kernel_cannot_name_here_is_not_believed(source: ReporterSource) -> None:
    source._hear(json.dumps(document(pid=0)).encode(), 0, False, 0.0)
    assert (source.counts["unseen"], source.counts["messages"]) == (1, 0)


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\xff\x00",
        b"{",
        b"[]",
        b"null",
        b"[" * 8000,
        b'{"v":1}',
        b'{"v":2,"n":1,"pid":1,"gpus":[]}',
        b'{"v":1,"n":1e9,"pid":1,"gpus":[]}',
        b'{"v":1,"n":true,"pid":1,"gpus":[]}',
        b'{"v":1,"n":1,"pid":1,"gpus":' + json.dumps([{}] * 17).encode() + b"}",
        b'{"v":1,"n":' + b"9" * 6000 + b',"pid":1,"gpus":[]}',
    ],
)
def test_garbage_is_counted_and_the_next_message_heard(garbage: bytes, source: ReporterSource) -> None:
    send(source, garbage, document())
    until(lambda: source.counts["messages"] == 1)
    assert source.counts["malformed"] == 1


def test_a_message_over_the_limit_is_counted_unread(source: ReporterSource) -> None:
    send(source, json.dumps(document(pad="x" * 9000)).encode(), document())
    until(lambda: source.counts["messages"] == 1)
    assert source.counts["too_big"] == 1


def test_a_process_that_sends_too_fast_is_heard_five_times_a_second(
    source: ReporterSource, clock: Clock
) -> None:
    send(source, *(document(number) for number in range(1, 31)))
    until(lambda: source.counts["too_fast"] == 25)
    assert source.counts["messages"] == 5
    clock.now_s += 1.0
    send(source, document(31))
    until(lambda: source.counts["messages"] == 6)
    assert source.counts["lost"] == 25


def test_a_flood_is_left_in_the_kernel_until_the_second_is_over(
    source: ReporterSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporter, "MAX_PER_SECOND", 50)
    waited: list[float | None] = []
    monkeypatch.setattr(source._stop, "wait", lambda timeout_s=None: waited.append(timeout_s))
    send(source, *[b"flood"] * 50)
    until(lambda: bool(waited))
    assert waited[0] == pytest.approx(1.0)


def test_more_senders_than_can_be_told_apart_are_refused(
    source: ReporterSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporter, "MAX_SENDERS", 2)
    for pid in (7, 8, 9, 8):
        source._hear(json.dumps(document(pid=pid)).encode(), pid, False, 0.0)
    assert (source.counts["messages"], source.counts["too_fast"]) == (3, 1)


def test_passed_file_descriptors_are_not_kept(source: ReporterSource) -> None:
    def opened() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = opened()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(str(source._path))
        for number in range(1, 5):
            socket.send_fds(sender, [json.dumps(document(number)).encode()], [0, 1, 2])
    until(lambda: source.counts["messages"] == 4)
    assert opened() == before


def test_out_of_memory_is_logged_with_its_numbers(
    source: ReporterSource, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING"):
        send(source, document(oom={"i": 0, "asked": 3 * GIB, "limit": 80 * GIB, "free": GIB, "x": "%s"}))
        until(lambda: source.counts["messages"] == 1)
    assert f"out of memory on {UUID}: asked for 3.00 GiB, free 1.00 GiB of 80.00 GiB" in caplog.text
    assert source.counts["ooms"] == 1


def test_messages_without_a_gpu_are_counted_and_give_no_row(source: ReporterSource) -> None:
    send(source, document(gpus=[]), document(2, uuid="GPU-nonsense"), document(3, uuid=7))
    until(lambda: source.counts["messages"] == 3)
    assert source.counts["without_gpu"] == 3
    assert source.read().gpus == ()


# The socket


def test_any_user_may_write_and_the_socket_goes_with_the_agent(tmp_path: Path) -> None:
    path = tmp_path / "run" / "socket"
    source = ReporterSource(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    source.close()
    assert not path.exists()
    assert not source._thread.is_alive()


def test_a_killed_agents_socket_is_taken_over_a_living_ones_is_not(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as left:
        left.bind(str(path))
    source = ReporterSource(path)
    with pytest.raises(SourceError, match="another agent listens there"):
        ReporterSource(path)
    path.unlink()
    second = ReporterSource(path)
    source.close()
    assert path.exists(), "it is the second's socket now"
    second.close()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("precious")
    with pytest.raises(SourceError, match="reporter_socket"):
        ReporterSource(path)
    assert path.read_text() == "precious"


def test_the_setting_names_the_socket_and_empty_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert AgentSettings().reporter_path == Path("/run/unidle/reporter.sock")
    assert AgentSettings(state_dir=str(tmp_path)).reporter_path == tmp_path / "reporter.sock"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert AgentSettings(state_dir=str(tmp_path)).reporter_path == tmp_path / "reporter.sock"
    assert AgentSettings(reporter_socket="/x/y").reporter_path == Path("/x/y")
    off = AgentSettings(nvml="off", reporter_socket="")
    assert "reporter" not in [one.name for one in sources(off)]
    on = AgentSettings(nvml="off", reporter_socket=str(tmp_path / "socket"))
    assert ("reporter", 30) in [(one.name, one.precedence) for one in sources(on)]


# The ledger


def test_processes_of_one_gpu_add_up() -> None:
    ledger = Ledger()
    ledger.take(1, message(1, step_time_s=0.2, dtype="float16", ooms=1), 0.0)
    ledger.take(2, message(1, step_time_s=0.4, dtype="float32", reserved=[30 * GIB, 0], steps=7), 1.0)
    (gpu,) = ledger.readings(2.0)
    assert gpu.values["torch_reserved_bytes"] == 50 * GIB
    assert gpu.values["steps"] == 17
    assert gpu.values["torch_ooms"] == 1
    assert gpu.values["step_time_s"] == pytest.approx(0.3)
    assert gpu.values["dtype_code"] == 1


def test_a_job_that_ends_takes_nothing_back_and_the_next_counts_on() -> None:
    ledger = Ledger()
    ledger.take(1, message(1, steps=100), 0.0)
    ledger.take(1, message(2, steps=130), 1.0)
    ledger.take(2, message(1, steps=1), 7.0)
    (gpu,) = ledger.readings(7.0)
    assert gpu.values["steps"] == 131
    ledger.take(2, message(1, steps=5), 8.0)  # the same process id again: a new process
    (gpu,) = ledger.readings(8.0)
    assert gpu.values["steps"] == 136


def test_what_a_job_counted_before_the_agent_was_there_is_not_counted_as_now() -> None:
    ledger = Ledger()
    ledger.take(1, message(500, steps=9000, ooms=2), 0.0)
    ledger.take(1, message(501, steps=9004, ooms=3), 1.0)
    (gpu,) = ledger.readings(1.0)
    assert (gpu.values["steps"], gpu.values["torch_ooms"]) == (4, 1)


def test_a_gap_in_the_numbers_is_what_was_lost() -> None:
    ledger = Ledger()
    lost = [ledger.take(1, message(number), 0.0) for number in (1, 2, 5, 6, 1)]
    assert lost == [0, 0, 2, 0, 0]
    assert Ledger().take(1, message(40), 0.0) == 0


def test_what_is_not_said_is_unknown_and_never_zero() -> None:
    ledger = Ledger()
    bare = document(steps=None, step_time_s=None, wait_s=None, dtype="")
    bare["gpus"] = [{"i": 0, "uuid": UUID, "reserved": [0, 0]}]
    ledger.take(1, parse(json.dumps(bare).encode()), 0.0)
    (gpu,) = ledger.readings(0.0)
    assert gpu.values == {"torch_reserved_bytes": 0.0}


def test_a_number_format_without_a_code_is_code_0() -> None:
    ledger = Ledger()
    ledger.take(1, message(dtype="complex64"), 0.0)
    assert ledger.readings(0.0)[0].values["dtype_code"] == 0


def test_forgotten_processes_and_gpus_leave_room_for_others() -> None:
    ledger = Ledger()
    for number in range(MAX_GPUS):
        ledger.take(number, message(uuid=f"GPU-5f587dd4-1111-2222-3333-{number:012x}"), 0.0)
    ledger.take(1000, message(uuid=OTHER), 0.0)
    assert OTHER not in {gpu.facts.uuid for gpu in ledger.readings(0.0)}
    assert ledger.readings(FORGET_S + 1) == ()
    ledger.take(1000, message(uuid=OTHER), FORGET_S + 1)
    assert [gpu.facts.uuid for gpu in ledger.readings(FORGET_S + 1)] == [OTHER]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = ("v", "n", "pid", "rank", "steps", "step_time_s", "wait_s", "dtype", "gpus", "oom")


@given(st.binary(max_size=200))
def test_no_bytes_do_anything_but_parse_or_be_refused(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        parse(data)


@given(
    st.dictionaries(st.sampled_from(KEYS), JSON),
    st.dictionaries(st.sampled_from(["allocated", "reserved", "inactive_split", "retries", "ooms"]), JSON),
)
def test_whatever_stands_in_a_message_the_values_are_finite_and_not_negative(
    changes: dict[str, Any], gpu: dict[str, Any]
) -> None:
    claim = {**document(), **changes}
    claim.setdefault("gpus", [])
    if isinstance(claim["gpus"], list):
        claim["gpus"] = [*claim["gpus"], {"uuid": UUID, **gpu}]
    ledger = Ledger()
    try:
        ledger.take(1, parse(json.dumps(claim).encode()), 0.0)
    except ValueError:
        return
    for reading in ledger.readings(0.0):
        for name, value in reading.values.items():
            assert 0 <= value < 2**64, name


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 50)), max_size=30))
def test_counters_never_fall(told: list[tuple[int, int]]) -> None:
    ledger = Ledger()
    numbers: dict[int, int] = {}
    before = 0.0
    for pid, steps in told:
        numbers[pid] = numbers.get(pid, 0) + 1
        ledger.take(pid, message(numbers[pid], steps=steps), 0.0)
        now = ledger.readings(0.0)[0].values["steps"]
        assert now >= before
        before = now
