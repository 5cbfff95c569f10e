"""remote_write: what a Prometheus sends becomes rows, whatever the order, and nothing is retried for ever."""

from __future__ import annotations

import errno
import math
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import cramjam
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient
from tests.collector.pushing import START_S, Site, site
from tests.collector.remote_writing import message, packed, varint, write_request

from unidle_agent.errors import UnidleError
from unidle_collector.api import create_app
from unidle_collector.prometheus.assembly import SETTLE_S, Assembler, Scrape
from unidle_collector.prometheus.journal import Journal
from unidle_collector.prometheus.receiver import PATH, Receiver
from unidle_collector.prometheus.write_request import WriteError, is_stale, labels, series, unpack

STALE = struct.unpack("<d", struct.pack("<Q", 0x7FF0000000000002))[0]
NODE = {"instance": "n1.example:9400", "job": "dcgm", "Hostname": "n1", "modelName": "NVIDIA H100"}


def named(name: str, gpu: int = 0, **more: str) -> dict[str, str]:
    return {"__name__": name, **NODE, "gpu": str(gpu), "UUID": f"GPU-{gpu}", **more}


# Reading


@given(
    st.lists(
        st.tuples(
            st.dictionaries(st.text(min_size=1), st.text(), min_size=1),
            st.lists(st.tuples(st.floats(allow_nan=False), st.integers(-(2**63), 2**63 - 1))),
        )
    )
)
def test_what_was_written_is_read_zero_values_and_times_before_1970_too(
    written: list[tuple[dict[str, str], list[tuple[float, int]]]],
) -> None:
    read = [(labels(block), samples) for block, samples in series(unpack(packed(*written)))]
    assert read == written


@given(st.binary(max_size=200))
def test_no_bytes_whatever_raise_anything_but_a_write_error(data: bytes) -> None:
    for attempt in (lambda: unpack(data), lambda: [labels(block) for block, _ in series(data)]):
        with suppress(WriteError):
            attempt()


@given(st.data())
def test_a_request_cut_anywhere_is_an_error_or_whole_series(data: st.DataObject) -> None:
    whole = write_request((named("DCGM_FI_DEV_GPU_UTIL"), [(97.0, 1)]), (named("up"), [(1.0, 2)]))
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    try:
        came = list(series(cut))
    except WriteError:
        return
    assert came == list(series(whole))[: len(came)]


def test_what_is_not_known_is_skipped_histograms_exemplars_and_metadata() -> None:
    metadata = message(3, message(2, b"name"))
    more = message(3, b"exemplar") + message(4, b"histogram") + varint(9 << 3) + varint(77)
    one = message(1, message(1, message(1, b"a") + message(2, b"b")) + message(2, b"\x10\x05") + more)
    assert [(labels(block), got) for block, got in series(metadata + one)] == [({"a": "b"}, [(0.0, 5)])]


def test_a_small_body_that_announces_gigabytes_is_refused_before_it_is_unpacked() -> None:
    with pytest.raises(WriteError, match="announced"):
        unpack(varint(4 * 2**30) + b"\x00" * 20)


def test_only_the_marker_itself_is_stale() -> None:
    assert is_stale(STALE)
    assert not is_stale(math.nan)
    assert not is_stale(0.0)


# Putting scrapes together


def assembled(*requests: bytes, wait_s: float = SETTLE_S) -> list[Scrape]:
    assembler = Assembler()
    for request in requests:
        assembler.take(request, 100.0)
    return assembler.settled(100.0 + wait_s)


def values(scrape: Scrape, node: str = "n1") -> dict[str, dict[str, float]]:
    return {gpu.facts.uuid: gpu.values for _, _, reading in scrape.nodes[node] for gpu in reading.gpus}


