"""The rows of `benchmarks.generator` for engines that unidle is compared with: pages or line protocol.

    python -m benchmarks.peers_feed pages --port 9100 --epoch 1750000000 --seconds 90 --reached FILE
    python -m benchmarks.peers_feed lines --port 8428 --epoch 1750000000 --seconds 90 --reached FILE

`pages` answers `/node/N` with what an exporter on node N shows: 8 GPUs, one second; each scrape gets the
next second, with its time, so that an engine which is late misses nothing. `lines` posts what a node has
gathered in 5 s, as unidle's agents do, over one connection per node. Values are text before the start;
what is left to do in time is joining bytes. Series are named as VictoriaMetrics names those of line protocol
and have the labels that dcgm-exporter 3 and 4 give a GPU which a pod holds (LABELS), each as long as there.
Both ways have the same ones, but that a scraper adds `instance` and `job`. unidle's pushes say as much of
a GPU (index, model, job), but only when it changes.

FILE is one int64 per node: the seconds that were scraped or acknowledged. Ends on SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import numpy as np
import uvloop
from numpy.typing import NDArray

from benchmarks.generator import FIELDS, GPUS_PER_NODE, PATTERN_S, PATTERNS, Node, Noise
from unidle_agent.fields import BY_NAME

BATCH_S = 5
COUNTERS = tuple(name for name in FIELDS if BY_NAME[name].kind == "counter")
GAUGES = tuple(name for name in FIELDS if BY_NAME[name].kind != "counter")
MODEL = "NVIDIA H100 80GB HBM3"
LABELS = {
    "gpu": "{gpu}",
    "UUID": "{uuid}",
    "device": "nvidia{gpu}",
    "modelName": MODEL,
    "Hostname": "{node}",
    "DCGM_FI_DRIVER_VERSION": "535.161.08",
    "container": "main",
    "namespace": "research-language",
    "pod": "train-{job}-worker-{rank}",
}
"""As on a page of dcgm-exporter with its Kubernetes labels, in its order; a job has four nodes."""
MOMENT = b"@"
"""Stands for the time in a prepared page, ..."""
WHICH = tuple(bytes([1 + gpu]) for gpu in range(GPUS_PER_NODE))
"""... and these for the GPUs' labels: nodes of one pattern have all else in common."""

Columns = dict[str, list[str]]
"""Field -> [GPUs of a node] the values of one second, as text."""


def columns_of(noise: Noise, pattern: int, k: int, names: Iterable[str]) -> list[Columns]:
    """[BATCH_S] of batch `k`: in base units, as short as they are exact."""
    raw = noise.columns(pattern, k)
    read = {name: _texts(name, raw[name]) for name in names}
    return [{name: values[second] for name, values in read.items()} for second in range(BATCH_S)]


def _texts(name: str, buffer: bytes) -> list[list[str]]:
    """[seconds][GPUs]"""
    spec = BY_NAME[name]
    values = np.frombuffer(buffer, dtype=np.dtype(spec.dtype)).reshape(-1, GPUS_PER_NODE)
    if spec.kind == "counter":
        steps_per_unit = round(1 / spec.resolution)
        return [[str(steps / steps_per_unit).removesuffix(".0") for steps in row] for row in values.tolist()]
    if spec.dtype == "f4":
        return [[text.removesuffix(".0") for text in row] for row in values.astype(str).tolist()]
    return [[str(int(value)) for value in row] for row in values]


def page(columns: Columns) -> list[bytes]:
    """[1] The lines of an exporter's page."""
    lines = []
    for name, values in columns.items():
        kind = "counter" if name in COUNTERS else "gauge"
        lines.append(f"# HELP gpu_{name} {BY_NAME[name].doc}\n# TYPE gpu_{name} {kind}\n")
        lines += [
            f"gpu_{name}{{{WHICH[gpu].decode()}}} {value} {MOMENT.decode()}\n"
            for gpu, value in enumerate(values)
        ]
    return ["".join(lines).encode()]


def fields(columns: Columns) -> list[bytes]:
    """[GPUs] The field part of a line of line protocol."""
    return [
        ",".join(f"{name}={values[gpu]}" for name, values in columns.items()).encode()
        for gpu in range(GPUS_PER_NODE)
    ]


def labels(number: int) -> list[dict[str, str]]:
    """[GPUs] of a node."""
    node = Node(number, GPUS_PER_NODE, "")
    job, rank = divmod(number, 4)
    return [
        {
            name: text.format(gpu=gpu, uuid=uuid, node=node.name, job=4700 + job, rank=rank)
            for name, text in LABELS.items()
        }
        for gpu, uuid in enumerate(node.uuids())
    ]


def on_a_page(of: dict[str, str]) -> bytes:
    """Labels between the braces of a page's line."""
    return ",".join(f'{name}="{text}"' for name, text in of.items()).encode()


def in_a_line(of: dict[str, str]) -> bytes:
    """The same as the tags of line protocol."""
    return ",".join(f"{name}={text.replace(' ', chr(92) + ' ')}" for name, text in of.items()).encode()


