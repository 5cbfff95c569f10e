"""Sending to what behaves as Slack: every answer, no redirect, no secret in any log."""

from __future__ import annotations

import logging
import socket
from email.utils import formatdate
from pathlib import Path

import pytest
from tests.alerts.alerts_bench import Bench
from tests.fake_slack import TOKEN, Answer, FakeSlack
from tests.fakes import START_NS, make_incident

from unidle_agent.errors import SettingError
from unidle_agent.settings import Secret
from unidle_alerts.notice import Notice
from unidle_alerts.notifiers import configured
from unidle_alerts.notifiers.slack_webhook import SlackWebhook, outcome
from unidle_alerts.post import Reply, url_problem
from unidle_alerts.redact import RedactingFormatter, redact
from unidle_alerts.settings import AlertsSettings

NOTICE = Notice("opened", START_NS, "eu-fra-1", False, (make_incident(),))
REAL = "https://hooks.slack.com/services/T0/B0/" + "x" * 24


def webhook(slack: FakeSlack, timeout_s: float = 5.0) -> SlackWebhook:
    return SlackWebhook(Secret(slack.url), "https://unidle.example.org", timeout_s)


ANSWERS = [
    (Answer(200), "delivered", None),
    (Answer(400), "dead", None),
    (Answer(403), "dead", None),
    (Answer(404), "dead", None),
    (Answer(410), "dead", None),
    (Answer(408), "retry", None),
    (Answer(429, retry_after="7"), "retry", 7.0),
    (Answer(429), "retry", 30.0),
    (Answer(429, retry_after="soon"), "retry", 30.0),
    (Answer(429, retry_after="99999999"), "retry", 3600.0),
    (Answer(500), "retry", None),
    (Answer(502), "retry", None),
    (Answer(503), "retry", None),
    (Answer(204), "dead", None),
]


@pytest.mark.parametrize(("answer", "kind", "retry_after_s"), ANSWERS, ids=lambda value: str(value)[:40])
def test_each_answer_says_whether_another_try_helps(
    answer: Answer, kind: str, retry_after_s: float | None
) -> None:
    with FakeSlack([answer]) as slack:
        result = webhook(slack).send(NOTICE)
    assert (result.kind, result.retry_after_s) == (kind, retry_after_s)
    assert str(answer.status) in result.reason
    (request,) = slack.requests
    assert request.content_type.startswith("application/json")
    assert request.document["text"].startswith("WARNING")


def test_a_date_as_retry_after_is_understood() -> None:
    reply = Reply(429, "rate_limited", formatdate(1_800_000_060, usegmt=True))
    assert outcome(reply, 1_800_000_000.0).retry_after_s == 60.0


def test_a_redirect_is_refused_and_its_target_gets_no_request() -> None:
    with FakeSlack() as elsewhere:
        for status in (301, 302, 303, 307, 308):
            with FakeSlack([Answer(status, location=elsewhere.url)]) as slack:
                result = webhook(slack).send(NOTICE)
            assert result.kind == "dead"
            assert "redirect" in result.reason
            assert elsewhere.url not in result.reason
        assert elsewhere.requests == []


def test_a_server_that_does_not_answer_is_tried_again() -> None:
    with FakeSlack([Answer(hang=True)]) as slack:
        assert webhook(slack, timeout_s=0.2).send(NOTICE).kind == "retry"


def test_a_server_that_is_not_there_is_tried_again() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/services/{TOKEN}"
        result = SlackWebhook(Secret(url)).send(NOTICE)
    assert result.kind == "retry"
    assert "refused" in result.reason.lower()


ALL_FAILURES = [
    *(answer for answer, kind, _ in ANSWERS if kind != "delivered"),
    Answer(302, location="http://127.0.0.1:1/services/" + TOKEN),
    Answer(404, text=f"no such hook: /services/{TOKEN}"),
    Answer(500, text=f'{{"path": "\\/services\\/{TOKEN.replace("/", chr(92) + "/")}"}}'),
    Answer(hang=True),
]


