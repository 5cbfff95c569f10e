"""Measure the collector's store: encodings, and the way from an accepted batch to an answer.

    python benchmarks/store.py encodings          # what docs/adr/0002-embedded-store.md compares
    python benchmarks/store.py path --gpus 512    # log, conversion, merging, queries

The data is synthetic and noisy on purpose: every activity ratio, power, clock and traffic changes every
second. CPU seconds are of this process, all threads.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from unidle_agent.fields import GPU_FIELDS, Field
from unidle_agent.wire import Batch, encode
from unidle_collector.store import Store, columns
from unidle_collector.store.columns import DTYPES

SECOND = 1_000_000_000
START = 1_750_000_000 * SECOND
GPUS_PER_NODE = 8
BATCH_S = 5
MIB = 2**20


def fleet(gpus: int, seconds: int, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """Field -> [gpus, seconds] as on the wire (counters in steps of their resolution)."""
    return {
        spec.name: _clean(spec, _values(spec, gpus, seconds, rng)).astype(DTYPES[spec.dtype])
        for spec in GPU_FIELDS
    }


def _values(spec: Field, gpus: int, seconds: int, rng: np.random.Generator) -> NDArray[Any]:
    shape, level = (gpus, seconds), rng.uniform(0.2, 0.9, (gpus, 1))
    if spec.name == "energy_j":
        return 10**12 + np.cumsum(rng.normal(700e3, 20e3, shape), 1)
    if spec.name == "power_cap_s":
        return 10**12 + np.cumsum((rng.random(shape) < 0.2) * rng.integers(0, SECOND, shape), 1)
    if spec.name == "clock_event_reasons":
        return (rng.random(shape) < 0.05) * 4
    if spec.dtype == "u8":
        return np.full(shape, rng.integers(0, 5, (gpus, 1)))
    if spec.unit == "1":
        return np.clip(level + rng.normal(0, 0.03, shape), 0, 1)
    if spec.name in ("memory_used_bytes", "memory_free_bytes"):
        steps = rng.integers(-3, 4, shape) * (rng.random(shape) < 0.3)
        return (np.rint(100e9 * level / (2 * MIB)) + np.cumsum(steps, 1)) * 2 * MIB
    if spec.unit == "W":
        return np.full(shape, 1000.0) if "limit" in spec.name else rng.normal(700, 25, shape)
    if spec.name == "sm_clock_hz":
        return (1905 + 15 * np.rint(rng.normal(0, 0.5, shape))) * 1e6
    if spec.unit == "Cel":
        return np.rint(65 + rng.normal(0, 0.6, shape))
    if spec.unit == "By/s":
        return np.abs(level * 20e9 + rng.normal(0, 2e9, shape))
    return np.full(shape, {"By": 192e9, "Hz": 3996e6}.get(spec.unit, 1.0))


def _clean(spec: Field, values: NDArray[Any]) -> NDArray[Any]:
    """On the grid that the sensor has: its resolution."""
    return np.rint(values) if spec.dtype == "u8" else np.rint(values / spec.resolution) * spec.resolution


def encodings(gpus: int, seconds: int) -> None:
    """Bytes per value and CPU of writing the same rows in several ways."""
    data = fleet(gpus, seconds, np.random.default_rng(1))
    rows = gpus * seconds
    kept = {spec.name: columns.to_arrow(spec, data[spec.name].ravel()) for spec in GPU_FIELDS}
    steps = {
        spec.name: data[spec.name].ravel()
        if spec.dtype == "u8"
        else np.rint(data[spec.name].ravel() / spec.resolution).astype("i8")
        for spec in GPU_FIELDS
    }
    floats = {name: data[name].ravel() for name in data}
    delta, split = "DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT"
    ways: list[tuple[str, dict[str, Any], Callable[[Any], str], int]] = [
        ("steps of the resolution, delta", steps, lambda _: delta, 1),
        ("floats, byte stream split", floats, lambda t: split if pa.types.is_floating(t) else delta, 1),
        ("by resolution (chosen)", kept, lambda t: split if pa.types.is_floating(t) else delta, 1),
        ("by resolution, zstd 3", kept, lambda t: split if pa.types.is_floating(t) else delta, 3),
    ]
    print(f"{gpus} GPUs x {seconds} s x {len(GPU_FIELDS)} fields, zstd 1 unless said")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "one.parquet"
        for name, arrays, encoding, level in ways:
            table = pa.table(arrays)
            began = time.process_time()
            pq.write_table(
                table,
                path,
                compression="zstd",
                compression_level=level,
                use_dictionary=False,
                column_encoding={field.name: encoding(field.type) for field in table.schema},
                write_statistics=False,
                store_decimal_as_integer=True,
            )
            cpu_s = time.process_time() - began
            size = path.stat().st_size / rows / len(GPU_FIELDS)
            print(f"  {name:<32} {size:5.2f} bytes/value  {cpu_s / rows * 1e6:5.2f} CPU s/M rows")


def path_of(gpus: int, seconds: int) -> None:
    """Batches of 5 s from every node through log, segments and queries."""
    data = fleet(gpus, seconds, np.random.default_rng(1))
    rows = gpus * seconds
    per_field = rows * len(GPU_FIELDS)
    with tempfile.TemporaryDirectory(dir=".") as directory:
        store = Store(Path(directory))
        waits, cpu_s = [], 0.0
        for first in range(0, seconds, BATCH_S):
            sent = [encode(batch) for batch in _batches(data, gpus, first)]
            began_cpu, began = time.process_time(), time.perf_counter()
            for one in sent:
                store.append(one, START + first * SECOND)
            store.sync()
            waits.append(time.perf_counter() - began)
            cpu_s += time.process_time() - began_cpu
        log_bytes = store.sizes()["log"]
        print(f"{gpus} GPUs x {seconds} s x {len(GPU_FIELDS)} fields, zlib batches of {BATCH_S} s")
        print(f"  log         {log_bytes / per_field:.2f} bytes/field, {cpu_s / rows * 1e6:.2f} CPU s/M rows")
        print(f"  group sync  median {np.median(waits) * 1e3:.1f} ms, longest {max(waits) * 1e3:.1f} ms")
        _timed("conversion", rows, lambda: store.upkeep(START + (seconds + 60) * SECOND))
        print(f"  segments    {store.sizes()['segments'] / per_field:.2f} bytes/field")
        _query(store, seconds)
        _timed("merging", rows, lambda: store.upkeep(START + (seconds + 7200) * SECOND))
        print(f"  merged      {store.sizes()['segments'] / per_field:.2f} bytes/field")
        _query(store, seconds)
        print(f"  peak RSS    {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
        store.close()


def _batches(data: dict[str, NDArray[Any]], gpus: int, first: int) -> list[Batch]:
    times = [START + (first + second) * SECOND for second in range(BATCH_S)]
    return [
        Batch(
            node=f"node-{begin // GPUS_PER_NODE:05d}",
            boot="boot",
            seq=first,
            sent_ns=times[-1],
            period_s=1.0,
            times_ns=times,
            gpus=tuple(f"GPU-{gpu:08d}" for gpu in range(begin, begin + GPUS_PER_NODE)),
            columns={
                name: values[begin : begin + GPUS_PER_NODE, first : first + BATCH_S].T.tobytes()
                for name, values in data.items()
            },
            host={},
        )
        for begin in range(0, gpus, GPUS_PER_NODE)
    ]


def _timed(name: str, rows: int, work: Callable[[], object]) -> None:
    began_cpu, began = time.process_time(), time.perf_counter()
    work()
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
    print(f"  {name:<11} {cpu_s / rows * 1e6:.2f} CPU s/M rows, {wall_s:.2f} s")


def _query(store: Store, seconds: int) -> None:
    times = []
    for _ in range(5):
        began = time.perf_counter()
        store.series("node-00003", "GPU-00000027", "power_w", START, START + seconds * SECOND, 10)
        times.append(time.perf_counter() - began)
    print(f"  query       one GPU, one field, {seconds} s: {np.median(times) * 1e3:.0f} ms")


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["encodings", "path"])
    parser.add_argument("--gpus", type=int, default=512)
    parser.add_argument("--seconds", type=int, default=60)
    args = parser.parse_args()
    {"encodings": encodings, "path": path_of}[args.what](args.gpus, args.seconds)


if __name__ == "__main__":
    main()
