"""Recordings such as other people keep: six workloads from means measured on 8xH100, in many formats.

Simulated, all of it: the means are real, the noise and the bursts are drawn. A `Run` is what happened at
10 Hz; `seen` is what a tool that looks less often wrote down; each function of FORMATS writes that in the
form of one tool. Nothing here is read by the product.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

Floats = NDArray[np.float64]
START_S = 1_760_000_000
HZ = 10
MIB = 2**20
MODEL = "NVIDIA H100 80GB HBM3"
TOTAL_MIB = 81_559.0
LIMIT_W = 700.0
NAMES = (
    "util",
    "sm",
    "tensor",
    "dram",
    "power",
    "used",
    "rx",
    "tx",
    "nvtx",
    "nvrx",
    "clock",
    "temp",
    "reasons",
)
"""Ratios 0-1, W, MiB, bytes per second, MHz, degrees Celsius, bits."""


@dataclass(frozen=True, slots=True)
class Means:
    """Steady means of one GPU: percent, W, percent of memory, GB/s; `busy` is the share of the time in
    which anything runs."""

    util: float
    sm: float
    tensor: float
    dram: float
    power: float
    memory: float
    pcie: float
    nvlink: float
    capped: float = 0.0
    busy: float = 1.0


IDLE = Means(0, 0, 0, 0, 120, 20, 0.001, 0, busy=0.0)
OFFLOAD = Means(13.7, 9.0, 5.7, 3.9, 186, 40, 1.42, 5.0, capped=0.19, busy=0.17)
SPECULATIVE = Means(68.8, 23.8, 3.7, 14.8, 207, 23, 0.29, 0, busy=0.994)
SMALL_DP = Means(84.8, 63.8, 19.4, 32.3, 547, 15, 0.07, 8.9)
PARALLEL = Means(98, 48.5, 13.5, 34, 450, 45, 1.8, 50)
COMPUTE = Means(100, 87.7, 58.3, 36.9, 689, 87, 0.03, 1.5, capped=1.0)
LIGHT = Means(6, 3, 0.2, 1.5, 131, 20, 0.02, 0)
TRAINING = Means(99.5, 86, 48, 35, 685, 80, 0.05, 24, capped=1.0)

WORKLOADS: dict[str, tuple[Means, ...]] = {
    "idle_held": (IDLE,) * 8,
    "offload": (OFFLOAD,) * 8,
    "speculative": (SPECULATIVE,) * 8,
    "small_dp": (SMALL_DP,) * 8,
    "tensor_parallel": (PARALLEL,) * 8,
    "compute": (COMPUTE,) * 8,
    "half_node": (LIGHT,) * 4 + (TRAINING,) * 4,
}
"""causes.md section 3; where a column is empty there (memory, DRAM of the half node) a value is assumed."""


@dataclass(frozen=True, slots=True)
class Run:
    """`time_s` [T] since the begin, `columns` name -> [T, GPUs]."""

    time_s: Floats
    columns: dict[str, Floats]

    @property
    def gpus(self) -> int:
        return int(next(iter(self.columns.values())).shape[1])


def run(workload: str, seconds: float = 288.0, seed: int = 1) -> Run:
    """What happens at 10 Hz, of the GPUs of one node."""
    rng = np.random.default_rng([seed, *workload.encode()])
    gpus = WORKLOADS[workload]
    count = round(seconds * HZ)
    parts = [_gpu(means, count, rng) for means in gpus]
    columns = {name: np.stack([part[name] for part in parts], axis=1) for name in NAMES}
    return Run(np.arange(count) / HZ, columns)


def _gpu(m: Means, count: int, rng: np.random.Generator) -> dict[str, Floats]:
    def noisy(mean: float, spread: float = 0.04, most: float = np.inf) -> Floats:
        return np.clip(mean * (1 + spread * rng.standard_normal(count)), 0, most)

    on = np.ones(count) if m.busy in (0.0, 1.0) else _bursts(m.busy, count, rng)
    scale = on / on.mean()
    # Between bursts copies go on, at a power that leaves 92 W of spread in the offloaded run.
    between = noisy(145.0) if m.busy < 1.0 else 0.0
    power = noisy(m.power, 0.0025) if m.busy in (0.0, 1.0) else between + (m.power - 145.0) * scale
    capped = (rng.random(count) < m.capped) * 4.0 if m.capped in (0.0, 1.0) else on * 4.0
    flat = m.busy < 0.5  # copies go on while no kernel runs
    return {
        "util": np.clip(noisy(m.util / 100) * scale, 0, 1.0),
        "sm": np.clip(noisy(m.sm / 100) * scale, 0, 1.0),
        "tensor": np.clip(noisy(m.tensor / 100) * scale, 0, 1.0),
        "dram": np.clip(noisy(m.dram / 100) * scale, 0, 1.0),
        "power": np.minimum(power, 702.0),
        "used": np.full(count, m.memory / 100 * TOTAL_MIB),
        "rx": noisy(m.pcie * 1e9, 0.1) * (1.0 if flat else scale),
        "tx": noisy(m.pcie * 0.8e9, 0.1) * (1.0 if flat else scale),
        "nvtx": noisy(m.nvlink * 1e9, 0.1) * scale,
        "nvrx": noisy(m.nvlink * 1e9, 0.1) * scale,
        "clock": noisy(1980.0 if m.capped < 1 else 1755.0, 0.002),
        "temp": np.rint(noisy(35 + m.power / 25, 0.01)),
        "reasons": np.where(m.busy > 0, capped, 1.0),
    }


def _bursts(share: float, count: int, rng: np.random.Generator) -> Floats:
    """[count] 1 where something runs: bursts of about a second of the share that is wanted."""
    length = rng.integers(6, 15, count)
    gaps = np.maximum(np.rint(length * (1 - share) / share), 1 if share < 1 else 0).astype(int)
    if share > 0.9:
        return (rng.random(count) < share).astype(float)
    pieces = [np.repeat((1.0, 0.0), (n, gap)) for n, gap in zip(length, gaps, strict=True)]
    return np.concatenate(pieces)[rng.integers(0, 40) :][:count]


def seen(of: Run, each_s: float, mean: bool = False) -> Run:
    """What a tool has that looks each `each_s`; with `mean` it keeps means of it (states: the last)."""
    step = round(each_s * HZ)
    last = np.arange(step - 1, of.time_s.size, step)
    columns = {}
    for name, values in of.columns.items():
        whole = values[: last.size * step].reshape(last.size, step, -1)
        columns[name] = whole.mean(axis=1) if mean and name != "reasons" else values[last]
    return Run(of.time_s[last], columns)


def without(of: Run, *names: str) -> Run:
    """The same, as if these had not been measured."""
    return replace(of, columns={key: value for key, value in of.columns.items() if key not in names})


Row = dict[str, Any]
Writer = Callable[[Run, Path], list[Path]]

DCGM = {
    "util": ("DCGM_FI_DEV_GPU_UTIL", 203, 100.0, 0),
    "sm": ("DCGM_FI_PROF_SM_ACTIVE", 1002, 1.0, 6),
    "tensor": ("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", 1004, 1.0, 6),
    "dram": ("DCGM_FI_PROF_DRAM_ACTIVE", 1005, 1.0, 6),
    "power": ("DCGM_FI_DEV_POWER_USAGE", 155, 1.0, 3),
    "used": ("DCGM_FI_DEV_FB_USED", 252, 1.0, 0),
    "rx": ("DCGM_FI_PROF_PCIE_RX_BYTES", 1010, 1.0, 0),
    "tx": ("DCGM_FI_PROF_PCIE_TX_BYTES", 1009, 1.0, 0),
    "nvtx": ("DCGM_FI_PROF_NVLINK_TX_BYTES", 1011, 1.0, 0),
    "nvrx": ("DCGM_FI_PROF_NVLINK_RX_BYTES", 1012, 1.0, 0),
    "clock": ("DCGM_FI_DEV_SM_CLOCK", 100, 1.0, 0),
    "temp": ("DCGM_FI_DEV_GPU_TEMP", 150, 1.0, 0),
    "reasons": ("DCGM_FI_DEV_CLOCK_THROTTLE_REASONS", 112, 1.0, 0),
}
"""Name -> DCGM's name, its id, factor to its unit, digits."""


