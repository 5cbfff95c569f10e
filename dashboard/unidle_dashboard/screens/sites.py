"""Sites: the fabric of a federation, site by site."""

from __future__ import annotations

import streamlit as st

from unidle_dashboard import frame
from unidle_dashboard.answers import Answers
from unidle_dashboard.view import sites, today, words
from unidle_dashboard.view.markup import Html, el
from unidle_dashboard.view.sites import SiteRow


def show() -> None:
    """The page."""
    frame.page("Sites", _body)


def _body(asked: Answers) -> None:
    known = asked.ask("sites", lambda api: api.sites()).value
    left, right = st.columns([5, 2], vertical_alignment="bottom")
    with left:
        frame.verdict(*sites.verdict(known))
    with right:
        window = st.segmented_control(
            "Window of the numbers below",
            list(today.WINDOWS_S),
            default="24 h",
            required=True,
            key="window",
            bind="query-params",
        )
    window_s = today.WINDOWS_S[window]
    _sum(asked, window_s, f"last {window}")
    frame.heading("Site by site", f"last {window} before the last report of each; GPUs as they are now")
    rows = [sites.row(site, window_s) for site in known]
    head = ("Site", "GPUs now", "Lost to jobs", "Effective", "Open findings", "Could be won", "Last report")
    table = el("table", el("tr", *(el("th", name) for name in head)), *map(_row, rows), cls="u-table u-sites")
    frame.show(el("div", table, cls="u-scroll"))


def _sum(asked: Answers, window_s: float, span: str) -> None:
    fleet = frame.fleet(asked, int(window_s)).value
    account = fleet.account
    shown = (
        ("GPUs of all sites", f"{fleet.gpus:,}", f"{fleet.states.get('unknown', 0):,} unknown now"),
        (
            f"Lost to jobs, {span}",
            words.amount(account.lost.gpu_h, "GPU-h"),
            words.amount(account.lost.eur, "EUR"),
        ),
        ("Unallocated", words.amount(account.unallocated.gpu_h, "GPU-h"), "given to nobody"),
        ("Effective utilization", words.percent(account.effective_ratio), today.GRADES[account.grade]),
        ("Open findings now", f"{fleet.open_incidents:,}", "their texts stay with their sites"),
    )
    items = (
        el("dl", el("dt", name), el("dd", value), el("dd", note), cls="u-kpi") for name, value, note in shown
    )
    frame.show(el("div", *items, cls="u-kpis"))
    frame.gaps(fleet)


def _row(row: SiteRow) -> Html:
    link = el("a", el("b", row.name), href=f"today?site={words.quoted(row.name)}", target="_self")
    trouble = el("div", row.trouble, cls="u-trouble") if row.trouble else Html("")
    withheld = el("small", f"withheld by policy: {row.withheld}") if row.withheld else Html("")
    return el(
        "tr",
        el("td", link, " ", frame.tag(row.place), " ", frame.simulated_tag(row.simulated), trouble, withheld),
        el("td", row.gpus, _strip(row)),
        el("td", row.lost, el("small", row.lost_note)),
        el("td", row.effective),
        el("td", row.findings),
        el("td", row.gain),
        el("td", row.report),
    )


def _strip(row: SiteRow) -> Html:
    pieces = (
        el("span", "", style=f"width:{100 * share:.2f}%;background:{colour}", title=f"{name} {share:.1%}")
        for name, colour, share in row.strip
    )
    return el("div", *pieces, cls="u-strip")
