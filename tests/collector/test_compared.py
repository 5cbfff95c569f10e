"""What compares the GPUs of a job says how many of them it compared, wherever it did not see all."""

from __future__ import annotations

import pytest
from tests.collector.test_detectors_jobs import MINE, ONE_SLOW, TCP, job, waiting

from unidle_collector.engine import Engine
from unidle_collector.model import Finding
from unidle_collector.recording import Recording
from unidle_collector.replay import enter, play


def found(recording: Recording, granted: dict[str, int], at_site: dict[str, int]) -> Finding:
    """The one finding that is open at the end of it."""
    engine = Engine(recording.period_s, keep_accounts_ns=None)
    engine.inventory.granted, engine.inventory.at_site = granted, at_site
    for _ in play(recording, engine, enter(recording, engine)):
        pass
    (finding,) = (one for one in engine.findings() if one.kind in MINE)
    return finding


@pytest.mark.parametrize(
    ("granted", "at_site", "words"),
    [
        ({"4711": 64}, {}, "8 of 64 GPUs of the job compared"),
        ({}, {"4711": 64}, "8 of 64 GPUs of the job compared"),
        ({"4711": 16}, {"4711": 12}, "8 of 16 GPUs of the job compared"),
        ({"4711": 8}, {"4711": 8}, ""),
        ({"4711": 0}, {}, ""),
        ({"other": 64}, {"other": 64}, ""),
        ({}, {}, ""),
    ],
)
def test_a_straggler_among_a_part_of_the_ranks_is_told_as_that(
    granted: dict[str, int], at_site: dict[str, int], words: str
) -> None:
    finding = found(job(waiting(ONE_SLOW)), granted, at_site)
    assert finding.subject == "4711"
    assert finding.title.partition(" (")[2].rstrip(")") == words
    assert ("look at the others, too" in finding.advice) is bool(words)


def test_other_comparisons_say_it_too() -> None:
    assert "(8 of 32 GPUs of the job compared)" in found(job(TCP, nodes=2), {"4711": 32}, {}).title


def test_a_finding_that_compares_nothing_does_not_speak_of_it() -> None:
    recording = job(
        {"gpu_util_ratio": 0.0, "sm_active_ratio": 0.0, "memory_used_bytes": 7e10, "power_w": 120.0}
    )
    engine = Engine(recording.period_s, keep_accounts_ns=None)
    engine.inventory.granted = {"4711": 64}
    for _ in play(recording, engine, enter(recording, engine)):
        pass
    (finding,) = engine.findings()
    assert (finding.kind, "compared" in finding.title + finding.advice) == ("idle", False)
