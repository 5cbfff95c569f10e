"""What the hosts of the simulated fleet would say: CPU, pressure, memory, disk and network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unidle_collector.simulator.hardware import hardware, levels

Floats32 = NDArray[np.float32]

RATES = {
    "psi_cpu_some_s": ("psi_cpu", 1e6),
    "psi_io_some_s": ("psi_io_some", 1e6),
    "psi_io_full_s": ("psi_io_full", 1e6),
    "disk_read_bytes": ("disk_read", 1.0),
    "disk_written_bytes": ("disk_written", 1.0),
    "net_received_bytes": ("net_received", 1.0),
    "net_sent_bytes": ("net_sent", 1.0),
    "ib_received_bytes": ("ib", 1.0),
    "ib_sent_bytes": ("ib", 1.0),
    "ib_link_errors": ("link_errors", 1.0),
}
"""Counter -> (signal, whole numbers of its resolution per unit of the signal)."""
STALLS = ("psi_cpu", "psi_io_some", "psi_io_full")
ALWAYS = {"cpu": 0.012, "iowait": 0.0006, "psi_cpu": 0.0005, "disk_written": 2e4, "net_sent": 3e4}
"""What a host does without any job."""
LOAD_TIME_S = 60.0


@dataclass(frozen=True, slots=True)
class Fabric:
    """The InfiniBand of the nodes: one port for each GPU."""

    used: NDArray[np.bool_]
    """[n, GPUs] does its job lie on several nodes."""
    port_down: NDArray[np.bool_]
    """[n, nodes] is the link of one port down."""
    errors_per_s: NDArray[np.floating]
    """[n, nodes]"""


class Hosts:
    """The hosts of `nodes` nodes with `gpus_per_node` GPUs each."""

    def __init__(self, nodes: int, gpus_per_node: int, rng: np.random.Generator) -> None:
        self._shape = (nodes, gpus_per_node)
        self._counters = {name: rng.integers(0, 10**12, nodes) for name in RATES}
        self._counters["ib_link_errors"] = rng.integers(0, 40, nodes)
        self._load = np.zeros(nodes)

    def run(
        self, workload: NDArray[np.int16], fabric: Fabric, noise: Floats32
    ) -> dict[str, NDArray[np.generic]]:
        """Every host field -> [n, nodes] for [n, GPUs] workloads and [n, nodes] normal noise."""
        hw, ports = hardware(), self._shape[1]
        busy = np.clip(self._mean("cpu", workload) * (1.0 + 0.02 * noise), 0.0, 0.99)
        iowait = np.clip(self._mean("iowait", workload) * (1.0 + 0.05 * noise), 0.0, 0.99 - busy)
        total = float(hw.host_memory_bytes)
        cached = np.clip(0.25 + 0.5 * iowait, 0.0, 0.6) * total
        columns: dict[str, NDArray[np.generic]] = {
            "cpu_busy_ratio": busy.astype(np.float32),
            "cpu_iowait_ratio": iowait.astype(np.float32),
            "load_1m": self._loads(hw.host_cores * (busy * (1.0 + self._mean("psi_cpu", workload)) + iowait)),
            "host_memory_total_bytes": np.full(busy.shape, total),
            "host_memory_available_bytes": np.rint(total * (0.82 - 0.2 * busy)),
            "page_cache_bytes": np.rint(cached),
            "psi_memory_some_s": np.zeros(busy.shape, dtype=np.uint64),
            "psi_memory_full_s": np.zeros(busy.shape, dtype=np.uint64),
            "ib_ports_active": (ports - fabric.port_down).astype(np.float32),
            "ib_ports_inactive": fabric.port_down.astype(np.float32),
            "ib_ports_slow": np.zeros(busy.shape, dtype=np.float32),
            "ib_transmit_waits": np.zeros(busy.shape, dtype=np.uint64),
        }
        nobody = np.int16(levels().index["empty"])
        sends = {"ib": self._mean("ib", np.where(fabric.used, workload, nobody))}
        sends["link_errors"] = fabric.errors_per_s / ports
        for name, (signal, per_unit) in RATES.items():
            rate = sends[signal] if signal in sends else self._mean(signal, workload)
            rate = rate * np.maximum(0.0, 1.0 + 0.05 * noise)
            rate = np.minimum(rate, 1.0) if signal in STALLS else rate * self._shape[1]
            rise = np.rint(rate * per_unit).astype(np.int64)
            counter = self._counters[name] + np.cumsum(rise, axis=0)
            self._counters[name] = counter[-1]
            columns[name] = counter.astype(np.uint64)
        return columns

    def _mean(self, signal: str, workload: NDArray[np.int16]) -> NDArray[np.float64]:
        """[n, nodes] mean level over a node's GPUs, on top of what the host always does."""
        level = levels().signal[signal][workload].reshape(len(workload), *self._shape)
        out: NDArray[np.float64] = level.mean(axis=2, dtype=np.float64) + ALWAYS.get(signal, 0.0)
        return out

    def _loads(self, tasks: NDArray[np.float64]) -> Floats32:
        """The kernel's one-minute average of `tasks` [n, nodes]."""
        keep = float(np.exp(-1.0 / LOAD_TIME_S))
        out = np.empty(tasks.shape, dtype=np.float32)
        for second, now in enumerate(tasks):
            self._load = self._load * keep + now * (1.0 - keep)
            out[second] = self._load
        return out
