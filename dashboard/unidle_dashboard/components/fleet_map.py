"""The fleet map: a canvas with one cell per GPU, fed with one byte per GPU.

Streamlit's own charts need 8 to 80 times the bytes and freeze the browser at 10,000 cells.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import streamlit as st

from unidle_dashboard.view.fleet import FleetMap, packed

HTML = """
<div class="map" role="img">
  <canvas></canvas>
  <div class="tip" hidden></div>
</div>
"""
CSS = """
.map { position: relative; width: 100%; color: var(--st-text-color); font-family: var(--st-font); }
canvas { display: block; }
.tip { position: absolute; z-index: 9; pointer-events: none; max-width: 320px; padding: 5px 9px;
       border-radius: 5px; font-size: 13px; overflow-wrap: anywhere;
       background: var(--st-text-color); color: var(--st-background-color); }
"""

_canvas = st.components.v2.component(
    "unidle_fleet_map",
    html=HTML,
    css=CSS,
    js=Path(__file__).with_suffix(".js").read_text(encoding="utf-8"),
)


def fleet_map(shown: FleetMap, selected: str, on_pick: Callable[[str], None], key: str) -> None:
    """Draw `shown`; a click on a node calls `on_pick` with its name before the script runs again."""

    def picked() -> None:
        node = st.session_state[key].get("picked")
        if node:
            on_pick(str(node))

    _canvas(key=key, data=packed(shown, selected), on_picked_change=picked)
