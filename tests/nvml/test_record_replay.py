"""`unidle agent record` and `--replay`: what was answered is answered again, bit for bit."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.nvml_library import FakeNvml, gpu

from unidle_agent.answers.calls import CALLS, INSTANCE_OWN
from unidle_agent.answers.file import Answers, Writer
from unidle_agent.answers.recorder import FIRST_STAND_IN_PID, Recorder
from unidle_agent.answers.stand_in import Library, install
from unidle_agent.errors import SourceError
from unidle_agent.sample import GPU_LOST, Tick, is_simulated, merge
from unidle_agent.sources.nvml import NvmlSource
from unidle_agent.sources.replay import ReplaySource

EVERY_S = 0.5
INSTANCE = {
    "uuid": "MIG-11111111-2222-3333-4444-555555555555",
    "name": "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
    "gpu_instance_id": 7,
    "gpu_slices": 1,
    "compute_slices": 1,
    "memory_mib": 9984,
    "memory.total": 1,
    "memory.reserved": 2,
    "memory.free": 3,
    "memory.used": 4,
    "processes": "",
    "gpm.2": 3.5,
}
EVERYTHING = {
    "vbios": "96.00.89.00.01",
    "platform.slot": 3,
    "platform.tray": 200,
    "platform.host": 1,
    "platform.peer": 0,
    "platform.module": 5,
    "board_part": "692-2G520-0200-000",
    "cores": 16896,
    "memory.bus_bits": 5120,
    "compute_capability.major": 9,
    "compute_capability.minor": 0,
    "architecture": 9,
    "numa_node": 1,
    "persistence_mode": 1,
    "compute_mode": 0,
    "ecc_mode": 1,
    "ecc_mode_pending": 0,
    "mig_mode": 0,
    "mig_max": 7,
    "pcie.generation_max": 5,
    "pcie.width_max": 16,
    "pcie.generation": 4,
    "pcie.width": 8,
    "power_limit_min_mw": 200000,
    "power_limit_max_mw": 700000,
    "power_limit_default_mw": 650000,
    "max_clock.graphics_mhz": 1980,
    "max_clock.sm_mhz": 1981,
    "max_clock.memory_mhz": 2619,
    "max_clock.video_mhz": 1545,
    "threshold.0_c": 95,
    "threshold.1_c": 90,
    "threshold.2_c": 105,
    "threshold.3_c": 88,
    "energy_mj": 987654321013,
    "clock.graphics_mhz": 1754,
    "clock.video_mhz": 1200,
    "performance_state": 0,
    "fabric.state": 3,
    "fabric.health": 2,
    "rows.corrected": 1,
    "rows.uncorrected": 2,
    "rows.pending": 0,
    "rows.failed": 1,
    "field.193": "i:-5",
    "field.197": "ull:18446744073709551614",
    "field.251": "d:0.1",
    "field.206.3": "us:65535",
    "field.297": "error:3",
    "clock.memory_mhz": "error:999",
}


class Clock:
    """Time that moves only when the recorder waits."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def wait(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def everything(nvml: FakeNvml) -> FakeNvml:
    """The library with every key of the table, and a MIG instance."""
    nvml.write(
        gpu(0, **{key.replace(".", "__"): value for key, value in EVERYTHING.items()}),
        gpu(1, mig_mode=1, mig_max=7, margin_c=-3, mig=[INSTANCE]),
    )
    return nvml


Play = Callable[[Library | Path], None]


@pytest.fixture
def play(nvml: FakeNvml) -> Iterator[Play]:
    """Put a stand-in, or that of a file, in the place of the C library, which is back afterwards."""
    before: list[Any] = []

    def _play(what: Library | Path) -> None:
        before.append(pynvml.nvmlLib)
        if isinstance(what, Path):
            install(what)
        else:
            pynvml.nvmlLib = what
            pynvml._nvmlGetFunctionPointer_cache.clear()

    yield _play
    if before:
        pynvml.nvmlLib = before[0]
        pynvml._nvmlGetFunctionPointer_cache.clear()


