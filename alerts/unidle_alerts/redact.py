"""Keep the webhook's secret out of every log line, error and screen."""

from __future__ import annotations

import logging
import re

HIDDEN = "/services/***"
_SLASH = r"(?:\\?/|%2f)"
_SERVICES = re.compile(rf"{_SLASH}services{_SLASH}[^\s\"'<>]*", re.IGNORECASE)
"""Also as JSON writes it (`\\/services\\/`) and percent-encoded."""


def redact(text: str) -> str:
    """`text` with `/services/...` hidden."""
    return _SERVICES.sub(HIDDEN, text)


class RedactingFormatter(logging.Formatter):
    """The last line of defence: hides `/services/...` in messages and tracebacks of any library."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))
