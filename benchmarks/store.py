"""Measure the collector's store: encodings, and the way from an accepted batch to an answer.

    python -m benchmarks.store encodings              # what docs/adr/0002-embedded-store.md compares
    python -m benchmarks.store path --gpus 4096       # CPU and bytes from the log to segments and roll-ups
    python -m benchmarks.store queries --gpus 10000   # a fixture of 24 h, and what is asked of it

The data is synthetic and noisy on purpose: every activity ratio, power, clock and traffic changes every
second. CPU seconds are of this process, all threads.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from unidle_agent.fields import GPU_FIELDS, Field
from unidle_agent.wire import Batch, GpuFacts, Owner, encode
from unidle_collector.store import KeepRollups, Store, columns
from unidle_collector.store.columns import DTYPES
from unidle_collector.store.compaction import HOUR_NS

SECOND = 1_000_000_000
START = 1_750_000_000 * SECOND
GPUS_PER_NODE = 8
BATCH_S = 5
MIB = 2**20
FORTY = (
    *("gpu_util_ratio", "memory_util_ratio", "encoder_util_ratio", "decoder_util_ratio"),
    *("graphics_active_ratio", "sm_active_ratio", "sm_occupancy_ratio", "tensor_active_ratio"),
    *("dram_active_ratio", "fp64_active_ratio", "fp32_active_ratio", "fp16_active_ratio"),
    *("gpu_busy_s", "sm_active_s", "tensor_active_s"),
    *("memory_total_bytes", "memory_used_bytes", "memory_free_bytes", "process_count"),
    *("power_w", "power_instant_w", "power_limit_w", "energy_j"),
    *("sm_clock_hz", "memory_clock_hz", "temperature_c", "memory_temperature_c", "thermal_margin_c"),
    *("clock_event_reasons", "power_cap_s", "thermal_throttle_s"),
    *("pcie_tx_bytes_per_s", "pcie_rx_bytes_per_s", "nvlink_tx_bytes_per_s", "nvlink_rx_bytes_per_s"),
    *("pcie_width", "pcie_generation", "ecc_corrected_volatile", "last_xid", "gpu_state"),
)
"""The fields that are measured with."""
QUERIED = (
    "power_w",
    "sm_active_ratio",
    "gpu_util_ratio",
    "memory_used_bytes",
    "energy_j",
    "clock_event_reasons",
)
"""The fields of the queries' fixture."""


