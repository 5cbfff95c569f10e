"""Take the agents' rows, keep them, account every GPU instant and find what is lost.

Listens on 127.0.0.1:9470 unless told otherwise:
  POST /api/v1/push             batches from agents, with a token or a certificate
  POST /api/v1/prometheus/write samples from a Prometheus, with --remote-write
  GET  /api/v1/health | fleet | gpus | nodes | jobs | queue | accounts | findings
       | recommendations | targets | incidents | events | series
                                JSON; the schema is at /openapi.json
  GET  /metrics                 for Prometheus

Who pushes: a node with its own token (`unidle tokens`), which writes that node's rows only; a node with
a client certificate of tls_client_ca_file whose CN or DNS name is the node's; or any node with the one
push_token. Where that is not set, it is made and kept in DATA_DIR/push.token (mode 600): give the
agents that file with --push-token-file. Reading needs a read token as soon as one was made or the
address is not a loopback address.

Past one machine, --nats-url: rows come from NATS JetStream instead of by HTTP, and any number of collectors
share the nodes in shards (docs/scale-out.md). Each answers for the whole site, /metrics/site included, and
serves GET /api/v1/shards, /api/v1/collector (is anything wrong with this one) and /shards/N/api/v1/... of
every shard, by a redirect where another holds it.

Stop with Ctrl-C or SIGTERM; what was acknowledged is on disk at any
instant.

Examples:
  unidle collector
  unidle collector --bind 10.0.0.5 --read-token-file /etc/unidle/read.token
  UNIDLE_COLLECTOR_DATA_DIR=/var/lib/unidle unidle collector --site eu-fra-1
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import ipaddress
import os
import secrets
import signal
import socket
import ssl
import sys
import time
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, cast

import uvicorn

from unidle_agent.errors import SettingError
from unidle_agent.listening import check_free
from unidle_agent.settings import add_flags, load
from unidle_collector.api import create_app
from unidle_collector.ingest.protocol import IDLE_S, PushProtocol
from unidle_collector.ingest.tokens import Tokens
from unidle_collector.live import Live
from unidle_collector.prometheus.receiver import Receiver
from unidle_collector.prometheus.scraper import Scraper, wanted
from unidle_collector.settings import CollectorSettings
from unidle_collector.store.opening import open_shared_state, open_store

NOT_WITH_NATS = ("remote_write", "scrape_targets", "scrape_file_sd", "scrape_http_sd")
"""Settings of what a collector of shards does not do."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Flags are the settings."""
    add_flags(parser, CollectorSettings)


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    settings = load(CollectorSettings, "collector", args)
    loopback = _is_loopback(settings.bind)
    if not loopback and not settings.read_token and not _has_read_token(settings):
        raise SettingError(
            "collector.read_token",
            "a token, because the address is not loopback (or make one: unidle tokens create --read NAME)",
            "",
            settings.bind,
        )
    if settings.nats_url:
        _check_of_shards(settings, loopback)
    tls = _tls(settings)
    check_free(settings.bind, settings.port)
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o750)
    if settings.nats_url:
        return _run_shards(settings, tls, loopback)
    push_token = settings.push_token.reveal() or _kept_token(settings.data_dir / "push.token")
    store = open_store(settings)
    state = open_shared_state(settings) if settings.state_url else store.state
    live = Live(settings, store, state=state)
    tokens = Tokens(
        state,
        live.clock_ns,
        shared_write=push_token,
        shared_read=settings.read_token.reveal(),
        may_be_open=loopback,
    )
    scraper = Scraper(settings, live) if wanted(settings) else None
    live.start()
    tokens.start()
    receiver = Receiver(live) if settings.remote_write else None
    if receiver is not None:
        receiver.start()
    if scraper is not None:
        scraper.start()
    _collect_garbage_seldom()
    # uvicorn raises the signal that stopped it once more: unanswered, it would end us before we have saved.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    scheme = "https" if tls else "http"
    print(
        f"unidle collector: {scheme}://{settings.bind}:{settings.port}, data in {settings.data_dir}",
        flush=True,
    )
    for note in live.notes:
        print(f"unidle collector: {note}", file=sys.stderr, flush=True)
    print(f"unidle collector: {live.window.describe(len(live.engine.inventory))}", flush=True)
    try:
        app = create_app(live, tokens, receiver, scraper)
        protocol = cast(type[asyncio.Protocol], partial(PushProtocol, app.door))
        _serve(settings, app, tls, http=protocol, timeout_keep_alive=int(IDLE_S))
    finally:
        for source in (receiver, scraper):
            if source is not None:
                source.stop()
        tokens.stop()
        live.stop()
        state.close()
    return 0


class _Server(uvicorn.Server):
    """Sleeps until a signal comes: uvicorn's own loop wakes up ten times a second to see whether one has."""

    _loop: asyncio.AbstractEventLoop | None = None
    _asked_to_stop: asyncio.Event

    async def main_loop(self) -> None:
        """Wait."""
        self._loop, self._asked_to_stop = asyncio.get_running_loop(), asyncio.Event()
        await self.on_tick(0)
        if not self.should_exit:
            await self._asked_to_stop.wait()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """In the main thread, where the event loop rests and is woken up by the signal."""
        super().handle_exit(sig, frame)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._asked_to_stop.set)


