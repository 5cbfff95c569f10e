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
  links are asked every `slow_s`; the answer stays until the next one. A link that turned bad is asked again
  at the next passes (`unidle_agent.recheck`). An agent in a container without the host's process ids may
  see no process.

Between two passes `look` asks for the few gauges that move within a second, and buffers of the driver are
read where they hold more than that (`unidle_agent.sources.nvml_samples`); a row then holds their mean,
extremes and share of the time at zero (see `unidle_agent.subsecond`). Events are taken at every look.
Where MIG is on, each instance is a row of its own: `unidle_agent.sources.nvml_mig`. Slices in no instance
are one more row, named as the GPU: nobody can hold it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any

import pynvml

from unidle_agent.errors import SourceError
from unidle_agent.flight.slots import slots
from unidle_agent.recheck import LOADED_RATIO
from unidle_agent.sample import GPU_LOST, GPU_OK, GpuReading, Reading
from unidle_agent.sources import nvml_calls as calls
from unidle_agent.sources.gpm import HOST_ENGINE, METRICS, host_engine_answers
from unidle_agent.sources.nvml_calls import LOST, Problems, Values, quietly
from unidle_agent.sources.nvml_device import Device
from unidle_agent.sources.nvml_direct import Direct
from unidle_agent.sources.nvml_events import NvmlEvents
from unidle_agent.sources.nvml_mig import find_instances, share_of
from unidle_agent.sources.nvml_samples import EVERY_S
from unidle_agent.subsecond import INTEGRALS, Integrals, Piece, summary
from unidle_agent.wire import Event, GpuFacts, Owner

TOPOLOGY_S = 60.0
"""How often the list of GPUs and MIG instances is made anew."""

UTIL = "gpu_util_ratio"
LOOK = "look for XID lines in dmesg, drain the node and reset the GPU"
NOBODY = Owner(allocated=False, source="nvml", confidence="high")