def uuid(gpu: int) -> str:
    return f"GPU-{gpu:08x}-1111-2222-3333-444455556666"


def iso(second: float) -> str:
    return datetime.fromtimestamp(START_S + second, UTC).isoformat(timespec="milliseconds")


def rows(of: Run) -> Iterator[tuple[float, int, dict[str, float]]]:
    """(second, GPU, name -> value), instant by instant."""
    for at, second in enumerate(of.time_s.tolist()):
        for gpu in range(of.gpus):
            yield second, gpu, {name: float(values[at, gpu]) for name, values in of.columns.items()}


def dcgm_values(sample: dict[str, float], key: int = 0) -> Row:
    """By name (0) or id (1), in DCGM's units."""
    out: Row = {}
    for name, value in sample.items():
        factor, digits = DCGM[name][2], DCGM[name][3]
        out[str(DCGM[name][key])] = round(value * factor, digits) if digits else round(value * factor)
    return out


def csv_text(records: list[Row], separator: str = ",") -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(records[0]), delimiter=separator)
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def csv_file(
    folder: Path, records: list[Row], name: str = "run.csv", before: str = "", separator: str = ","
) -> list[Path]:
    path = folder / name
    path.write_text(before + csv_text(records, separator))
    return [path]


# Tables, a row per GPU and instant


