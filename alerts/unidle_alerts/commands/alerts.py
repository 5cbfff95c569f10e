"""Tell Slack about incidents: one message when one opens, one when it resolves, none lost.

Reads the collector's incidents, keeps what must be told in its own database (the outbox) and delivers
it. Survives restarts, a Slack that is down, and a rate limit; many changes at once become one message.

  unidle alerts                            run until stopped
  unidle alerts --test                     send one test message and say what happened
  unidle alerts --once --stdout            tell what is there now, on this terminal, and exit
  unidle alerts --retry-dead               after correcting a wrong webhook: try again what was given up

The webhook's address is a secret: put it in a file of mode 600 and name that file,

  unidle alerts --slack-webhook-url-file /etc/unidle/slack-webhook

or in unidle.toml:

  [alerts]
  slack_webhook_url_file = "/etc/unidle/slack-webhook"
  site = "eu-fra-1"
  dashboard_url = "https://unidle.example.org"

By default a message has no user, job or command in it (--content full adds the job and the command).
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import signal
import sys
import threading
import time

from unidle_agent import settings as setup
from unidle_alerts.notice import Notice
from unidle_alerts.notifiers import Notifier, configured
from unidle_alerts.notifiers.stdout import Stdout
from unidle_alerts.redact import RedactingFormatter
from unidle_alerts.service import Service
from unidle_alerts.settings import SECTION, AlertsSettings
from unidle_alerts.words import SECOND_NS, plural
from unidle_alerts.worker import MESSAGE_EVERY_S
from unidle_collector.client import Client

NOTHING_CONFIGURED = (
    "nothing to send to: put the webhook's address in a file and name it with "
    "--slack-webhook-url-file (or set UNIDLE_ALERTS_SLACK_WEBHOOK_URL), or use --stdout"
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Flags."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--test", action="store_true", help="send one test message and say what happened")
    what.add_argument(
        "--once", action="store_true", help="tell what is there now and exit; on the terminal without Slack"
    )
    what.add_argument("--retry-dead", action="store_true", help="put what was given up back in line and exit")
    parser.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    setup.add_flags(parser, AlertsSettings)


def run(args: argparse.Namespace) -> int:
    """Do it."""
    settings = setup.load(AlertsSettings, SECTION, args)
    _log_to_stderr(args.log_level)
    notifiers = configured(settings)
    if args.test:
        return _test(settings, notifiers)
    if args.once:
        if not notifiers:
            notifiers = (Stdout(),)
        settings = dataclasses.replace(settings, settle_s=0.0)
    api = Client(settings.collector_url, settings.collector_token.reveal())
    service = Service(settings, api, notifiers)
    try:
        if args.retry_dead:
            print(f"{plural(service.outbox.retry_dead(), 'change')} back in line")
            return 0
        return _once(service) if args.once else _forever(service)
    finally:
        service.close()


def _forever(service: Service) -> int:
    stop = threading.Event()

    def ask_to_stop(*_: object) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask_to_stop)
    service.run(stop)
    return 0


def _once(service: Service) -> int:
    """Read, then deliver until nothing is left, or what is left must wait for more than its turn."""
    service.poll()
    if service.pulse.collector_problem:
        print(service.pulse.collector_problem, file=sys.stderr)
    while True:
        if service.worker.step():
            continue
        waiting = [each.not_before_ns for each in service.outbox.states() if each.pending]
        free_s = (min(waiting, default=0) - time.time_ns()) / SECOND_NS
        if not 0 < free_s <= MESSAGE_EVERY_S:
            break
        time.sleep(free_s)
    for each in service.outbox.states():
        if each.destination in service.destinations:
            later = f", {plural(each.pending, 'change')} waiting ({each.last_reason})" if each.pending else ""
            print(f"{each.destination}: {each.delivered} delivered, {each.dead} given up{later}")
    return 1 if service.pulse.collector_problem else 0


def _test(settings: AlertsSettings, notifiers: tuple[Notifier, ...]) -> int:
    """One message per destination, past the outbox: nothing is recorded."""
    if not notifiers:
        print(NOTHING_CONFIGURED, file=sys.stderr)
        return 1
    notice = Notice("test", time.time_ns(), settings.site, simulated=False)
    delivered = True
    for notifier in notifiers:
        begin = time.monotonic()
        outcome = notifier.send(notice)
        again = f" (it asks to wait {outcome.retry_after_s:.0f} s)" if outcome.retry_after_s else ""
        word = {"delivered": "delivered", "retry": "failed, would be tried again", "dead": "refused"}
        print(
            f"{notifier.name}: {word[outcome.kind]}: {outcome.reason}{again}, "
            f"after {time.monotonic() - begin:.2f} s"
        )
        delivered &= outcome.kind == "delivered"
    return 0 if delivered else 1


def _log_to_stderr(level: str) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # Alembic tells every start that it has nothing to do.
    logging.getLogger("alembic").setLevel(max(logging.WARNING, logging.getLevelName(level)))
