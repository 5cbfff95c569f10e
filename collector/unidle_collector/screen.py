"""The terminal that a command draws on, or whatever stands in for it."""

from __future__ import annotations

import os
import sys

from rich.console import Console

PIPED = 160
"""Characters of a line that goes to a file or a pipe: nobody's window is to be fitted."""


def screen() -> Console:
    """As wide as the terminal, or as COLUMNS says."""
    fitted = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, width=None if fitted else PIPED)
