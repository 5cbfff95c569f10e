"""The parts of `unidle up`: ports, folders, tokens, settings, children, the stand-in for Slack."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from unidle_agent.errors import UnidleError
from unidle_collector.commands import up
from unidle_collector.model import Account, Fleet, Health, Incident, Recommendation
from unidle_collector.up.plan import MARKER, ROLES, Plan, find_ports, make_plan, services
from unidle_collector.up.stand_in import StandIn
from unidle_collector.up.summary import passed, read_truth, summarize, verdict
from unidle_collector.up.supervise import ChildError, Service, Supervisor, http_status

SLEEPER = "import threading\nprint('alive', flush=True)\nthreading.Event().wait(60)\n"
STUBBORN = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SLEEPER


def module(folder: Path, name: str, source: str) -> Service:
    """A service that runs `source` as the module `name`."""
    (folder / f"{name}.py").write_text(source)
    path = os.pathsep.join([str(folder), *sys.path])
    return Service(name, (name,), {**os.environ, "PYTHONPATH": path})


def wait_for(what: object, seconds: float = 20.0) -> None:
    """Poll a predicate."""
    deadline = time.monotonic() + seconds
    while not what():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    """Has the process ended (a zombie that nobody reaps counts)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return make_plan(tmp_path / "demo", None, demo=True)


def by_name(plan: Plan, environ: dict[str, str], webhook: str = "", demo_slack: bool = False) -> dict:
    return {each.name: each for each in services(plan, environ, webhook, demo_slack, "")}


def test_taken_ports_are_skipped_by_default_and_named_when_asked_for() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UnidleError, match=f"port {port} for collector is taken"):
            find_ports(port)
    ports = find_ports(None)
    assert tuple(ports) == ROLES
    assert len(set(ports.values())) == 4
    with pytest.raises(UnidleError, match="port 65536 for agent"):
        find_ports(65535)


def test_tokens_are_readable_by_their_owner_alone_and_kept(tmp_path: Path) -> None:
    first = make_plan(tmp_path / "real", None, demo=False)
    assert stat.S_IMODE(first.tokens.read.stat().st_mode) == 0o600
    assert len(first.read_token) > 30
    assert first.read_token != first.tokens.push.read_text().strip()
    assert make_plan(tmp_path / "real", None, demo=False).read_token == first.read_token


def test_a_demo_begins_empty_and_never_empties_another_folder(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "demo", None, demo=True)
    old = plan.data_dir / "collector" / "store.db"
    old.parent.mkdir()
    old.write_text("old rows")
    token = plan.read_token
    again = make_plan(tmp_path / "demo", None, demo=True)
    assert not old.exists()
    assert (again.data_dir / MARKER).is_file()
    assert again.read_token != token
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not delete")
    with pytest.raises(UnidleError, match="no demo's folder"):
        make_plan(tmp_path / "mine", None, demo=True)
    assert (tmp_path / "mine" / "thesis.txt").is_file()


def test_a_demo_runs_on_the_products_defaults(plan: Plan) -> None:
    mine = {"UNIDLE_COLLECTOR_SITE": "my-site", "UNIDLE_AGENT_PUSH_URL": "http://my-site", "PATH": "/bin"}
    for service in by_name(plan, mine).values():
        text = json.dumps(dict(service.environment))
        assert "my-site" not in text
        assert service.environment["PATH"] == "/bin"
        assert Path(service.environment["UNIDLE_CONFIG"]).read_text().startswith("#")


def test_a_demo_does_not_mix_this_machines_samples_into_its_store(plan: Plan) -> None:
    started = by_name(plan, {})
    assert list(started)[:2] == ["collector", "simulator"]
    assert "UNIDLE_AGENT_PUSH_URL" not in started["agent"].environment
    assert started["simulator"].environment["UNIDLE_SIMULATOR_COLLECTOR_URL"] == plan.url("collector")


