"""Rows as line protocol."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.collector.store_fleet import NOON, SECOND, batch

from unidle_agent.fields import BY_NAME
from unidle_collector.series.lines import lines_of, tag_text

TAG = r"(?:[^,= \\]|\\[,= ])+"
LINE = re.compile(rf"(unidle|unidle_host)((?:,\w+={TAG})+) ([a-z0-9_=.,+i-]+) (\d+)")


def read(line: str) -> tuple[dict[str, str], dict[str, str], int]:
    """Tags, fields and time of a line; fails on what is no line protocol."""
    whole = LINE.fullmatch(line)
    assert whole, line
    tags = dict(re.findall(rf",(\w+)=({TAG})", whole[2]))
    fields = dict(pair.split("=") for pair in whole[3].split(","))
    return {key: re.sub(r"\\(.)", r"\1", text) for key, text in tags.items()}, fields, int(whole[4])


def test_a_batch_is_a_line_per_gpu_and_instant_and_one_per_instant_for_the_host() -> None:
    item = batch(
        "n1",
        times=[NOON, NOON + SECOND],
        gpus=("GPU-a", "GPU-b"),
        columns={
            "power_w": [300.25, 301, None, 303],
            "energy_j": [1234567, 2, None, 4],
            "clock_event_reasons": [4, 0, 0, None],
            "memory_used_bytes": [85899345920, 1, 2, 3],
        },
        host={"load_1m": [1.5, None]},
    )
    digits = len(str(BY_NAME["energy_j"].resolution).split(".")[1])
    joules = f"{1234567 // 10**digits}.{1234567 % 10**digits:0{digits}d}"
    found = [read(line) for line in lines_of(item, ["4711", ""])]
    assert [(tags.get("gpu"), tags.get("job"), time) for tags, _, time in found] == [
        ("GPU-a", "4711", NOON),
        ("GPU-b", None, NOON),
        ("GPU-a", "4711", NOON + SECOND),
        ("GPU-b", None, NOON + SECOND),
        (None, None, NOON),
    ]
    fields = [fields for _, fields, _ in found]
    assert fields[0]["energy_j"] == joules
    assert float(fields[0]["power_w"]) == 300.25
    assert fields[0]["clock_event_reasons"] == "4i"
    assert float(fields[0]["memory_used_bytes"]) == 85899345920
    assert set(fields[2]) == {"clock_event_reasons", "memory_used_bytes"}  # unknown is left out, zero is not
    assert "clock_event_reasons" not in fields[3]
    assert float(fields[4]["load_1m"]) == 1.5


def test_rows_of_one_step_become_the_mean_the_last_state_and_the_last_counter() -> None:
    item = batch(
        "n1",
        times=[NOON // (10 * SECOND) * 10 * SECOND + n * SECOND for n in (7, 8, 9, 10, 11)],
        columns={"power_w": [100, None, 200, 300, 500], "clock_event_reasons": [1, 2, None, 8, None]},
    )
    found = [read(line) for line in lines_of(item, [""], 10 * SECOND)]
    assert [time for _, _, time in found] == [item.times_ns[2], item.times_ns[4]]
    assert [float(fields["power_w"]) for _, fields, _ in found] == [150, 400]
    assert [fields["clock_event_reasons"] for _, fields, _ in found] == ["2i", "8i"]


def test_the_same_batch_makes_the_same_lines_and_simulated_ones_say_so() -> None:
    item = batch("n1", simulated=True)
    assert lines_of(item, [""]) == lines_of(item, [""])
    assert read(lines_of(item, [""])[0])[0]["simulated"] == "true"


def test_a_row_of_which_nothing_is_known_is_no_line() -> None:
    assert lines_of(batch(columns={"power_w": [None]}), [""]) == []


def test_a_number_that_signed_integers_do_not_hold_is_left_out() -> None:
    item = batch(columns={"clock_event_reasons": [2**63], "power_w": [1]})
    assert set(read(lines_of(item, [""])[0])[1]) == {"power_w"}


@given(st.text(min_size=1, max_size=30), st.text(min_size=1, max_size=30))
def test_no_name_can_break_a_line_or_be_mistaken_for_another(node: str, job: str) -> None:
    (line,) = lines_of(batch(node), [job])
    tags, fields, time = read(line)
    assert tags == {"gpu": "GPU-a", "job": tag_text(job), "node": tag_text(node), "simulated": "false"}
    assert (list(fields), time) == (["power_w"], NOON)


@pytest.mark.parametrize("value", [0.0, 0.1, 311.54, 1e-4])
def test_a_value_is_written_at_least_as_finely_as_it_is_kept(value: float) -> None:
    (line,) = lines_of(batch(columns={"power_w": [value]}), [""])
    assert float(read(line)[1]["power_w"]) == pytest.approx(value, abs=BY_NAME["power_w"].resolution / 2)
