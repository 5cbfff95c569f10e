"""From tick to collector: batcher, spool and pusher with the two threads between them.

A batch goes through a queue to the thread that syncs it to the spool, so that a slow disk delays no
sample; the pusher reads the spool in a thread of its own, so that a slow collector delays no sync. Batches of
all nodes are closed at the same instants: each node sends its own a moment later, urgent ones at once.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from unidle_agent import schedule
from unidle_agent.batcher import Batcher
from unidle_agent.config import AgentSettings
from unidle_agent.errors import SettingError
from unidle_agent.exporter import Metric, single
from unidle_agent.push import Pusher
from unidle_agent.sample import Tick
from unidle_agent.sender import Sender
from unidle_agent.shards import is_nats
from unidle_agent.sources.dcgm_exporter import DcgmExporterSource
from unidle_agent.spool import Spool
from unidle_agent.wire import Batch, encode

log = logging.getLogger("unidle.agent")

WAITING_BATCHES = 1024
"""Most batches between sampler and disk: more than an hour at 5 s each."""
LEAVE_S = 2.0
"""How long a stopping agent still tries to hand its last batches over."""


class Delivery:
    """Takes ticks and gets them to `settings.push_url`; raises UnidleError where it cannot start.

    `on_flights` is `Pusher`'s.
    """

    def __init__(
        self,
        settings: AgentSettings,
        on_flights: Callable[[Sequence[tuple[str, str]]], None] = lambda _: None,
    ) -> None:
        slow = {DcgmExporterSource.name: settings.dcgm_scrape_s}
        self._batcher = Batcher(settings.node_name, settings.period_s, settings.batch_s, slow)
        self._spool = Spool(settings.state_path, settings.spool_max_bytes, settings.spool_max_age_s)
        try:
            self._pusher = _sender(settings, self._spool, self._batcher.request_facts, on_flights)
        except BaseException:
            self._spool.close()
            raise
        self._delay_s = schedule.sending_delay_s(settings.node_name)
        self._queue: queue.Queue[tuple[Batch, float] | None] = queue.Queue(WAITING_BATCHES)
        """Batches, and how long the sending of each can wait, s."""
        self._lost = 0
        """Batches that never reached the spool."""
        self._stop = threading.Event()
        self._writer = threading.Thread(target=self._write, name="spool", daemon=True)
        self._sender = threading.Thread(target=self._pusher.run, args=(self._stop,), name="push", daemon=True)
        self._writer.start()
        self._sender.start()

    def take(self, tick: Tick) -> None:
        """Take one tick; returns at once."""
        for batch in self._batcher.add(tick):
            self._enqueue(batch, 0.0 if self._batcher.urgent else self._delay_s)

    def close(self) -> None:
        """Spool what is open, try to send it for a moment, and let go of everything."""
        last = self._batcher.flush()
        if last is not None:
            self._enqueue(last, 0.0)
        self._queue.put(None)
        self._writer.join(timeout=10)
        self._stop.set()
        self._pusher.wake()
        self._sender.join(timeout=LEAVE_S)
        if not self._sender.is_alive() and not self._pusher.problem:
            self._pusher.drain(LEAVE_S)
        self._pusher.close()
        self._spool.close()

    def document(self) -> dict[str, object]:
        """How delivery stands, for /health."""
        return {
            "url": self._pusher.url,
            "problem": self._pusher.problem or self._spool.problem,
            "waiting_batches": self._queue.qsize() + self._spool.pending,
            "dropped_batches": self._spool.dropped + self._lost,
            "rejected_batches": self._spool.rejected,
            **{f"pushes_{outcome}": count for outcome, count in self._pusher.counts.items()},
        }

    def metrics(self) -> list[Metric]:
        """The same as families."""
        return [
            single("unidle_agent_rows_total", "counter", "GPU rows put into batches", self._batcher.rows),
            Metric(
                "unidle_agent_pushes_total",
                "counter",
                "pushes to the collector by what they came to",
                [({"outcome": outcome}, count) for outcome, count in self._pusher.counts.items()],
            ),
            single(
                "unidle_agent_push_up", "gauge", "1 while pushes go through", int(not self._pusher.problem)
            ),
            single("unidle_agent_spool_bytes", "gauge", "size of the spool", self._spool.size_bytes),
            single(
                "unidle_agent_spool_batches", "gauge", "batches not acknowledged yet", self._spool.pending
            ),
            single(
                "unidle_agent_spool_up",
                "gauge",
                "1 while the disk takes batches, 0 while they wait in memory",
                int(not self._spool.problem),
            ),
            single(
                "unidle_agent_batches_dropped_total",
                "counter",
                "batches lost to a bound of the spool or to a damaged disk",
                self._spool.dropped + self._lost,
            ),
            single(
                "unidle_agent_batches_rejected_total",
                "counter",
                "batches that the collector called bad, set aside",
                self._spool.rejected,
            ),
        ]

    def _enqueue(self, batch: Batch, after_s: float) -> None:
        try:
            self._queue.put_nowait((batch, after_s))
        except queue.Full:
            self._lost += 1
            log.warning("the disk does not keep up: a batch was dropped (%d so far)", self._lost)

    def _write(self) -> None:
        while (item := self._queue.get()) is not None:
            batch, after_s = item
            try:
                stamped = replace(
                    batch, boot=self._spool.boot, seq=self._spool.next_seq, sent_ns=time.time_ns()
                )
                self._spool.append(encode(stamped))
            except Exception:  # a bug in one batch must not end the delivery of all that follow
                self._lost += 1
                log.exception("a batch could not be spooled")
            self._pusher.wake(after_s)


def _sender(
    settings: AgentSettings,
    spool: Spool,
    on_send_facts: Callable[[], None],
    on_flights: Callable[[Sequence[tuple[str, str]]], None],
) -> Sender:
    """The way that push_url names."""
    url, token = settings.push_url, settings.push_token
    if not is_nats(url):
        return Pusher(
            url,
            token,
            spool,
            ca_file=settings.push_ca_file,
            cert_file=settings.push_cert_file,
            key_file=settings.push_key_file,
            on_send_facts=on_send_facts,
            on_flights=on_flights,
        )
    try:
        from unidle_agent.push_nats import NatsPusher  # asyncio and a client: only where they are wanted
    except ModuleNotFoundError as error:
        raise SettingError(
            "agent.push_url", "nats-py for an address of NATS (pip install 'unidle[nats]')", url, "settings"
        ) from error
    return NatsPusher(
        url,
        settings.node_name,
        token,
        spool,
        creds_file=settings.push_creds_file,
        ca_file=settings.push_ca_file,
        cert_file=settings.push_cert_file,
        key_file=settings.push_key_file,
        on_send_facts=on_send_facts,
        on_flights=on_flights,
    )