def _serve(settings: CollectorSettings, app: Any, tls: dict[str, Any], **more: Any) -> None:
    """Answer until a signal comes; ends the process where the port cannot be had."""
    server = _Server(
        uvicorn.Config(
            app,
            host=settings.bind,
            port=settings.port,
            loop="uvloop",
            log_level="warning",
            access_log=False,
            server_header=False,
            date_header=False,
            **tls,
            **more,
        )
    )
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        sys.exit(1)


def _check_of_shards(settings: CollectorSettings, loopback: bool) -> None:
    """Raises SettingError where a collector of shards cannot be what the settings ask for."""
    for key in NOT_WITH_NATS:
        if value := getattr(settings, key):
            expected = "nothing beside nats_url: rows come by way of NATS only (docs/scale-out.md)"
            raise SettingError(f"collector.{key}", expected, value, "settings")
    if settings.federation_file and not loopback and not settings.read_token:
        raise SettingError(
            "collector.read_token",
            "the same token on all collectors of the site, because a report is made of what they ask each "
            "other (docs/scale-out.md)",
            "",
            settings.federation_file,
        )


def _run_shards(settings: CollectorSettings, tls: dict[str, Any], loopback: bool) -> int:
    """Serve as one of several collectors, by way of NATS, until told to stop."""
    try:
        from unidle_collector.shards.app import ShardsApp  # needs nats-py, an extra of its own
        from unidle_collector.shards.service import Shards
    except ModuleNotFoundError as error:
        raise SettingError(
            "collector.nats_url", "nats-py (pip install 'unidle[nats]')", str(error.name), "settings"
        ) from error
    scheme = "https" if tls else "http"
    url = settings.advertise_url.rstrip("/") or f"{scheme}://{settings.bind}:{settings.port}"
    shards = Shards(settings, f"{socket.gethostname()}:{settings.port}", url)
    tokens = Tokens(
        shards.state,
        time.time_ns,
        shared_read=settings.read_token.reveal(),
        shared_write="",
        may_be_open=loopback,
    )
    tokens.start()
    shards.start()
    _collect_garbage_seldom()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if settings.series == "embedded":
        print(
            "unidle collector: a shard's raw rows stay on the disk of who took them; to read them wherever "
            "it is held, set series (docs/scale-out.md)",
            file=sys.stderr,
            flush=True,
        )
    print(f"unidle collector of shards: {url}, rows from {', '.join(settings.nats_url)}", flush=True)
    try:
        _serve(settings, ShardsApp(shards, tokens), tls)
    finally:
        tokens.stop()
        shards.stop()
    return 0


def _collect_garbage_seldom() -> None:
    """The batches of a minute are held, without cycles among them: Python would go through all of them again
    and again."""
    gc.set_threshold(50_000, 20, 20)


def _tls(settings: CollectorSettings) -> dict[str, Any]:
    """What uvicorn is told of TLS; nothing without a certificate. Says which file is wrong."""
    if not settings.tls_cert_file:
        if settings.tls_client_ca_file:
            raise SettingError(
                "collector.tls_client_ca_file",
                "tls_cert_file beside it",
                settings.tls_client_ca_file,
                "settings",
            )
        return {}
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(settings.tls_cert_file, settings.tls_key_file or None)
    except (OSError, ssl.SSLError) as error:
        came = f"{settings.tls_cert_file}, {settings.tls_key_file or 'no key file'}"
        raise SettingError(
            "collector.tls_cert_file", f"a certificate and its key ({error})", came, "settings"
        ) from error
    found: dict[str, Any] = {
        "ssl_certfile": settings.tls_cert_file,
        "ssl_keyfile": settings.tls_key_file or None,
    }
    if settings.tls_client_ca_file:
        try:
            context.load_verify_locations(settings.tls_client_ca_file)
        except (OSError, ssl.SSLError) as error:
            expected = f"a PEM file of authorities ({error})"
            raise SettingError(
                "collector.tls_client_ca_file", expected, settings.tls_client_ca_file, "settings"
            ) from error
        found |= {"ssl_ca_certs": settings.tls_client_ca_file, "ssl_cert_reqs": ssl.CERT_OPTIONAL}
    return found


def _has_read_token(settings: CollectorSettings) -> bool:
    if not settings.state_url and not (settings.data_dir / "state.sqlite").is_file():
        return False
    state = open_shared_state(settings)
    try:
        return any(token.kind == "read" for token in state.tokens())
    finally:
        state.close()


def _is_loopback(bind: str) -> bool:
    try:
        return ipaddress.ip_address(bind).is_loopback
    except ValueError:
        return bind == "localhost"


def _kept_token(path: Path) -> str:
    """The token in `path`, made on first use; only its owner can read it."""
    if path.is_file():
        return path.read_text(encoding="ascii").strip()
    token = secrets.token_urlsafe(32)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(token + "\n")
    print(f"unidle collector: made a push token for the agents: {path}", flush=True)
    return token
