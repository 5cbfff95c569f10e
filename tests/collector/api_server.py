"""A collector's API on a free port of the loopback, with a fleet in it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

import numpy as np
import uvicorn
from starlette.testclient import TestClient
from tests.collector.pushing import START_S, Site, batch

from unidle_agent.fields import GPU_FIELDS, HOST_FIELDS
from unidle_agent.wire import encode

VALUES = {"gpu_util_ratio": 0.9, "sm_active_ratio": 0.8, "power_w": 600.0, "memory_used_bytes": 3e10}


class HasHttp(Protocol):
    """Whatever has an application behind a test client."""

    http: TestClient


@contextmanager
def listening(here: HasHttp) -> Iterator[str]:
    """The address of `here` on a port of its own; pushes and reads as in production."""
    app = here.http.app
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", timeout_keep_alive=5))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=30)


def fill(here: Site, nodes: int, gpus: int, *, first_s: int = 0, seconds: int = 5, seq: int = 0) -> None:
    """`seconds` of `nodes` nodes with `gpus` GPUs each; two of three nodes run a job."""
    here.clock.at_s = START_S + first_s + seconds
    for number in range(nodes):
        here.live.push(data_of(number, gpus, first_s, seconds, seq), here.clock(), None).result(timeout=60)
    here.settle(first_s + seconds + 3)


def data_of(number: int, gpus: int, first_s: int, seconds: int, seq: int) -> bytes:
    """A push of the node of that number; every seventh node is simulated."""
    sent = batch(
        seq,
        first_s,
        seconds,
        VALUES,  # type: ignore[arg-type]
        node=f"n{number:04d}",
        gpus=tuple(f"GPU-{number:04d}-{index}" for index in range(gpus)),
        job=f"job-{number // 3}" if number % 3 else "",
        simulated=number % 7 == 0,
    )
    return encode(sent)


def full_data_of(number: int, gpus: int, fields: int, second: int = 0) -> bytes:
    """One second of a node with `fields` float fields of noise."""
    random = np.random.default_rng(number)
    some = [spec for spec in GPU_FIELDS if spec.dtype == "f4"][:fields]
    values = {spec.name: random.random(gpus).astype("<f4").tobytes() for spec in some}
    sent = batch(
        second, second, 1, {}, node=f"n{number:04d}", gpus=tuple(f"GPU-{number:04d}-{i}" for i in range(gpus))
    )
    host = {spec.name: np.float32(0.5).tobytes() for spec in HOST_FIELDS if spec.dtype == "f4"}
    return encode(replace(sent, columns=values, host=host))
