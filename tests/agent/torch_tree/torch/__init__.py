"""A stand-in for PyTorch: the names that the in-job reporter touches, with torch's own shapes.

Jobs of the tests put this folder's parent on their path. Names and signatures are those of torch 2.13.
"""

import sys
from types import ModuleType, SimpleNamespace


def _module(name, **names):
    module = ModuleType(name)
    module.__dict__.update(names)
    sys.modules[name] = module
    return module


UUID = "5f587dd4-1111-2222-3333-444455556666"
GIB = 2**30

float32, bfloat16, float16 = "torch.float32", "torch.bfloat16", "torch.float16"
observers = []
calls = []


def _part(current, peak):
    return {"all": {"current": current, "peak": peak, "allocated": peak, "freed": peak - current}}


statistics = {
    "allocated_bytes": _part(10 * GIB, 12 * GIB),
    "reserved_bytes": _part(20 * GIB, 20 * GIB),
    "active_bytes": _part(11 * GIB, 13 * GIB),
    "inactive_split_bytes": _part(2 * GIB, 3 * GIB),
    "num_alloc_retries": 0,
    "num_ooms": 0,
}


def _memory_stats(device):
    calls.append(device)
    return statistics


_C = _module(
    "torch._C",
    _cuda_memoryStats=_memory_stats,
    _cuda_getDevice=lambda: 0,
    _cuda_attach_out_of_memory_observer=observers.append,
)
cuda = _module(
    "torch.cuda",
    initialized=True,
    backend="native",
    is_initialized=lambda: cuda.initialized,
    get_allocator_backend=lambda: cuda.backend,
    get_device_properties=lambda index: SimpleNamespace(uuid=UUID, index=index),
)
compiler = _module("torch.compiler", compiling=False, is_compiling=lambda: compiler.compiling)
backends = SimpleNamespace(cuda=SimpleNamespace(matmul=SimpleNamespace(fp32_precision="ieee")))

_hooks = []
optim = _module("torch.optim")
optim.optimizer = _module("torch.optim.optimizer", register_optimizer_step_post_hook=_hooks.append)


class Parameter:
    def __init__(self, dtype=float32, device="cuda", index=0, elements=1):
        self.dtype, self.device, self.elements = dtype, SimpleNamespace(type=device, index=index), elements

    def numel(self):
        return self.elements


class SGD:
    def __init__(self, parameters):
        self.param_groups = [{"params": parameters}]

    def step(self):
        for hook in _hooks:
            hook(self, (), {})


optim.SGD = SGD


class _BaseDataLoaderIter:
    def __init__(self, batches):
        self._batches = iter(batches)

    def __iter__(self):
        return self

    def __next__(self):
        """The next batch."""
        return next(self._batches)


class _SingleProcessDataLoaderIter(_BaseDataLoaderIter):
    pass


def DataLoader(batches):  # noqa: N802 - torch's name
    return _SingleProcessDataLoaderIter(batches)


utils = _module("torch.utils")
utils.data = _module("torch.utils.data", DataLoader=DataLoader)
utils.data.dataloader = _module("torch.utils.data.dataloader", _BaseDataLoaderIter=_BaseDataLoaderIter)
_module("torch.utils.data._utils")
_module("torch.utils.data._utils.worker", _worker_info=None)


class autocast:  # noqa: N801 - torch's name
    def __init__(self, device_type, dtype=bfloat16, enabled=True):
        self.device, self.fast_dtype, self._enabled = device_type, dtype, enabled

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


amp = _module("torch.amp")
amp.autocast_mode = _module("torch.amp.autocast_mode", autocast=autocast)
