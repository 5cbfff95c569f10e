"""Settings of the collector: `[collector]` in the TOML file, UNIDLE_COLLECTOR_* , flags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unidle_agent.settings import Secret, setting


@dataclass(frozen=True, slots=True)
class CollectorSettings:
    """What can be set; every default is safe on a machine that others use too."""

    bind: str = setting("127.0.0.1", "address to listen on")
    port: int = setting(9470, "port to listen on", low=1, high=65535)
    data_dir: Path = setting(Path(".unidle/collector"), "folder of the store")
    site: str = setting("local", "name of this site, shown in findings and messages")
    push_token: Secret = setting(
        Secret(), "token that agents push with; without one, a token is made and kept in data_dir/push.token"
    )
    read_token: Secret = setting(
        Secret(),
        "token that readers of the API need; without one, reading is open on a loopback address only",
    )
    allowed_hosts: tuple[str, ...] = setting(
        ("127.0.0.1", "localhost", "::1"),
        "Host headers that are answered while reading needs no token, against DNS rebinding",
    )
    silence: tuple[str, ...] = setting((), "findings that nobody is told: kind:subject, e.g. idle:4711")
    keep_days: float = setting(30.0, "days that raw rows are kept", low=0.01, high=3650)
    keep_gb: float = setting(100.0, "most disk that raw rows take, GB", low=0.01, high=1e6)
    clock_skew_s: float = setting(
        60.0, "a node's clock that is off by more than this is corrected and reported, s", low=1, high=3600
    )
