"""Faults of hardware, links, clocks and agents, and what only looks like them.

A variant is data: what comes on top of healthy work, on some GPUs of a node or on the node itself, from
an onset on. `fault_trial.py` plays it. What a person has to be told is its truth; a variant without one is
a benign look-alike, on which all has to stay silent. Codes and ranges of the two sets are apart: a test
holds that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unidle_collector.simulator.mechanisms.variant import NONE, Range, Set

ONE: Range = (0.1, 0.13)
"""One GPU of a node of 8, as a share."""
ALL: Range = (1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Xid:
    """An XID, as an event of the driver, or by an exporter's sticky value of the last one."""

    codes: tuple[int, ...]
    """One of them, drawn."""
    lines: Range = (1.0, 1.0)
    """How often it is logged within the same second."""
    again_s: Range = NONE
    """It comes again this long after; (0, 0): never."""
    sticky: bool = False


@dataclass(frozen=True, slots=True)
class Told:
    """An event of the driver that is no XID (`unidle_agent.wire.Event.kind`)."""

    kinds: tuple[str, ...]
    each_s: Range = NONE


@dataclass(frozen=True, slots=True)
class Logged:
    """Lines of the kernel log, which the agent's own code reads: with `{pci}`, one for each affected GPU at
    its address, else one for the node."""

    lines: tuple[str, ...]
    each_s: Range = NONE


@dataclass(frozen=True, slots=True)
class Reads:
    """A field reads one of `values`, on all affected GPUs the same; of host fields: on the node."""

    field: str
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Grows:
    """A counter grows by `by` each `each_s`."""

    field: str
    by: Range
    each_s: Range


@dataclass(frozen=True, slots=True)
class Rests:
    """The driver lowers the PCIe generation while nothing runs."""


@dataclass(frozen=True, slots=True)
class Clock:
    """The node's clock is ahead by this (behind: negative)."""

    ahead_s: Range


@dataclass(frozen=True, slots=True)
class Silent:
    """The node does not push."""


@dataclass(frozen=True, slots=True)
class Zeros:
    """The profiling counters say 0."""


Effect = Xid | Told | Logged | Reads | Grows | Rests | Clock | Silent | Zeros


@dataclass(frozen=True, slots=True)
class FaultVariant:
    """One way in which a fault shows, or a look-alike."""

    name: str
    set: Set
    truths: tuple[str, ...]
    """`kind.cause` of each finding that a person must be told; none: nothing is wrong."""
    effects: tuple[Effect, ...]
    affected: Range = ONE
    """Share of the node's GPUs."""
    works: Literal["all the time", "in bursts", "in short turns", "never"] = "all the time"
    lasts_s: Range = NONE
    """(0, 0): until the end."""
    onset_s: Range = (330.0, 700.0)
    """(0, 0): it was so before anybody looked."""


ASKS_RESET = Reads("recovery_action", (float("nan"), 1.0, 4.0))
ASKS_REBOOT = Reads("recovery_action", (float("nan"), 2.0, 7.0))
"""What the driver asks for after a fatal XID; older ones have no word for it."""
OFF_THE_BUS = Reads("gpu_state", (1.0,))
HANGS = Reads("gpu_state", (2.0,))

XID_LINE = "NVRM: Xid (PCI:{pci}): "
SXID_LINE = "nvidia-nvswitch2: SXid (PCI:0000:c4:00.0): "
OTHER_SXID_LINE = "nvidia-nvswitch0: SXid (PCI:0000:c1:00.0): "

