"""Today: how much is lost, where it goes, and what to do first."""

from __future__ import annotations

from dataclasses import dataclass

from unidle_collector.model import Account, Cost, Fleet, Incident, Recommendation, State
from unidle_dashboard.view import words
from unidle_dashboard.view.palette import LOST, cause_name, cause_state

WINDOWS_S: dict[str, int] = {"1 h": 3_600, "24 h": 86_400, "7 d": 604_800}

GRADES: dict[str, str] = {
    "sm": "useful activity by SM activity",
    "util": "useful activity by GPU_UTIL, for want of SM activity: an upper bound",
    "mixed": "useful activity by SM activity where known, else by GPU_UTIL",
    "none": "no activity known",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The state of the fleet in plain words."""

    headline: str
    details: tuple[str, ...]
    losing: bool


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the funnel: a ratio of all known GPU time, and what the step before it lost."""

    name: str
    meaning: str
    ratio: float | None
    drop: float | None


@dataclass(frozen=True, slots=True)
class CauseRow:
    """What one cause lost in the window."""

    key: str
    name: str
    state: State
    cost: Cost
    estimated: bool
    """True where EUR rest on the mean price of all lost hours and kWh are not known."""
    share: float
    """Of the GPU-hours of the largest cause, 0-1."""


def verdict(fleet: Fleet, when: str = "right now") -> Verdict:
    """One sentence for who has ten seconds, from the states now and the account of the last hour."""
    if fleet.gpus == 0:
        return Verdict(
            "No GPU has reported yet.",
            ("Start an agent on a GPU node: unidle agent --push-url http://COLLECTOR:9470",),
            losing=False,
        )
    losing = sum(fleet.states.get(state, 0) for state in LOST)
    lost = fleet.account.lost
    price = f": {words.amount(lost.eur, 'EUR')}" if lost.eur is not None else ""
    if losing:
        verb = "is" if losing == 1 else "are"
        headline = f"{losing:,} of {words.many(fleet.gpus, 'GPU')} {verb} paid for and losing time {when}"
        details = [f"The last hour lost {words.amount(lost.gpu_h, 'GPU-h')} to jobs that hold GPUs{price}."]
    elif fleet.states.get("unknown", 0) >= fleet.gpus:
        headline = f"Cannot tell: no GPU is reporting {when}"
        details = []
    else:
        reporting = words.many(fleet.gpus - fleet.states.get("unknown", 0), "GPU")
        headline = f"None of {reporting} that report is losing time {when}"
        details = [f"The last hour lost {words.amount(lost.gpu_h, 'GPU-h')}{price}."]
    for state, text in (
        ("unallocated", "{} given to nobody: capacity, counted apart."),
        ("unknown", "{} not reporting: unknown, counted neither as lost nor as productive."),
    ):
        if count := fleet.states.get(state, 0):
            details.append(text.format(f"{count:,} more {'is' if count == 1 else 'are'}"))
    return Verdict(headline, tuple(details), losing > 0)


def funnel(account: Account) -> list[Step]:
    """Total > Allocated > Active > Effective of `account`; a step that is not known stays None."""
    steps = [Step("Total", "all GPU time that is known", 1.0 if account.gpus else None, None)]
    for name, meaning, ratio in (
        ("Allocated", "given to a job", account.allocated_ratio),
        ("Active", "given to a job and not idle", account.active_ratio),
        ("Effective", "useful: throttled and starved time taken off", account.effective_ratio),
    ):
        before = steps[-1].ratio
        drop = before - ratio if before is not None and ratio is not None else None
        steps.append(Step(name, meaning, ratio, drop))
    return steps


def causes(account: Account, most: int = 6) -> list[CauseRow]:
    """The causes that lost most to jobs, most GPU-hours first; unallocated time is not among them."""
    seconds = {key: lost for key, lost in account.causes.items() if cause_state(key) in LOST and lost > 0}
    largest = max(seconds.values(), default=1.0)
    rows = []
    for key, lost_s in sorted(seconds.items(), key=lambda item: (-item[1], item[0]))[:most]:
        exact = account.cause_costs.get(key)
        cost = exact or _at_mean_price(lost_s / 3600, account.lost)
        rows.append(
            CauseRow(key, cause_name(key), cause_state(key), cost, exact is None, share=lost_s / largest)
        )
    return rows


def _at_mean_price(gpu_h: float, total: Cost) -> Cost:
    """Energy differs too much between causes to be shared out; the price of a GPU-hour does not."""
    if total.eur is None or total.gpu_h <= 0:
        return Cost(gpu_h, None, None)
    return Cost(gpu_h, gpu_h * total.eur / total.gpu_h, None)


def first_actions(recommendations: list[Recommendation], most: int = 5) -> list[Recommendation]:
    """The recommendations that win most, as the API orders them."""
    return recommendations[:most]


def severities(incidents: list[Incident]) -> str:
    """How many open incidents there are of each severity: "2 critical, 5 warning"."""
    counts = dict.fromkeys(("critical", "warning", "info"), 0)
    for incident in incidents:
        counts[incident.finding.severity] += 1
    return ", ".join(f"{count} {severity}" for severity, count in counts.items() if count) or "none"


def coverage(account: Account, window_s: float) -> str:
    """How much of the window the data cover, where that is not nearly all of it; empty where it is."""
    known_s = sum(account.seconds.values()) - account.seconds.get("unknown", 0.0)
    per_gpu_s = known_s / account.gpus if account.gpus else 0.0
    if per_gpu_s >= 0.95 * window_s:
        return ""
    return (
        f"The data cover {words.duration(per_gpu_s)} of the {words.duration(window_s)} per GPU, on average."
    )
