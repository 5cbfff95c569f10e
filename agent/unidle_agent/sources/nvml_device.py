"""A physical GPU or MIG instance: how it is asked, and what is remembered of its answers.

Whatever a device does not offer is asked once, remembered, and reported once. A lost device raises
NVMLError 15 out of every method here; any other error leaves the fields of that call out and is a problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pynvml

from unidle_agent.recheck import PcieRechecks, Rechecks, nvlink_signs
from unidle_agent.sources import nvml_calls as calls
from unidle_agent.sources.gpm import METRICS, Answer, GpmPair
from unidle_agent.sources.nvlink import NvLinks
from unidle_agent.sources.nvml_calls import LOST, REFUSALS, Ask, Problems, Values, quietly
from unidle_agent.sources.nvml_direct import Direct, FieldBatch
from unidle_agent.sources.nvml_samples import BUFFERS, SampleBuffer
from unidle_agent.subsecond import Looks, Piece, Restlessness
from unidle_agent.wire import GpuFacts

PROCESSES_S = 10.0
SPREAD = 16
"""Parts of `slow_s` over which the slow reads of a node's GPUs are spread: few nodes have more GPUs."""
NO_FIELDS = "field values"
PROCESSES = "running processes"
BUFFER = "sample buffer of "


@dataclass(slots=True)
class Device:
    """A physical GPU or a MIG instance, and what is remembered of it."""

    direct: Direct
    facts: GpuFacts
    problems: Problems
    gpu_instance: int | None = None
    """Of a MIG instance: its GPU instance id."""
    mig: bool = False
    instances: tuple[Device, ...] = ()
    refused_calls: set[Ask] = field(default_factory=set)
    """Calls that it does not offer."""
    refused: set[str] = field(default_factory=set)
    """What else it does not offer: fields, buffers, GPM, ..."""
    processes: Values = field(default_factory=dict)
    pids: tuple[int, ...] | None = None
    processes_due_s: float = float("-inf")
    slow: Values = field(default_factory=dict)
    slow_due_s: float = float("-inf")
    pcie_again: PcieRechecks = field(default_factory=PcieRechecks)
    nvlink_again: Rechecks = field(default_factory=Rechecks)
    nvlinks: NvLinks | None = None
    looks: Looks = field(default_factory=Looks)
    restless: Restlessness = field(default_factory=Restlessness)
    buffers: dict[str, SampleBuffer] | None = None
    """Field -> the driver's ring of it; None before the first look for them."""
    flowing: frozenset[str] = frozenset()
    """Fields whose buffer gave samples at its last read: they need no looks."""
    buffers_read_s: float = float("-inf")
    gpm: GpmPair | None = None
    batches: dict[Sequence[str], tuple[list[tuple[str, bool]], FieldBatch]] = field(default_factory=dict)
    """Fields asked in one call -> those of them that it offers, whether each is in mW, and the call."""

    @property
    def handle(self) -> Any:
        """The driver's."""
        return self.direct.handle

    def hold(self, handle: Any) -> None:
        """From now on this is the driver's handle; what was made for another one is made anew."""
        if calls.address(handle) != calls.address(self.handle):
            self.direct, self.nvlinks, self.buffers = Direct(handle), None, None
            self.batches.clear()

    def let_go_of_gpm(self) -> None:
        for device in (self, *self.instances):
            if device.gpm is not None:
                quietly(device.gpm.close)
                device.gpm = None

    def ask(self, *ladder: Ask) -> Values:
        """The first call of `ladder` that this device offers; raises NVMLError where the GPU is lost."""
        for call in ladder:
            if call in self.refused_calls:
                continue
            try:
                return call(self.direct)
            except pynvml.NVMLError as error:
                if not self._note(_words(call), error, quiet=call is not ladder[-1]):
                    break
                self.refused_calls.add(call)
        return {}

    def ask_fields(self, wanted: tuple[str, ...]) -> Values:
        """Those of the fields `wanted` that it has, in one call."""
        if NO_FIELDS in self.refused:
            return {}
        if wanted not in self.batches:
            offered = [name for name in wanted if name not in self.refused]
            ids = [(calls.FIELD_IDS[name][0], 0) for name in offered]
            units = [(name, calls.FIELD_IDS[name][1].unit == "W") for name in offered]
            self.batches[wanted] = units, FieldBatch(self.handle, ids)
        fields, batch = self.batches[wanted]
        if not fields:
            return {}
        try:
            found = batch.ask()
        except pynvml.NVMLError as error:
            self._note(NO_FIELDS, error)
            return {}
        values: Values = {}
        for (name, in_mw), (code, value) in zip(fields, found, strict=True):
            if code == pynvml.NVML_SUCCESS:
                # Power is the one gauge that comes in thousandths; counters are whole steps already.
                values[name] = value / 1000 if in_mw else value
            else:
                self._refuse_field((calls.FIELD_IDS[name][1], code, value))
        return values

    def ask_slow(self, now_s: float, slow_s: float, *, loaded: bool) -> Values:
        """What changes rarely, as of the last time it was due; a link that turned bad is asked again at once.

        `loaded` says whether the GPU works, which it must for a PCIe generation to mean anything.
        """
        if now_s >= self.slow_due_s:
            first = self.slow_due_s == float("-inf")
            # After the first time, which is everybody's, not all in the same pass: this is its longest part.
            wait = 1 - (self.facts.index or 0) % SPREAD / SPREAD if first else 1.0
            self.slow_due_s = now_s + slow_s * wait
            self.slow = self.ask_fields(calls.SLOW_FIELDS)
            for ladder in calls.SLOW_CALLS:
                self.slow |= self.ask(*ladder)
            self._ask_pcie(loaded=loaded)
            self._ask_nvlinks()
            return self.slow
        if self.pcie_again.asks(now_s, loaded=loaded):
            self._ask_pcie(loaded=loaded)
        if self.nvlink_again.due(now_s):
            self.nvlink_again.spend(now_s)
            self._ask_nvlinks()
        if self.pcie_again.misleads(loaded=loaded):
            return {name: value for name, value in self.slow.items() if name != "pcie_generation"}
        return self.slow

    def _ask_pcie(self, *, loaded: bool) -> None:
        link = self.ask(calls.pcie_link)
        self.slow |= link
        if link:
            self.pcie_again.note(link, loaded=loaded)

    def ask_processes(self, now_s: float) -> Values:
        """How many processes hold it, as of the last time they were listed; their ids are in `pids`."""
        if now_s >= self.processes_due_s:
            self.processes_due_s = now_s + PROCESSES_S
            self.pids, self.processes = None, {}
            if PROCESSES not in self.refused:
                try:
                    self.pids = calls.running_processes(self.direct)
                    self.processes = {"process_count": len(self.pids)}
                except pynvml.NVMLError as error:
                    self._note(PROCESSES, error)
        return self.processes

    def ask_gpm(self, now_s: float, gpu_handle: Any) -> Values:
        """What GPM computes over the time since the last call, which is `gpm.span_s`."""
        if "GPM" in self.refused:
            return {}
        try:
            if self.gpm is None:
                self.gpm = GpmPair(gpu_handle, self.gpu_instance)
            names = [name for name in METRICS if name not in self.refused]
            answers = self.gpm.read(now_s, names)
        except pynvml.NVMLError as error:
            self._note("GPM", error)
            return {}
        values: Values = {}
        for answer in answers:
            if answer[1] == pynvml.NVML_SUCCESS:
                values[answer[0].name] = answer[2]
            else:
                self._refuse_field(answer)
        return values

    def read_buffers(self, now_s: float, denser_than_s: float) -> dict[str, list[Piece]]:
        """Field -> what the driver remembers of it since the last call; notes which of them flow."""
        self.buffers_read_s = now_s
        if self.buffers is None:
            self.buffers = {
                name: SampleBuffer(self.handle, kind, factor, denser_than_s)
                for name, (kind, factor) in BUFFERS.items()
                if not (self.mig and name in calls.OWN_LOOK[0]) and BUFFER + name not in self.refused
            }
        pieces: dict[str, list[Piece]] = {}
        for name, buffer in list(self.buffers.items()):
            try:
                pieces[name] = buffer.read(now_s)
            except pynvml.NVMLError as error:
                if self._note(BUFFER + name, error, quiet=True):
                    del self.buffers[name]
                    self.problems.refusal("sample buffers", error.value)
            if buffer.dense is False:
                del self.buffers[name]
        pieces = {name: found for name, found in pieces.items() if found}
        self.flowing = frozenset(pieces)
        return pieces

    def _ask_nvlinks(self) -> None:
        if "NVLink" in self.refused:
            return
        try:
            if self.nvlinks is None:
                self.nvlinks = NvLinks(self.handle)
            links = self.nvlinks.read()
        except pynvml.NVMLError as error:
            self._note("NVLink", error, also=error.value == pynvml.NVML_ERROR_INVALID_ARGUMENT)
            return
        self.slow |= links
        self.nvlink_again.note(nvlink_signs(links))

    def _refuse_field(self, answer: Answer) -> None:
        """Note what a field says that has no value."""
        item, code, _ = answer
        # "Invalid argument" is what a driver says of a field id that is newer than itself.
        newer = code == pynvml.NVML_ERROR_INVALID_ARGUMENT
        what = f"{item.name} ({item.nvml})"
        quiet = item.name in calls.INSTEAD_OF_FIELD or item.name in calls.WITH_ANOTHER
        if self._note(what, pynvml.NVMLError(code), also=newer, quiet=quiet):
            self.refused.add(item.name)
            self.batches.clear()

    def _note(self, what: str, error: Any, *, also: bool = False, quiet: bool = False) -> bool:
        """Whether `error` refuses `what` for good, which is then remembered; "lost" is raised again.

        `also` says that it does where the code alone would not, `quiet` that something stands in.
        """
        if error.value == LOST:
            raise error
        if error.value in REFUSALS or also:
            self.refused.add(what)
            if not quiet:
                self.problems.refusal(what, error.value)
            return True
        self.problems.error(f"{self.facts.uuid}: {what}", error)
        return False


def _words(call: Ask) -> str:
    return call.__name__.replace("_", " ")
