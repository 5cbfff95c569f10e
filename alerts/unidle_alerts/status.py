"""/health (JSON) and /metrics (Prometheus text) of the alerts."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from typing import Any

from unidle_agent.errors import reason
from unidle_alerts.errors import AlertsError
from unidle_alerts.outbox import NO_DESTINATION, ChannelState
from unidle_alerts.words import SECOND_NS, plural

STUCK_S = 600.0
"""A change that has waited this long is a problem: twice the longest backoff."""


@dataclass(slots=True)
class Pulse:
    """How the two loops are doing; written by them, read by the server."""

    polls: int = 0
    poll_errors: int = 0
    worker_errors: int = 0
    last_poll_ok_ns: int | None = None
    collector_problem: str = ""
    """Why the collector could not be asked the last time; empty when it answered."""
    worker_problem: str = ""


def health(
    pulse: Pulse, channels: Sequence[ChannelState], destinations: Sequence[str], now_ns: int
) -> dict[str, Any]:
    """What /health answers: `ok` is false where something needs a person, `problems` says what."""
    used = [each for each in channels if each.destination in destinations]
    problems = [text for text in (pulse.collector_problem, pulse.worker_problem) if text]
    if NO_DESTINATION in destinations:
        untold = sum(each.untold for each in used)
        problems.append(f"no destination is configured: {plural(untold, 'change')} told to nobody")
    for each in used:
        if each.dead_rows:
            problems.append(
                f"{each.destination}: {plural(each.dead_rows, 'change')} given up, last: {each.last_reason}; "
                "correct it, then: unidle alerts --retry-dead"
            )
        if _age_s(each, now_ns) > STUCK_S:
            problems.append(
                f"{each.destination}: {plural(each.pending, 'change')} waiting for "
                f"{_age_s(each, now_ns):.0f} s, last: {each.last_reason}"
            )
    return {
        "ok": not problems,
        "problems": problems,
        "version": version("unidle"),
        "collector": {"ok": not pulse.collector_problem, "last_ok_ns": pulse.last_poll_ok_ns},
        "destinations": {
            each.destination: {
                "delivered": each.delivered,
                "retried": each.retried,
                "dead": each.dead,
                "pending": each.pending,
                "given_up": each.dead_rows,
                "no_destination": each.untold,
                "oldest_pending_s": _age_s(each, now_ns),
                "next_attempt_in_s": max(each.not_before_ns - now_ns, 0) / SECOND_NS,
                "last_outcome": each.last_outcome,
                "last_reason": each.last_reason,
            }
            for each in used
        },
    }


def metrics(pulse: Pulse, channels: Sequence[ChannelState], destinations: Sequence[str], now_ns: int) -> str:
    """What /metrics answers."""
    lines: list[str] = []

    def family(name: str, kind: str, doc: str, samples: Sequence[tuple[str, float]]) -> None:
        lines.append(f"# HELP unidle_alerts_{name} {doc}")
        lines.append(f"# TYPE unidle_alerts_{name} {kind}")
        lines.extend(f"unidle_alerts_{name}{labels} {value}" for labels, value in samples)

    used = [each for each in channels if each.destination in destinations]

    def per_channel(value: Callable[[ChannelState], float]) -> list[tuple[str, float]]:
        return [(f'{{destination="{each.destination}"}}', value(each)) for each in used]

    family("messages_delivered_total", "counter", "Messages accepted.", per_channel(lambda c: c.delivered))
    family("messages_retried_total", "counter", "Attempts to be repeated.", per_channel(lambda c: c.retried))
    family("messages_dead_total", "counter", "Messages given up.", per_channel(lambda c: c.dead))
    family("pending", "gauge", "Changes of incidents that wait.", per_channel(lambda c: c.pending))
    family("given_up", "gauge", "Changes given up and not retried.", per_channel(lambda c: c.dead_rows))
    family("no_destination", "gauge", "Changes told to nobody.", per_channel(lambda c: c.untold))
    family("oldest_pending_seconds", "gauge", "Age of the oldest.", per_channel(lambda c: _age_s(c, now_ns)))
    family("polls_total", "counter", "Questions to the collector.", [("", pulse.polls)])
    family("poll_errors_total", "counter", "Questions without an answer.", [("", pulse.poll_errors)])
    family("worker_errors_total", "counter", "Deliveries that broke off.", [("", pulse.worker_errors)])
    family(
        "collector_up", "gauge", "Did the last question succeed.", [("", float(not pulse.collector_problem))]
    )
    return "\n".join(lines) + "\n"


def _age_s(channel: ChannelState, now_ns: int) -> float:
    return (
        0.0 if channel.oldest_pending_ns is None else max(now_ns - channel.oldest_pending_ns, 0) / SECOND_NS
    )


class StatusServer:
    """Serves both on their own thread."""

    def __init__(
        self, bind: str, port: int, health: Callable[[], dict[str, Any]], metrics: Callable[[], str]
    ) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_GET(self) -> None:
                if self.path == "/health":
                    self._answer(200, "application/json", json.dumps(health(), indent=1))
                elif self.path == "/metrics":
                    self._answer(200, "text/plain; version=0.0.4; charset=utf-8", metrics())
                else:
                    self._answer(404, "text/plain", "there are /health and /metrics\n")

            def _answer(self, status: int, kind: str, text: str) -> None:
                body = text.encode()
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
                """Say nothing per request."""

        try:
            self._server = ThreadingHTTPServer((bind, port), Handler)
        except (OSError, OverflowError) as error:
            raise AlertsError(
                f"cannot listen on {bind}:{port} ({reason(error)}): stop what listens there, or "
                "choose another with --port and --bind"
            ) from error
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)

    @property
    def address(self) -> str:
        """`http://127.0.0.1:9473`"""
        return f"http://{self._server.server_address[0]!s}:{self._server.server_address[1]}"

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Stop and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
