"""A libnvidia-ml.so.1 for machines without a GPU: built from tests/nvml/fake_nvml.c, answering from a
file. The real, unmodified pynvml loads it.

For processes that a test starts: `build` once, `write` the answers, and give the process the variables
of `environment`. For code in the test's own process: the fixture `nvml`, by a conftest.py that imports
it. Keys, values and faults of the answers: tests/nvml/README.md.
"""

from __future__ import annotations

import _ctypes
import ctypes
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pynvml
import pytest

SOURCE = Path(__file__).parent / "nvml" / "fake_nvml.c"
LIBRARY = "libnvidia-ml.so.1"
ANSWERS, TRACE = "UNIDLE_FAKE_NVML", "UNIDLE_FAKE_NVML_TRACE"

Gpu = dict[str, Any]
"""Keys of the answers without their `gpu.N.`; `mig` is a list of such maps."""
Faults = Mapping[tuple[int | str, str], str]
"""(GPU number, `driver`, or a scope such as `gpu.0.mig.1`; C function) -> what happens there."""


def build(directory: Path) -> Path:
    """Compile the library into `directory` and return it: put it on LD_LIBRARY_PATH."""
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("gcc is not installed: the NVML library of the tests cannot be built")
    command = [gcc, "-O1", "-Wall", "-Wextra", "-shared", "-fPIC", f"-Wl,-soname,{LIBRARY}"]
    subprocess.run([*command, "-o", str(directory / LIBRARY), str(SOURCE)], check=True)
    return directory


def gpu(number: int = 0, **changes: Any) -> Gpu:
    """A busy H100, each number of it different; `changes` have `__` for `.`, and None removes a key."""
    answers: Gpu = {
        "uuid": f"GPU-00000000-0000-4000-8000-{number:012d}",
        "name": "NVIDIA H100 80GB HBM3",
        "serial": f"16500000000{number:02d}",
        "minor": number,
        "pci_bus_id": f"00000000:{0x1B + number:02X}:00.0",
        **_device_calls(),
        **_field_values(),
        **_nvlinks(18),
        **_gpm(),
    }
    answers |= {name.replace("__", "."): value for name, value in changes.items()}
    return {key: value for key, value in answers.items() if value is not None}


WELL: Gpu = {"field__144": "u:0", "field__230": "u:0", "pcie__generation": 5}
"""Changes of `gpu` after which nothing is wrong with it: no row waits to be remapped, the driver asks for no
action, PCIe is at its best."""


def _device_calls() -> Gpu:
    """What has a function of its own."""
    return {
        "utilization.gpu": 93,
        "utilization.memory": 41,
        "memory.total": 85520809984,
        "memory.reserved": 627048448,
        "memory.free": 21474836480,
        "memory.used": 63418925056,
        "power_mw": 612001,
        "power_limit_mw": 700000,
        "clock.sm_mhz": 1755,
        "clock.memory_mhz": 2619,
        "temperature_c": 64,
        "margin_c": 23,
        "event_reasons": 0x4,
        "processes": "4711:63418925056",
        "supported_events": 0x8,
        **{f"samples.{kind}": "u" for kind in (0, 1, 2, 5)},  # there, and dry
        "pcie.width": 16,
        "pcie.width_max": 16,
        "pcie.generation": 4,
        "pcie.generation_max": 5,
        "fabric.state": 3,
        "fabric.health": 0x2A,
        "sram.threshold_exceeded": 0,
    }


def _field_values() -> Gpu:
    """Answers of nvmlDeviceGetFieldValues, by field id."""
    return {
        "field.3": "ull:12",
        "field.4": "ull:1",
        "field.5": "ull:340",
        "field.6": "ull:2",
        "field.74": "ull:1500000000",
        "field.82": "u:71",
        "field.83": "ull:987654321012",
        "field.94": "u:3",
        "field.142": "u:2",
        "field.143": "u:1",
        "field.144": "u:1",
        "field.303": "u:2",
        "field.304": "u:1",
        "field.305": "u:60",
        "field.306": "u:0",
        "field.307": "u:0",
        "field.145": "u:0",
        "field.185": "u:612345",
        "field.186": "u:598765",
        "field.269": "ull:2500000000",
        "field.270": "ull:3500000000",
        "field.271": "ull:4500000000",
        "field.230": "u:1",
    }


