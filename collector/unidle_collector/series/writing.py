"""Send lines by influxdb-client to whatever takes /api/v2/write, and say what a refusal means."""

from __future__ import annotations

from typing import Any

import urllib3
from influxdb_client.client.influxdb_client import InfluxDBClient
from influxdb_client.client.write_api import SYNCHRONOUS
from influxdb_client.rest import ApiException

from unidle_collector.series.answers import LinesRefusedError, TryLaterError
from unidle_collector.series.http import refused, unreachable

REFUSED = frozenset({400, 413, 422})
"""The lines themselves are at fault; everything else (a token, a bucket, the server) can come right."""


class InfluxWriter:
    """A bucket of a server; `shown` is how messages name it."""

    def __init__(self, client: InfluxDBClient, bucket: str, shown: str) -> None:
        self._client = client
        self._bucket = bucket
        self._shown = shown
        self._api = client.write_api(write_options=SYNCHRONOUS)

    def write(self, lines: bytes) -> None:
        """Write newline-separated lines in one request."""
        try:
            self._api.write(self._bucket, record=lines)
        except ApiException as error:
            status = int(error.status or 0)
            body = error.body if isinstance(error.body, bytes) else str(error.body or error.reason).encode()
            text = refused(self._shown, status, body)
            if status in REFUSED:
                raise LinesRefusedError(text) from error
            raise TryLaterError(text, _retry_after_s(error)) from error
        except urllib3.exceptions.HTTPError as error:
            raise TryLaterError(unreachable(self._shown, error)) from error

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()  # type: ignore[no-untyped-call]


def _retry_after_s(error: ApiException) -> float:
    """Seconds that the server asks to wait; the form with a date counts as nothing said."""
    headers: Any = error.headers or {}
    text = str(headers.get("Retry-After", ""))
    return float(text) if text.isdecimal() else 0.0
