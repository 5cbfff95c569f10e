"""Which series carry something: dcgm-exporter's of every generation, and unidle's own.

A server adds labels of its own to what it scrapes: `instance` names the target, with its port, and a
label that both have (`job`) is moved to `exported_job` unless `honor_labels` is set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from unidle_agent.dcgm_values import METRICS
from unidle_agent.exporter.own_names import metric_name
from unidle_agent.fields import FIELDS, Field

DISCOVER = "(DCGM_FI|dcgm|unidle_gpu|unidle_host)_.+|unidle_simulated"
"""Names worth looking at, as a regular expression of PromQL."""

INFO, JOB_INFO, ALLOCATED, SIMULATED = (
    "unidle_gpu_info",
    "unidle_gpu_job_info",
    "unidle_gpu_allocated",
    "unidle_simulated",
)
ABOUT = frozenset({INFO, JOB_INFO, ALLOCATED, SIMULATED})
"""Series that say something about a GPU and carry no field."""

TO_DCGM = {"model": "modelName", "mig_profile": "GPU_I_PROFILE", "driver": "DCGM_FI_DRIVER_VERSION"}
"""Label of `unidle_gpu_info` -> the same of dcgm-exporter."""


@dataclass(frozen=True, slots=True)
class Carried:
    """What a series carries: the factor leads from its unit to base units."""

    field: Field
    factor: float
    by_evidence: bool = False
    own: bool = False


CARRIED: dict[str, Carried] = {
    name: Carried(metric.field, metric.factor, metric.by_evidence) for name, metric in METRICS.items()
} | {metric_name(spec): Carried(spec, 1.0, own=True) for spec in FIELDS}
"""Name of a series -> what it carries."""


def understood(name: str) -> bool:
    """Is a series of this name of any use."""
    return name in CARRIED or name in ABOUT


def plain(labels: Mapping[str, str]) -> dict[str, str]:
    """Labels without the name and without the port of `instance`, those of unidle's own in DCGM's words."""
    out = {key: text for key, text in labels.items() if key != "__name__"}
    if "instance" in out:
        host, colon, port = out["instance"].rpartition(":")
        out["instance"] = host.strip("[]") if colon and port.isdecimal() else out["instance"]
    if labels.get("__name__", "").startswith("unidle_"):
        out = {TO_DCGM.get(key, key): text for key, text in out.items()}
    return out


def told_job(labels: Mapping[str, str], scrape_job: str) -> str:
    """The job that `unidle_gpu_job_info` names; `scrape_job` is the server's own `job` label of the same
    target, which stands there where the GPU's holder has no job's name."""
    moved = labels.get("exported_job", "")
    kept = labels.get("job", "")
    return moved or (kept if kept != scrape_job else "")
