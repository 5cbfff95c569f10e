"""PolledNvml: the real child process, the real pynvml, and a driver that hangs, crashes or goes away."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.nvml_library import FakeNvml, ShiftedClock, gpu

from unidle_agent.errors import SourceError
from unidle_agent.poller import MAX_RETRY_S, MAX_STUCK, PolledNvml
from unidle_agent.sample import GpuReading, Reading, Value
from unidle_agent.sources.nvml import NvmlSource
from unidle_agent.subsecond import INTEGRALS
from unidle_agent.wire import Owner

DEADLINE_S = 1.0
"""Half of it is what a busy machine may take for a few milliseconds of work."""
BLAME_S = 10.0
UTIL = "nvmlDeviceGetUtilizationRates"

Poll = Callable[..., PolledNvml]


@pytest.fixture
def clock() -> ShiftedClock:
    return ShiftedClock()


@pytest.fixture
def polled(nvml: FakeNvml, clock: ShiftedClock) -> Iterator[Poll]:
    sources: list[PolledNvml] = []

    def _poll(gpm: str = "off", **options: Any) -> PolledNvml:
        options = {
            "fast_hz": 0.0,
            "deadline_s": DEADLINE_S,
            "blame_s": BLAME_S,
            "monotonic": clock,
            **options,
        }
        sources.append(PolledNvml(gpm, **options))
        return sources[-1]

    yield _poll
    for source in sources:
        source.close()


def uuid(number: int) -> str:
    return f"GPU-00000000-0000-4000-8000-{number:012d}"


def states(reading: Reading) -> dict[int, Value | None]:
    """Number of the GPU -> its gpu_state, None where nothing is known."""
    return {int(row.facts.uuid[-12:]): row.values.get("gpu_state") for row in reading.gpus}


def read_until(source: PolledNvml, wanted: Callable[[Reading], bool]) -> Reading:
    """Read as the agent does, every tick, until a reading is as wanted."""
    for _ in range(300):
        reading = source.read()
        if wanted(reading):
            return reading
        time.sleep(0.02)
    raise AssertionError(f"no reading was as wanted, the last was {reading}")


def without_integrals(row: GpuReading) -> dict[str, Value]:
    return {name: value for name, value in row.values.items() if name not in INTEGRALS}


def all_answer(reading: Reading) -> bool:
    return bool(reading.gpus) and set(states(reading).values()) == {0}


def alive(pid: int) -> bool:
    """Whether a process runs; a dead one that nobody has waited for does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