def test_simulated_messages_reach_a_real_slack_only_when_asked_for(plan: Plan) -> None:
    mine = {
        "UNIDLE_ALERTS_SLACK_WEBHOOK_URL": "https://hooks.slack.com/services/T/B/x",
        "UNIDLE_AGENT_PUSH_URL": "http://my-site",
    }
    held = by_name(plan, mine, webhook="http://127.0.0.1:5/services/simulated")["alerts"].environment
    assert held["UNIDLE_ALERTS_SLACK_WEBHOOK_URL"] == "http://127.0.0.1:5/services/simulated"
    assert held["UNIDLE_ALERTS_SLACK_HOSTS"] == "127.0.0.1"
    asked = by_name(plan, mine, demo_slack=True)
    assert asked["alerts"].environment["UNIDLE_ALERTS_SLACK_WEBHOOK_URL"].startswith("https://hooks")
    assert "UNIDLE_ALERTS_SLACK_WEBHOOK_URL" not in asked["collector"].environment
    assert "UNIDLE_AGENT_PUSH_URL" not in asked["alerts"].environment


def test_real_roles_get_the_users_settings_but_our_tokens_and_addresses(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "real", None, demo=False)
    mine = {"UNIDLE_AGENT_PUSH_TOKEN": "old", "UNIDLE_AGENT_PERIOD_S": "2", "UNIDLE_COLLECTOR_PORT": "1"}
    started = by_name(plan, mine)
    assert "simulator" not in started
    agent, collector = started["agent"].environment, started["collector"].environment
    assert agent["UNIDLE_AGENT_PERIOD_S"] == "2"
    assert "UNIDLE_AGENT_PUSH_TOKEN" not in agent, "it would win over the file"
    assert agent["UNIDLE_AGENT_PUSH_TOKEN_FILE"] == collector["UNIDLE_COLLECTOR_PUSH_TOKEN_FILE"]
    assert collector["UNIDLE_COLLECTOR_PORT"] == str(plan.ports["collector"])
    token = plan.read_token
    for service in started.values():
        assert token not in " ".join(service.arguments)


def test_children_are_stopped_in_reverse_order(tmp_path: Path) -> None:
    ends = tmp_path / "ends"
    source = (
        "import signal, sys, threading\n"
        "stop = threading.Event()\n"
        "signal.signal(signal.SIGTERM, lambda *_: stop.set())\n"
        f"open({str(ends)!r} + '.up', 'a').write(__file__[-6:-3] + ' ')\n"
        "stop.wait(60)\n"
        f"open({str(ends)!r}, 'a').write(__file__[-6:-3] + ' ')\n"
    )
    up = tmp_path / "ends.up"
    with Supervisor(tmp_path / "logs", threading.Event()) as children:
        for name in ("one", "two"):
            children.start(module(tmp_path, name, source))
            wait_for(lambda name=name: up.exists() and name in up.read_text())
        children.check()
    assert ends.read_text() == "two one "


def test_a_child_that_dies_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    with Supervisor(tmp_path / "logs", threading.Event()) as children:
        children.start(module(tmp_path, "doomed", "print('disk is full'); raise SystemExit(7)"))
        with pytest.raises(ChildError, match=r"doomed ended with exit code 7.*\n  disk is full"):
            wait_for(lambda: children.check())
    assert "disk is full" in (tmp_path / "logs" / "doomed.log").read_text()


def test_a_child_that_ignores_sigterm_is_killed_when_hurried(tmp_path: Path) -> None:
    with Supervisor(tmp_path / "logs", threading.Event()) as children:
        children.start(module(tmp_path, "stubborn", STUBBORN))
        log = tmp_path / "logs" / "stubborn.log"
        wait_for(lambda: "alive" in log.read_text())
        pid = children._children[0].process.pid
        children.hurry.set()
    assert is_gone(pid)


def test_no_child_outlives_a_killed_parent(tmp_path: Path) -> None:
    module(tmp_path, "orphan", "import os\nprint(os.getpid(), flush=True)\n" + SLEEPER)
    parent = (
        "import os, sys, threading\n"
        "from pathlib import Path\n"
        "from unidle_collector.up.supervise import Service, Supervisor\n"
        f"children = Supervisor(Path({str(tmp_path)!r}), threading.Event()).__enter__()\n"
        "children.start(Service('orphan', ('orphan',), dict(os.environ)))\n"
        "threading.Event().wait(60)\n"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    process = subprocess.Popen([sys.executable, "-c", parent], env=environ)
    log = tmp_path / "orphan.log"
    try:
        wait_for(lambda: log.exists() and "alive" in log.read_text())
        child = int(log.read_text().split()[0])
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    wait_for(lambda: is_gone(child))


def post(url: str, body: bytes) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=10) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_the_stand_in_answers_as_slack_does_and_keeps_what_it_got(tmp_path: Path) -> None:
    told: list[str] = []
    with StandIn(tmp_path / "messages.jsonl", told.append) as slack:
        assert post(slack.url, b'{"text": "SIMULATED: 8 GPUs idle\\nmore"}') == (200, "ok")
        assert post(slack.url, b"no json") == (400, "invalid_payload")
        assert post(slack.url, b'{"blocks": []}') == (400, "invalid_payload")
        assert slack.delivered == 1
    assert told == ["SIMULATED: 8 GPUs idle"]
    assert json.loads((tmp_path / "messages.jsonl").read_text())["text"].startswith("SIMULATED")


