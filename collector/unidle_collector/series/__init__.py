"""Where series over time are kept and read: the embedded store, InfluxDB 2 or 3, or VictoriaMetrics.

One setting, `series`, chooses. Everybody reads through a `SeriesStore` and does not know which it is; every
collector keeps its embedded store in any case, for its log is what is written elsewhere from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from unidle_agent.errors import SettingError
from unidle_collector.series.answers import SeriesError
from unidle_collector.settings import CollectorSettings
from unidle_collector.store import Quantile, Steps, Store

if TYPE_CHECKING:
    from influxdb_client.client.influxdb_client import InfluxDBClient

    from unidle_collector.series.feed import Feed

__all__ = ["Engine", "SeriesError", "SeriesStore", "open_feed", "open_series", "reader"]


class SeriesStore(Protocol):
    """What is asked of series over time; safe to use from several threads. The embedded `Store` is one.

    A step's value is the mean of a gauge, the last value of a state, the increase per second of a counter;
    NaN where nothing is known. There are at most 1,500 steps. Raises StoreError and SeriesError.
    """

    def steps(self, node: str, gpu: str, field: str, start_ns: int, end_ns: int, step_s: float) -> Steps:
        """One field of one GPU over start_ns <= time < end_ns; of the host, where the field is its."""

    def fleet(
        self, field: str, start_ns: int, end_ns: int, step_s: float, *, simulated: bool = False
    ) -> Steps:
        """One gauge or counter of all real, or all simulated, GPUs together, in steps of a minute or more."""

    def job_quantile(self, job: str, field: str, share: float) -> Quantile | None:
        """The `share` quantile (0.95: p95) of a gauge over all that is kept of a job; None for nothing."""


class Engine(SeriesStore, Protocol):
    """A series store on another server."""

    def ping(self) -> str:
        """What answered, in words; raises SeriesError."""


def open_series(settings: CollectorSettings, store: Store) -> SeriesStore:
    """What series are read from; raises SettingError."""
    return reader(settings) or store


def reader(settings: CollectorSettings) -> Engine | None:
    """The reader of the engine that the settings name, None for the embedded store; raises SettingError."""
    if settings.series == "embedded":
        return None
    _complete(settings)
    from unidle_collector.series.flux import Flux
    from unidle_collector.series.http import Http
    from unidle_collector.series.promql import PromQl
    from unidle_collector.series.sql import Sql

    url = settings.series_read_url or settings.series_url
    least_step_s, keep_days = settings.series_step_s, settings.keep_1h_days
    http = Http(
        url,
        settings.series_token.reveal(),
        timeout_s=settings.series_timeout_s,
        verify=settings.series_verify,
        ca_file=settings.series_ca_file,
    )
    if settings.series == "victoriametrics":
        return PromQl(http, least_step_s=least_step_s, keep_days=keep_days)
    if settings.series == "influxdb3":
        return Sql(http, settings.series_bucket, least_step_s=least_step_s, keep_days=keep_days)
    return Flux(
        _client(settings, url),
        settings.series_bucket,
        shown=http.shown,
        least_step_s=least_step_s,
        keep_days=keep_days,
    )


def open_feed(settings: CollectorSettings, store: Store) -> Feed | None:
    """What writes accepted rows to the engine, not started; None for the embedded store."""
    if settings.series == "embedded":
        return None
    _complete(settings)
    from unidle_collector.series.feed import Feed
    from unidle_collector.series.http import shown
    from unidle_collector.series.queue import LogQueue
    from unidle_collector.series.writing import InfluxWriter

    directory = settings.data_dir / "series"
    writer = InfluxWriter(
        _client(settings, settings.series_url), settings.series_bucket, shown(settings.series_url)
    )
    return Feed(
        directory,
        LogQueue(directory / "queue", store.log_directory, store.durable),
        writer,
        store.state.facts,
        step_s=settings.series_step_s,
        most_bytes=int(settings.series_queue_gb * 1e9),
    )


def _complete(settings: CollectorSettings) -> None:
    """Raises SettingError for what is missing, the extra that brings influxdb-client included."""
    parts = urlsplit(settings.series_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingError("collector.series_url", "http://HOST:PORT", settings.series_url, "the settings")
    if not settings.series_bucket:
        raise SettingError("collector.series_bucket", "a bucket or database", "", "the settings")
    try:
        import influxdb_client  # noqa: F401  # half a second and 40 MB: only where it is used
    except ImportError as error:
        expected = "embedded, or pip install 'unidle[influx]'"
        raise SettingError("collector.series", expected, settings.series, "the settings") from error


def _client(settings: CollectorSettings, url: str) -> InfluxDBClient:
    from influxdb_client.client.influxdb_client import InfluxDBClient

    token = settings.series_token.reveal()
    client = InfluxDBClient(
        url.rstrip("/"),
        token=token,
        org=settings.series_org,
        enable_gzip=settings.series_gzip,
        timeout=int(settings.series_timeout_s * 1000),
        verify_ssl=settings.series_verify,
        ssl_ca_cert=settings.series_ca_file or None,
        retries=False,  # the feed tries again, for as long as it takes
    )
    if settings.series == "victoriametrics" and token:  # it takes any; a proxy before it wants the usual form
        client.api_client.default_headers["Authorization"] = f"Bearer {token}"
    return client
