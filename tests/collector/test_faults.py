"""Faults of the hardware: what must be told, with which words, and what must not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.collector.fleets import BASE, H100, HEALTHY, START_NS, Column, recording
from tests.collector.pushing import START_S, Site, batch, site

from unidle_agent.wire import Event, Owner
from unidle_collector.engine import Engine
from unidle_collector.model import Finding, GpuRef
from unidle_collector.pergpu import SECOND_NS
from unidle_collector.replay import Result, replay
from unidle_collector.signals import REBOOTED, RESET, Happened, Step
from unidle_collector.signs.xids import _known, recovery_action, xid

MINUTES = 12


def after(minute: float, inside: float, outside: float, gpu: int | None = 0, each_s: int = 15) -> Column:
    """`inside` from a minute on, of one GPU (None: of all); known each 15 s only, as slow fields are."""

    def build(instants: int, gpus: int) -> NDArray[np.float64]:
        column = np.full((instants, gpus), float(outside))
        column[round(minute * 60) :, slice(None) if gpu is None else gpu] = inside
        column[np.arange(instants) % each_s != 0] = np.nan
        return column

    return build


def sticky(minute: float, code: float, before: float = 0.0) -> Column:
    return after(minute, code, before, each_s=1)


def works_and_rests(
    works: float, rests: float, rest_s: int = 18, turn_s: int = 60, each_s: int = 1
) -> Column:
    """`rests` in the last seconds of every turn, `works` in the others."""

    def build(instants: int, gpus: int) -> NDArray[np.float64]:
        second = np.arange(instants)
        column = np.where(second % turn_s >= turn_s - rest_s, rests, works)
        column[second % each_s != 0] = np.nan
        return np.repeat(column[:, None], gpus, axis=1)

    return build


RESTING_LINK: dict[str, Column] = {
    "gpu_util_ratio": works_and_rests(1.0, 0.0),
    "sm_active_ratio": works_and_rests(0.9, 0.0),
    "pcie_generation": works_and_rests(5.0, 1.0, each_s=3),
    "pcie_generation_max": 5.0,
}
IDLE: dict[str, Column] = BASE | {"gpu_util_ratio": 0.0, "sm_active_ratio": 0.0, "power_w": 70.0}
SLOW_LINK: dict[str, Column] = {"pcie_generation": 1.0, "pcie_generation_max": 5.0}


def told(result: Result) -> list[Finding]:
    return [finding for finding in result.findings if finding.told_ns is not None]


@dataclass(frozen=True)
class Case:
    title: str
    columns: dict[str, Column]
    told: dict[str, str]
    gpus: int = 1
    failed_s: float = 0.0


MUST_FIRE = [
    Case("XID 79 ends the GPU's service", HEALTHY | {"last_xid": sticky(6, 79)}, {"xid": "reboot"}, 1, 360),
    Case("XID 48 wants a reset", HEALTHY | {"last_xid": sticky(6, 48)}, {"xid": "reset"}, 1, 360),
    Case(
        "XID 31 is the application's",
        HEALTHY | {"last_xid": sticky(6, 31)},
        {"xid_application": "application"},
    ),
    Case(
        "a code that nobody lists is told",
        HEALTHY | {"last_xid": sticky(6, 999)},
        {"xid_warning": "unknown"},
    ),
    Case(
        "sources that disagree are no failure",
        HEALTHY | {"last_xid": sticky(6, 160)},
        {"xid_warning": "alert"},
    ),
    Case(
        "a driver that asks for a reset is heard without an XID",
        HEALTHY | {"recovery_action": after(6, 1, 0)},
        {"xid_warning": "recovery_action"},
    ),
    Case("a failed row remap", HEALTHY | {"row_remap_failed": after(6, 1, 0)}, {"ecc": "remap_failed"}),
    Case("a pending bank remap", HEALTHY | {"bank_remap_pending": after(6, 1, 0)}, {"ecc": "remap_pending"}),
    Case(
        "on-chip memory past its threshold",
        HEALTHY | {"sram_threshold_exceeded": after(6, 1, 0)},
        {"ecc": "sram_threshold"},
    ),
    Case(
        "a group of banks without spares",
        HEALTHY | {"bank_groups_no_spares": after(6, 2, 0)},
        {"ecc": "spares_used_up"},
    ),
    Case("a pending row remap", HEALTHY | {"row_remap_pending": after(6, 1, 0)}, {"ecc": "remap_pending"}),
    Case(
        "uncorrectable errors that grow",
        HEALTHY | {"ecc_uncorrected_volatile": after(6, 2, 0)},
        {"ecc": "uncorrectable"},
    ),
    Case(
        "half of the lanes, even on an idle GPU",
        IDLE | {"pcie_width": after(5, 8, 16), "pcie_width_max": 16.0},
        {"pcie": "width"},
    ),
    Case(
        "a low PCIe generation under load",
        HEALTHY | {"pcie_generation": after(5, 3, 5), "pcie_generation_max": 5.0},
        {"pcie": "generation"},
    ),
    Case(
        "links that its siblings have",
        HEALTHY | {"nvlink_links": 18.0, "nvlink_links_up": after(0, 12, 18)},
        {"nvlink": "links_down"},
    ),
    Case(
        "NVLink errors that keep coming", HEALTHY | {"nvlink_errors": after(5, 20, 0)}, {"nvlink": "errors"}
    ),
    Case(
        "a link that did not recover",
        HEALTHY | {"nvlink_recoveries_failed": after(11, 1, 0)},
        {"nvlink": "recovery_failed"},
    ),
    Case(
        "a fabric with an unhealthy route",
        HEALTHY | {"fabric_health": after(5, 0x1A, 0x2A)},
        {"nvlink": "fabric"},
    ),
    Case(
        "a port that went down",
        HEALTHY
        | {"ib_ports_active": after(5, 7, 8, gpu=None), "ib_ports_inactive": after(5, 1, 0, gpu=None)},
        {"infiniband": "port_down"},
        8,
    ),
    Case(
        "a port that fell behind the others",
        HEALTHY
        | {"ib_ports_active": 8.0, "ib_ports_inactive": 0.0, "ib_ports_slow": after(5, 1, 0, gpu=None)},
        {"infiniband": "slow_port"},
        8,
    ),
    Case(
        "InfiniBand errors that keep coming",
        HEALTHY | {"ib_link_errors": after(5, 50, 0, gpu=None)},
        {"infiniband": "errors"},
        8,
    ),
    Case(
        "counters that say 0 while the GPU works",
        HEALTHY | dict.fromkeys(("sm_active_ratio", "tensor_active_ratio", "dram_active_ratio"), 0.0),
        {"silent_zeros": "counters_silent"},
        8,
    ),
    Case(
        "a driver that hangs",
        HEALTHY | {"gpu_state": after(6, 2, 0, each_s=1)},
        {"driver_hung": "hung"},
        1,
        360,
    ),
    Case(
        "an XID 79 whose GPU is lost is one finding",
        HEALTHY | {"last_xid": sticky(6, 79), "gpu_state": after(6, 1, 0, each_s=1)},
        {"gpu_lost": "lost"},
        1,
        360,
    ),
]

MUST_NOT_FIRE = [
    Case(
        "banks remapped with spares to go",
        HEALTHY | {"bank_remaps_active": after(6, 3, 0), "bank_groups_no_spares": 0.0},
        {},
    ),
    Case("an XID that is there from the beginning may be old", HEALTHY | {"last_xid": 79.0}, {}),
    Case("echoes and trends are not told", HEALTHY | {"last_xid": sticky(6, 45)}, {}),
    Case("corrected errors, however many", HEALTHY | {"ecc_corrected_volatile": after(5, 1e6, 0)}, {}),
    Case("an idle GPU lowers its PCIe generation", IDLE | SLOW_LINK, {}),
    Case("a GPU lowers its PCIe generation in every pause", BASE | {"power_w": 500.0} | RESTING_LINK, {}),
    Case("links that nobody on the node uses", HEALTHY | {"nvlink_links": 12.0, "nvlink_links_up": 4.0}, {}),
    Case("a handful of NVLink errors", HEALTHY | {"nvlink_errors": after(11.6, 3, 0)}, {}),
    Case("ports that never had a cable", HEALTHY | {"ib_ports_active": 4.0, "ib_ports_inactive": 4.0}, {}),
    Case(
        "a slower card for storage",
        HEALTHY | {"ib_ports_active": 9.0, "ib_ports_inactive": 0.0, "ib_ports_slow": 1.0},
        {},
    ),
    Case(
        "SM activity 0 with GPU_UTIL 0 is idle, not silent",
        HEALTHY | dict.fromkeys(("gpu_util_ratio", "sm_active_ratio", "tensor_active_ratio"), 0.0),
        {},
    ),
    Case("a driver that hangs for 5 s", HEALTHY | {"gpu_state": after(11.92, 2, 0, each_s=1)}, {}),
]  # fmt: skip


@pytest.mark.parametrize("case", MUST_FIRE + MUST_NOT_FIRE, ids=lambda case: case.title)
def test_what_is_told_of_faults(case: Case) -> None:
    result = replay(recording(case.columns, minutes=MINUTES))
    findings = told(result)
    assert {finding.kind: finding.cause for finding in findings} == case.told
    assert all(len(finding.gpus) == case.gpus and finding.evidence and finding.advice for finding in findings)
    assert result.gpus[0].states["failed"] == pytest.approx(case.failed_s, abs=2)
    assert sum(result.gpus[0].states.values()) == pytest.approx(MINUTES * 60)


def test_silent_counters_are_graded_by_utilization_and_are_not_idle() -> None:
    zeros = dict.fromkeys(("sm_active_ratio", "tensor_active_ratio", "dram_active_ratio"), 0.0)
    result = replay(recording(HEALTHY | zeros, minutes=10))
    assert result.account is not None
    assert result.account.grade == "util"
    assert result.account.sm_active_ratio is None
    assert result.gpus[0].states["productive"] == pytest.approx(600)


def test_every_xid_row_has_its_words_and_its_source() -> None:
    assert len(_known()) > 60
    assert all(one.name and one.action and one.source for one in _known().values())
    assert (xid(79).class_, xid(31).class_, xid(108).class_) == ("reboot", "application", "alert")
    assert (xid(4711).class_, xid(4711).code) == ("unknown", 4711)
    assert [recovery_action(value) is None for value in (float("nan"), 0.0, 1.0)] == [True, True, False]


class Fleet:
    """Some GPUs that work, stepped second by second, to which things happen."""

    def __init__(self, gpus: int = 4, job: str = "", nodes: int = 1) -> None:
        self.engine = Engine(1.0)
        self.gpus = [
            self.engine.add(GpuRef(f"n{number % nodes}", f"GPU-{number}", number, H100))
            for number in range(gpus)
        ]
        for gpu in self.gpus:
            self.engine.own(gpu, Owner(allocated=True, job=job))
        self.now_ns = START_NS
        self.told: list[Finding] = []
        self.ended: list[Finding] = []
        self.values = {
            "gpu_util_ratio": 0.9,
            "sm_active_ratio": 0.8,
            "power_w": 600.0,
            "memory_used_bytes": 3e10,
        }

    def live(self, seconds: int, *events: Happened, **values: float) -> None:
        """`seconds` more; the events come with the first of them."""
        for number in range(seconds):
            self.now_ns += SECOND_NS
            sampled = np.zeros(self.engine.inventory.capacity, dtype=np.bool_)
            sampled[self.gpus] = True
            columns = {
                name: np.where(sampled, value, np.nan) for name, value in (self.values | values).items()
            }
            step = Step(self.now_ns, SECOND_NS, columns, sampled, events if number == 0 else ())
            for change in self.engine.step(step):
                {"told": self.told, "ended": self.ended}.get(change.what, []).append(change.finding)

    def xid(self, code: int, *gpus: int, at_s: float = 0.5) -> list[Happened]:
        return [Happened(gpu, self.now_ns + int(at_s * 1e9), "xid", code) for gpu in gpus]

    def state(self, gpu: int = 0) -> str:
        return self.engine.ledger.now(gpu)[0]


def test_an_xid_of_the_application_on_all_gpus_of_a_job_is_one_finding_about_the_job() -> None:
    fleet = Fleet(gpus=8, job="4711", nodes=2)
    fleet.live(60)
    fleet.live(3, *fleet.xid(31, *range(8)))
    (finding,) = fleet.told
    assert (finding.kind, finding.subject_kind, finding.subject) == ("xid_application", "job", "4711")
    assert (len(finding.gpus), fleet.state()) == (8, "productive")


def test_a_fatal_xid_is_told_within_five_seconds_with_the_commands() -> None:
    fleet = Fleet()
    fleet.live(60)
    fleet.live(5, *fleet.xid(119, 2))
    (finding,) = fleet.told
    assert (finding.kind, finding.cause, finding.severity) == ("xid", "reset", "critical")
    assert "State=DRAIN" in finding.advice
    assert "nvidia-smi --gpu-reset -i 2" in finding.advice
    assert finding.evidence[0].text == "XID 119 (GSP RPC timeout): once"


def test_lines_of_one_fault_within_ten_seconds_are_one_and_later_ones_are_counted() -> None:
    fleet = Fleet()
    for at_s in (0.1, 0.2, 3.0):
        fleet.live(4, *fleet.xid(74, 1, at_s=at_s))
    assert [finding.evidence[0].text for finding in fleet.told] == ["XID 74 (NVLink error): once"]
    fleet.live(30)
    fleet.live(20, *fleet.xid(74, 1))
    (now,) = fleet.engine.findings()
    assert now.evidence[0].text == "XID 74 (NVLink error): 2 times"


def test_the_same_event_from_a_log_that_is_gone_through_again_is_one() -> None:
    fleet = Fleet()
    events = fleet.xid(119, 0)
    fleet.live(10, *events)
    fleet.live(60, Happened(0, fleet.now_ns, REBOOTED))
    fleet.live(60, *events)
    assert (len(fleet.told), len(fleet.ended), fleet.state()) == (1, 1, "productive")


@pytest.mark.parametrize("kind", [REBOOTED, RESET])
def test_a_reset_or_a_reboot_ends_a_fatal_xid(kind: str) -> None:
    fleet = Fleet()
    fleet.live(30, *fleet.xid(95, 0))
    assert fleet.state() == "failed"
    fleet.live(2, Happened(0, fleet.now_ns, kind))
    assert ([finding.kind for finding in fleet.ended], fleet.state()) == (["xid"], "productive")


def test_the_drivers_own_word_outweighs_the_table() -> None:
    fleet = Fleet()
    fleet.live(28, *fleet.xid(95, 0), recovery_action=0.0)
    assert fleet.state() == "failed"  # that answer may be from before
    fleet.live(5, recovery_action=0.0)
    assert fleet.state() == "productive"
    other = Fleet()
    other.live(120, *other.xid(46, 0), recovery_action=2.0)
    (now,) = [finding for finding in other.engine.findings() if finding.kind == "xid"]
    assert "the driver itself asks for a reboot of the node" in [one.text for one in now.evidence]
    assert other.state() == "failed"


def test_what_the_driver_asks_for_after_a_fatal_xid_stays_part_of_it() -> None:
    fleet = Fleet(gpus=1)
    fleet.live(3, *fleet.xid(95, 0), recovery_action=1.0)
    fleet.live(700, recovery_action=1.0)
    assert [finding.kind for finding in fleet.told] == ["xid"]
    fleet.live(5, recovery_action=0.0)
    fleet.live(5, recovery_action=2.0)
    assert [(finding.kind, finding.cause) for finding in fleet.told[1:]] == [
        ("xid_warning", "recovery_action")
    ]


@pytest.mark.parametrize(
    ("period_s", "samples", "hung"), [(1, 10, 0), (1, 11, 8), (5, 2, 0), (5, 3, 8), (15, 1, 0), (15, 2, 8)]
)
def test_a_driver_hangs_when_samples_ten_seconds_apart_say_so(period_s: int, samples: int, hung: int) -> None:
    def waits(instants: int, gpus: int) -> NDArray[np.float64]:
        state = np.zeros((instants, gpus))
        state[20 : 20 + samples] = 2.0
        return state

    result = replay(recording(HEALTHY | {"gpu_state": waits}, minutes=8, period_s=float(period_s)))
    assert sum(len(one.gpus) for one in told(result) if one.kind == "driver_hung") == hung


def test_work_of_the_next_job_says_that_a_gpu_was_repaired() -> None:
    fleet = Fleet(job="1")
    fleet.live(30, *fleet.xid(62, 0))
    fleet.live(120)
    assert fleet.state() == "failed"  # a hung GPU may show full utilization for its own job
    fleet.engine.own(0, Owner(allocated=True, job="2"))
    fleet.live(70)
    assert fleet.state() == "productive"


def push(
    here: Site,
    seq: int,
    first_s: int,
    node: str = "n1",
    *events: Event,
    ahead_s: float = 0.0,
    boot: str = "b.1",
) -> None:
    values = {"gpu_util_ratio": 0.9, "power_w": 600.0, "memory_used_bytes": 3e10}
    item = batch(seq, first_s, 5, values, node=node, gpus=(f"GPU-{node}",), boot=boot)
    here.clock.at_s = START_S + first_s + 5
    assert here.push(replace(item, events=events), clock_s=here.clock.at_s + ahead_s)[0] == 200


def findings(here: Site) -> dict[str, tuple[str, str]]:
    found = [one for state in ("open", "resolved") for one in here.get("incidents", state=state)]
    return {one["finding"]["kind"]: (one["finding"]["subject"], one["state"]) for one in found}


def test_an_event_of_an_agent_becomes_an_incident_and_a_reboot_ends_it(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        for first_s in range(0, 60, 5):
            event = Event((START_S + 31) * 10**9, "GPU-n1", "xid", 119)
            push(here, first_s, first_s, "n1", *([event] if first_s == 30 else []))
            here.settle(first_s + 8)
        assert findings(here) == {"xid": ("n1", "open")}
        assert here.get("gpus")[0]["state"] == "failed"
        push(here, 60, 60, boot="b2.1")
        push(here, 65, 65, boot="b2.1")
        here.settle(75)
        assert findings(here) == {"xid": ("n1", "resolved")}
        account = here.get("fleet")["account"]["seconds"]
        assert account["failed"] == pytest.approx(29, abs=2)


def test_an_event_that_comes_late_is_told_with_the_next_step(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        for first_s in range(0, 60, 5):
            push(here, first_s, first_s, "n1")
            here.settle(first_s + 8)
        push(here, 60, 60, "n1", Event((START_S + 20) * 10**9, "GPU-n1", "xid", 119))
        push(here, 65, 65, "n1")
        here.settle(75)
        (incident,) = here.get("incidents")
        assert incident["finding"]["since_ns"] == (START_S + 20) * 10**9


def test_a_node_that_stops_pushing_is_told_and_one_that_all_share_is_not(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        for first_s in range(0, 200, 5):
            push(here, first_s, first_s, "n1")
            if first_s < 50:
                push(here, first_s, first_s, "n2")
            here.settle(first_s + 8)
        assert findings(here) == {"stale_agent": ("n2", "open")}
        here.settle(500)
        assert findings(here) == {"stale_agent": ("n2", "open")}


def test_a_node_that_is_asked_rarely_is_stale_after_three_and_a_half_of_its_periods() -> None:
    fleet = Fleet(nodes=2)
    about = fleet.engine.inventory.a
    rare = about["node"][:4] == 0
    about["period_s"][:4] = np.where(rare, 60.0, 1.0)
    for _ in range(3):
        about["heard_ns"][:4] = fleet.now_ns
        fleet.live(60)
    about["heard_ns"][:4] = np.where(rare, fleet.now_ns, fleet.now_ns + 10**12)
    fleet.live(205)
    assert fleet.told == []
    fleet.live(10)
    assert [(finding.kind, finding.subject) for finding in fleet.told] == [("stale_agent", "n0")]


def test_a_clock_that_is_off_is_told_by_node(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        for first_s in range(0, 60, 5):
            push(here, first_s, first_s, "n1")
            push(here, first_s, first_s, "n2", ahead_s=12.0)
            here.settle(first_s + 8)
        assert findings(here) == {"clock_skew": ("n2", "open")}
        assert "12 s ahead" in here.get("incidents")[0]["finding"]["title"]
