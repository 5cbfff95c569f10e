"""The command `unidle`: finds its sub-commands through entry points and imports the one called.

A sub-command is a module: its docstring is the help (first line the summary), `arguments(parser)`
declares the flags, `run(args)` does the work and returns the exit code.
"""

from __future__ import annotations

import ast
import contextlib
import errno
import importlib.util
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path
from types import ModuleType

from unidle_agent.errors import UnidleError, UsageError, nearest
from unidle_agent.usage import WRONG_USAGE, Parser

GROUP = "unidle.commands"
ROLES = ("agent", "collector", "alerts", "dashboard")
EXIT_CODES = (
    (0, "done; also where whoever reads the output closed it early, as `head` does"),
    (1, "it could not be done, or what was checked is not well: the reason is on stderr"),
    (2, "what was asked for cannot be: a command, flag or setting that is wrong; nothing was done"),
    (130, "ended by Ctrl-C before it was done"),
)
"""What each exit code means, of every command; a command with more of them says so in its help."""
REMEDIES = {
    errno.EACCES: "; run it as a user who may, or name another file or folder",
    errno.EPERM: "; run it as a user who may, or name another file or folder",
    errno.ENOENT: "; name a file or folder that is there",
    errno.ENOTDIR: "; name a folder",
    errno.EISDIR: "; name a file",
    errno.ENOSPC: "; free some space there, or name another place",
    errno.EDQUOT: "; free some space there, or name another place",
    errno.EROFS: "; name a file or folder that can be written",
}
"""What to do about an error of the system that no command has better words for."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `unidle` with `argv` (default: the process's own) and return its exit code, one of EXIT_CODES."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:2], "--help"]
    name = " ".join(["unidle", *arguments[:1]])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that has no sign for it shows "?"
            stream.reconfigure(errors="replace")
    try:
        try:
            return _run(arguments)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here a full disk or a closed pipe can still be said
    except UsageError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return WRONG_USAGE
    except UnidleError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever reads has enough
        _give_up_on_stdout()
        return 0
    except OSError as error:
        if error.filename is None and error.errno not in REMEDIES:
            raise
        what = "" if error.filename is None else f"{error.filename}: "
        print(f"{name}: {what}{error.strerror}{REMEDIES.get(error.errno or 0, '')}", file=sys.stderr)
        _give_up_on_stdout()
        return 1


def _run(arguments: list[str]) -> int:
    commands = {point.name: point for point in entry_points(group=GROUP)}
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview(commands))
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"unidle {version('unidle')}")
        return 0
    point = commands.get(arguments[0])
    if point is None:
        wrong, known = arguments[0], ", ".join(sorted(commands))
        print(
            f"unidle: no command {wrong!r}{nearest(wrong, commands) or '.'} There are: {known}",
            file=sys.stderr,
        )
        return WRONG_USAGE
    module = _load(point)
    parser = command_parser(point.name, module)
    # Flags and words in any order: that is argparse's intermixed form, which a command with actions refuses.
    parse = parser.parse_intermixed_args if parser._subparsers is None else parser.parse_args
    return int(module.run(parse(arguments[1:])))


def command_parser(name: str, module: ModuleType) -> Parser:
    """The parser of a command: its docstring is the help."""
    parser = Parser(prog=f"unidle {name}", description=(module.__doc__ or "").strip())
    module.arguments(parser)
    return parser


def _give_up_on_stdout() -> None:
    """What is still in its buffer would fail again when Python ends."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        return
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
