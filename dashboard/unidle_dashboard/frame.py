"""What every page has: the shared answers, the banner on simulated data, the word on silence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import streamlit as st

from unidle_agent.settings import load
from unidle_collector.client import Client, CollectorApi
from unidle_collector.model import Fleet
from unidle_dashboard.answers import Answer, Answers, NoAnswerError
from unidle_dashboard.settings import SECTION, DashboardSettings
from unidle_dashboard.view import words
from unidle_dashboard.view.markup import Html, el, join

ASSETS = Path(__file__).parent / "assets"
HOUR_S = 3600
ALL_SIMULATED = "These GPUs, jobs and faults are made up by unidle's fleet simulator. Nothing here is real."
SOME_SIMULATED = "Made up by unidle's fleet simulator, also as a part of every sum: sites"


@st.cache_resource(show_spinner=False)
def settings() -> DashboardSettings:
    """The settings of this process, read once."""
    return load(DashboardSettings, SECTION)


def connect(chosen: DashboardSettings) -> CollectorApi:
    """The edge to the collector; tests put a fake in its place."""
    return Client(chosen.collector_url, chosen.collector_token.reveal(), chosen.timeout_s)


@st.cache_resource(show_spinner=False)
def answers() -> Answers:
    """The one snapshot of the collector that all sessions of this process read."""
    chosen = settings()
    # A little shorter than the pages' own rhythm, so that every look finds something newer.
    return Answers(connect(chosen), ttl_s=0.8 * chosen.refresh_s)


def fleet(asked: Answers, window_s: int = HOUR_S, site: str = "") -> Answer[Fleet]:
    """The fleet with its account over the last `window_s` seconds; `site`: that one of a federation."""
    if not site:
        return asked.ask(("fleet", window_s), lambda api: api.fleet(window_s))
    return asked.ask(("fleet", window_s, site), lambda api: api.fleet(window_s, site))


def federated() -> bool:
    """Is this the dashboard of a federation; while nothing answers, it is not."""
    try:
        return bool(fleet(answers()).value.sites)
    except NoAnswerError:
        return False


def page(
    title: str, body: Callable[[Answers], None], shows_simulated: Callable[[Answers], bool] = lambda _: True
) -> None:
    """Show one page: `body` draws it, again every `refresh_s` seconds, without reloading the rest.

    `shows_simulated`: is anything simulated in view, where only a part of the fleet is simulated.
    """
    asked = answers()
    try:
        simulated = _simulated_words(fleet(asked).value, lambda: shows_simulated(asked)) is not None
    except NoAnswerError:
        simulated = False
    st.set_page_config(page_title=f"{'SIMULATED · ' if simulated else ''}{title} · unidle")

    @st.fragment(run_every=settings().refresh_s)
    def live() -> None:
        try:
            seen = fleet(asked)
            _banner(asked, seen, lambda: shows_simulated(asked))
            body(asked)
        except NoAnswerError as error:
            _no_answer(asked, str(error))

    live()


def show(*pieces: Html) -> None:
    """Put HTML on the page; texts in it were escaped by `el`."""
    st.html(el("div", *pieces, cls="u"))


def verdict(headline: str, *details: str) -> None:
    """What the page says, in one line and a few more."""
    show(el("div", el("h1", headline), el("p", " ".join(details)), cls="u-verdict"))


def heading(text: str, note: str = "") -> None:
    """A section's heading with what its numbers are (unit, window, source)."""
    show(el("h2", text, el("small", note), cls="u-h"))


def empty(*lines: str) -> None:
    """A place where there is nothing to show, and why."""
    show(el("div", *(el("div", line) for line in lines), cls="u-empty"))


def tag(text: str, kind: str = "") -> Html:
    """A small label."""
    return el("span", text, cls=f"u-tag {kind}".strip())


def simulated_tag(simulated: bool) -> Html:
    """The word SIMULATED where it holds for one record."""
    return tag("SIMULATED", "simulated") if simulated else Html("")


def gaps(shown: Fleet) -> None:
    """What the sums do not hold: of a federation, or of a site in shards."""
    if shown.gaps:
        show(el("ul", *(el("li", gap) for gap in shown.gaps), cls="u-plain u-context"))


def _simulated_words(now: Fleet, in_view: Callable[[], bool]) -> tuple[str, str] | None:
    """The banner's word and sentence; None where nothing simulated is in view."""
    if not now.simulated:
        return None
    if now.simulated_sites:
        return "SIMULATED", f"{SOME_SIMULATED} {', '.join(now.simulated_sites)}."
    if now.simulated_sites:
        return "SIMULATED", f"{SOME_SIMULATED} {', '.join(now.simulated_sites)}."
    if now.simulated_gpus in (0, now.gpus):  # 0: of nodes without GPUs, or an older collector's word
        return "SIMULATED", ALL_SIMULATED
    if not in_view():
        return None
    return (
        f"SIMULATED: {now.simulated_gpus:,} of {words.many(now.gpus, 'GPU')}",
        "Those are made up by unidle's fleet simulator, with their jobs and faults; sums hold them, too.",
    )


def _banner(asked: Answers, seen: Answer[Fleet], in_view: Callable[[], bool]) -> None:
    if told := _simulated_words(seen.value, in_view):
        word, sentence = told
        show(el("div", el("b", word), sentence, cls="u-simulated", role="status"))
    if asked.silence:
        show(
            el(
                "div",
                el("b", f"The collector at {settings().collector_url} has not answered since "),
                el("b", f"{words.utc(asked.silence.since_ns)}."),
                f" What follows is the last that it said, at {words.utc(seen.asked_ns)}.",
                cls="u-silent",
                role="alert",
            )
        )
    now = seen.value
    place = settings().site or now.site or "this site"
    extent = ", ".join(
        (words.many(now.gpus, "GPU"), words.many(now.nodes, "node"), words.many(now.jobs, "job"))
    )
    show(
        el(
            "div",
            join(f"{place}: {extent}. Data up to {words.utc(now.time_ns)}."),
            cls="u-context",
        )
    )
    if not now.sites:  # a federation's pages say it beside the sums that it concerns
        gaps(now)


def _no_answer(asked: Answers, reason: str) -> None:
    since = f" It has been silent since {words.utc(asked.silence.since_ns)}." if asked.silence else ""
    show(
        el(
            "div",
            el(
                "b",
                f"No answer from the collector at {settings().collector_url}, so there is nothing to show.",
            ),
            el("div", since + " This page tries again by itself."),
            el("div", reason),
            cls="u-silent",
            role="alert",
        )
    )
