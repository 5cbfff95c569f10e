"""The command `unidle` itself."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from unidle_agent import cli


def point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, package: str = "unidle_agent"
) -> None:
    """Make the sub-command `probe` a module with this source."""
    name = f"{package}_probe"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(cli, "entry_points", lambda group: [EntryPoint("probe", name, group)])
    monkeypatch.delitem(sys.modules, name, raising=False)


COMMAND = '''"""Do it.\n\nAt length."""
from unidle_agent.errors import UnidleError
def arguments(parser):
    parser.add_argument("--fail", action="store_true")
def run(args):
    if args.fail:
        raise UnidleError("expected a, came b, do c")
    return 7
'''


def test_a_command_s_exit_code_is_that_of_unidle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point(tmp_path, monkeypatch, COMMAND)
    assert cli.main(["probe"]) == 7


def test_an_expected_error_is_one_line_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    point(tmp_path, monkeypatch, COMMAND)
    assert cli.main(["probe", "--fail"]) == 1
    assert capsys.readouterr().err == "unidle probe: expected a, came b, do c\n"


@pytest.mark.parametrize(
    "words",
    [
        ("record", "node.txt", "--for", "60s"),
        ("record", "--for", "60s", "node.txt"),
        ("--for", "60s", "record", "node.txt"),
    ],
    ids=" ".join,
)
def test_flags_may_stand_anywhere(
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = '''"""Do it."""
def arguments(parser):
    parser.add_argument("action", nargs="?", choices=("record",))
    parser.add_argument("file", nargs="?")
    parser.add_argument("--for", dest="for_s")
def run(args):
    print(args.action, args.file, args.for_s)
    return 0
'''
    point(tmp_path, monkeypatch, source)
    assert cli.main(["probe", *words]) == 0
    assert capsys.readouterr().out == "record node.txt 60s\n"


def test_a_role_that_is_not_installed_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        cli, "entry_points", lambda group: [EntryPoint("x", "unidle_collector.probe_missing_extra", group)]
    )
    folder = tmp_path / "unidle_collector"
    folder.mkdir()
    (folder / "probe_missing_extra.py").write_text("import surely_not_installed\n")
    import unidle_collector

    monkeypatch.setattr(unidle_collector, "__path__", [str(folder)])
    assert cli.main(["x"]) == 1
    said = capsys.readouterr().err
    assert "'surely_not_installed'" in said
    assert "pip install 'unidle[collector]'" in said


def test_no_command_of_that_name_lists_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["agnet"]) == 2
    said = capsys.readouterr().err
    assert "'agnet'" in said
    assert "agent, " in said


def test_overview_names_every_command_with_its_summary_without_importing_any(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "unidle_agent.commands.doctor", raising=False)
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    assert "agent       Sample this node and push to the collector." in shown
    assert "doctor      Say what works on this machine" in shown
    assert "unidle_agent.commands.doctor" not in sys.modules


@pytest.mark.parametrize("name", ["agent", "doctor"])
def test_help_shows_the_docstring_with_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main([name, "--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert "examples:" in shown
    assert f"unidle {name} --" in shown
