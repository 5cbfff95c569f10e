"""How right answers are: GPU-minutes of truth against GPU-minutes of answers, pure arithmetic.

A GPU-minute is scored when one thing was true all through it. Precision of a label is the share of its
answers that are true, recall the share of its truth that was answered. "Cannot tell" (`undetermined`, or
unknown time) is no answer: it costs recall, never precision. A wrong cause costs both.

Bounds are 95 % Wilson intervals on an effective number of minutes: minutes of one run are alike, so that
the variance is taken between runs (ratio estimator over clusters), and where all runs agree each run
counts as one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Z = 1.959964
"""Of a two-sided interval of 95 %."""
CANNOT_TELL = "cannot tell"
LEAST_SAID = 0.001
"""What was said to be less likely, or not said at all, counts as this in a log loss."""

Said = tuple[tuple[float, bool], ...]
"""Of each cause that a finding names: (its probability, is it true)."""


@dataclass(frozen=True, slots=True)
class Minutes:
    """Scored GPU-minutes; every array is [minutes]."""

    labels: tuple[str, ...]
    """What truth and answers are positions in; CANNOT_TELL is one of them."""
    truth: NDArray[np.intp]
    answer: NDArray[np.intp]
    run: NDArray[np.intp]
    """Which run each is of; numbers are unique over the whole benchmark."""


@dataclass(frozen=True, slots=True)
class Share:
    """A share of n minutes with its 95 % bounds; None where n is 0."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    runs: int


def joined(parts: Sequence[Minutes]) -> Minutes:
    """Parts that may know different labels, as one."""
    labels = tuple(dict.fromkeys(label for part in parts for label in part.labels))
    number = [np.array([labels.index(label) for label in part.labels], dtype=np.intp) for part in parts]
    return Minutes(
        labels,
        np.concatenate([n[part.truth] for n, part in zip(number, parts, strict=True)]),
        np.concatenate([n[part.answer] for n, part in zip(number, parts, strict=True)]),
        np.concatenate([part.run for part in parts]),
    )


