"""A collector of shards: keeps its leases, opens what it takes, lets go of what it loses.

Each beat: renew what is held, see how many collectors live, take free shards up to an even share, and give
back what is more than that. Opening and closing happen in threads of their own, because a beat must not be
late.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import nats
from nats.aio.client import Client
from nats.errors import Error
from nats.js.api import StorageType, StreamConfig
from nats.js.errors import NotFoundError

from unidle_agent.errors import SettingError, UnidleError
from unidle_agent.push_nats import credentials, tls_context
from unidle_agent.shards import ROWS, SHARDS, STREAM
from unidle_collector import scheduler
from unidle_collector.live import Live
from unidle_collector.settings import CollectorSettings
from unidle_collector.shards.checkpoint import InState
from unidle_collector.shards.feed import Feed
from unidle_collector.shards.job_sizes import JobSizes
from unidle_collector.shards.leases import BEAT_S, Lease, Leases, fence
from unidle_collector.shards.one_scheduler import OneScheduler
from unidle_collector.shards.view.incidents import SiteIncidents
from unidle_collector.store import State, database, open_state
from unidle_collector.store.opening import open_store

log = logging.getLogger("unidle.collector")

CLOSE_S = 30.0


@dataclass(slots=True)
class Held:
    """A shard that this collector holds."""

    shard: int
    epoch: int
    live: Live | None = None
    """None while it is being opened."""
    keeper: InState | None = None
    feed: Feed | None = None
    task: asyncio.Task[None] | None = None
    closing: bool = False
    changing: threading.Lock = field(default_factory=threading.Lock)
    """Held while it is opened, and while it is closed: who lets go of it early waits until it is open."""


class Shards:
    """All that one collector process does for the shards it holds; raises UnidleError where it cannot."""

    def __init__(
        self, settings: CollectorSettings, holder: str, url: str, clock_ns: Callable[[], int] = time.time_ns
    ) -> None:
        where = settings.state_url.reveal()
        if not where.startswith("postgresql"):
            raise SettingError("collector.state_url", "a PostgreSQL, which nats_url needs", "***", "settings")
        self.settings = settings
        self.holder = holder
        self.state: State = open_state(where)
        self._engine = database.connect(where)
        self.leases = Leases(self._engine, holder, url)
        self._keep_state_ns = int(settings.keep_state_days * 86_400e9)
        self.incidents = SiteIncidents(self._engine, self._keep_state_ns, clock_ns)
        self._sizes = JobSizes(
            self._engine, lambda: [one.live for one in list(self.held.values()) if one.live is not None]
        )
        self.held: dict[int, Held] = {}
        self.counters: Counter[str] = Counter()
        self.problems: dict[str, str] = {}
        asked = scheduler.source(settings)
        self._scheduler = OneScheduler(asked, settings.scheduler_poll_s / 2) if asked is not None else None
        self._clock_ns = clock_ns
        self._stop = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._client: Client | None = None
        self._threads = [
            threading.Thread(target=self._loop.run_forever, name="nats", daemon=True),
            threading.Thread(target=self._beat_for_ever, name="leases", daemon=True),
        ]

    def start(self) -> None:
        """Begin; returns once the database is ready. The broker may come later."""
        self.leases.prepare()
        for thread in self._threads:
            thread.start()
        self.incidents.start()
        self._sizes.start()

    def stop(self) -> None:
        """Save and release every shard, so that others take them at once."""
        self._stop.set()
        self._threads[1].join(timeout=CLOSE_S)
        closing = [threading.Thread(target=self._close, args=(one, True)) for one in list(self.held.values())]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join(timeout=CLOSE_S)
        self.incidents.stop()
        self._sizes.stop()
        if self._client is not None:
            with contextlib.suppress(Error, OSError, TimeoutError):
                asyncio.run_coroutine_threadsafe(self._client.close(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._threads[0].join(timeout=5)
        self.state.close()
        self._engine.dispose()

    def table(self) -> list[Lease]:
        """Every shard's lease, for readers; raises StoreError."""
        return self.leases.all()

    # -- leases ----------------------------------------------------------------------------------

    def _beat_for_ever(self) -> None:
        while not self._stop.is_set():
            try:
                if self._client is None:
                    self._client = asyncio.run_coroutine_threadsafe(self._connect(), self._loop).result(15)
                self.problems.pop("nats", None)
            except (Error, OSError, TimeoutError) as error:
                self.problems["nats"] = f"NATS does not answer ({error or type(error).__name__})"
                log.warning("%s", self.problems["nats"])
            try:
                if self._client is not None:
                    self._beat()
                self.problems.pop("leases", None)
            except UnidleError as error:
                self.problems["leases"] = str(error)
                log.warning("%s", error)
            self._stop.wait(BEAT_S)

    def _beat(self) -> None:
        mine = [one for one in self.held.values() if not one.closing]
        kept = self.leases.renew((one.shard, one.epoch) for one in mine)
        for one in mine:
            if one.shard not in kept:
                self.counters["shards_lost"] += 1
                log.warning("shard %d was taken by another collector", one.shard)
                self._in_thread(self._close, one, False)
        alive = self.leases.beat()
        share = -(-SHARDS // max(1, alive))
        for shard, epoch in self.leases.claim(share - len(self.held)):
            self.counters["takeovers"] += 1
            self.held[shard] = one = Held(shard, epoch)
            self._in_thread(self._open, one)
        ready = [one for one in self.held.values() if one.live is not None and not one.closing]
        for one in ready[share:]:
            self.counters["shards_given_back"] += 1
            self._in_thread(self._close, one, True)

    def _in_thread(self, work: Callable[..., None], one: Held, *more: bool) -> None:
        one.closing = one.closing or work == self._close
        threading.Thread(target=work, args=(one, *more), name=f"shard-{one.shard}", daemon=True).start()

    # -- shards ----------------------------------------------------------------------------------

    def _open(self, one: Held) -> None:
        """Take up the shard's checkpoint and read on from there."""
        began_s = time.monotonic()
        try:
            with one.changing:
                if not one.closing:
                    self._open_now(one)
        except Exception as error:  # whatever it is: the shard is for another, or for the next try
            self.problems[f"shard {one.shard}"] = str(error)
            log.warning("shard %d cannot be opened", one.shard, exc_info=not isinstance(error, UnidleError))
            self._close(one, True)
            return
        self.problems.pop(f"shard {one.shard}", None)
        if one.keeper is not None:
            log.info(
                "shard %d: epoch %d, from position %d, open within %.1f s",
                one.shard, one.epoch, one.keeper.progress.position, time.monotonic() - began_s,
            )  # fmt: skip

    def _open_now(self, one: Held) -> None:
        schema = f"shard_{one.shard:02d}"
        state = open_state(self.settings.state_url.reveal(), schema, fence(one.shard, one.epoch))
        keeper = one.keeper = InState(state, one.epoch, self._keep_state_ns)
        settings = replace(
            self.settings,
            federation_file="",  # a site tells one report, made of all its shards
            data_dir=self.settings.data_dir / "shards" / f"{one.shard:02d}",
            window_mb=max(16.0, 2 * self.settings.window_mb / SHARDS),
        )
        settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o750)
        live = Live(
            settings,
            open_store(settings),
            self._clock_ns,
            self._scheduler,
            state=state,
            keeper=keeper,
            pace_ns=keeper.pace,
            accounted=keeper.progress,
            part=f"/{one.shard}",
        )
        live.start()
        one.live = live
        assert self._client is not None
        one.feed = Feed(self._client, one.shard, live, keeper.progress, keeper.pace, self._clock_ns)
        one.task = asyncio.run_coroutine_threadsafe(_task(one.feed), self._loop).result(5)

    def _close(self, one: Held, release: bool) -> None:
        """Let go of a shard; where it is still ours, save it first and give its lease back."""
        one.closing = True
        with one.changing:
            if one.task is not None:
                self._loop.call_soon_threadsafe(one.task.cancel)
            if one.live is not None:
                one.live.stop()
                self.counters["writes_fenced"] += one.live.state.fenced
                one.live.state.close()
        if release:
            with contextlib.suppress(UnidleError):  # then it lapses
                self.leases.release(one.shard, one.epoch)
        self.held.pop(one.shard, None)

    async def _connect(self) -> Client:
        settings = self.settings
        options = credentials(settings.nats_token, settings.nats_creds_file)
        if settings.nats_ca_file or any(url.startswith("tls://") for url in settings.nats_url):
            options["tls"] = tls_context(settings.nats_ca_file, "", "")
        client = await asyncio.wait_for(
            nats.connect(
                list(settings.nats_url),
                name=f"unidle collector {self.holder}",
                connect_timeout=2,
                reconnect_time_wait=1,
                max_reconnect_attempts=-1,
                ping_interval=5,
                max_outstanding_pings=2,
                error_cb=_quiet,
                **options,
            ),
            10,
        )
        try:
            await self._ensure_stream(client)
        except BaseException:
            await client.close()
            raise
        return client

    async def _ensure_stream(self, client: Client) -> None:
        """Make the stream where there is none; one that is there stays as its owner made it."""
        jetstream = client.jetstream(timeout=10)
        try:
            await jetstream.stream_info(STREAM)
        except NotFoundError:
            await jetstream.add_stream(
                StreamConfig(
                    name=STREAM,
                    description="batches of unidle's agents",
                    subjects=[f"{ROWS}.*.*"],
                    storage=StorageType.FILE,
                    num_replicas=self.settings.nats_replicas,
                    max_age=self.settings.nats_keep_h * 3600,
                    duplicate_window=120,
                )
            )


async def _task(feed: Feed) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(feed.run())


async def _quiet(_: Exception) -> None:
    """What goes wrong on the connection shows in the feeds' problems."""
