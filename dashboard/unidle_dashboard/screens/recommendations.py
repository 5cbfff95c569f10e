"""Recommendations by lever: everything a person needs to say yes or no. Nothing is executed here."""

from __future__ import annotations

import streamlit as st

from unidle_collector.model import Recommendation
from unidle_dashboard import frame
from unidle_dashboard.answers import Answers
from unidle_dashboard.view import incidents, words
from unidle_dashboard.view.markup import Html, el
from unidle_dashboard.view.recommendations import LEVERS, GainLine, by_lever, gain_lines, horizon


def show() -> None:
    """The page."""
    frame.page("Recommendations", _body, lambda asked: any(one.simulated for one in _known(asked)))


def _known(asked: Answers) -> list[Recommendation]:
    return asked.ask("recommendations", lambda api: api.recommendations()).value


def _body(asked: Answers) -> None:
    recommendations = _known(asked)
    frame.verdict(
        _headline(len(recommendations)), "Commands are for you to read and run; unidle runs none of them."
    )
    groups = by_lever(recommendations)
    if not groups:
        frame.empty("Nothing to recommend now: no open finding has a change that would win GPU time back.")
        return
    lever = st.segmented_control(
        "Lever",
        ["all", *(lever for lever, _ in groups)],
        default="all",
        required=True,
        format_func=lambda key: "All" if key == "all" else LEVERS[key][0],
        key="lever",
        bind="query-params",
    )
    for name, ones in groups:
        if lever in ("all", name):
            frame.heading(LEVERS[name][0], f"{LEVERS[name][1]}; most won first")
            for one in ones:
                card(one)


def card(one: Recommendation) -> None:
    """One recommendation with all its parts."""
    with st.container(border=True):
        frame.show(
            el("h3", one.title, " ", frame.simulated_tag(one.simulated), cls="u-title"),
            el("div", *(_gain(line, horizon(one.gain)) for line in gain_lines(one.gain)), cls="u-gains"),
        )
        facts, action = st.columns([6, 5], gap="large")
        with facts:
            frame.show(_facts(one))
        with action:
            _command("Command", one.command)
            _command("Undo", one.undo)


def _facts(one: Recommendation) -> Html:
    rows: list[tuple[str, str]] = [
        ("Limited by", one.binding_constraint),
        ("Risk", one.risk),
        ("Assumes", "; ".join(one.assumptions) or "nothing beyond the measured data"),
        ("Notice", one.notice),
        ("Measured by", one.measure),
        ("Concerns", one.subject),
        ("GPUs", "; ".join(f"{node} {gpus}" for node, gpus in incidents.affected(one.gpus)) or "none named"),
        ("Made", words.utc(one.created_ns)),
    ]
    return el(
        "dl",
        *(el(kind, text) for row in rows for kind, text in zip(("dt", "dd"), row, strict=True)),
        cls="u-facts",
    )


def _gain(line: GainLine, within: str) -> Html:
    return el(
        "div",
        el("b", f"{line.expected} {line.unit}"),
        el("span", f"expected {within}; {line.interval}"),
    )


def _command(name: str, command: str) -> None:
    frame.show(el("div", name, cls="u-context"))
    if command:
        st.code(command, language=None, wrap_lines=True)
    else:
        frame.show(el("div", "none: nothing to run"))


def _headline(count: int) -> str:
    return f"{words.many(count, 'change')} would win GPU time back" if count else "Nothing to recommend now"
