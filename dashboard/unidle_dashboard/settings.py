"""The settings of the dashboard."""

from __future__ import annotations

from dataclasses import dataclass

from unidle_agent.settings import Secret, setting

SECTION = "dashboard"


@dataclass(frozen=True, slots=True)
class DashboardSettings:
    """Where the numbers come from, and where the pages are served."""

    collector_url: str = setting("http://127.0.0.1:9470", "address of the collector")
    collector_token: Secret = setting(Secret(), "read token of the collector, where it asks for one")
    bind: str = setting("127.0.0.1", "address to listen on; the dashboard has no login of its own")
    port: int = setting(9472, "port to listen on", low=1, high=65535)
    allowed_hosts: tuple[str, ...] = setting(
        ("127.0.0.1", "localhost", "::1"),
        "host names under which browsers may open it; add the name of your reverse proxy",
    )
    refresh_s: float = setting(10.0, "seconds between two looks at the collector", low=1, high=3600)
    timeout_s: float = setting(5.0, "seconds to wait for an answer of the collector", low=0.1, high=60)
    site: str = setting("", "name of the site on every page; empty: as the collector says")