def dcgm_wide(of: Run, folder: Path) -> list[Path]:
    """DCGM's names, epoch seconds with a fraction."""
    return csv_file(folder, [{"timestamp": START_S + s, "gpu": g, **dcgm_values(v)} for s, g, v in rows(of)])


def dcgm_ids_wide(of: Run, folder: Path) -> list[Path]:
    """DCGM's ids as names of columns, a UUID, epoch in microseconds, blanks as DCGM prints them."""
    records = []
    for number, (s, g, v) in enumerate(rows(of)):
        values = dcgm_values(v, 1)
        if number % 50 == 7:
            values |= {"203": 2147483632, "1002": 140737488355328.0}
        records.append({"ts": round((START_S + s) * 1e6), "entityId": uuid(g), **values})
    return csv_file(folder, records)


def dcgm_ids_long(of: Run, folder: Path) -> list[Path]:
    """A row per value: field_id and value, nanoseconds, host and index in one."""
    records = [
        {"time_ns": round((START_S + s) * 1e9), "device": f"gpu-node-3:{g}", "field_id": key, "value": value}
        for s, g, v in rows(of)
        for key, value in dcgm_values(v, 1).items()
    ]
    return csv_file(folder, records)


def dcgm_long_parquet(of: Run, folder: Path) -> list[Path]:
    """Metric and value as categories, a timestamp with a zone."""
    records = [
        {
            "timestamp": pd.Timestamp(START_S + s, unit="s", tz="Europe/Berlin"),
            "host": "n1",
            "gpu_uuid": uuid(g),
            "metric": key,
            "value": float(value),
        }
        for s, g, v in rows(of)
        for key, value in dcgm_values(v).items()
    ]
    frame = pd.DataFrame(records).astype({"metric": "category", "gpu_uuid": "category"})
    frame.to_parquet(folder / "run.parquet")
    return [folder / "run.parquet"]


