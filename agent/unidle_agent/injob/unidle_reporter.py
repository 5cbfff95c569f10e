"""Tells the unidle agent of this node how a PyTorch job uses its GPUs. One file, standard library only.

Copy it beside your job, or leave it to the .pth file (`python -m unidle_agent.injob --pth`), then either

    import unidle_reporter
    unidle_reporter.start("/run/unidle/reporter.sock")

or set UNIDLE_REPORTER=/run/unidle/reporter.sock. At most once a second, from the thread that trains, one
Unix datagram of some 400 bytes goes to the agent: allocator statistics, steps and step time, time spent
waiting for the DataLoader, number format. No names, no paths, no arguments, no data of the job.

It never blocks and never raises: a message that the agent does not take at once is dropped. It has no
thread and holds no file descriptor, so there is nothing to survive a fork or to stop at exit, and it reads
the allocator only between two steps or batches. It never imports torch; it waits until the job does. Python
3.8 and newer.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any

VARIABLE = "UNIDLE_REPORTER"
VERSION = 1
PERIOD_S = 1.0
SAMPLE_S = 30.0
"""How often the number format and the devices are looked up anew."""
PACE_S = 60.0
"""Silence after which another optimizer sets the pace, and after which the step count is unknown."""
MAX_DEVICES = 16
MAX_THREADS = 64
MAX_PARAMETERS = 64
"""About how many parameters of a group are looked at: a big model has thousands."""
MAX_FAILURES = 10
"""Messages in a row that could not be made, after which it is quiet for good."""

STATISTICS = (
    ("allocated", "allocated_bytes"),
    ("reserved", "reserved_bytes"),
    ("active", "active_bytes"),
    ("inactive_split", "inactive_split_bytes"),
)
"""Name in the message, name in the allocator's nested statistics (torch.cuda.memory_stats)."""
ASYNC_STATISTICS = STATISTICS[:2]
"""What the cudaMallocAsync backend keeps; its others are always 0, which would be a false 0 here."""

_reporters: list[_Reporter] = []
"""The one of this process, once started."""


def start(socket_path: str | None = None) -> bool:
    """Report to the agent's socket (default: $UNIDLE_REPORTER). False where none is named; never raises."""
    try:
        path = socket_path or os.environ.get(VARIABLE, "")
        if not path:
            return False
        if not _reporters:
            _reporters.append(_Reporter(path))
            if "torch" in sys.modules:
                _reporters[0].install()
            else:
                sys.meta_path.insert(0, _TorchFinder(_reporters[0].install))
        return True
    except Exception:
        return False


