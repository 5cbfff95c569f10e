"""Sends the spool's batches to the collector, oldest first, until each is acknowledged.

| answer | what follows |
|---|---|
| 200 with `{"ack": seq, "send_facts": bool}` | forget the batch; facts into the next one if asked |
| 429, 503 | wait as long as Retry-After says, else back off |
| 400, 422 with a JSON `detail`, 413 | set the batch aside in the file `rejected`, send the next |
| 401, 403, 404, 405, 3xx, other 400 | token or address are wrong: said once, tried again each minute |
| any other, no answer, no connection | back off: 1 s doubling to 60 s, half of it random |

The first may also ask the flight recorder for windows: `"flight": [{"gpu": UUID, "request": id}, ...]`.

One connection is kept open. The token goes into the one header and nowhere else.
"""

from __future__ import annotations

import email.utils
import json
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from unidle_agent import fetch
from unidle_agent.errors import SettingError
from unidle_agent.segment import Record
from unidle_agent.settings import Secret
from unidle_agent.spool import Spool
from unidle_agent.wire import CLOCK_HEADER, CONTENT_TYPE
from unidle_agent.wire_flight import MAX_TEXT

log = logging.getLogger("unidle.agent")

PATH = "/api/v1/push"
TIMEOUT_S = 10.0
MAX_ANSWER_BYTES = 64 * 1024
FIRST_BACKOFF_S, MAX_BACKOFF_S = 1.0, 60.0
MISCONFIGURED_RETRY_S = 60.0
MAX_RETRY_AFTER_S = 3600.0
BAD_BATCH = (400, 413, 422)
"""The collector's word on the batch itself, where it gives a reason as JSON: see `calls_batch_bad`."""
BUSY = (429, 503)
MISCONFIGURED = (401, 403, 404, 405)
OUTCOMES = ("acknowledged", "rejected", "busy", "misconfigured", "failed")
"""What a push can come to; `Pusher.counts` has one number for each."""


