"""How many GPUs of a job all shards see together, against a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from tests.collector.postgres_server import Server, postgres

from unidle_agent.wire import Owner
from unidle_collector.engine import Engine
from unidle_collector.model import GpuRef
from unidle_collector.shards.checkpoint import InState
from unidle_collector.shards.job_sizes import JobSizes, read
from unidle_collector.signals import Step
from unidle_collector.store import database, open_state

pytestmark = pytest.mark.slow

SECOND = 10**9
AT_NS = 1_700_000_000 * SECOND


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgres() as running:
        yield running


def shard(url: str, number: int, *jobs: str) -> Engine:
    """A shard with a GPU of each of `jobs`, its checkpoint kept."""
    engine = Engine(1.0)
    for gpu, job in enumerate(jobs):
        position = engine.add(GpuRef(f"node-{number}", f"GPU-{gpu}", gpu, "NVIDIA H100"))
        engine.own(position, Owner(allocated=bool(job), job=job))
    engine.step(Step(AT_NS, SECOND, {}, np.arange(engine.inventory.capacity) < len(jobs)))
    keep(url, number, engine)
    return engine


def keep(url: str, number: int, engine: Engine) -> None:
    state = open_state(url, f"shard_{number:02d}")
    keeper = InState(state, 1)
    keeper.write(keeper.snapshot(engine, AT_NS))
    state.close()


def test_each_shard_learns_how_many_gpus_a_job_has_at_the_whole_site(server: Server) -> None:
    url = server.database()
    engine = database.connect(url)
    assert read(engine) == {}, "no shard has kept anything"
    first = shard(url, 3, "4711", "4711", "", "small")
    second = shard(url, 8, "4711")
    assert read(engine) == {"4711": 3, "small": 1}
    held = [SimpleNamespace(engine=one) for one in (first, second)]
    JobSizes(engine, lambda: held).hand_out()  # type: ignore[arg-type,return-value]
    assert first.inventory.beyond("4711") == (2, 3)
    assert second.inventory.beyond("4711") == (1, 3)
    assert first.inventory.beyond("small") is None
    assert second.inventory.beyond("small") == (0, 1)

    second.own(0, Owner(allocated=True, job="next"))
    keep(url, 8, second)
    assert read(engine) == {"4711": 2, "small": 1, "next": 1}
    engine.dispose()
