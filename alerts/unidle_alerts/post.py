"""Post JSON to one allowed address: https, no redirect, 10 s. The only way out of this package.

urllib's default opener follows redirects and opens file: and ftp: addresses; this one is put together
from the parts that are wanted.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Collection
from dataclasses import dataclass
from typing import IO, Any

from unidle_alerts.redact import redact

TIMEOUT_S = 10.0
MAX_REPLY_BYTES = 1024
SLACK_HOSTS = ("hooks.slack.com", "hooks.slack-gov.com")


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back; `status` is None where nothing did, and `text` says why."""

    status: int | None
    text: str
    retry_after: str = ""


def url_problem(url: str, extra_hosts: Collection[str]) -> str:
    """What is wrong with a webhook's address, without showing it; empty when nothing is."""
    if not url.isascii() or not url.isprintable() or " " in url:
        return "an address without spaces and special characters"
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        return "an address of the form https://host/path"
    if parts.username is not None or parts.password is not None:
        return "an address without a user name or password in it"
    listed = {each.lower() for each in extra_hosts}
    if parts.scheme == "http":
        if not (host in listed and is_loopback(host)):
            return "https (http only to a loopback host that slack_hosts names)"
    elif parts.scheme != "https":
        return "an address that begins with https://"
    if host in listed:
        return "" if len(parts.path) > 1 else "an address with a path"
    if host not in SLACK_HOSTS:
        return f"a host of {', '.join(SLACK_HOSTS)}, or one that slack_hosts names"
    if port not in (None, 443):
        return "the usual https port"
    pieces = parts.path.split("/")
    if len(pieces) != 5 or pieces[1] != "services" or not all(pieces[2:]):
        return "a path of the form /services/T.../B.../..."
    return ""


def post_json(url: str, document: Any, timeout_s: float = TIMEOUT_S) -> Reply:
    """POST `document`; every failure of the network is a Reply, none holds the address."""
    request = urllib.request.Request(  # noqa: S310  # the scheme was checked by url_problem
        url,
        data=json.dumps(document).encode(),
        headers={"Content-Type": "application/json; charset=utf-8", "User-Agent": "unidle-alerts"},
    )
    try:
        with _opener(request.type).open(request, timeout=timeout_s) as reply:
            return Reply(reply.status, _hide(_body(reply), url))
    except urllib.error.HTTPError as error:
        with error:
            return Reply(error.code, _hide(_body(error), url), error.headers.get("Retry-After", ""))
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        return Reply(None, _hide(f"{type(reason).__name__}: {reason}", url))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A 3xx stays what it is: an answer that is not "ok"."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Never."""


def _opener(scheme: str) -> urllib.request.OpenerDirector:
    opener = urllib.request.OpenerDirector()
    handlers: list[urllib.request.BaseHandler] = [
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _NoRedirect(),
    ]
    if scheme == "https":
        handlers += [
            urllib.request.ProxyHandler(),
            urllib.request.HTTPSHandler(),
            urllib.request.HTTPHandler(),
        ]
    else:
        handlers.append(urllib.request.HTTPHandler())  # loopback: no proxy stands between
    for handler in handlers:
        opener.add_handler(handler)
    return opener


def _body(reply: IO[bytes]) -> str:
    try:
        return reply.read(MAX_REPLY_BYTES).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return "(the answer broke off)"


def _hide(text: str, url: str) -> str:
    """`text` without the address, its path, and the path's last part, which is the token."""
    path = urllib.parse.urlsplit(url).path
    for secret, shown in ((url, "(the webhook)"), (path, "/***"), (path.rpartition("/")[2], "***")):
        if len(secret) > 1:
            text = text.replace(secret, shown)
    return redact(text)


def is_loopback(host: str) -> bool:
    """Is it this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