class Pusher:
    """Sends from `spool` to the collector at `url`.

    `on_send_facts` is called when it asks for facts, `on_flights` with (GPU, request id) of each window of
    the flight recorder that it asks for.
    """

    def __init__(
        self,
        url: str,
        token: Secret,
        spool: Spool,
        *,
        ca_file: str = "",
        cert_file: str = "",
        key_file: str = "",
        timeout_s: float = TIMEOUT_S,
        on_send_facts: Callable[[], None] = lambda: None,
        on_flights: Callable[[Sequence[tuple[str, str]]], None] = lambda _: None,
        chance: Callable[[], float] = random.random,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.url = url
        self.counts = dict.fromkeys(OUTCOMES, 0)
        self.problem = ""
        """Why nothing goes through now; empty while it does."""
        self._token = token
        self._spool = spool
        self._timeout_s = timeout_s
        self._on_send_facts = on_send_facts
        self._on_flights = on_flights
        self._chance = chance
        self._now_ns = now_ns
        self._failures = 0
        self._wake = threading.Event()
        self._due_s = 0.0
        """When to look for something to send, by the clock that never steps; infinite: not before a wake."""
        # http.client shows a header that it cannot send: no such token may get as far as that.
        if not (token.reveal().isascii() and token.reveal().isprintable()):
            raise SettingError("agent.push_token", "printable ASCII without line ends", "***", "settings")
        to = fetch.target(url, "agent.push_url")
        self._path = f"{to.path}{PATH}"
        self._over = fetch.connection(to, timeout_s, ca_file, cert_file, key_file)
        if token and not to.secure and not to.loopback:
            log.warning("push_url %s has no TLS: the push token travels in clear text", url)

    def wake(self, after_s: float = 0.0) -> None:
        """Say that there is something new, to be sent after `after_s` at the latest. For any thread."""
        self._due_s = min(self._due_s, time.monotonic() + after_s)
        self._wake.set()

    def run(self, stop: threading.Event) -> None:
        """Send until `stop` is set (call `wake` too, to leave at once)."""
        while not stop.is_set():
            self._wake.clear()
            early_s = self._due_s - time.monotonic()
            if early_s > 0:
                self._wake.wait(None if math.isinf(early_s) else early_s)
                continue
            self._due_s = math.inf  # before the look: whoever wakes after it is not overlooked
            try:
                wait_s = self.step()
            except Exception:  # a bug must not end all delivery: the batch is still in the spool
                log.exception("unexpected error while pushing; trying again in %g s", MAX_BACKOFF_S)
                wait_s = MAX_BACKOFF_S
            if wait_s is not None:
                stop.wait(wait_s)
                self._due_s = 0.0

    def drain(self, for_s: float) -> None:
        """Send what is left for at most about `for_s` seconds, giving up at the first failure."""
        end_s = time.monotonic() + for_s
        self._timeout_s = min(self._timeout_s, for_s)
        while self.step() == 0 and time.monotonic() < end_s:
            pass

    def close(self) -> None:
        """Close the connection."""
        self._over.close()

    def step(self) -> float | None:
        """Send one batch; returns the seconds to wait before the next, None when nothing is left."""
        record = self._spool.peek()
        if record is None:
            return None
        try:
            answer = self._send(record.payload)
        except fetch.FetchError as error:
            return self._back_off(f"the collector at {self.url} does not answer ({error})")
        return self._handle(record, answer)

    def _send(self, body: bytes) -> fetch.Answer:
        # The clock of this moment, not of the spooling, lets the receiver see a skew.
        headers = {"Content-Type": CONTENT_TYPE, CLOCK_HEADER: str(self._now_ns())}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token.reveal()}"
        kept_open = self._over.sock is not None
        try:
            return self._exchange(body, headers)
        except fetch.LateError:
            raise
        except fetch.FetchError:
            if not kept_open:
                raise
            # The server may close an idle connection at any moment: that is no failure of it.
            return self._exchange(body, headers)

    def _exchange(self, body: bytes, headers: dict[str, str]) -> fetch.Answer:
        return fetch.exchange(
            self._over,
            "POST",
            self._path,
            deadline_s=self._timeout_s,
            max_bytes=MAX_ANSWER_BYTES,
            headers=headers,
            body=body,
        )

    def _handle(self, record: Record, answer: fetch.Answer) -> float:
        status = answer.status
        if status == 200:
            return self._acknowledged(record, answer)
        detail = f"HTTP {status}{_detail(answer.body)}"
        if calls_batch_bad(answer):
            return self._set_aside(record, detail)
        if status in MISCONFIGURED or status in BAD_BATCH or 300 <= status < 400:
            self.counts["misconfigured"] += 1
            self._failures = 0
            self._say(f"the collector at {self.url} refuses: {detail}; {_remedy(answer)}")
            return MISCONFIGURED_RETRY_S
        if status in BUSY and (retry_after_s := self._retry_after_s(answer)) is not None:
            self.counts["busy"] += 1
            self._say(f"the collector at {self.url} is busy ({detail})")
            return retry_after_s
        return self._back_off(f"the collector at {self.url} answers {detail}", busy=status in BUSY)

    def _acknowledged(self, record: Record, answer: fetch.Answer) -> float:
        try:
            reply = json.loads(answer.body)
            acknowledged, send_facts = int(reply["ack"]), bool(reply.get("send_facts", False))
        except (ValueError, TypeError, KeyError, AttributeError):
            return self._back_off(f'{self.url}: expected {{"ack": n}}, came {answer.body[:80]!r}')
        if acknowledged != record.seq:
            return self._back_off(f"{self.url}: expected ack {record.seq}, came {acknowledged}")
        self._spool.ack(record.seq)
        if send_facts:
            self._on_send_facts()
        if flights := _flights_asked(reply.get("flight")):
            self._on_flights(flights)
        self.counts["acknowledged"] += 1
        self._failures = 0
        self._say("")
        return 0

    def _set_aside(self, record: Record, why: str) -> float:
        log.warning("batch %d is set aside, the collector cannot take it: %s", record.seq, why)
        self._spool.set_aside(record)
        self.counts["rejected"] += 1
        self._failures = 0
        return 0

    def _back_off(self, why: str, *, busy: bool = False) -> float:
        self.counts["busy" if busy else "failed"] += 1
        delay_s: float = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(self._failures, 30))
        self._failures += 1
        self._say(f"{why}; batches wait in the spool")
        return delay_s * (0.5 + 0.5 * self._chance())

    def _retry_after_s(self, answer: fetch.Answer) -> float | None:
        text = answer.headers.get("retry-after", "").strip()
        if text.isdecimal():
            return min(MAX_RETRY_AFTER_S, float(text))
        try:
            until = email.utils.parsedate_to_datetime(text)
        except (ValueError, TypeError):
            return None
        return min(MAX_RETRY_AFTER_S, max(0.0, until.timestamp() - self._now_ns() / 1e9))

    def _say(self, problem: str) -> None:
        """Log a problem when it begins, changes or ends; who has read the log finds it on the page."""
        before, self.problem = self.problem, problem
        if problem and problem != before:
            log.warning("%s", problem)
        if not problem and before:
            log.info("the collector at %s takes batches again", self.url)


def calls_batch_bad(answer: fetch.Answer) -> bool:
    """Does the collector itself say that this batch will never be taken.

    A 400 or 422 without its JSON is another's (a proxy, a check of the Host header) and would set every
    batch aside; a 413 counts whoever says it, or the batch would block all behind it.
    """
    if answer.status == 413:
        return True
    try:
        return answer.status in BAD_BATCH and "detail" in json.loads(answer.body)
    except (ValueError, TypeError):
        return False


def _flights_asked(wanted: Any) -> list[tuple[str, str]]:
    """(GPU, request id) of every request that is one; no request is worth an acknowledgement."""
    found = []
    for one in wanted if isinstance(wanted, list) else ():
        if isinstance(one, dict):
            pair = one.get("gpu"), one.get("request")
            if all(isinstance(text, str) and 0 < len(text) <= MAX_TEXT for text in pair):
                found.append((str(pair[0]), str(pair[1])))
    return found


def _detail(body: bytes) -> str:
    try:
        text = str(json.loads(body)["detail"])
    except (ValueError, TypeError, KeyError):
        text = body.decode("utf-8", "replace")
    text = " ".join(text.split())[:200]
    return f": {text}" if text else ""


def _remedy(answer: fetch.Answer) -> str:
    if answer.status in (401, 403):
        return "check push_token (UNIDLE_AGENT_PUSH_TOKEN); trying again each minute"
    where = answer.headers.get("location", "")
    return f"check push_url{f', it points to {where}' if where else ''}; trying again each minute"
