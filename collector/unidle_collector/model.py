"""What the collector says: the types of its API, and of everything that reads it.

Times are integer nanoseconds since the epoch. Unknown is None. Money is EUR, energy is measured at
the GPU board (kWh), a GPU-hour of a MIG instance counts by its share of the GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

State = Literal["failed", "unknown", "unallocated", "idle", "throttled", "starved", "productive"]
STATES: tuple[State, ...] = (
    "failed",
    "unknown",
    "unallocated",
    "idle",
    "throttled",
    "starved",
    "productive",
)
"""Every instant of every GPU has exactly one of these; where several apply, the first counts."""

Severity = Literal["critical", "warning", "info"]


@dataclass(frozen=True, slots=True)
class Cost:
    """What something costs or wins."""

    gpu_h: float
    eur: float | None
    """None when the price of a GPU concerned is not known."""
    kwh: float | None
    """None when the power of a GPU concerned is not known."""


@dataclass(frozen=True, slots=True)
class GpuRef:
    """One GPU or MIG instance."""

    node: str
    gpu: str
    """UUID; the index as text where a recording has no UUID."""
    index: int | None = None
    model: str = ""


@dataclass(frozen=True, slots=True)
class Evidence:
    """One measured fact that a finding rests on."""

    field: str
    value: float | None
    unit: str
    threshold: float | None
    window_s: float
    text: str
    """The same as a sentence."""


@dataclass(frozen=True, slots=True)
class CauseShare:
    """A cause and how likely it is, 0-1."""

    cause: str
    probability: float


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that loses GPU time, or is about to: one cause on one subject."""

    id: str
    kind: str
    """The detector's id: `idle`, `starvation`, `throttling_thermal`, `throttling_power`, `oom_risk`, ..."""
    cause: str
    severity: Severity
    confidence: float
    subject_kind: Literal["job", "gpu", "node"]
    subject: str
    title: str
    """One sentence with the number."""
    since_ns: int
    updated_ns: int
    told_ns: int | None
    """When its finding delay was over and people were told; None while it is still developing."""
    ended_ns: int | None = None
    job: str = ""
    user: str = ""
    nodes: tuple[str, ...] = ()
    gpus: tuple[GpuRef, ...] = ()
    held_back_by: tuple[GpuRef, ...] = ()
    """GPUs that those of `gpus` wait for: a job's slow one, or its heaviest pipeline stage; most kinds have
    none."""
    runners_up: tuple[CauseShare, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    cost_so_far: Cost = Cost(0.0, None, None)
    cost_per_h: Cost = Cost(0.0, None, None)
    advice: str = ""
    """The exact change to make, or "cannot tell, because ..."."""
    confirm: str = ""
    """What would confirm it."""
    simulated: bool = False


@dataclass(frozen=True, slots=True)
class Gain:
    """What a recommendation would win within `horizon_h` hours: low, expected, high."""

    horizon_h: float
    low: Cost
    expected: Cost
    high: Cost


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One thing to do. Nothing is ever executed: `command` is for a person to read and run."""

    id: str
    kind: str
    lever: Literal["reclaim", "fix", "pack", "place"]
    title: str
    subject: str
    finding_ids: tuple[str, ...]
    gain: Gain
    binding_constraint: str
    risk: str
    assumptions: tuple[str, ...]
    command: str
    undo: str
    notice: str
    """How the owner is told, how long they have, and how they say "keep"."""
    measure: str
    """How what was really won is measured afterwards."""
    created_ns: int
    job: str = ""
    user: str = ""
    nodes: tuple[str, ...] = ()
    gpus: tuple[GpuRef, ...] = ()
    simulated: bool = False


@dataclass(frozen=True, slots=True)
class Incident:
    """A finding that people are told about, from open to resolved."""

    id: str
    state: Literal["open", "resolved"]
    revision: int
    opened_ns: int
    resolved_ns: int | None
    finding: Finding
    recommendations: tuple[Recommendation, ...] = ()


@dataclass(frozen=True, slots=True)
class IncidentEvent:
    """One change of an incident, in the order of `seq`; readers keep the last seq they have handled."""

    seq: int
    time_ns: int
    incident: Incident


@dataclass(frozen=True, slots=True)
class FlightRecording:
    """What a node's flight recorder held of one GPU: every look of two minutes, oldest first."""

    node: str
    gpu: str
    """UUID of the physical GPU."""
    reason: str
    """`xid 79`, `gpu_lost`, `driver_hung`, ..., or `asked`: the collector asked for it."""
    request: str
    """What it answers; empty where the node sent it by itself."""
    taken_ns: int
    times_ns: tuple[int, ...]
    """Empty where the recorder held nothing of this GPU."""
    columns: dict[str, tuple[float | None, ...]]
    """Field -> one value per look in base units; None where the look did not ask for it."""
    simulated: bool


@dataclass(frozen=True, slots=True)
class Account:
    """Where the time of a set of GPUs went within a window (docs/accounting.md)."""

    key: str
    """What the set is: `fleet`, a node, a GPU, a job, a user pseudonym or a model."""
    start_ns: int
    end_ns: int
    gpus: int
    seconds: dict[str, float]
    """State -> GPU-seconds; the states add up to all the time."""
    causes: dict[str, float] = field(default_factory=dict)
    """`state.cause` -> lost GPU-seconds (loss weight applied)."""
    cause_costs: dict[str, Cost] = field(default_factory=dict)
    """`state.cause` -> what it cost; a cause that is not here has a cost that nobody worked out."""
    lost: Cost = Cost(0.0, None, None)
    """Lost to jobs: idle, throttled, starved, failed; without the capacity loss of `unallocated`."""
    unallocated: Cost = Cost(0.0, None, None)
    allocated_ratio: float | None = None
    active_ratio: float | None = None
    effective_ratio: float | None = None
    gpu_util_ratio: float | None = None
    """Mean of gpu_util_ratio, for comparison only."""
    sm_active_ratio: float | None = None
    grade: Literal["sm", "util", "mixed", "none"] = "none"
    """Which activity the losses of starved time rest on."""


@dataclass(frozen=True, slots=True)
class GpuNow:
    """One GPU as it is now."""

    node: str
    gpu: str
    index: int | None
    model: str
    state: State
    cause: str
    inferred: bool
    """True where allocation was concluded from use."""
    sampled_ns: int | None
    job: str
    user: str
    values: dict[str, float | None]
    """Field -> latest value in base units."""
    simulated: bool
    owner_source: str = ""
    """Who says whose it is: `cgroup`, `slurm`, `podresources+kubernetes`, ..."""
    owner_confidence: str = ""
    owner_note: str = ""
    """What is peculiar: `conflict`, `orphan`, `not allocated`, `no process`, `shared`, `stale`, ..."""
    used_by: str = ""
    """Jobs whose processes are on it where they are not `job`."""


@dataclass(frozen=True, slots=True)
class NodeNow:
    """One node as it is now, with what the collector received from it."""

    node: str
    gpus: int
    last_sample_ns: int | None
    last_push_ns: int | None
    """Receiver's clock."""
    clock_skew_s: float | None
    rows: int
    duplicates: int
    late_rows: int
    counter_resets: int
    values: dict[str, float | None]
    simulated: bool


@dataclass(frozen=True, slots=True)
class TargetNow:
    """One dcgm-exporter that the collector scrapes, as its last scrape found it."""

    url: str
    node: str
    """As discovery names it; empty where the page does."""
    state: Literal["up", "down", "waiting"]
    """`waiting` until the first scrape."""
    problem: str = ""
    gpus: int = 0
    scraped_ns: int | None = None
    duration_s: float | None = None


@dataclass(frozen=True, slots=True)
class Fleet:
    """The fleet at a glance."""

    site: str
    time_ns: int | None
    """Event time up to which everything was looked at."""
    simulated: bool
    """Is any GPU of it simulated."""
    nodes: int
    gpus: int
    jobs: int
    states: dict[str, int]
    """State -> GPUs now."""
    account: Account
    """The window asked for."""
    open_incidents: int
    recommendations: int
    sites: tuple[str, ...] = ()
    """Sites of a federation; empty where this is one site's own collector."""
    simulated_sites: tuple[str, ...] = ()
    """Those of them that have anything simulated."""
    gaps: tuple[str, ...] = ()
    """What the sums do not hold, of a federation or of a site in shards, and why, in words."""
    simulated_gpus: int = 0
    """How many of `gpus` are simulated."""


@dataclass(frozen=True, slots=True)
class SchedulerNow:
    """How well the scheduler's word is known."""

    scheduler: str
    cluster: str = ""
    version: str = ""
    taken_ns: int | None = None
    """When the last good snapshot was taken; None where there was none yet."""
    age_s: float | None = None
    stale: bool = True
    """Older than three polls: it contradicts nobody any more."""
    failures: int = 0
    """Looks in a row that failed."""
    error: str = ""
    """Why the last look failed; empty when it did not."""
    read_s: float | None = None
    """How long the last good look took."""
    jobs: int = 0
    waiting: int = 0
    """Jobs, array tasks and pods that wait."""
    nodes: int = 0
    problems: tuple[str, ...] = ()
    """What could not be read of the last good snapshot."""


@dataclass(frozen=True, slots=True)
class JobNow:
    """One job that holds GPUs now, by the scheduler's word, the agents' or both."""

    job: str
    array: str
    """`13_1` where it is a task of an array."""
    user: str
    team: str
    partition: str
    state: str
    """The scheduler's word; `running` where only agents know it."""
    granted_gpus: int | None
    """What the scheduler gave it; None where nobody says."""
    requested_gpus: int | None
    gpus: tuple[GpuRef, ...]
    """Its GPUs that send samples."""
    nodes: tuple[str, ...]
    started_ns: int | None
    time_limit_s: float | None
    """None where there is none, or nobody says."""
    interactive: bool | None
    source: str
    """Who says so: `slurm`, `cgroup+slurm`, `podresources`, ..."""
    confidence: str
    """The lowest of its GPUs'."""
    notes: tuple[str, ...]
    """What is peculiar on any of its GPUs: `conflict`, `shared`, `no process`, `stale`, ..."""
    simulated: bool


@dataclass(frozen=True, slots=True)
class Waiting:
    """One job that waits for GPUs, or the tasks of an array that wait together."""

    job: str
    array: str
    tasks: int
    user: str
    team: str
    partition: str
    requested_gpus: int | None
    """Of each task; None where that cannot be told."""
    requested_cpus: int | None
    requested_memory_bytes: int | None
    features: str
    submitted_ns: int | None
    eligible_ns: int | None
    time_limit_s: float | None
    reason: str
    """Why it waits, in the scheduler's word."""


@dataclass(frozen=True, slots=True)
class Queue:
    """What waits for GPUs; without a scheduler nobody knows, which is None."""

    scheduler: SchedulerNow | None
    waiting: tuple[Waiting, ...] | None
    gpus: int | None
    """Sum of what is asked for; None where one of them cannot be told."""


@dataclass(frozen=True, slots=True)
class Health:
    """Can this collector be trusted now."""

    ok: bool
    problems: tuple[str, ...]
    version: str
    simulated: bool
    uptime_s: float
    event_time_ns: int | None
    lag_s: float | None
    counters: dict[str, float]
    scheduler: SchedulerNow | None = None
    """None where none is configured."""


@dataclass(frozen=True, slots=True)
class Series:
    """One field of one GPU (or host) over time; `values` holds None where nothing is known."""

    node: str
    gpu: str
    field: str
    unit: str
    step_s: float
    times_ns: tuple[int, ...]
    """Begin of each step."""
    values: tuple[float | None, ...]
    """The mean of a gauge, the last value of a state, the increase per second of a counter."""
    simulated: bool
    low: tuple[float | None, ...] = ()
    """The least of each step; of others than gauges the same as `values`."""
    high: tuple[float | None, ...] = ()
    """The most of each step."""


@dataclass(frozen=True, slots=True)
class FleetSeries:
    """One field of all GPUs together over time, from the roll-ups: real and simulated GPUs never mixed."""

    field: str
    unit: str
    """Of a counter, that of its increase per second and GPU."""
    step_s: float
    """Asked for; of a minute at least."""
    times_ns: tuple[int, ...]
    """Begin of each step; the newest minutes are not in the roll-ups yet."""
    values: tuple[float | None, ...]
    """The mean over GPUs and time."""
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]
    rows: tuple[float, ...]
    """Rows that each step rests on; of a counter, the seconds."""
    simulated: bool
    """Of the simulated GPUs, or of the real ones."""


@dataclass(frozen=True, slots=True)
class JobQuantile:
    """A quantile of one gauge over all that is kept of a job's life; exact to the width of its bin."""

    job: str
    field: str
    unit: str
    share: float
    """0.95: the value that 95 % of the samples do not exceed."""
    low: float
    """It is at least this ..."""
    high: float
    """... and at most this."""
    samples: int
    """Rows of all GPUs of the job in which the field was known."""
