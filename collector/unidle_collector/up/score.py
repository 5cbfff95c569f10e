"""Was everything found that was injected, and nothing else: a pure comparison.

A fault counts once the product owes a finding: its detector's delay after the fault became evident, and a
margin for batches on their way, were over while it lasted and before the run ended. A finding belongs to a
fault of its kind with which it shares a GPU and a time; one that belongs to none is false.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from unidle_collector.model import Finding

SECOND_NS = 1_000_000_000
OWED_S: Mapping[str, tuple[int, int]] = {
    "idle": (1800, 180),
    "idle.interactive": (3600, 180),
    "starvation": (600, 180),
    "straggler": (600, 180),
    "pipeline_imbalance": (600, 180),
    "tcp_fallback": (600, 180),
    "checkpoint_stall": (0, 180),
    "tensor_cores_unused": (1800, 180),
    "over_provisioned": (3600, 180),
    "throttling_thermal": (10, 10),
    "throttling_power": (10, 10),
    "oom_risk": (0, 180),
    "xid": (3, 10),
    "ecc": (0, 10),
    "nvlink": (15, 10),
    "gpu_lost": (0, 10),
    "pcie": (15, 10),
    "infiniband": (15, 10),
    "infiniband.errors": (60, 60),
    "silent_zeros": (300, 60),
    "clock_skew": (30, 60),
    "stale_agent": (90, 10),
}
"""Kind, or kind.cause -> the product's promise: seconds from evidence until a person is told; and a margin
for the windows of means, and for the batch that is still on its way."""
KINDS = tuple(kind for kind in OWED_S if "." not in kind)
SLACK_S = 120
"""A finding's time is known to within this."""


@dataclass(frozen=True, slots=True)
class Injected:
    """One fault of the truth file."""

    kind: str
    cause: str
    node: str
    gpus: frozenset[str]
    job: str
    start_ns: int
    end_ns: int | None
    evident_ns: int

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Injected:
        """From a row of the truth file."""
        return cls(**{**row, "gpus": frozenset(row["gpus"])})

    @property
    def promised_s(self) -> int:
        """From the evidence on, the margin included."""
        return sum(OWED_S.get(f"{self.kind}.{self.cause}", OWED_S[self.kind]))

    @property
    def due_ns(self) -> int:
        """From here on the product owes a finding."""
        return self.evident_ns + self.promised_s * SECOND_NS

    def is_due(self, end_ns: int) -> bool:
        """Was it owed before it, or the run, ended."""
        return self.due_ns <= min(end_ns, end_ns if self.end_ns is None else self.end_ns)


@dataclass(frozen=True, slots=True)
class Detail:
    """One fault or one false finding, in the summary's `details`."""

    verdict: Literal["found", "missed", "not due", "false"]
    kind: str
    cause: str
    where: str
    text: str


@dataclass(frozen=True, slots=True)
class Score:
    """The comparison."""

    injected: dict[str, int]
    """Kind -> faults that were due."""
    missed: int
    false: int
    findings: dict[str, int]
    details: tuple[Detail, ...]

    def as_summary(self) -> dict[str, Any]:
        """Its part of the summary."""
        return {
            "faults_injected": self.injected,
            "faults_missed": self.missed,
            "false_findings": self.false,
            "findings": self.findings,
            "details": [asdict(detail) for detail in self.details],
        }


def score(faults: Iterable[Injected], findings: Iterable[Finding], end_ns: int) -> Score:
    """Compare what was injected with what people were told until `end_ns` (event time)."""
    told = [finding for finding in findings if finding.told_ns is not None]
    begun = [fault for fault in faults if fault.start_ns < end_ns]
    owed = [fault for fault in begun if fault.is_due(end_ns)]
    details = [_detail(fault, told, fault in owed) for fault in begun]
    strays = [finding for finding in told if not any(belongs(finding, fault) for fault in begun)]
    details += [_false(finding) for finding in strays]
    counts = Counter(fault.kind for fault in owed)
    return Score(
        injected={kind: counts[kind] for kind in KINDS if counts[kind]},
        missed=sum(detail.verdict == "missed" for detail in details),
        false=len(strays),
        findings=dict(sorted(Counter(finding.kind for finding in told).items())),
        details=tuple(details),
    )


def belongs(finding: Finding, fault: Injected) -> bool:
    """Is `finding` about `fault`: of its kind, with a GPU and a time in common."""
    if finding.kind != fault.kind or fault.gpus.isdisjoint(ref.gpu for ref in finding.gpus):
        return False
    slack_ns = SLACK_S * SECOND_NS
    ends_before = finding.ended_ns is not None and finding.ended_ns < fault.start_ns - slack_ns
    begins_after = fault.end_ns is not None and finding.since_ns > fault.end_ns + slack_ns
    return not ends_before and not begins_after


def _detail(fault: Injected, told: list[Finding], owed: bool) -> Detail:
    mine = [finding for finding in told if belongs(finding, fault)]
    where = f"{fault.node}, {len(fault.gpus)} GPU{'s' if len(fault.gpus) > 1 else ''}"
    where += f", job {fault.job}" if fault.job else ""
    first_ns = min((f.told_ns for f in mine if f.told_ns is not None), default=None)
    if first_ns is not None:
        # In the history a clock is read with its batch, up to a minute before the rows in it are looked at.
        after_s = max(0.0, (first_ns - fault.evident_ns) / SECOND_NS)
        return Detail("found", fault.kind, fault.cause, where, f"told {after_s:.0f} s after it was evident")
    if owed:
        words = f"not told within {fault.promised_s} s of evidence"
        return Detail("missed", fault.kind, fault.cause, where, words)
    return Detail("not due", fault.kind, fault.cause, where, "ended, or the run did, before it was due")


def _false(finding: Finding) -> Detail:
    nodes = ", ".join(finding.nodes) or finding.subject
    return Detail("false", finding.kind, finding.cause, nodes, f"{finding.title} (finding {finding.id})")
