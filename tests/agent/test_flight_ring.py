"""The ring of the flight recorder: what is read is the newest looks, in order, whatever happens meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unidle_agent.fields import BY_NAME
from unidle_agent.flight.ring import _RECORD_BYTES, PLACES, RECORDED, WINDOW_S, Ring, bytes_per_gpu
from unidle_agent.flight.slots import slots

STEP_NS = 200_000_000


@pytest.fixture
def ring() -> Iterator[Ring]:
    made = Ring.create(5)
    yield made
    made.close()


def test_every_recorded_field_is_a_gpu_field_of_the_table() -> None:
    assert {BY_NAME[name].scope for name in RECORDED} == {"gpu"}
    assert len(set(RECORDED)) == len(RECORDED)


@settings(max_examples=60)
@given(st.integers(1, 150), st.lists(st.integers(0, 3), max_size=400))
def test_what_is_read_is_the_newest_looks_of_each_gpu_in_order(per_window: int, gpus: list[int]) -> None:
    ring = Ring.create(per_window / WINDOW_S)
    try:
        written: dict[str, list[tuple[int, float]]] = {}
        for number, gpu in enumerate(gpus):
            ring.write(f"GPU-{gpu}", number, {"power_w": float(number)})
            written.setdefault(f"GPU-{gpu}", []).append((number, float(number)))
        for gpu, looks in written.items():
            read = ring.read(gpu)
            newest = looks[-ring.capacity :]
            assert list(zip(read.times_ns, read.columns["power_w"], strict=True)) == newest
            assert set(read.columns) == {"power_w"}
    finally:
        ring.close()


def test_a_look_keeps_zero_and_leaves_out_what_is_unknown_or_does_not_fit(ring: Ring) -> None:
    ring.write("GPU-a", 1, {"power_w": 0.0, "temperature_c": 1e60})
    ring.write("GPU-a", 2, {"clock_event_reasons": 0x140, "memory_used_bytes": 85520809984.0})
    looks = ring.read("GPU-a")
    assert looks.columns["power_w"][0] == 0.0
    assert looks.columns["power_w"][1] != looks.columns["power_w"][1]
    assert looks.columns["clock_event_reasons"][1] == 0x140
    assert looks.columns["memory_used_bytes"][1] == pytest.approx(85520809984, rel=1e-7)
    assert "temperature_c" not in looks.columns


def test_only_two_minutes_before_the_newest_look_are_given(ring: Ring) -> None:
    ring.write("GPU-a", 0, {"power_w": 1.0})
    for number in range(5):
        ring.write("GPU-a", int((WINDOW_S + 10 + number) * 1e9), {"power_w": 2.0})
    assert list(ring.read("GPU-a").columns["power_w"]) == [2.0] * 5


def test_a_gpu_that_was_never_looked_at_has_no_looks_and_too_many_gpus_cost_only_themselves(
    ring: Ring,
) -> None:
    for number in range(PLACES + 1):
        ring.write(f"GPU-{number}", number, {"power_w": float(number)})
    assert not ring.read("GPU-of-another-node").times_ns
    assert not ring.read(f"GPU-{PLACES}").times_ns
    assert list(ring.read(f"GPU-{PLACES - 1}").columns["power_w"]) == [PLACES - 1]


def test_a_record_that_is_half_written_is_no_look(ring: Ring) -> None:
    for number in range(3):
        ring.write("GPU-a", number, {"power_w": float(number)})
    whole = ring._memory[:]
    last = ring._first(0) + 3 * _RECORD_BYTES
    for cut in (1, 9, 20, 40):  # as a writer leaves it that is killed in the middle
        ring._memory[last + cut] ^= 0xFF
        assert list(ring.read("GPU-a").columns["power_w"]) == [0.0, 1.0]
        ring._memory[:] = whole


def test_a_reader_beside_a_busy_writer_sees_whole_looks_in_order(ring: Ring) -> None:
    """The value says which look it is: a mixture of two would not fit its time."""
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            ring.write("GPU-a", number * STEP_NS, dict.fromkeys(RECORDED, float(number % 4096)))
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(40):
            looks = ring.read("GPU-a")
            numbers = [time_ns // STEP_NS for time_ns in looks.times_ns]
            assert numbers == sorted(set(numbers))
            for values in looks.columns.values():
                assert [number % 4096 for number in numbers] == list(values)
    finally:
        stop.set()
        writer.join()


WRITER = """
import os, sys
from unidle_agent.flight.ring import Ring
ring, first = Ring.attach(int(sys.argv[1])), int(sys.argv[2])
for number in range(first, first + 10):
    ring.write("GPU-a", number * 200_000_000, {"power_w": float(number)})
print("written", flush=True)
sys.stdin.read()
"""


def test_what_a_killed_process_saw_is_still_there_and_the_next_goes_on_behind_it(ring: Ring) -> None:
    for first in (0, 10):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(ring.fd), str(first)],
            pass_fds=(ring.fd,),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stdout.readline() == b"written\n"
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdin.close()
        child.stdout.close()
    assert list(ring.read("GPU-a").columns["power_w"]) == [float(number) for number in range(20)]


def test_the_ring_of_another_version_is_left_alone(ring: Ring) -> None:
    same = Ring.attach(os.dup(ring.fd))
    assert same is not None
    same.close()
    ring._memory[12] ^= 1
    assert Ring.attach(ring.fd) is None


def test_looks_are_read_in_order_of_time_whatever_order_they_were_written_in(ring: Ring) -> None:
    for number in (3, 1, 2):
        ring.write("GPU-a", number * STEP_NS, {"power_w": float(number)})
    assert list(ring.read("GPU-a").columns["power_w"]) == [1.0, 2.0, 3.0]


def test_eight_gpus_at_the_default_rate_take_less_than_a_mebibyte() -> None:
    assert 8 * bytes_per_gpu(2 * 5 + 1) < 2**20


def test_pieces_of_buffers_become_means_of_slots_that_end_now() -> None:
    pieces = {
        "power_w": [(0.1, 100.0), (0.1, 200.0), (0.1, 300.0), (0.1, 500.0)],
        "sm_clock_hz": [(0.3, 2e9)],
    }
    (old_s, old), (new_s, new) = slots(pieces, 0.2)
    assert (old_s, new_s) == (0.2, 0.0)
    assert old == {"power_w": pytest.approx(150.0)}
    assert new == {"power_w": pytest.approx(400.0), "sm_clock_hz": pytest.approx(2e9)}
    assert list(slots(pieces, float("inf"))) == []
    assert list(slots({}, 0.2)) == []