def recorded(instants: int = 1, wait: object = None, clock: object = time.monotonic) -> str:
    out = io.StringIO()
    recorder = Recorder(out, clock)  # type: ignore[arg-type]
    try:
        recorder.run(instants * EVERY_S, EVERY_S, wait or (lambda _: time.sleep(0.12)))  # type: ignore[arg-type]
    finally:
        recorder.close()
    return out.getvalue()


def replaying(text: str, play: Play) -> str:
    """The recording of a replay of `text`."""
    clock = Clock()
    play(Library(Answers(text), clock))
    return recorded(int(Answers(text).length_s / EVERY_S), clock.wait, clock)


def values(text: str) -> list[str]:
    """The lines that are answers, not what they cost."""
    return [line for line in text.splitlines() if ".us." not in line]


def test_every_answer_of_the_library_is_in_the_recording(everything: FakeNvml) -> None:
    answers = Answers(recorded())
    for line in everything.answers.read_text().splitlines():
        key, _, value = line.partition("=")
        if key.endswith((".uuid", ".serial", ".processes")):
            continue
        is_number = ".gpm." in key or ".event_reasons" in key or ".supported_events" in key
        came = answers.at(key, 0)
        assert came is not None, key
        assert (float(came) == float(value)) if is_number else (came == value), key


def test_every_call_of_the_table_is_covered_by_these_tests(everything: FakeNvml) -> None:
    answers = Answers(recorded())
    for call in (*CALLS, *INSTANCE_OWN):
        scope = "gpu.1.mig.0" if call in INSTANCE_OWN else "gpu.0"
        for key in call.keys:
            came = answers.at(f"{scope}.{key}", 0)
            assert came is not None
            assert not came.startswith("error:") or key == "clock.memory_mhz", key


def test_identities_are_replaced_by_stand_ins_that_stay(everything: FakeNvml) -> None:
    text = recorded()
    answers = Answers(text)
    assert "16500000000" not in text, "the serial number"
    assert "4711" not in text, "the process id"
    assert "11111111-2222" not in text, "the instance's UUID"
    assert answers.at("gpu.1.uuid", 0) == "GPU-00000000-0000-4000-8000-000000000001"
    assert answers.at("gpu.0.processes", 0) == answers.at("gpu.1.processes", 0)
    assert answers.at("gpu.0.processes", 0) == f"{FIRST_STAND_IN_PID}:63418925056"
    pid_max = int(Path("/proc/sys/kernel/pid_max").read_text())
    assert pid_max < FIRST_STAND_IN_PID, "no process of the machine that replays can be taken for it"


def test_a_replay_recorded_again_is_the_same_file(everything: FakeNvml, play: Play) -> None:
    first = recorded()
    assert values(replaying(first, play)) == values(first)


def test_the_c_library_plays_a_recording_the_same(everything: FakeNvml) -> None:
    first = recorded()
    everything.answers.write_text(first)
    assert values(recorded()) == values(first)


def test_changes_over_time_are_recorded_and_replayed_at_their_instants(nvml: FakeNvml, play: Play) -> None:
    nvml.write(gpu(0, supported_events=0x8008))
    steps = iter(
        [
            gpu(0, utilization__gpu=10, supported_events=0x8008, gpm__2=0.1 + 0.2),
            gpu(0, utilization__gpu=20, supported_events=0x8008, field__186="u:1"),
            gpu(
                0, utilization__gpu=20, supported_events=0x8008, xid__0=79, event__0="0x8000:2", processes=""
            ),
            gpu(0, utilization__gpu=30, utilization__memory="error:15"),
        ]
    )

    def move_on(_: float) -> None:
        time.sleep(0.12)  # what two samples of GPM must be apart
        if (step := next(steps, None)) is not None:
            nvml.write(step)

    text = recorded(4, move_on)
    answers = Answers(text)
    seen = [answers.at("gpu.0.utilization.gpu", number * EVERY_S) for number in range(4)]
    assert seen == ["10", "20", "20", "error:15"]
    assert answers.at("gpu.0.gpm.2", 0) == repr(0.1 + 0.2)
    assert answers.at("gpu.0.xid.0", EVERY_S) is None
    assert answers.at("gpu.0.xid.0", 2 * EVERY_S) == "79"
    assert answers.at("gpu.0.event.0", 2 * EVERY_S) == "0x8000:2"
    assert values(replaying(text, play)) == values(text)