class NvmlSource:
    """NVML in this process. A call that never returns hangs the caller: see `unidle_agent.poller`."""

    name = "nvml"
    precedence = 10

    def __init__(
        self,
        gpm: str = "auto",
        *,
        slow_s: float = 15.0,
        fast_hz: float = 5.0,
        known: Collection[GpuFacts] = (),
        host_engine: tuple[str, int] = HOST_ENGINE,
        monotonic: Callable[[], float] = time.monotonic,
        on_look: Callable[[str, Values, float], None] = lambda _gpu, _values, _ago_s: None,
    ) -> None:
        """Open the library; raises SourceError saying why there is no driver and what to do.

        `gpm` is `auto`, `on` or `off`; `slow_s` is the time between two looks at what changes rarely;
        `fast_hz` is how often `look` is called, to know which of the driver's buffers are denser than that;
        `known` are the GPUs that were here before, so that one that is not found is missing rather than
        never heard of. `on_look` is told what was seen of a physical GPU, and how many seconds ago, at every
        row and `fast_hz` times a second in between.
        """
        self._gpm, self._host_engine, self._monotonic = gpm, host_engine, monotonic
        self._on_look = on_look
        self._slow_s, self._look_s = slow_s, 1.0 / fast_hz if fast_hz > 0 else float("inf")
        self._gpm_allowed = gpm == "on"
        self._gpus: dict[str, Device] = {}
        self._missing = {facts.uuid: facts for facts in map(_whole, known)}
        self._untouched: set[str] = set()
        self._some_lost = False
        self._topology_due_s = float("-inf")
        self._xids: dict[str, int] = {}
        self._heard: list[Event] = []
        self._integrals = Integrals()
        self._told: dict[str, tuple[GpuFacts, AbstractSet[str], GpuFacts]] = {}
        """UUID -> facts of a row, its fields that came by GPM, and the facts that say so."""
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
        self,
        skip: Collection[str] = (),
        starting: Callable[[str | None], None] = lambda _: None,
        *,
        restless_only: bool = False,
    ) -> None:
        """Look at what moves within a second, for the next row of each GPU that is not in `skip`.

        `starting` is as in `readings`; what fails is left to the next row to tell. `restless_only` looks only
        at the utilization of the GPUs that are restless.
        """
        if not restless_only:
            self._listen()
        now_s = self._monotonic()
        for uuid, gpu in self._gpus.items():
            if uuid in skip or (restless_only and not _is_restless(gpu, now_s)):
                continue
            starting(uuid)
            try:
                if restless_only:
                    self._see(gpu, self._monotonic(), gpu.ask(*calls.OWN_LOOK[1]))
                else:
                    self._look_at(gpu)
            except pynvml.NVMLError:  # lost
                gpu.looks.break_off()
        starting("")

    @property
    def restless(self) -> bool:
        """Does the utilization of any GPU jump within a second, and no buffer of the driver tells of it."""
        now_s = self._monotonic()
        return any(_is_restless(gpu, now_s) for gpu in self._gpus.values())

    def _look_at(self, gpu: Device) -> None:
        now_s = self._monotonic()
        if now_s - gpu.buffers_read_s >= EVERY_S:  # rows are further apart than buffers are long
            pieces = gpu.read_buffers(now_s, self._look_s)
            gpu.looks.add_pieces(self._monotonic(), pieces)
            self._tell_pieces(gpu, pieces)
        values: Values = {}
        if not gpu.flowing.issuperset(calls.LOOK_FIELDS):
            values |= gpu.ask_fields(calls.LOOK_FIELDS)
        for names, ladder in calls.LOOKS if gpu.mig else calls.LOOKS_OF_WHOLE:
            if not names <= gpu.flowing:
                values |= gpu.ask(*ladder)
        self._see(gpu, self._monotonic(), values)
        self._on_look(gpu.facts.uuid, values, 0.0)

    def _tell_pieces(self, gpu: Device, pieces: dict[str, list[Piece]]) -> None:
        """What the driver remembered, as if it had been looked at `fast_hz` times a second."""
        for ago_s, values in slots(pieces, self._look_s):
            self._on_look(gpu.facts.uuid, values, ago_s)

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
        self._told.clear()
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

    def _find_gpu(self, index: int, before: dict[str, Device]) -> Device | None:
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
            gpu = Device(Direct(handle), facts, self._problems)
            self._events.listen(handle, uuid)
        gpu.hold(handle)
        gpu.facts = facts
        find_instances(gpu)
        return gpu

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

    def _read_gpu(self, gpu: Device) -> Iterator[GpuReading]:
        """The row of a GPU, or the rows of one that MIG cuts."""
        try:
            pieces = gpu.read_buffers(self._monotonic(), self._look_s)
            own = {} if gpu.mig else self._ask_own(gpu, gpu.handle)
            board = self._ask_board(gpu, loaded=own.get(UTIL, 0.0) >= LOADED_RATIO)
        except pynvml.NVMLError:  # only "lost" comes up to here
            self._some_lost = True
            gpu.looks.break_off()
            self._problems.errors.append(f"{gpu.facts.uuid}: the GPU is lost (NVML error {LOST}); {LOOK}")
            for device in gpu.instances or (gpu,):
                yield GpuReading(device.facts, {"gpu_state": GPU_LOST})
            return
        values = board | own
        values |= self._summed_up(gpu, values, pieces)
        if gpu.mig:
            yield from self._read_instances(gpu, values)
        else:
            yield self._row(gpu.facts, values, gpu.pids)

    def _summed_up(self, gpu: Device, values: Values, pieces: dict[str, list[Piece]]) -> Values:
        """What happened since a GPU's last row: its looks, of which `values` is one, or its `pieces`."""
        now_s = self._monotonic()
        self._see(gpu, now_s, values)
        gpu.looks.add_pieces(now_s, pieces)
        self._tell_pieces(gpu, pieces)
        self._on_look(gpu.facts.uuid, values, 0.0)
        taken = gpu.looks.take()
        out: Values = {}
        for name, of_field in taken.items():
            out |= summary(name, of_field)
        for counter, ratio in INTEGRALS.items():
            if ratio in taken:
                out[counter] = self._integrals.grow(gpu.facts.uuid, counter, taken[ratio])
        return out

    def _see(self, gpu: Device, now_s: float, values: Values) -> None:
        """Take the look of `values` at what no buffer gives."""
        gpu.looks.add(now_s, values, but=gpu.flowing)
        if UTIL in values and UTIL not in gpu.flowing:
            gpu.restless.see(now_s, values[UTIL])

    def _read_instances(self, gpu: Device, board: Values) -> Iterator[GpuReading]:
        cut = sum(instance.facts.share for instance in gpu.instances)
        for instance in gpu.instances:
            shared = share_of(board, instance.facts.share / cut)
            try:
                own = self._ask_own(instance, gpu.handle)
                yield self._row(instance.facts, {**shared, **own}, instance.pids)
            except pynvml.NVMLError:
                self._some_lost = True
                yield GpuReading(instance.facts, {"gpu_state": GPU_LOST})
        if not gpu.instances:
            yield self._row(replace(gpu.facts, owner=NOBODY), board)
        elif cut < 1 - 1e-9:
            yield GpuReading(replace(gpu.facts, share=1 - cut, owner=NOBODY), {"gpu_state": GPU_OK})

    def _row(self, facts: GpuFacts, values: Values, pids: tuple[int, ...] | None = None) -> GpuReading:
        """A row that says which of its fields came by GPM, and that the GPU answers if it did.

        As long as they say the same, its facts are the same object.
        """
        by_gpm = METRICS.keys() & values.keys()
        told = self._told.get(facts.uuid)
        if told is None or told[1] != by_gpm or (told[0] is not facts and told[0] != facts):
            sources = {name: "gpm" for name in values if name in by_gpm}
            told = self._told[facts.uuid] = facts, by_gpm, replace(facts, sources=sources)
        return GpuReading(told[2], {**values, "gpu_state": GPU_OK} if values else values, pids)

    def _ask_board(self, gpu: Device, *, loaded: bool) -> Values:
        values: Values = {}
        for ladder in calls.BOARD_CALLS:
            values |= gpu.ask(*ladder)
        values |= gpu.ask_fields(calls.FIELDS_OF_A_PASS)
        values |= gpu.ask_slow(self._monotonic(), self._slow_s, loaded=loaded)
        for name, call in calls.INSTEAD_OF_FIELD.items():
            if name not in values:
                values |= gpu.ask(call)
        if gpu.facts.uuid in self._xids:
            values["last_xid"] = self._xids[gpu.facts.uuid]
        return values

    def _ask_own(self, device: Device, gpu_handle: Any) -> Values:
        values: Values = {}
        for ladder in calls.OWN_CALLS:
            values |= device.ask(*ladder)
        values |= device.ask_processes(self._monotonic())
        if self._gpm_allowed:
            values |= self._ask_gpm(device, gpu_handle)
        return values

    def _ask_gpm(self, device: Device, gpu_handle: Any) -> Values:
        values = device.ask_gpm(self._monotonic(), gpu_handle)
        for counter, ratio in INTEGRALS.items():
            if ratio in values and device.gpm is not None:
                piece = (device.gpm.span_s, values[ratio])
                values[counter] = self._integrals.grow(device.facts.uuid, counter, [piece])
        return values


def _is_restless(gpu: Device, now_s: float) -> bool:
    return gpu.restless.at(now_s) and UTIL not in gpu.flowing


def _whole(facts: GpuFacts) -> GpuFacts:
    """The physical GPU of a GPU or MIG instance."""
    uuid = facts.uuid.partition("/GI")[0]
    return replace(facts, uuid=uuid, mig_profile="", mig_uuid="", share=1.0, sources={}, owner=Owner())
