"""What pages and help texts show holds: command lines are taken, flags are there, links lead to files."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from unidle_agent.cli import GROUP, command_parser

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("[!.]*/README.md"), *ROOT.glob("docs/**/*.md")])
LINE = re.compile(r"^ *(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\.venv/bin/|/opt/unidle/bin/)?unidle (?P<rest>[a-z].*)$")
COMMANDS = {point.name: point for point in entry_points(group=GROUP)}


def shown(page: Path) -> list[str]:
    """The command lines in blocks of a page, without comments, pipes and descriptions behind them."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    inside = False
    found = []
    for line in text.splitlines():
        if line.startswith("```"):
            inside = not inside
        match = LINE.match(line) if inside or line.startswith("    ") else None
        if match and match["rest"].split()[0] in COMMANDS:
            # A word of the command is behind one blank; a description behind two or more, or a comment.
            rest = re.sub(r"(?<=\S) +(?=--)", " ", match["rest"])
            found.append(re.split(r"  +|\s#\s| [|>&;] ?| ;", rest)[0].strip())
    return found


def named(page: Path) -> list[str]:
    """What sentences of a page call `unidle ...`: part of a command line, as it may be."""
    found = re.findall(r"`unidle ([a-z][^`]*)`", page.read_text(encoding="utf-8"))
    return [code.partition("&&")[0].strip() for code in found if code.split()[0] in COMMANDS]


CASES = sorted({(page.relative_to(ROOT).as_posix(), line) for page in PAGES for line in shown(page)})
NAMED = sorted({(page.relative_to(ROOT).as_posix(), words) for page in PAGES for words in named(page)})


def test_there_are_many() -> None:
    assert len(CASES) > 60
    assert len(NAMED) > 30


@pytest.mark.parametrize(("page", "line"), CASES, ids=[f"{page}: {line}" for page, line in CASES])
def test_a_command_line_of_a_page_is_taken(page: str, line: str) -> None:
    name, *words = shlex.split(line)
    parser = command_parser(name, import_module(COMMANDS[name].value))
    parse = parser.parse_intermixed_args if parser._subparsers is None else parser.parse_args
    try:
        parse(words)
    except SystemExit as left:
        pytest.fail(f"{page} shows 'unidle {line}', which ends with {left.code}")


@pytest.mark.parametrize(("page", "words"), NAMED, ids=[f"{page}: {words}" for page, words in NAMED])
def test_flags_and_actions_that_a_sentence_names_are_there(page: str, words: str) -> None:
    name, *rest = words.split()
    known = command_parser(name, import_module(COMMANDS[name].value)).format_help()
    for word in rest:
        if word.startswith("--") or (word.isalpha() and word.islower()):
            assert re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", known), f"{page}: unidle {words}"


def test_links_lead_to_files() -> None:
    links = [
        (page, link) for page in PAGES for link in re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8"))
    ]
    assert len(links) > 60
    assert [(page.name, link) for page, link in links if not (page.parent / link).exists()] == []
