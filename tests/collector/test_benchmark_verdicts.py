"""What the benchmarks say of a target that was missed: by how much, why, and what would be needed."""

from __future__ import annotations

import pytest
from benchmarks import collector, peers

WORSE = {name: 4 * bound + 4 for name, (bound, _) in collector.TARGETS.items()} | {
    "query_ms": {name: 4 * bound for name, bound in collector.QUERY_MS.items()},
    "cpu_s_per_million_values": 1.0,
    "kill9": {"runs": 0, "rows_lost": 0, "rows_doubled": 0},
}


def lines_after(text: str, what: str) -> list[str]:
    """Of each line that says `what`, the next one."""
    lines = text.splitlines()
    return [after for line, after in zip(lines, [*lines[1:], ""], strict=True) if what in line]


def test_the_collectors_benchmark_gives_a_reason_for_each_target_that_was_missed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    collector.judge(WORSE)
    out, said = capsys.readouterr()
    reasons = lines_after(said, "MISSED")
    assert len(reasons) == len(collector.TARGETS) + len(collector.QUERY_MS)
    assert all(reason.startswith("  ") for reason in reasons)
    assert "it has to be 0.25 times what it is" in lines_after(said, "gpu_24h")[0]
    assert out == "", "stdout is for the figures"


def test_a_target_that_was_met_needs_no_reason(capsys: pytest.CaptureFixture[str]) -> None:
    met = WORSE | {name: bound for name, (bound, _) in collector.TARGETS.items()}
    collector.judge(met | {"query_ms": dict.fromkeys(collector.QUERY_MS, 1.0)})
    said = capsys.readouterr().err
    assert "MISSED" not in said
    assert "it has to be" not in said


def test_the_comparison_says_where_the_time_went_when_a_target_was_missed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    half = {name: bound / 2 for name, (bound, _) in peers.TARGETS.items()}
    figures = {name: {"version": "1"} for name in peers.ORDER} | {"ratios": half, "agreement": {}}
    peers.judge(figures, {"connections": 0.75, "the rest": 0.25})
    said = capsys.readouterr().err
    for name in half:
        assert "0.50 times" in lines_after(said, name)[0]
    assert said.count("connections 75%, the rest 25%") == 2