def test_the_secret_is_in_no_log_no_outcome_and_no_database_over_all_failures(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with FakeSlack(ALL_FAILURES) as slack:
        bench = Bench(tmp_path, notifiers=(webhook(slack, timeout_s=0.2),))
        bench.collector.add(make_incident())
        for _ in range(2 * len(ALL_FAILURES) + 2):
            bench.outbox.retry_dead()
            bench.run(4000, step_s=4000)
        assert len(slack.requests) == len(ALL_FAILURES) + 1
        assert bench.outbox.states()[0].delivered == 1
        bench.outbox.close()
    secrets = [TOKEN, TOKEN.rpartition("/")[2]]
    assert caplog.records
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    for secret in secrets:
        assert secret not in caplog.text
        assert secret not in repr(bench.notifiers)
        assert secret.encode() not in written


@pytest.mark.parametrize(
    "answer", ALL_FAILURES, ids=lambda answer: f"{answer.status} {answer.text or ''}"[:20]
)
def test_no_outcome_names_the_secret(answer: Answer) -> None:
    with FakeSlack([answer]) as slack:
        result = webhook(slack, timeout_s=0.2).send(NOTICE)
    assert "sEcReT" not in repr(result)


def test_a_server_of_ones_own_that_repeats_its_path_gives_nothing_away() -> None:
    path = "/hooks/oWnSeCrEtToKeN"
    for text in (f"404 page not found: {path}", "no hook oWnSeCrEtToKeN"):
        with FakeSlack([Answer(404, text=text)]) as server:
            result = SlackWebhook(Secret(f"http://127.0.0.1:{server.port}{path}")).send(NOTICE)
        assert "oWnSeCrEt" not in result.reason
        assert "HTTP 404" in result.reason


def test_the_formatter_hides_a_webhook_that_some_library_logs() -> None:
    record = logging.LogRecord("slack_sdk", logging.INFO, "", 0, "sending to %s", (REAL,), None)
    assert (
        RedactingFormatter("%(message)s").format(record) == "sending to https://hooks.slack.com/services/***"
    )
    assert "T0FAKE" not in redact(f"%2Fservices%2F{TOKEN}")


GOOD = [
    (REAL, ()),
    (REAL.replace("slack.com", "slack-gov.com"), ()),
    ("https://chat.example.org/hooks/abcdef", ("chat.example.org",)),
    ("http://127.0.0.1:8065/hooks/abcdef", ("127.0.0.1",)),
    ("http://[::1]:8065/hooks/abcdef", ("::1",)),
]
BAD = [
    (REAL.replace("https", "http"), (), "https"),
    (REAL.replace("hooks.slack.com", "hooks.slack.com.evil.example"), (), "host"),
    ("https://evil.example/services/T0/B0/x", (), "host"),
    ("https://hooks.slack.com@evil.example/services/T0/B0/x", (), "user name"),
    ("https://hooks.slack.com:8443/services/T0/B0/x", (), "port"),
    ("https://hooks.slack.com/services/T0/B0", (), "path"),
    ("https://hooks.slack.com/api/chat.postMessage", (), "path"),
    ("http://127.0.0.1/services/T0/B0/x", (), "https"),
    ("http://chat.example.org/hooks/x", ("chat.example.org",), "https"),
    ("file:///etc/passwd", (), "https://"),
    ("https://hooks.slack.com/services/T0/B0/x\r\nHost: evil", (), "special"),
    ("https://hooks.slack.com:port/services/T0/B0/x", (), "form"),
    ("hooks.slack.com/services/T0/B0/x", (), "https://"),
]


@pytest.mark.parametrize(("url", "hosts"), GOOD)
def test_an_address_that_is_allowed_makes_a_notifier(url: str, hosts: tuple[str, ...]) -> None:
    assert url_problem(url, hosts) == ""
    (notifier,) = configured(AlertsSettings(slack_webhook_url=Secret(url), slack_hosts=hosts))
    assert notifier.name == "slack_webhook"


@pytest.mark.parametrize(("url", "hosts", "says"), BAD)
def test_an_address_that_is_not_allowed_stops_the_start_and_is_not_shown(
    url: str, hosts: tuple[str, ...], says: str
) -> None:
    with pytest.raises(SettingError, match=says) as caught:
        configured(AlertsSettings(slack_webhook_url=Secret(url), slack_hosts=hosts))
    assert "alerts.slack_webhook_url" in str(caught.value)
    assert "/B0" not in str(caught.value)


def test_nothing_configured_makes_no_notifier_and_stdout_makes_one() -> None:
    assert configured(AlertsSettings()) == ()
    assert [each.name for each in configured(AlertsSettings(stdout=True))] == ["stdout"]
