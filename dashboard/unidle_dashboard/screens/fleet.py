"""Fleet: which GPUs, as a map; a click opens the node."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from unidle_agent.fields import BY_NAME, GPU_FIELDS
from unidle_collector.model import STATES, GpuNow, NodeNow
from unidle_dashboard import frame
from unidle_dashboard.answers import Answers, NoAnswerError
from unidle_dashboard.components.fleet_map import fleet_map
from unidle_dashboard.view import figures, fleet, health, words
from unidle_dashboard.view.markup import Html, el
from unidle_dashboard.view.palette import LOOKS, SEQUENTIAL
from unidle_dashboard.view.today import WINDOWS_S

DEFAULT_FIELD = "gpu_util_ratio"


def show() -> None:
    """The page."""
    frame.page("Fleet", _body)


def _body(asked: Answers) -> None:
    gpus = asked.ask("gpus", lambda api: api.gpus(fleet.MAP_FIELDS)).value
    if not gpus:
        frame.empty("No GPU has reported yet.", "Start an agent on a GPU node: unidle agent")
        return
    nodes = list(fleet.by_node(gpus))
    by, search = st.columns([5, 2], vertical_alignment="bottom")
    with by:
        colouring = st.segmented_control(
            "Colour by (latest sample of each GPU)",
            [fleet.BY_STATE, *fleet.COLOURINGS],
            default=fleet.BY_STATE,
            required=True,
            key="color",
            bind="query-params",
        )
    with search:
        node = st.selectbox(
            "Node", nodes, index=None, key="node", bind="query-params", placeholder="Click the map, or choose"
        )
    shown = fleet.build(gpus, colouring)
    _legend(gpus, colouring, shown.by_node)
    fleet_map(shown, selected=node or "", on_pick=_pick, key="map")
    if node is None:
        frame.show(el("div", "Click a node to see its GPUs. Hatched cells are unknown.", cls="u-context"))
    else:
        whole = asked.ask(("gpus", node), lambda api: api.gpus(node=node)).value
        _node(asked, node, fleet.by_node(whole)[node])


def _pick(node: str) -> None:
    st.session_state["node"] = node


def _legend(gpus: list[GpuNow], colouring: str, by_node: bool) -> None:
    unit = "one tile per node, worst state" if by_node else "one cell per GPU"
    if colouring == fleet.BY_STATE:
        counts = fleet.state_counts(gpus)
        items = [
            el(
                "span",
                el("span", "", cls=f"u-dot {state}", style=f"background:{LOOKS[state].colour}"),
                f"{LOOKS[state].name} ",
                el("b", f"{counts[state]:,}"),
                title=LOOKS[state].meaning,
            )
            for state in STATES
        ]
        frame.show(el("div", *items, el("span", unit), cls="u-legend"))
        return
    scale = fleet.COLOURINGS[colouring]
    factor = 100 if scale.unit == "%" else 1
    unknown = sum(1 for gpu in gpus if scale.value(gpu) is None)
    ramp = el("span", "", cls="u-scale", style=f"background:linear-gradient(90deg,{','.join(SEQUENTIAL)})")
    frame.show(
        el(
            "div",
            el("span", f"{scale.low * factor:.0f} {scale.unit}"),
            ramp,
            el("span", f"{scale.high * factor:.0f} {scale.unit}"),
            el("span", el("span", "", cls="u-dot unknown"), "Unknown ", el("b", f"{unknown:,}")),
            el("span", unit if not by_node else "one tile per node, mean of its GPUs"),
            cls="u-legend",
            style="align-items:center",
        )
    )


def _node(asked: Answers, name: str, gpus: list[GpuNow]) -> None:
    now_ns = health.collector_now_ns(asked.ask("health", lambda api: api.health()).value)
    nodes = asked.ask("nodes", lambda api: api.nodes()).value
    record = next((node for node in nodes if node.node == name), None)
    notes = [el("div", el("b", "Owner: "), note, cls="u-context") for note in fleet.owner_notes(gpus)]
    frame.show(el("h2", name, cls="u-title"), _node_line(record, gpus, now_ns), *notes)
    rows = pd.DataFrame(fleet.node_table(gpus, now_ns))
    st.dataframe(rows, hide_index=True, column_config=_columns(rows), key="node_table")
    labels = {gpu.gpu: fleet.gpu_name(gpu) for gpu in gpus}
    which, field, span = st.columns([2, 4, 3], vertical_alignment="bottom")
    with which:
        gpu_id = st.selectbox(
            "GPU", list(labels), format_func=lambda key: labels[key], key="gpu", bind="query-params"
        )
    with field:
        names = [one.name for one in GPU_FIELDS if one.kind != "state"]
        chosen = st.selectbox(
            "Field over time",
            names,
            index=names.index(DEFAULT_FIELD),
            key="field",
            bind="query-params",
        )
    with span:
        window = st.segmented_control(
            "Window",
            list(WINDOWS_S),
            default="1 h",
            required=True,
            key="span",
            bind="query-params",
        )
    series_chart(asked, name, gpu_id, chosen, WINDOWS_S[window], None, key="node_series")
    every = pd.DataFrame(fleet.gpu_table(next(gpu for gpu in gpus if gpu.gpu == gpu_id)))
    with st.expander(f"All values of {labels[gpu_id] if labels[gpu_id].startswith('GPU ') else 'this GPU'}"):
        st.dataframe(every, hide_index=True, placeholder=words.UNKNOWN, key="gpu_table")


def series_chart(
    asked: Answers,
    node: str,
    gpu: str,
    field: str,
    window_s: float,
    threshold: figures.Threshold | None,
    key: str,
) -> None:
    """One field over time, with its unit, window and source under it."""
    question = ("series", node, gpu, field, int(window_s))
    try:
        series = asked.ask(question, lambda api: api.series(node, gpu, field, window_s)).value
    except NoAnswerError as error:
        frame.empty("The collector has no series for this.", str(error))
        return
    if not any(words.known(value) for value in series.values):
        frame.empty(f"{words.label(field)}: unknown over the last {words.duration(window_s)}.")
        return
    st.echarts_chart(
        figures.line(series, threshold), height=260, key=key, alt=f"{words.label(field)} over time"
    )
    meaning = BY_NAME[field].doc if field in BY_NAME else field
    step = f"one point per {words.duration(series.step_s)}"
    text = f"{meaning}. Last {words.duration(window_s)}, {step}, from the collector's store."
    frame.show(el("div", text[0].upper() + text[1:], cls="u-context"))


def _node_line(node: NodeNow | None, gpus: list[GpuNow], now_ns: int | None) -> Html:
    models = ", ".join(sorted({gpu.model for gpu in gpus if gpu.model})) or "model unknown"
    parts = [f"{words.many(len(gpus), 'GPU')}: {models}"]
    if node is not None:
        parts.append(f"newest sample {words.duration(fleet.age_s(node.last_sample_ns, now_ns))} old")
        parts.append(words.clock_off(node.clock_skew_s))
        parts += [
            f"{words.label(name)} {words.measured(name, value)}"
            for name, value in node.values.items()
            if name in ("cpu_busy_ratio", "cpu_iowait_ratio", "host_memory_available_bytes")
        ]
    return el("div", "; ".join(parts), cls="u-context")


def _columns(rows: pd.DataFrame) -> dict[str, Any]:
    """One decimal for every measured column."""
    return {
        str(name): st.column_config.NumberColumn(format="%.1f")
        for name in rows.columns
        if str(name).endswith((" %", " GiB", " W", " °C", " MHz", " s"))
    }
