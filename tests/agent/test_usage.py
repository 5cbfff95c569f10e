"""What is said of a command line that cannot be understood: one sentence, whatever is wrong with it."""

from __future__ import annotations

import argparse

import pytest

from unidle_agent.usage import Parser


def parser() -> Parser:
    made = Parser(prog="unidle probe")
    made.add_argument("action", choices=("record", "release"))
    made.add_argument("file", metavar="FILE", nargs="?")
    made.add_argument("--refresh-s", type=float)
    made.add_argument("--nodes", type=int)
    made.add_argument("--since", type=when)
    made.add_argument("--level", choices=["INFO", "WARNING"])
    how = made.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true")
    how.add_argument("--csv")
    return made


def when(text: str) -> float:
    raise argparse.ArgumentTypeError(f"expected a time such as 60s, came {text!r}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("recrod", "expected record or release, came 'recrod', did you mean 'record'?"),
        ("burn", "expected record or release, came 'burn'"),
        ("", "expected action"),
        ("record a b", "expected no further word, came 'b'"),
        ("record --refresh-s soon", "--refresh-s: expected a number, came 'soon'"),
        ("record --nodes 1.5", "--nodes: expected a whole number, came '1.5'"),
        ("record --since soon", "--since: expected a time such as 60s, came 'soon'"),
        ("record --level LOUD", "--level: expected INFO or WARNING, came 'LOUD'"),
        ("record --csv", "--csv: expected a value behind it, came none"),
        ("record --json=yes", "--json: expected no value, came 'yes'"),
        ("record --json --csv x", "expected one of --csv and --json, came both"),
        ("record --jsn", "expected flags of this command, came '--jsn', did you mean '--json'?"),
        (
            "record --refresh 3",
            "expected flags of this command, came '--refresh', did you mean '--refresh-s'?",
        ),
        ("record --push", "expected flags of this command, came '--push'"),
    ],
)
def test_a_wrong_word_is_one_sentence_with_the_nearest_match(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        parser().parse_args(words.split())
    assert left.value.code == 2
    assert capsys.readouterr().err == f"unidle probe: {said} (unidle probe --help says more)\n"


def test_actions_complain_like_their_command(capsys: pytest.CaptureFixture[str]) -> None:
    made = Parser(prog="unidle tokens")
    actions = made.add_subparsers(required=True, metavar="create|list")
    create = actions.add_parser("create")
    whose = create.add_mutually_exclusive_group(required=True)
    whose.add_argument("--node")
    whose.add_argument("--read")
    for words, said in (
        ([], "unidle tokens: expected create|list (unidle tokens --help says more)\n"),
        (
            ["create"],
            "unidle tokens create: expected --node or --read (unidle tokens create --help says more)\n",
        ),
    ):
        with pytest.raises(SystemExit):
            made.parse_args(words)
        assert capsys.readouterr().err == said
