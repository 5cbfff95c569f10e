"""Shell completion, asked of the shells themselves: it knows commands, actions, flags and their values."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from unidle_agent.cli import main

TYPED = [
    ("unidle diag", "diagnose"),
    ("unidle agent --push-u", "--push-url"),
    ("unidle agent --nvml a", "auto"),
    ("unidle agent rel", "release"),
    ("unidle store v", "verify"),
    ("unidle tokens rot", "rotate"),
    ("unidle tokens create --expires", "--expires-days"),
    ("unidle top --on", "--once"),
    ("unidle completion b", "bash"),
]
PATIENCE_S = 30.0


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(("typed", "completed"), TYPED, ids=[typed for typed, _ in TYPED])
def test_bash_completes(typed: str, completed: str, capsys: pytest.CaptureFixture[str]) -> None:
    last = len(typed.split()) - 1
    asked = f'COMP_WORDS=({typed}); COMP_CWORD={last}; _unidle; echo "${{COMPREPLY[@]}}"'
    assert shell("bash", f"{script('bash', capsys)}\n{asked}") == f"{completed}\n"


def test_bash_completes_files_with_blanks_where_no_word_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my log.csv").touch()
    asked = 'COMP_WORDS=(unidle diagnose my); COMP_CWORD=2; _unidle 2> /dev/null; echo "${COMPREPLY[0]}"'
    assert shell("bash", f"{script('bash', capsys)}\n{asked}", tmp_path) == "my log.csv\n"


@pytest.mark.parametrize(("typed", "completed"), TYPED, ids=[typed for typed, _ in TYPED])
def test_fish_completes(typed: str, completed: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = shell("fish", f"{script('fish', capsys)}\ncomplete -C '{typed}'")
    assert completed in [line.partition("\t")[0] for line in said.splitlines()]


@pytest.mark.slow
def test_zsh_completes_what_is_typed_at_its_prompt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "_unidle").write_text(script("zsh", capsys))
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        environ = {"PATH": os.environ["PATH"], "TERM": "vt100", "HOME": str(tmp_path), "PS1": "ready> "}
        os.execvpe("zsh", ["zsh", "-f", "-i"], environ)
    try:
        wait_for(terminal, "ready> ")
        # fpath as the help page says, the whole line in one go: each prompt is a round trip
        send(
            terminal,
            f"PS1='set'; fpath=({tmp_path} $fpath); autoload -Uz compinit; compinit -u -D; PS1='go> '\n",
        )
        wait_for(terminal, "go> ")
        for typed, completed in TYPED:
            send(terminal, f"{typed}\t")
            wait_for(terminal, completed)
            send(terminal, "\x15")  # Ctrl-U: an empty line again
    finally:
        os.close(terminal)  # its terminal is gone, so it goes, too
        os.waitpid(child, 0)


def shell(name: str, text: str, folder: Path | None = None) -> str:
    return subprocess.run([name, "-c", text], capture_output=True, text=True, check=True, cwd=folder).stdout


def send(terminal: int, text: str) -> None:
    os.write(terminal, text.encode())


def wait_for(terminal: int, text: str) -> None:
    """Until `text` is on the terminal, from now on."""
    shown, end_s = "", time.monotonic() + PATIENCE_S
    while text not in shown:
        left_s = end_s - time.monotonic()
        ready, _, _ = select.select([terminal], [], [], max(0.0, left_s))
        assert ready, f"expected {text!r} on the terminal, came {shown!r}"
        shown += os.read(terminal, 65536).decode(errors="replace")
