"""The daemon: one loop reads the collector's log into the outbox, another delivers from it."""

from __future__ import annotations

import fcntl
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from unidle_agent.errors import reason
from unidle_alerts import status
from unidle_alerts.errors import StoreError
from unidle_alerts.intake import EventLog, Intake
from unidle_alerts.notifiers import Notifier
from unidle_alerts.outbox import NO_DESTINATION, Outbox, Policy
from unidle_alerts.plan import Rules
from unidle_alerts.redact import redact
from unidle_alerts.schema import open_database
from unidle_alerts.settings import AlertsSettings
from unidle_alerts.worker import Worker
from unidle_collector.client import ApiError

FORGET_EVERY_S = 3600.0
IDLE_LOOK_S = 0.25
"""How often the worker looks whether something may go now: the resolution of Retry-After."""
BROKEN_WAIT_S = 5.0

log = logging.getLogger("unidle.alerts")


class Service:
    """Everything of one `unidle alerts` process; close it to let go of the database and its lock."""

    def __init__(
        self,
        settings: AlertsSettings,
        api: EventLog,
        notifiers: tuple[Notifier, ...],
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._settings = settings
        self._now_ns = now_ns
        self.destinations = tuple(each.name for each in notifiers) or (NO_DESTINATION,)
        with ExitStack() as held:
            held.enter_context(_hold(settings.state_path))
            policy = Policy(settings.min_severity, settings.content)
            self.outbox = Outbox(open_database(settings.state_path), policy)
            held.callback(self.outbox.close)
            self.outbox.register(self.destinations, now_ns())
            self._held = held.pop_all()
        rules = Rules(settings.settle_s, settings.group_window_s, settings.group_limit)
        self.intake = Intake(api, self.outbox, self.destinations, now_ns)
        self.worker = Worker(self.outbox, notifiers, rules, settings.site, now_ns, self.intake.lock)
        self.pulse = status.Pulse()
        self.address = ""
        if not notifiers:
            log.warning(
                "no destination is configured: incidents are recorded and told to nobody; set "
                "UNIDLE_ALERTS_SLACK_WEBHOOK_URL_FILE, or --stdout to see messages here"
            )

    def close(self) -> None:
        """Let go."""
        self._held.close()

    def health(self) -> dict[str, object]:
        """What /health answers."""
        return status.health(self.pulse, self.outbox.states(), self.destinations, self._now_ns())

    def metrics(self) -> str:
        """What /metrics answers."""
        return status.metrics(self.pulse, self.outbox.states(), self.destinations, self._now_ns())

    def run(self, stop: threading.Event) -> None:
        """Until `stop`: serve, read, deliver. A message in flight is finished first."""
        server = status.StatusServer(self._settings.bind, self._settings.port, self.health, self.metrics)
        server.start()
        self.address = server.address
        log.info("health and metrics at %s; telling %s", self.address, ", ".join(self.destinations))
        deliverer = threading.Thread(target=self._deliver_until, args=(stop,), name="deliver")
        deliverer.start()
        try:
            while not stop.is_set():
                self.poll(stop.is_set)
                stop.wait(self._settings.poll_s)
        finally:
            stop.set()
            deliverer.join()
            server.close()

    def poll(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Read what is new, once; a problem is said when it begins and when it is over."""
        pulse = self.pulse
        pulse.polls += 1
        try:
            self.intake.poll(stopped)
        except (ApiError, SQLAlchemyError) as error:
            problem = redact(str(error)).partition("\n")[0]
            pulse.poll_errors += 1
            if not pulse.collector_problem:
                log.warning("%s; trying again every %g s", problem, self._settings.poll_s)
            pulse.collector_problem = problem
            return
        if pulse.collector_problem:
            log.info("the collector answers again")
        pulse.collector_problem = ""
        pulse.last_poll_ok_ns = self._now_ns()

    def _deliver_until(self, stop: threading.Event) -> None:
        forget_at = time.monotonic()
        while not stop.wait(IDLE_LOOK_S):
            try:
                self.worker.step()
                if time.monotonic() >= forget_at:
                    self.outbox.forget(self._now_ns())
                    forget_at += FORGET_EVERY_S
                self.pulse.worker_problem = ""
            except Exception as error:
                # A full disk, say: an attempt is recorded before it is made, so nothing is sent
                # unrecorded. Whatever it is, a loop that dies here would look like a quiet fleet.
                self.pulse.worker_errors += 1
                problem = redact(f"{type(error).__name__}: {error}").partition("\n")[0]
                if not self.pulse.worker_problem:
                    log.error("delivery broke off: %s; trying again", problem)
                self.pulse.worker_problem = f"delivery broke off: {problem}"
                stop.wait(BROKEN_WAIT_S)


@contextmanager
def _hold(folder: Path) -> Iterator[None]:
    """One process per outbox: two would tell everything twice. The lock ends with the process."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = (folder / "lock").open("w")
    except OSError as error:
        raise StoreError(
            f"{folder}: expected a writable folder ({reason(error)}); set alerts.state_dir"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StoreError(
                f"{folder} is in use by another unidle alerts; stop it, or set alerts.state_dir"
            ) from error
        yield
