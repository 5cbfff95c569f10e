"""Killed at any moment: nothing is lost, and at most the message in flight comes twice, with the same id."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from tests.alerts.alerts_bench import Bench
from tests.fake_slack import FakeSlack
from tests.fakes import (
    SECOND_NS,
    FakeCollector,
    FakeCollectorServer,
    FakeNotifier,
    make_incident,
    resolve,
)

from unidle_alerts.notice import Notice
from unidle_alerts.notifiers import Outcome
from unidle_alerts.plan import Rules


class Killed(BaseException):
    """Stands for kill -9: nothing in the code catches it."""


class Fate:
    """Kills at each edge (before a commit, before and after a message) with some probability."""

    def __init__(self, seed: int, probability: float = 0.15) -> None:
        self.random = random.Random(seed)
        self.probability = probability
        self.kills = 0

    def __call__(self, *_: Any) -> None:
        if self.random.random() < self.probability:
            self.kills += 1
            raise Killed


class MortalNotifier(FakeNotifier):
    """Dies before a message is accepted, or after it was and before anybody could note that."""

    def __init__(self, fate: Fate) -> None:
        super().__init__()
        self.fate = fate

    def send(self, notice: Notice) -> Outcome:
        self.fate()
        outcome = super().send(notice)
        self.fate()
        return outcome


def mortal_bench(folder: Path, fate: Fate) -> Bench:
    rules = Rules(settle_s=1.0, group_window_s=10.0, group_limit=4)
    bench = Bench(folder, notifiers=(MortalNotifier(fate),), rules=rules)
    event.listen(bench.outbox._engine, "commit", fate)
    return bench


def live(bench: Bench, fate: Fate, act: Callable[[], object]) -> None:
    """Do it; when killed, start a new process on the same folder."""
    try:
        act()
    except Killed:
        probability, fate.probability = fate.probability, 0.0
        bench.restart()
        fate.probability = probability
        event.listen(bench.outbox._engine, "commit", fate)


def one_random_life(folder: Path, seed: int) -> None:
    fate = Fate(seed)
    bench = mortal_bench(folder, fate)
    chance = random.Random(seed)
    opened: list[str] = []
    for _ in range(60):
        if chance.random() < 0.3:
            for _ in range(chance.choice((1, 1, 2, 9))):
                incident = make_incident(f"inc-{len(opened)}", opened_ns=bench.clock())
                opened.append(incident.id)
                bench.collector.add(incident)
                if chance.random() < 0.5:
                    bench.collector.add(resolve(incident, bench.clock() + SECOND_NS))
        live(bench, fate, bench.intake.poll)
        live(bench, fate, bench.worker.step)
        bench.clock.forward(1)
    fate.probability = 0.0
    bench.run(120)
    assert fate.kills > 0
    state = bench.outbox.states()[0]
    assert (state.pending, state.dead) == (0, 0)
    with bench.outbox._engine.begin() as connection:
        rows = connection.exec_driver_sql("SELECT incident_id, status FROM outbox").all()
    assert {incident for incident, _ in rows} == set(opened)
    assert {status for _, status in rows} == {"delivered"}
    # What the fake Slack has: each incident is covered, duplicates at most one per kill.
    covered = sum(notice.tally.incidents if notice.tally else 1 for notice in bench.notifier.notices)
    transitions = covered_transitions(bench)
    assert covered >= len(opened)
    singles = Counter((kind, incident) for kind, incident in bench.told() if kind != "group")
    assert sum(count - 1 for count in singles.values()) <= fate.kills
    assert transitions >= len(rows)
    bench.outbox.close()


def covered_transitions(bench: Bench) -> int:
    """Changes of incidents that the delivered messages tell: a passed one tells two."""
    total = 0
    for notice in bench.notifier.notices:
        if notice.tally is None:
            total += 2 if notice.kind == "passed" else 1
        else:
            total += notice.tally.opened + notice.tally.resolved + 2 * notice.tally.passed
    return total


@pytest.mark.parametrize("seed", range(12))
def test_a_life_full_of_kills_loses_nothing(tmp_path: Path, seed: int) -> None:
    one_random_life(tmp_path, seed)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(8))
def test_two_hundred_more_lives_full_of_kills_lose_nothing(tmp_path: Path, block: int) -> None:
    for seed in range(100 + 25 * block, 125 + 25 * block):
        one_random_life(tmp_path / str(seed), seed)


def start(folder: Path, collector: str, slack: FakeSlack) -> subprocess.Popen[bytes]:
    """The real `unidle alerts`."""
    environment = os.environ | {
        "UNIDLE_ALERTS_COLLECTOR_URL": collector,
        "UNIDLE_ALERTS_SLACK_WEBHOOK_URL": slack.url,
        "UNIDLE_ALERTS_SLACK_HOSTS": slack.host,
        "UNIDLE_ALERTS_STATE_DIR": str(folder),
        "UNIDLE_ALERTS_PORT": "0",
        "UNIDLE_ALERTS_POLL_S": "0.05",
        "UNIDLE_ALERTS_SETTLE_S": "0",
        "UNIDLE_ALERTS_GROUP_LIMIT": "100",
    }
    log = (folder.parent / "log").open("ab")
    with log:
        command = [sys.executable, "-m", "unidle_agent.cli", "alerts", "--log-level", "DEBUG"]
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_real_process_killed_at_random_points_loses_nothing(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    folder = tmp_path / "state"
    collector = FakeCollector()
    current: list[subprocess.Popen[bytes]] = []
    armed: list[str] = []
    killed = threading.Event()
    complete = threading.Event()

    def kill_at(point: str) -> Callable[[], None]:
        def hook() -> None:
            if armed and armed[0] == point:
                armed.pop()
                current[0].kill()
                current[0].wait(30)  # it is dead before anything is answered
                killed.set()
            elif len({each["blocks"][-1]["elements"][1]["text"] for each in slack.messages}) == 6:
                complete.set()

        return hook

    slack = FakeSlack(on_request=kill_at("in flight"), on_answered=kill_at("answered"))
    with slack, FakeCollectorServer(collector, kill_at("read")) as server:
        for number in range(6):
            collector.add(make_incident(f"inc-{number}"))
        kills = 3
        for _ in range(kills):
            killed.clear()
            armed[:] = [chance.choice(("in flight", "answered", "read"))]
            current[:] = [start(folder, server.url, slack)]
            assert killed.wait(60), (tmp_path / "log").read_text()
        current[:] = [start(folder, server.url, slack)]
        try:
            assert complete.wait(60), (tmp_path / "log").read_text()
        finally:
            current[0].send_signal(signal.SIGTERM)
            assert current[0].wait(30) == 0
    seen = Counter(message["blocks"][-1]["elements"][1]["text"] for message in slack.messages)
    assert set(seen) == {f"Incident inc-{number}" for number in range(6)}
    assert sum(seen.values()) - 6 <= kills
    assert "sEcReT" not in (tmp_path / "log").read_text()
