"""What the pages show, as pure functions of the collector's records."""

from __future__ import annotations

import base64
import json
import math
import zlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.dashboard.fake_api import GROUPS, LAG_S, NOW_NS, FakeApi, Group

from unidle_collector.model import STATES, Account, Cost, Gain, GpuNow, GpuRef, Series
from unidle_dashboard.view import figures, fleet, health, incidents, recommendations, today

API = FakeApi()


def gpu(node: str = "n1", index: int | None = 0, **changes: Any) -> GpuNow:
    record = GpuNow(node, f"GPU-{index}", index, "B200", "productive", "", False, NOW_NS, "j", "", {}, False)
    return replace(record, **changes)


# Today


def test_the_verdict_counts_gpus_in_losing_states_and_prices_the_last_hour() -> None:
    told = today.verdict(API.fleet())
    assert told.headline == "104 of 512 GPUs are paid for and losing time right now"
    assert told.details[0] == "The last hour lost 62 GPU-h to jobs that hold GPUs: 373 EUR."
    assert told.losing


def test_the_verdict_says_no_price_where_there_is_none() -> None:
    api = FakeApi()
    api.priced = False
    assert "EUR" not in today.verdict(api.fleet()).details[0]


def test_an_empty_fleet_is_told_how_to_begin_instead_of_zero_losses() -> None:
    told = today.verdict(FakeApi(groups=()).fleet())
    assert told.headline == "No GPU has reported yet."
    assert not told.losing


def test_unknown_gpus_are_neither_lost_nor_productive() -> None:
    only_unknown = FakeApi(groups=(Group(1, "unknown", "", "", 0.0, math.nan, math.nan, math.nan, math.nan),))
    told = today.verdict(only_unknown.fleet())
    assert told.headline == "Cannot tell: no GPU is reporting right now"
    quiet = today.verdict(replace(only_unknown.fleet(), gpus=10))
    assert quiet.headline == "None of 2 GPUs that report is losing time right now"
    assert any("8 more are not reporting: unknown" in text for text in quiet.details)


def test_the_funnel_falls_from_total_to_effective() -> None:
    steps = today.funnel(API.fleet().account)
    assert [step.name for step in steps] == ["Total", "Allocated", "Active", "Effective"]
    ratios = [step.ratio for step in steps]
    assert ratios == sorted(ratios, reverse=True, key=lambda ratio: ratio or 0)
    drops = sum(step.drop or 0 for step in steps)
    assert drops == pytest.approx(1 - (steps[-1].ratio or 0))


def test_a_step_of_the_funnel_that_is_not_known_stays_unknown() -> None:
    account = replace(API.fleet().account, effective_ratio=None)
    last = today.funnel(account)[-1]
    assert (last.ratio, last.drop) == (None, None)
    assert "Effective unknown" in figures.funnel_in_words(today.funnel(account))


def test_causes_are_ordered_by_lost_hours_and_leave_unallocated_time_out() -> None:
    account = replace(
        API.fleet().account, causes={"unallocated.": 9e9, "idle.held": 3600.0, "starved.x": 7200.0}
    )
    rows = today.causes(account)
    assert [row.key for row in rows] == ["starved.x", "idle.held"]
    assert [row.share for row in rows] == [1.0, 0.5]


def test_a_cause_without_a_cost_is_priced_at_the_mean_and_its_energy_stays_unknown() -> None:
    account = Account("fleet", 0, 1, 1, {}, {"idle.held": 7200.0}, lost=Cost(gpu_h=4.0, eur=20.0, kwh=1.0))
    (row,) = today.causes(account)
    assert row.cost == Cost(2.0, 10.0, None)
    assert row.estimated


def test_a_cause_without_any_price_costs_unknown() -> None:
    account = Account("fleet", 0, 1, 1, {}, {"idle.held": 7200.0}, lost=Cost(4.0, None, None))
    assert today.causes(account)[0].cost == Cost(2.0, None, None)


