"""Settings of `[alerts]`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from unidle_agent.settings import Secret, setting

SECTION = "alerts"


@dataclass(frozen=True, slots=True)
class AlertsSettings:
    """What `unidle alerts` can be told; one name in the file, the environment and the flags."""

    collector_url: str = setting("http://127.0.0.1:9470", "the collector to read incidents from")
    collector_token: Secret = setting(Secret(), "read token of the collector, where it asks for one")
    slack_webhook_url: Secret = setting(
        Secret(), "Slack incoming webhook, https://hooks.slack.com/services/...; empty sends nothing to Slack"
    )
    slack_hosts: tuple[str, ...] = setting(
        (),
        "further hosts that slack_webhook_url may name, for a Slack-compatible server of your own; "
        "http is accepted for a loopback host that is listed here",
    )
    stdout: bool = setting(False, "also print each message on the terminal")
    content: str = setting(
        "ids_only",
        "what may leave in a message: ids_only has no user, job, text or command; full adds all but the user",
        choices=("ids_only", "full"),
    )
    min_severity: str = setting(
        "warning", "least severity that is told", choices=("info", "warning", "critical")
    )
    site: str = setting("", "name of this site, shown in every message")
    dashboard_url: str = setting("http://127.0.0.1:9472", "where the buttons of a message lead; empty: none")
    state_dir: str = setting(
        "", "folder of the outbox; empty: /var/lib/unidle/alerts for root, else ~/.local/state/unidle/alerts"
    )
    poll_s: float = setting(2.0, "seconds between questions to the collector", low=0.05, high=300)
    settle_s: float = setting(
        3.0, "seconds that a change waits, so that what happens together is told together", low=0, high=300
    )
    group_window_s: float = setting(60.0, "seconds over which group_limit counts", low=1, high=3600)
    group_limit: int = setting(
        5, "messages about one incident each within group_window_s; more become one message", low=1, high=1000
    )
    bind: str = setting("127.0.0.1", "address of /health and /metrics")
    port: int = setting(9473, "port of /health and /metrics; 0 takes a free one", low=0, high=65535)

    @property
    def state_path(self) -> Path:
        """The folder that holds the outbox."""
        if self.state_dir:
            return Path(self.state_dir).expanduser()
        if os.geteuid() == 0:
            return Path("/var/lib/unidle/alerts")
        return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "unidle" / "alerts"
