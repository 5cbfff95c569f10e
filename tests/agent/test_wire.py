"""The wire, and that what the batcher puts on it arrives as it was measured."""

from __future__ import annotations

import contextlib
import math
import zlib
from array import array
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unidle_agent import wire
from unidle_agent.batcher import Batcher
from unidle_agent.errors import WireError
from unidle_agent.fields import FIELDS, GPU_FIELDS, HOST_FIELDS, UNKNOWN_U8, Field
from unidle_agent.sample import GpuReading, Tick
from unidle_agent.wire import Batch, Event, GpuFacts, Owner, decode, encode

SMALL = Batch(
    node="n1",
    boot="b",
    seq=7,
    sent_ns=99,
    period_s=1.0,
    times_ns=[1, 2],
    gpus=("GPU-a",),
    columns={"power_w": array("f", [1.5, math.nan]), "energy_j": array("Q", [UNKNOWN_U8, 2**64 - 2])},
    host={"load_1m": array("f", [0.0, 1.0])},
    facts_id=3,
    facts=(GpuFacts("GPU-a", 0, "B200", owner=Owner(True, "42", "u-1f", source="slurm", confidence="high")),),
    simulated=True,
    events=(Event(1, "GPU-a", "xid", 79, "the driver reported XID 79"),),
)


def document_of(batch: Batch = SMALL, **changes: Any) -> bytes:
    document = msgpack.unpackb(zlib.decompress(encode(batch)))
    document = {key: value for key, value in {**document, **changes}.items() if value is not ...}
    return zlib.compress(msgpack.packb(document))


def test_a_batch_arrives_as_it_was_sent() -> None:
    came = decode(encode(SMALL))
    assert list(came.columns["energy_j"]) == [UNKNOWN_U8, 2**64 - 2]
    assert came.columns["power_w"][0] == 1.5
    assert math.isnan(came.columns["power_w"][1])
    assert list(came.host["load_1m"]) == [0.0, 1.0]
    assert list(came.times_ns) == [1, 2]
    assert replace(came, columns={}, host={}, times_ns=[]) == replace(SMALL, columns={}, host={}, times_ns=[])


def test_columns_and_keys_of_a_newer_version_are_skipped() -> None:
    cols = {"power_w": array("f", [1, 2]).tobytes(), "of_the_future": b"1234"}
    facts = [{"uuid": "GPU-a", "colour": "green", "owner": {"job": "9", "mood": "good"}}]
    came = decode(document_of(cols=cols, facts=facts, novelty=1))
    assert set(came.columns) == {"power_w"}
    assert came.facts is not None
    assert came.facts[0].owner.job == "9"


def test_missing_optional_keys_of_an_older_version_have_their_defaults() -> None:
    came = decode(document_of(facts=..., facts_id=..., simulated=..., events=...))
    assert (came.facts, came.facts_id, came.simulated, came.events) == (None, 0, False, ())


def test_a_batch_without_events_does_not_speak_of_them() -> None:
    assert "events" not in msgpack.unpackb(zlib.decompress(encode(replace(SMALL, events=()))))


def test_statistics_arrive_beside_their_field_and_nothing_else_does() -> None:
    one, two = array("f", [1, 2]).tobytes(), array("d", [1, 2]).tobytes()
    cols = {"gpu_util_ratio": one, "gpu_util_ratio.max": one, "temperature_c.max": one, "energy_j.min": two}
    came = decode(document_of(cols=cols))
    assert set(came.columns) == {"gpu_util_ratio", "gpu_util_ratio.max"}
    assert list(came.columns["gpu_util_ratio.max"]) == [1.0, 2.0]


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        pytest.param(b"", "the end is missing", id="nothing"),
        pytest.param(b"GET / HTTP/1.1", "zlib", id="something else"),
        pytest.param(encode(SMALL)[:-9], "the end is missing", id="a batch that was cut"),
        pytest.param(zlib.compress(b"\xc1"), "MessagePack", id="no MessagePack inside"),
        pytest.param(zlib.compress(b"\x07"), "expected a map, came int", id="a number"),
        pytest.param(document_of(v=2), "version 1, came 2", id="another version"),
        pytest.param(document_of(node=...), "the key 'node'", id="no node"),
        pytest.param(document_of(node="x" * 257), "1 to 256 characters", id="a node name too long"),
        pytest.param(document_of(seq=-1), "seq: expected a whole number", id="a negative sequence"),
        pytest.param(document_of(seq=True), "seq: expected a whole number", id="a sequence that is a flag"),
        pytest.param(document_of(times_ns=b"123"), "schema version", id="half an instant"),
        pytest.param(document_of(cols={"power_w": b"12"}), "expected 2 values of f4", id="a column cut"),
        pytest.param(document_of(cols={"power_w": "12345678"}), "came str", id="a column of text"),
        pytest.param(document_of(facts=[{}]), "facts.uuid", id="facts of no GPU"),
        pytest.param(document_of(events=[{}]), "the key", id="an event of nothing"),
        pytest.param(document_of(events=7), "schema version", id="events that are a number"),
        pytest.param(
            document_of(events=[{"time_ns": 1, "gpu": "G", "kind": "xid", "code": -1}]),
            "events.code",
            id="a negative XID",
        ),
        pytest.param(
            document_of(events=[{"time_ns": 1, "gpu": "G", "kind": "xid", "code": 1, "text": 7}]),
            "events.text",
            id="an event that says a number",
        ),
        pytest.param(document_of(gpus=[7]), "gpus: expected a text", id="a GPU that is a number"),
    ],
)
def test_what_is_no_batch_is_refused_with_the_reason(data: bytes, complaint: str) -> None:
    with pytest.raises(WireError, match=complaint):
        decode(data)


