"""The command `unidle`: finds its sub-commands through entry points and imports the one called.

A sub-command is a module: its docstring is the help (first line the summary), `arguments(parser)`
declares the flags, `run(args)` does the work and returns the exit code.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path
from types import ModuleType

from unidle_agent.errors import UnidleError

GROUP = "unidle.commands"
ROLES = ("agent", "collector", "alerts", "dashboard")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `unidle` with `argv` (default: the process's own) and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands = {point.name: point for point in entry_points(group=GROUP)}
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview(commands))
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"unidle {version('unidle')}")
        return 0
    point = commands.get(arguments[0])
    if point is None:
        print(
            f"unidle: no command {arguments[0]!r}; there are: {', '.join(sorted(commands))}", file=sys.stderr
        )
        return 2
    try:
        return _run(point, arguments[1:])
    except UnidleError as error:
        print(f"unidle {point.name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0


def _run(point: EntryPoint, arguments: list[str]) -> int:
    module = _load(point)
    summary, _, rest = (module.__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog=f"unidle {point.name}",
        description=f"{summary}\n{rest}".strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.arguments(parser)
    # Flags and words in any order: that is argparse's intermixed form, which a command with actions refuses.
    parse = parser.parse_intermixed_args if parser._subparsers is None else parser.parse_args
    return int(module.run(parse(arguments)))


def _load(point: EntryPoint) -> ModuleType:
    try:
        return import_module(point.value)
    except ModuleNotFoundError as error:
        role = point.value.partition(".")[0].removeprefix("unidle_")
        if (error.name or "").startswith("unidle_") or role not in ROLES:
            raise
        raise UnidleError(
            f"needs the Python package {error.name!r}, which is not installed; "
            f"install this role with: pip install 'unidle[{role}]'"
        ) from error


def _overview(commands: dict[str, EntryPoint]) -> str:
    rows = [f"  {name:<11} {summary(commands[name])}" for name in sorted(commands)]
    return "\n".join(
        [
            "unidle finds the GPU hours that a fleet pays for and does not use, says why each is lost,",
            "and says what to do.",
            "",
            "usage: unidle COMMAND [options]     unidle COMMAND --help     unidle --version",
            "",
            *rows,
            "",
            "Try it without a GPU:  unidle up --demo      On data you already have:  unidle diagnose FILE",
        ]
    )


def summary(point: EntryPoint) -> str:
    """The first line of a command's docstring, read without importing the command."""
    spec = importlib.util.find_spec(point.value.partition(".")[0])
    if spec is None or spec.origin is None:
        return ""
    source = Path(spec.origin).parent.joinpath(*point.value.split(".")[1:]).with_suffix(".py")
    text = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
