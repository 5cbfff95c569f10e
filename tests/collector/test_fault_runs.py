"""The faults that the benchmark injects: apart by set, complete, played as an agent would tell them."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from benchmarks import fault_runs

from unidle_agent.recheck import EXTRA_PER_MIN
from unidle_agent.sources.infiniband import InfinibandSource
from unidle_collector import detectors
from unidle_collector.simulator.asked import PORTS, READ_EACH_S
from unidle_collector.simulator.fault_trial import SLOW, FaultTrial, Look, fault_trial, seen
from unidle_collector.simulator.mechanisms.faults import FAULT_VARIANTS, FaultVariant, Xid

PAGE = Path(__file__).parents[2] / "docs" / "diagnosis.md"
GPUS, SECONDS = 8, 900


def named(name: str) -> FaultVariant:
    return next(variant for variant in FAULT_VARIANTS if variant.name == name)


def played(name: str, seed: int = 0) -> FaultTrial:
    return fault_trial(named(name), SECONDS, GPUS, np.random.default_rng(seed))


def test_both_sets_have_every_cause_of_every_fault_that_a_detector_knows() -> None:
    causes = {
        f"{detector.kind}.{cause}"
        for detector in (make(1, 1.0) for make in detectors.makers())
        for cause in detector.causes
        if detector.kind in fault_runs.KINDS
    }
    for which in ("tuning", "held_out"):
        assert {truth for variant in fault_runs.chosen(which) for truth in variant.truths} == causes
        assert sum(not variant.truths for variant in fault_runs.chosen(which)) >= 8


def test_no_held_out_fault_lies_in_what_a_tuning_one_may_draw() -> None:
    for held_out in fault_runs.chosen("held_out"):
        for tuning in fault_runs.chosen("tuning"):
            if held_out.truths == tuning.truths:
                assert differs(held_out, tuning), (held_out.name, tuning.name)


def differs(one: FaultVariant, other: FaultVariant) -> bool:
    """Do they work, last or show otherwise, or on another number of GPUs."""
    if one.works != other.works or apart(one.affected, other.affected) or apart(one.lasts_s, other.lasts_s):
        return True
    if [type(effect) for effect in one.effects] != [type(effect) for effect in other.effects]:
        return True
    for mine, theirs in zip(one.effects, other.effects, strict=True):
        for name in (item.name for item in fields(mine)):
            a, b = getattr(mine, name), getattr(theirs, name)
            if isinstance(a, str | bool) and a != b:
                return True
            if isinstance(a, tuple) and (
                set(a).isdisjoint(b) if name in ("codes", "values", "kinds", "lines") else apart(a, b)
            ):
                return True
    return False


def apart(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] > other[1] or one[1] < other[0]


def test_codes_of_xids_are_of_one_set_alone_except_for_a_gpu_off_the_bus() -> None:
    codes = {
        which: {
            code
            for variant in fault_runs.chosen(which)
            for effect in variant.effects
            if isinstance(effect, Xid)
            for code in effect.codes
        }
        for which in ("tuning", "held_out")
    }
    assert codes["tuning"] & codes["held_out"] == {79}


def test_every_fault_is_listed_in_the_docs_under_its_set() -> None:
    tuning, held_out = PAGE.read_text(encoding="utf-8").split("### Held out")
    for which, part in (("tuning", tuning.split("### Tuning")[1]), ("held_out", held_out)):
        for variant in fault_runs.chosen(which):
            assert variant.name in part, (which, variant.name)


def confidences() -> dict[float, float]:
    """Confidence of faults -> lower bound of how often it is true, as the docs list them."""
    rows = re.findall(r"^\| (0\.\d+) \|.*\| 1\.000 \((0\.\d+)-1\.000\) \|$", PAGE.read_text("utf-8"), re.M)
    return {float(said): float(low) for said, low in rows}


def test_no_fault_is_told_as_surer_than_its_findings_were_true() -> None:
    assert len(confidences()) == 4
    assert all(said <= low for said, low in confidences().items())


def test_lines_of_a_kernel_log_go_the_way_of_the_agents_own_code() -> None:
    assert {event.kind for event in played("a link of an NVSwitch fails for good").events} == {"sxid_fatal"}
    faulty = played("a page fault in the kernel log alone, of a process named like another")
    (event,) = faulty.events
    assert (event.gpu, event.kind, event.code) == (int(faulty.affected[0]), "xid", 31)
    assert "MMU Fault" in event.text
    assert played("torn lines of the kernel log").events == []


def test_the_same_seed_gives_the_same_fault() -> None:
    one, same = played("symbol errors on a cable"), played("symbol errors on a cable")
    assert one.onset_s == same.onset_s
    assert all(np.array_equal(one.columns[n], same.columns[n], equal_nan=True) for n in one.columns)


@pytest.mark.parametrize("look", [Look(), Look(period_s=5), Look(missing=0.3), Look(period_s=30)])
def test_no_growth_is_lost_with_a_sample_or_between_readings(look: Look) -> None:
    one = played("NVLink errors, thousands a minute")
    whole = one.columns["nvlink_errors"][-1] - one.columns["nvlink_errors"][0]
    increases = seen([one], look, np.random.default_rng(1)).recording.columns["nvlink_errors"]
    assert np.nansum(increases, axis=0) == pytest.approx(whole, rel=0.2)
    assert np.nansum(increases) > 0


def test_slow_fields_are_asked_each_15_s_and_oftener_where_errors_keep_coming() -> None:
    one = played("NVLink errors, thousands a minute")
    increases = seen([one], Look(), np.random.default_rng(1)).recording.columns["nvlink_errors"]
    grew, after_s = np.count_nonzero(increases > 0), SECONDS - one.onset_s
    usual = after_s / READ_EACH_S
    assert 1.5 * usual < grew <= usual + EXTRA_PER_MIN * (after_s / 60 + 1)


@pytest.mark.slow
def test_the_ports_of_a_node_are_played_as_the_source_reads_them(tmp_path: Path) -> None:
    """The agent's own source over files that change like the trial, a tick a second."""
    one = played("a cable is pulled")
    scene = seen([one], Look(), np.random.default_rng(1))
    says = {name: scene.recording.columns[name][:, 0] for name in PORTS}
    begins = int(np.argmax(~np.isnan(says["ib_ports_active"])))
    clock = [0.0]
    source = InfinibandSource(tmp_path, monotonic=lambda: clock[0])
    for second in range(begins, SECONDS):
        clock[0] = float(second)
        for port in range(8):
            folder = tmp_path / f"mlx5_{port}" / "ports" / "1"
            (folder / "counters").mkdir(parents=True, exist_ok=True)
            up = port < one.columns["ib_ports_active"][second, 0]
            (folder / "state").write_text("4: ACTIVE" if up else "1: DOWN")
            (folder / "rate").write_text("400 Gb/sec (4X NDR)")
            (folder / "counters" / "symbol_error").write_text("0")
        host = source.read().host if source.due() else {}
        played_row = {name: says[name][second] for name in PORTS[:3] if not np.isnan(says[name][second])}
        assert {name: host[name] for name in PORTS[:3] if name in host} == played_row, second


