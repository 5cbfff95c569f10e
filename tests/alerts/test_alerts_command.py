"""`unidle alerts` as people meet it: flags, the daemon with its health and metrics, doctor's checks."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.fake_slack import Answer, FakeSlack
from tests.fakes import FakeClock, FakeCollector, FakeCollectorServer, FakeNotifier, make_incident, resolve

from unidle_agent.cli import main
from unidle_alerts import checks
from unidle_alerts.errors import StoreError
from unidle_alerts.notifiers import Outcome
from unidle_alerts.service import Service
from unidle_alerts.settings import AlertsSettings


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets UNIDLE_ALERTS_*; starts from an empty folder without any configuration file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNIDLE_CONFIG", "")

    def put(**values: str) -> None:
        for name, value in ({"state_dir": str(tmp_path / "state")} | values).items():
            monkeypatch.setenv(f"UNIDLE_ALERTS_{name.upper()}", value)

    put()
    return put


def test_the_test_message_says_what_happened(
    environment: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeSlack([Answer(200), Answer(404), Answer(429, retry_after="9")]) as slack:
        environment(slack_webhook_url=slack.url, slack_hosts=slack.host, site="eu-fra-1")
        codes = [main(["alerts", "--test"]) for _ in range(3)]
    out = capsys.readouterr().out
    assert codes == [0, 1, 1]
    assert "slack_webhook: delivered: HTTP 200 ok" in out
    assert "slack_webhook: refused: HTTP 404 no_service" in out
    assert "failed, would be tried again: HTTP 429 rate_limited (it asks to wait 9 s)" in out
    assert "sEcReT" not in out
    assert slack.messages[0]["text"] == "TEST · unidle can send messages here · eu-fra-1"


def test_a_test_without_any_destination_says_what_to_set(
    environment: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["alerts", "--test"]) == 1
    assert "--slack-webhook-url-file" in capsys.readouterr().err


def test_once_tells_what_is_there_on_the_terminal_and_a_second_time_nothing(
    environment: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    collector = FakeCollector()
    collector.add(make_incident("now", simulated=True))
    with FakeCollectorServer(collector) as server:
        environment(collector_url=server.url)
        assert main(["alerts", "--once"]) == 0
        first = capsys.readouterr().out
        assert main(["alerts", "--once"]) == 0
        second = capsys.readouterr().out
    assert first.startswith("SIMULATED · WARNING · idle: memory held, nothing runs · 8 GPUs on gpu-07.")
    assert first.endswith("stdout: 1 delivered, 0 given up\n")
    assert second == "stdout: 1 delivered, 0 given up\n"


def test_once_without_a_collector_fails_and_says_what_to_start(
    environment: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    environment(collector_url="http://127.0.0.1:1")
    assert main(["alerts", "--once"]) == 1
    assert "start one with: unidle collector" in capsys.readouterr().err


def test_what_was_given_up_can_be_sent_after_the_webhook_was_corrected(
    environment: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    collector = FakeCollector()
    collector.add(make_incident())
    with FakeSlack([Answer(404)]) as slack, FakeCollectorServer(collector) as server:
        environment(collector_url=server.url, slack_webhook_url=slack.url, slack_hosts=slack.host)
        main(["alerts", "--once"])
        assert "slack_webhook: 0 delivered, 1 given up" in capsys.readouterr().out
        assert main(["alerts", "--retry-dead"]) == 0
        assert "1 change back in line" in capsys.readouterr().out
        main(["alerts", "--once"])
    assert len(slack.messages) == 1


def test_a_wrong_address_stops_the_start_and_is_not_shown(
    environment: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    environment(slack_webhook_url="https://evil.example/services/T0/B0/sEcReT")
    assert main(["alerts"]) == 2
    err = capsys.readouterr().err
    assert "alerts.slack_webhook_url: expected a host of hooks.slack.com" in err
    assert "sEcReT" not in err


def test_the_help_page_has_the_commands_and_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["alerts", "--help"])
    out = capsys.readouterr().out
    assert "unidle alerts --test" in out
    assert "--slack-webhook-url-file" in out
    assert "--slack-webhook-url " not in out


@contextlib.contextmanager
def daemon(service: Service) -> Iterator[str]:
    """The service running on threads; gives its address."""
    stop = threading.Event()
    thread = threading.Thread(target=service.run, args=(stop,))
    thread.start()
    try:
        wait_for(lambda: service.address != "")
        yield service.address
    finally:
        stop.set()
        thread.join(30)
        service.close()
        assert not thread.is_alive()


def wait_for(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as reply:
        return str(reply.read().decode())


def quick(folder: Path) -> AlertsSettings:
    return AlertsSettings(state_dir=str(folder), port=0, poll_s=0.05, settle_s=0.0)


def test_the_daemon_delivers_and_its_health_and_metrics_say_so(tmp_path: Path) -> None:
    collector, notifier = FakeCollector(), FakeNotifier([Outcome("dead", "HTTP 404 no_service")])
    collector.add(make_incident("a"))
    with daemon(Service(quick(tmp_path), collector, (notifier,))) as address:
        wait_for(lambda: len(notifier.attempts) == 1)
        wait_for(lambda: not json.loads(read(f"{address}/health"))["ok"])
        health = json.loads(read(f"{address}/health"))
        assert "slack_webhook: 1 change given up, last: HTTP 404 no_service" in health["problems"][0]
        collector.add(make_incident("b"))
        wait_for(
            lambda: 'messages_delivered_total{destination="slack_webhook"} 1' in read(f"{address}/metrics")
        )
        assert 'unidle_alerts_messages_dead_total{destination="slack_webhook"} 1' in read(
            f"{address}/metrics"
        )
        assert health["destinations"]["slack_webhook"]["given_up"] == 1


def test_the_metrics_page_is_one_that_prometheus_reads(tmp_path: Path) -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    service = Service(quick(tmp_path), FakeCollector(), (FakeNotifier(),))
    families = {family.name: family for family in parser.text_string_to_metric_families(service.metrics())}
    service.close()
    assert families["unidle_alerts_messages_delivered"].type == "counter"
    assert {"unidle_alerts_pending", "unidle_alerts_oldest_pending_seconds"} <= set(families)
    assert all(family.documentation for family in families.values())


def test_a_collector_that_is_away_is_a_problem_until_it_answers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    collector, notifier = FakeCollector(), FakeNotifier()
    collector.problem = "no collector answers"
    with daemon(Service(quick(tmp_path), collector, (notifier,))) as address:
        wait_for(lambda: len(collector.asked) > 3)
        assert json.loads(read(f"{address}/health"))["problems"] == ["no collector answers"]
        collector.problem = ""
        wait_for(lambda: json.loads(read(f"{address}/health"))["ok"])
    assert caplog.text.count("no collector answers") == 1


def test_without_a_destination_health_says_that_nobody_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    collector = FakeCollector()
    collector.add(make_incident())
    service = Service(quick(tmp_path), collector, ())
    service.poll()
    service.poll()
    problems = service.health()["problems"]
    service.close()
    assert problems == ["no destination is configured: 1 change told to nobody"]
    assert caplog.text.count("no destination is configured") == 1


def test_what_waits_long_is_a_problem_with_its_reason(tmp_path: Path) -> None:
    clock, notifier = FakeClock(), FakeNotifier([Outcome("retry", "HTTP 503")] * 9)
    collector = FakeCollector()
    collector.add(make_incident())
    service = Service(quick(tmp_path), collector, (notifier,), clock)
    service.poll()
    service.worker.step()
    clock.forward(601)
    assert service.health()["problems"] == ["slack_webhook: 1 change waiting for 601 s, last: HTTP 503"]
    service.close()


def test_a_second_process_on_the_same_outbox_is_refused(tmp_path: Path) -> None:
    first = Service(quick(tmp_path), FakeCollector(), ())
    with pytest.raises(StoreError, match="in use by another"):
        Service(quick(tmp_path), FakeCollector(), ())
    first.close()
    Service(quick(tmp_path), FakeCollector(), ()).close()


def test_a_broken_outbox_is_a_problem_and_delivery_goes_on_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unidle_alerts.service.BROKEN_WAIT_S", 0.05)
    collector, notifier = FakeCollector(), FakeNotifier()
    service = Service(quick(tmp_path), collector, (notifier,))
    step, broken = service.worker.step, [True]

    def maybe() -> int:
        if broken[0]:
            raise OSError("disk full")
        return step()

    monkeypatch.setattr(service.worker, "step", maybe)
    with daemon(service) as address:
        wait_for(lambda: "disk full" in read(f"{address}/health"))
        broken[0] = False
        collector.add(make_incident())
        wait_for(lambda: len(notifier.notices) == 1)
        wait_for(lambda: json.loads(read(f"{address}/health"))["ok"])


def test_an_incident_that_resolves_is_told_by_the_running_daemon(tmp_path: Path) -> None:
    collector, notifier = FakeCollector(), FakeNotifier()
    incident = make_incident(opened_ns=time.time_ns())
    collector.add(incident)
    with daemon(Service(quick(tmp_path), collector, (notifier,))):
        wait_for(lambda: len(notifier.notices) == 1)
        collector.add(resolve(incident, time.time_ns()))
        wait_for(lambda: len(notifier.notices) == 2)
    assert [notice.kind for notice in notifier.notices] == ["opened", "resolved"]


def test_doctor_says_whether_slack_is_configured_without_sending(environment: Callable[..., None]) -> None:
    assert checks.slack().status == "absent"
    with FakeSlack() as slack:
        environment(slack_webhook_url=slack.url)
        wrong = checks.slack()
        environment(slack_hosts=slack.host)
        local = checks.slack()
        environment(dashboard_url="https://unidle.example.org")
        good = checks.slack()
        assert slack.requests == []
    assert (wrong.status, local.status, good.status) == ("fail", "warn", "ok")
    assert "dashboard_url" in local.todo
    assert "sEcReT" not in repr((wrong, local, good))


def test_doctor_says_whether_the_outbox_can_be_written(
    environment: Callable[..., None], tmp_path: Path
) -> None:
    assert checks.outbox().status == "ok"
    (tmp_path / "file").write_text("")
    environment(state_dir=str(tmp_path / "file" / "state"))
    assert checks.outbox().status == "fail"


def test_the_outbox_lies_where_the_user_may_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/xdg")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert AlertsSettings().state_path == Path("/xdg/unidle/alerts")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert AlertsSettings().state_path == Path("/var/lib/unidle/alerts")
