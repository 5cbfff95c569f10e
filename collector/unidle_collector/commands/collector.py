"""Take the agents' rows, keep them, account every GPU instant and find what is lost.

Listens on 127.0.0.1:9470 unless told otherwise:
  POST /api/v1/push             batches from agents, with the push token
  POST /api/v1/prometheus/write samples from a Prometheus, with --remote-write
  GET  /api/v1/health | fleet | gpus | nodes | jobs | queue | accounts | findings
       | recommendations | targets | incidents | events | series
                                JSON; the schema is at /openapi.json
  GET  /metrics                 for Prometheus

Where no push token is set, one is made and kept in DATA_DIR/push.token (mode 600): give the agents
that file with --push-token-file. Reading needs a read token as soon as the address is not a loopback
address. Stop with Ctrl-C or SIGTERM; what was acknowledged is on disk at any instant.

Examples:
  unidle collector
  unidle collector --bind 10.0.0.5 --read-token-file /etc/unidle/read.token
  UNIDLE_COLLECTOR_DATA_DIR=/var/lib/unidle unidle collector --site eu-fra-1
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import secrets
import signal
import sys
from pathlib import Path

import uvicorn

from unidle_agent.errors import SettingError
from unidle_agent.settings import add_flags, load
from unidle_collector.api import create_app
from unidle_collector.live import Live
from unidle_collector.prometheus.receiver import Receiver
from unidle_collector.prometheus.scraper import Scraper, wanted
from unidle_collector.settings import CollectorSettings
from unidle_collector.store.opening import open_store


def arguments(parser: argparse.ArgumentParser) -> None:
    """Flags are the settings."""
    add_flags(parser, CollectorSettings)


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    settings = load(CollectorSettings, "collector", args)
    if not _is_loopback(settings.bind) and not settings.read_token:
        raise SettingError(
            "collector.read_token", "a token, because the address is not loopback", "", settings.bind
        )
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o750)
    push_token = settings.push_token.reveal() or _kept_token(settings.data_dir / "push.token")
    store = open_store(settings)
    live = Live(settings, store)
    scraper = Scraper(settings, live) if wanted(settings) else None
    live.start()
    receiver = Receiver(live) if settings.remote_write else None
    if receiver is not None:
        receiver.start()
    if scraper is not None:
        scraper.start()
    # uvicorn raises the signal that stopped it once more: unanswered, it would end us before we have saved.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print(
        f"unidle collector: http://{settings.bind}:{settings.port}, data in {settings.data_dir}", flush=True
    )
    try:
        uvicorn.run(
            create_app(live, push_token, settings.read_token.reveal(), receiver, scraper),
            host=settings.bind,
            port=settings.port,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,
        )
    finally:
        for source in (receiver, scraper):
            if source is not None:
                source.stop()
        live.stop()
    return 0


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