def test_a_small_body_that_unpacks_to_gigabytes_is_refused_before_it_does() -> None:
    bomb = zlib.compress(b"\0" * (wire.MAX_BATCH_BYTES + 1), 9)
    assert len(bomb) < 64 * 1024
    with pytest.raises(WireError, match="at most"):
        decode(bomb)


@given(st.binary(max_size=200))
def test_no_bytes_whatever_raise_anything_but_a_wire_error(data: bytes) -> None:
    for body in (data, zlib.compress(data)):
        with contextlib.suppress(WireError):
            decode(body)


def value_of(field: Field) -> st.SearchStrategy[float | int]:
    if field.dtype == "u8":
        return st.integers(0, 2**64 - 2)
    width = 32 if field.dtype == "f4" else 64
    return st.floats(width=width, allow_nan=True, allow_infinity=False)


def values_of(fields: tuple[Field, ...]) -> st.SearchStrategy[dict[str, float | int]]:
    return st.fixed_dictionaries({}, optional={field.name: value_of(field) for field in fields})


def same(sent: float | int | None, came: float | int, dtype: str) -> bool:
    if dtype == "u8":
        return came == (UNKNOWN_U8 if sent is None else sent)
    return math.isnan(came) if sent is None or math.isnan(sent) else came == sent


@given(
    ticks=st.lists(
        st.tuples(
            st.dictionaries(st.sampled_from(["GPU-a", "GPU-b", "GPU-c"]), values_of(GPU_FIELDS)),
            values_of(HOST_FIELDS),
        ),
        min_size=1,
        max_size=8,
    ),
    batch_s=st.integers(1, 9),
)
def test_what_the_batcher_takes_comes_out_of_the_wire(
    ticks: list[tuple[dict[str, dict[str, float | int]], dict[str, float | int]]], batch_s: int
) -> None:
    batcher = Batcher("n", 1.0, batch_s)
    batches: list[Batch] = []
    for number, (gpus, host) in enumerate(ticks):
        readings = tuple(GpuReading(GpuFacts(uuid), values) for uuid, values in gpus.items())
        batches += batcher.add(Tick(number * 10**9, readings, host, ()))
    batches += [last for last in [batcher.flush()] if last]
    came = [decode(encode(replace(batch, boot="b"))) for batch in batches]
    assert [time for batch in came for time in batch.times_ns] == [n * 10**9 for n in range(len(ticks))]
    rows = [(batch, row) for batch in came for row in range(len(batch.times_ns))]
    for (batch, row), (gpus, host) in zip(rows, ticks, strict=True):
        assert set(gpus) <= set(batch.gpus)
        for place, uuid in enumerate(batch.gpus):
            for field in GPU_FIELDS:
                sent = gpus.get(uuid, {}).get(field.name)
                if field.name in batch.columns:
                    assert same(sent, batch.columns[field.name][row * len(batch.gpus) + place], field.dtype)
                else:
                    assert sent is None
        for field in HOST_FIELDS:
            if field.name in batch.host:
                assert same(host.get(field.name), batch.host[field.name][row], field.dtype)
            else:
                assert field.name not in host


def test_every_field_has_a_name_of_its_own_and_a_step() -> None:
    assert len({field.name for field in FIELDS}) == len(FIELDS)
    assert all(field.resolution > 0 for field in FIELDS)
    assert all(field.dtype == "u8" for field in FIELDS if field.kind != "gauge")
