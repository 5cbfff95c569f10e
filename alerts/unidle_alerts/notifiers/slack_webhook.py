"""slack_webhook: one Slack incoming webhook, or a server that takes the same JSON.

What it sends
    One message per incident when it opens and one when it resolves (webhooks cannot edit what they
    have sent, so the second carries the same incident id); one message for many at once.

Outcome
    200 delivered. 429 again after Retry-After. 408, 5xx, time-outs and connection errors again by
    backoff. Anything else (400 invalid_payload, 403, 404 no_service, 410, a redirect) is dead: asking
    again would not help; correct it, then `unidle alerts --retry-dead`.

Settings
    `slack_webhook_url` (secret), `slack_hosts`, `content`, `dashboard_url`

How to silence it
    Leave `slack_webhook_url` empty.
"""

from __future__ import annotations

import email.utils
import time
from dataclasses import dataclass, field

from slack_sdk.errors import SlackObjectFormationError

from unidle_agent.errors import SettingError
from unidle_agent.settings import Secret
from unidle_alerts import post, words
from unidle_alerts.notice import Notice
from unidle_alerts.notifiers import Outcome
from unidle_alerts.settings import SECTION, AlertsSettings
from unidle_alerts.slack_message import payload

RETRY_AFTER_UNSAID_S = 30.0
MAX_RETRY_AFTER_S = 3600.0
MAX_REASON_CHARS = 200


@dataclass(frozen=True, slots=True)
class SlackWebhook:
    """Posts to `url`, which `make` has checked."""

    url: Secret = field(repr=False)
    dashboard_url: str = ""
    timeout_s: float = post.TIMEOUT_S
    name: str = "slack_webhook"

    def send(self, notice: Notice) -> Outcome:
        """Post it once."""
        try:
            document = payload(notice, self.dashboard_url)
        except SlackObjectFormationError as error:
            return Outcome("dead", f"the message does not fit Slack's limits: {error}")
        return outcome(post.post_json(self.url.reveal(), document, self.timeout_s), time.time())


def outcome(reply: post.Reply, now_s: float) -> Outcome:
    """What an answer means for the message."""
    said = words.shorten(words.clean(reply.text), MAX_REASON_CHARS)
    if reply.status is None:
        return Outcome("retry", said)
    reason = f"HTTP {reply.status}" + (f" {said}" if said else "")
    if reply.status == 200:
        return Outcome("delivered", reason)
    if reply.status == 429:
        return Outcome("retry", reason, _retry_after_s(reply.retry_after, now_s))
    if reply.status == 408 or reply.status >= 500:
        return Outcome("retry", reason)
    if 300 <= reply.status < 400:
        return Outcome("dead", f"HTTP {reply.status}: redirects are refused")
    return Outcome("dead", reason)


def _retry_after_s(header: str, now_s: float) -> float:
    """Seconds, or an HTTP date (RFC 9110, 10.2.3); bounded, so that a slip cannot silence us for days."""
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - now_s
        except (TypeError, ValueError):
            seconds = RETRY_AFTER_UNSAID_S
    return min(max(seconds, 1.0), MAX_RETRY_AFTER_S) if seconds == seconds else RETRY_AFTER_UNSAID_S


def make(settings: AlertsSettings) -> SlackWebhook | None:
    """Asked for by `slack_webhook_url`; raises SettingError for an address that it will not post to."""
    if not settings.slack_webhook_url:
        return None
    problem = post.url_problem(settings.slack_webhook_url.reveal(), settings.slack_hosts)
    if problem:
        raise SettingError(f"{SECTION}.slack_webhook_url", problem, "***", "a secret, not shown")
    return SlackWebhook(settings.slack_webhook_url, settings.dashboard_url)
