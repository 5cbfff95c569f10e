"""A fleet that pushes: one process, one kept-open TLS connection per node, noisy rows at 1 Hz.

    python -m benchmarks.generator --url https://127.0.0.1:9470 --ca server.pem --tokens DIR --acked FILE

Batch k of a node is always the same bytes but for the counters, so that a generator which was killed
goes on where its acknowledgements end, as an agent does from its spool. Each acknowledgement is a line
`node seq` of the file `--acked`. Ends on SIGTERM, with what it sent as JSON on stdout.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import ssl
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import msgpack
import numpy as np
import uvloop
from numpy.typing import NDArray

from benchmarks.store import fleet
from unidle_agent.fields import BY_NAME
from unidle_agent.schedule import sending_delay_s
from unidle_agent.wire import CLOCK_HEADER, VERSION, GpuFacts, Owner

SECOND_NS = 1_000_000_000
GPUS_PER_NODE = 8
PATTERNS = 64
"""Different nodes; the first one is throttled by heat for a third of each minute."""
PATTERN_S = 60
FIELDS = (
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
HOST_FIELDS = (
    *("cpu_busy_ratio", "cpu_iowait_ratio", "load_1m", "tasks_running", "tasks_blocked"),
    *("host_memory_total_bytes", "host_memory_available_bytes", "page_cache_bytes"),
)
BUSY_COUNTERS = {"gpu_busy_s": "gpu_util_ratio", "sm_active_s": "sm_active_ratio"}
QUIET = ("last_xid", "gpu_state", "thermal_throttle_s", "encoder_util_ratio", "decoder_util_ratio")
THROTTLED = slice(20, 40)
"""Seconds of a minute."""


class Noise:
    """What the nodes measure: PATTERNS nodes over PATTERN_S seconds, over and over; counters go on rising."""

    def __init__(self, batch_s: int) -> None:
        gpus = PATTERNS * GPUS_PER_NODE
        data = fleet(gpus, PATTERN_S, np.random.default_rng(1))
        data["tensor_active_s"] = np.zeros((gpus, PATTERN_S), dtype=np.uint64)
        for name in QUIET:
            data[name][:] = 0
        for counter, ratio in BUSY_COUNTERS.items():
            data[counter] = np.cumsum(data[ratio] * 1e6, axis=1).astype(np.uint64)
        data["clock_event_reasons"][:GPUS_PER_NODE, THROTTLED] = 0x40
        data["sm_clock_hz"][:GPUS_PER_NODE, THROTTLED] *= np.float32(0.6)
        self.slots = PATTERN_S // batch_s
        self._gauges = [
            [self._of(data, p, s, batch_s, counters=False) for s in range(self.slots)]
            for p in range(PATTERNS)
        ]
        self._counters = [
            [self._of(data, p, s, batch_s, counters=True) for s in range(self.slots)] for p in range(PATTERNS)
        ]
        self._rise = {name: data[name][:, -1] for name in FIELDS if BY_NAME[name].kind == "counter"}
        noise = np.random.default_rng(2)
        self._host = [
            {name: noise.random(batch_s).astype(f"<{BY_NAME[name].dtype}").tobytes() for name in HOST_FIELDS}
            for _ in range(self.slots)
        ]

    @staticmethod
    def _of(
        data: dict[str, NDArray[Any]], pattern: int, slot: int, batch_s: int, counters: bool
    ) -> dict[str, Any]:
        gpus = slice(pattern * GPUS_PER_NODE, (pattern + 1) * GPUS_PER_NODE)
        seconds = slice(slot * batch_s, (slot + 1) * batch_s)
        arrays = {
            name: np.ascontiguousarray(data[name][gpus, seconds].T)
            for name in FIELDS
            if (BY_NAME[name].kind == "counter") == counters
        }
        return arrays if counters else {name: array.tobytes() for name, array in arrays.items()}

    def columns(self, pattern: int, k: int) -> dict[str, bytes]:
        """Of batch `k` of a node."""
        lap, slot = divmod(k, self.slots)
        gpus = slice(pattern * GPUS_PER_NODE, (pattern + 1) * GPUS_PER_NODE)
        rising = {
            name: (values + np.uint64(lap) * self._rise[name][gpus]).tobytes()
            for name, values in self._counters[pattern][slot].items()
        }
        return self._gauges[pattern][slot] | rising

    def host(self, k: int) -> dict[str, bytes]:
        """Host columns of batch `k`."""
        return self._host[k % self.slots]


@dataclass(slots=True)
class Node:
    """One node and where it is."""

    number: int
    gpus: int
    token: str
    seq: int = 0

    @property
    def name(self) -> str:
        """As in the rows."""
        return f"node-{self.number:05d}"

    def uuids(self) -> list[str]:
        """Of its GPUs."""
        return [
            f"GPU-{self.number * GPUS_PER_NODE + index:08d}-0000-4000-8000-000000000000"
            for index in range(self.gpus)
        ]


class Fleet:
    """Everything that pushes."""

    def __init__(self, args: argparse.Namespace, acked: TextIO) -> None:
        self.args = args
        self.noise = Noise(args.batch_s)
        self.tls = ssl.create_default_context(cafile=args.ca) if args.ca else None
        self.acked = acked
        self.counts = dict.fromkeys(("batches_acked", "rows_acked", "busy", "broken", "refused"), 0)
        self.bytes_sent = 0
        self.stop = asyncio.Event()

    def body(self, node: Node) -> bytes:
        """The bytes of the node's batch `node.seq`."""
        args, k = self.args, node.seq
        first_ns = (args.epoch + k * args.batch_s) * SECOND_NS
        times = np.arange(args.batch_s, dtype="<i8") * SECOND_NS + first_ns
        document: dict[str, Any] = {
            "v": VERSION,
            "node": node.name,
            "boot": "boot",
            "seq": k,
            "sent_ns": int(times[-1]),
            "period_s": 1.0,
            "simulated": True,
            "times_ns": times.tobytes(),
            "gpus": node.uuids(),
            "cols": self.noise.columns(node.number % PATTERNS, k),
            "host": self.noise.host(k),
            "facts_id": 1,
        }
        if k == 0:
            document["facts"] = list(_facts(node))
        return zlib.compress(msgpack.packb(document), 1)

    async def push_for_ever(self, node: Node) -> None:
        """Send each batch when it is due, oldest first, until it is acknowledged.

        As agents do: batches of all nodes end at the same seconds, each node sends after a delay of its own.
        A batch is made before it is due: on a real fleet that is the work of 1,250 processors.
        """
        delay_s = sending_delay_s(node.name)
        prepare_s = (self.args.batch_s - 1) * (1 - node.number / self.args.nodes)
        body, over = b"", None
        while not self.stop.is_set():
            due_s = self.args.epoch - 1 + (node.seq + 1) * self.args.batch_s + delay_s  # its last row
            if not body:
                await asyncio.sleep(max(0.0, due_s - prepare_s - time.time()))
                body = self.body(node)
            await asyncio.sleep(max(0.0, due_s - time.time()))
            try:
                over = over or await self._connect()
                status, reply, wait_s = await self._exchange(over, node, body)
            except (OSError, asyncio.IncompleteReadError):
                self.counts["broken"] += 1
                over = None
                await asyncio.sleep(0.2)
                continue
            if status == 200:
                self._acknowledged(node, json.loads(reply))
                body = b""
            else:
                self.counts["busy" if status in (429, 503) else "refused"] += 1
                await asyncio.sleep(wait_s)

    def _acknowledged(self, node: Node, reply: dict[str, Any]) -> None:
        assert reply["ack"] == node.seq
        self.acked.write(f"{node.number} {node.seq}\n")
        self.counts["batches_acked"] += 1
        self.counts["rows_acked"] += self.args.batch_s * node.gpus
        node.seq += 1

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.args.port, ssl=self.tls)

    async def _exchange(
        self, over: tuple[asyncio.StreamReader, asyncio.StreamWriter], node: Node, body: bytes
    ) -> tuple[int, bytes, float]:
        reader, writer = over
        head = (
            f"POST /api/v1/push HTTP/1.1\r\nHost: 127.0.0.1:{self.args.port}\r\n"
            f"Authorization: Bearer {node.token}\r\n{CLOCK_HEADER}: {time.time_ns()}\r\n"
            f"Content-Type: application/vnd.unidle.batch\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self.bytes_sent += len(head) + len(body)
        writer.write(head.encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        headers = dict(line.lower().split(": ", 1) for line in answer.split("\r\n")[1:] if line)
        reply = await reader.readexactly(int(headers["content-length"]))
        return int(answer.split(" ", 2)[1]), reply, float(headers.get("retry-after", 1))


def _facts(node: Node) -> Iterator[dict[str, Any]]:
    owner = Owner(allocated=True, job=str(4700 + node.number // 4), user="u1", source="simulator")
    for index, uuid in enumerate(node.uuids()):
        facts = GpuFacts(uuid, index, "NVIDIA H100 80GB HBM3", share=1.0)
        fields = {name: getattr(facts, name) for name in ("uuid", "index", "model", "share")}
        yield fields | {
            "owner": {name: getattr(owner, name) for name in ("allocated", "job", "user", "source")}
        }


async def serve(args: argparse.Namespace) -> dict[str, Any]:
    """Push until SIGTERM."""
    path = Path(args.acked)
    reached = [0] * args.nodes
    if path.exists():
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):  # the end of the process may have cut the last line
                number, seq = map(int, line.split())
                reached[number] = max(reached[number], seq + 1)
        kept = path.read_bytes()
        path.write_bytes(kept[: kept.rfind(b"\n") + 1])
    with path.open("a", buffering=1) as acked:
        whole = Fleet(args, acked)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, whole.stop.set)
        nodes = [
            Node(
                number,
                min(GPUS_PER_NODE, args.gpus - number * GPUS_PER_NODE),
                _token(args, number),
                reached[number],
            )
            for number in range(args.nodes)
        ]
        tasks = [asyncio.create_task(whole.push_for_ever(node)) for node in nodes]
        await whole.stop.wait()
        await asyncio.wait(tasks, timeout=args.batch_s + 10)
    return {**whole.counts, "bytes_sent": whole.bytes_sent}


def _token(args: argparse.Namespace, number: int) -> str:
    """The node's own token, or the one that all share."""
    path = Path(args.tokens)
    return (path / f"node-{number:05d}.token" if path.is_dir() else path).read_text().strip()


def main() -> None:
    """Push until told to stop, then print what was acknowledged."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ca", default="", help="PEM file; without it, plain HTTP")
    parser.add_argument("--tokens", required=True, help="a folder of NODE.token, or one file for all")
    parser.add_argument("--acked", required=True)
    parser.add_argument("--epoch", type=int, required=True, help="second of the first row")
    parser.add_argument("--gpus", type=int, default=10_000)
    parser.add_argument("--batch-s", type=int, default=5)
    args = parser.parse_args()
    args.nodes = -(-args.gpus // GPUS_PER_NODE)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(serve(args))))


if __name__ == "__main__":
    main()