def test_open_incidents_are_counted_by_severity() -> None:
    assert today.severities(API.incidents("open")) == "2 critical, 4 warning"
    assert today.severities([]) == "none"


def test_a_window_that_reaches_back_before_the_data_says_how_much_they_cover() -> None:
    account = Account("fleet", 0, 1, 2, {"productive": 7200.0, "unknown": 3600.0})
    assert today.coverage(account, 86_400) == "The data cover 1 h of the 1 d per GPU, on average."
    assert today.coverage(account, 3_600) == ""


# Fleet


def test_nodes_come_in_the_order_that_people_count_them() -> None:
    gpus = [gpu(node) for node in ("node10", "node2", "node1", "a", "2", "10")]
    assert list(fleet.by_node(gpus)) == ["2", "10", "a", "node1", "node2", "node10"]


@given(st.lists(st.text(max_size=6), max_size=12))
def test_any_node_names_can_be_ordered(names: list[str]) -> None:
    assert set(fleet.by_node([gpu(name) for name in names])) == set(names)


def test_the_map_has_one_byte_per_gpu_and_its_state_in_it() -> None:
    shown = fleet.build(API.gpus())
    assert len(shown.cells) == sum(shown.counts) == len(shown.labels) == 512
    for state, count in API.fleet().states.items():
        assert shown.cells.count(STATES.index(state)) == count  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("util", "cell"),
    [
        (None, fleet.UNKNOWN_CELL),
        (math.nan, fleet.UNKNOWN_CELL),
        (0.0, 0),
        (0.5, 125),
        (1.0, 250),
        (1.4, 250),
    ],
)
def test_unknown_is_never_drawn_as_zero(util: float | None, cell: int) -> None:
    shown = fleet.build([gpu(values={"gpu_util_ratio": util})], "GPU utilization")
    assert list(shown.cells) == [cell]


def test_power_is_shown_of_its_limit_and_unknown_without_one() -> None:
    gpus = [gpu(values={"power_w": 500.0, "power_limit_w": limit}) for limit in (1000.0, None, 0.0)]
    assert list(fleet.build(gpus, "Power of its limit").cells) == [125, 255, 255]


def test_a_fleet_too_large_for_cells_shows_the_worst_state_and_the_mean_per_node() -> None:
    gpus = [
        gpu("n1", 0, values={"gpu_util_ratio": 1.0}),
        gpu("n1", 1, state="idle", values={"gpu_util_ratio": 0.0}),
        gpu("n2", 0, state="unknown", values={}),
    ]
    shown = fleet.build(gpus, most_cells=2)
    assert shown.by_node
    assert [STATES[cell] for cell in shown.cells] == ["idle", "unknown"]
    assert shown.labels[0] == "1 idle, 1 productive"
    assert list(fleet.build(gpus, "GPU utilization", most_cells=2).cells) == [125, 255]


def test_adding_an_idle_gpu_never_brightens_a_tile() -> None:
    busy = [gpu("n1", index, values={"gpu_util_ratio": 0.8}) for index in range(4)]
    idle = gpu("n1", 4, values={"gpu_util_ratio": 0.0})
    before = fleet.build(busy, "GPU utilization", most_cells=0).cells[0]
    assert fleet.build([*busy, idle], "GPU utilization", most_cells=0).cells[0] < before


@pytest.mark.parametrize("colouring", [fleet.BY_STATE, *fleet.COLOURINGS])
def test_ten_thousand_gpus_travel_in_fewer_than_20_kilobytes(colouring: str) -> None:
    gpus = [
        replace(one, node=f"{one.node}-{copy}") for copy in range(20) for one in FakeApi(groups=GROUPS).gpus()
    ][:10_000]
    sent = fleet.packed(fleet.build(gpus, colouring), "")
    assert len(json.dumps(sent)) < 20_000


