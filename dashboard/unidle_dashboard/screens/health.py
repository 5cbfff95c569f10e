"""Data health: can the other pages be trusted."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from unidle_collector.model import Health
from unidle_dashboard import frame
from unidle_dashboard.answers import Answers
from unidle_dashboard.view import health, words
from unidle_dashboard.view.markup import Html, el


def show() -> None:
    """The page."""
    frame.page("Data health", _body)


def _body(asked: Answers) -> None:
    answer = asked.ask("health", lambda api: api.health())
    known = answer.value
    nodes = asked.ask("nodes", lambda api: api.nodes()).value
    now_ns = health.collector_now_ns(known)
    frame.verdict(health.summary(nodes, now_ns), _collector_line(known))
    if known.problems:
        frame.heading("Problems that the collector reports")
        frame.show(el("ul", *(el("li", problem) for problem in known.problems), cls="u-plain"))
    frame.show(_kpis(known, answer.asked_ns))
    frame.heading("Nodes", f"since the collector started; a sample older than {health.LATE_S:.0f} s is late")
    st.dataframe(
        pd.DataFrame(health.node_table(nodes, now_ns)),
        hide_index=True,
        lazy=len(nodes) > 1_000,
        placeholder=words.UNKNOWN,
        key="health_nodes",
        column_config={
            "Problem": st.column_config.TextColumn(width="medium"),
            "Sample age, s": st.column_config.NumberColumn(format="%.1f"),
            "Clock skew, s": st.column_config.NumberColumn(format="%.3f"),
            "Rows": st.column_config.NumberColumn(format="localized"),
        },
    )
    frame.heading("Counters of the collector", "since it started")
    st.dataframe(
        pd.DataFrame(health.counter_rows(known)),
        hide_index=True,
        key="health_counters",
        column_config={"Value": st.column_config.NumberColumn(format="localized")},
    )


def _collector_line(known: Health) -> str:
    verdict = "The collector works" if known.ok else "The collector says that it is NOT well"
    return f"{verdict}; it reports {words.many(len(known.problems), 'problem')}."


def _kpis(known: Health, asked_ns: int) -> Html:
    shown = (
        ("Lag of the data", words.duration(known.lag_s), "wall clock minus event time, at the collector"),
        ("Event time", words.clock(known.event_time_ns), words.utc(known.event_time_ns)[:10]),
        ("Collector up for", words.duration(known.uptime_s), f"unidle {known.version}"),
        ("Asked", words.clock(asked_ns), "this process's clock"),
    )
    items = (
        el("dl", el("dt", name), el("dd", value), el("dd", note), cls="u-kpi") for name, value, note in shown
    )
    return el("div", *items, cls="u-kpis")