def smi_query(of: Run, folder: Path, units: bool = True) -> list[Path]:
    """nvidia-smi --query-gpu=... --format=csv, with what it cannot tell."""
    records = []
    for s, g, v in rows(of):
        moment = datetime.fromtimestamp(START_S + s, UTC)
        unit = (lambda text, of_it: f"{text} {of_it}") if units else (lambda text, of_it: text)
        records.append(
            {
                "timestamp": f"{moment:%Y/%m/%d %H:%M:%S}.{moment.microsecond // 1000:03d}",
                " index": f" {g}",
                " uuid": f" {uuid(g)}",
                " name": f" {MODEL}",
                " utilization.gpu [%]": " " + unit(f"{v['util'] * 100:.0f}", "%"),
                " utilization.memory [%]": " " + unit(f"{v['dram'] * 100:.0f}", "%"),
                " memory.used [MiB]": " " + unit(f"{v['used']:.0f}", "MiB"),
                " memory.total [MiB]": " " + unit(f"{TOTAL_MIB:.0f}", "MiB"),
                " power.draw [W]": " " + unit(f"{v['power']:.2f}", "W"),
                " enforced.power.limit [W]": " " + unit(f"{LIMIT_W:.2f}", "W"),
                " fan.speed [%]": " [N/A]",
                " clocks.current.sm [MHz]": " " + unit(f"{v['clock']:.0f}", "MHz"),
                " temperature.gpu": f" {v['temp']:.0f}",
                " clocks_event_reasons.active": f" 0x{int(v['reasons']):016x}",
            }
        )
    return csv_file(folder, records, "smi.csv")


def smi_query_nounits(of: Run, folder: Path) -> list[Path]:
    return smi_query(of, folder, units=False)


def script(of: Run, folder: Path) -> list[Path]:
    """Somebody's own script: a comment first, semicolons, units in names, no zone, mW, GB and GB/s."""
    records = [
        {
            "date": iso(s)[:-6].replace("T", " "),
            "hostname": "trn-01",
            "gpu_id": g,
            "gpu_util_percent": round(v["util"] * 100, 1),
            "sm_active_percent": round(v["sm"] * 100, 2),
            "tensor_active_percent": round(v["tensor"] * 100, 2),
            "dram_active_percent": round(v["dram"] * 100, 2),
            "power_mW": round(v["power"] * 1000),
            "mem_used_GB": round(v["used"] / 1024, 3),
            "pcie_rx_GBps": round(v["rx"] / 1e9, 4),
            "pcie_tx_GBps": round(v["tx"] / 1e9, 4),
            "nvlink_tx_GBps": round(v["nvtx"] / 1e9, 4),
            "nvlink_rx_GBps": round(v["nvrx"] / 1e9, 4),
            "comment": "",
        }
        for s, g, v in rows(of)
    ]
    return csv_file(
        folder, records, before="# run 17, node trn-01; 8 GPUs, driver 550\n# by hand\n", separator=";"
    )


def ratios(of: Run, folder: Path) -> list[Path]:
    """Short names without units, ratios 0-1, bytes, -1 where there is nothing, relative seconds."""
    records = []
    for number, (s, g, v) in enumerate(rows(of)):
        row = {
            "t": s,
            "device_index": g,
            "util": v["util"],
            "sm_util": v["sm"],
            "tensor_util": v["tensor"],
            "dram_util": v["dram"],
            "power_draw": v["power"],
            "memory_used": int(v["used"] * MIB),
            "pcie_rx": int(v["rx"]),
            "pcie_tx": int(v["tx"]),
            "nvlink_tx": int(v["nvtx"]),
        }
        if number % 40 == 3:
            row |= {"util": -1, "sm_util": -1, "power_draw": -1}
        records.append(row)
    return csv_file(folder, records)


def pandas_csv(of: Run, folder: Path) -> list[Path]:
    """A frame with its index of times, written by to_csv: the first name is empty."""
    frame = pd.DataFrame([{"gpu": g, **dcgm_values(v)} for _, g, v in rows(of)])
    frame.index = pd.DatetimeIndex([pd.Timestamp(START_S + s, unit="s") for s, _, _ in rows(of)])
    with pa.CompressedOutputStream(str(folder / "frame.csv.zst"), "zstd") as file:
        file.write(frame.to_csv().encode())
    return [folder / "frame.csv.zst"]


def pandas_parquet(of: Run, folder: Path) -> list[Path]:
    """The same by to_parquet: the index is `__index_level_0__`."""
    frame = pd.DataFrame([{"gpu": g, **dcgm_values(v)} for _, g, v in rows(of)])
    frame.index = pd.DatetimeIndex([pd.Timestamp(START_S + s, unit="s") for s, _, _ in rows(of)])
    frame.to_parquet(folder / "frame.parquet")
    return [folder / "frame.parquet"]


