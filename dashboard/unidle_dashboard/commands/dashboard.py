"""Serve the dashboard: what is wasted, why, and what to do, in a browser.

It reads one collector over its API and listens on 127.0.0.1:9472. It has no login of its own: to
reach it from elsewhere, put a reverse proxy with authentication in front and name the proxy's host in
allowed_hosts. It asks nothing of any other host and sends no usage statistics.

examples:
  unidle dashboard                                            the collector on this machine
  unidle dashboard --collector-url http://collector.example:9470 --collector-token-file /etc/unidle/read.token
  UNIDLE_DASHBOARD_PORT=8080 unidle dashboard --refresh-s 30

A link to one incident is http://127.0.0.1:9472/?incident=ID. SIGTERM or Ctrl-C stops it.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from unidle_agent.fetch import target
from unidle_agent.listening import check_free
from unidle_agent.settings import add_flags, as_environment, load
from unidle_dashboard.settings import SECTION, DashboardSettings

PACKAGE = Path(__file__).parent.parent


def arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `unidle dashboard`."""
    add_flags(parser, DashboardSettings)


def run(args: argparse.Namespace) -> int:
    """Become the Streamlit server; returns only where that fails."""
    settings = load(DashboardSettings, SECTION, args)
    target(settings.collector_url, "dashboard.collector_url")  # or every page would say it
    check_free(settings.bind, settings.port)
    if not _is_loopback(settings.bind):
        print(
            f"unidle dashboard: listens on {settings.bind} and has no login of its own; "
            "whoever reaches this port sees everything",
            file=sys.stderr,
        )
    print(f"unidle dashboard: http://{_url_host(settings.bind)}:{settings.port}", flush=True)
    command = server_command(settings)
    os.execve(command[0], command, server_environment(settings, os.environ))  # noqa: S606  # no shell wanted


def server_command(settings: DashboardSettings) -> list[str]:
    """The command line of the server; everybody on the machine can read it, so it holds no secret."""
    options = {
        "server.address": settings.bind,
        "server.port": settings.port,
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "server.runOnSave": "false",
        "server.showEmailPrompt": "false",
        "server.enableStaticServing": "false",
        "browser.gatherUsageStats": "false",
        "client.showErrorDetails": "none",
        "client.toolbarMode": "minimal",
        "logger.hideWelcomeMessage": "true",
        "theme.base": PACKAGE / "assets" / "theme.toml",
    }
    hosts = [f"--server.allowedHosts={host}" for host in settings.allowed_hosts]
    flags = [f"--{name}={value}" for name, value in options.items()]
    return [sys.executable, "-m", "streamlit", "run", str(PACKAGE / "app.py"), *flags, *hosts]


def server_environment(settings: DashboardSettings, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment in which the server loads just these settings."""
    mine = f"UNIDLE_{SECTION.upper()}_"
    kept = {name: value for name, value in environ.items() if not name.startswith((mine, "STREAMLIT_"))}
    return kept | as_environment(settings, SECTION)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _url_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host
