"""The spool: order, durability, bounds, damage."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unidle_agent.errors import UnidleError
from unidle_agent.segment import HEADER, MAGIC
from unidle_agent.spool import REJECTED_BYTES, SEGMENTS, Spool

DAY_S = 86400.0
HUGE = 2**40


class Clock:
    now = 10**18

    def __call__(self) -> int:
        return self.now


def drained(spool: Spool) -> list[tuple[int, bytes]]:
    out = []
    while (record := spool.peek()) is not None:
        out.append((record.seq, record.payload))
        spool.ack(record.seq)
    return out


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.seg"))


def test_batches_come_out_in_the_order_they_went_in_and_once(tmp_path: Path) -> None:
    spool = Spool(tmp_path, HUGE, DAY_S)
    assert [spool.append(b"%d" % number) for number in range(5)] == [1, 2, 3, 4, 5]
    assert spool.pending == 5
    assert drained(spool) == [(1, b"0"), (2, b"1"), (3, b"2"), (4, b"3"), (5, b"4")]
    assert (spool.pending, spool.dropped) == (0, 0)
    spool.close()


def test_peek_repeats_what_is_not_acknowledged(tmp_path: Path) -> None:
    spool = Spool(tmp_path, HUGE, DAY_S)
    spool.append(b"a")
    spool.append(b"b")
    assert [spool.peek().payload for _ in range(3)] == [b"a"] * 3
    spool.close()


def test_a_restart_sends_what_was_left_and_goes_on_with_the_sequence(tmp_path: Path) -> None:
    spool = Spool(tmp_path, HUGE, DAY_S)
    for number in range(4):
        spool.append(b"%d" % number)
    spool.peek()
    spool.ack(2)
    spool.close()
    again = Spool(tmp_path, HUGE, DAY_S)
    assert again.pending == 2
    assert again.next_seq == 5
    assert again.append(b"new") == 5
    assert drained(again) == [(3, b"2"), (4, b"3"), (5, b"new")]
    again.close()


def test_the_sequence_goes_on_after_a_restart_with_everything_acknowledged(tmp_path: Path) -> None:
    spool = Spool(tmp_path, HUGE, DAY_S)
    spool.append(b"a")
    assert drained(spool)
    spool.close()
    again = Spool(tmp_path, HUGE, DAY_S)
    assert again.peek() is None
    assert again.append(b"b") == 2
    again.close()


def test_boot_names_the_machine_s_boot_and_a_new_generation_at_each_start(tmp_path: Path) -> None:
    boot_id = tmp_path / "boot_id"
    boot_id.write_text("6f1c\n")
    boots = []
    for _ in range(2):
        spool = Spool(tmp_path / "s", HUGE, DAY_S, boot_id_file=boot_id)
        boots.append(spool.boot)
        spool.close()
    assert [boot.partition(".")[0] for boot in boots] == ["6f1c", "6f1c"]
    assert boots[0] != boots[1]


WRITER = """
    import sys
    from pathlib import Path
    from unidle_agent.spool import Spool
    spool = Spool(Path(sys.argv[1]), 1 << 40, 86400.0)
    while True:
        print(spool.append(b"x" * 1000), flush=True)
