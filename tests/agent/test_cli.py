"""The command `unidle` itself."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from unidle_agent import cli
from unidle_agent.errors import SourceError


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


def test_a_wrong_setting_is_the_command_line_s_fault_and_exits_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["agent", "--port", "many"]) == 2
    said = capsys.readouterr().err
    assert (
        said
        == "unidle agent: agent.port: expected a whole number from 0 to 65535, came 'many' (from --port)\n"
    )


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("PermissionError(13, 'Permission denied', '/x')", "/x: Permission denied; run it as a user who may"),
        ("OSError(28, 'No space left on device')", "No space left on device; free some space there"),
        ("OSError(30, 'Read-only file system', '/x')", "/x: Read-only file system; name a file or folder"),
    ],
)
def test_an_error_of_the_system_is_one_line_with_what_to_do(
    error: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    point(tmp_path, monkeypatch, f'"""Do."""\ndef arguments(p): ...\ndef run(a):\n    raise {error}\n')
    assert cli.main(["probe"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"unidle probe: {said}")
    assert len(err.splitlines()) == 1


def test_an_error_that_may_be_our_own_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point(
        tmp_path,
        monkeypatch,
        '"""Do."""\ndef arguments(p): ...\ndef run(a):\n    raise OSError(9, "bad fd")\n',
    )
    with pytest.raises(OSError, match="bad fd"):
        cli.main(["probe"])


def started(*arguments: str, **given: object) -> subprocess.CompletedProcess[bytes]:
    """`unidle` in a process of its own, as a shell starts it."""
    command = [sys.executable, "-m", "unidle_agent.cli", *arguments]
    return subprocess.run(command, stderr=subprocess.PIPE, timeout=60, check=False, **given)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("words", [(), ("agent", "--help"), ("explain",)], ids=" ".join)
def test_a_reader_that_has_enough_is_no_error(words: tuple[str, ...]) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = started(*words, stdout=write)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_the_output_is_said_and_fails() -> None:
    with Path("/dev/full").open("w") as full:
        done = started("explain", stdout=full)
    assert done.returncode == 1
    assert done.stderr.startswith(b"unidle explain: No space left on device; free some space")


def test_an_output_that_has_no_sign_for_a_letter_gets_a_question_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point(
        tmp_path,
        monkeypatch,
        '"""Do."""\ndef arguments(p): ...\ndef run(a):\n    print("90 °C █")\n    return 0\n',
    )
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    assert cli.main(["probe"]) == 0
    assert shown.getvalue() == b"90 ?C ?\n"


def test_help_is_a_command_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["help"]) == 0
    assert "usage: unidle COMMAND" in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        cli.main(["help", "doctor"])
    assert left.value.code == 0
    assert "usage: unidle doctor" in capsys.readouterr().out


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
    assert "no command 'agnet', did you mean 'agent'? There are: agent, alerts, " in said


def test_overview_names_every_command_with_its_summary_without_importing_any(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "unidle_agent.commands.doctor", raising=False)
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    assert "agent       Sample this node and push to the collector." in shown
    assert "doctor      Say what works on this machine" in shown
    assert "unidle_agent.commands.doctor" not in sys.modules


def test_without_a_driver_a_recording_of_before_is_kept_and_none_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(_: object) -> None:
        raise SourceError("no driver")

    monkeypatch.setattr("unidle_agent.answers.recorder.Recorder", absent)
    kept, fresh = tmp_path / "kept.txt", tmp_path / "fresh.txt"
    kept.write_text("last month's")
    assert cli.main(["agent", "record", str(kept)]) == 1
    assert cli.main(["agent", "record", str(fresh)]) == 1
    assert capsys.readouterr().err == "unidle agent: no driver\n" * 2
    assert (kept.read_text(), fresh.exists()) == ("last month's", False)


@pytest.mark.parametrize("name", ["agent", "doctor"])
def test_help_shows_the_docstring_with_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main([name, "--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert "examples:" in shown
    assert f"unidle {name} --" in shown
