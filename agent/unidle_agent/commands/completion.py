"""Print the completion script of a shell: commands, flags and choices.

Examples:
  unidle completion bash > /etc/bash_completion.d/unidle
  unidle completion zsh > ~/.zfunc/_unidle        (with fpath+=~/.zfunc before compinit)
  unidle completion fish > ~/.config/fish/completions/unidle.fish
"""

from __future__ import annotations

import argparse
from importlib import import_module
from importlib.metadata import entry_points

from unidle_agent.cli import GROUP, summary

SHELLS = ("bash", "zsh", "fish")

BASH = """_unidle() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}"
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{commands} --help --version" -- "$current")); return
  fi
  local flags=""
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  case "$current" in
    -*) COMPREPLY=($(compgen -W "$flags --help" -- "$current")) ;;
    *) COMPREPLY=($(compgen -f -- "$current")) ;;
  esac
}}
complete -o filenames -F _unidle unidle"""

ZSH = """#compdef unidle
local -a commands
commands=({commands})
if (( CURRENT == 2 )); then _describe command commands; return; fi
case "$words[2]" in
{cases}
esac"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("shell", choices=SHELLS, metavar="|".join(SHELLS), help="the shell to complete in")


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    commands = {
        point.name: summary(point) for point in sorted(entry_points(group=GROUP), key=lambda p: p.name)
    }
    flags = {name: _flags(name) for name in commands}
    print({"bash": _bash, "zsh": _zsh, "fish": _fish}[args.shell](commands, flags))
    return 0


def _flags(name: str) -> list[str]:
    """Long flags of a command; none where its role is not installed here."""
    (point,) = entry_points(group=GROUP, name=name)
    try:
        module = import_module(point.value)
    except ModuleNotFoundError:
        return []
    parser = argparse.ArgumentParser(add_help=False)
    module.arguments(parser)
    return [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]


def _bash(commands: dict[str, str], flags: dict[str, list[str]]) -> str:
    cases = "\n".join(f'    {name}) flags="{" ".join(flags[name])}" ;;' for name in commands)
    return BASH.format(commands=" ".join(commands), cases=cases)


def _zsh(commands: dict[str, str], flags: dict[str, list[str]]) -> str:
    listed = " ".join(_quoted(f"{name}:{text}") for name, text in commands.items())
    known = {name: " ".join(_quoted(f"{flag}[]:value:_files") for flag in flags[name]) for name in commands}
    cases = "\n".join(f"  {name}) _arguments {known[name]} '*:file:_files' ;;" for name in commands)
    return ZSH.format(commands=listed, cases=cases)


def _fish(commands: dict[str, str], flags: dict[str, list[str]]) -> str:
    lines = []
    for name, text in commands.items():
        lines.append(f"complete -c unidle -n __fish_use_subcommand -a {name} -d {_quoted(text)}")
        seen = _quoted(f"__fish_seen_subcommand_from {name}")
        lines += [f"complete -c unidle -n {seen} -l {flag.removeprefix('--')}" for flag in flags[name]]
    return "\n".join(lines)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
