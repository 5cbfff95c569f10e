"""What `unidle doctor` checks of the alerts. Nothing is sent: only a message could prove the webhook."""

from __future__ import annotations

import os
import urllib.parse

from unidle_agent.checks import CheckResult
from unidle_agent.errors import UnidleError
from unidle_agent.settings import load
from unidle_alerts.notifiers.slack_webhook import make
from unidle_alerts.post import is_loopback
from unidle_alerts.settings import SECTION, AlertsSettings


def slack() -> CheckResult:
    """Is a webhook configured, has its address the right form, and do the buttons lead anywhere."""
    try:
        settings = load(AlertsSettings, SECTION)
        notifier = make(settings)
    except UnidleError as error:
        return CheckResult("slack", "fail", str(error), "correct the setting; the secret is not shown here")
    if notifier is None:
        return CheckResult(
            "slack",
            "absent",
            "no webhook is configured: incidents are on the dashboard only",
            "create an incoming webhook in Slack, put its address in a file of mode 600, and set "
            "slack_webhook_url_file in [alerts]",
        )
    host = urllib.parse.urlsplit(settings.slack_webhook_url.reveal()).hostname
    if is_loopback(urllib.parse.urlsplit(settings.dashboard_url).hostname or ""):
        return CheckResult(
            "slack",
            "warn",
            f"a webhook at {host}; its buttons lead to {settings.dashboard_url}, reachable only from here",
            "set dashboard_url in [alerts] to the address that people use",
        )
    return CheckResult(
        "slack", "ok", f"a webhook at {host} (not tried: unidle alerts --test sends a message)"
    )


def outbox() -> CheckResult:
    """Can the outbox be written."""
    try:
        folder = load(AlertsSettings, SECTION).state_path
    except UnidleError as error:
        return CheckResult("alerts-outbox", "fail", str(error), "correct the setting")
    # Not Path.exists, which raises in a folder that is closed to this user.
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))  # noqa: PTH110
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return CheckResult(
            "alerts-outbox",
            "fail",
            f"{folder}: {existing} is not a folder that this user may write to",
            "create it for the user that runs unidle alerts, or set state_dir in [alerts]",
        )
    return CheckResult("alerts-outbox", "ok", f"{folder} can be written")


CHECKS = (slack, outbox)
