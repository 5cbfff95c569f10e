"""Ask a series store's HTTP interface for JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit

import urllib3

from unidle_collector.series.answers import SeriesError

MOST_SHOWN = 300
"""Characters of a server's own words in a message."""


class Http:
    """A server at `url` (a base path in it is kept). Safe to use from several threads."""

    def __init__(
        self, url: str, token: str = "", *, timeout_s: float = 10.0, verify: bool = True, ca_file: str = ""
    ) -> None:
        self._url = url.rstrip("/")
        self.shown = shown(url)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._pool = urllib3.PoolManager(
            timeout=timeout_s,
            retries=False,
            cert_reqs="CERT_REQUIRED" if verify else "CERT_NONE",
            ca_certs=ca_file or None,
        )

    def form(self, path: str, fields: Mapping[str, str]) -> Any:
        """The answer to a posted form."""
        return self._post(path, urlencode(fields).encode(), "application/x-www-form-urlencoded")

    def document(self, path: str, document: object) -> Any:
        """The answer to a posted JSON document."""
        return self._post(path, json.dumps(document).encode(), "application/json")

    def _post(self, path: str, body: bytes, content_type: str) -> Any:
        headers = self._headers | {"Content-Type": content_type, "Accept": "application/json"}
        try:
            reply = self._pool.request("POST", self._url + path, body=body, headers=headers)
        except urllib3.exceptions.HTTPError as error:
            raise SeriesError(unreachable(self.shown, error)) from error
        if reply.status != 200:
            raise SeriesError(refused(self.shown + path, reply.status, reply.data))
        try:
            return json.loads(reply.data)
        except ValueError as error:
            raise SeriesError(f"{self.shown}{path}: expected JSON, came {_start(reply.data)!r}") from error


def shown(url: str) -> str:
    """Where a server is, without what may be secret in a URL."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}:{parts.port or ''}".rstrip(":")


def unreachable(where: str, error: Exception) -> str:
    """What to tell of a server that does not answer."""
    return (
        f"the series store at {where} does not answer ({type(error).__name__}): is it up, is series_url right"
    )


def refused(where: str, status: int, body: bytes) -> str:
    """What to tell of a server that answers with an error."""
    advice = {401: ": check series_token", 403: ": check series_token", 404: ": check series_url and bucket"}
    return f"{where} answered {status}{advice.get(status, '')}: {_start(body)}"


def _start(body: bytes) -> str:
    return body.decode(errors="replace").strip()[:MOST_SHOWN]