def test_a_node_that_is_silent_sends_no_sample_and_no_push() -> None:
    one = played("a machine loses power")
    scene = seen([one], Look(), np.random.default_rng(1))
    assert scene.recording.sampled[: one.onset_s].all()
    assert not scene.recording.sampled[one.onset_s :].any()
    assert (scene.heard_s[one.onset_s :] < one.onset_s).all()


def test_an_exporter_tells_an_xid_by_its_last_value_only() -> None:
    one = played("the driver of three GPUs hangs")
    scene = seen(
        [one, played("memory that cannot be contained")], Look(exporter=True), np.random.default_rng(1)
    )
    assert scene.events == ()
    assert scene.recording.columns.keys().isdisjoint({"gpu_state", "recovery_action", *SLOW} - {
        "row_remap_failed", "rows_remapped_correctable", "rows_remapped_uncorrectable"})  # fmt: skip
    assert not scene.recording.sampled[one.onset_s :, one.affected].any()
    assert set(np.unique(scene.recording.columns["last_xid"][-1, GPUS:])) & {48, 62, 64, 140, 158}


@pytest.mark.slow
@pytest.mark.parametrize("look", ["full", "sampling_15s", "missing_30pct"])
def test_every_fault_of_the_tuning_set_is_told_and_nothing_else(look: str) -> None:
    faults = fault_runs.score_faults("tuning", 1, seed=5, looks=[look])[look]
    assert faults.mistakes == {}
    assert faults.false == []
    assert (fault_runs.macro_f1(faults), fault_runs.wrong_ratio(faults)) == (1.0, 0.0)
    injected = [truth for variant in fault_runs.chosen("tuning") for truth in variant.truths]
    assert {kind: row["n"] for kind, row in fault_runs.per_kind(faults).items()} == Counter(injected)
    assert {row["confidence"] for row in fault_runs.by_confidence(faults)} <= confidences().keys()


def test_with_an_exporter_alone_faults_are_missed_and_not_taken_for_others() -> None:
    faults = fault_runs.score_faults("tuning", 1, seed=5, looks=["gpu_util_only"])["gpu_util_only"]
    assert fault_runs.wrong_ratio(faults) == 0.0
    assert fault_runs.macro_f1(faults) < 0.6


def test_a_wrong_finding_and_a_missed_fault_cost_precision_and_recall(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fatal = named("a GPU hangs in a context switch")
    few = (
        replace(fatal, truths=("xid.reboot",)),
        replace(fatal, name="taken for a look-alike", truths=()),
        fatal,
    )
    monkeypatch.setattr(fault_runs, "FAULT_VARIANTS", few)
    faults = fault_runs.score_faults("tuning", 1, seed=1, looks=["full"])["full"]
    rows = fault_runs.per_kind(faults)
    assert (rows["xid.reboot"]["precision"], rows["xid.reboot"]["recall"]) == (None, 0.0)
    assert (rows["xid.reset"]["precision"], rows["xid.reset"]["recall"]) == (pytest.approx(1 / 3), 1.0)
    assert len(faults.false) == 1
    said = fault_runs.by_confidence(faults)
    assert sum(row["told"] for row in said) == 3
    assert sum(row["told"] * row["true_ratio"] for row in said) == pytest.approx(1)
    assert all(low <= row["true_ratio"] <= high for row in said for low, high in [row["true_95"]])
    assert faults.delays_s["xid"] == [0.0]


def test_fault_rows_join_the_document_without_replacing_minutes() -> None:
    looks = fault_runs.score_faults("tuning", 1, seed=5, looks=["full", "sampling_30s"])
    figures = {"per_kind": {"gpu_lost.lost": {"unit": "GPU-minutes"}}, "delay_s_p95": {}}
    fault_runs.add(figures, looks)
    assert figures["per_kind"]["gpu_lost.lost"]["unit"] == "GPU-minutes"
    assert figures["per_kind"]["ecc.retired"]["unit"] == "faults"
    assert figures["delay_s_p95"]["xid"] <= 5
    assert figures["faults"]["degraded"]["sampling_30s"]["false_on_look_alikes"] == 0