class _Reporter:
    """What one process has to tell. The hooks count; whoever comes when a message is due sends it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._installed = False
        self._begin()

    def _begin(self, *, asleep: bool = False) -> None:
        """A process that knows nothing yet. A forked one sleeps until it trains: most load data."""
        self._asleep = asleep
        self._lock = threading.Lock()
        self._due_s = 0.0
        self._number = self._failures = 0
        self._pace: Callable[[], Any] | None = None
        self._thread: int | None = None
        self._steps = self._spans = 0
        self._span_s = 0.0
        self._last_s: float | None = None
        self._waits: dict[int, float] = {}
        self._inside: set[int] = set()
        self._autocast: Any = None
        self._sampled_s: float | None = None
        self._dtype = ""
        self._devices: list[int] = []
        self._uuids: dict[int, str] = {}
        self._native = True
        self._observed = False

    def install(self) -> None:
        """Hook into the torch that the job has imported; what this version lacks is left out."""
        if self._installed:
            return
        self._installed = True
        os.register_at_fork(after_in_child=lambda: self._begin(asleep=True))
        for hook in (self._hook_optimizers, self._hook_loaders, self._hook_autocast):
            with suppress(Exception):  # an unknown torch is no reason to disturb the job
                hook()

    # The hooks

    def _hook_optimizers(self) -> None:
        torch = sys.modules["torch"]
        compiling = getattr(getattr(torch, "compiler", None), "is_compiling", bool)

        def stepped(optimizer: Any, args: Any, kwargs: Any) -> None:  # noqa: ARG001 - torch's signature
            if not compiling():  # inside torch.compile this function is traced: nothing may remain of it
                self.stepped(optimizer)

        sys.modules["torch.optim.optimizer"].register_optimizer_step_post_hook(stepped)

    def _hook_loaders(self) -> None:
        iterator = sys.modules["torch.utils.data.dataloader"]._BaseDataLoaderIter
        original = iterator.__next__

        def take(loader: Any) -> Any:
            began_s = self.asked()
            if began_s is None:
                return original(loader)
            try:
                return original(loader)
            finally:
                self.loaded(began_s)

        iterator.__next__ = _dressed(take, original)

    def _hook_autocast(self) -> None:
        autocast = sys.modules["torch.amp.autocast_mode"].autocast
        original = autocast.__enter__

        def enter(context: Any) -> Any:
            if getattr(context, "_enabled", False):
                self._autocast = getattr(context, "fast_dtype", None)
            return original(context)

        autocast.__enter__ = _dressed(enter, original)

    def stepped(self, optimizer: Any) -> None:
        """An optimizer has stepped. Of several, the first sets the pace and the others do not count."""
        try:
            now_s = monotonic()
            if self._pace is None or self._pace() is not optimizer:
                if not self._adopt(optimizer, now_s):
                    return
            elif self._last_s is not None:
                self._span_s += now_s - self._last_s
                self._spans += 1
            self._steps += 1
            self._last_s = now_s
            if now_s >= self._due_s:
                self._tell(now_s)
        except Exception:  # noqa: S110 - never into the job
            pass

    def asked(self) -> float | None:
        """A DataLoader is asked for a batch now. None where that is part of a wait already counted: a data
        set that itself reads from a DataLoader."""
        try:
            thread = threading.get_ident()
            if thread in self._inside:
                return None
            began_s = monotonic()
            self._inside.add(thread)
            return began_s
        except Exception:
            return None

    def loaded(self, began_s: float) -> None:
        """It has handed over the batch that was asked for at `began_s`, or has none left."""
        try:
            thread = threading.get_ident()
            self._inside.discard(thread)
            now_s = monotonic()
            if thread in self._waits or len(self._waits) < MAX_THREADS:
                self._waits[thread] = self._waits.get(thread, 0.0) + now_s - began_s
            if now_s >= self._due_s:
                self._tell(now_s)
        except Exception:  # noqa: S110 - never into the job
            pass

    def out_of_memory(self, device: int, asked: int, limit: int, free: int) -> None:
        """torch's observer, called before the exception rises: one message, due or not."""
        with suppress(Exception):
            self._tell(monotonic(), {"i": device, "asked": asked, "limit": limit, "free": free})

    def _adopt(self, optimizer: Any, now_s: float) -> bool:
        """Let `optimizer` set the pace, unless another does that lately."""
        if self._pace is not None and self._pace() is not None and self._quiet_s(now_s) < PACE_S:
            return False
        self._pace = weakref.ref(optimizer)
        self._thread = threading.get_ident()
        self._sampled_s = None
        self._asleep = False
        return True

    def _quiet_s(self, now_s: float) -> float:
        return float("inf") if self._last_s is None else now_s - self._last_s

    # The message

    def _tell(self, now_s: float, oom: dict[str, int] | None = None) -> None:
        """Send what is known, unless another thread is at it."""
        if self._asleep or not self._lock.acquire(False):
            return
        try:
            self._due_s = now_s + PERIOD_S
            message = self.message(now_s, oom)
            if message is not None:
                self._send(message)
            self._failures = 0
        except Exception:
            self._failures += 1
            if self._failures >= MAX_FAILURES:
                self._due_s = float("inf")
        finally:
            self._lock.release()

    def message(self, now_s: float, oom: dict[str, int] | None = None) -> bytes | None:
        """The next message; None in a process that neither trains nor uses a GPU."""
        torch = sys.modules["torch"]
        if getattr(sys.modules.get("torch.utils.data._utils.worker"), "_worker_info", None) is not None:
            return None
        cuda = sys.modules.get("torch.cuda")
        on_gpu = cuda is not None and cuda.is_initialized()
        if not on_gpu and not self._steps:
            return None
        if self._sampled_s is None or now_s - self._sampled_s >= SAMPLE_S:
            self._sample(torch)
            self._sampled_s = now_s
        self._number += 1
        stepping = self._quiet_s(now_s) < PACE_S
        document: dict[str, Any] = {
            "v": VERSION,
            "n": self._number,
            "pid": os.getpid(),
            "rank": _rank("RANK", "SLURM_PROCID"),
            "local_rank": _rank("LOCAL_RANK", "SLURM_LOCALID"),
            "steps": self._steps if stepping else None,
            "step_time_s": round(self._span_s / self._spans, 6) if self._spans else None,
            "wait_s": self._wait_s(),
            "dtype": self._dtype,
            "gpus": self._gpus(torch, cuda) if on_gpu else [],
        }
        self._spans, self._span_s = 0, 0.0
        if oom is not None:
            document["oom"] = oom
        import json

        return json.dumps(document, separators=(",", ":")).encode()

    def _wait_s(self) -> float | None:
        """Time the training thread has waited for data; unknown where it reads no DataLoader itself."""
        thread = threading.get_ident() if self._thread is None else self._thread
        wait_s = self._waits.get(thread)
        return None if wait_s is None else round(wait_s, 6)

    def _gpus(self, torch: Any, cuda: Any) -> list[dict[str, Any]]:
        if not self._observed:
            self._observed = True
            attach = getattr(torch._C, "_cuda_attach_out_of_memory_observer", None)
            if attach is not None and self._native:  # only the native allocator has observers
                attach(self.out_of_memory)
        return [self._gpu(torch, cuda, index) for index in self._devices[:MAX_DEVICES]]

    def _gpu(self, torch: Any, cuda: Any, index: int) -> dict[str, Any]:
        """The nested statistics as C gives them: flattening all of them would cost ten times as much."""
        nested = torch._C._cuda_memoryStats(index)
        out: dict[str, Any] = {"i": index, "uuid": self._uuid(cuda, index)}
        for name, key in STATISTICS if self._native else ASYNC_STATISTICS:
            part = nested.get(key)
            if part:
                out[name] = [part["all"]["current"], part["all"]["peak"]]
        if self._native:
            out["retries"], out["ooms"] = nested.get("num_alloc_retries"), nested.get("num_ooms")
        return out

    def _uuid(self, cuda: Any, index: int) -> str:
        if index not in self._uuids:
            text = str(getattr(cuda.get_device_properties(index), "uuid", "") or _visible(index))
            whole = text.startswith(("GPU-", "MIG-")) or not text
            self._uuids[index] = text if whole else "GPU-" + text
        return self._uuids[index]

    def _sample(self, torch: Any) -> None:
        """What changes rarely: the devices of the parameters, the current one, and the number format."""
        optimizer = None if self._pace is None else self._pace()
        devices, weights = _parameters(optimizer) if optimizer is not None else (set(), {})
        cuda = sys.modules.get("torch.cuda")
        if cuda is not None and cuda.is_initialized():
            devices.add(torch._C._cuda_getDevice())
            backend = getattr(cuda, "get_allocator_backend", None)
            self._native = backend is None or backend() == "native"
        self._devices = sorted(devices)
        used, self._autocast = self._autocast, None
        if used is None and weights:
            used = max(weights, key=lambda dtype: weights[dtype])
        name = "" if used is None else str(used).replace("torch.", "")
        self._dtype = "tf32" if name == "float32" and _tf32(torch) else name

    def _send(self, message: bytes) -> None:
        """Without waiting. The socket lives for one message: a kept one could be closed by the job, and
        its number then belong to a file or connection of the job."""
        import socket

        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto(message, self._path)
        except OSError:  # nobody there, or slow: the agent counts the gap in the numbers
            pass


