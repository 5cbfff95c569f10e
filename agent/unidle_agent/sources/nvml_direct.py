"""The C functions that are called again and again, with structures that are made once.

nvidia-ml-py makes the structures of each call anew and reads every member through a hook in Python. That
is most of what a pass costs beside the driver itself, and the garbage of it is what makes a process grow.
Here the same library, functions and structures are used, kept per device and read as they are in memory.
Whatever is asked seldom goes through nvidia-ml-py. All calls raise pynvml.NVMLError.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from typing import Any

import pynvml

from unidle_agent.sample import Value

VALUE_FORMATS = ("d", "I", "L", "Q", "q", "i", "H")
"""How nvmlValue_t is read, by nvmlValueType_t: another way loses the sign, or half of the bits."""
_VALUES = tuple(struct.Struct(kind).unpack_from for kind in VALUE_FORMATS)


def call_code(function: str, *arguments: Any) -> int:
    """The return code of the C function, for codes that are no error; 13 where the driver has no such."""
    try:
        return int(pynvml._nvmlGetFunctionPointer(function)(*arguments))
    except pynvml.NVMLError as error:
        return int(error.value)


def call(function: str, *arguments: Any) -> None:
    """Call the C function; raises NVMLError where it fails, 13 where the driver has no such."""
    code = pynvml._nvmlGetFunctionPointer(function)(*arguments)
    if code != pynvml.NVML_SUCCESS:
        raise pynvml.NVMLError(int(code))


def plain(structure: Any) -> Any:
    """A structure of nvidia-ml-py without its hooks: the same members in the same places."""
    return type(structure.__name__, (ctypes.Structure,), {"_fields_": structure._fields_})


def value_of(kind: int, raw: bytes) -> Value | None:
    """What an nvmlValue_t of this nvmlValueType_t holds; None where the type is newer than we are."""
    return _VALUES[kind](raw)[0] if kind < len(_VALUES) else None


_FieldValue = plain(pynvml.c_nvmlFieldValue_t)
_FIELD = struct.Struct("IIqqII8s")
"""nvmlFieldValue_t: id, scope, timestamp, latency, value type, return code, value."""
_Utilization = plain(pynvml.c_nvmlUtilization_t)
_Memory = plain(pynvml.c_nvmlMemory_v2_t)
_Temperature = plain(pynvml.c_nvmlTemperature_v1_t)
_Margin = plain(pynvml.c_nvmlMarginTemperature_v1_t)


class Direct:
    """One device, and the structures of its calls. An answer holds until the next call of its kind."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self._number = ctypes.c_uint()
        self._number_at = ctypes.byref(self._number)
        self._bits = ctypes.c_ulonglong()
        self._bits_at = ctypes.byref(self._bits)
        self._utilization = _Utilization()
        self._utilization_at = ctypes.byref(self._utilization)
        self._memory = _Memory(version=pynvml.nvmlMemory_v2)
        self._temperature = _Temperature(
            version=pynvml.nvmlTemperature_v1, sensorType=pynvml.NVML_TEMPERATURE_GPU
        )
        self._margin = _Margin(version=pynvml.nvmlMarginTemperature_v1)

    def number(self, function: str, *arguments: int) -> int:
        """Of a function that gives one unsigned int."""
        call(function, self.handle, *arguments, self._number_at)
        return self._number.value

    def bits(self, function: str) -> int:
        """Of a function that gives one unsigned long long."""
        call(function, self.handle, self._bits_at)
        return self._bits.value

    def utilization(self) -> Any:
        """With `gpu` and `memory`, percent."""
        call("nvmlDeviceGetUtilizationRates", self.handle, self._utilization_at)
        return self._utilization

    def memory(self) -> Any:
        """With `total`, `reserved`, `free` and `used`, bytes."""
        call("nvmlDeviceGetMemoryInfo_v2", self.handle, ctypes.byref(self._memory))
        return self._memory

    def temperature_c(self) -> int:
        """Of the GPU's core."""
        call("nvmlDeviceGetTemperatureV", self.handle, ctypes.byref(self._temperature))
        return int(self._temperature.temperature)

    def margin_c(self) -> int:
        """Signed distance to the thermal limit."""
        call("nvmlDeviceGetMarginTemperature", self.handle, ctypes.byref(self._margin))
        return int(self._margin.marginTemperature)


class FieldBatch:
    """The same fields of one device, in one call: the driver merges those that it gets from one place."""

    def __init__(self, handle: Any, wanted: Sequence[tuple[int, int]]) -> None:
        """`wanted` are (field id, scope)."""
        self._handle = handle
        self._entries = (_FieldValue * len(wanted))(*[_FieldValue(*field) for field in wanted])
        self._arguments = ctypes.c_int32(len(wanted)), ctypes.byref(self._entries)
        self._answers = memoryview(self._entries).cast("B")

    def ask(self) -> list[tuple[int, Value]]:
        """Return code and value of each, in the order of `wanted`; the value counts where the code is 0."""
        call("nvmlDeviceGetFieldValues", self._handle, *self._arguments)
        answers: list[tuple[int, Value]] = []
        for _, _, _, _, kind, code, raw in _FIELD.iter_unpack(self._answers):
            if code != 0:  # NVML_SUCCESS
                answers.append((code, 0))
            elif kind < len(_VALUES):
                answers.append((0, _VALUES[kind](raw)[0]))
            else:
                answers.append((pynvml.NVML_ERROR_UNKNOWN, 0))
        return answers
