"""Numbers, names and colours as people see them."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unidle_collector.model import STATES
from unidle_dashboard.view import words
from unidle_dashboard.view.markup import Html, el, join
from unidle_dashboard.view.palette import LOOKS, LOST, WORST_FIRST, cause_name, cause_state


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "unknown"),
        (math.nan, "unknown"),
        (0.0, "0"),
        (0.042, "0.042"),
        (6.25, "6.2"),
        (1204.4, "1,204"),
    ],
)
def test_a_number_keeps_three_digits_and_unknown_is_a_word(value: float | None, shown: str) -> None:
    assert words.number(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "unknown"),
        (0.0, "0 s"),
        (-0.004, "−4 ms"),
        (2.25, "2.2 s"),
        (45, "45 s"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (7503, "2 h 5 min"),
        (367_200, "4 d 6 h"),
    ],
)
def test_a_duration_shows_its_two_largest_units(seconds: float | None, shown: str) -> None:
    assert words.duration(seconds) == shown


def test_a_rate_of_a_count_names_what_is_counted() -> None:
    assert words.shown_unit("{error}/s") == ("error/s", 1.0)
    assert words.label("ib_link_errors") == "InfiniBand link errors"


@pytest.mark.parametrize(
    ("skew_s", "shown"), [(-8.0, "8 s ahead"), (0.004, "4 ms behind"), (None, "unknown")]
)
def test_a_clock_is_ahead_or_behind(skew_s: float | None, shown: str) -> None:
    assert words.clock_off(skew_s) == f"clock {shown}"


@pytest.mark.parametrize(
    ("field", "value", "unit", "shown"),
    [
        ("sm_active_ratio", 0.31, "", "31 %"),
        ("memory_used_bytes", 120 * 2.0**30, "", "120 GiB"),
        ("sm_clock_hz", 1.965e9, "", "1,965 MHz"),
        ("psi_io_full_s", 0.42, "s/s", "42 %"),
        ("tokens", 12.0, "{token}", "12 tokens"),
        ("process_count", 1.0, "{process}", "1 process"),
        ("process_count", 8.0, "{process}", "8 processes"),
        ("pcie_width", 8.0, "lanes", "8 lanes"),
        ("ib_link_errors", 240.0, "1/min", "240 a minute"),
        ("power_w", None, "", "unknown"),
        ("clock_event_reasons", 96.0, "bits", "0x60"),
        ("last_xid", 79.0, "", "79"),
    ],
)
def test_a_measurement_is_shown_in_the_unit_that_people_read(
    field: str, value: float | None, unit: str, shown: str
) -> None:
    assert words.measured(field, value, unit) == shown


def test_an_unknown_price_is_the_word_unknown_and_not_zero() -> None:
    assert words.amount(None, "EUR") == "EUR unknown"
    assert words.amount(0.0, "EUR") == "0 EUR"


@pytest.mark.parametrize(
    ("key", "name", "state"),
    [
        ("starved.storage", "Starved: storage too slow", "starved"),
        ("idle.no_process", "Idle: no process at all", "idle"),
        ("storage", "Storage too slow", "unknown"),
        ("cpu_preprocessing", "CPU preprocessing too slow", "unknown"),
        ("throttled.", "Throttled", "throttled"),
        ("idle", "Idle", "idle"),
        ("starved.something_new", "Starved: something new", "starved"),
    ],
)
def test_a_cause_is_named_in_words_and_an_unknown_one_by_its_own(key: str, name: str, state: str) -> None:
    assert (cause_name(key), cause_state(key)) == (name, state)


EVIL = ['<img src=x onerror="window.pwned=1">', "[x](javascript:alert(1))", "**b** $x^2$", "a\x00b\u202ec"]


@pytest.mark.parametrize("name", EVIL)
def test_text_is_escaped_wherever_it_stands_in_html(name: str) -> None:
    shown = el("p", name, el("b", name), cls="u", title=name)
    assert "<img" not in shown
    assert shown.count("<") == 4  # <p>, <b>, </b>, </p>
    assert "\u202e" not in join(name)


@given(st.text())
def test_no_text_can_open_or_close_an_element(name: str) -> None:
    inside = el("p", name).removeprefix("<p>").removesuffix("</p>")
    assert "<" not in inside
    assert ">" not in inside


def test_html_is_not_escaped_twice() -> None:
    assert el("p", Html("<b>&amp;</b>")) == "<p><b>&amp;</b></p>"


def test_every_state_has_a_look_and_a_place_in_the_order_of_tiles() -> None:
    assert set(LOOKS) == set(STATES) == set(WORST_FIRST)
    assert set(LOST) < set(STATES)


# Machado, Oliveira, Fernandes 2009, severity 1.0, on linear RGB.
EYES = {
    "usual": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}
JUST_APART = 20.0
"""CIE76; 2.3 is just noticeable."""


@pytest.mark.parametrize("eye", EYES)
def test_the_colours_of_states_stay_apart_for_colour_blind_eyes(eye: str) -> None:
    # `unknown` is told apart by its hatching.
    seen = {state: _lab(EYES[eye] @ _linear(LOOKS[state].colour)) for state in STATES if state != "unknown"}
    for one, other in combinations(seen, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > JUST_APART, (one, other)


def _linear(colour: str) -> np.ndarray:
    rgb = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def _lab(linear: np.ndarray) -> np.ndarray:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(linear, 0, 1) / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])
