"""Shell completion knows every command and its flags."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from unidle_agent.cli import main


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_command_and_its_flags_are_completed(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("agent", "collector", "diagnose", "dcgm-urls", "data-dir"):
        assert word in script


def test_bash_takes_the_script_and_completes(capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    main(["completion", "bash"])
    script = capsys.readouterr().out
    typed = "COMP_WORDS=(unidle diag); COMP_CWORD=1; _unidle; echo ${COMPREPLY[@]}"
    done = subprocess.run(["bash", "-c", f"{script}\n{typed}"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "diagnose"
    typed = "COMP_WORDS=(unidle agent --push-u); COMP_CWORD=2; _unidle; echo ${COMPREPLY[@]}"
    done = subprocess.run(["bash", "-c", f"{script}\n{typed}"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "--push-url"