def _parameters(optimizer: Any) -> tuple[set[int], dict[Any, int]]:
    """CUDA device numbers of the optimizer's parameters, and elements per number format, by sample."""
    devices: set[int] = set()
    weights: dict[Any, int] = {}
    for group in optimizer.param_groups:
        parameters = group["params"]
        for parameter in parameters[:: max(1, len(parameters) // MAX_PARAMETERS)]:
            weights[parameter.dtype] = weights.get(parameter.dtype, 0) + parameter.numel()
            if parameter.device.type == "cuda" and parameter.device.index is not None:
                devices.add(parameter.device.index)
    return devices, weights


def _tf32(torch: Any) -> bool:
    """May float32 products use the tensor cores. torch 2.9 asks for its newer name, older lack that."""
    try:
        return bool(torch.backends.cuda.matmul.fp32_precision == "tf32")
    except Exception:
        return bool(torch.get_float32_matmul_precision() != "highest")


def _rank(*variables: str) -> int | None:
    for variable in variables:
        text = os.environ.get(variable, "")
        if text.isdigit():
            return int(text)
    return None


def _visible(index: int) -> str:
    """The UUID of a device where torch (before 2.4) does not give it but CUDA_VISIBLE_DEVICES does."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    name = listed[index].strip() if index < len(listed) else ""
    return name if name.startswith("GPU-") and len(name) == 40 else ""


def _dressed(ours: Any, original: Any) -> Any:
    """`ours` with the name and the source of `original`, which TorchScript reads."""
    from functools import wraps

    return wraps(original)(ours)


class _TorchFinder:
    """Stands first among the import finders, calls `then` once torch is imported, and changes nothing."""

    def __init__(self, then: Callable[[], None]) -> None:
        self._then = then

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "torch":
            return None
        for finder in list(sys.meta_path):
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find else None
            if spec is not None:
                self._follow(spec)
                return spec
        return None

    def _follow(self, spec: Any) -> None:
        try:
            loader = spec.loader
            load = loader.exec_module

            def exec_module(module: Any) -> None:
                load(module)
                try:
                    del loader.exec_module
                    if self in sys.meta_path:
                        sys.meta_path.remove(self)
                    self._then()
                except Exception:  # noqa: S110 - never into the job
                    pass

            loader.exec_module = exec_module
        except Exception:  # noqa: S110 - a loader of another kind: then nothing is reported
            pass