def test_samples_of_buffers_are_recorded_and_replayed_once_each(nvml: FakeNvml, play: Play) -> None:
    ring = ";".join(["u", *(f"{0.1 * place:.1f}:{place + 30}" for place in range(-30, 40))])
    nvml.write(gpu(0, samples__1=ring, samples__0="u", samples__2="error:4"))
    with nvml.answers.open("a") as file:
        file.write(f"begins_s={time.monotonic() - 1.05}\n")
    text = recorded(4)
    lines = [line.partition("=")[2] for line in text.splitlines() if line.startswith("gpu.0.samples.1=u;")]
    seen = [sample.partition(":")[2] for line in lines for sample in line.split(";")[1:]]
    assert seen == [str(place) for place in range(len(seen))]
    assert len(seen) > 40
    answers = Answers(text)
    assert (answers.at("gpu.0.samples.0", 0), answers.at("gpu.0.samples.2", 0)) == ("u", "error:4")
    clock = Clock()
    play(Library(answers, clock))
    pynvml.nvmlInit()
    handle, last_us, played = pynvml.nvmlDeviceGetHandleByIndex(0), 0, list[int]()
    for _ in range(4):
        clock.now_s += 0.9 * EVERY_S
        try:
            _, samples = pynvml.nvmlDeviceGetSamples(handle, 1, last_us)
        except pynvml.NVMLError_NotFound:
            continue
        played += [sample.sampleValue.uiVal for sample in samples]
        last_us = samples[-1].timeStamp
    assert played == list(range(len(played)))
    assert len(played) > 20


def test_a_call_that_failed_and_answers_again_does_so_in_the_replay(nvml: FakeNvml, play: Play) -> None:
    faults = iter([{}, {(0, "nvmlDeviceGetFieldValues"): "error:999"}, {}])

    def move_on(_: float) -> None:
        time.sleep(0.12)
        if (fault := next(faults, None)) is not None:
            nvml.write(gpu(0), faults=fault)

    text = recorded(3, move_on)
    key = "gpu.0.fault.nvmlDeviceGetFieldValues"
    answers = Answers(text)
    assert [answers.at(key, number * EVERY_S) for number in range(3)] == [None, "error:999", ""]
    assert values(replaying(text, play)) == values(text)


def test_a_gpu_that_was_lost_while_recording_is_lost_in_the_replay(nvml: FakeNvml, play: Play) -> None:
    steps = iter([gpu(0), gpu(0, lost_from_call=1)])

    def move_on(_: float) -> None:
        time.sleep(0.12)
        if (step := next(steps, None)) is not None:
            nvml.write(step)

    text = recorded(2, move_on)
    clock = Clock()
    play(Library(Answers(text), clock))
    source = NvmlSource("off", monotonic=clock)
    assert source.read().gpus[0].values["power_w"] == 612.345
    clock.wait(EVERY_S)
    assert source.read().gpus[0].values == {"gpu_state": GPU_LOST}
    source.close()


def test_the_source_reads_a_replay_as_it_reads_the_driver(
    everything: FakeNvml, tmp_path: Path, play: Play
) -> None:
    (tmp_path / "node.txt").write_text(recorded())
    real = _two_reads()
    play(tmp_path / "node.txt")
    again = _two_reads()
    assert len(again) == 3, "a GPU, an instance, and the slices that are in none"
    assert again == real


