"""What is known of whole clusters, from clusters.toml: their jobs, and what their GPUs show."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

Three = tuple[float, float, float]
"""Lowest, middle and highest of a class; linear between."""


@dataclass(frozen=True, slots=True)
class Work:
    """A class of jobs; util, sm and memory in percent, power in W at full clocks."""

    name: str
    share: float
    """Of the allocated GPU time."""
    util: Three
    sm: Three
    memory: Three
    power: Three
    warm: Three
    """W of the seconds before an instant, whose heat it still has."""


@dataclass(frozen=True, slots=True)
class LogNormal:
    """A part of a mixture of run times."""

    weight: float
    median_s: float
    spread: float
    """Of the logarithm."""


@dataclass(frozen=True, slots=True)
class Jobs:
    """Sizes and run times of jobs."""

    source: str
    sizes: tuple[int, ...]
    size_shares: tuple[float, ...]
    long_share: float
    """Share of the jobs that run for LONG_S and more."""
    longest_s: float
    short: tuple[LogNormal, ...]
    long: dict[int, tuple[LogNormal, ...]]
    """By size; beyond LONG_S."""


LONG_S = 3600.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster of A100 GPUs, 8 to a node."""

    name: str
    source: str
    partitions: tuple[tuple[float, float], ...]
    """(share of the nodes, GPU time asked for over GPU time) of each: a queue of its own."""
    jobs: Jobs
    inlet_c: float
    inlet_spread_c: float
    thermal_resistance_c_per_w: float
    empty_w: Three
    meter_spread: float
    work: tuple[Work, ...]


@cache
def clusters() -> dict[str, Cluster]:
    """By name."""
    document = tomllib.loads(files(__package__).joinpath("clusters.toml").read_text(encoding="utf-8"))
    jobs = {name: _jobs(row) for name, row in document.pop("jobs").items()}
    return {name: _cluster(name, row, jobs) for name, row in document.items()}


def _cluster(name: str, row: dict[str, Any], jobs: dict[str, Jobs]) -> Cluster:
    return Cluster(
        **{
            **row,
            "name": name,
            "jobs": jobs[row["jobs"]],
            "partitions": tuple((share, load) for share, load in row["partitions"]),
            "work": tuple(Work(**one) for one in row["work"]),
        }
    )


def _jobs(row: dict[str, Any]) -> Jobs:
    return Jobs(
        **{
            **row,
            "short": tuple(LogNormal(**part) for part in row["short"]),
            "long": {
                int(size): tuple(LogNormal(**part) for part in parts) for size, parts in row["long"].items()
            },
        }
    )