FAULT_VARIANTS = (
    FaultVariant("a GPU hangs in a context switch", "tuning", ("xid.reset",), (Xid((109, 46, 95)), ASKS_RESET)),
    FaultVariant("auxiliary power goes", "tuning", ("xid.reboot",), (Xid((54,), lines=(2, 4)), ASKS_REBOOT)),
    FaultVariant(
        "a GPU falls off the bus with its XID", "tuning", ("gpu_lost.lost",), (Xid((79,)), OFF_THE_BUS)
    ),
    FaultVariant(
        "an illegal address on every rank", "tuning", ("xid_application.application",),
        (Xid((31,), lines=(1, 9)),), affected=ALL,
    ),
    FaultVariant(
        "an NVLink error in the log", "tuning", ("xid_warning.alert",), (Xid((74,), lines=(1, 4)),)
    ),
    FaultVariant("a code that nobody lists", "tuning", ("xid_warning.unknown",), (Xid((201, 233, 310)),)),
    FaultVariant(
        "the driver asks for a reset", "tuning", ("xid_warning.recovery_action",),
        (Reads("recovery_action", (1.0, 4.0)),),
    ),
    FaultVariant(
        "a remapping fails", "tuning", ("ecc.remap_failed",), (Reads("row_remap_failed", (1.0,)),)
    ),
    FaultVariant("memory cannot be retired", "tuning", ("ecc.retirement_failed",),
                 (Told(("memory_retirement_failed",)),)),
    FaultVariant(
        "double-bit errors now and then", "tuning", ("ecc.uncorrectable",),
        (Grows("ecc_uncorrected_volatile", (1, 3), (300, 600)),),
    ),
    FaultVariant(
        "a row waits for a reset", "tuning", ("ecc.remap_pending",), (Reads("row_remap_pending", (1.0,)),)
    ),
    FaultVariant("on-chip memory fails too often", "tuning", ("ecc.sram_threshold",),
                 (Reads("sram_threshold_exceeded", (1.0,)), Grows("ecc_uncorrected_aggregate", (1, 1), (1e6, 1e6)))),
    FaultVariant("a group of banks has no spare left", "tuning", ("ecc.spares_used_up",),
                 (Reads("bank_remaps_active", (4.0, 8.0)), Reads("bank_groups_no_spares", (1.0,)))),
    FaultVariant("memory is retired", "tuning", ("ecc.retired",), (Told(("memory_retired",)),)),
    FaultVariant(
        "links of one GPU go down", "tuning", ("nvlink.links_down",), (Reads("nvlink_links_up", (12.0, 9.0)),)
    ),
    FaultVariant(
        "a link does not recover", "tuning", ("nvlink.recovery_failed",),
        (Grows("nvlink_recoveries_failed", (1, 1), (1e6, 1e6)),),
    ),
    FaultVariant(
        "degraded fabric", "tuning", ("nvlink.fabric",), (Reads("fabric_health", (0xA9,)),), affected=ALL
    ),
    FaultVariant(
        "a marginal NVLink", "tuning", ("nvlink.errors",), (Grows("nvlink_errors", (10, 60), (15, 40)),)
    ),
    FaultVariant(
        "a cable is pulled", "tuning", ("infiniband.port_down",),
        (Reads("ib_ports_active", (7.0,)), Reads("ib_ports_inactive", (1.0,))), affected=ALL,
    ),
    FaultVariant(
        "a port trains at half its rate", "tuning", ("infiniband.slow_port",),
        (Reads("ib_ports_slow", (1.0,)),), affected=ALL,
    ),
    FaultVariant(
        "symbol errors on a cable", "tuning", ("infiniband.errors",),
        (Grows("ib_link_errors", (40, 120), (10, 20)),), affected=ALL,
    ),
    FaultVariant(
        "a link of an NVSwitch fails for good", "tuning", ("nvswitch.fatal",),
        (Logged((SXID_LINE + "20034, Fatal, Link 30 LTSSM fault up",
                 SXID_LINE + "20034, Severity 1 Engine instance 30 Sub-engine instance 00")),), affected=ALL,
    ),
    FaultVariant(
        "a link of an NVSwitch keeps retrying", "tuning", ("nvswitch.repeated",),
        (Logged((SXID_LINE + "12028, Non-fatal, Link 44 egress non-posted",), each_s=(61, 100)),), affected=ALL,
        onset_s=(330, 500),
    ),
    FaultVariant(
        "a page fault in the kernel log alone, of a process named like another", "tuning",
        ("xid_application.application",),
        (Logged((XID_LINE + "31, pid=4242, name=a, 79, b, Ch 00000008, MMU Fault: ENGINE GRAPHICS",)),),
    ),
    FaultVariant("half of the lanes", "tuning", ("pcie.width",), (Reads("pcie_width", (8.0,)),)),
    FaultVariant(
        "a riser of an older generation", "tuning", ("pcie.generation",),
        (Reads("pcie_generation", (3.0, 4.0)),),
    ),
    FaultVariant(
        "another profiler on one GPU", "tuning", ("silent_zeros.counters_silent",), (Zeros(),),
    ),
    FaultVariant("a clock far ahead", "tuning", ("clock_skew.ahead",), (Clock((6, 15)),), affected=ALL),
    FaultVariant("a clock far behind", "tuning", ("clock_skew.behind",), (Clock((-15, -6)),), affected=ALL),
    FaultVariant("an agent dies", "tuning", ("stale_agent.silent",), (Silent(),), affected=ALL),
    FaultVariant("the driver hangs, no XID", "tuning", ("driver_hung.hung",), (HANGS,)),
    # Look-alikes.
    FaultVariant(
        "a corrected error now and then", "tuning", (), (Grows("ecc_corrected_volatile", (1, 2), (60, 300)),)
    ),
    FaultVariant("a bank is remapped, with spares to go", "tuning", (), (Reads("bank_remaps_active", (1.0, 2.0)),)),
    FaultVariant(
        "empty GPUs lower their PCIe generation", "tuning", (), (Rests(),), affected=ALL, works="never"
    ),
    FaultVariant(
        "a link that rests whenever its GPU does", "tuning", (), (Rests(),), affected=ALL, works="in short turns"
    ),
    FaultVariant("echoes of another XID", "tuning", (), (Xid((45, 154), lines=(1, 3)),)),
    FaultVariant("a stray NVLink error", "tuning", (), (Grows("nvlink_errors", (1, 4), (700, 900)),)),
    FaultVariant("half of the ports never had a cable", "tuning", (), (
        Reads("ib_ports_active", (4.0,)), Reads("ib_ports_inactive", (4.0,))), affected=ALL, onset_s=NONE),
    FaultVariant("a storm of lesser errors of an NVSwitch", "tuning", (),
                 (Logged((SXID_LINE + "19084, Non-fatal, Link 04",), each_s=(1, 4)),), affected=ALL, lasts_s=(20, 50)),
    FaultVariant("torn lines of the kernel log", "tuning", (), (Logged(
        (XID_LINE + "7?, pid=12", "NVRM: Xid (PCI:0000:1b", SXID_LINE + "2003, ????", SXID_LINE + "Fatal, Link"),
        each_s=(20, 60)),)),
    FaultVariant("a call that takes its time", "tuning", (), (HANGS,), lasts_s=(1, 5)),
    FaultVariant("a clock a second off", "tuning", (), (Clock((0.2, 2.0)),), affected=ALL),
    FaultVariant("an agent is restarted", "tuning", (), (Silent(),), affected=ALL, lasts_s=(5, 25)),
    # Held out.
    FaultVariant(
        "the GSP stops answering, then all calls hang", "held_out", ("xid.reset", "driver_hung.hung"),
        (Xid((119, 120), lines=(3, 12)), HANGS),
    ),
    FaultVariant(
        "memory that cannot be contained", "held_out", ("xid.reset",), (Xid((48, 62, 64, 140, 158)), ASKS_RESET),
    ),
    FaultVariant("off the bus, but the driver does not notice", "held_out", ("xid.reboot",), (Xid((79,)), ASKS_REBOOT)),
    FaultVariant("a fatal XID known from an exporter alone", "held_out", ("xid.reset",),
                 (Xid((110, 136, 143, 155), sticky=True), ASKS_RESET)),
    FaultVariant(
        "two GPUs off the bus, one XID each", "held_out", ("gpu_lost.lost",), (Xid((79,)), OFF_THE_BUS),
        affected=(0.25, 0.25),
    ),
    FaultVariant(
        "a user's bug on one GPU, job after job", "held_out", ("xid_application.application",),
        (Xid((13, 43), lines=(10, 130), again_s=(120, 300)),),
    ),
    FaultVariant(
        "contained poison", "held_out", ("xid_application.application",), (Xid((94,)),)
    ),
    FaultVariant(
        "NVLink5 sub-codes and codes on which sources disagree", "held_out", ("xid_warning.alert",),
        (Xid((145, 149, 160, 108)),),
    ),
    FaultVariant("a code from a newer driver", "held_out", ("xid_warning.unknown",), (Xid((404, 999)),)),
    FaultVariant(
        "the driver asks for a reboot or a power cycle", "held_out", ("xid_warning.recovery_action",),
        (Reads("recovery_action", (2.0, 7.0)),), affected=(0.25, 0.25),
    ),
    FaultVariant(
        "pending first, then failed", "held_out", ("ecc.remap_failed",),
        (Reads("row_remap_pending", (1.0,)), Reads("row_remap_failed", (1.0,))),
    ),
    FaultVariant("retirement fails on two GPUs", "held_out", ("ecc.retirement_failed",),
                 (Told(("memory_retirement_failed",), each_s=(200, 400)),), affected=(0.25, 0.25)),
    FaultVariant(
        "rows remapped for uncorrectable errors", "held_out", ("ecc.uncorrectable",),
        (Grows("rows_remapped_uncorrectable", (1, 1), (200, 280)),
         Grows("ecc_uncorrected_aggregate", (4, 20), (200, 280))),
    ),
    FaultVariant(
        "rows wait on half of the node", "held_out", ("ecc.remap_pending",),
        (Reads("row_remap_pending", (1.0,)),), affected=(0.5, 0.5),
    ),
    FaultVariant("the SRAM flag alone, on two GPUs", "held_out", ("ecc.sram_threshold",),
                 (Reads("sram_threshold_exceeded", (1.0,)),), affected=(0.25, 0.25)),
    FaultVariant("no spares left on a GPU since before anybody looked", "held_out", ("ecc.spares_used_up",),
                 (Reads("bank_groups_no_spares", (2.0, 5.0)),), onset_s=NONE),
    FaultVariant("memory is retired again and again", "held_out", ("ecc.retired",),
                 (Told(("memory_retired",), each_s=(100, 300)),)),
    FaultVariant(
        "one link of two GPUs is down", "held_out", ("nvlink.links_down",),
        (Reads("nvlink_links_up", (17.0,)),), affected=(0.25, 0.25),
    ),
    FaultVariant(
        "recoveries fail again and again", "held_out", ("nvlink.recovery_failed",),
        (Grows("nvlink_recoveries_failed", (2, 6), (100, 400)),
         Grows("nvlink_recoveries", (2, 9), (100, 400))),
    ),
    FaultVariant(
        "an unhealthy route, or accesses that time out", "held_out", ("nvlink.fabric",),
        (Reads("fabric_health", (0x9A, 0x6A)),), affected=(0.5, 1.0),
    ),
    FaultVariant(
        "NVLink errors, thousands a minute", "held_out", ("nvlink.errors",),
        (Grows("nvlink_errors", (300, 4000), (1, 12)),),
    ),
    FaultVariant(
        "a switch port dies, three cables", "held_out", ("infiniband.port_down",),
        (Reads("ib_ports_active", (5.0,)), Reads("ib_ports_inactive", (3.0,))), affected=ALL,
    ),
    FaultVariant(
        "two ports of an old firmware", "held_out", ("infiniband.slow_port",),
        (Reads("ib_ports_slow", (2.0, 3.0)),), affected=ALL,
    ),
    FaultVariant(
        "a storm of link errors", "held_out", ("infiniband.errors",),
        (Grows("ib_link_errors", (1000, 90_000), (1, 8)),), affected=ALL,
    ),
    FaultVariant(
        "two NVSwitches fail, the lines out of order", "held_out", ("nvswitch.fatal",),
        (Logged((OTHER_SXID_LINE + "11001, Severity 1 Engine instance 04",
                 SXID_LINE + "23001, Fatal, Link 07 ingress", OTHER_SXID_LINE + "11001, Fatal, ingress command"),
                each_s=(100, 300)),), affected=ALL, works="in bursts",
    ),
    FaultVariant(
        "two links of an NVSwitch that report in turns of two minutes", "held_out", ("nvswitch.repeated",),
        (Logged((OTHER_SXID_LINE + "28006, Non-fatal, Link 12 MC TS", OTHER_SXID_LINE + "20009, Non-fatal, Link 13"),
                each_s=(105, 130)),), affected=ALL, onset_s=(330, 500),
    ),
    FaultVariant(
        "a fatal XID in the kernel log alone, line after line, without a process", "held_out", ("xid.reset",),
        (Logged((XID_LINE + "62, pid='<unknown>', name=<unknown>, 0000(00002a40) 00000000 00000000",
                 XID_LINE + "62, 2a40(0000) 00000000"), each_s=(1, 12)), ASKS_RESET),
    ),
    FaultVariant(
        "a quarter of the lanes or one, on empty GPUs, too", "held_out", ("pcie.width",),
        (Reads("pcie_width", (4.0, 1.0)), Rests()), works="never",
    ),
    FaultVariant(
        "a retimer falls back to the first generation", "held_out", ("pcie.generation",),
        (Reads("pcie_generation", (1.0, 2.0)),), affected=(0.25, 0.5),
    ),
    FaultVariant(
        "a hypervisor hides the counters of all GPUs", "held_out", ("silent_zeros.counters_silent",),
        (Zeros(),), affected=ALL,
    ),
    FaultVariant(
        "a clock that lost its NTP server", "held_out", ("clock_skew.ahead",), (Clock((16, 45)),),
        affected=ALL,
    ),
    FaultVariant(
        "a clock that a hypervisor held", "held_out", ("clock_skew.behind",), (Clock((-45, -16)),),
        affected=ALL,
    ),
    FaultVariant(
        "a machine loses power", "held_out", ("stale_agent.silent",), (Silent(),), affected=ALL,
        works="in bursts",
    ),
    FaultVariant("the driver of three GPUs hangs", "held_out", ("driver_hung.hung",), (HANGS,),
                 affected=(0.375, 0.375)),
    # Look-alikes.
    FaultVariant("a single corrected error", "held_out", (), (Grows("ecc_corrected_volatile", (1, 1), (1e6, 1e6)),)),
    FaultVariant(
        "a storm of corrected errors, with its trend XID", "held_out", (),
        (Grows("ecc_corrected_volatile", (500, 90_000), (1, 20)), Xid((92,)),
         Told(("ecc_storm",))),
    ),
    FaultVariant("banks remapped long ago on half of the node", "held_out", (),
                 (Reads("bank_remaps_active", (3.0, 6.0)),), affected=(0.5, 0.5), onset_s=NONE),
    FaultVariant(
        "GPUs lower their PCIe generation between bursts", "held_out", (), (Rests(),), affected=ALL,
        works="in bursts",
    ),
    FaultVariant(
        "a row is remapped for correctable errors", "held_out", (),
        (Xid((63,)), Grows("rows_remapped_correctable", (1, 1), (200, 500))),
    ),
    FaultVariant("an old XID that sticks", "held_out", (), (Reads("last_xid", (79.0, 48.0)),), onset_s=NONE),
    FaultVariant(
        "links that train again once", "held_out", (),
        (Grows("nvlink_recoveries", (1, 2), (1e6, 1e6)), Grows("nvlink_errors", (5, 9), (1e6, 1e6))),
    ),
    FaultVariant(
        "a slower card for storage beside the eight", "held_out", (),
        (Reads("ib_ports_active", (9.0,)), Reads("ib_ports_slow", (1.0,))), affected=ALL, onset_s=NONE,
    ),
    FaultVariant(
        "lesser errors of an NVSwitch, a different link each", "held_out", (),
        (Logged(tuple(SXID_LINE + f"12028, Non-fatal, Link {link:02}" for link in range(3, 33, 3)), each_s=(300, 500)),),
        affected=ALL,
    ),
    FaultVariant(
        "words of the kernel log that quote another XID", "held_out", (), (Logged((
            XID_LINE + "154, pid=77, name=x, GPU recovery action changed after NVRM: Xid (PCI:{pci}): 79, off",
            XID_LINE + "45, pid=77, name=y, Xid 48"), each_s=(40, 90)),),
    ),
    FaultVariant("a call that nearly times out", "held_out", (), (HANGS,), lasts_s=(6, 8)),
    FaultVariant("a clock that drifts", "held_out", (), (Clock((2.5, 4.5)),), affected=ALL),
    FaultVariant("a node boots its agent anew", "held_out", (), (Silent(),), affected=ALL, lasts_s=(40, 75)),
)  # fmt: skip
