"""stdout: prints each message on the terminal, for demos and for `unidle alerts --once` without Slack.

What it sends
    The one-line summary, the cause's evidence and the action, as plain text.

Outcome
    Always delivered, or dead when the terminal is gone.

Settings
    `stdout = true`
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TextIO

from unidle_alerts import words
from unidle_alerts.evidence import action, cause_line, evidence_lines
from unidle_alerts.notice import Notice, summary
from unidle_alerts.notifiers import Outcome
from unidle_alerts.settings import AlertsSettings


@dataclass(frozen=True, slots=True)
class Stdout:
    """Writes to `stream`."""

    name: str = "stdout"
    stream: TextIO = field(default_factory=lambda: sys.stdout)

    def send(self, notice: Notice) -> Outcome:
        """Print it."""
        lines = [summary(notice)]
        if notice.kind == "opened":
            incident = notice.incidents[0]
            lines += [f"  cause: {cause_line(incident.finding)}"]
            lines += [f"  {line}" for line in evidence_lines(incident.finding)]
            do = action(incident)
            lines += [f"  do: {do.text}"] if do.text else []
            lines += [f"  {do.note}"] if do.note else []
            lines += [f"  $ {line}" for line in do.command.splitlines()]
            lines += [f"  to confirm: {incident.finding.confirm}"] if incident.finding.confirm else []
        elif notice.kind == "group":
            lines += [
                f"  {words.what(each.finding)}, {words.size(each.finding)}" for each in notice.incidents
            ]
        try:
            self.stream.write("".join(f"{_printable(line)}\n" for line in lines))
            self.stream.flush()
        except (OSError, ValueError) as error:
            return Outcome("dead", f"cannot write to the terminal: {error}")
        return Outcome("delivered", "printed")


def _printable(line: str) -> str:
    indent = len(line) - len(line.lstrip(" "))
    return " " * indent + words.clean(line)


def make(settings: AlertsSettings) -> Stdout | None:
    """Asked for by `stdout = true`."""
    return Stdout() if settings.stdout else None
