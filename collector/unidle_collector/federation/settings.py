"""Settings of a federation: `[federation]` in the TOML file, UNIDLE_FEDERATION_*, flags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unidle_agent.settings import Secret, setting


@dataclass(frozen=True, slots=True)
class FederationSettings:
    """Which sites are shown as one fleet, and where that is served."""

    bind: str = setting("127.0.0.1", "address to listen on")
    port: int = setting(9474, "port to listen on", low=1, high=65535)
    name: str = setting("all sites", "what the fleet of all sites is called")
    sites_file: str = setting("", "TOML file that lists the sites, see docs/federation.md")
    data_dir: Path = setting(Path(".unidle/federation"), "folder of the last report of each site")
    read_token: Secret = setting(
        Secret(),
        "token that readers of the API need; without one, reading is open on a loopback address only",
    )
    allowed_hosts: tuple[str, ...] = setting(
        ("127.0.0.1", "localhost", "::1"),
        "Host headers that are answered while reading needs no token, against DNS rebinding",
    )
    poll_s: float = setting(
        30.0, "seconds between two questions to a site; after three it is away", low=1, high=3600
    )
    deadline_s: float = setting(10.0, "seconds after which one question is given up", low=0.5, high=300)
