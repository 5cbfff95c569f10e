"""Readers and pushes at the same time: neither keeps the other from its answer."""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.collector.api_server import full_data_of, listening
from tests.collector.pushing import START_S, Site, site

from unidle_collector.api.arrow import MEDIA_TYPE

NODES, GPUS, SECONDS, READERS, PUSHERS = 250, 8, 5, 20, 4
ASKED = (
    "gpus?limit=10000",
    "gpus?limit=200&fields=gpu_util_ratio",
    "nodes",
    "jobs",
    "fleet",
    "accounts?by=gpu&limit=10000",
    "accounts?by=hour&window_s=86400",
    "findings",
    "recommendations",
    "incidents?state=all",
    "series?node=n0007&gpu=GPU-0007-3&field=sm_active_ratio&window_s=86400",
    "health",
)


@pytest.mark.slow
def test_twenty_readers_hold_up_no_push_of_two_thousand_gpus(tmp_path: Path) -> None:
    with site(tmp_path) as here, listening(here) as url:
        answers: Counter[tuple[str, int]] = Counter()
        pushed: Counter[int] = Counter()
        _push(url, range(NODES), 0, pushed)  # what the readers ask for is there
        done = threading.Event()
        readers = [
            threading.Thread(target=_read, args=(url, number, done, answers)) for number in range(READERS)
        ]
        for reader in readers:
            reader.start()
        try:
            for second in range(1, SECONDS):
                here.clock.at_s = START_S + second + 1
                pushers = [
                    threading.Thread(target=_push, args=(url, range(n, NODES, PUSHERS), second, pushed))
                    for n in range(PUSHERS)
                ]
                for pusher in pushers:
                    pusher.start()
                for pusher in pushers:
                    pusher.join()
            here.settle(SECONDS + 3)
        finally:
            done.set()
            for reader in readers:
                reader.join()
        assert pushed == {200: NODES * SECONDS}
        assert here.counter("rows_ingested") == NODES * GPUS * SECONDS
        assert here.counter("pushes_busy") == here.counter("rows_late") == 0
        assert here.live.window.time_ns == (START_S + SECONDS - 1) * 10**9
        assert {status for _, status in answers} == {200}
        assert {path for path, _ in answers} == set(ASKED)
        print(f"{sum(answers.values())} answers while {NODES * SECONDS} batches were acknowledged")


def _push(url: str, nodes: range, second: int, pushed: Counter[int]) -> None:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    headers = {"Authorization": f"Bearer {Site.token}"}
    for number in nodes:
        connection.request("POST", "/api/v1/push", full_data_of(number, GPUS, 20, second), headers)
        reply = connection.getresponse()
        reply.read()
        pushed[reply.status] += 1
    connection.close()


def _read(url: str, number: int, done: threading.Event, answers: Counter[tuple[str, int]]) -> None:
    """Ask one thing after the other until told to stop, every second reader by Arrow."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    headers = {"Accept": MEDIA_TYPE if number % 2 else "application/json"}
    turn = number
    while not done.is_set():
        path = ASKED[turn % len(ASKED)]
        turn += 1
        connection.request("GET", f"/api/v1/{path}", headers=headers)
        reply = connection.getresponse()
        reply.read()
        answers[path, reply.status] += 1
    connection.close()
