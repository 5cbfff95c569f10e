"""The collector's own /metrics page: what it received, what is lost, what is open."""

from __future__ import annotations

from unidle_collector import fleet_metrics, reading
from unidle_collector.fleet_metrics import add_family
from unidle_collector.live import Live
from unidle_collector.model import TargetNow
from unidle_collector.prometheus.scraper import counted
from unidle_collector.series.feed import COUNTERS as FEED_COUNTERS
from unidle_collector.series.feed import Feed
from unidle_collector.timings import Timings

QUANTILES = (0.5, 0.9, 0.99)

COUNTERS = {
    "rows_ingested": "Rows received; a row is one GPU at one instant.",
    "rows_late": "Rows received after their instant was accounted.",
    "rows_future": "Rows refused because they lie in the future of the collector's clock.",
    "events_received": "Events of GPUs received, XIDs and the like.",
    "flights_received": "Windows of flight recorders received.",
    "flights_asked": "Windows of flight recorders asked for.",
    "flights_dropped": "Windows of flight recorders lost because the state database took nothing.",
    "batches_malformed": "Batches refused because they could not be read.",
    "batches_duplicate": "Batches received again; they count once.",
    "batches_forbidden": "Batches refused because the token or certificate is another node's.",
    "batches_too_large": "Batches refused for their size.",
    "batches_clock_corrected": "Batches whose node's clock was corrected.",
    "counter_resets": "Counters that started anew.",
    "values_refused": "Impossible values that became unknown.",
    "requests_unauthorized": "Requests without the right token.",
    "pushes_busy": "Pushes that were asked to come again.",
    "window_broken": "Times that something unexpected broke at batches that are stored, but in no account.",
    "pushes_broken": "Pushes at which something unexpected broke; they are sent again.",
    "steps_broken": "Steps of event time at which something unexpected broke: they are not accounted.",
    "collector_broken": "Rounds of the collector at which something unexpected broke.",
    "silences_filled": "Silences of nodes that late rows have filled in.",
    "pushes_store_full": "Pushes that the store could not take.",
    "remote_write_requests": "Requests of a Prometheus by remote_write.",
    "remote_write_refused": "Requests of remote_write that could not be read.",
    "remote_write_busy": "Requests of remote_write that were asked to come again.",
    "remote_write_samples": "Samples received by remote_write that carry something.",
    "remote_write_samples_ignored": "Samples received by remote_write that carry nothing for a GPU or host.",
    "remote_write_samples_stale": "Markers of series that have ended, received by remote_write.",
    "remote_write_rows": "Rows made of samples of remote_write; a row is one GPU at one instant.",
    "remote_write_batches_dropped": "Batches of such rows that were given up.",
    "scrapes": "Scrapes of dcgm-exporters.",
    "scrapes_failed": "Scrapes of dcgm-exporters that brought no GPU.",
    "scrape_batches_dropped": "Batches of scraped rows that were given up.",
    "steps": "Steps of event time that were looked at.",
    "findings_told": "Findings that people were told.",
    "findings_ended": "Findings that are over.",
}


SHOWN_AS = {"counter_resets": "values_reset"}
"""A metric's name must not say what type it has."""


def render(live: Live, targets: list[TargetNow]) -> str:
    """Prometheus text."""
    lines: list[str] = []
    for name, text in COUNTERS.items():
        shown = SHOWN_AS.get(name, name)
        add_family(lines, f"unidle_collector_{shown}_total", "counter", text, [("", live.counters[name])])
    scraped = [(f'{{state="{state}"}}', count) for state, count in counted(targets).items()]
    add_family(
        lines, "unidle_collector_scrape_targets", "gauge", "dcgm-exporters to scrape, by state.", scraped
    )
    for name, (text, timings) in {
        "tick": ("One step of all detectors, accounts and findings over the fleet.", live.tick_s),
        "finding_delay": (
            "From the arrival of the row that decided a finding to the finding.",
            live.finding_delay_s,
        ),
    }.items():
        _summary(lines, f"unidle_collector_{name}_seconds", text, timings)
    fleet, sums = reading.fleet(live, 3600), fleet_metrics.take(live)
    fleet_metrics.add_fleet(lines, fleet)
    fleet_metrics.add_gpus(lines, fleet.gpus - fleet.simulated_gpus, fleet.simulated_gpus)
    fleet_metrics.add_findings(lines, live.engine.findings())
    fleet_metrics.add_accounts(lines, {"": sums})
    fleet_metrics.add_means(lines, sums.means)
    fleet_metrics.add_queue(lines, reading.queue(live))
    _add_series(lines, live.feed)
    _add_store(lines, live)
    return "\n".join(lines) + "\n"


def _add_store(lines: list[str], live: Live) -> None:
    counts = [(f'{{what="{name}"}}', count) for name, count in sorted(live.store.counters().items())]
    text = "What the store has done and dropped since the start: rows, bytes, records or files."
    add_family(lines, "unidle_collector_store_total", "counter", text, counts)
    sizes = [(f'{{what="{name}"}}', size) for name, size in sorted(live.store.sizes().items())]
    add_family(lines, "unidle_collector_store_bytes", "gauge", "Disk that the store takes.", sizes)
    window = [("", live.window.bytes)]
    add_family(lines, "unidle_collector_window_bytes", "gauge", "Memory of the live window.", window)


def _add_series(lines: list[str], feed: Feed | None) -> None:
    """What is written to a series store elsewhere; zeros where there is none."""
    for name, text in FEED_COUNTERS.items():
        count = feed.counters[name] if feed else 0
        add_family(lines, f"unidle_collector_series_{name}_total", "counter", text, [("", count)])
    text = "Age of the oldest batch that is not in the series store yet."
    add_family(lines, "unidle_collector_series_lag_seconds", "gauge", text, [("", feed.lag_s if feed else 0)])
    text = "Disk that waits for the series store."
    add_family(
        lines, "unidle_collector_series_queue_bytes", "gauge", text, [("", feed.queue_bytes if feed else 0)]
    )


def _summary(lines: list[str], name: str, text: str, timings: Timings) -> None:
    """Quantiles are of the last 1,024."""
    rows = [(f'{{quantile="{share}"}}', timings.quantile_s(share)) for share in QUANTILES]
    add_family(lines, name, "summary", text, [(labels, value) for labels, value in rows if value is not None])
    lines += [f"{name}_sum {timings.sum_s:g}", f"{name}_count {timings.count}"]
