"""Publishes the spool's batches to NATS JetStream, oldest first, until the broker has each on its disks.

The bytes are those of a push by HTTP. The broker's acknowledgement ends a batch: it comes once a majority
of the stream's replicas hold it, and collectors read from there. `Nats-Msg-Id` (node, boot, sequence) lets
the broker drop what is published twice within its window; collectors drop the rest.

| what happens | what follows |
|---|---|
| acknowledged, also as a duplicate | forget the batch |
| larger than the server's max_payload | set the batch aside, send the next |
| no stream, refused by its permissions | said once, tried again each 10 s |
| no answer, no connection | back off: 1 s doubling to 10 s, half of it random |

Needs asyncio (8 MB): only an agent that publishes pays for it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import AuthorizationError, Error, MaxPayloadError
from nats.js.errors import NoStreamResponseError, ServiceUnavailableError

from unidle_agent.errors import SettingError
from unidle_agent.segment import Record
from unidle_agent.sender import Sender, flights_asked
from unidle_agent.settings import Secret
from unidle_agent.shards import STREAM, reply_subject, rows_subject
from unidle_agent.spool import Spool
from unidle_agent.wire import CLOCK_HEADER

log = logging.getLogger("unidle.agent")

TIMEOUT_S = 5.0
MISCONFIGURED_RETRY_S = 10.0

T = TypeVar("T")


class NatsPusher(Sender):
    """Publishes from `spool` for `node`; `urls` are servers of one NATS cluster, split by commas."""

    most_backoff_s = 10.0  # a broker is back soon, and each collector waits for all of its nodes

    def __init__(
        self,
        urls: str,
        node: str,
        token: Secret,
        spool: Spool,
        *,
        creds_file: str = "",
        ca_file: str = "",
        cert_file: str = "",
        key_file: str = "",
        timeout_s: float = TIMEOUT_S,
        on_send_facts: Callable[[], None] = lambda: None,
        on_flights: Callable[[Sequence[tuple[str, str]]], None] = lambda _: None,
        chance: Callable[[], float] = random.random,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        if "@" in urls:
            raise SettingError(
                "agent.push_url", "URLs without user and password in them (push_token)", "***", ""
            )
        super().__init__(
            urls,
            spool,
            timeout_s=timeout_s,
            on_send_facts=on_send_facts,
            on_flights=on_flights,
            chance=chance,
        )
        self._servers = [url.strip() for url in urls.split(",") if url.strip()]
        self._node = node
        self._subject = rows_subject(node)
        self._now_ns = now_ns
        self._options = credentials(token, creds_file)
        if ca_file or cert_file or any(url.startswith("tls://") for url in self._servers):
            self._options["tls"] = tls_context(ca_file, cert_file, key_file)
        self._client: Client | None = None
        self._refused = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="nats", daemon=True)
        self._thread.start()

    def step(self) -> float | None:
        """Publish one batch; see Sender.step."""
        record = self._spool.peek()
        if record is None:
            return None
        try:
            self._wait(self._publish(record))
        except MaxPayloadError:
            return self._set_aside(record, f"{len(record.payload)} bytes are more than NATS takes at once")
        except (NoStreamResponseError, ServiceUnavailableError):
            return self._misconfigured(f"has no stream {STREAM} that takes {self._subject}")
        except AuthorizationError:
            return self._misconfigured("refuses this agent")
        except (Error, OSError, TimeoutError) as error:
            if self._refused:
                return self._misconfigured(f"refuses: {self._refused}")
            said = str(error) or type(error).__name__
            return self._back_off(f"NATS at {self.url} does not answer ({said})")
        return self._accepted(record)

    def close(self) -> None:
        """Close the connection and end its thread."""
        if self._client is not None:
            with_deadline = asyncio.wait_for(self._client.close(), self._timeout_s)
            try:
                self._wait(with_deadline)
            except (Error, OSError, TimeoutError):
                log.debug("closing the connection to NATS", exc_info=True)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=self._timeout_s)

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(3 * self._timeout_s)

    async def _publish(self, record: Record) -> None:
        self._refused = ""
        client = await self._connected()
        if not client.is_connected:
            raise TimeoutError("it is connecting again")
        if len(record.payload) > client.max_payload:
            raise MaxPayloadError
        await client.jetstream(timeout=self._timeout_s).publish(
            self._subject,
            record.payload,
            stream=STREAM,
            headers={
                "Nats-Msg-Id": f"{self._node}/{self._spool.boot}/{record.seq}",
                CLOCK_HEADER: str(self._now_ns()),
            },
        )

    async def _connected(self) -> Client:
        if self._client is None or self._client.is_closed:
            client = await asyncio.wait_for(
                nats.connect(
                    self._servers,
                    name=f"unidle agent {self._node}",
                    connect_timeout=2,
                    reconnect_time_wait=1,
                    max_reconnect_attempts=-1,
                    ping_interval=10,
                    max_outstanding_pings=2,
                    error_cb=self._on_error,
                    **self._options,
                ),
                self._timeout_s,
            )
            await client.subscribe(reply_subject(self._node), cb=self._on_reply)
            self._client = client
        return self._client

    async def _on_reply(self, message: Msg) -> None:
        try:
            asked = json.loads(message.data)
            send_facts, flights = bool(asked.get("send_facts")), flights_asked(asked.get("flight"))
        except (ValueError, AttributeError):
            log.warning("%s: expected a JSON object, came %r", message.subject, message.data[:80])
            return
        if send_facts:
            self._on_send_facts()
        if flights:
            self._on_flights(flights)

    async def _on_error(self, error: Exception) -> None:
        """What the server says outside of an answer; a connection that is lost shows in `step`."""
        if "permissions violation" in str(error).lower():
            self._refused = str(error)

    def _misconfigured(self, why: str) -> float:
        self.counts["misconfigured"] += 1
        self._failures = 0
        self._say(f"NATS at {self.url} {why}; check push_url and push_token, and that a collector runs")
        return MISCONFIGURED_RETRY_S


def credentials(token: Secret, creds_file: str) -> dict[str, Any]:
    """What NATS is entered with: a token, `USER:PASSWORD`, or a file of credentials."""
    if creds_file:
        return {"user_credentials": creds_file}
    user, colon, password = token.reveal().partition(":")
    if colon:
        return {"user": user, "password": password}
    return {"token": user} if user else {}


def tls_context(ca_file: str, cert_file: str, key_file: str) -> ssl.SSLContext:
    """As for a push by HTTP; raises SettingError for a file that is none."""
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
        if cert_file:
            context.load_cert_chain(cert_file, key_file or None)
    except (OSError, ssl.SSLError) as error:
        raise SettingError(
            "push_ca_file, push_cert_file", f"PEM files ({error})", f"{ca_file} {cert_file}", "settings"
        ) from error
    return context