@contextlib.contextmanager
def unkillable(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Children stay when they are killed, as in uninterruptible sleep, and go in the end."""
    stuck: list[subprocess.Popen[bytes]] = []
    try:
        with monkeypatch.context() as patch:
            patch.setattr(subprocess.Popen, "kill", lambda process: stuck.append(process))
            yield stuck
    finally:
        for process in stuck:
            process.kill()


def wait_until_dead(pid: int) -> None:
    for _ in range(300):
        if not alive(pid):
            return
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError(f"process {pid} was still there")


def test_the_child_says_what_the_library_says(nvml: FakeNvml, polled: Poll) -> None:
    nvml.write(gpu(0), gpu(1, margin_c=-3, field__83="ull:18446744073709551614"))
    source = polled()
    here = NvmlSource("off")
    (ours, theirs) = read_until(source, all_answer).gpus, here.read().gpus
    assert [row.facts for row in ours] == [row.facts for row in theirs]
    assert [without_integrals(row) for row in ours] == [without_integrals(row) for row in theirs]
    here.close()
    assert source.counts == {"poller_restarts": 0}


def test_a_pass_wakes_the_agent_once_however_many_gpus_there_are(
    nvml: FakeNvml, polled: Poll, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml.write(*(gpu(number) for number in range(8)))
    source = polled()
    read_until(source, all_answer)
    waits = []
    real = select.select
    monkeypatch.setattr(select, "select", lambda *asked: waits.append(asked) or real(*asked))
    passes = 4
    for _ in range(passes):
        assert len(source.read().gpus) == 8
    # On a machine so busy that a pass takes half the deadline it looks once in between.
    assert passes <= len(waits) <= 2 * passes


def test_owners_cross_the_pipe(nvml: FakeNvml, polled: Poll) -> None:
    nvml.write(gpu(mig_mode=1, mig_max=7))
    owner = read_until(polled(), all_answer).gpus[0].facts.owner
    assert owner == Owner(allocated=False, source="nvml", confidence="high")


def test_a_refusal_is_reported_once_across_the_pipe(nvml: FakeNvml, polled: Poll) -> None:
    nvml.write(gpu(margin_c=None))
    source = polled()
    first = read_until(source, all_answer)
    assert any("margin temperature: unsupported" in text for text in first.problems)
    assert source.read().problems == ()


# Between two reads


def wait_for_looks(nvml: FakeNvml, more: int) -> None:
    """Until the child has looked at the first GPU `more` times by itself."""
    wanted = nvml.calls(UTIL, "gpu.0") + more
    for _ in range(500):
        if nvml.calls(UTIL, "gpu.0") >= wanted:
            return
        time.sleep(0.01)
    raise AssertionError(f"the child did not look at the GPU {more} times")


def test_the_child_looks_at_the_gpus_between_two_reads(nvml: FakeNvml, polled: Poll) -> None:
    source = polled(fast_hz=20.0)
    read_until(source, all_answer)
    nvml.write(gpu(utilization__gpu=0))
    wait_for_looks(nvml, 2)
    nvml.write(gpu(utilization__gpu=100))
    wait_for_looks(nvml, 2)
    values = source.read().gpus[0].values
    assert (values["gpu_util_ratio.min"], values["gpu_util_ratio.max"]) == (0.0, 1.0)
    assert 0 < values["gpu_util_ratio.zero"] < 1
    assert 0 < values["gpu_util_ratio"] < 1


def test_before_the_first_read_nothing_is_looked_at(nvml: FakeNvml, polled: Poll) -> None:
    polled(fast_hz=20.0)
    time.sleep(0.2)
    assert nvml.calls(UTIL) == 0


def test_a_gpu_that_hangs_in_a_look_is_named(nvml: FakeNvml, polled: Poll) -> None:
    gpus = [gpu(0), gpu(1)]
    nvml.write(*gpus)
    source = polled(fast_hz=20.0)
    read_until(source, all_answer)
    touched = nvml.calls(UTIL, "gpu.1")
    nvml.write(*gpus, faults={(1, UTIL): "hang"})
    for _ in range(500):
        if nvml.calls(UTIL, "gpu.1") > touched:
            break
        time.sleep(0.01)
    reading = source.read()
    assert states(reading)[1] == 2
    assert states(reading)[0] != 2
    assert read_until(source, lambda reading: states(reading) == {0: 0, 1: 2})
    assert source.counts == {"poller_restarts": 1}


def test_counters_of_this_agent_go_on_when_the_child_is_replaced(nvml: FakeNvml, polled: Poll) -> None:
    source = polled()
    read_until(source, all_answer)
    time.sleep(0.05)
    before = source.read().gpus[0].values["gpu_busy_s"]
    assert before > 0
    os.kill(source.child_pid or 0, signal.SIGKILL)
    after = [row.values["gpu_busy_s"] for row in read_until(source, all_answer).gpus]
    assert after == [before]
    assert source.read().gpus[0].values["gpu_busy_s"] > before


def test_an_event_reaches_the_agent_once_though_the_child_hangs_after_it(
    nvml: FakeNvml, polled: Poll
) -> None:
    source = polled(fast_hz=20.0)
    read_until(source, all_answer)
    nvml.write(gpu(xid__0=79))
    wait_for_looks(nvml, 2)
    nvml.write(gpu(xid__0=79), faults={(0, UTIL): "hang"})
    (event,) = source.read().events
    assert (event.gpu, event.kind, event.code) == (uuid(0), "xid", 79)
    assert source.read().events == ()


# A driver that hangs


def test_a_hung_gpu_is_named_and_only_it_suffers(nvml: FakeNvml, polled: Poll) -> None:
    gpus = [gpu(0), gpu(1), gpu(2)]
    nvml.write(*gpus)
    source = polled()
    read_until(source, all_answer)
    nvml.write(*gpus, faults={(1, UTIL): "hang"})
    reading = source.read()
    assert states(reading) == {0: 0, 1: 2, 2: None}
    assert reading.gpus[0].values["power_w"] == 612.345
    assert any(uuid(1) in text and "has not answered" in text for text in reading.problems)
    reading = read_until(source, lambda reading: states(reading)[2] == 0)
    assert states(reading) == {0: 0, 1: 2, 2: 0}
    assert source.counts == {"poller_restarts": 1}


def test_a_hung_gpu_is_left_alone_then_tried_last_then_left_alone_for_longer(
    nvml: FakeNvml, polled: Poll, clock: ShiftedClock
) -> None:
    gpus = [gpu(0), gpu(1), gpu(2)]
    nvml.write(*gpus)
    source = polled()
    read_until(source, all_answer)
    nvml.write(*gpus, faults={(0, UTIL): "hang"})
    source.read()
    read_until(source, lambda reading: states(reading) == {0: 2, 1: 0, 2: 0})
    touched = nvml.calls(UTIL, "gpu.0")
    for _ in range(3):
        source.read()
    assert nvml.calls(UTIL, "gpu.0") == touched
    clock.ahead_s += BLAME_S
    reading = source.read()
    assert states(reading) == {0: 2, 1: 0, 2: 0}, "the others were read before it"
    assert nvml.calls(UTIL, "gpu.0") == touched + 1
    assert any(f"tried again in {2 * BLAME_S:g} s" in text for text in reading.problems)
    nvml.write(*gpus)
    clock.ahead_s += BLAME_S
    assert states(read_until(source, lambda reading: states(reading)[1] == 0))[0] == 2
    clock.ahead_s += BLAME_S
    assert read_until(source, all_answer)
    assert source.counts == {"poller_restarts": 2}


def test_a_gpu_that_hangs_when_it_is_looked_for_is_named_too(nvml: FakeNvml, polled: Poll) -> None:
    gpus = [gpu(0), gpu(1)]
    nvml.write(*gpus)
    source = polled()
    read_until(source, all_answer)
    nvml.write(*gpus, faults={(0, "nvmlDeviceGetHandleByIndex_v2"): "hang"})
    os.kill(source.child_pid or 0, signal.SIGKILL)  # the next one makes the list of GPUs anew
    assert read_until(source, lambda reading: states(reading) == {0: 2, 1: 0})


def test_a_driver_that_hangs_as_a_whole_is_hung_for_every_gpu(nvml: FakeNvml, polled: Poll) -> None:
    gpus = [gpu(0), gpu(1)]
    nvml.write(*gpus)
    source = polled()
    read_until(source, all_answer)
    nvml.write(*gpus, faults={("driver", "nvmlEventSetWait_v2"): "hang"})
    assert states(source.read()) == {0: 2, 1: 2}
    nvml.write(*gpus)
    assert read_until(source, all_answer)


def test_a_driver_that_hangs_at_opening_is_given_its_time_then_replaced(
    nvml: FakeNvml, polled: Poll, clock: ShiftedClock
) -> None:
    nvml.write(gpu(), faults={("driver", "nvmlInitWithFlags"): "hang"})
    source = polled(start_s=30.0)
    assert source.restarts == 0
    assert source.read() == Reading(problems=("the NVIDIA driver is still opening",))
    clock.ahead_s += 30
    assert "the NVIDIA driver has not opened in 3" in source.read().problems[0]
    nvml.write(gpu())
    assert read_until(source, all_answer)


def test_one_sample_waits_for_a_driver_that_opens_slowly_and_shows_what_is_counted_between_two(
    nvml: FakeNvml,
) -> None:
    nvml.write(gpu(gpm__2=71.25), faults={("driver", "nvmlInitWithFlags"): "delay_ms:2500"})
    done = subprocess.run(
        [sys.executable, "-m", "unidle_agent.cli", "agent", "--once", "--gpm", "on", "--period-s", "0.5"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "still opening" in done.stderr, "otherwise this shows nothing"
    assert json.loads(done.stdout)["gpus"][0]["values"]["sm_active_ratio"] == 0.7125


def test_slow_gpus_are_slow_not_hung(nvml: FakeNvml, polled: Poll) -> None:
    gpus = [gpu(number) for number in range(6)]
    nvml.write(*gpus, faults={(number, UTIL): f"delay_ms:{DEADLINE_S / 4 * 1000:.0f}" for number in range(6)})
    source = polled()
    read_until(source, lambda reading: any("driver is slow" in text for text in reading.problems))
    answered: set[int] = set()
    while answered != set(range(6)):
        reading = states(source.read())
        assert 2 not in reading.values()
        answered |= {number for number, state in reading.items() if state == 0}
    assert source.restarts == 0


# A child that dies


def test_a_crash_is_blamed_on_the_gpu_it_happened_at(nvml: FakeNvml, polled: Poll) -> None:
    gpus = [gpu(0), gpu(1)]
    nvml.write(*gpus)
    source = polled()
    read_until(source, all_answer)
    nvml.write(*gpus, faults={(1, UTIL): "crash"})
    reading = source.read()
    assert states(reading) == {0: 0, 1: 2}
    assert any("the poller died (SIGSEGV)" in text for text in reading.problems)
    assert read_until(source, lambda reading: states(reading) == {0: 0, 1: 2})


def test_a_child_that_is_killed_between_two_passes_says_nothing_about_the_driver(
    nvml: FakeNvml, polled: Poll
) -> None:
    nvml.write(gpu(0), gpu(1))
    source = polled()
    read_until(source, all_answer)
    os.kill(source.child_pid or 0, signal.SIGKILL)
    reading = source.read()
    assert states(reading) == {0: None, 1: None}
    assert reading.problems == ("the poller died (SIGKILL), at no GPU in particular",)
    assert read_until(source, all_answer)


def test_a_child_that_keeps_dying_is_replaced_ever_more_rarely(
    nvml: FakeNvml, polled: Poll, clock: ShiftedClock
) -> None:
    source = polled(retry_s=2.0)
    read_until(source, all_answer)
    nvml.write(gpu(), faults={("driver", "nvmlInitWithFlags"): "crash"})
    os.kill(source.child_pid or 0, signal.SIGKILL)

    def ticks_until_restart() -> None:
        before = source.restarts
        read_until(source, lambda _: source.restarts > before)

    ticks_until_restart()
    ticks_until_restart()  # the first replacement came at once
    for wait_s in (2.0, 4.0, 8.0):
        assert source.child_pid is None
        clock.ahead_s += wait_s - 1
        source.read()
        assert source.child_pid is None
        clock.ahead_s += 1
        ticks_until_restart()
    nvml.write(gpu())
    clock.ahead_s += MAX_RETRY_S
    assert read_until(source, all_answer)


def test_a_killed_child_that_stays_in_the_kernel_is_not_waited_for(
    nvml: FakeNvml, polled: Poll, clock: ShiftedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = [gpu(0), gpu(1)]
    nvml.write(*gpus)
    source = polled()
    read_until(source, all_answer)
    nvml.write(*gpus, faults={(0, UTIL): "hang"})
    with unkillable(monkeypatch) as stuck:
        source.read()
        clock.ahead_s += BLAME_S
        touched = nvml.calls(UTIL, "gpu.0")
        assert read_until(source, lambda reading: states(reading) == {0: 2, 1: 0})
        assert len(stuck) == 1
        assert nvml.calls(UTIL, "gpu.0") == touched, "what it hangs on is not touched meanwhile"
    nvml.write(*gpus)
    assert read_until(source, all_answer)


def test_no_more_than_a_few_children_are_left_in_the_kernel(
    nvml: FakeNvml, polled: Poll, clock: ShiftedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    init = "nvmlInitWithFlags"
    source = polled()
    read_until(source, all_answer)
    nvml.write(gpu(), faults={("driver", init): "hang", ("driver", "nvmlEventSetWait_v2"): "hang"})
    with unkillable(monkeypatch) as stuck:
        source.read()
        for number in range(2, MAX_STUCK + 1):
            clock.ahead_s += MAX_RETRY_S
            read_until(source, lambda _, number=number: nvml.calls(init) == number)
            clock.ahead_s += MAX_RETRY_S
            source.read()
            assert len(stuck) == number
        clock.ahead_s += MAX_RETRY_S
        reading = source.read()
        assert source.child_pid is None
        assert states(reading) == {0: 2}
        assert "wants a reboot" in reading.problems[-1]
    nvml.write(gpu())
    assert read_until(source, all_answer)


@pytest.mark.parametrize("hung", [False, True])
def test_the_child_dies_with_the_agent(nvml: FakeNvml, hung: bool) -> None:
    nvml.write(gpu(), faults={(0, UTIL): "hang"} if hung else None)
    script = (
        "import sys, threading; from unidle_agent.poller import PolledNvml; source = PolledNvml('off');"
        "print(source.child_pid, flush=True); threading.Thread(target=sys.stdin.read).start(); source.read()"
        "; print('read', flush=True); sys.stdin.read()"
    )
    agent = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert agent.stdin is not None
    assert agent.stdout is not None
    child = int(agent.stdout.readline())
    if hung:  # wait for the call that never returns
        for _ in range(300):
            if nvml.calls(UTIL):
                break
            time.sleep(0.01)
    else:
        agent.stdout.readline()
    assert alive(child)
    agent.kill()
    wait_until_dead(child)
    agent.wait()
    agent.stdin.close()
    agent.stdout.close()


def test_close_ends_the_child(nvml: FakeNvml, polled: Poll) -> None:
    source = polled("on")
    read_until(source, all_answer)
    pid = source.child_pid
    assert pid is not None
    source.close()
    wait_until_dead(pid)
    assert nvml.calls("nvmlGpmSampleFree") == 2
    assert nvml.calls("nvmlShutdown") == 1


def test_a_signal_to_the_whole_group_leaves_the_child_to_the_agent(polled: Poll) -> None:
    source = polled()
    read_until(source, all_answer)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(source.child_pid or 0, number)
        assert all_answer(source.read())
    assert source.restarts == 0


# No driver


def test_without_the_library_it_says_so_in_one_line(
    nvml: FakeNvml, polled: Poll, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "no-driver"
    broken.mkdir()
    (broken / "libnvidia-ml.so.1").write_bytes(b"")  # hides a real one
    monkeypatch.setenv("LD_LIBRARY_PATH", str(broken))
    with pytest.raises(
        SourceError, match=r"libnvidia-ml\.so\.1 not found: install the NVIDIA driver"
    ) as caught:
        polled(deadline_s=30.0)
    assert "\n" not in str(caught.value)


def test_without_pynvml_it_says_what_to_install(
    nvml: FakeNvml, polled: Poll, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pynvml.py").write_text("raise ModuleNotFoundError(name='pynvml')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(SourceError, match=r"package pynvml is not installed: pip install"):
        polled(deadline_s=30.0)


def test_without_a_loaded_driver_it_says_so(nvml: FakeNvml, polled: Poll) -> None:
    nvml.answers.unlink()
    with pytest.raises(SourceError, match="not loaded"):
        polled(deadline_s=30.0)


def test_a_driver_that_is_unloaded_is_a_problem_and_comes_back(
    nvml: FakeNvml, polled: Poll, clock: ShiftedClock
) -> None:
    source = polled()
    read_until(source, all_answer)
    nvml.answers.unlink()
    os.kill(source.child_pid or 0, signal.SIGKILL)
    reading = read_until(source, lambda reading: any("not loaded" in text for text in reading.problems))
    assert [row.facts.uuid for row in reading.gpus] == [uuid(0)]
    nvml.write(gpu())
    clock.ahead_s += MAX_RETRY_S
    assert read_until(source, all_answer)


def test_a_gpu_that_a_new_child_does_not_find_is_lost(nvml: FakeNvml, polled: Poll) -> None:
    nvml.write(gpu(0), gpu(1))
    source = polled()
    read_until(source, all_answer)
    nvml.write(gpu(1))
    os.kill(source.child_pid or 0, signal.SIGKILL)
    assert read_until(source, lambda reading: states(reading) == {0: 1, 1: 0})


# What it costs


def test_the_agents_own_process_does_without_pynvml() -> None:
    script = "import sys, unidle_agent.poller; print(sorted({'pynvml', 'ssl', 'numpy'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", script]) == b"[]\n"


def test_the_child_needs_nothing_but_pynvml_and_msgpack() -> None:
    script = (
        "import sys; before = set(sys.modules); import unidle_agent.poller_child, unidle_agent.sources.nvml;"
        "print(*{name.partition('.')[0] for name in sys.modules.keys() - before"
        " if 'site-packages' in (getattr(sys.modules[name], '__file__', '') or '')})"
    )
    names = subprocess.check_output([sys.executable, "-c", script], text=True).split()
    assert set(names) == {"msgpack", "pynvml"}
