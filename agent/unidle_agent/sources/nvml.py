"""Every GPU of this machine, read from its driver through NVML (package nvidia-ml-py).

One pass asks the GPUs one after the other, because the driver holds one lock for all. What an answer
means is in the table of fields; what the absence of one means is here:

- A call that a GPU, its driver or our permissions do not offer is asked once per GPU, remembered, and
  reported once: "unsupported, because ...". Its fields are unknown, never 0.
- A lost GPU (NVML error 15), or one that was there and is no longer listed, keeps its row with
  `gpu_state` 1 and nothing else. While one is lost the library is opened anew every minute, so that a
  GPU that was reset comes back.
- Any other error leaves the fields of that call out of this pass and is a problem of it.
- Processes are listed every 10 s, because that is the driver's slowest call, and errors, repairs and
  links are asked every `slow_s`; the answer stays until the next one. An agent in a container without
  the host's process ids may see no process.

Between two passes `look` asks for the few gauges that move within a second; a row then holds their mean,
extremes and share of the time at zero (see `unidle_agent.subsecond`). Events are taken at every look.

Where MIG is on, each instance is a row of its own, named `GPU-UUID/GI<id>` as the rows of dcgm-exporter
are, so that both sources meet. Its share of the GPU is its compute slices over all there are, so that
shares never add up to more than the GPU (its part of the memory may be larger). Memory, processes and
GPM are the instance's own, clocks, temperatures and throttling are its GPU's, and the board's power and
energy are split by share. Slices in no instance are one more row, named as the GPU: nobody can hold it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pynvml

from unidle_agent.dcgm import SPLIT_BY_SHARE
from unidle_agent.errors import SourceError
from unidle_agent.sample import GPU_LOST, GPU_OK, GpuReading, Reading, Value
from unidle_agent.sources import nvml_calls as calls
from unidle_agent.sources.gpm import HOST_ENGINE, METRICS, Answer, GpmPair, host_engine_answers
from unidle_agent.sources.nvlink import NvLinks
from unidle_agent.sources.nvml_calls import LOST, REFUSALS, Ask, Problems, Values, quietly
from unidle_agent.sources.nvml_events import NvmlEvents
from unidle_agent.subsecond import INTEGRALS, Integrals, Looks, summary
from unidle_agent.wire import Event, GpuFacts, Owner

TOPOLOGY_S = 60.0
"""How often the list of GPUs and MIG instances is made anew."""
PROCESSES_S = 10.0
SPREAD = 16
"""Parts of `slow_s` over which the slow reads of a node's GPUs are spread: few nodes have more GPUs."""

SHARED_BY_INSTANCES = frozenset(
    {
        *SPLIT_BY_SHARE,
        *("sm_clock_hz", "memory_clock_hz", "temperature_c", "memory_temperature_c", "thermal_margin_c"),
        *("clock_event_reasons", "power_cap_s", "thermal_throttle_s", "hw_thermal_throttle_s"),
        *("power_brake_s", "last_xid", "row_remap_pending", "recovery_action"),
        *("fabric_state", "fabric_health"),
    }
)
"""Fields of a physical GPU that are true of its MIG instances too."""

LOOK = "look for XID lines in dmesg, drain the node and reset the GPU"
NOBODY = Owner(allocated=False, source="nvml", confidence="high")


@dataclass(slots=True)
class _Device:
    """A physical GPU or a MIG instance, and what is remembered of it."""

    handle: Any
    facts: GpuFacts
    gpu_instance: int | None = None
    """Of a MIG instance: its GPU instance id."""
    mig: bool = False
    instances: tuple[_Device, ...] = ()
    refused: set[str] = field(default_factory=set)
    """Calls and fields that it does not offer."""
    processes: Values = field(default_factory=dict)
    pids: tuple[int, ...] | None = None
    processes_due_s: float = float("-inf")
    slow: Values = field(default_factory=dict)
    slow_due_s: float = float("-inf")
    nvlinks: NvLinks | None = None
    looks: Looks = field(default_factory=Looks)
    gpm: GpmPair | None = None

    def let_go_of_gpm(self) -> None:
        for device in (self, *self.instances):
            if device.gpm is not None:
                quietly(device.gpm.close)
                device.gpm = None