# A column per GPU


def per_gpu(of: Run, folder: Path) -> list[Path]:
    """gpu0_util, gpu0_sm_active, ...: a row per instant."""
    short = {
        "util": ("util", 100),
        "sm": ("sm_active", 1),
        "tensor": ("tensor_active", 1),
        "dram": ("dram_active", 1),
        "power": ("power_w", 1),
        "used": ("mem_used_mib", 1),
        "rx": ("pcie_rx_bytes", 1),
        "tx": ("pcie_tx_bytes", 1),
        "nvtx": ("nvlink_tx_bytes", 1),
    }
    records = []
    for at, s in enumerate(of.time_s.tolist()):
        row: Row = {"time": iso(s)}
        for g in range(of.gpus):
            for name, (text, factor) in short.items():
                if name in of.columns:
                    row[f"gpu{g}_{text}"] = round(float(of.columns[name][at, g]) * factor, 5)
        records.append(row)
    return csv_file(folder, records)


def tracker(of: Run, folder: Path) -> list[Path]:
    """As Weights & Biases exports its system metrics: system.gpu.0.gpu, ..."""
    records = []
    for at, s in enumerate(of.time_s.tolist()):
        row: Row = {"_timestamp": START_S + s, "_runtime": s, "system.cpu": 3.0}
        for g in range(of.gpus):
            row[f"system.gpu.{g}.gpu"] = round(float(of.columns["util"][at, g]) * 100)
            row[f"system.gpu.{g}.memory"] = 3
            row[f"system.gpu.{g}.memoryAllocatedBytes"] = round(float(of.columns["used"][at, g]) * MIB)
            row[f"system.gpu.{g}.powerWatts"] = float(of.columns["power"][at, g])
            row[f"system.gpu.{g}.smClock"] = round(float(of.columns["clock"][at, g]))
            row[f"system.gpu.{g}.temp"] = float(of.columns["temp"][at, g])
        records.append(row)
    return csv_file(folder, records)


def nvitop(of: Run, folder: Path) -> list[Path]:
    """As nvitop's ResourceMetricCollector writes to a frame."""
    records = []
    for at, s in enumerate(of.time_s.tolist()):
        row: Row = {"metrics-daemon/host/cpu_percent (%)/mean": 12.5}
        for g in range(of.gpus):
            util = round(float(of.columns["util"][at, g]) * 100)
            start = f"metrics-daemon/cuda:{g} (gpu:{g})"
            for way, share in (("mean", 1.0), ("min", 0.0), ("max", 1.2)):
                row[f"{start}/gpu_utilization (%)/{way}"] = util * share
                row[f"{start}/memory_used (MiB)/{way}"] = round(float(of.columns["used"][at, g]))
                row[f"{start}/power_usage (W)/{way}"] = float(of.columns["power"][at, g])
        records.append(row | {"metrics-daemon/duration (s)": s, "metrics-daemon/timestamp": START_S + s})
    return csv_file(folder, records)


def mlflow(of: Run, folder: Path) -> list[Path]:
    """MLflow's system metrics as its store keeps them: a row per value, the GPU in the key."""
    records: list[Row] = []
    for s, g, sample in rows(of):
        for name, value in (
            ("utilization_percentage", round(sample["util"] * 100)),
            ("memory_usage_megabytes", sample["used"] * MIB / 1e6),
            ("power_usage_watts", sample["power"]),
        ):
            time_ms = round((START_S + s) * 1000)
            key = f"system/gpu_{g}_{name}"
            records.append({"key": key, "value": value, "timestamp": time_ms, "step": 0, "run_id": "9f1c"})
    return csv_file(folder, records)