class Prepared:
    """All that will be sent, by pattern and second; gauges repeat each minute, counters go on rising."""

    def __init__(self, way: str, seconds: int) -> None:
        noise, written = Noise(BATCH_S), {"pages": page, "lines": fields}[way]
        batches = {GAUGES: PATTERN_S // BATCH_S, COUNTERS: -(-seconds // BATCH_S)}
        self.seconds = batches[COUNTERS] * BATCH_S
        self._parts = [
            [
                [written(columns) for k in range(count) for columns in columns_of(noise, pattern, k, names)]
                for pattern in range(PATTERNS)
            ]
            for names, count in batches.items()
        ]

    def second(self, node: int, second: int) -> list[tuple[bytes, bytes]]:
        """Gauges and counters: one pair per page, or one per GPU."""
        gauges, counters = self._parts
        pattern = node % PATTERNS
        return list(zip(gauges[pattern][second % PATTERN_S], counters[pattern][second], strict=True))


class Pages(asyncio.Protocol):
    """One scraper's connection."""

    def __init__(self, prepared: Prepared, epoch: int, reached: NDArray[np.int64]) -> None:
        self._prepared, self._epoch, self._reached = prepared, epoch, reached
        self._asked = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember whom to answer."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Answer each whole request."""
        self._asked += data
        while b"\r\n\r\n" in self._asked:
            head, _, self._asked = self._asked.partition(b"\r\n\r\n")
            self._answer(int(head.split(b" ", 2)[1].rpartition(b"/")[2]))

    def _answer(self, node: int) -> None:
        second = int(self._reached[node])
        body = b""
        if second < self._prepared.seconds and self._epoch + second <= time.time():
            [(gauges, counters)] = self._prepared.second(node, second)
            body = (gauges + counters).replace(MOMENT, b"%d" % ((self._epoch + second) * 1000))
            for stand_in, of in zip(WHICH, labels(node), strict=True):
                body = body.replace(stand_in, on_a_page(of))
            self._reached[node] += 1
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: %d\r\n\r\n"
            % len(body)
            + body
        )


async def serve_pages(args: argparse.Namespace, prepared: Prepared, reached: NDArray[np.int64]) -> None:
    """Until SIGTERM."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    server = await loop.create_server(
        lambda: Pages(prepared, args.epoch, reached), "127.0.0.1", args.port, backlog=1024
    )
    await stop.wait()
    server.close()


async def send_lines(args: argparse.Namespace, prepared: Prepared, reached: NDArray[np.int64]) -> None:
    """Until SIGTERM, or until everything is sent."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    tasks = [
        asyncio.create_task(_send_node(args, prepared, reached, node, stop)) for node in range(reached.size)
    ]
    await asyncio.gather(*tasks)
    await stop.wait()


async def _send_node(
    args: argparse.Namespace, prepared: Prepared, reached: NDArray[np.int64], node: int, stop: asyncio.Event
) -> None:
    over: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    heads = [b"gpu,%b " % in_a_line(of) for of in labels(node)]
    phase_s = BATCH_S * node / reached.size
    for first in range(0, prepared.seconds, BATCH_S):
        with contextlib.suppress(TimeoutError):
            due_s = args.epoch + first + BATCH_S + phase_s
            await asyncio.wait_for(stop.wait(), max(0.0, due_s - time.time()))
        if stop.is_set():
            return
        lines = [
            b"%b%b,%b %d\n" % (heads[gpu], gauges, counters, (args.epoch + second) * 1000)
            for second in range(first, first + BATCH_S)
            for gpu, (gauges, counters) in enumerate(prepared.second(node, second))
        ]
        body = b"".join(lines)
        # VictoriaMetrics closes connections on which nothing was asked for 5 s after they were opened.
        reader, writer = over = over or await asyncio.open_connection("127.0.0.1", args.port)
        writer.write(
            b"POST /write?precision=ms HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(body)
            + body
        )
        answer = await reader.readuntil(b"\r\n\r\n")
        if not answer.startswith(b"HTTP/1.1 204"):  # its answer has no body
            raise SystemExit(f"expected 204 to lines of node {node}, came {answer!r}")
        reached[node] = first + BATCH_S


def main() -> None:
    """Prepare, then feed until told to stop."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("way", choices=["pages", "lines"])
    parser.add_argument("--port", type=int, required=True, help="to listen on (pages) or to post to (lines)")
    parser.add_argument("--epoch", type=int, required=True, help="second of the first row")
    parser.add_argument("--seconds", type=int, required=True, help="most that will be asked for")
    parser.add_argument("--reached", type=Path, required=True, help="one int64 per node, all 0")
    args = parser.parse_args()
    reached = np.memmap(args.reached, dtype=np.int64, mode="r+")
    prepared = Prepared(args.way, args.seconds)
    work = serve_pages if args.way == "pages" else send_lines
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work(args, prepared, reached))


if __name__ == "__main__":
    main()
