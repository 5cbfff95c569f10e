"""A federation over sites that are not there, as the dashboard's API and as a server."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from tests.e2e.processes import free_port
from tests.federation.reports import NOW_NS, report, seen

from unidle_agent.settings import Secret
from unidle_collector.client import ApiError
from unidle_collector.federation import merging
from unidle_collector.federation.app import create_app
from unidle_collector.federation.following import Following, Seen
from unidle_collector.federation.report import SiteNow
from unidle_collector.federation.settings import FederationSettings
from unidle_collector.model import Account, Fleet, Health

INSIDE = ("accounts.model", "accounts.team", "accounts.cause", "eur")


def three_sites(name: str = "") -> list[Seen]:
    """One that answers, one that is simulated, one abroad that is away and shares little."""
    named = ("accounts.node", "accounts.user", "accounts.job")
    return [
        seen(report(f"fra{name}", withheld=named, gpus=512)),
        seen(report(f"par{name}", withheld=named, gpus=64, simulated=True)),
        seen(
            report(f"zrh{name}", "CH", withheld=(*INSIDE, *named), gpus=256),
            age_s=900,
            error="connection refused: nothing listens there",
        ),
    ]


class FakeFederation:
    """`CollectorApi` as far as a federation answers it; anything else is an error, as there."""

    def __init__(self, all_seen: list[Seen]) -> None:
        self.all_seen = all_seen

    def sites(self) -> list[SiteNow]:
        return merging.sites(self.all_seen, NOW_NS, 30.0)

    def fleet(self, window_s: float = 3600, site: str = "") -> Fleet:
        return merging.fleet("all sites", merging.chosen(self.sites(), site), window_s, NOW_NS)

    def accounts(self, by: str, window_s: float = 3600) -> list[Account]:
        return merging.accounts(self.sites(), by, window_s)

    def health(self) -> Health:
        raise ApiError("not asked by any page of a federation")


class _Still(Following):
    """Sites that are not asked: the same for ever."""

    def __init__(self, all_seen: list[Seen], folder: Path) -> None:
        super().__init__([one.source for one in all_seen], folder, 30.0, 5.0)
        self.all_seen = all_seen

    def seen(self) -> list[Seen]:
        return self.all_seen


class Serving:
    """A federation's own app on a free port of the loopback."""

    def __init__(self, folder: Path, token: str) -> None:
        self.token, port = token, free_port()
        self.url = f"http://127.0.0.1:{port}"
        settings = FederationSettings(read_token=Secret(token))
        app = create_app(settings, _Still(three_sites(), folder), lambda: NOW_NS)
        self.server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))


@contextmanager
def serving(folder: Path, token: str) -> Iterator[Serving]:
    """Runs until the block ends."""
    running = Serving(folder, token)
    thread = threading.Thread(target=running.server.run, daemon=True)
    thread.start()
    while not running.server.started and thread.is_alive():
        time.sleep(0.02)
    try:
        yield running
    finally:
        running.server.should_exit = True
        thread.join(20)
