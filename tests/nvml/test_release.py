"""`unidle agent release`: the driver is let go of while it is asked for, and no longer."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.nvml_library import FakeNvml, ShiftedClock, gpu

from unidle_agent.errors import SourceError, UnidleError
from unidle_agent.poller import PolledNvml
from unidle_agent.release import MAX_RELEASE_S, SOCKET, Control, ReleasableSource, ask
from unidle_agent.sample import Reading

PATIENCE_S = 20.0
RELEASED_AT_S = 1_700_000_000.0  # 2023-11-14 22:13:20 UTC


@pytest.fixture
def clock() -> ShiftedClock:
    return ShiftedClock()


@pytest.fixture
def polled() -> Iterator[list[PolledNvml]]:
    """Every NVML source that was built."""
    built: list[PolledNvml] = []
    yield built
    for source in built:
        source.close()


@pytest.fixture
def source(nvml: FakeNvml, polled: list[PolledNvml], clock: ShiftedClock) -> ReleasableSource:
    nvml.write(gpu(0), gpu(1))

    def build() -> PolledNvml:
        polled.append(PolledNvml("off", deadline_s=2.0, monotonic=clock))
        return polled[-1]

    return ReleasableSource("nvml", 10, build, required=True, monotonic=clock, time_s=lambda: RELEASED_AT_S)


def holders(parent: int | None = None) -> set[int]:
    """Children of `parent` (this process), and itself where it is another, that have the library mapped."""
    top = parent or os.getpid()
    found = set()
    for path in Path("/proc").iterdir():
        if not path.name.isdecimal():
            continue
        try:
            above = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            # This test's own process has loaded it for the fixture.
            if (above == top or int(path.name) == parent) and "libnvidia-ml" in (path / "maps").read_text():
                found.add(int(path.name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


@contextmanager
def listening(folder: Path, source: ReleasableSource, patience_s: float = PATIENCE_S) -> Iterator[Control]:
    control = Control(folder, source, patience_s)
    try:
        yield control
    finally:
        control.close()


def read_until(source: ReleasableSource, wanted: Callable[[Reading], bool]) -> Reading:
    for _ in range(300):
        reading = source.read()
        if wanted(reading):
            return reading
        time.sleep(0.02)
    raise AssertionError(f"no reading was as wanted, the last was {reading}")


def answers(reading: Reading) -> bool:
    return len(reading.gpus) == 2 and all(row.values.get("gpu_state") == 0 for row in reading.gpus)


def release(source: ReleasableSource, for_s: float) -> tuple[bool, str]:
    """As the agent does it: one thread asks, another reads."""
    given: list[tuple[bool, str]] = []
    asker = threading.Thread(target=lambda: given.append(source.release(for_s, PATIENCE_S)))
    asker.start()
    while asker.is_alive():
        source.read()
        asker.join(0.02)
    return given[0]


def test_while_released_no_process_holds_the_library_and_rows_are_unknown(source: ReleasableSource) -> None:
    read_until(source, answers)
    assert len(holders()) == 1, "the child holds it while it samples"
    ok, text = release(source, 600)
    assert (ok, text) == (True, "the agent holds nothing of the driver until 2023-11-14 22:23:20 UTC")
    assert holders() == set()
    reading = source.read()
    assert [row.values for row in reading.gpus] == [{}, {}], "unknown, neither healthy nor lost"
    assert [row.facts.index for row in reading.gpus] == [0, 1]
    assert reading.problems == (
        "released until 2023-11-14 22:23:20 UTC; `unidle agent release --now` takes hold again at once",
    )


def test_it_takes_hold_again_by_itself_when_the_time_is_over(
    source: ReleasableSource, clock: ShiftedClock
) -> None:
    read_until(source, answers)
    release(source, 600)
    clock.ahead_s += 599
    assert source.read().problems
    assert holders() == set()
    clock.ahead_s += 2
    assert read_until(source, answers).problems == ()
    assert len(holders()) == 1


def test_now_takes_hold_again_early(source: ReleasableSource) -> None:
    read_until(source, answers)
    release(source, 600)
    assert source.release(0, PATIENCE_S) == (True, "the agent takes hold of the driver at its next sample")
    read_until(source, answers)


def test_a_gpu_that_is_gone_after_the_release_is_lost_not_forgotten(
    nvml: FakeNvml, source: ReleasableSource
) -> None:
    read_until(source, answers)
    release(source, 600)
    nvml.write(gpu(0))
    source.release(0, PATIENCE_S)
    reading = read_until(source, lambda reading: any(row.values for row in reading.gpus))
    states = {row.facts.uuid[-1]: row.values.get("gpu_state") for row in reading.gpus}
    assert states == {"0": 0, "1": 1}


def test_a_release_asked_for_before_there_is_a_driver_keeps_the_agent_off_it(
    nvml: FakeNvml, source: ReleasableSource
) -> None:
    nvml.answers.unlink()
    with pytest.raises(SourceError, match="not loaded"):
        source.read()
    assert release(source, 60)[0]
    nvml.write(gpu(0))
    assert source.read().gpus == ()
    assert holders() == set()


def test_a_process_that_cannot_be_ended_is_said_and_is_no_success(
    source: ReleasableSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_until(source, answers)
    monkeypatch.setattr(PolledNvml, "held", 1)
    ok, text = release(source, 600)
    assert not ok
    assert "wants a reboot" in text


def test_the_socket_is_for_its_owner_alone_and_goes_with_the_agent(
    source: ReleasableSource, tmp_path: Path
) -> None:
    folder = tmp_path / ("deep" * 20) / ("er" * 40)  # longer than the address of a socket may be
    with listening(folder, source):
        mode = (folder / SOCKET).stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
        assert "at its next sample" in ask(folder, 0)
    assert list(folder.iterdir()) == []


def test_a_socket_left_by_a_killed_agent_is_taken_over_and_a_live_one_is_not(
    source: ReleasableSource, tmp_path: Path
) -> None:
    with listening(tmp_path, source) as first:
        os.link(tmp_path / SOCKET, tmp_path / "kept")
        with pytest.raises(OSError, match="another agent"):
            Control(tmp_path, source, PATIENCE_S)
        first.close()
    (tmp_path / "kept").rename(tmp_path / SOCKET)
    with pytest.raises(UnidleError, match="no agent answers"):
        ask(tmp_path, 0)
    with listening(tmp_path, source):
        assert ask(tmp_path, 0)


@pytest.mark.parametrize("for_s", [-1.0, MAX_RELEASE_S + 1, float("nan")])
def test_a_time_that_cannot_be_is_refused(source: ReleasableSource, tmp_path: Path, for_s: float) -> None:
    with listening(tmp_path, source), pytest.raises(UnidleError, match="expected 0 to 86400 seconds"):
        ask(tmp_path, for_s)


def test_without_an_agent_the_command_says_what_to_look_at(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "unidle_agent.cli", "agent", "release", "--state-dir", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "no agent answers" in done.stderr
    assert "state_dir" in done.stderr


def test_an_agent_that_reads_too_long_is_no_success(source: ReleasableSource, tmp_path: Path) -> None:
    with (
        listening(tmp_path, source, patience_s=0.05),
        pytest.raises(UnidleError, match="in the middle of a read"),
    ):
        ask(tmp_path, 60)


def test_the_command_frees_the_driver_of_a_running_agent(nvml: FakeNvml, tmp_path: Path) -> None:
    nvml.write(gpu(0))
    known = {key: text for key, text in os.environ.items() if not key.startswith("UNIDLE_AGENT")}
    here = known | {"UNIDLE_AGENT_STATE_DIR": str(tmp_path / "state"), "UNIDLE_AGENT_PORT": "0"}
    command = [sys.executable, "-m", "unidle_agent.cli", "agent"]
    agent = subprocess.Popen([*command, "--period-s", "0.1"], env=here, stderr=subprocess.PIPE, text=True)
    try:
        assert agent.stderr is not None
        for line in agent.stderr:
            if "source nvml: 1 GPUs" in line:
                break
        assert len(holders(agent.pid)) == 1
        for words, holding in ((["--for", "10m"], 0), (["--now"], 1)):
            done = subprocess.run(
                [*command, "release", *words], env=here, capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 0, done.stderr
            for _ in range(0 if holding == 0 else 300):
                if len(holders(agent.pid)) == holding:
                    break
                time.sleep(0.02)
            assert len(holders(agent.pid)) == holding, done.stdout
    finally:
        agent.kill()
        agent.communicate()
