"""Incidents: the list, and everything about the one that the address names (`?incident=ID`)."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import streamlit as st

from unidle_collector.model import Finding, Incident
from unidle_dashboard import frame
from unidle_dashboard.answers import Answers, NoAnswerError
from unidle_dashboard.screens.fleet import series_chart
from unidle_dashboard.view import flight, health, incidents, words
from unidle_dashboard.view.markup import Html, el
from unidle_dashboard.view.palette import LOOKS

STATE_NAMES = {"open": "Open", "resolved": "Resolved", "all": "All"}


def show() -> None:
    """The page."""
    frame.page("Incidents", _body, _shows_simulated)


def _shows_simulated(asked: Answers) -> bool:
    """Of the incidents that the address asks for."""
    state = st.session_state.get("show", st.query_params.get("show", "open"))
    listed = _listed(asked, state if state in STATE_NAMES else "open")
    known, _ = _with_wanted(asked, listed, st.query_params.get("incident", ""))
    return any(one.finding.simulated for one in known)


def _listed(asked: Answers, state: str) -> list[Incident]:
    return asked.ask(("incidents", state), lambda api: api.incidents(state)).value


def _body(asked: Answers) -> None:
    state = st.segmented_control(
        "Show",
        list(STATE_NAMES),
        default="open",
        required=True,
        format_func=lambda key: STATE_NAMES[key],
        key="show",
        bind="query-params",
        label_visibility="collapsed",
    )
    listed = _listed(asked, state)
    wanted = st.query_params.get("incident", "")
    known, problem = _with_wanted(asked, listed, wanted)
    if problem:
        frame.empty(f"There is no incident {wanted}.", problem)
    if not known:
        frame.empty("No open incident: nothing wrong that has been told." if state == "open" else "None.")
        return
    row = incidents.position(known, wanted)
    _table(known, row)
    if row is None:
        frame.show(el("div", "Choose a row to see the evidence and what to do.", cls="u-context"))
    else:
        _detail(asked, known[row])


def _with_wanted(asked: Answers, listed: list[Incident], wanted: str) -> tuple[list[Incident], str]:
    """The list, and in front of it the incident that a link names where the list does not hold it."""
    if not wanted or incidents.position(listed, wanted) is not None:
        return listed, ""
    try:
        return [asked.ask(("incident", wanted), lambda api: api.incident(wanted)).value, *listed], ""
    except NoAnswerError as error:
        return listed, str(error)


def _table(known: list[Incident], row: int | None) -> None:
    # The key holds what is listed: when rows move, a selection by row number must not follow.
    key = f"incidents-{hash(tuple(one.id for one in known))}"
    st.dataframe(
        pd.DataFrame(incidents.table(known)),
        hide_index=True,
        key=key,
        on_select=_pick(key, known),
        selection_mode="single-row",
        selection_default={"selection": {"rows": [row] if row is not None else []}},
        placeholder=words.UNKNOWN,
        column_config={
            "Opened": st.column_config.DatetimeColumn("Opened (UTC)", format="MMM D, HH:mm", timezone="UTC"),
            "What": st.column_config.TextColumn(width="large"),
            "Sure": st.column_config.NumberColumn("Sure, %", format="%.0f"),
            "GPU-h": st.column_config.NumberColumn("GPU-h so far", format="%.1f"),
            "EUR": st.column_config.NumberColumn("EUR so far", format="%.1f"),
            "EUR/h": st.column_config.NumberColumn(format="%.1f"),
        },
    )


def _pick(key: str, known: list[Incident]) -> Callable[[], None]:
    def pick() -> None:
        incident_id = incidents.chosen(known, st.session_state[key]["selection"]["rows"])
        if incident_id is None:
            st.query_params.pop("incident", None)
        else:
            st.query_params["incident"] = incident_id

    return pick


def _detail(asked: Answers, incident: Incident) -> None:
    finding = incident.finding
    with st.container(border=True):
        frame.show(
            el("h2", finding.title, cls="u-title"),
            frame.tag(finding.severity, finding.severity),
            el("span", " "),
            frame.tag(incident.state),
            el("span", " "),
            frame.simulated_tag(finding.simulated),
        )
        facts, why = st.columns([6, 5], gap="large")
        with facts:
            frame.show(_facts(incident))
        with why:
            frame.heading("How sure", "probability of each cause")
            frame.show(_likelihoods(finding))
        frame.heading("Evidence", "measured, against its threshold")
        frame.show(_evidence(finding))
        _evidence_series(asked, incident)
        _flights(asked, incident)
        frame.heading("What to do")
        frame.show(el("p", finding.advice or "Cannot tell yet.", style="margin:0"))
        commands = incidents.commands(incident)
        for title, command in commands:
            frame.show(el("div", title, cls="u-context"))
            st.code(command, language=None, wrap_lines=True)
        if commands:
            frame.show(el("div", "Commands are shown, never run.", cls="u-context"))
        if finding.confirm:
            frame.heading("What would confirm it")
            frame.show(el("p", finding.confirm, style="margin:0"))


def _facts(incident: Incident) -> Html:
    finding = incident.finding
    ended = (
        f"resolved {words.utc(incident.resolved_ns)}"
        if incident.resolved_ns is not None
        else "still going on"
    )
    rows = [
        ("Since", f"{words.utc(finding.since_ns)}; told {words.utc(incident.opened_ns)}; {ended}"),
        ("Cost so far", incidents.costs(finding.cost_so_far)),
        ("Each hour", incidents.costs(finding.cost_per_h)),
        ("Concerns", f"{finding.subject_kind} {finding.subject}"),
        ("Job", finding.job or "none"),
        ("User", finding.user or "not known here"),
        (
            "GPUs",
            "; ".join(f"{node} {gpus}" for node, gpus in incidents.affected(finding.gpus)) or "none named",
        ),
        *_waits_for(finding),
        ("Incident", f"{incident.id}, revision {incident.revision}"),
    ]
    pairs = [el(kind, text) for row in rows for kind, text in zip(("dt", "dd"), row, strict=True)]
    return el("dl", *pairs, cls="u-facts")


def _waits_for(finding: Finding) -> list[tuple[str, str]]:
    where = "; ".join(f"{node} {gpus}" for node, gpus in incidents.affected(finding.held_back_by))
    return [("Waits for", where)] if where else []


def _likelihoods(finding: Finding) -> Html:
    colour = LOOKS["productive"].colour
    rows = [
        el(
            "tr",
            el(
                "td", name, el("span", "", cls="u-bar", style=f"width:{100 * share:.0f}%;background:{colour}")
            ),
            el("td", words.percent(share), cls="n"),
        )
        for name, share in incidents.likelihoods(finding)
    ]
    return el("table", *rows, cls="u-table u-likely")


def _evidence(finding: Finding) -> Html:
    rows = incidents.evidence_rows(finding)
    if not rows:
        return el("div", "None was recorded.", cls="u-context")
    head = el("tr", *(el("th", name) for name in rows[0]))
    body = (el("tr", *(el("td", cell) for cell in row.values())) for row in rows)
    return el("div", el("table", head, *body, cls="u-table u-evidence"), cls="u-scroll")


def _evidence_series(asked: Answers, incident: Incident) -> None:
    choices = {one.name: one for one in incidents.evidence_series(incident.finding)}
    if not choices:
        return
    name = st.selectbox("Evidence over time", list(choices), key=f"evidence-{incident.id}")
    piece = choices[name]
    now_ns = health.collector_now_ns(asked.ask("health", lambda api: api.health()).value)
    window_s = incidents.series_window_s(incident, now_ns)
    series_chart(
        asked, piece.node, piece.gpu, piece.field, window_s, piece.threshold, key=f"series-{incident.id}"
    )


def _flights(asked: Answers, incident: Incident) -> None:
    """What the flight recorders of its GPUs held: nothing where none was sent."""
    question = ("flights", incident.id)
    try:
        sent = asked.ask(question, lambda api: api.flights(incident.id)).value
    except NoAnswerError:
        return  # a collector before it kept flights
    recordings = flight.order(sent, incident)
    if not recordings:
        return
    frame.heading("Flight recorder", "every look of two minutes")
    names = [flight.name_of(one, incident.finding.gpus) for one in recordings]
    chosen = st.selectbox(
        "Recording", range(len(names)), format_func=lambda row: names[row], key=f"flight-{incident.id}"
    )
    one = recordings[chosen]
    st.echarts_chart(
        flight.figure(one),
        height=flight.height_px(one),
        key=f"looks-{incident.id}",
        alt=f"Flight recorder, {names[chosen]}",
    )
    frame.show(frame.simulated_tag(one.simulated), el("div", flight.caption(one), cls="u-context"))
