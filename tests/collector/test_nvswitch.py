"""Errors of NVSwitches are the node's, and what the kernel log says of a fault is told with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.collector.pushing import START_S, site
from tests.collector.test_faults import Fleet, findings, push

from unidle_agent.wire import KERNEL_WORDS, NODE, SXID, SXID_FATAL, Event, part_of_switch
from unidle_collector.detectors.nvswitch import LINKS_REMEMBERED
from unidle_collector.recommend import recommend
from unidle_collector.signals import REBOOTED, RESET, Happened

WORDS = KERNEL_WORDS + "NVSwitch 3: Fatal, Link 30 LTSSM Fault"


def sxid(fleet: Fleet, kind: str, code: int, link: int | None = 30, text: str = "") -> list[Happened]:
    part = part_of_switch(3, link)
    return [Happened(gpu, fleet.now_ns + 5 * 10**8, kind, code, text, part) for gpu in fleet.gpus]


def test_a_fatal_error_of_a_switch_drains_its_node_with_all_gpus_behind_it() -> None:
    fleet = Fleet(gpus=8, job="4711")
    fleet.live(60)
    fleet.live(1, *sxid(fleet, SXID_FATAL, 20034, text=WORDS))
    (finding,) = fleet.told
    assert (finding.kind, finding.cause, finding.severity) == ("nvswitch", "fatal", "critical")
    assert (finding.subject_kind, finding.subject, len(finding.gpus)) == ("node", "n0", 8)
    assert finding.title == "NVSwitch 3, link 30 failed, SXid 20034: 8 GPUs behind it"
    assert finding.evidence[0].text == f"SXid 20034 of NVSwitch 3, link 30: fatal; {WORDS}"
    assert "State=DRAIN" in finding.advice
    (item,) = recommend([finding], finding.updated_ns)
    assert item.kind == "repair_nvswitch"
    assert "scontrol reboot ASAP" in item.command
    assert fleet.state() == "productive", "its GPUs lose no time by themselves"


@pytest.mark.parametrize("kind", [REBOOTED, RESET])
def test_a_reset_of_all_gpus_or_a_reboot_ends_it(kind: str) -> None:
    fleet = Fleet()
    fleet.live(30, *sxid(fleet, SXID_FATAL, 23001, link=None))
    fleet.live(2, *[Happened(gpu, fleet.now_ns, kind) for gpu in fleet.gpus])
    assert [finding.kind for finding in fleet.ended] == ["nvswitch"]


def test_lesser_errors_are_told_when_one_link_keeps_reporting_them() -> None:
    fleet = Fleet()
    for number in range(5):
        assert [finding.kind for finding in fleet.told] == [], f"{number} errors are none yet"
        fleet.live(2, *sxid(fleet, SXID, 12028, link=7))
        fleet.now_ns += 118 * 10**9
    (finding,) = fleet.told
    assert (finding.kind, finding.cause, finding.severity) == ("nvswitch", "repeated", "warning")
    assert "5 times, not fatal" in finding.evidence[0].text
    assert recommend([finding], finding.updated_ns) == []
    fleet.now_ns += 3600 * 10**9
    fleet.live(2)
    assert [one.kind for one in fleet.ended] == ["nvswitch"]


def test_a_storm_of_lesser_errors_and_errors_of_many_links_are_not_told() -> None:
    fleet = Fleet()
    for _ in range(50):
        fleet.live(1, *sxid(fleet, SXID, 19084, link=7))
    for link in range(2 * LINKS_REMEMBERED):
        fleet.live(1, *sxid(fleet, SXID, 20009, link=10 + link))
        fleet.now_ns += 90 * 10**9
    assert fleet.told == []


def test_errors_hours_apart_begin_anew() -> None:
    fleet = Fleet(gpus=1)
    for _ in range(6):
        fleet.live(2, *sxid(fleet, SXID, 28006))
        fleet.now_ns += 2 * 3600 * 10**9
    assert fleet.told == []


def test_the_words_of_the_kernel_log_are_evidence_of_an_xid_and_harm_nobody() -> None:
    fleet = Fleet(job="4711")
    text = KERNEL_WORDS + "process 4242 of job 4711: MMU Fault <!channel> `rm`"
    event = replace(fleet.xid(31, 1)[0], text=text)
    fleet.live(3, event)
    (finding,) = fleet.told
    assert finding.evidence[0].text == (
        "XID 31 (GPU memory page fault): once; kernel log: process 4242 of job 4711: MMU Fault ?channel? ?rm?"
    )
    other = Fleet()
    other.live(3, replace(other.xid(31, 1)[0], text="the driver reported XID 31"))
    assert other.told[0].evidence[0].text == "XID 31 (GPU memory page fault): once"


def test_an_exporters_count_and_its_sticky_value_are_one_xid() -> None:
    fleet = Fleet(gpus=1)
    fleet.live(10, last_xid=0.0)
    (counted,) = fleet.xid(31, 0)
    fleet.live(1, replace(counted, text="dcgm-exporter: 1 more"), last_xid=31.0)
    fleet.live(5, last_xid=31.0)
    assert [finding.evidence[0].text for finding in fleet.told] == ["XID 31 (GPU memory page fault): once"]


def test_a_fatal_xid_that_a_reset_repairs_is_told_within_a_step() -> None:
    fleet = Fleet()
    fleet.live(60)
    fleet.live(1, *fleet.xid(119, 2, at_s=1.0003))  # a tick is a moment later than its step ends
    assert [finding.kind for finding in fleet.told] == ["xid"]


def test_an_xid_79_waits_for_the_state_of_its_gpu() -> None:
    fleet = Fleet(gpus=1)
    fleet.live(60)
    fleet.live(2, *fleet.xid(79, 0))
    assert fleet.told == []
    fleet.live(10, gpu_state=1.0)
    assert [finding.kind for finding in fleet.told] == ["gpu_lost"]


def test_an_event_of_a_node_is_one_of_each_of_its_gpus_and_of_no_other_nodes(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        for first_s in range(0, 60, 5):
            event = Event((START_S + 31) * 10**9, NODE, SXID_FATAL, 11001, WORDS, part_of_switch(3, 30))
            push(here, first_s, first_s, "n1", *([event] if first_s == 30 else []))
            push(here, first_s, first_s, "n2")
            here.settle(first_s + 8)
        assert findings(here) == {"nvswitch": ("n1", "open")}
        (incident,) = here.get("incidents")
        assert WORDS in incident["finding"]["evidence"][0]["text"]
