"""What a collector does with input that is wrong; docs/failure-modes.md names these tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.collector.pushing import START_S, Site, batch, site

from unidle_agent.wire import encode
from unidle_collector.store import StoreFull

BUSY = {"gpu_util_ratio": 0.9, "sm_active_ratio": 0.8, "power_w": 600.0, "memory_used_bytes": 3e10}


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as running:
        running.clock.at_s = START_S + 5
        yield running


def test_a_malformed_push_is_refused_with_what_was_expected_and_counted(here: Site) -> None:
    status, reply = here.push(b"junk")
    assert status == 400
    assert "expected" in reply["detail"]
    whole = encode(batch(1, 0, 5, BUSY))
    assert here.push(whole[: len(whole) // 2])[0] == 400
    assert here.counter("batches_malformed") == 2
    assert here.push(whole)[0] == 200


def test_a_wrong_token_is_refused_and_counted(here: Site) -> None:
    status, reply = here.push(batch(1, 0, 5, BUSY), token="wrong")
    assert status == 401
    assert "push_token" in reply["detail"]
    assert here.token not in str(reply)
    assert here.counter("requests_unauthorized") == 1
    assert here.counter("rows_ingested") == 0


def test_a_read_token_does_not_push_and_a_push_token_does_not_read(tmp_path: Path) -> None:
    with site(tmp_path, read_token="reader") as running:
        assert running.http.get("/api/v1/fleet").status_code == 401
        assert (
            running.http.get("/api/v1/fleet", headers={"Authorization": "Bearer reader"}).status_code == 200
        )
        pushing = {"Authorization": f"Bearer {running.token}"}
        assert running.http.get("/api/v1/fleet", headers=pushing).status_code == 401
        assert running.push(batch(1, 0, 5, BUSY), token="reader")[0] == 401


def test_a_duplicate_batch_is_acknowledged_and_counts_once(here: Site) -> None:
    assert here.push(batch(7, 0, 5, BUSY)) == (200, {"ack": 7, "send_facts": False, "duplicate": False})
    assert here.push(batch(7, 0, 5, BUSY)) == (200, {"ack": 7, "send_facts": False, "duplicate": True})
    assert here.counter("rows_ingested") == 10
    assert here.counter("batches_duplicate") == 1


def test_a_clock_hours_off_is_corrected_and_said(here: Site) -> None:
    hours = 3 * 3600
    here.clock.at_s = START_S + 5
    status, _ = here.push(batch(1, hours, 5, BUSY), clock_s=START_S + hours + 5)
    assert status == 200
    health = here.get("health")
    assert isinstance(health, dict)
    skewed = [text for text in health["problems"] if "clock of node n1" in text]
    assert len(skewed) == 1
    assert "10800 s ahead" in skewed[0]
    assert "NTP" in skewed[0]
    here.settle(10)
    assert here.live.window.time_ns == (START_S + 4) * 10**9
    assert here.counter("batches_clock_corrected") == 1


def test_rows_from_the_future_are_counted_and_the_others_kept(here: Site) -> None:
    here.push(batch(1, 0, 5, BUSY))
    here.settle(10)
    assert here.push(batch(2, 7200, 5, BUSY))[0] == 200
    assert here.counter("rows_future") == 10
    here.push(batch(3, 5, 5, BUSY))
    here.settle(12)
    assert here.live.window.time_ns == (START_S + 9) * 10**9


def test_nan_infinite_and_impossible_values_become_unknown(here: Site) -> None:
    bad = {
        "power_w": float("inf"),
        "gpu_util_ratio": 45.0,
        "sm_active_ratio": None,
        "memory_used_bytes": 3e10,
    }
    assert here.push(batch(1, 0, 5, bad))[0] == 200
    here.settle(10)
    gpus = here.get("gpus")
    assert isinstance(gpus, list)
    assert [gpus[0]["values"][name] for name in bad] == [None, None, None, 3e10]
    assert here.counter("values_refused") == 20


def test_a_negative_counter_is_unknown_and_a_reset_starts_anew(here: Site) -> None:
    energy = {"energy_j": [-5, 1_000_000, 1_100_000, 200, 100_200]}
    assert here.push(batch(1, 0, 5, BUSY, counters=energy))[0] == 200
    here.settle(10)
    assert here.counter("counter_resets") == 2  # one per GPU
    series = here.get("series", node="n1", gpu="GPU-a", field="energy_j", window_s=60)
    assert isinstance(series, dict)
    assert [value for value in series["values"] if value is not None] == [100.0, 100.0]
    assert series["unit"] == "J/s"


def test_an_unknown_gpu_is_taken_in_and_its_facts_are_asked_for(here: Site) -> None:
    status, reply = here.push(batch(1, 0, 5, BUSY, facts=False, gpus=("GPU-new",)))
    assert (status, reply["send_facts"]) == (200, True)
    here.settle(10)
    gpus = here.get("gpus")
    assert isinstance(gpus, list)
    assert [(gpu["gpu"], gpu["model"]) for gpu in gpus] == [("GPU-new", "")]


def test_a_push_of_50_mb_is_refused_without_being_read_whole(here: Site) -> None:
    status, reply = here.push(b"\0" * 50_000_000)
    assert status == 413
    assert "8388608" in reply["detail"]
    assert here.counter("batches_too_large") == 1


def test_a_zip_bomb_is_refused(here: Site) -> None:
    import zlib

    status, reply = here.push(zlib.compress(b"\0" * 100_000_000, 9))
    assert status == 400
    assert "at most" in reply["detail"]


def test_a_full_disk_answers_503_and_recovers_by_itself(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    append = here.live.store.append
    monkeypatch.setattr(here.live.store, "append", _full)
    assert here.push(batch(1, 0, 5, BUSY))[0] == 503
    health = here.get("health")
    assert isinstance(health, dict)
    assert health["ok"] is False
    monkeypatch.setattr(here.live.store, "append", append)
    assert here.push(batch(1, 0, 5, BUSY))[0] == 200
    health = here.get("health")
    assert isinstance(health, dict)
    assert not [text for text in health["problems"] if "full" in text]


def _full(*_: object) -> int:
    raise StoreFull("the disk is full: free some space")


def test_late_rows_are_kept_and_counted_and_open_nothing(here: Site) -> None:
    here.push(batch(1, 0, 5, BUSY))
    here.push(batch(1, 0, 60, BUSY, node="n2", gpus=("GPU-z",)))
    here.settle(20)
    here.settle(40)
    reached = here.live.window.time_ns
    assert reached is not None
    here.push(batch(2, -100, 5, BUSY))
    assert here.counter("rows_late") == 10
    assert here.get("findings") == []


def test_a_foreign_host_header_is_refused(here: Site) -> None:
    assert here.http.get("/api/v1/fleet", headers={"Host": "evil.example"}).status_code == 400


@pytest.mark.parametrize(
    ("path", "query", "words"),
    [
        ("series", {"node": "n1", "gpu": "GPU-a", "field": "nonsense"}, "field"),
        ("series", {"node": "n1", "gpu": "GPU-none", "field": "power_w"}, "GPU"),
        ("accounts", {"by": "colour"}, "by: expected"),
        ("accounts", {"by": "job", "window_s": -3}, "window_s"),
        ("gpus", {"after": "bm9uc2Vuc2U"}, "after: expected"),
        ("gpus", {"fields": "nonsense"}, "field: expected"),
    ],
)
def test_a_wrong_question_gets_422_and_says_why(here: Site, path: str, query: dict, words: str) -> None:
    here.push(batch(1, 0, 5, BUSY))
    here.settle(10)
    reply = here.http.get(f"/api/v1/{path}", params=query)
    assert reply.status_code == 422
    assert words in reply.json()["detail"]


@pytest.mark.parametrize(
    ("path", "query", "words"),
    [
        ("incidents/none", {}, "no incident 'none'"),
        ("gpus", {"node": "none"}, "node: expected"),
        ("nodes", {"node": "none"}, "node: expected"),
        ("quantile", {"job": "none", "field": "power_w"}, "nothing of power_w is kept"),
    ],
)
def test_what_is_not_there_gets_404_and_says_so(here: Site, path: str, query: dict, words: str) -> None:
    here.push(batch(1, 0, 5, BUSY))
    here.settle(10)
    reply = here.http.get(f"/api/v1/{path}", params=query)
    assert reply.status_code == 404
    assert words in reply.json()["detail"]