def _gpm() -> Gpu:
    """GPM metrics, by metric id; percent, and MiB/s from 20 on."""
    return {
        "gpm_supported": 1,
        "gpm.1": 92.5,
        "gpm.2": 71.25,
        "gpm.3": 33.5,
        "gpm.5": 44.75,
        "gpm.10": 55.125,
        "gpm.11": 0.0,
        "gpm.12": 12.5,
        "gpm.13": 1.5,
        "gpm.20": 100.0,
        "gpm.21": 200.0,
        "gpm.60": 300.0,
        "gpm.61": 400.0,
    }


def _nvlinks(links: int) -> Gpu:
    """That many NVLinks, all up and without an error."""
    answers: Gpu = {"field.91": f"u:{links}"}
    for link in range(links):
        scope = f".{link}" if link else ""
        answers[f"field.165{scope}"] = "u:1"
        answers |= {f"field.{number}{scope}": "ull:0" for number in range(206, 216)}
    return answers


def write(path: Path, gpus: Sequence[Gpu], faults: Faults | None = None, driver: str = "575.57.08") -> None:
    """Write the answers, all at once as seen by who reads them."""
    lines = [f"driver.version={driver}", "driver.nvml_version=12.575.57.08", f"gpus={len(gpus)}"]
    for number, answers in enumerate(gpus):
        for key, value in answers.items():
            if key == "mig":
                lines += [
                    f"gpu.{number}.mig.{i}.{k}={v}" for i, one in enumerate(value) for k, v in one.items()
                ]
            else:
                lines.append(f"gpu.{number}.{key}={value}")
    for (scope, function), fault in (faults or {}).items():
        prefix = f"gpu.{scope}" if isinstance(scope, int) else scope
        lines.append(f"{prefix}.fault.{function}={fault}")
    fresh = path.with_name(path.name + ".new")
    fresh.write_text("\n".join(lines) + "\n")
    fresh.replace(path)


def environment(library: Path, answers: Path) -> dict[str, str]:
    """What a process needs in its environment to find the library and its answers."""
    return {"LD_LIBRARY_PATH": str(library), ANSWERS: str(answers)}


class ShiftedClock:
    """The monotonic clock, which a test can put forward."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s


@dataclass
class FakeNvml:
    """The library and its answers, as a test moves them."""

    directory: Path
    answers: Path
    trace: Path
    gpus: list[Gpu] = field(default_factory=list)

    def write(self, *gpus: Gpu, faults: Faults | None = None) -> None:
        """From now on these are the GPUs."""
        self.gpus = list(gpus)
        write(self.answers, self.gpus, faults)

    def calls(self, function: str, scope: str | None = None) -> int:
        """How often `function` was called (of the GPU `scope`, `gpu.N`)."""
        lines = self.trace.read_text().splitlines() if self.trace.exists() else []
        return sum(line.endswith(f" {function}") and scope in (None, line.split()[0]) for line in lines)


@pytest.fixture(scope="session")
def nvml_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built library, once per session."""
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def nvml(nvml_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    """The library with one GPU, for this process and for those it starts; gone afterwards."""
    fake = FakeNvml(nvml_directory, tmp_path / "nvml.txt", tmp_path / "nvml-calls.txt")
    fake.write(gpu())
    for name, value in environment(nvml_directory, fake.answers).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(TRACE, str(fake.trace))
    # The loader reads LD_LIBRARY_PATH when a process starts; in this one, what is loaded already under
    # the same name is what pynvml gets.
    handle = ctypes.CDLL(str(nvml_directory / LIBRARY))._handle
    _forget_library()
    yield fake
    held = pynvml.nvmlLib
    _forget_library()
    if held is not None:
        _ctypes.dlclose(held._handle)
    _ctypes.dlclose(handle)


def _forget_library() -> None:
    """Let pynvml load its library again."""
    pynvml.nvmlLib = None
    pynvml._nvmlLib_refcount = 0
    pynvml._nvmlGetFunctionPointer_cache.clear()
