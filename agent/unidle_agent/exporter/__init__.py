"""The agent's own page: /metrics for Prometheus and OpenMetrics, and /health for people and probes.

`snapshot` keeps the latest values; `families` turns them into metrics under the names asked for (`own`,
or those of dcgm-exporter in `dcgm_names`); `render` writes the text; `server` answers requests.
"""

from __future__ import annotations

from unidle_agent.exporter.families import families
from unidle_agent.exporter.own_names import in_base_units, metric_name
from unidle_agent.exporter.render import Metric, render, single
from unidle_agent.exporter.server import Exporter, Health, health_of
from unidle_agent.exporter.snapshot import Snapshot
from unidle_agent.exporter.tls import Certificate
from unidle_agent.exporter.xids import XidCounts

__all__ = [
    "Certificate",
    "Exporter",
    "Health",
    "Metric",
    "Snapshot",
    "XidCounts",
    "families",
    "health_of",
    "in_base_units",
    "metric_name",
    "render",
    "single",
]
