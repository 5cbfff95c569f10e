"""Print the completion script of a shell: commands, actions, flags and the values that a flag takes.

Examples:
  unidle completion bash > /etc/bash_completion.d/unidle
  unidle completion zsh > ~/.zfunc/_unidle        (with fpath+=~/.zfunc before compinit)
  unidle completion fish > ~/.config/fish/completions/unidle.fish
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points

from unidle_agent.cli import GROUP, summary

SHELLS = ("bash", "zsh", "fish")

BASH = """_unidle() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" flags="" words=""
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    mapfile -t COMPREPLY < <(compgen -W "{commands} --help --version" -- "$current"); return
  fi
  case "${{COMP_WORDS[1]}} $before" in
{values}
  esac
  case "${{COMP_WORDS[1]}}" in
{flags}
  esac
  case "$current" in
    -*) mapfile -t COMPREPLY < <(compgen -W "$flags --help" -- "$current") ;;
    *) mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current") ;;
  esac
  if [ ${{#COMPREPLY[@]}} -eq 0 ]; then
    compopt -o filenames
    mapfile -t COMPREPLY < <(compgen -f -- "$current")
  fi
}}
complete -F _unidle unidle"""

ZSH = """#compdef unidle
local -a commands
commands=({commands})
if (( CURRENT == 2 )); then _describe command commands; return; fi
case "$words[2]" in
{cases}
esac"""


@dataclass(frozen=True, slots=True)
class Flag:
    """A long flag."""

    name: str
    takes_value: bool
    values: tuple[str, ...]
    """Those that it takes, where there are few."""
    help: str


@dataclass(frozen=True, slots=True)
class Known:
    """What can stand behind a command."""

    summary: str
    flags: tuple[Flag, ...] = ()
    words: tuple[str, ...] = ()
    """Actions and the like; files beside them."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("shell", choices=SHELLS, metavar="|".join(SHELLS), help="the shell to complete in")


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    commands = {
        point.name: _known(point.value, summary(point))
        for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)
    }
    print({"bash": _bash, "zsh": _zsh, "fish": _fish}[args.shell](commands))
    return 0


def _known(module_name: str, text: str) -> Known:
    """The summary alone where the command's role is not installed here."""
    try:
        module = import_module(module_name)
    except ModuleNotFoundError:
        return Known(text)
    parser = argparse.ArgumentParser(add_help=False)
    module.arguments(parser)
    flags: dict[str, Flag] = {}
    words: list[str] = []
    for action in _actions(parser):
        values = tuple(map(str, action.choices or ())) or _listed(action.metavar)
        if not action.option_strings:
            words += values
        for name in action.option_strings:
            if name.startswith("--"):
                flags[name] = Flag(name, action.nargs != 0, values, _short(action.help or ""))
    return Known(text, tuple(flags.values()), tuple(words))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Those of the parser and, once each, of the actions below it."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from below._actions


def _short(text: str) -> str:
    """Up to the first semicolon, without the default."""
    return text.partition(";")[0].partition(" (default: ")[0].replace("%%", "%")


def _listed(metavar: object) -> tuple[str, ...]:
    """`auto|on|off` names the values of a setting."""
    return tuple(metavar.split("|")) if isinstance(metavar, str) and "|" in metavar else ()


def _bash(commands: Mapping[str, Known]) -> str:
    values = [
        f"    '{name} {flag.name}') mapfile -t COMPREPLY < "
        f'<(compgen -W "{" ".join(flag.values)}" -- "$current"); return ;;'
        for name, known in commands.items()
        for flag in known.flags
        if flag.values
    ]
    flags = []
    for name, known in commands.items():
        names = " ".join(flag.name for flag in known.flags)
        flags.append(f'    {name}) flags="{names}" words="{" ".join(known.words)}" ;;')
    return BASH.format(commands=" ".join(commands), values="\n".join(values), flags="\n".join(flags))


def _zsh(commands: Mapping[str, Known]) -> str:
    listed = " ".join(_quoted(f"{name}:{known.summary}") for name, known in commands.items())
    cases = []
    for name, known in commands.items():
        specs = [_zsh_flag(flag) for flag in known.flags]
        words = f"'2:action:({' '.join(known.words)})' " if known.words else ""
        cases.append(f"  {name}) _arguments {' '.join(specs)} {words}'*:file:_files' ;;")
    return ZSH.format(commands=listed, cases="\n".join(cases))


def _zsh_flag(flag: Flag) -> str:
    text = "".join(f"\\{letter}" if letter in "[]:\\" else letter for letter in flag.help)
    taken = f"({' '.join(flag.values)})" if flag.values else "_files"
    return _quoted(f"{flag.name}[{text}]" + (f":value:{taken}" if flag.takes_value else ""))


def _fish(commands: Mapping[str, Known]) -> str:
    lines = []
    for name, known in commands.items():
        lines.append(f"complete -c unidle -f -n __fish_use_subcommand -a {name} -d {_quoted(known.summary)}")
        seen = f"complete -c unidle -n {_quoted(f'__fish_seen_subcommand_from {name}')}"
        if known.words:
            lines.append(f"{seen} -a {_quoted(' '.join(known.words))}")
        for flag in known.flags:
            taken = f" -x -a {_quoted(' '.join(flag.values))}" if flag.values else " -r" * flag.takes_value
            lines.append(f"{seen} -l {flag.name.removeprefix('--')}{taken} -d {_quoted(flag.help)}")
    return "\n".join(lines)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