def test_nobody_at_an_address_is_no_status() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        assert http_status(f"http://127.0.0.1:{held.getsockname()[1]}/") is None


def test_the_verdict_names_what_was_missed_and_what_was_false(tmp_path: Path) -> None:
    summary = {
        "faults_injected": {"idle": 2},
        "faults_missed": 1,
        "false_findings": 0,
        "recommendations": 1,
        "messages_delivered": 4,
        "rows_ingested": 12345,
        "gpus": 512,
        "details": [
            {"verdict": "missed", "kind": "idle", "cause": "held", "where": "sim-000", "text": "not told"}
        ],
    }
    lines = verdict(summary)
    assert lines[0].split() == ["missed", "idle", "held", "sim-000:", "not", "told"]
    assert "2 faults were due, 1 missed, 0 false findings" in lines[1]
    assert "12,345 rows" in lines[1]
    assert not passed(summary)
    assert passed({**summary, "faults_missed": 0})
    assert read_truth(tmp_path / "none.json") == {}


class FakeApi:
    """A collector with one open incident at event time 5,000 s."""

    def health(self) -> Health:
        return Health(True, (), "0", False, 1.0, 5000 * 10**9, 0.0, {"rows_ingested": 77.0})

    def incidents(self, state: str = "open") -> list[Incident]:
        assert state == "all"
        return []

    def fleet(self, window_s: float = 3600) -> Fleet:
        account = Account("fleet", 0, 1, 3, {})
        return Fleet("", None, False, 1, 3, 0, {}, account, 0, 0)

    def recommendations(self) -> list[Recommendation]:
        return []


def test_a_summary_without_simulated_faults_judges_nothing() -> None:
    summary = summarize(FakeApi(), {}, None, 200)  # type: ignore[arg-type]
    assert (summary["simulated"], summary["rows_ingested"], summary["gpus"]) == (False, 77, 3)
    assert summary["faults_missed"] is None
    assert summary["false_findings"] is None
    assert summary["messages_delivered"] is None


def test_a_summary_counts_a_due_fault_that_was_not_found() -> None:
    row = {"kind": "idle", "cause": "held", "node": "sim-000", "gpus": ["a"], "job": "j"}
    times = {"start_ns": 10**9, "end_ns": None, "evident_ns": 10**9}
    truth = {"simulated": True, "faults": [{**row, **times}], "history_s": 4000, "sim_speed": 80.0}
    summary = summarize(FakeApi(), truth, 2, 200)  # type: ignore[arg-type]
    assert summary["simulated"] is True
    assert summary["faults_injected"]["idle"] == 1
    assert summary["faults_missed"] == 1
    assert (summary["messages_delivered"], summary["history_s"], summary["sim_speed"]) == (2, 4000, 80.0)


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    up.arguments(parser)
    return parser.parse_args(arguments)


@pytest.mark.parametrize(("text", "seconds"), [("60s", 60), ("90", 90), ("5m", 300), ("1.5h", 5400)])
def test_times_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert parsed("--for", text).duration_s == seconds


@pytest.mark.parametrize("text", ["", "soon", "5 parsecs", "-3s"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentError, match="expected a time such as 60s"):
        parsed(f"--for={text}")


def test_a_summary_needs_an_end() -> None:
    with pytest.raises(UnidleError, match="--summary needs --for"):
        up.run(parsed("--demo", "--summary", "x.json"))


def test_one_up_per_folder(tmp_path: Path) -> None:
    with up._lock(tmp_path / "d"), pytest.raises(UnidleError, match="another unidle up runs"):
        up._lock(tmp_path / "d").__enter__()
