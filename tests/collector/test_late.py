"""Late rows: whatever the order of arrival, the same accounts, and nothing told that was not so in order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from tests.collector.pushing import GPUS, START_S, batch, site
from tests.collector.test_live import COOL, HELD

from unidle_agent.fields import BY_NAME
from unidle_agent.wire import Batch, Event, Owner, column
from unidle_collector.arrivals import Arrival
from unidle_collector.engine import Engine
from unidle_collector.late import LateRows
from unidle_collector.model import Account, GpuRef
from unidle_collector.pergpu import SECOND_NS
from unidle_collector.window import AHEAD_STEPS, USUAL_FIELD_BYTES, Window

BATCH_S = 5
LAST_S = 240
HELD_S = 104
"""What the window holds of the past: late rows of MOST_LATE batches may just be in time to be looked at."""
MOST_LATE = 3
HOSTS = 64
"""Bytes that a step of the hosts' ring takes."""


def life(seed: int, node: int) -> list[Batch]:
    """Batches of two GPUs of one node that work, idle, starve and get hot, in phases."""
    random = np.random.default_rng([seed, node])
    phase = np.repeat(random.integers(0, 4, LAST_S // 40 + 1), 40)
    out = []
    for number, first_s in enumerate(range(0, LAST_S, BATCH_S)):
        kind = np.repeat(phase[first_s : first_s + BATCH_S], 2)
        busy = np.select([kind == 0, kind == 1], [0.0, 0.3], 0.9) + 0.01 * random.random(kind.size)
        busy = np.where(kind == 0, 0.0, busy)
        values = {
            "sm_active_ratio": busy,
            "gpu_util_ratio": np.where(kind == 0, 0.0, 1.0),
            "power_w": 100 + 500 * busy,
            "memory_used_bytes": np.full(kind.size, 7e10),
            "memory_total_bytes": np.full(kind.size, 8e10),
            "sm_clock_hz": np.where(kind == 3, 1.2e9, 1.7e9),
            "clock_event_reasons": np.where(kind == 3, 0x40, 0),
        }
        columns = {
            name: column(BY_NAME[name], [int(v) if name == "clock_event_reasons" else float(v) for v in row])
            for name, row in values.items()
        }
        plain = batch(number, first_s, BATCH_S, {}, node=f"n{node}", facts=False)
        out.append(replace(plain, columns=columns))
    return out


def live_through(
    seed: int, delays_s: dict[int, int], job_from_s: int | None = None
) -> tuple[list[Account], set[tuple[str, str]], int]:
    """(accounts, (kind, subject) told, silences filled); batch N of node 1 arrives delays_s[N] later.

    From `job_from_s` on a job holds the GPUs of node 1.
    """
    engine = Engine(1.0)
    size = engine.inventory.capacity
    window = Window(1.0, size, (AHEAD_STEPS + HELD_S) * (USUAL_FIELD_BYTES * size + HOSTS))
    late = LateRows(engine, window)
    due: dict[int, list[Arrival]] = {}
    for node in range(2):
        places = np.array([engine.add(GpuRef(f"n{node}", gpu, 0, "NVIDIA H100")) for gpu in GPUS])
        for number, item in enumerate(life(seed, node)):
            at_s = (number + 1) * BATCH_S + (delays_s.get(number, 0) if node else 0)
            due.setdefault(at_s, []).append(Arrival(item, places, (START_S + at_s) * SECOND_NS))
    told: set[tuple[str, str]] = set()
    for now_s in range(LAST_S + 60):
        if now_s == job_from_s:
            for gpu in range(2, 4):
                engine.own(gpu, Owner(allocated=True, job="4711"))
        window.take_all(due.get(now_s, []))
        late.take(window.late)
        window.late.clear()
        inventory = engine.inventory
        for _ in range(window.due((START_S + now_s) * SECOND_NS)):
            step = window.next(inventory.capacity, inventory.a["node"], inventory.node_names)
            late.before(step)
            changes = [change for change in engine.step(step) if change.what == "told"]
            told |= {(change.finding.kind, change.finding.subject) for change in changes}
        with patch("unidle_collector.late.STEPS_AT_ONCE", 10):  # the fleet goes on meanwhile
            late.work()
    accounts = engine.ledger.accounts(lambda t: f"{t.gpu}{t.owner.job}", 0, 2**62)
    return accounts, told, late.corrected


# The last batches come on time: a silence at the very end is not over yet.
late_batches = st.dictionaries(
    st.integers(4, LAST_S // BATCH_S - 20), st.integers(1, 45), min_size=1, max_size=MOST_LATE
)


# Without shrinking, which would take minutes of living through.
@settings(max_examples=8, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(st.integers(0, 2**32 - 1), late_batches)
@example(116, {6: 45, 16: 34}).via("the first silence leaves the window while it is lived through")
@example(116, {6: 45, 17: 45}).via("the second silence began before the first was filled in")
@example(116, {6: 45, 16: 34, 20: 29}).via("rows come while the time before them is lived through")
def test_rows_in_any_order_give_the_same_accounts_and_no_new_finding(
    seed: int, delays: dict[int, int]
) -> None:
    in_order, told_in_order, _ = live_through(seed, {})
    accounts, told, _ = live_through(seed, delays)
    for one, other in zip(in_order, accounts, strict=True):
        busy = {state: s for state, s in one.seconds.items() if state != "unknown"}
        assert {state: s for state, s in other.seconds.items() if state != "unknown"} == busy
        assert other.lost.gpu_h == pytest.approx(one.lost.gpu_h, rel=1e-9)
        assert other.lost.kwh == pytest.approx(one.lost.kwh, rel=1e-5, abs=1e-9)
        assert other.sm_active_ratio == pytest.approx(one.sm_active_ratio, rel=1e-5)
        assert {c: s for c, s in other.causes.items() if s} == pytest.approx(one.causes, rel=1e-9)
    assert told <= told_in_order


@pytest.mark.parametrize("job_from_s", [94, 95, 96])
def test_a_job_that_begins_while_late_rows_are_looked_at_is_charged_nothing_of_before(
    job_from_s: int,
) -> None:
    in_order, _, _ = live_through(116, {}, job_from_s)
    accounts, _, _ = live_through(116, {6: 45}, job_from_s)
    assert [sum(one.seconds.values()) for one in accounts] == [sum(one.seconds.values()) for one in in_order]
    of_the_job = [number for number, one in enumerate(in_order) if one.key.endswith("4711")]
    assert len(of_the_job) == 2
    for number in of_the_job:
        assert accounts[number].seconds == in_order[number].seconds
        assert accounts[number].sm_active_ratio == in_order[number].sm_active_ratio


def test_rows_of_an_outage_that_come_from_the_spool_are_accounted_and_open_nothing(tmp_path: Path) -> None:
    """Node n1 is cut off for three minutes, in which it idles, and sends its spool afterwards."""
    with site(tmp_path) as here:
        seq = 0

        def both(first_s: int, last_s: int, cut_off: bool) -> None:
            nonlocal seq
            for start in range(first_s, last_s, 10):
                here.clock.at_s = START_S + start + 10
                here.push(batch(seq, start, 10, COOL, node="n0", gpus=("GPU-y", "GPU-z")))
                if not cut_off:
                    here.push(batch(seq, start, 10, COOL, job="4711"))
                seq += 1
                here.settle(start + 13)

        both(0, 120, cut_off=False)
        both(120, 300, cut_off=True)
        for start in range(120, 300, 30):
            assert here.push(batch(1000 + start, start, 30, HELD, job="4711"))[0] == 200
        assert here.counter("rows_late") == 2 * 180
        both(300, 420, cut_off=False)
        (account,) = here.get("accounts", by="job", window_s=3600)
        assert account["seconds"] == pytest.approx(account["seconds"] | {"idle": 360, "unknown": 0})
        assert sum(account["seconds"].values()) == 2 * 420
        assert here.counter("silences_filled") == 1
        # The silence itself was told while it lasted; what the node did meanwhile opens nothing.
        told = [
            (event["incident"]["finding"]["kind"], event["incident"]["state"]) for event in here.get("events")
        ]
        assert told == [("stale_agent", "open"), ("stale_agent", "resolved")]
        series = here.get("series", node="n1", gpu="GPU-a", field="power_w", window_s=200)
        assert None not in series["values"]


def test_an_xid_told_during_a_silence_outlives_the_late_rows_of_that_silence(tmp_path: Path) -> None:
    """The rows are lived through once more, and so is the event: its state must not be lost with that."""
    with site(tmp_path) as here:

        def push(seq: int, first_s: int, node: str, gpu: str, *events: Event) -> None:
            item = batch(seq, first_s, 10, COOL, node=node, gpus=(gpu,))
            assert here.push(replace(item, events=events))[0] == 200

        for start in range(0, 200, 10):
            here.clock.at_s = START_S + start + 10
            push(start, start, "n0", "GPU-y")
            if not 60 <= start < 100:
                push(start, start, "n1", "GPU-z")
            if start == 100:
                for late in range(60, 100, 10):
                    fatal = Event((START_S + 75) * 10**9, "GPU-z", "xid", 119)
                    push(late, late, "n1", "GPU-z", *([fatal] if late == 70 else []))
            here.settle(start + 13)
        assert here.counter("silences_filled") == 1
        assert {gpu["node"]: gpu["state"] for gpu in here.get("gpus")}["n1"] == "failed"
        accounts = here.get("accounts", by="node", window_s=3600)
        failed = {account["key"]: account["seconds"]["failed"] for account in accounts}
        assert failed == {"n0": 0, "n1": pytest.approx(200 - 75, abs=2)}
