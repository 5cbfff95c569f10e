"""What is said of a command line that cannot be understood: one sentence, with the nearest match.

argparse prints the whole usage and then its own words; after forty lines of flags nobody reads those.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from typing import Any, NoReturn

from unidle_agent.errors import nearest

WRONG_USAGE = 2
"""Exit code where nothing was done, because what was asked for cannot be."""
KINDS = {"int": "a whole number", "float": "a number"}


class Parser(argparse.ArgumentParser):
    """A parser that shows docstrings as they are, takes no abbreviations and complains in one sentence."""

    def __init__(self, **given: Any) -> None:
        # An abbreviation of a flag of today is another flag's tomorrow.
        super().__init__(
            **{"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False, **given}
        )

    def error(self, message: str) -> NoReturn:
        """End with what was expected and what came."""
        flags = re.findall(r"--[a-z][a-z0-9-]*", self.format_usage())
        self.exit(WRONG_USAGE, f"{self.prog}: {plain(message, flags)} ({self.prog} --help says more)\n")


def plain(message: str, flags: Iterable[str]) -> str:
    """argparse's `message` about a command with these `flags`, in our words; an unknown one stays."""
    name, said = "", message
    if found := re.fullmatch(r"argument ([^:]+): (.*)", message, re.DOTALL):
        name, said = found[1], found[2]
    flag = f"{name}: " if name.startswith("-") else ""
    if found := re.fullmatch(r"invalid choice: '(.*)' \(choose from (.*)\)", said):
        known = re.findall(r"[\w-]+", found[2])
        return f"{flag}expected {_either(known)}, came {found[1]!r}{nearest(found[1], known)}"
    if found := re.fullmatch(r"invalid (\w+) value: (.*)", said):
        return f"{flag}expected {KINDS.get(found[1], found[1])}, came {found[2]}"
    if re.fullmatch(r"expected (one|at least one) argument", said):
        return f"{flag}expected a value behind it, came none"
    if found := re.fullmatch(r"ignored explicit argument (.*)", said):
        return f"{flag}expected no value, came {found[1]}"
    if found := re.fullmatch(r"not allowed with argument (.*)", said):
        return f"expected one of {name} and {found[1]}, came both"
    if found := re.fullmatch(r"unrecognized arguments: (.*)", said):
        came = found[1].split()[0]
        if came.startswith("-"):
            return f"expected flags of this command, came {came!r}{nearest(came, flags)}"
        return f"expected no further word, came {came!r}"
    if found := re.fullmatch(r"the following arguments are required: (.*)", said):
        return f"expected {found[1]}"
    if found := re.fullmatch(r"one of the arguments (.*) is required", said):
        return f"expected {_either(found[1].split())}"
    return f"{flag}{said}"


def _either(known: list[str]) -> str:
    return " or ".join(filter(None, (", ".join(known[:-1]), known[-1])))