def grafana(of: Run, folder: Path) -> list[Path]:
    """Series joined by time: a column per series, named with its labels."""
    records = []
    for at, s in enumerate(of.time_s.tolist()):
        row: Row = {"Time": iso(s)[:19].replace("T", " ") + iso(s)[19:23]}
        for name, values in of.columns.items():
            for g in range(of.gpus):
                series = f'{DCGM[name][0]}{{Hostname="n7", UUID="{uuid(g)}", gpu="{g}", job="dcgm-exporter"}}'
                row[series] = round(float(values[at, g]) * DCGM[name][2], 6)
        records.append(row)
    return csv_file(folder, records)


# Several files


def file_per_gpu(of: Run, folder: Path) -> list[Path]:
    """gpu0.csv, gpu1.csv, ...: the GPU stands in the name of the file only."""
    for gpu in range(of.gpus):
        records = [
            {"timestamp_ms": round((START_S + s) * 1000), **dcgm_values(v)}
            for s, g, v in rows(of)
            if g == gpu
        ]
        csv_file(folder, records, f"gpu{gpu}.csv")
    return [folder]


def file_per_metric(of: Run, folder: Path) -> list[Path]:
    """A file per metric, a gzipped Parquet or CSV in turn."""
    for number, name in enumerate(of.columns):
        records = [
            {
                "time": round(START_S + s, 1),
                "gpu": g,
                DCGM[name][0]: dcgm_values({name: v[name]})[DCGM[name][0]],
            }
            for s, g, v in rows(of)
        ]
        if number % 2:
            (folder / f"{name}.csv.gz").write_bytes(gzip.compress(csv_text(records).encode()))
        else:
            pq.write_table(pa.Table.from_pylist(records), folder / f"{name}.parquet")
    return [folder]


def panels(of: Run, folder: Path) -> list[Path]:
    """Panels of Grafana saved one by one: a file per quantity, a column per GPU."""
    for name, values in of.columns.items():
        records: list[Row] = [
            {"Time": iso(s)} | {f"GPU {g}": float(values[at, g]) * DCGM[name][2] for g in range(of.gpus)}
            for at, s in enumerate(of.time_s.tolist())
        ]
        csv_file(folder, records, f"{DCGM[name][0]}-data-2026-10-09 08_40_00.csv")
    return [folder]


# Terminals


def dcgmi_dmon(of: Run, folder: Path) -> list[Path]:
    """dcgmi dmon -e ...: no time, the header again after some rows."""
    short = {
        "util": "GPUTL",
        "sm": "SMACT",
        "tensor": "TENSO",
        "dram": "DRAMA",
        "power": "POWER",
        "used": "FBUSD",
        "rx": "PCIRX",
        "tx": "PCITX",
        "nvtx": "NVLTX",
    }
    head = "#Entity   " + "".join(f"{text:>16}" for text in short.values()) + "\nID" + " " * 60 + "\n"
    lines = []
    for number, (_, g, v) in enumerate(rows(of)):
        if number % (of.gpus * 20) == 0:
            lines.append(head)
        cells = dcgm_values({name: v[name] for name in short})
        if number == 11:
            cells["DCGM_FI_DEV_GPU_UTIL"] = "N/A"
        lines.append(f"GPU {g}     " + "".join(f"{cell!s:>16}" for cell in cells.values()) + "\n")
    (folder / "dcgmi.txt").write_text("".join(lines))
    return [folder / "dcgmi.txt"]


def smi_dmon(of: Run, folder: Path) -> list[Path]:
    """nvidia-smi dmon -s pucmt -o DT."""
    head = (
        "#Date       Time        gpu    pwr  gtemp  mtemp     sm    mem    enc    dec   mclk   pclk     fb "
        "  bar1  rxpci  txpci \n"
        "#YYYYMMDD   HH:MM:SS    Idx      W      C      C      %      %      %      %    MHz    MHz     MB "
        "    MB   MB/s   MB/s \n"
    )
    lines = []
    for number, (s, g, v) in enumerate(rows(of)):
        if number % (of.gpus * 10) == 0:
            lines.append(head)
        moment = datetime.fromtimestamp(START_S + s, UTC)
        lines.append(
            f" {moment:%Y%m%d   %H:%M:%S} {g:>6} {v['power']:>6.0f} {v['temp']:>6.0f}      - "
            f"{v['util'] * 100:>6.0f} "
            f"{v['dram'] * 100:>6.0f}      0      0   2619 {v['clock']:>6.0f} {v['used']:>6.0f}      2 "
            f"{v['rx'] / 1e6:>6.0f} {v['tx'] / 1e6:>6.0f} \n"
        )
    (folder / "dmon.log").write_text("".join(lines))
    return [folder / "dmon.log"]