def fleet(
    gpus: int, seconds: int, rng: np.random.Generator, names: Sequence[str] = ()
) -> dict[str, NDArray[Any]]:
    """Field -> [gpus, seconds] as on the wire (counters in steps of their resolution); `names` or all."""
    return {
        spec.name: _clean(spec, _values(spec, gpus, seconds, rng)).astype(DTYPES[spec.dtype])
        for spec in GPU_FIELDS
        if not names or spec.name in names
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


@dataclass(frozen=True, slots=True)
class Sizes:
    """What `stored` measured."""

    values: int
    """Non-null values sent."""
    bytes_per_value: float
    """Rows, roll-ups and histograms, by value sent."""
    rollup_bytes_per_value: float
    """Of those, what is not rows."""
    cpu_s_per_million_rows: float
    """From the closed log to segments and roll-ups, merging included."""


def stored(
    gpus: int, seconds: int, fields: Sequence[str], directory: Path, *, in_memory: bool = True
) -> Sizes:
    """Put the noisy fleet through a store of its own, an hour of receipt at most, and merge what is merged.

    `in_memory`: the decoded batches are handed along, as the collector does, not read from the log.
    """
    data = fleet(gpus, seconds, np.random.default_rng(1))
    store = Store(directory)
    cpu_s = 0.0
    for first in range(0, seconds, BATCH_S):
        now_ns = START + (first + BATCH_S) * SECOND
        for batch in _batches({name: data[name] for name in fields}, gpus, first):
            store.append(encode(batch), now_ns, batch=batch if in_memory else None)
        store.sync()
        began = time.process_time()
        store.upkeep(now_ns)
        cpu_s += time.process_time() - began
    began = time.process_time()
    store.convert_all(START + (seconds + 60) * SECOND)
    store.upkeep(START + (seconds + 7200) * SECOND)
    cpu_s += time.process_time() - began
    sizes, values = store.sizes(), gpus * seconds * len(fields)
    store.close()
    return Sizes(
        values=values,
        bytes_per_value=(sizes["segments"] + sizes["rollups"]) / values,
        rollup_bytes_per_value=sizes["rollups"] / values,
        cpu_s_per_million_rows=cpu_s / (gpus * seconds) * 1e6,
    )


def path_of(gpus: int, seconds: int) -> None:
    """Print what `stored` measures, with batches from memory and from the log."""
    print(f"{gpus} GPUs x {seconds} s x {len(FORTY)} fields, batches of {BATCH_S} s")
    for name, in_memory in (("from memory", True), ("from the log", False)):
        with tempfile.TemporaryDirectory(dir=".") as directory:
            sizes = stored(gpus, seconds, FORTY, Path(directory), in_memory=in_memory)
        print(
            f"  {name:<13} {sizes.cpu_s_per_million_rows:.2f} CPU s/M rows; "
            f"{sizes.bytes_per_value:.2f} bytes/value, {sizes.rollup_bytes_per_value:.2f} of them not rows"
        )
    print(f"  peak RSS      {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


def make_fixture(directory: Path, gpus: int = 10_000, raw_gpus: int = 200, hours: int = 24) -> None:
    """A store for queries, made by the product's own writer: roll-ups for all GPUs, rows at 1 s for some.

    All GPUs have a row a minute over `hours`, of which every roll-up is made; those rows go again but for
    the last. The first `raw_gpus` have rows at 1 s over the last hour, in log files of a minute. Every 16
    GPUs are a job.
    """
    rng = np.random.default_rng(1)
    begin = START // HOUR_NS * HOUR_NS
    store = Store(
        directory, keep_days=0.06, keep_rollups=KeepRollups(days_10s=3000, days_1m=3000, days_1h=3000)
    )
    minute = 60 * SECOND
    for hour in range(hours - 1):
        data = fleet(gpus, 60, rng, QUERIED)
        now_ns = begin + (hour + 1) * HOUR_NS
        for batch in _batches(
            {name: data[name] for name in QUERIED}, gpus, 0, begin + hour * HOUR_NS, 60, minute
        ):
            store.append(encode(batch), now_ns - minute, batch=batch)
        store.sync()
        store.convert_all(now_ns)
        print(f"  fixture: {hour + 1} of {hours} hours", file=sys.stderr)
    last = begin + (hours - 1) * HOUR_NS
    data = fleet(gpus, 60, rng, QUERIED)
    some = fleet(raw_gpus, 3600, rng, QUERIED)
    for number in range(60):
        now_ns = last + (number + 1) * minute
        slow = {name: data[name][:, number : number + 1] for name in QUERIED}
        fast = {name: some[name][:, number * 60 : (number + 1) * 60] for name in QUERIED}
        others = {name: values[raw_gpus:] for name, values in slow.items()}
        for batch in (
            *_batches(fast, raw_gpus, 0, last + number * minute, 60),
            *_batches(others, gpus - raw_gpus, 0, last + number * minute, 1, minute, first_gpu=raw_gpus),
        ):
            store.append(encode(batch), now_ns, batch=batch)
        store.sync()
        store.convert_all(now_ns)
    store.close()


def queries(directory: Path, hours: int = 24) -> dict[str, float]:
    """Milliseconds over the store of `make_fixture`: median of 5, each of another GPU or job."""
    store = Store(directory)
    start = START // HOUR_NS * HOUR_NS
    end = start + hours * HOUR_NS

    def ask(work: Callable[[int], NDArray[Any] | float]) -> float:
        times = []
        for number in range(5):
            began = time.perf_counter()
            answer = work(number * 7 + 3)
            times.append((time.perf_counter() - began) * 1e3)
            assert np.isfinite(answer).mean() > 0.9, "a query that answers nothing measures nothing"
        return float(np.median(times))

    def gpu(number: int) -> tuple[str, str]:
        return f"node-{number // GPUS_PER_NODE:05d}", f"GPU-{number:08d}"

    def p95(number: int) -> float:
        found = store.job_quantile(f"job-{number}", "power_w", 0.95)
        assert found is not None
        return found.high

    try:
        return {
            "gpu_24h": ask(lambda n: store.series(*gpu(n * 23), "power_w", start, end, 60)[1]),
            "fleet_mean_24h": ask(lambda _: store.fleet("power_w", start, end, 60).values),
            "job_p95": ask(p95),
            "gpu_raw_1h": ask(lambda n: store.series(*gpu(n), "power_w", end - HOUR_NS, end, 1)[1]),
        }
    finally:
        store.close()


def query_of(gpus: int, hours: int) -> None:
    """Make the fixture and print its queries."""
    with tempfile.TemporaryDirectory(dir=".") as directory:
        make_fixture(Path(directory), gpus, hours=hours)
        print(f"{gpus} GPUs x {hours} h by roll-ups, 200 GPUs x 1 h at 1 s, {len(QUERIED)} fields")
        for name, milliseconds in queries(Path(directory), hours).items():
            print(f"  {name:<15} {milliseconds:7.1f} ms")


def _batches(
    data: dict[str, NDArray[Any]],
    gpus: int,
    first: int,
    start_ns: int = START,
    instants: int = BATCH_S,
    period_ns: int = SECOND,
    first_gpu: int = 0,
) -> Iterator[Batch]:
    """`data[:, first : first + instants]` as every node sends it, in batches of 60 instants at most."""
    times = [start_ns + (first + instant) * period_ns for instant in range(instants)]
    for begin in range(0, gpus, GPUS_PER_NODE):
        names = tuple(f"GPU-{first_gpu + gpu:08d}" for gpu in range(begin, min(begin + GPUS_PER_NODE, gpus)))
        yield Batch(
            node=f"node-{(first_gpu + begin) // GPUS_PER_NODE:05d}",
            boot="boot",
            seq=times[0] // SECOND,
            sent_ns=times[-1],
            period_s=period_ns / SECOND,
            times_ns=times,
            gpus=names,
            columns={
                name: np.ascontiguousarray(
                    values[begin : begin + GPUS_PER_NODE, first : first + instants].T
                ).tobytes()
                for name, values in data.items()
            },
            host={},
            facts_id=1,
            facts=tuple(GpuFacts(gpu, owner=Owner(True, f"job-{int(gpu[4:]) // 16}")) for gpu in names),
        )


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["encodings", "path", "queries"])
    parser.add_argument("--gpus", type=int, default=2048)
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--hours", type=int, default=24)
    args = parser.parse_args()
    if args.what == "queries":
        query_of(args.gpus, args.hours)
    else:
        {"encodings": encodings, "path": path_of}[args.what](args.gpus, args.seconds)


if __name__ == "__main__":
    main()
