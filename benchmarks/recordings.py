"""What `unidle diagnose` takes for large recordings: processor time and memory.

    python -m benchmarks.recordings             # 1 h of 8 GPUs at 10 Hz as CSV, 3 h of 64 at 1 Hz as Parquet
    python -m benchmarks.recordings --hours 24  # the second of a whole day

20 fields each, of a wait in collectives: all detectors have something to look at. Simulated.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq

START_S = 1_760_000_000
FIELDS = {
    "DCGM_FI_DEV_GPU_UTIL": 98, "DCGM_FI_PROF_SM_ACTIVE": 0.5, "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": 0.13,
    "DCGM_FI_PROF_DRAM_ACTIVE": 0.34, "DCGM_FI_DEV_POWER_USAGE": 450, "DCGM_FI_DEV_FB_USED": 36_000,
    "DCGM_FI_DEV_FB_FREE": 45_000, "DCGM_FI_PROF_PCIE_RX_BYTES": 1.8e9, "DCGM_FI_PROF_PCIE_TX_BYTES": 1.8e9,
    "DCGM_FI_PROF_NVLINK_TX_BYTES": 5e10, "DCGM_FI_PROF_NVLINK_RX_BYTES": 5e10, "DCGM_FI_DEV_SM_CLOCK": 1_980,
    "DCGM_FI_DEV_MEM_CLOCK": 2_600, "DCGM_FI_DEV_GPU_TEMP": 60, "DCGM_FI_DEV_MEMORY_TEMP": 70,
    "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS": 0, "DCGM_FI_DEV_MEM_COPY_UTIL": 40,
    "DCGM_FI_PROF_GR_ENGINE_ACTIVE": 0.98, "DCGM_FI_PROF_SM_OCCUPANCY": 0.2,
    "DCGM_FI_PROF_PIPE_FP32_ACTIVE": 0.1,
}  # fmt: skip
"""Name -> mean, in DCGM's unit."""


def table(seconds: int, hz: int, nodes: int) -> pa.Table:
    """Rows of `nodes` nodes of 8 GPUs, instant by instant."""
    rng = np.random.default_rng(1)
    instants, gpus = seconds * hz, nodes * 8
    columns = {
        "timestamp": pa.array(np.repeat(START_S + np.arange(instants) / hz, gpus)),
        "node": pa.array([f"n{gpu // 8}" for gpu in range(gpus)]).take(
            pa.array(np.tile(np.arange(gpus), instants))
        ),
        "gpu": pa.array(np.tile(np.arange(gpus) % 8, instants)),
    }
    for name, mean in FIELDS.items():
        values = mean * (1 + 0.02 * rng.standard_normal(instants * gpus))
        columns[name] = pa.array(np.minimum(values, 1).round(5) if mean < 1 else values.round())
    columns["DCGM_FI_DEV_GPU_UTIL"] = pa.array(np.full(instants * gpus, 98))
    return pa.table(columns)


def measured(path: Path, what: str) -> dict[str, float | str]:
    """Diagnose a file in a process of its own."""
    begun = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-m", "unidle_agent.cli", "diagnose", str(path), "--json"], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"unidle diagnose ended with {child.returncode}")
    return {
        "what": what,
        "file_mb": round(path.stat().st_size / 1e6, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "wall_s": round(time.perf_counter() - begun, 1),
        "peak_gb": round(usage.ru_maxrss * 1024 / 1e9, 2),
    }


def main() -> None:
    """Write, diagnose, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hours", type=int, default=3, help="length of the recording at 1 Hz (default: 3)")
    hours = parser.parse_args().hours
    with tempfile.TemporaryDirectory() as folder:
        fast, long = Path(folder, "fast.csv"), Path(folder, "long.parquet")
        arrow_csv.write_csv(table(3600, 10, 1), fast)
        print(json.dumps(measured(fast, "1 h of 8 GPUs at 10 Hz, 20 fields, CSV")), flush=True)
        fast.unlink()
        with pq.ParquetWriter(long, table(1, 1, 8).schema) as writer:
            for hour in range(hours):
                part = table(3600, 1, 8)
                at = part.column_names.index("timestamp")
                later = pa.array(part["timestamp"].to_numpy() + 3600 * hour)
                writer.write_table(part.set_column(at, "timestamp", later))
        print(json.dumps(measured(long, f"{hours} h of 64 GPUs at 1 Hz, 20 fields, Parquet")))


if __name__ == "__main__":
    main()
