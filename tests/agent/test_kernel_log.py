"""The kernel log as a source of faults: what is new in it goes on once, and a flood costs bounded work."""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.call_count import calls_of

from unidle_agent.exporter import Metric
from unidle_agent.faults import MARK, MOST_EVENTS, Faults
from unidle_agent.sample import GpuReading, Tick
from unidle_agent.sources import kernel_log
from unidle_agent.sources.kernel_log import MOST_RECORDS, KernelLog
from unidle_agent.wire import KERNEL_WORDS, Event, GpuFacts, switch_and_link

SECOND_NS = 10**9
T0_NS = 1_800_000_000 * SECOND_NS
GPUS = (
    GpuReading(GpuFacts("GPU-a", 0, pci_bus_id="00000000:9B:00.0"), {}),
    GpuReading(GpuFacts("GPU-b", 1, pci_bus_id="00000000:C3:00.0"), {}),
)


@dataclass
class Ring:
    """A kernel's ring of records: each is given out once, in order; None is one that was overwritten."""

    waiting: list[bytes | None] = field(default_factory=list)
    number: int = 0
    overrun: bool = False

    def say(self, *messages: str) -> None:
        for message in messages:
            text = "".join(
                c if " " <= c < "\x7f" and c != "\\" else "".join(f"\\x{b:02x}" for b in c.encode())
                for c in message
            )
            self.number += 1
            self.waiting.append(f"4,{self.number},{self.number * 1000},-;{text}\n SUBSYSTEM=pci\n".encode())

    def overwrite(self, records: int) -> None:
        self.number += records
        self.overrun = True

    def read(self, _fd: int, _size: int) -> bytes:
        if self.overrun:
            self.overrun = False
            raise BrokenPipeError(errno.EPIPE, "overwritten")
        if not self.waiting:
            raise BlockingIOError
        return self.waiting.pop(0)


