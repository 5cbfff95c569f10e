"""A node that pushes, for tests of the live collector."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from starlette.testclient import TestClient

from unidle_agent.fields import BY_NAME
from unidle_agent.wire import Batch, GpuFacts, Owner, column, encode
from unidle_collector.api import create_app
from unidle_collector.ingest.tokens import Tokens
from unidle_collector.live import Live
from unidle_collector.settings import CollectorSettings
from unidle_collector.store import Store
from unidle_collector.store.opening import open_store

START_S = 1_700_000_000
GPUS = ("GPU-a", "GPU-b")
Values = dict[str, float | int | None]


class FakeTime:
    """The receiver's clock, set by the test."""

    def __init__(self, at_s: float) -> None:
        self.at_s = at_s

    def __call__(self) -> int:
        return int(self.at_s * 1e9)


def batch(
    seq: int,
    first_s: int,
    seconds: int,
    values: Values,
    *,
    node: str = "n1",
    boot: str = "boot-1",
    gpus: tuple[str, ...] = GPUS,
    counters: dict[str, list[int | None]] | None = None,
    facts: bool = True,
    job: str = "",
    simulated: bool = False,
) -> Batch:
    """`seconds` instants from START_S + first_s on, the same values on every GPU; counters per instant."""
    columns = {name: column(BY_NAME[name], [value] * (seconds * len(gpus))) for name, value in values.items()}
    for name, series in (counters or {}).items():
        columns[name] = column(BY_NAME[name], [value for value in series for _ in gpus])
    owner = Owner(allocated=True, job=job) if job else Owner()
    return Batch(
        node=node,
        boot=boot,
        seq=seq,
        sent_ns=(START_S + first_s + seconds) * 10**9,
        period_s=1.0,
        times_ns=[(START_S + first_s + number) * 10**9 for number in range(seconds)],
        gpus=gpus,
        columns=columns,
        host={},
        facts_id=1,
        facts=tuple(GpuFacts(uuid, number, "NVIDIA H100", owner=owner) for number, uuid in enumerate(gpus))
        if facts
        else None,
        simulated=simulated,
    )


class Site:
    """A live collector behind its HTTP face, with a clock of its own."""

    token = "push-token-of-the-test"

    def __init__(
        self,
        directory: Path,
        read_token: str = "",
        settings: CollectorSettings | None = None,
        part: str = "",
    ) -> None:
        self.clock = FakeTime(START_S)
        asked = replace(
            settings or CollectorSettings(), data_dir=directory, allowed_hosts=("testserver", "127.0.0.1")
        )
        store = open_store(asked) if settings else Store(directory)
        self.live = Live(asked, store, self.clock, part=part)
        self.live.start()
        self.tokens = Tokens(
            self.live.store.state, self.clock, shared_write=self.token, shared_read=read_token
        )
        self.http = TestClient(create_app(self.live, self.tokens))

    def push(self, item: Batch | bytes, token: str = token, clock_s: float | None = None) -> tuple[int, dict]:
        data = encode(item) if isinstance(item, Batch) else item
        headers = {"Authorization": f"Bearer {token}"}
        if clock_s is not None:
            headers["X-Unidle-Clock-Ns"] = str(int(clock_s * 1e9))
        reply = self.http.post("/api/v1/push", content=data, headers=headers)
        return reply.status_code, reply.json()

    def get(self, path: str, **query: object) -> dict | list:
        reply = self.http.get(f"/api/v1/{path}", params=query)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def settle(self, at_s: float) -> None:
        """Let the receiver's clock be `at_s` after the start and wait until time has advanced with it."""
        self.clock.at_s = START_S + at_s
        for _ in range(3):
            self.live.ask(lambda: self.live._advance(self.clock())).result(timeout=30)

    def counter(self, name: str) -> float:
        health = self.get("health")
        assert isinstance(health, dict)
        return health["counters"].get(name, 0)


@contextmanager
def site(directory: Path, read_token: str = "") -> Iterator[Site]:
    """A running site; stopped at the end."""
    running = Site(directory, read_token)
    try:
        yield running
    finally:
        running.live.stop()
