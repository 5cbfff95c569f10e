"""A small fleet of an hour in a store of its own, and the feed that writes it elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.collector.store_fleet import NOON, SECOND, batch

from unidle_agent.settings import Secret
from unidle_agent.wire import Batch, Owner, encode
from unidle_collector.series import open_feed
from unidle_collector.series.feed import Feed
from unidle_collector.settings import CollectorSettings
from unidle_collector.store import Store
from unidle_collector.store.opening import open_store

GPUS = ("GPU-a", "GPU-b=1, two")
"""The second would break a line that is not escaped."""
START = NOON // (60 * SECOND) * 60 * SECOND
BATCH_S = 5


def hour(seconds: int = 3600, nodes: tuple[str, ...] = ("node-1", "node-2")) -> Iterator[Batch]:
    """Two GPUs per node; a job ends half way and another begins; a hole; the counter of one starts anew."""
    for first in range(0, seconds, BATCH_S):
        for number, node in enumerate(nodes):
            at = range(first, first + BATCH_S)
            columns: dict[str, list[float | int | None]] = {
                "power_w": [
                    None if 600 <= s < 900 else 100 + 50 * number + s % 60 + g for s in at for g in (0, 1)
                ],
                "gpu_util_ratio": [s % 101 / 100 for s in at for _ in GPUS],
                "energy_j": [(s if g or s < 1800 else s - 1800) * 100_000 + 7 for s in at for g in (0, 1)],
                "clock_event_reasons": [4 if s % 120 < 60 else 0 for s in at for _ in GPUS],
                "memory_used_bytes": [(s + g) * 2**20 for s in at for g in (0, 1)],
            }
            job = "4711" if first < seconds // 2 else "4712"
            yield batch(
                node,
                seq=first // BATCH_S,
                times=[START + s * SECOND for s in at],
                gpus=GPUS,
                columns=columns,
                host={"load_1m": [number + s / 100 for s in at], "net_sent_bytes": [s * 1000 for s in at]},
                jobs=dict.fromkeys(GPUS, Owner(allocated=True, job=job))
                if first % (seconds // 2) == 0
                else None,
                facts_id=1 if first < seconds // 2 else 2,
            )


@contextmanager
def opened(settings: CollectorSettings) -> Iterator[tuple[Store, Feed]]:
    """A store and its feed, which is not started: a test steps it."""
    store = open_store(settings)
    try:
        feed = open_feed(settings, store)
        assert feed is not None
        feed.learn()
        yield store, feed
    finally:
        store.close()


def settings(directory: Path, series: str, url: str, step_s: float = 0.0) -> CollectorSettings:
    """Those of a collector that writes to `url`."""
    return CollectorSettings(
        data_dir=directory,
        series=series,
        series_url=url,
        series_org="site",
        series_token=Secret("token-of-the-test"),
        series_step_s=step_s,
        keep_days=3650,
    )


def accept(store: Store, *batches: Batch) -> None:
    """What the collector does with batches."""
    for item in batches:
        store.append(encode(item), START)
    store.sync()


def drain(feed: Feed) -> None:
    """Write all that waits; raises what the writing raises."""
    while feed.step():
        pass
