"""Today: the verdict, where the paid time goes, what loses it, and what to do first."""

from __future__ import annotations

import streamlit as st

from unidle_collector.model import Account, Fleet, Recommendation
from unidle_dashboard import frame
from unidle_dashboard.answers import Answers
from unidle_dashboard.view import figures, today, words
from unidle_dashboard.view.markup import Html, el
from unidle_dashboard.view.palette import LOOKS
from unidle_dashboard.view.recommendations import LEVERS, gain_lines, horizon

ALL_SITES = "All sites"


def show() -> None:
    """The page."""
    frame.page("Today", _body)


def _body(asked: Answers) -> None:
    now = frame.fleet(asked).value
    site = _site(now.sites)
    if site:
        now = frame.fleet(asked, site=site).value
    told = today.verdict(now, "when last heard of" if asked.silence else "right now")
    if now.gpus == 0:
        frame.verdict(told.headline, *told.details)
        return
    headline, selector = st.columns([5, 2], vertical_alignment="bottom")
    with headline:
        frame.verdict(told.headline, *told.details)
    with selector:
        window = st.segmented_control(
            "Window of the numbers below",
            list(today.WINDOWS_S),
            default="24 h",
            required=True,
            key="window",
            bind="query-params",
        )
    fleet = frame.fleet(asked, today.WINDOWS_S[window], site).value
    if fleet.sites:
        frame.gaps(fleet)
    span = f"last {window}"
    _kpis(asked, fleet, span)
    if note := today.coverage(fleet.account, today.WINDOWS_S[window]):
        frame.show(el("div", note, cls="u-context"))
    left, right = st.columns([5, 6], gap="large")
    with left:
        _funnel(fleet.account, span)
    with right:
        _causes(fleet.account, span)
    if fleet.sites:
        frame.show(el("a", "What each site could win", href="sites", target="_self"))
    else:
        _actions(asked.ask("recommendations", lambda api: api.recommendations()).value)


def _site(sites: tuple[str, ...]) -> str:
    """The site of a federation that is looked at; empty for all, and where there is no federation."""
    if not sites:
        return ""
    chosen = st.selectbox("Site", [ALL_SITES, *sites], key="site", bind="query-params", width=280)
    return "" if chosen == ALL_SITES else chosen


def _kpis(asked: Answers, fleet: Fleet, span: str) -> None:
    account = fleet.account
    shown = (
        _kpi(
            f"Lost to jobs, {span}",
            words.amount(account.lost.eur, "EUR"),
            f"{words.amount(account.lost.gpu_h, 'GPU-h')}, {words.amount(account.lost.kwh, 'kWh')} (board)",
        ),
        _kpi(
            f"Unallocated, {span}",
            words.amount(account.unallocated.gpu_h, "GPU-h"),
            f"{words.amount(account.unallocated.eur, 'EUR')}, given to nobody",
        ),
        _kpi("Effective utilization", words.percent(account.effective_ratio), today.GRADES[account.grade]),
        _kpi(
            "Mean GPU_UTIL",
            words.percent(account.gpu_util_ratio),
            "for comparison",
        ),
        _kpi("Mean SM activity", words.percent(account.sm_active_ratio), "for comparison"),
        _kpi(
            "Open incidents now",
            f"{fleet.open_incidents:,}" if fleet.sites else _link_to_incidents(fleet),
            "on the dashboards of their sites" if fleet.sites else _severities(asked),
        ),
    )
    frame.show(el("div", *shown, cls="u-kpis"))


def _link_to_incidents(fleet: Fleet) -> Html:
    return el("a", f"{fleet.open_incidents:,}", href="incidents", target="_self")


def _severities(asked: Answers) -> str:
    return today.severities(asked.ask(("incidents", "open"), lambda api: api.incidents("open")).value)


def _kpi(name: str, value: str, note: str) -> Html:
    return el("dl", el("dt", name), el("dd", value), el("dd", note), cls="u-kpi")


def _funnel(account: Account, span: str) -> None:
    steps = today.funnel(account)
    frame.heading("Where the GPU time goes", f"{span}, share of all known GPU time")
    st.echarts_chart(figures.funnel(steps), height=210, key="funnel", alt=figures.funnel_in_words(steps))
    strip = [
        el("span", "", style=f"width:{100 * share:.2f}%;background:{colour}", title=f"{state} {share:.1%}")
        for state, colour, share in figures.states_bar(account)
    ]
    legend = [
        el("span", _dot(state), f"{LOOKS[state].name} ", el("b", _small_percent(share)))  # type: ignore[index]
        for state, _, share in figures.states_bar(account)
    ]
    frame.show(el("div", *strip, cls="u-strip"), el("div", *legend, cls="u-legend"))


def _causes(account: Account, span: str) -> None:
    frame.heading("What is lost, and why", f"{span}, GPU time lost by jobs, loss weights applied")
    rows = today.causes(account)
    if not rows:
        unsaid = account.lost.gpu_h > 0
        frame.empty("No site tells the causes." if unsaid else "Nothing was lost to jobs in this window.")
        return
    head = el("tr", el("th", "Cause"), *(el("th", unit, cls="n") for unit in ("GPU-h", "EUR", "kWh")))
    body = []
    for row in rows:
        colour = LOOKS[row.state].colour
        bar = el("span", "", cls="u-bar", style=f"width:{100 * row.share:.1f}%;background:{colour}")
        eur = words.number(row.cost.eur)
        body.append(
            el(
                "tr",
                el("td", row.name, bar),
                el("td", words.number(row.cost.gpu_h), cls="n"),
                el("td", f"≈ {eur}" if row.estimated and row.cost.eur is not None else eur, cls="n"),
                el("td", words.number(row.cost.kwh), cls="n"),
            )
        )
    frame.show(
        el("div", el("table", head, *body, cls="u-table"), cls="u-scroll"),
    )
    if any(row.estimated for row in rows):
        frame.show(el("div", "≈ at the mean price of the lost GPU-hours.", cls="u-context"))


def _actions(recommendations: list[Recommendation]) -> None:
    frame.heading("What to do first", "predicted gain: expected, and low to high")
    if not recommendations:
        frame.empty("Nothing to recommend now.")
        return
    items = [_action(one) for one in today.first_actions(recommendations)]
    frame.show(el("ul", *items, cls="u-actions"))
    left = len(recommendations) - len(items)
    text = f"All {len(recommendations):,} recommendations" if left else "Details of these"
    frame.show(el("a", text, href="recommendations", target="_self"))


def _action(one: Recommendation) -> Html:
    gpu_h, eur, _ = gain_lines(one.gain)
    best = eur if one.gain.expected.eur is not None else gpu_h
    return el(
        "li",
        frame.tag(LEVERS[one.lever][0]),
        el("span", one.title, el("small", f"limited by {one.binding_constraint}")),
        el(
            "span",
            f"{best.expected} {best.unit}",
            el("small", f"{best.interval} {best.unit} {horizon(one.gain)}"),
            cls="gain",
        ),
    )


def _dot(state: str) -> Html:
    return el("span", "", cls=f"u-dot {state}", style=f"background:{LOOKS[state].colour}")  # type: ignore[index]


def _small_percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share < 0.1 else words.percent(share)