"""


def test_nothing_that_append_returned_for_is_lost_by_kill_9(tmp_path: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    lines = [writer.stdout.readline() for _ in range(50)]
    os.kill(writer.pid, signal.SIGKILL)
    lines += writer.stdout.readlines()
    writer.wait()
    writer.stdout.close()
    told = [int(line) for line in lines if line.endswith("\n")]
    spool = Spool(tmp_path, HUGE, DAY_S)
    kept = [seq for seq, payload in drained(spool) if payload == b"x" * 1000]
    spool.close()
    assert kept[: len(told)] == told
    assert len(kept) <= len(told) + 1


@given(cut=st.integers(0, 200), noise=st.binary(max_size=60))
@settings(max_examples=60)
def test_a_torn_end_costs_only_what_was_torn(
    tmp_path_factory: pytest.TempPathFactory, cut: int, noise: bytes
) -> None:
    folder = tmp_path_factory.mktemp("torn")
    spool = Spool(folder, HUGE, DAY_S)
    for number in range(6):
        spool.append(b"%d" % number * 10)
    spool.close()
    (segment,) = segments(folder)
    data = segment.read_bytes()
    kept = max(0, len(data) - cut)
    segment.write_bytes(data[:kept] + noise)
    size = HEADER.size + 10
    whole = max(0, (kept - len(MAGIC)) // size)
    again = Spool(folder, HUGE, DAY_S)
    assert [payload for _, payload in drained(again)] == [b"%d" % number * 10 for number in range(whole)]
    after = again.append(b"after")
    assert drained(again) == [(after, b"after")]
    again.close()
    third = Spool(folder, HUGE, DAY_S)
    assert drained(third) == []
    assert third.next_seq == after + 1
    third.close()


def test_over_its_bytes_the_oldest_go_first_and_are_counted(tmp_path: Path) -> None:
    most = SEGMENTS * 4096
    spool = Spool(tmp_path, most, DAY_S)
    for number in range(200):
        spool.append(b"%4d" % number + b"." * 1000)
    assert spool.size_bytes <= most
    kept = drained(spool)
    assert spool.dropped > 0
    assert len(kept) + spool.dropped == 200
    assert [seq for seq, _ in kept] == list(range(spool.dropped + 1, 201))
    spool.close()


def test_what_is_acknowledged_leaves_the_disk(tmp_path: Path) -> None:
    spool = Spool(tmp_path, SEGMENTS * 4096, DAY_S)
    for _ in range(40):
        spool.append(b"." * 1000)
    assert len(segments(tmp_path)) > 5
    drained(spool)
    assert len(segments(tmp_path)) == 1
    assert spool.dropped == 0
    spool.close()


def test_what_is_too_old_is_dropped_and_counted(tmp_path: Path) -> None:
    clock = Clock()
    spool = Spool(tmp_path, HUGE, 60.0, now_ns=clock)
    spool.append(b"old")
    spool.append(b"old too")
    clock.now += 50 * 10**9
    spool.append(b"young")
    clock.now += 20 * 10**9
    assert drained(spool) == [(3, b"young")]
    assert spool.dropped == 2
    spool.close()


def test_a_damaged_record_in_the_middle_loses_the_rest_of_its_segment_and_counts_it(tmp_path: Path) -> None:
    spool = Spool(tmp_path, SEGMENTS * 4096, DAY_S)
    for _ in range(12):
        spool.append(b"." * 1000)
    files = segments(tmp_path)
    assert len(files) >= 3
    second_first = int(files[1].stem)
    data = bytearray(files[0].read_bytes())
    data[len(MAGIC) + HEADER.size + 1005 + HEADER.size] ^= 1  # within the second record's payload
    files[0].write_bytes(data)
    assert [seq for seq, _ in drained(spool)] == [1, *range(second_first, 13)]
    assert spool.dropped == second_first - 2
    spool.close()


def test_damage_found_at_the_start_is_counted_too(tmp_path: Path) -> None:
    spool = Spool(tmp_path, SEGMENTS * 4096, DAY_S)
    for _ in range(12):
        spool.append(b"." * 1000)
    spool.close()
    first, second, *_ = segments(tmp_path)
    first.write_bytes(b"not a segment")
    again = Spool(tmp_path, SEGMENTS * 4096, DAY_S)
    assert [seq for seq, _ in drained(again)] == list(range(int(second.stem), 13))
    assert again.dropped == int(second.stem) - 1
    again.close()


def test_a_full_disk_keeps_batches_in_memory_and_in_order_until_it_takes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "unidle.agent")
    spool = Spool(tmp_path, HUGE, DAY_S)
    spool.append(b"on disk")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        # The kernel itself refuses to let the file grow: what a full disk or a quota looks like.
        size = segments(tmp_path)[0].stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, hard))
        for number in range(3):
            spool.append(b"waits %d" % number)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert "wait in memory" in spool.problem
    assert segments(tmp_path)[0].stat().st_size == size, "no half record stays behind"
    assert spool.pending == 4
    assert spool.peek().payload == b"on disk"
    spool.append(b"takes again")
    assert spool.problem == ""
    assert len([r for r in caplog.records if "wait in memory" in r.getMessage()]) == 1
    assert [payload for _, payload in drained(spool)] == [
        b"on disk",
        *(b"waits %d" % number for number in range(3)),
        b"takes again",
    ]
    spool.close()


def test_a_folder_that_cannot_be_made_means_memory_and_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    spool = Spool(tmp_path / "file" / "spool", HUGE, DAY_S)
    assert "wait in memory" in spool.problem
    spool.append(b"a")
    spool.append(b"b")
    assert drained(spool) == [(1, b"a"), (2, b"b")]
    spool.append(b"c")
    spool.close()
    assert spool.dropped == 1, "what is still in memory at the end is lost, and counted"


def test_memory_is_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unidle_agent.spool.MEMORY_BYTES", 10_000)
    (tmp_path / "file").write_text("")
    spool = Spool(tmp_path / "file" / "spool", HUGE, DAY_S)
    for _ in range(20):
        spool.append(b"." * 1000)
    assert spool.size_bytes <= 10_000
    assert spool.dropped == 20 - spool.pending
    assert drained(spool)[-1][0] == 20
    spool.close()


def test_a_rejected_batch_leaves_the_queue_for_a_bounded_file(tmp_path: Path) -> None:
    spool = Spool(tmp_path, HUGE, DAY_S)
    spool.append(b"bad")
    spool.append(b"good")
    spool.set_aside(spool.peek())
    assert drained(spool) == [(2, b"good")]
    assert b"bad" in (tmp_path / "rejected").read_bytes()
    for _ in range(6):
        spool.append(b"." * (1 << 20))
        spool.set_aside(spool.peek())
    assert (tmp_path / "rejected").stat().st_size <= REJECTED_BYTES
    assert spool.rejected == 7
    spool.close()


def test_two_agents_cannot_share_a_folder(tmp_path: Path) -> None:
    spool = Spool(tmp_path, HUGE, DAY_S)
    with pytest.raises(UnidleError, match=r"another agent uses this folder.*--state-dir"):
        Spool(tmp_path, HUGE, DAY_S)
    spool.close()
    Spool(tmp_path, HUGE, DAY_S).close()


@given(st.lists(st.one_of(st.binary(max_size=40), st.just("ack"), st.just("restart")), max_size=40))
@settings(max_examples=60)
def test_whatever_happens_each_batch_is_given_in_order_until_it_is_acknowledged(
    tmp_path_factory: pytest.TempPathFactory, steps: list[bytes | str]
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    spool = Spool(folder, HUGE, DAY_S)
    waiting: list[bytes] = []
    for step in steps:
        if isinstance(step, bytes):
            spool.append(step)
            waiting.append(step)
        elif step == "restart":
            spool.close()
            spool = Spool(folder, HUGE, DAY_S)
        elif (record := spool.peek()) is not None:
            assert record.payload == waiting.pop(0)
            spool.ack(record.seq)
        assert spool.pending == len(waiting)
    assert [payload for _, payload in drained(spool)] == waiting
    assert spool.dropped == 0
    spool.close()