@pytest.fixture
def ring(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ring:
    """The ring behind `tmp_path/kmsg`."""
    path = tmp_path / "kmsg"
    path.touch()
    ring, read, inode = Ring(), os.read, path.stat().st_ino
    monkeypatch.setattr(
        kernel_log.os, "read", lambda fd, n: ring.read(fd, n) if os.fstat(fd).st_ino == inode else read(fd, n)
    )
    return ring


@pytest.fixture
def faults(ring: Ring, tmp_path: Path) -> Iterator[Faults]:
    faults = Faults(str(tmp_path / "kmsg"), names=False, job_of={4242: "4711"}.get)
    yield faults
    faults.close()


def at(
    faults: Faults, second: float, *events: Event, gpus: tuple[GpuReading, ...] = GPUS
) -> tuple[Event, ...]:
    """The events of one tick."""
    return faults.complete(Tick(T0_NS + int(second * SECOND_NS), gpus, {}, (), events)).events


def xid(
    code: int, words: str = "pid=4242, name=python3, MMU Fault: ENGINE GRAPHICS", pci: str = "0000:9b:00"
) -> str:
    return f"NVRM: Xid (PCI:{pci}): {code}, {words}"


def sxid(code: int, words: str, switch: int = 3) -> str:
    return f"nvidia-nvswitch{switch}: SXid (PCI:0000:c1:00.0): {code}, {words}"


def by_nvml(second: float, code: int, gpu: str = "GPU-a") -> Event:
    return Event(T0_NS + int(second * SECOND_NS), gpu, "xid", code, f"the driver reported XID {code}")


def count(faults: Faults, name: str, **labels: str) -> float:
    """The value of one of its metrics."""
    found: list[Metric] = [metric for metric in faults.metrics() if metric.name == name]
    return sum(value for had, value in found[0].samples if labels.items() <= had.items())


def test_an_xid_of_the_log_has_its_gpu_its_process_its_job_and_its_words(ring: Ring, faults: Faults) -> None:
    ring.say("usb 1-1: new device", xid(31, pci="0000:C3:00"))
    (event,) = at(faults, 1)
    assert (event.gpu, event.kind, event.code) == ("GPU-b", "xid", 31)
    assert event.text == KERNEL_WORDS + "process 4242 of job 4711: MMU Fault: ENGINE GRAPHICS"
    assert at(faults, 2) == ()


def test_the_name_of_a_process_goes_on_only_where_names_may(
    ring: Ring, tmp_path: Path, faults: Faults
) -> None:
    ring.say(xid(31, "pid=9, name=anna.schmidt, Ch 00000008"))
    assert "anna" not in at(faults, 1)[0].text
    internal = Faults(str(tmp_path / "kmsg"), names=True)
    ring.say(xid(31, "pid=9, name=anna.schmidt, Ch 00000008"))
    assert at(internal, 1)[0].text == KERNEL_WORDS + "process 9 (anna.schmidt): Ch 00000008"
    internal.close()


def test_lines_of_one_fault_are_one_event_for_ten_seconds(ring: Ring, faults: Faults) -> None:
    seen = []
    for second in range(25):
        ring.say(*[xid(13)] * 30)
        seen += [(second, event.code) for event in at(faults, second)]
    assert seen == [(0, 13), (10, 13), (20, 13)]
    assert count(faults, "unidle_agent_kernel_log_lines_total", outcome="folded") == 25 * 30 - 3


def test_another_code_and_another_gpu_are_other_faults(ring: Ring, faults: Faults) -> None:
    ring.say(xid(13), xid(31), xid(13, pci="0000:c3:00"))
    assert [(event.gpu, event.code) for event in at(faults, 0)] == [
        ("GPU-a", 13),
        ("GPU-a", 31),
        ("GPU-b", 13),
    ]


@pytest.mark.parametrize("nvml_s", [0.0, 1.0, 4.0])
def test_nvml_and_the_log_give_one_event_with_the_words(ring: Ring, faults: Faults, nvml_s: float) -> None:
    ring.say(xid(79))
    told = [
        *at(faults, 0, *[by_nvml(-0.3, 79)] * (nvml_s == 0)),
        *at(faults, nvml_s, *[by_nvml(nvml_s, 79)] * (nvml_s > 0)),
    ]
    assert [event.text.startswith(KERNEL_WORDS) for event in told] == [True]


def test_a_storm_in_the_log_leaves_no_echo_of_nvml(ring: Ring, faults: Faults) -> None:
    told = []
    for second in range(30):
        ring.say(xid(13))
        told += at(faults, second, by_nvml(second, 13))
    assert [event.text.startswith(KERNEL_WORDS) for event in told] == [True] * 3


def test_a_line_that_comes_after_nvml_told_it_is_no_second_event(ring: Ring, faults: Faults) -> None:
    assert at(faults, 0, by_nvml(0, 48)) == (by_nvml(0, 48),)
    ring.say(xid(48))
    assert at(faults, 1) == ()
    ring.say(xid(48))
    assert len(at(faults, 12)) == 1


def test_what_only_nvml_tells_goes_on_as_it_came(faults: Faults) -> None:
    events = (by_nvml(1, 13), by_nvml(1, 13), Event(T0_NS, "GPU-a", "ecc_uncorrected", 0))
    assert at(faults, 1, *events) == events


def test_what_dcgm_exporter_counts_half_a_minute_later_is_the_same_fault(ring: Ring, faults: Faults) -> None:
    def counted(second: float, code: int) -> Event:
        return Event(T0_NS + int(second * SECOND_NS), "GPU-a", "xid", code, "dcgm-exporter: counted")

    ring.say(xid(31))
    assert len(at(faults, 0, by_nvml(0, 94))) == 2
    assert at(faults, 34, counted(34, 31), counted(34, 94)) == ()
    for second in (36, 41):  # of an exporter alone, each count is news
        assert at(faults, second, counted(second, 62)) == (counted(second, 62),)


def test_an_sxid_is_the_nodes_with_its_class_switch_and_link(ring: Ring, faults: Faults) -> None:
    ring.say(sxid(20034, "Fatal, Link 30 LTSSM Fault"), sxid(12028, "Non-fatal, Link 7 egress", switch=1))
    fatal, other = at(faults, 0)
    assert (fatal.gpu, fatal.kind, fatal.code, switch_and_link(fatal.part)) == (
        "*",
        "sxid_fatal",
        20034,
        (3, 30),
    )
    assert (other.gpu, other.kind, other.code, switch_and_link(other.part)) == ("*", "sxid", 12028, (1, 7))
    assert fatal.text == KERNEL_WORDS + "NVSwitch 3: Fatal, Link 30 LTSSM Fault"
    name = "unidle_nvswitch_sxid_errors_total"
    assert count(faults, name, switch="3", link="30", sxid="20034", **{"class": "fatal"}) == 1


def test_lines_without_a_class_follow_the_first_of_their_error(ring: Ring, faults: Faults) -> None:
    ring.say(sxid(20034, "Fatal, Link 30 LTSSM Fault"), sxid(20034, "Severity 1 Engine instance 30"))
    assert [event.kind for event in at(faults, 0)] == ["sxid_fatal"]
    ring.say(sxid(19084, "Severity 0 Engine instance 04"))
    assert [event.kind for event in at(faults, 1)] == ["sxid"]


def test_a_fatal_line_is_told_though_one_without_a_class_came_before(ring: Ring, faults: Faults) -> None:
    ring.say(sxid(11001, "Severity 1 Engine instance 04"), sxid(11001, "Fatal, ingress command"))
    assert [event.kind for event in at(faults, 0)] == ["sxid", "sxid_fatal"]


def test_a_line_of_a_gpu_that_is_not_sampled_is_counted(ring: Ring, faults: Faults) -> None:
    ring.say(xid(79, pci="0000:17:00"), "NVRM: Xid (PCI:0000:9b): 7?, torn")
    assert at(faults, 0) == ()
    assert count(faults, "unidle_agent_kernel_log_lines_total", outcome="no_gpu") == 1
    assert count(faults, "unidle_agent_kernel_log_lines_total", outcome="garbled") == 1


def test_a_gpu_that_vanishes_with_its_fault_is_still_known(ring: Ring, faults: Faults) -> None:
    at(faults, 0)
    ring.say(xid(79))
    assert [event.gpu for event in at(faults, 1, gpus=())] == ["GPU-a"]


def test_a_mig_instance_tells_the_fault_of_its_gpu(ring: Ring, faults: Faults) -> None:
    row = GpuReading(GpuFacts("GPU-m/GI2", 0, pci_bus_id="00000000:9B:00.0"), {})
    ring.say("NVRM: Xid (PCI:0000:9b:00 GPU-I:02): 43, pid=9, name=x, Ch 2")
    assert [event.gpu for event in at(faults, 0, gpus=(row,))] == ["GPU-m"]


def test_a_flood_costs_bounded_work_and_what_it_overwrote_is_counted(ring: Ring, faults: Faults) -> None:
    at(faults, 0)
    ring.say(*["audit: somebody did something, again and again"] * (3 * MOST_RECORDS))
    least = calls_of(lambda: at(faults, 1))
    assert least < 8 * MOST_RECORDS
    assert count(faults, "unidle_agent_kernel_log_full_total") == 1
    ring.waiting.clear()
    ring.overwrite(500)
    ring.say("the oldest that is left", xid(79))
    assert [event.code for event in at(faults, 2)] == [79]
    # 2000 were read; 4000 that waited, and the 500 after them, never were.
    assert count(faults, "unidle_agent_kernel_log_lost_total") == 2 * MOST_RECORDS + 500


def test_a_flood_of_faults_goes_on_in_bounded_numbers(ring: Ring, faults: Faults) -> None:
    ring.say(*[xid(code) for code in range(1000, 1000 + 2 * MOST_EVENTS)])
    assert len(at(faults, 0)) == MOST_EVENTS
    assert count(faults, "unidle_agent_kernel_log_lines_total", outcome="left_out") == MOST_EVENTS


def test_a_quiet_log_costs_a_tick_next_to_nothing(faults: Faults) -> None:
    at(faults, 0)
    assert calls_of(lambda: at(faults, 1)) < 40


def test_reading_begins_at_the_end_of_the_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(f"4,1,1000,-;{xid(79)}\n".encode())
    log = KernelLog(str(path))
    with path.open("ab") as end:
        end.write(f"4,2,2000,-;{xid(31)}\n".encode())
    assert [" 31," in message for message in log.messages(MARK)] == [True]
    log.close()


def test_escaped_characters_come_as_they_were_written(ring: Ring, faults: Faults) -> None:
    ring.say(xid(31, "pid=9, name=x, first\nsecond \\ \x1b[31mred"))
    assert at(faults, 0)[0].text == KERNEL_WORDS + "process 9: first second ? ?31mred"


def test_without_the_right_it_is_said_once_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(kernel_log.os, "open", refuse)
    with caplog.at_level(logging.INFO, "unidle.agent"):
        faults = Faults(str(tmp_path / "kmsg"), names=False)
        for second in range(5):
            assert len(at(faults, 20 * second, by_nvml(20 * second, 79))) == 1
    (said,) = caplog.records
    assert said.message.startswith(
        f"kernel log: {tmp_path}/kmsg cannot be read (Operation not permitted); XIDs"
    )
    assert "Operation not permitted" in faults.problem
    assert count(faults, "unidle_agent_kernel_log_up") == 0


def test_a_log_that_goes_away_is_said_once(
    ring: Ring, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr(ring, "read", fail)
    for second in range(3):
        assert at(faults, second, by_nvml(second, 79)) == (by_nvml(second, 79),)
    assert faults.problem == "it can no longer be read (No such device)"


def test_the_log_of_this_machine_is_read_without_waiting() -> None:
    try:
        log = KernelLog("/dev/kmsg")
    except OSError as error:
        pytest.skip(f"/dev/kmsg cannot be read here: {error.strerror}")
    assert list(log.messages(re.compile(b"a mark that nothing has"))) == []
    os.lseek(log._fd, 0, os.SEEK_SET)
    whole = list(log.messages(re.compile(b"")))
    assert whole
    assert not any("\n" in message and message.startswith(" ") for message in whole)
    log.close()