def test_what_travels_can_be_read_back() -> None:
    sent = fleet.packed(fleet.build(API.gpus(), "Temperature"), "b200-03")
    facts = json.loads(zlib.decompress(base64.b64decode(sent["packed"])))
    assert sent["selected"] == "b200-03"
    assert facts["nodes"][3] == "b200-03"
    assert len(base64.b64decode(facts["cells"])) == 512
    assert facts["scale"] == {"name": "Temperature", "unit": "°C", "low": 25, "high": 95, "top": 250}


def test_the_table_of_a_node_keeps_numbers_in_the_unit_of_its_column() -> None:
    values = {"gpu_util_ratio": 0.5, "memory_used_bytes": 2.0**31, "power_w": None}
    (row,) = fleet.node_table([gpu(values=values)], NOW_NS + 1_500_000_000)
    assert row["GPU util, %"] == 50
    assert row["memory used, GiB"] == 2
    assert row["power, W"] is None
    assert row["sample age, s"] == 1.5


def test_what_is_to_be_said_of_several_owners_is_said_once() -> None:
    held = [gpu(index=number, job="7", owner_note="no process") for number in (0, 1)]
    used = gpu(index=2, job="7", owner_note="conflict", used_by="8")
    assert fleet.owner_notes([*held, used, gpu(index=3, job="7")]) == [
        "GPU 0, GPU 1: allocated to job 7, no process on it.",
        "GPU 2: allocated to job 7, but used by job 8.",
    ]


# Incidents


def test_a_row_that_moved_away_selects_nothing() -> None:
    listed = API.incidents()
    assert incidents.chosen(listed, [1]) == listed[1].id
    assert incidents.chosen(listed, [99]) is None
    assert incidents.chosen(listed, []) is None
    assert incidents.position(listed, listed[2].id) == 2
    assert incidents.position(listed, "inc-none") is None


def test_the_table_of_incidents_keeps_numbers_and_unknown_prices() -> None:
    api = FakeApi()
    api.priced = False
    row = incidents.table(api.incidents())[0]
    assert row["GPUs"] == 32
    assert row["EUR"] is None
    assert row["Sure"] == pytest.approx(86)


def test_the_table_of_incidents_counts_nodes_beyond_two() -> None:
    (incident, *_) = API.incidents()
    for nodes, shown in ((("n1", "n2"), "n1, n2"), (("n1", "n2", "n10"), "3 nodes"), ((), "")):
        one = replace(incident, finding=replace(incident.finding, nodes=nodes))
        assert incidents.table([one])[0]["Nodes"] == shown


def test_evidence_is_shown_with_unit_threshold_and_window() -> None:
    rows = incidents.evidence_rows(API.incidents()[0].finding)
    assert [row["Measured"] for row in rows] == ["31 %", "42 %", "unknown"]
    assert [row["Threshold"] for row in rows] == ["60 %", "20 %", "none"]
    assert rows[0]["Window"] == "30 min"


def test_causes_come_with_their_probability_most_likely_first() -> None:
    names = incidents.likelihoods(API.incidents()[0].finding)
    assert names[0] == ("Starved: storage too slow", 0.86)
    assert [share for _, share in names[1:]] == [0.09, 0.05]


def test_affected_gpus_are_told_as_ranges_per_node() -> None:
    gpus = tuple(GpuRef("n1", f"G{index}", index) for index in (0, 1, 2, 6))
    assert incidents.affected((*gpus, GpuRef("n2", "MIG-3f"))) == [("n1", "GPU 0-2, 6"), ("n2", "MIG-3f")]


def test_evidence_of_the_host_is_asked_for_without_a_gpu() -> None:
    series = incidents.evidence_series(API.incidents()[0].finding)
    host = next(one for one in series if one.field == "psi_io_full_s")
    assert host.gpu == ""
    assert {one.node for one in series} <= set(API.incidents()[0].finding.nodes)


def test_who_waits_is_drawn_beside_whom_it_waits_for() -> None:
    finding = replace(API.incidents()[0].finding, held_back_by=(GpuRef("n9", "GPU-slow", 3),))
    series = incidents.evidence_series(finding)
    assert ("n9", "GPU-slow") in {(one.node, one.gpu) for one in series}
    assert {one.gpu for one in series} & {ref.gpu for ref in finding.gpus}


