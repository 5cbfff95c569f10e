"""Show the collectors of several sites as one fleet; each site keeps its rows and decides what crosses.

Asks every site of SITES_FILE for its report each --poll-s and listens on 127.0.0.1:9474:
  GET  /api/v1/health | sites | fleet | accounts        JSON; the schema is at /openapi.json
  GET  /metrics                                          for Prometheus
The dashboard, the terminal and unidle sites read it like a collector. A site that does not answer
stays in the picture: unknown since its last report, which is shown with its age.

The file has one table [[site]] per site, with url (https, but on loopback), token_file and ca_file. The
token is the one that the site's own federation_file gives this federation: docs/federation.md.

Examples:
  unidle federation --sites-file /etc/unidle/sites.toml
  unidle sites --collector-url http://127.0.0.1:9474
  unidle dashboard --collector-url http://127.0.0.1:9474
"""

from __future__ import annotations

import argparse
import ipaddress
import logging
import signal
import sys
from pathlib import Path

import uvicorn

from unidle_agent.errors import SettingError
from unidle_agent.listening import check_free
from unidle_agent.settings import add_flags, load
from unidle_collector.federation.app import create_app
from unidle_collector.federation.following import Following, load_sources
from unidle_collector.federation.settings import FederationSettings


def arguments(parser: argparse.ArgumentParser) -> None:
    """Flags are the settings."""
    add_flags(parser, FederationSettings)


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    settings = load(FederationSettings, "federation", args)
    if not settings.sites_file:
        raise SettingError(
            "federation.sites_file",
            "a TOML file that lists the sites: --sites-file FILE, see docs/federation.md",
            "",
            "settings",
        )
    if not _is_loopback(settings.bind) and not settings.read_token:
        raise SettingError(
            "federation.read_token", "a token, because the address is not loopback", "", settings.bind
        )
    sources = load_sources(Path(settings.sites_file))
    check_free(settings.bind, settings.port)
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o750)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    following = Following(sources, settings.data_dir, settings.poll_s, settings.deadline_s)
    following.start()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print(f"unidle federation: http://{settings.bind}:{settings.port}, {len(sources)} sites", flush=True)
    try:
        uvicorn.run(
            create_app(settings, following),
            host=settings.bind,
            port=settings.port,
            log_level="warning",
            access_log=False,
            server_header=False,
        )
    finally:
        following.stop()
    return 0


def _is_loopback(bind: str) -> bool:
    try:
        return ipaddress.ip_address(bind).is_loopback
    except ValueError:
        return bind == "localhost"
