"""Data health: can these numbers be trusted."""

from __future__ import annotations

from typing import Any

from unidle_collector.model import Health, NodeNow
from unidle_dashboard.view import words
from unidle_dashboard.view.fleet import age_s, natural

LATE_S = 60.0
"""A node whose newest sample is older than this is called late."""
SKEW_S = 2.0
"""A clock that is off by more than this is called wrong: evidence of several nodes no longer lines up."""


def collector_now_ns(health: Health) -> int | None:
    """The collector's own clock when it answered, from event time and lag."""
    if health.event_time_ns is None or health.lag_s is None:
        return None
    return health.event_time_ns + int(health.lag_s * 1e9)


def node_problem(node: NodeNow, now_ns: int | None) -> str:
    """What is wrong with the data of a node, in words; empty when nothing is."""
    age = age_s(node.last_sample_ns, now_ns)
    if node.last_sample_ns is None:
        return "no sample ever"
    if age is None:
        return "age not known"
    if age > LATE_S:
        return f"silent for {words.duration(age)}"
    if node.clock_skew_s is not None and abs(node.clock_skew_s) > SKEW_S:
        return words.clock_off(node.clock_skew_s)
    return ""


def node_table(nodes: list[NodeNow], now_ns: int | None) -> list[dict[str, Any]]:
    """One row per node, troubled ones first; numbers stay numbers, unknown is None."""
    ordered = sorted(nodes, key=lambda node: (not node_problem(node, now_ns), natural(node.node)))
    return [
        {
            "Node": node.node,
            "Problem": node_problem(node, now_ns),
            "GPUs": node.gpus,
            "Sample age, s": age_s(node.last_sample_ns, now_ns),
            "Clock skew, s": node.clock_skew_s,
            "Rows": node.rows,
            "Duplicates": node.duplicates,
            "Late rows": node.late_rows,
            "Counter resets": node.counter_resets,
        }
        for node in ordered
    ]


def summary(nodes: list[NodeNow], now_ns: int | None) -> str:
    """ "62 of 64 nodes are fresh; 2 need a look"."""
    troubled = sum(1 for node in nodes if node_problem(node, now_ns))
    fresh = len(nodes) - troubled
    if not nodes:
        return "No node has pushed anything yet"
    if not troubled:
        return f"All {words.many(len(nodes), 'node')} are fresh" if len(nodes) > 1 else "The node is fresh"
    return f"{fresh:,} of {words.many(len(nodes), 'node')} are fresh; {troubled:,} need a look"


def counter_rows(health: Health) -> list[dict[str, Any]]:
    """The collector's own counters, by name."""
    return [{"Counter": name, "Value": value} for name, value in sorted(health.counters.items())]