def test_the_window_of_the_evidence_holds_the_time_before_the_incident() -> None:
    incident = API.incidents()[0]
    window_s = incidents.series_window_s(incident, NOW_NS)
    assert NOW_NS - window_s * 1e9 < incident.finding.since_ns
    young = replace(incident, finding=replace(incident.finding, since_ns=NOW_NS))
    old = replace(incident, finding=replace(incident.finding, since_ns=0))
    assert incidents.series_window_s(young, NOW_NS) == 3600
    assert incidents.series_window_s(old, NOW_NS) == incidents.WEEK_S


# Figures

SERIES = Series(
    "n", "g", "sm_active_ratio", "1", 15, (0, 15_000_000_000, 30_000_000_000), (0.5, None, 0.0), False
)


def test_a_line_breaks_where_nothing_is_known_and_keeps_its_zeros() -> None:
    (line,) = figures.line(SERIES)["series"]
    assert line["data"] == [[0, 50], [15_000, None], [30_000, 0]]
    assert line["connectNulls"] is False


def test_a_threshold_is_drawn_only_over_a_series_of_its_own_unit() -> None:
    fits = figures.line(SERIES, figures.Threshold(0.6, "1"))["series"][0]
    assert fits["markLine"]["data"] == [{"yAxis": 60}]
    assert "markLine" not in figures.line(SERIES, figures.Threshold(0.2, "s/s"))["series"][0]


def test_the_shares_of_states_add_up_to_all_the_time() -> None:
    shares = figures.states_bar(API.fleet().account)
    assert sum(share for _, _, share in shares) == pytest.approx(1)
    assert figures.states_bar(Account("fleet", 0, 1, 0, {})) == []


# Recommendations


def test_recommendations_come_by_lever_and_in_the_order_of_the_api() -> None:
    groups = recommendations.by_lever(API.recommendations())
    assert [lever for lever, _ in groups] == ["reclaim", "fix"]
    assert sum(len(ones) for _, ones in groups) == len(API.recommendations())


def test_a_gain_shows_its_interval_and_what_is_unknown() -> None:
    gain = Gain(24, Cost(8, None, 1), Cost(12, None, 2), Cost(15, None, 3))
    hours, eur, _ = recommendations.gain_lines(gain)
    assert (hours.expected, hours.interval) == ("12", "8.0 to 15")
    assert (eur.expected, eur.interval) == ("unknown", "interval unknown")
    assert recommendations.horizon(gain) == "within 24 h"


# Data health


def test_the_collectors_clock_is_event_time_plus_lag() -> None:
    assert health.collector_now_ns(API.health()) == NOW_NS + int(LAG_S * 1e9)
    assert health.collector_now_ns(replace(API.health(), lag_s=None)) is None


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, ""),
        ({"last_sample_ns": None}, "no sample ever"),
        ({"last_sample_ns": NOW_NS - 61 * 10**9}, "silent for 1 min 1 s"),
        ({"clock_skew_s": -7.4}, "clock 7.4 s ahead"),
        ({"clock_skew_s": None}, ""),
    ],
)
def test_a_node_in_trouble_says_what_is_wrong(changes: dict[str, Any], problem: str) -> None:
    node = replace(API.nodes()[0], last_sample_ns=NOW_NS)
    assert health.node_problem(replace(node, **changes), NOW_NS) == problem


def test_troubled_nodes_come_first_and_are_counted() -> None:
    nodes = API.nodes()
    now_ns = health.collector_now_ns(API.health())
    assert [row["Node"] for row in health.node_table(nodes, now_ns)[:4]] == [
        "b200-17",
        "b200-62",
        "b200-63",
        "b200-00",
    ]
    assert health.summary(nodes, now_ns) == "61 of 64 nodes are fresh; 3 need a look"
    assert health.summary([], now_ns) == "No node has pushed anything yet"