class NvmlSource:
    """NVML in this process. A call that never returns hangs the caller: see `unidle_agent.poller`."""

    name = "nvml"
    precedence = 10

    def __init__(
        self,
        gpm: str = "auto",
        *,
        slow_s: float = 15.0,
        known: Collection[GpuFacts] = (),
        host_engine: tuple[str, int] = HOST_ENGINE,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the library; raises SourceError saying why there is no driver and what to do.

        `gpm` is `auto`, `on` or `off`; `slow_s` is the time between two looks at what changes rarely;
        `known` are the GPUs that were here before, so that one that is
        not found is missing rather than never heard of.
        """
        self._gpm, self._host_engine, self._monotonic = gpm, host_engine, monotonic
        self._slow_s = slow_s
        self._gpm_allowed = gpm == "on"
        self._gpus: dict[str, _Device] = {}
        self._missing = {facts.uuid: facts for facts in map(_whole, known)}
        self._untouched: set[str] = set()
        self._some_lost = False
        self._topology_due_s = float("-inf")
        self._xids: dict[str, int] = {}
        self._heard: list[Event] = []
        self._integrals = Integrals()
        self._problems = Problems()
        self._open()

    def read(self) -> Reading:
        """One pass over all GPUs; raises SourceError when the driver is gone or has no GPU."""
        gpus = tuple(self.readings())
        return Reading(gpus=gpus, problems=self.take_problems(), events=self.take_events())

    def readings(
        self,
        skip: Collection[str] = (),
        last: Collection[str] = (),
        starting: Callable[[str | None], None] = lambda _: None,
    ) -> Iterator[GpuReading]:
        """One pass, row by row.

        GPUs in `skip` are not touched and have no row; those in `last` come after all others. `starting`
        hears what is touched next: a physical GPU by its UUID, "" for none in particular, None for the
        library being opened, which may take long.
        """
        # A GPU that was skipped when the list was made is not in it.
        if self._monotonic() >= self._topology_due_s or self._untouched.difference(skip):
            self._find_gpus(skip, starting)
        starting("")
        self._listen()
        for uuid in skip:
            if uuid in self._gpus:
                self._gpus[uuid].looks.break_off()
        for uuid, gpu in sorted(self._gpus.items(), key=lambda item: item[0] in last):
            if uuid not in skip:
                starting(uuid)
                yield from self._read_gpu(gpu)
        for uuid, facts in self._missing.items():
            if uuid not in skip:
                self._problems.errors.append(f"{uuid}: the driver no longer lists this GPU; {LOOK}")
                yield GpuReading(facts, {"gpu_state": GPU_LOST})

    def look(
        self, skip: Collection[str] = (), starting: Callable[[str | None], None] = lambda _: None
    ) -> None:
        """Look at what moves within a second, for the next row of each GPU that is not in `skip`.

        `starting` is as in `readings`; what fails is left to the next row to tell.
        """
        self._listen()
        for uuid, gpu in self._gpus.items():
            if uuid in skip:
                continue
            starting(uuid)
            try:
                values = self._ask_fields(gpu, calls.LOOK_FIELDS)
                for ladder in calls.LOOKS if gpu.mig else calls.LOOKS + calls.OWN_LOOKS:
                    values |= self._ask(gpu, *ladder)
            except pynvml.NVMLError:  # lost
                gpu.looks.break_off()
            else:
                gpu.looks.add(self._monotonic(), values)
        starting("")

    def take_events(self) -> tuple[Event, ...]:
        """What the driver reported since the last call."""
        events, self._heard = tuple(self._heard), []
        return events

    def _listen(self) -> None:
        for event in self._events.take():
            self._heard.append(event)
            if event.kind == "xid":
                self._xids[event.gpu] = event.code

    def take_problems(self) -> tuple[str, ...]:
        """What went wrong since the last call, in words."""
        return self._problems.take()

    def close(self) -> None:
        """Give everything back to the driver."""
        for gpu in self._gpus.values():
            gpu.let_go_of_gpm()
        self._gpus = {}
        self._events.close()
        quietly(pynvml.nvmlShutdown)

    # Which GPUs there are

    def _open(self) -> None:
        try:
            pynvml.nvmlInit()
            self._driver = pynvml.nvmlSystemGetDriverVersion()
        except pynvml.NVMLError as error:
            raise calls.absence(error) from error
        self._events = NvmlEvents(self._problems)

    def _find_gpus(self, skip: Collection[str], starting: Callable[[str | None], None]) -> None:
        """Make the list of GPUs anew, keeping what is remembered of each."""
        if (self._some_lost or self._missing) and self._gpus and not skip:
            # A library that stays open never sees a GPU come back.
            starting(None)
            self._missing |= {uuid: gpu.facts for uuid, gpu in self._gpus.items()}
            self.close()
            self._open()
        starting("")
        self._some_lost = False
        self._allow_gpm()
        before, found = self._gpus, {}
        listed = [*self._missing.values(), *(gpu.facts for gpu in before.values())]
        at_index = {facts.index: facts.uuid for facts in listed}
        for index in range(self._count()):
            uuid = at_index.get(index, "")
            gpu = before.get(uuid)
            if not uuid or uuid not in skip:
                starting(uuid)
                gpu = self._find_gpu(index, before) or gpu
            if gpu is not None:
                found[gpu.facts.uuid] = gpu
        for uuid in before.keys() - found.keys():
            before[uuid].let_go_of_gpm()
            self._missing[uuid] = before[uuid].facts
        self._gpus = found
        self._missing = {
            # Where a missing GPU was, another may be now; one that was skipped is where it was.
            uuid: facts if uuid in skip else replace(facts, index=None)
            for uuid, facts in self._missing.items()
            if uuid not in found
        }
        self._untouched = self._missing.keys() & set(skip)
        if not found and not self._missing:
            raise SourceError("the NVIDIA driver is loaded and sees no GPU: look at `lspci` and `dmesg`")
        self._topology_due_s = self._monotonic() + TOPOLOGY_S

    def _count(self) -> int:
        try:
            return int(pynvml.nvmlDeviceGetCount())
        except pynvml.NVMLError as error:
            raise calls.absence(error) from error

    def _find_gpu(self, index: int, before: dict[str, _Device]) -> _Device | None:
        """The GPU at `index`; None, and a problem, where it does not say who it is."""
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            uuid = pynvml.nvmlDeviceGetUUID(handle)
        except pynvml.NVMLError as error:
            self._problems.error(f"GPU at index {index}", error)
            self._some_lost = True
            return None
        gpu = before.get(uuid)
        facts = calls.gpu_facts(handle, uuid, index, self._driver)
        if gpu is None:
            gpu = _Device(handle, facts)
            self._events.listen(handle, uuid)
        gpu.handle, gpu.facts = handle, facts
        self._find_instances(gpu)
        return gpu

    def _find_instances(self, gpu: _Device) -> None:
        """Which MIG instances the GPU is cut into, if any."""
        gpu.mig = calls.mig_is_on(gpu.handle)
        before = {old.facts.uuid: old for old in gpu.instances}
        found = []
        places = (quietly(pynvml.nvmlDeviceGetMaxMigDeviceCount, gpu.handle) or 0) if gpu.mig else 0
        for place in range(places):
            try:
                handle = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu.handle, place)
                facts, instance = calls.instance_facts(handle, gpu.facts, place, places)
            except pynvml.NVMLError as error:
                if error.value not in (pynvml.NVML_ERROR_NOT_FOUND, LOST):  # 6 is a free place
                    self._problems.error(f"{gpu.facts.uuid}: MIG device {place}", error)
                continue
            device = before.get(facts.uuid)
            if device is None or device.facts != facts:
                device = _Device(handle, facts, gpu_instance=instance)
            device.handle = handle
            found.append(device)
        for old in before.values():
            if all(old is not device for device in found):
                old.let_go_of_gpm()
        gpu.instances = tuple(found)

    def _allow_gpm(self) -> None:
        if self._gpm != "auto":
            return
        self._gpm_allowed = not host_engine_answers(self._host_engine)
        if not self._gpm_allowed:
            for gpu in self._gpus.values():
                gpu.let_go_of_gpm()
            host, port = self._host_engine
            self._problems.once(
                "host engine",
                f"GPM is left alone, because a DCGM host engine answers on {host}:{port}: let dcgm-exporter "
                "give these fields, or set gpm = on",
            )

    # What they say

    def _read_gpu(self, gpu: _Device) -> Iterator[GpuReading]:
        """The row of a GPU, or the rows of one that MIG cuts."""
        try:
            board = self._ask_board(gpu)
            own = {} if gpu.mig else self._ask_own(gpu, gpu.handle)
        except pynvml.NVMLError:  # only "lost" comes up to here
            self._some_lost = True
            gpu.looks.break_off()
            self._problems.errors.append(f"{gpu.facts.uuid}: the GPU is lost (NVML error {LOST}); {LOOK}")
            for device in gpu.instances or (gpu,):
                yield GpuReading(device.facts, {"gpu_state": GPU_LOST})
            return
        if gpu.mig:
            yield from self._read_instances(gpu, board)
        else:
            yield _row(gpu.facts, {**board, **own, **self._summed_up(gpu, {**board, **own})}, gpu.pids)

    def _summed_up(self, gpu: _Device, values: Values) -> Values:
        """What the looks at a GPU since its last row come to, this one of `values` included."""
        gpu.looks.add(self._monotonic(), values)
        pieces = gpu.looks.take()
        out: Values = {}
        for name, of_field in pieces.items():
            out |= summary(name, of_field)
        for counter, ratio in INTEGRALS.items():
            if ratio in pieces:
                out[counter] = self._integrals.grow(gpu.facts.uuid, counter, pieces[ratio])
        return out

    def _read_instances(self, gpu: _Device, board: Values) -> Iterator[GpuReading]:
        board |= self._summed_up(gpu, board)
        cut = sum(instance.facts.share for instance in gpu.instances)
        for instance in gpu.instances:
            shared = _share_of(board, instance.facts.share / cut)
            try:
                own = self._ask_own(instance, gpu.handle)
                yield _row(instance.facts, {**shared, **own}, instance.pids)
            except pynvml.NVMLError:
                self._some_lost = True
                yield GpuReading(instance.facts, {"gpu_state": GPU_LOST})
        if not gpu.instances:
            yield _row(replace(gpu.facts, owner=NOBODY), board)
        elif cut < 1 - 1e-9:
            yield GpuReading(replace(gpu.facts, share=1 - cut, owner=NOBODY), {"gpu_state": GPU_OK})

    def _ask_board(self, gpu: _Device) -> Values:
        values: Values = {}
        for ladder in calls.BOARD_CALLS:
            values |= self._ask(gpu, *ladder)
        values |= self._ask_fields(gpu, calls.FIELDS_OF_A_PASS)
        values |= self._ask_slow(gpu)
        for name, call in calls.INSTEAD_OF_FIELD.items():
            if name not in values:
                values |= self._ask(gpu, call)
        if gpu.facts.uuid in self._xids:
            values["last_xid"] = self._xids[gpu.facts.uuid]
        return values

    def _ask_slow(self, gpu: _Device) -> Values:
        """What changes rarely, as of the last time it was due."""
        now_s = self._monotonic()
        if now_s >= gpu.slow_due_s:
            first = gpu.slow_due_s == float("-inf")
            # After the first time, which is everybody's, not all in the same pass: this is its longest part.
            wait = 1 - (gpu.facts.index or 0) % SPREAD / SPREAD if first else 1.0
            gpu.slow_due_s = now_s + self._slow_s * wait
            gpu.slow = self._ask_fields(gpu, calls.SLOW_FIELDS)
            for ladder in calls.SLOW_CALLS:
                gpu.slow |= self._ask(gpu, *ladder)
            gpu.slow |= self._ask_nvlinks(gpu)
        return gpu.slow

    def _ask_nvlinks(self, gpu: _Device) -> Values:
        if "NVLink" in gpu.refused:
            return {}
        try:
            if gpu.nvlinks is None:
                gpu.nvlinks = NvLinks(gpu.handle)
            return gpu.nvlinks.read()
        except pynvml.NVMLError as error:
            self._note(gpu, "NVLink", error, also=error.value == pynvml.NVML_ERROR_INVALID_ARGUMENT)
            return {}

    def _ask_own(self, device: _Device, gpu_handle: Any) -> Values:
        values: Values = {}
        for ladder in calls.OWN_CALLS:
            values |= self._ask(device, *ladder)
        now_s = self._monotonic()
        if now_s >= device.processes_due_s:
            device.processes = self._list_processes(device)
            device.processes_due_s = now_s + PROCESSES_S
        values |= device.processes
        if self._gpm_allowed:
            values |= self._ask_gpm(device, gpu_handle)
        return values

    def _list_processes(self, device: _Device) -> Values:
        """Note which processes hold the device, and give their number."""
        device.pids = None

        def running_processes(handle: Any) -> Values:
            device.pids = calls.running_processes(handle)
            return {"process_count": len(device.pids)}

        return self._ask(device, running_processes)

    def _ask(self, device: _Device, *ladder: Ask) -> Values:
        """The first call of `ladder` that this device offers; raises NVMLError where the GPU is lost."""
        for call in ladder:
            what = _words(call)
            if what in device.refused:
                continue
            try:
                return call(device.handle)
            except pynvml.NVMLError as error:
                if not self._note(device, what, error, quiet=call is not ladder[-1]):
                    break
        return {}

    def _ask_fields(self, gpu: _Device, wanted: Sequence[str]) -> Values:
        names = [name for name in wanted if name not in gpu.refused]
        if not names or "field values" in gpu.refused:
            return {}
        try:
            answers = calls.field_values(gpu.handle, names)
        except pynvml.NVMLError as error:
            self._note(gpu, "field values", error)
            return {}
        return self._sort_out(gpu, answers)

    def _ask_gpm(self, device: _Device, gpu_handle: Any) -> Values:
        if "GPM" in device.refused:
            return {}
        try:
            if device.gpm is None:
                device.gpm = GpmPair(gpu_handle, device.gpu_instance)
            names = [name for name in METRICS if name not in device.refused]
            answers = device.gpm.read(self._monotonic(), names)
        except pynvml.NVMLError as error:
            self._note(device, "GPM", error)
            return {}
        values = self._sort_out(device, answers)
        for counter, ratio in INTEGRALS.items():
            if ratio in values:
                span_s = device.gpm.span_s
                values[counter] = self._integrals.grow(device.facts.uuid, counter, [(span_s, values[ratio])])
        return values

    def _sort_out(self, device: _Device, answers: list[Answer]) -> Values:
        """The values among `answers`; what the others say is noted."""
        values: Values = {}
        for item, code, value in answers:
            if code == pynvml.NVML_SUCCESS:
                values[item.name] = value
                continue
            what = f"{item.name} ({item.nvml})"
            error = pynvml.NVMLError(code)
            # "Invalid argument" is what a driver says of a field id that is newer than itself.
            newer = code == pynvml.NVML_ERROR_INVALID_ARGUMENT
            if self._note(device, what, error, also=newer, quiet=item.name in calls.INSTEAD_OF_FIELD):
                device.refused.add(item.name)
        return values

    def _note(
        self, device: _Device, what: str, error: Any, *, also: bool = False, quiet: bool = False
    ) -> bool:
        """Whether `error` refuses `what` for good, which is then remembered; "lost" is raised again.

        `also` says that it does where the code alone would not, `quiet` that something stands in.
        """
        if error.value == LOST:
            raise error
        if error.value in REFUSALS or also:
            device.refused.add(what)
            if not quiet:
                self._problems.refusal(what, error.value)
            return True
        self._problems.error(f"{device.facts.uuid}: {what}", error)
        return False


def _row(facts: GpuFacts, values: Values, pids: tuple[int, ...] | None = None) -> GpuReading:
    """A row that says which of its fields came by GPM, and that the GPU answers if it did."""
    sources = {name: "gpm" for name in values if name in METRICS}
    facts = replace(facts, sources=sources)
    return GpuReading(facts, {**values, "gpu_state": GPU_OK} if values else values, pids)


@functools.cache
def _words(call: Ask) -> str:
    return call.__name__.replace("_", " ")


def _whole(facts: GpuFacts) -> GpuFacts:
    """The physical GPU of a GPU or MIG instance."""
    uuid = facts.uuid.partition("/GI")[0]
    return replace(facts, uuid=uuid, mig_profile="", mig_uuid="", share=1.0, sources={}, owner=Owner())


def _share_of(board: Values, part: float) -> Values:
    """What is true of an instance that is `part` of its GPU, from what is true of the GPU."""
    out: Values = {}
    for name, value in board.items():
        field_name, _, statistic = name.partition(".")
        if field_name in SHARED_BY_INSTANCES:
            split = field_name in SPLIT_BY_SHARE and statistic != "zero"
            out[name] = _part(value, part) if split else value
    return out


def _part(value: Value, part: float) -> Value:
    return int(value * part) if isinstance(value, int) else value * part