# Documents


def prometheus_json(of: Run, folder: Path) -> list[Path]:
    """Answers of /api/v1/query_range, one file per metric."""
    for name, values in of.columns.items():
        result = [
            {
                "metric": {
                    "__name__": DCGM[name][0],
                    "Hostname": "n7",
                    "UUID": uuid(g),
                    "gpu": str(g),
                    "modelName": MODEL,
                    "instance": "10.0.0.7:9400",
                    "job": "dcgm-exporter",
                },
                "values": [
                    [START_S + s, str(round(float(values[at, g]) * DCGM[name][2], 6))]
                    for at, s in enumerate(of.time_s.tolist())
                ],
            }
            for g in range(of.gpus)
        ]
        document = {"status": "success", "data": {"resultType": "matrix", "result": result}}
        (folder / f"{name}.json").write_text(json.dumps(document))
    return [folder]


def json_lines(of: Run, folder: Path) -> list[Path]:
    """A line per instant with the list of its GPUs, as gpustat writes them."""
    lines = []
    for at, s in enumerate(of.time_s.tolist()):
        sample = {name: values[at] for name, values in of.columns.items()}
        gpus = [
            {
                "index": g,
                "uuid": uuid(g),
                "name": MODEL,
                **{DCGM[name][0]: float(values[g]) * DCGM[name][2] for name, values in sample.items()},
                "processes": [{"pid": 4711, "username": "x"}],
            }
            for g in range(of.gpus)
        ]
        lines.append(json.dumps({"hostname": "n1", "query_time": iso(s), "gpus": gpus}))
    (folder / "run.jsonl").write_text("\n".join(lines) + "\n")
    return [folder / "run.jsonl"]


def json_records(of: Run, folder: Path) -> list[Path]:
    """One array of flat records; null where nothing is known."""
    records = [{"time": iso(s), "gpu": g, **dcgm_values(v), "memory_total_mib": None} for s, g, v in rows(of)]
    (folder / "run.json").write_text(json.dumps(records))
    return [folder / "run.json"]


def exporter_pages(of: Run, folder: Path) -> list[Path]:
    """Pages of dcgm-exporter, one after the other, a time before each."""
    text = []
    for at, s in enumerate(of.time_s.tolist()):
        text.append(f"{START_S + s:.3f}\n")
        for name, values in of.columns.items():
            text.append(f"# TYPE {DCGM[name][0]} gauge\n")
            text += [
                f'{DCGM[name][0]}{{gpu="{g}",UUID="{uuid(g)}",device="nvidia{g}",'
                f'modelName="{MODEL}",Hostname="n1"}} {float(values[at, g]) * DCGM[name][2]:.6f}\n'
                for g in range(of.gpus)
            ]
    (folder / "pages.prom").write_text("".join(text))
    return [folder / "pages.prom"]


FORMATS: dict[str, Writer] = {
    each.__name__: each
    for each in (
        dcgm_wide,
        dcgm_ids_wide,
        dcgm_ids_long,
        dcgm_long_parquet,
        smi_query,
        smi_query_nounits,
        script,
        ratios,
        pandas_csv,
        pandas_parquet,
        per_gpu,
        tracker,
        nvitop,
        mlflow,
        grafana,
        file_per_gpu,
        file_per_metric,
        panels,
        dcgmi_dmon,
        smi_dmon,
        prometheus_json,
        json_lines,
        json_records,
        exporter_pages,
    )
}
UTIL_ONLY = frozenset({"smi_query", "smi_query_nounits", "tracker", "nvitop", "mlflow", "smi_dmon"})
"""These tools know nothing of SM activity."""