def whole_minutes(
    label: NDArray[np.int16], answer: NDArray[np.int16], steps_per_minute: int, run: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """(truth, answer, run) of every GPU-minute with one truth; `label` [seconds, G], `answer` [steps, G].

    Negative labels are no truth. The answer of a minute is what it has most of.
    """
    minutes = min(label.shape[0] // 60, answer.shape[0] // steps_per_minute)
    gpus = label.shape[1]
    truth = label[: minutes * 60].reshape(minutes, 60, gpus)
    first = truth[:, 0]
    pure = (truth == first[:, None]).all(axis=1) & (first >= 0)
    said = answer[: minutes * steps_per_minute].reshape(minutes, steps_per_minute, gpus)
    votes = np.stack([(said == one).sum(axis=1) for one in range(int(said.max(initial=0)) + 1)])
    most = votes.argmax(axis=0)
    return (
        first[pure].astype(np.intp),
        most[pure].astype(np.intp),
        np.broadcast_to(run, first.shape)[pure],
    )


def share(hit: NDArray[np.bool_], of: NDArray[np.bool_], run: NDArray[np.intp]) -> Share:
    """Share of the minutes `of` that are a `hit`."""
    runs, cluster = np.unique(run[of], return_inverse=True)
    n = int(of.sum())
    if n == 0:
        return Share(None, None, None, 0, 0)
    sizes = np.bincount(cluster).astype(np.float64)
    hits = np.bincount(cluster, weights=hit[of].astype(np.float64))
    p = float(hits.sum() / n)
    low, high = wilson(p, effective_n(p, hits, sizes))
    return Share(p, low, high, n, len(runs))


def effective_n(p: float, hits: NDArray[np.float64], sizes: NDArray[np.float64]) -> float:
    """Independent minutes that `sizes` [runs] minutes are worth, of which `hits` [runs] hit."""
    runs = len(sizes)
    if runs < 2 or p in (0.0, 1.0):
        return float(runs)
    n = sizes.sum()
    variance = ((hits - p * sizes) ** 2).sum() / n**2 * runs / (runs - 1)
    return float(np.clip(p * (1 - p) / variance, 1.0, n)) if variance > 0 else float(n)


def wilson(p: float, n: float) -> tuple[float, float]:
    """95 % score interval of a share `p` of `n` independent trials."""
    middle = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def precision(minutes: Minutes, label: str) -> Share:
    """Share of the answers `label` that are true."""
    number = minutes.labels.index(label)
    answered = minutes.answer == number
    return share(minutes.truth == number, answered, minutes.run)


def recall(minutes: Minutes, label: str) -> Share:
    """Share of the truth `label` that was answered."""
    number = minutes.labels.index(label)
    true = minutes.truth == number
    return share(minutes.answer == number, true, minutes.run)


def f1(minutes: Minutes, label: str) -> float:
    """Harmonic mean of precision and recall; 0 where nothing was answered rightly."""
    p, r = precision(minutes, label).value or 0.0, recall(minutes, label).value or 0.0
    return 2 * p * r / (p + r) if p + r > 0 else 0.0


def macro_f1(minutes: Minutes, without: Sequence[str]) -> float | None:
    """Mean F1 of all labels that are true of some minute, but for `without`."""
    present = [
        label
        for number, label in enumerate(minutes.labels)
        if label not in without and (minutes.truth == number).any()
    ]
    return sum(f1(minutes, label) for label in present) / len(present) if present else None


def wrong_cause_ratio(minutes: Minutes, silent: Sequence[str]) -> float | None:
    """Of the minutes for which a cause was named (answers but `silent`), the share where it is not true."""
    quiet = [number for number, label in enumerate(minutes.labels) if label in silent]
    named = ~np.isin(minutes.answer, quiet)
    return float((minutes.answer != minutes.truth)[named].mean()) if named.any() else None


def confusion(minutes: Minutes) -> dict[str, dict[str, int]]:
    """Truth -> answer -> GPU-minutes, what is zero left out."""
    size = len(minutes.labels)
    table = np.bincount(minutes.truth * size + minutes.answer, minlength=size * size).reshape(size, size)
    return {
        truth: {answer: int(n) for answer, n in zip(minutes.labels, row, strict=True) if n}
        for truth, row in zip(minutes.labels, table, strict=True)
        if row.any()
    }


def poisson_upper(count: int, confidence: float = 0.95) -> float:
    """Upper bound of the mean of which `count` events were seen: 3.0 for none (the rule of three)."""
    low, high = 0.0, 10.0 + 4.0 * count
    for _ in range(80):
        mean = (low + high) / 2
        term, total = math.exp(-mean), 0.0
        for k in range(count + 1):
            total += term
            term *= mean / (k + 1)
        low, high = (mean, high) if total > 1 - confidence else (low, mean)
    return high


def losses(findings: Sequence[Said]) -> dict[str, float]:
    """How far from the truth the probabilities of `findings` were, in the mean of their number `n`.

    What the named causes leave of 1 is that of none of them. `log_loss` is -ln of what the truth got (at
    least LEAST_SAID), `brier` the sum over all of (said - true) squared; of both 0 is best.
    """
    logs, squares = [], []
    for said in findings:
        rest, none = 1.0 - sum(share for share, _ in said), not any(true for _, true in said)
        every = [*said, (rest, none)]
        logs.append(-math.log(max(LEAST_SAID, sum(share for share, true in every if true))))
        squares.append(sum((share - true) ** 2 for share, true in every))
    n = len(findings)
    return {"n": n, "log_loss": sum(logs) / n, "brier": sum(squares) / n} if n else {"n": 0}


def certainty(said: Sequence[tuple[float, bool]], bins: int = 10) -> list[dict[str, float]]:
    """Of causes said with (probability, was it true), by tenths: how many, what was said, what was true."""
    out = []
    for number in range(bins):
        mine = [pair for pair in said if min(int(pair[0] * bins), bins - 1) == number]
        if mine:
            shares = (sum(column) / len(mine) for column in zip(*mine, strict=True))
            out.append(
                {"from": number / bins, "n": len(mine), **dict(zip(("said", "true"), shares, strict=True))}
            )
    return out


def p95(values: Sequence[float]) -> float | None:
    """95th percentile (nearest rank above), None of nothing."""
    ordered = sorted(values)
    return ordered[math.ceil(0.95 * len(ordered)) - 1] if ordered else None
