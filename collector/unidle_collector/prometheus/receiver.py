"""POST /api/v1/prometheus/write: a Prometheus sends what it scrapes, by remote_write 1.0.

| answer | when | the server then |
|---|---|---|
| 204 | the samples were read; those that carry nothing are counted and left out | goes on |
| 400 | the body is no WriteRequest; it says what was expected | drops the request and goes on |
| 401 | no or the wrong token | drops the request and says so |
| 413 | more than MAX_BODY_BYTES | drops the request and goes on |
| 415 | not remote_write 1.0 in snappy | drops the request and says so |
| 503, Retry-After | earlier rows wait: the collector is busy or its disk is full | sends it again |

Samples out of order, too old or twice are no error: they are taken, and counted as what they are. What
was answered 204 is on disk: in the journal until it is rows of the store.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from unidle_collector.ingest.tokens import Tokens
from unidle_collector.live import Live
from unidle_collector.prometheus.assembly import SETTLE_S, Assembler
from unidle_collector.prometheus.feed import Feed
from unidle_collector.prometheus.journal import Journal
from unidle_collector.prometheus.write_request import WriteError, unpack
from unidle_collector.scheduler.names import pseudonyms

PATH = "/api/v1/prometheus/write"
MAX_BODY_BYTES = 16 * 1024 * 1024
LOOK_EACH_S = 0.5
RETRY_AFTER_S = 5
MOST_WAITING = 2_000
"""Batches that may wait for the collector before the server is asked to come again."""


class Receiver:
    """Takes requests of any thread, and hands settled scrapes over in a thread of its own."""

    def __init__(self, live: Live, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.counters: Counter[str] = live.counters
        self._problems = live.problems
        self._monotonic = monotonic
        self._assembler = Assembler()
        self._journal = Journal(live.settings.data_dir / "remote_write")
        self._feed = Feed(live.push, live.clock_ns, "remote-write", pseudonyms(live.settings))
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="remote-write", daemon=True)

    def start(self) -> None:
        """Take up what the last run left, and begin."""
        now_s = self._monotonic()
        for body in self._journal.replay(now_s):
            with suppress(WriteError):
                self._assembler.take(unpack(body), now_s)
        self._thread.start()

    def stop(self) -> None:
        """Hand over what came, also of scrapes of which the rest is missing."""
        self._stop.set()
        self._thread.join(timeout=60)
        self.hand_over(everything=True)

    def busy(self) -> bool:
        """Should a server come again later."""
        return self._assembler.full or self._feed.waiting >= MOST_WAITING

    def take(self, body: bytes) -> None:
        """Take a request's body; raises WriteError, and OSError when the disk does not take it."""
        data = unpack(body)
        with self._lock:
            now_s = self._monotonic()
            self._journal.append(body, now_s)
            self._assembler.take(data, now_s)
            self._count()

    def hand_over(self, everything: bool = False) -> None:
        """Make rows of the scrapes that are whole by now."""
        with self._lock:
            now_s = self._monotonic()
            scrapes = self._assembler.settled(now_s, everything)
        for scrape in scrapes:
            for node, readings in scrape.nodes.items():
                self._feed.add(node, scrape.time_ns, readings, scrape.period_s)
                self.counters["remote_write_rows"] += sum(len(reading.gpus) for _, _, reading in readings)
        if self._feed.send():
            self._problems.pop("remote_write", None)
            with self._lock:
                self._journal.forget(now_s if everything else now_s - SETTLE_S)
        else:
            self._problems["remote_write"] = f"rows of remote_write wait: {self._feed.fed.problem}"
        self.counters["remote_write_batches_dropped"] = self._feed.fed.dropped + self._feed.fed.refused

    def _count(self) -> None:
        counts = self._assembler.counts
        self.counters["remote_write_samples"] = counts.taken
        self.counters["remote_write_samples_ignored"] = counts.ignored
        self.counters["remote_write_samples_stale"] = counts.stale

    def _run(self) -> None:
        while not self._stop.wait(LOOK_EACH_S):
            try:
                self.hand_over()
            except Exception as error:  # this thread is all there is: it goes on, and health says why
                self._problems["remote_write"] = (
                    f"a scrape could not be taken: {type(error).__name__}: {error}"
                )


def mount(app: FastAPI, receiver: Receiver, tokens: Tokens) -> None:
    """Give `app` the endpoint, for the shared push token: a Prometheus writes the rows of many nodes."""

    @app.post(PATH, include_in_schema=False)
    async def write(request: Request) -> Response:
        receiver.counters["remote_write_requests"] += 1
        said = request.headers.get("authorization", "")
        if tokens.may_write(said) is not None:
            receiver.counters["requests_unauthorized"] += 1
            text = "expected the header 'Authorization: Bearer TOKEN' with the collector's push_token"
            return JSONResponse({"detail": text}, 401, {"WWW-Authenticate": "Bearer"})
        if wrong := _wrong_kind(request):
            receiver.counters["remote_write_refused"] += 1
            return JSONResponse({"detail": wrong}, 415)
        if receiver.busy():
            return _come_again(receiver, "earlier rows wait for the collector")
        body = await _body(request)
        if body is None:
            receiver.counters["remote_write_refused"] += 1
            return JSONResponse({"detail": f"expected at most {MAX_BODY_BYTES} bytes, there are more"}, 413)
        try:
            await run_in_threadpool(receiver.take, body)
        except WriteError as error:
            receiver.counters["remote_write_refused"] += 1
            return JSONResponse({"detail": str(error)}, 400)
        except OSError as error:
            return _come_again(receiver, f"the disk does not take it: {error.strerror}")
        return Response(status_code=204)


def _come_again(receiver: Receiver, why: str) -> Response:
    receiver.counters["remote_write_busy"] += 1
    return JSONResponse({"detail": f"{why}: come again"}, 503, {"Retry-After": str(RETRY_AFTER_S)})


def _wrong_kind(request: Request) -> str:
    """What is wrong with the form of a request; empty when it is remote_write 1.0 in snappy."""
    kind = request.headers.get("content-type", "application/x-protobuf").replace(" ", "")
    media, _, parameters = kind.partition(";")
    if media != "application/x-protobuf" or parameters not in ("", "proto=prometheus.WriteRequest"):
        return (
            f"expected remote_write 1.0 (application/x-protobuf), came {kind[:100]}: leave protobuf_message "
            "at its default, prometheus.WriteRequest"
        )
    packed = request.headers.get("content-encoding", "snappy")
    return "" if packed == "snappy" else f"expected Content-Encoding: snappy, came {packed[:40]}"


async def _body(request: Request) -> bytes | None:
    """The body, None when it is too large; never holds more than the limit."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY_BYTES:
            return None
        parts.append(part)
    return b"".join(parts)
