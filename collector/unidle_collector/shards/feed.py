"""Reads one shard's messages from JetStream in order and hands them to its collector.

The consumer is ephemeral and acknowledges nothing: the position lives in the checkpoint, beside the accounts
that it belongs to, so there is nothing that two places could disagree about. Consumer sequences have no
gaps; where one shows (a lost connection), the consumer is made anew after the last message that came.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.client import JetStreamContext

from unidle_agent.errors import WireError
from unidle_agent.shards import ROWS, STREAM, node_of, reply_subject, shard_of
from unidle_agent.wire import CLOCK_HEADER
from unidle_collector.live import Live
from unidle_collector.pergpu import SECOND_NS
from unidle_collector.shards.progress import Message, Pace, Progress
from unidle_collector.taking import Ack, BusyError, ForbiddenError, Push
from unidle_collector.window import AHEAD_STEPS

log = logging.getLogger("unidle.collector")

AT_ONCE = 256
"""Messages of one fetch."""
FETCH_S = 1.0
AGAIN_S = 0.5
"""After the broker failed."""
BUSY_S = 0.05
"""Between two tries with rows for which event time has to advance first."""
PASS_EACH_NS = 20 * SECOND_NS
"""How often a shard for which nothing comes takes note of how far the stream is."""
SAY_UNREAD_NS = 3600 * SECOND_NS
"""How long health says that messages left the stream unread; the counter says it for ever."""
UNUSED_S = 60.0
"""After which the broker forgets a consumer that nobody reads from."""


@dataclass(slots=True, eq=False)
class _Push(Push):
    message: Message | None = None


class Feed:
    """The messages of `shard`, from `progress` on, into `live`. Belongs to one event loop."""

    def __init__(
        self,
        client: Client,
        shard: int,
        live: Live,
        progress: Progress,
        pace: Pace,
        clock_ns: Callable[[], int],
    ) -> None:
        self._client = client
        self._jetstream = client.jetstream(timeout=5)
        self._shard = shard
        self._live = live
        self._progress = progress
        self._pace = pace
        self._clock_ns = clock_ns
        self._last = progress.position
        """Sequence in the stream of the last message that came."""
        self._came = 0
        """How many came from the present consumer."""
        self.messages = 0
        self.behind: int | None = None
        """Messages in the stream that wait for this shard; None while the broker does not say."""
        self._passed_ns = 0
        self._unread: dict[tuple[str, str], int] = {}
        """(node, boot) -> highest batch before messages that left the stream unread; until its next comes."""
        self._unread_ns = 0

    async def run(self) -> None:
        """Read for ever; the broker may come and go."""
        subscription: JetStreamContext.PullSubscription | None = None
        name = ""
        while True:
            try:
                if subscription is None:
                    name, subscription = await self._subscribe()
                asked_ns = self._clock_ns()
                messages = await self._fetch(subscription)
                if messages and not self._in_order(messages):
                    raise Error("expected messages without a gap")
                await self._take(messages)
                if len(messages) < AT_ONCE:
                    end = None if messages else await self._end_of_stream()
                    info = await self._jetstream.consumer_info(STREAM, name)
                    self.behind = info.num_pending
                    if not messages and not self.behind:
                        self._pace.see(asked_ns)
                        if end is not None and info.delivered and info.delivered.consumer_seq == self._came:
                            self._pass(end)
                self._live.problems.pop("nats", None)
                if asked_ns - self._unread_ns > SAY_UNREAD_NS:
                    self._live.problems.pop("retention", None)
            except (Error, OSError, TimeoutError) as error:
                self.behind = None
                self._live.problems["nats"] = (
                    f"NATS does not answer ({error or type(error).__name__}): no rows come in"
                )
                if subscription is not None:
                    with contextlib.suppress(Error, OSError, TimeoutError):
                        await subscription.unsubscribe()
                subscription = None
                await asyncio.sleep(AGAIN_S)

    async def _subscribe(self) -> tuple[str, JetStreamContext.PullSubscription]:
        if not self._client.is_connected:
            raise Error("no connection")
        config = ConsumerConfig(
            filter_subject=f"{ROWS}.{self._shard}.*",
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=self._last + 1,
            ack_policy=AckPolicy.NONE,
            inactive_threshold=UNUSED_S,
            mem_storage=True,
            num_replicas=1,
        )
        self._came = 0
        first = (await self._jetstream.stream_info(STREAM)).state.first_seq
        if 0 < self._last < first - 1 and (known := self._progress.highest()):
            self._unread, self._unread_ns = known, self._clock_ns()
            self._live.problems["retention"] = (
                f"NATS removed messages {self._last + 1} to {first - 1} before they were read, rows of this "
                "shard may be among them: keep them for longer (nats_keep_h, or the stream's own limits)"
            )
            log.warning("shard %d: %s", self._shard, self._live.problems["retention"])
        info = await self._jetstream.add_consumer(STREAM, config)
        return info.name, await self._jetstream.pull_subscribe_bind(consumer=info.name, stream=STREAM)

    async def _end_of_stream(self) -> int | None:
        """Sequence of the newest message of all shards; None where it was asked for a short while ago."""
        if self._clock_ns() - self._passed_ns < PASS_EACH_NS:
            return None
        self._passed_ns = self._clock_ns()
        return (await self._jetstream.stream_info(STREAM)).state.last_seq

    def _pass(self, end: int) -> None:
        """Nothing up to `end` is for this shard any more: what is removed up to there was not unread."""
        if end > self._last:
            self._progress.offer(Message(end, until_ns=0))
            self._last = end

    async def _fetch(self, subscription: JetStreamContext.PullSubscription) -> list[Msg]:
        try:
            return await subscription.fetch(AT_ONCE, timeout=FETCH_S)
        except TimeoutError:
            if not self._client.is_connected:
                raise
            return []

    def _in_order(self, messages: list[Msg]) -> bool:
        for message in messages:
            if message.metadata.sequence.consumer != self._came + 1:
                return False
            self._came += 1
        return True

    async def _take(self, messages: list[Msg]) -> None:
        """Hand messages over and wait until each is taken in or refused for good."""
        waiting = [push for message in messages if (push := self._push(message)) is not None]
        for push in waiting:
            self._progress.offer(cast(Message, push.message))
        while waiting:
            await self._submit(waiting)
            refused = [push for push in waiting if cast(Message, push.message).until_ns is None]
            if refused:
                self._pace.creep(SECOND_NS)
                await asyncio.sleep(BUSY_S)
            else:
                self._pace.see(waiting[-1].received_ns)
            waiting = refused
        for message in messages:
            self._last = message.metadata.sequence.stream
        self.messages += len(messages)

    async def _submit(self, pushes: list[_Push]) -> None:
        """Into the collector, until all have an answer."""
        loop, done, left = asyncio.get_running_loop(), asyncio.Event(), len(pushes)

        def answered(count: int) -> None:
            nonlocal left
            left -= count
            if not left:
                done.set()

        def tell(group: list[Push]) -> None:
            for push in group:
                self._note(cast(_Push, push))
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
                loop.call_soon_threadsafe(answered, len(group))

        for push in pushes:
            push.tell = tell
            try:
                self._live.submit(push)
            except BusyError:
                answered(1)
        await done.wait()
        for push in pushes:
            if isinstance(push.answer, Ack) and push.batch is not None:
                await self._ask(push.batch.node, push.answer)

    async def _ask(self, node: str, answer: Ack) -> None:
        """What a push by HTTP would have been told; lost where the agent is away, and asked again then."""
        if answer.send_facts or answer.flights:
            flights = [{"gpu": gpu, "request": request} for gpu, request in answer.flights]
            asked = json.dumps({"send_facts": answer.send_facts, "flight": flights}).encode()
            await self._client.publish(reply_subject(node), asked)

    def _note(self, push: _Push) -> None:
        """In the thread of the collector: what became of a message."""
        message = cast(Message, push.message)
        if isinstance(push.answer, WireError | ForbiddenError):
            message.until_ns = 0
        elif isinstance(push.answer, Ack) and push.batch is not None:
            batch = push.batch
            last_ns = batch.times_ns[-1] if len(batch.times_ns) else 0
            most_ns = push.received_ns + AHEAD_STEPS * SECOND_NS  # rows of later than that were refused
            message.key = (batch.node, batch.boot, batch.seq)
            before = self._unread.pop((batch.node, batch.boot), batch.seq)
            self._live.counters["batches_expired"] += max(0, batch.seq - before - 1)
            message.until_ns = min(last_ns + self._live.taking.shift_ns(push), most_ns)

    def _push(self, message: Msg) -> _Push | None:
        """What the collector takes, None for a message that is none of this shard's."""
        position = message.metadata.sequence.stream
        node = node_of(message.subject.rpartition(".")[2])
        if shard_of(node) != self._shard:
            self._live.counters["batches_forbidden"] += 1
            return None
        received_ns = int(message.metadata.timestamp.timestamp() * 1e6) * 1000
        clock = (message.headers or {}).get(CLOCK_HEADER, "")
        clock_ns = int(clock) if clock.isdigit() else None
        return _Push(
            message.data,
            received_ns,
            clock_ns,
            _nobody,
            frozenset({node}),
            hurried=True,
            message=Message(position),
        )


def _nobody(_: list[Push]) -> None:
    """Told before anybody waits."""
