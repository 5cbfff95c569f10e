"""What a page may still show, and for how long."""

from __future__ import annotations

import math

from tests.call_count import calls_of

from unidle_agent.exporter import Snapshot
from unidle_agent.fields import GPU_FIELDS
from unidle_agent.runtime import KEEP_FIELD_S
from unidle_agent.sample import GpuReading, Tick, Value
from unidle_agent.wire import GpuFacts

A, B = GpuFacts("GPU-a", 0), GpuFacts("GPU-b", 1)
KEEP_S = 3.0


def tick(second: float, *gpus: GpuReading, **host: Value) -> Tick:
    return Tick(int(second * 1e9), gpus, dict(host), ())


def after(*ticks: Tick, keep_field_s: dict[str, float] | None = None) -> Snapshot:
    snapshot = Snapshot(KEEP_S, keep_field_s)
    for one in ticks:
        snapshot.update(one)
    return snapshot


def test_a_field_of_the_host_that_is_read_seldom_is_kept_for_its_own_time_and_no_longer() -> None:
    snapshot = after(
        tick(100, ib_sent_bytes=4, load_1m=1.0),
        tick(110, tasks_running=2),
        keep_field_s={"ib_sent_bytes": 30},
    )
    assert snapshot.reading().host == {"ib_sent_bytes": 4, "tasks_running": 2}
    snapshot.update(tick(130, tasks_running=3))
    assert snapshot.reading().host == {"ib_sent_bytes": 4, "tasks_running": 3}
    snapshot.update(tick(130.1, tasks_running=4))
    assert snapshot.reading().host == {"tasks_running": 4}


def test_a_longer_time_than_its_own_is_kept_where_everything_is_kept_so_long() -> None:
    snapshot = after(tick(100, ib_sent_bytes=4), tick(103), keep_field_s={"ib_sent_bytes": 1})
    assert snapshot.reading().host == {"ib_sent_bytes": 4}


def test_every_field_of_a_source_that_rests_outlives_the_rest() -> None:
    assert {name for name in KEEP_FIELD_S if name.startswith("nfs_")} == {
        "nfs_read_bytes",
        "nfs_written_bytes",
        "nfs_retransmits",
    }
    assert KEEP_FIELD_S["nfs_read_bytes"] == 15
    assert KEEP_FIELD_S["ib_ports_active"] == 30


def test_each_value_goes_when_it_is_too_old_and_its_gpu_when_nobody_sees_it() -> None:
    first = tick(100, GpuReading(A, {"power_w": 1.0, "last_xid": 0}), GpuReading(B, {"power_w": 2.0}))
    snapshot = after(first, tick(103, GpuReading(A, {"power_w": 3.0})))
    assert [(gpu.facts, gpu.values) for gpu in snapshot.reading().gpus] == [
        (A, {"power_w": 3.0, "last_xid": 0}),
        (B, {"power_w": 2.0}),
    ]
    snapshot.update(tick(103.5, GpuReading(A, {})))
    assert [(gpu.facts, gpu.values) for gpu in snapshot.reading().gpus] == [(A, {"power_w": 3.0})]


def test_a_tick_with_the_same_fields_is_noted_not_gone_through() -> None:
    values: dict[str, Value] = {field.name: 1.0 for field in GPU_FIELDS}
    snapshot = after(tick(1, GpuReading(A, values), GpuReading(B, values)))
    again = tick(2, GpuReading(A, dict(values)), GpuReading(B, dict(values)))
    assert calls_of(lambda: snapshot.update(again)) < 20


def test_a_clock_that_is_set_back_leaves_nothing_of_before() -> None:
    snapshot = after(tick(100, GpuReading(A, {"power_w": 1.0}), load_1m=1.0), tick(50, load_1m=2.0))
    assert (snapshot.reading().gpus, snapshot.reading().host) == ((), {"load_1m": 2.0})


def test_what_a_page_cannot_show_is_left_out() -> None:
    values: dict[str, Value] = {"power_w": math.nan, "gpu_util_ratio": 0.0, "gpu_util_ratio.max": 1.0}
    (gpu,) = after(tick(100, GpuReading(A, values))).reading().gpus
    assert gpu.values == {"gpu_util_ratio": 0.0}