def _two_reads() -> list[dict[str, float]]:
    """Values by row; the second read has what GPM gives between two."""
    clock = Clock()  # busy seconds are integrals over the source's own time
    source = NvmlSource("on", monotonic=clock)
    source.read()
    time.sleep(0.12)
    clock.wait(0.12)
    rows = [row.values for row in source.read().gpus]
    source.close()
    return rows


def test_the_file_begins_again_when_it_ends() -> None:
    answers = Answers("a=0\nlength_s=10\n[t=2]\na=1\n[t=4.5]\na=2\n")
    assert [answers.at("a", time_s) for time_s in (0, 1.9, 2, 4.4, 4.5, 9.9, 10, 12, 1000.1)] == list(
        "001122010"
    )
    assert answers.at("b", 3) is None
    assert Answers("a=0\n[t=2]\na=1\n").at("a", 1e9) == "1", "without a length the last value stays"


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from("abc"), st.text("xy=[]# ", max_size=4).map(lambda t: " ".join(t.split()))
        ),
        max_size=6,
    )
)
def test_whatever_is_written_is_read_at_every_instant(instants: list[dict[str, str]]) -> None:
    out = io.StringIO()
    writer = Writer(out)
    for number, lines in enumerate(instants):
        writer.instant(number, lines)
    answers, holds = Answers(out.getvalue()), {}
    for number, lines in enumerate(instants):
        holds |= lines
        assert {key: answers.at(key, number) for key in holds} == holds


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gpus=1\nnonsense\n", "line 2: expected key=value"),
        ("[t=2]\n[t=1]\n", "line 2: expected sections in order"),
        ("length_s=never\n", "expected length_s"),
        ("length_s=-1\n", "expected length_s"),
    ],
)
def test_a_file_that_is_no_recording_says_which_line(text: str, says: str) -> None:
    with pytest.raises(SourceError, match=says):
        Answers(text, "node.txt")


def test_every_replayed_row_is_marked_and_one_that_cannot_be_is_left_out(
    everything: FakeNvml, tmp_path: Path, play: Play
) -> None:
    (tmp_path / "node.txt").write_text(recorded())
    play(tmp_path / "node.txt")
    source = ReplaySource(NvmlSource("off"))
    tick: Tick = merge(0, [("replay", 10, source.read())])
    source.close()
    assert tick.gpus
    for row in tick.gpus:
        assert is_simulated(row.facts)
        assert set(row.facts.sources.values()) == {"replay"}


def test_record_and_replay_as_commands(everything: FakeNvml, tmp_path: Path) -> None:
    file = tmp_path / "node.txt"
    command = [sys.executable, "-m", "unidle_agent.cli", "agent"]
    done = subprocess.run(
        [*command, "record", str(file), "--for", "0.4s", "--period-s", "0.2"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "nvmlDeviceGetMemoryInfo_v2" in done.stdout, "what each call cost"
    without_driver = {
        key: text for key, text in os.environ.items() if not key.startswith(("UNIDLE_", "LD_LIBRARY_PATH"))
    }
    done = subprocess.run(
        [*command, "--once", "--replay", str(file), "--period-s", "0.5"],
        env=without_driver,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["simulated"] is True
    assert document["host"] == {}, "this host is not the recorded one"
    whole = document["gpus"][0]
    assert whole["values"]["power_w"] == 612.345
    assert whole["values"]["sm_active_ratio"] == 0.7125
    assert set(whole["sources"].values()) == {"replay"}


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["record"], 2, "expected the file to write to"),
        (["release", "node.txt"], 2, "takes no file"),
        (["--for", "10m"], 2, "belong to"),
        (["--once", "--replay", "/does/not/exist"], 1, "/does/not/exist: expected a file"),
    ],
)
def test_words_that_do_not_go_together_say_what_was_expected(words: list[str], code: int, says: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "unidle_agent.cli", "agent", *words],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code
    assert says in done.stderr + done.stdout
