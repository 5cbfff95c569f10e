"""Families of samples -> text, in Prometheus's format 0.0.4 or in OpenMetrics 1.0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["gauge", "counter", "info"]

PROMETHEUS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"
UNITS = ("ratio", "bytes_per_second", "bytes", "seconds", "watts", "joules", "celsius", "hertz")
"""Units as names end in them; OpenMetrics says the unit of a family on a line of its own."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One family: its samples are (labels, value). The name of an `info` ends in `_info`, its value is 1."""

    name: str
    kind: Kind
    doc: str
    samples: Sequence[tuple[Mapping[str, str], float]]


def single(name: str, kind: Kind, doc: str, value: float) -> Metric:
    """A family of one sample without labels."""
    return Metric(name, kind, doc, [({}, value)])


def render(metrics: Sequence[Metric], openmetrics: bool = False) -> str:
    """The page; families without samples are left out."""
    written: dict[int, str] = {}  # label sets are shared by many families: each is written once
    lines = []
    for metric in metrics:
        if not metric.samples:
            continue
        lines += _openmetrics_head(metric) if openmetrics else _prometheus_head(metric)
        for labels, value in metric.samples:
            inside = written.get(id(labels))
            if inside is None:
                inside = written[id(labels)] = _labels(labels)
            lines.append(f"{metric.name}{inside} {_number(value)}")
    if openmetrics:
        lines.append("# EOF")
    return "\n".join(lines) + "\n" if lines else ""


def _prometheus_head(metric: Metric) -> list[str]:
    doc = metric.doc.replace("\\", r"\\").replace("\n", r"\n")
    kind = "gauge" if metric.kind == "info" else metric.kind
    return [f"# HELP {metric.name} {doc}", f"# TYPE {metric.name} {kind}"]


def _openmetrics_head(metric: Metric) -> list[str]:
    family, kind = metric.name, str(metric.kind)
    if kind == "info":
        family = family.removesuffix("_info")
    elif kind == "counter":
        # OpenMetrics has no counter whose samples do not end in _total, and the name is what dashboards
        # ask for: such a counter (DCGM's) keeps its name and loses its type.
        kind = "counter" if family.endswith("_total") else "unknown"
        family = family.removesuffix("_total")
    head = [f"# TYPE {family} {kind}"]
    if kind in ("gauge", "counter"):
        head += [f"# UNIT {family} {unit}" for unit in UNITS if family.endswith(f"_{unit}")][:1]
    return [*head, f"# HELP {family} {_escape(metric.doc)}"]


def _labels(labels: Mapping[str, str]) -> str:
    inside = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
    return f"{{{inside}}}" if inside else ""


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    return str(int(value)) if isinstance(value, int) or value.is_integer() else repr(value)
