"""Faults of GPUs and NVSwitches as one stream: what kernel log, NVML and dcgm-exporter tell, each once.

NVML and dcgm-exporter know an XID by its number; the kernel log has its process and words, and the SXids of
NVSwitches, which no one else tells at once. So of one XID the log's event goes on, at the tick in which it
was read. What NVML tells of the same GPU within `ECHO_S` is its echo, and what dcgm-exporter has counted
within `COUNTED_S` is one of both. Of the many lines of one fault, the first in each `FOLD_S` is told. An
SXid belongs to the node, because all its GPUs are behind the switches; lines without a class follow the
first line of their error.

The name of a process may name a person: it goes on only under `privacy = internal`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Protocol

from unidle_agent.exporter import Metric, single
from unidle_agent.kernel_lines import SxidLine, XidLine, parse, pci_address
from unidle_agent.sample import GpuReading, Tick
from unidle_agent.sources.kernel_log import KernelLog
from unidle_agent.wire import COUNTED_WORDS, KERNEL_WORDS, NODE, SXID, SXID_FATAL, Event, part_of_switch
from unidle_agent.wire_flight import whole

log = logging.getLogger("unidle.agent")

FOLD_S = 10.0
"""Lines of one code on one GPU or link within this long are one fault: an XID 13 gives one per SM."""
ECHO_S = 5.0
COUNTED_S = 60.0
"""dcgm-exporter collects each 30 s, and is scraped some seconds later."""
MARK = re.compile(rb"NVRM: Xid|SXid")
MOST_EVENTS = 64
"""Most faults of one tick; what is beyond is counted."""
MOST_REMEMBERED = 1024
"""Codes by GPU, or errors by link, that are remembered for folding and for /metrics."""
CLASSES = {True: "fatal", False: "non-fatal", None: "unknown"}


class Log(Protocol):
    """A log of the kernel, as `KernelLog` is one."""

    lost: int
    full: int

    def messages(self, mark: re.Pattern[bytes]) -> Iterator[str]:
        """What is new in it."""

    def close(self) -> None:
        """Let go of it."""


class Faults:
    """Completes ticks. The kernel log at `path` (empty: none) may be out of reach: that is said once."""

    def __init__(
        self,
        path: str,
        *,
        names: bool,
        job_of: Callable[[int], str] = lambda _: "",
        open_log: Callable[[str], Log] = KernelLog,
    ) -> None:
        """`names`: may the names of processes go on; `job_of` gives the job of a process, or nothing."""
        self.problem = ""
        """Why the log is not read; empty while it is."""
        self._names, self._job_of = names, job_of
        self._log: Log | None = None
        self._counts = {"xid": 0, "sxid": 0, "folded": 0, "echo": 0, "no_gpu": 0, "left_out": 0, "garbled": 0}
        self._lines_ns: dict[tuple[str, int, int], tuple[int, int]] = {}
        """(GPU, or class and switch, code, link) -> when it was last told by the log, and its last line."""
        self._errors_ns: dict[tuple[str, int], int] = {}
        """(switch, code) -> when an error of it was last told."""
        self._others_ns: dict[tuple[str, int], int] = {}
        """(GPU, code) -> when NVML last told it, by itself."""
        self._switches: dict[tuple[int, int, int, str], int] = {}
        """(switch, link, code, class) -> errors."""
        self._gpus: tuple[GpuReading, ...] = ()
        try:
            self._log = open_log(path) if path else None
        except OSError as error:
            self._stop(f"{path} cannot be read ({error.strerror})")
        if not path:
            self.problem = "not read: kernel_log is empty"

    def complete(self, tick: Tick) -> Tick:
        """`tick` with the faults of the log, and without their echoes from NVML."""
        self._gpus = tick.gpus or self._gpus
        told = list(self._read(tick.time_ns))
        if not told and not tick.events:
            return tick
        heard = [event for event in tick.events if not self._is_echo(event)]
        self._counts["echo"] += len(tick.events) - len(heard)
        return replace(tick, events=(*told, *heard))

    def close(self) -> None:
        """Let go of the log."""
        if self._log is not None:
            self._log.close()
            self._log = None

    def metrics(self) -> list[Metric]:
        """What became of the lines, and the errors of NVSwitches."""
        errors = [
            (
                {
                    "switch": str(switch),
                    "link": "" if link < 0 else str(link),
                    "sxid": str(code),
                    "class": word,
                },
                count,
            )
            for (switch, link, code, word), count in list(self._switches.items())  # the sampler adds to it
        ]
        lines = [({"outcome": outcome}, count) for outcome, count in self._counts.items()]
        read = self._log
        return [
            single(
                "unidle_agent_kernel_log_up", "gauge", "1 while the kernel log is read", int(not self.problem)
            ),
            Metric("unidle_agent_kernel_log_lines_total", "counter", "lines of GPUs and NVSwitches", lines),
            single(
                "unidle_agent_kernel_log_lost_total",
                "counter",
                "records that were overwritten before they were read",
                read.lost if read else 0,
            ),
            single(
                "unidle_agent_kernel_log_full_total",
                "counter",
                "looks that ended at their bound, with more to read",
                read.full if read else 0,
            ),
            Metric("unidle_nvswitch_sxid_errors_total", "counter", "errors that NVSwitches reported", errors),
        ]

    def _read(self, now_ns: int) -> Iterator[Event]:
        """What is new in the log, folded."""
        if self._log is None:
            return
        told = 0
        try:
            for message in self._log.messages(MARK):
                line = parse(message)
                event = None
                if line is None:
                    self._counts["garbled"] += "Xid (" in message
                elif told >= MOST_EVENTS:
                    self._counts["left_out"] += 1
                else:
                    event = (
                        self._of_gpu(line, now_ns)
                        if isinstance(line, XidLine)
                        else self._of_switch(line, now_ns)
                    )
                if event is not None:
                    told += 1
                    yield event
        except OSError as error:
            self.close()
            self._stop(f"it can no longer be read ({error.strerror})")

    def _of_gpu(self, line: XidLine, now_ns: int) -> Event | None:
        addresses = ((whole(gpu.facts.uuid), pci_address(gpu.facts.pci_bus_id)) for gpu in self._gpus)
        gpu = next((uuid for uuid, address in addresses if address == line.pci), "")
        if not gpu:
            self._counts["no_gpu"] += 1
            return None
        told_already = _within(self._others_ns.get((gpu, line.code)), now_ns, ECHO_S)
        if not self._is_new((gpu, line.code, -1), now_ns, told_already=told_already):
            return None
        self._counts["xid"] += 1
        return Event(now_ns, gpu, "xid", line.code, KERNEL_WORDS + self._words(line))

    def _of_switch(self, line: SxidLine, now_ns: int) -> Event | None:
        error = (line.pci, line.code)
        follows = line.fatal is None and _within(self._errors_ns.get(error), now_ns, FOLD_S)
        link, word = -1 if line.link is None else line.link, CLASSES[line.fatal]
        if not self._is_new((f"{word} {line.pci}", line.code, link), now_ns, told_already=follows):
            return None
        if len(self._errors_ns) >= MOST_REMEMBERED:
            self._errors_ns.clear()
        self._errors_ns[error] = now_ns
        self._counts["sxid"] += 1
        key = (line.switch, link, line.code, word)
        if key in self._switches or len(self._switches) < MOST_REMEMBERED:
            self._switches[key] = self._switches.get(key, 0) + 1
        return Event(
            now_ns,
            NODE,
            SXID_FATAL if line.fatal else SXID,
            line.code,
            f"{KERNEL_WORDS}NVSwitch {line.switch}: {line.words}",
            part_of_switch(line.switch, line.link),
        )

    def _words(self, line: XidLine) -> str:
        """Which process, of which job, and what the driver says."""
        if line.pid is None:
            return line.words
        job = self._job_of(line.pid)
        name = f" ({line.name})" if self._names and line.name else ""
        return f"process {line.pid}{name}{f' of job {job}' if job else ''}: {line.words}"

    def _is_new(self, key: tuple[str, int, int], now_ns: int, *, told_already: bool) -> bool:
        """Whether a line is the first of its fault; notes it."""
        told_ns = self._lines_ns.get(key, (None, None))[0]
        folds = told_already or _within(told_ns, now_ns, FOLD_S)
        if len(self._lines_ns) >= MOST_REMEMBERED:
            self._lines_ns = {
                known: times for known, times in self._lines_ns.items() if _within(times[1], now_ns, FOLD_S)
            }
        if key not in self._lines_ns and len(self._lines_ns) >= MOST_REMEMBERED:
            self._counts["left_out"] += 1
            return False
        self._lines_ns[key] = (told_ns or now_ns) if folds else now_ns, now_ns
        self._counts["folded"] += folds
        return not folds

    def _is_echo(self, event: Event) -> bool:
        """Whether an event of another source was told; one that was not is noted."""
        if event.kind != "xid":
            return False
        counted = event.text.startswith(COUNTED_WORDS)
        gpu, window_s = whole(event.gpu), COUNTED_S if counted else ECHO_S
        line_ns = self._lines_ns.get((gpu, event.code, -1), (None, None))[1]
        other_ns = self._others_ns.get((gpu, event.code)) if counted else None
        if _within(line_ns, event.time_ns, window_s) or _within(other_ns, event.time_ns, window_s):
            return True
        if not counted:
            if len(self._others_ns) >= MOST_REMEMBERED:
                self._others_ns.clear()
            self._others_ns[gpu, event.code] = event.time_ns
        return False

    def _stop(self, why: str) -> None:
        self.problem = why
        log.info("kernel log: %s; XIDs come without process and words, errors of NVSwitches not at all", why)


def _within(one_ns: int | None, other_ns: int, seconds: float) -> bool:
    return one_ns is not None and abs(other_ns - one_ns) < seconds * 1e9