def test_a_scrape_that_comes_in_pieces_and_backwards_is_one_row_per_gpu() -> None:
    later, earlier = 1_700_000_015_000, 1_700_000_000_000
    scrapes = assembled(
        write_request((named("DCGM_FI_DEV_GPU_UTIL"), [(97, later)])),
        write_request((named("DCGM_FI_DEV_POWER_USAGE"), [(600, later), (500, earlier)])),
        write_request((named("DCGM_FI_DEV_GPU_UTIL", 1), [(0, later)])),
        write_request((named("DCGM_FI_DEV_GPU_UTIL"), [(50, earlier)])),
    )
    assert [scrape.time_ns // 10**6 for scrape in scrapes] == [earlier, later]
    assert values(scrapes[0]) == {"GPU-0": {"gpu_util_ratio": 0.5, "power_w": 500.0}}
    assert values(scrapes[1]) == {
        "GPU-0": {"gpu_util_ratio": 0.97, "power_w": 600.0},
        "GPU-1": {"gpu_util_ratio": 0.0},
    }
    assert scrapes[1].period_s == 15.0


def test_nothing_is_made_of_a_scrape_before_the_rest_of_it_may_have_come() -> None:
    request = write_request((named("DCGM_FI_DEV_GPU_UTIL"), [(97, 1_700_000_000_000)]))
    assert assembled(request, wait_s=SETTLE_S - 1) == []
    assert len(assembled(request)) == 1


def test_a_series_that_has_ended_leaves_no_value_and_the_next_pod_takes_over() -> None:
    now = 1_700_000_000_000
    (scrape,) = assembled(
        write_request(
            (named("DCGM_FI_DEV_GPU_UTIL", pod="old", namespace="ml"), [(STALE, now)]),
            (named("DCGM_FI_DEV_GPU_UTIL", pod="new", namespace="ml"), [(12, now)]),
        )
    )
    ((_, _, reading),) = scrape.nodes["n1"]
    assert [gpu.facts.owner.job for gpu in reading.gpus] == ["ml/new"]
    assert values(scrape) == {"GPU-0": {"gpu_util_ratio": 0.12}}


def test_samples_that_carry_nothing_are_counted_and_left_out() -> None:
    assembler = Assembler()
    assembler.take(write_request((named("up"), [(1, 1)]), (named("DCGM_FI_DEV_GPU_UTIL"), [(STALE, 1)])), 0)
    assert assembler.settled(99) == []
    assert (assembler.counts.taken, assembler.counts.ignored, assembler.counts.stale) == (0, 1, 1)


def test_unidles_own_series_bring_host_owner_and_simulated_and_count_before_the_exporters() -> None:
    now = 1_700_000_000_000
    own = {"instance": "10.0.0.7:9471", "job": "unidle", "gpu": "0", "uuid": "GPU-0"}
    host = {"instance": "10.0.0.7:9471", "job": "unidle"}
    assembler = Assembler()
    assembler.take(
        write_request(
            ({"__name__": "unidle_gpu_energy_joules_total", **own}, [(12.345, now)]),
            ({"__name__": "unidle_gpu_job_info", **own, "exported_job": "4711"}, [(1, now)]),
            ({"__name__": "unidle_gpu_allocated", **own}, [(1, now)]),
            ({"__name__": "unidle_gpu_info", **own, "model": "NVIDIA B200"}, [(1, now)]),
            ({"__name__": "unidle_host_cpu_iowait_ratio", **host}, [(0.25, now)]),
            ({"__name__": "unidle_simulated", **host}, [(1, now)]),
        ),
        0,
    )
    (scrape,) = assembler.settled(10)
    ((source, _, reading),) = scrape.nodes["10.0.0.7"]
    (gpu,) = reading.gpus
    assert source == "replay", "SIMULATED stays SIMULATED"
    assert gpu.values == {"energy_j": 12_345}
    assert (gpu.facts.model, gpu.facts.owner.job, gpu.facts.owner.allocated) == ("NVIDIA B200", "4711", True)
    assert reading.host == {"cpu_iowait_ratio": 0.25}
    assembler.take(write_request((named("DCGM_FI_DEV_GPU_UTIL"), [(97, now + 1)])), 20)
    assert [dict(each.nodes) for each in assembler.settled(30)] == [{}]


# The endpoint


@contextmanager
def receiving(folder: Path) -> Iterator[tuple[Site, Receiver, TestClient]]:
    with site(folder) as here:
        receiver = Receiver(here.live, lambda: 0.0)
        client = TestClient(create_app(here.live, here.tokens, receiver))
        yield here, receiver, client


def post(client: TestClient, body: bytes, token: str = Site.token, **headers: str) -> tuple[int, str]:
    sent = {
        "Authorization": f"Bearer {token}",
        "Content-Type": "application/x-protobuf",
        "Content-Encoding": "snappy",
        "X-Prometheus-Remote-Write-Version": "0.1.0",
    }
    reply = client.post(PATH, content=body, headers={**sent, **headers})
    return reply.status_code, reply.text


def test_what_a_prometheus_sends_is_stored_and_accounted_like_a_push(tmp_path: Path) -> None:
    with receiving(tmp_path) as (here, receiver, client):
        for second in range(0, 75, 15):
            at_ms = (START_S + second) * 1000
            body = packed(
                (named("DCGM_FI_DEV_GPU_UTIL", pod="p", namespace="ml"), [(97, at_ms)]),
                (
                    named("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", pod="p", namespace="ml"),
                    [(6e5 * second, at_ms)],
                ),
            )
            here.clock.at_s = START_S + second
            assert post(client, body) == (204, "")
        receiver.hand_over(everything=True)
        here.settle(70)
        (gpu,) = here.get("gpus")
        assert (gpu["node"], gpu["gpu"]) == ("n1", "GPU-0")
        assert re.fullmatch(r"namespace-\w+-\w+/pod-\w+-\w+", gpu["job"]), (
            "names are hidden, as an agent does"
        )
        assert gpu["values"]["gpu_util_ratio"] == pytest.approx(0.97)
        assert here.counter("rows_ingested") == 5
        assert here.counter("remote_write_rows") == 5
        (account,) = here.get("accounts", by="job")
        assert account["key"] == gpu["job"]
        assert account["seconds"]["productive"] > 50


def test_the_same_request_twice_and_one_out_of_order_are_taken_without_complaint(tmp_path: Path) -> None:
    with receiving(tmp_path) as (here, receiver, client):
        new = packed((named("DCGM_FI_DEV_GPU_UTIL"), [(97, (START_S + 60) * 1000)]))
        old = packed((named("DCGM_FI_DEV_GPU_UTIL"), [(97, (START_S + 30) * 1000)]))
        here.clock.at_s = START_S + 61
        for body in (new, new, old):
            assert post(client, body) == (204, "")
            receiver.hand_over(everything=True)
        assert here.counter("rows_ingested") == 3


@pytest.mark.parametrize(
    ("body", "headers", "status", "words"),
    [
        pytest.param(b"garbage!", {}, 400, "snappy", id="no snappy"),
        pytest.param(
            bytes(cramjam.snappy.compress_raw(b"\x0a\xff")), {}, 400, "WriteRequest", id="no request"
        ),
        pytest.param(b"", {"Content-Encoding": "zstd"}, 415, "snappy", id="another packing"),
        pytest.param(
            b"",
            {"Content-Type": "application/x-protobuf;proto=io.prometheus.write.v2.Request"},
            415,
            "protobuf_message",
            id="remote_write 2",
        ),
    ],
)
def test_what_can_never_be_read_is_refused_for_good(
    tmp_path: Path, body: bytes, headers: dict[str, str], status: int, words: str
) -> None:
    with receiving(tmp_path) as (here, _, client):
        came, text = post(client, body, **headers)
        assert came == status
        assert words in text
        assert here.counter("remote_write_refused") == 1


def test_the_form_that_prometheus_3_announces_is_taken(tmp_path: Path) -> None:
    with receiving(tmp_path) as (_, _, client):
        kind = {"Content-Type": "application/x-protobuf;proto=prometheus.WriteRequest"}
        assert post(client, packed(), **kind) == (204, "")


def test_without_the_push_token_nothing_is_taken(tmp_path: Path) -> None:
    with receiving(tmp_path) as (here, _, client):
        status, text = post(client, packed((named("DCGM_FI_DEV_GPU_UTIL"), [(1, 1)])), token="wrong")
        assert status == 401
        assert "push_token" in text
        assert here.counter("requests_unauthorized") == 1
        assert here.counter("remote_write_samples") == 0


def test_a_body_beyond_the_limit_is_refused_without_being_held(tmp_path: Path) -> None:
    with receiving(tmp_path) as (_, _, client):
        assert post(client, b"\x00" * (17 * 2**20))[0] == 413


def test_while_the_collector_takes_nothing_the_server_is_asked_to_come_again_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unidle_collector.prometheus.receiver.MOST_WAITING", 1)
    with receiving(tmp_path) as (here, receiver, client):
        body = packed((named("DCGM_FI_DEV_GPU_UTIL"), [(97, START_S * 1000)]))
        assert post(client, body)[0] == 204
        with monkeypatch.context() as full:
            full.setattr(receiver._feed, "_push", _refusing)
            receiver.hand_over(everything=True)
            assert post(client, body)[0] == 503
            assert any("rows of remote_write wait" in problem for problem in here.get("health")["problems"])
        receiver.hand_over()
        assert here.counter("rows_ingested") == 1
        assert not any("remote_write" in problem for problem in here.get("health")["problems"])
        assert post(client, body)[0] == 204


def _refusing(*_: object) -> None:
    raise UnidleError("the disk is full")


def files(folder: Path) -> list[Path]:
    return list((folder / "remote_write").iterdir())


def test_what_was_acknowledged_survives_a_collector_that_is_killed(tmp_path: Path) -> None:
    body = packed((named("DCGM_FI_DEV_GPU_UTIL"), [(97, START_S * 1000)]))
    with receiving(tmp_path) as (here, _, client):
        assert post(client, body)[0] == 204
        assert here.counter("rows_ingested") == 0, "it is no row yet, and there is nobody left to make it one"
    (journal,) = files(tmp_path)
    with journal.open("ab") as torn:
        torn.write(b"the beginning of a request")
    with receiving(tmp_path) as (here, receiver, _):
        receiver.start()
        receiver.stop()
        assert here.counter("rows_ingested") == 1
        assert files(tmp_path) == []


def test_a_request_that_the_disk_took_in_part_hides_none_that_comes_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_part(file: int, data: bytes) -> None:
        os.write(file, data[: len(data) // 2])
        _no_space()

    journal = Journal(tmp_path)
    journal.append(b"first", 0.0)
    with monkeypatch.context() as full:
        full.setattr("unidle_collector.prometheus.journal.write_all", in_part)
        with pytest.raises(OSError, match="No space left"):
            journal.append(b"second", 0.0)
    journal.append(b"third", 0.0)
    assert list(Journal(tmp_path).replay(0.0)) == [b"first", b"third"]


def test_a_request_is_forgotten_once_its_rows_are_in_the_store_and_not_before(tmp_path: Path) -> None:
    with receiving(tmp_path) as (here, receiver, client):
        now = [0.0]
        receiver._monotonic = lambda: now[0]
        assert post(client, packed((named("DCGM_FI_DEV_GPU_UTIL"), [(97, START_S * 1000)])))[0] == 204
        now[0] = SETTLE_S - 1
        receiver.hand_over()
        assert len(files(tmp_path)) == 1
        now[0] = SETTLE_S
        receiver.hand_over()
        assert here.counter("rows_ingested") == 1
        assert files(tmp_path) == []


def test_a_disk_that_takes_nothing_is_answered_503(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving(tmp_path) as (_, receiver, client):
        body = packed((named("DCGM_FI_DEV_GPU_UTIL"), [(97, START_S * 1000)]))
        with monkeypatch.context() as full:
            full.setattr(receiver._journal, "append", _no_space)
            status, text = post(client, body)
            assert status == 503
            assert "No space left" in text
        assert post(client, body)[0] == 204


def _no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_labels_that_no_row_has_room_for_cost_that_scrape_only(tmp_path: Path) -> None:
    with receiving(tmp_path) as (here, receiver, client):
        at_ms = START_S * 1000
        strange = {
            **named("DCGM_FI_DEV_GPU_UTIL"),
            "instance": "n2.example:9400",
            "Hostname": "n2",
            "gpu": "9" * 30,
        }
        assert post(client, packed((strange, [(97, at_ms)])))[0] == 204
        assert post(client, packed((named("DCGM_FI_DEV_GPU_UTIL"), [(97, at_ms)])))[0] == 204
        receiver.hand_over(everything=True)
        assert here.counter("rows_ingested") == 1
        assert here.counter("remote_write_batches_dropped") == 1


def test_the_endpoint_is_not_there_until_it_is_turned_on(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        reply = here.http.post(PATH, content=b"", headers={"Authorization": f"Bearer {here.token}"})
        assert reply.status_code == 404
