"""`unidle dashboard`: what it starts, and what it keeps to itself."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

import unidle_dashboard
from unidle_agent.cli import main
from unidle_agent.settings import Secret, load
from unidle_dashboard.commands.dashboard import server_command, server_environment
from unidle_dashboard.settings import SECTION, DashboardSettings

PACKAGE = Path(unidle_dashboard.__file__).parent


def test_the_token_travels_in_the_environment_and_never_on_the_command_line() -> None:
    settings = DashboardSettings(collector_token=Secret("s3cret"))
    assert not [part for part in server_command(settings) if "s3cret" in part]
    assert server_environment(settings, {})["UNIDLE_DASHBOARD_COLLECTOR_TOKEN"] == "s3cret"


def test_the_server_loads_just_the_settings_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = DashboardSettings(collector_url="http://c:1", refresh_s=3.5, allowed_hosts=("gpu.example",))
    inherited = {"UNIDLE_DASHBOARD_SITE": "elsewhere", "STREAMLIT_SERVER_PORT": "1", "PATH": "/bin"}
    environment = server_environment(settings, inherited)
    assert load(DashboardSettings, SECTION, environ=environment) == settings
    assert "STREAMLIT_SERVER_PORT" not in environment
    assert environment["PATH"] == "/bin"


@pytest.mark.parametrize(
    "flag",
    [
        "--server.address=127.0.0.1",
        "--server.port=9472",
        "--browser.gatherUsageStats=false",
        "--client.showErrorDetails=none",
        "--client.toolbarMode=minimal",
        "--server.fileWatcherType=none",
        "--server.allowedHosts=localhost",
    ],
)
def test_the_server_starts_closed_and_silent(flag: str) -> None:
    assert flag in server_command(DashboardSettings())


def test_the_theme_is_readable_in_light_and_dark() -> None:
    (flag,) = [part for part in server_command(DashboardSettings()) if part.startswith("--theme.base=")]
    theme = tomllib.loads(Path(flag.partition("=")[2]).read_text(encoding="utf-8"))["theme"]
    for appearance in ("light", "dark"):
        colours = theme[appearance]
        assert _contrast(colours["textColor"], colours["backgroundColor"]) >= 7
        assert _contrast(colours["linkColor"], colours["backgroundColor"]) >= 4.5
        assert _contrast(colours["primaryColor"], colours["backgroundColor"]) >= 4.5


def test_a_wrong_setting_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dashboard", "--port", "none"]) == 2
    assert "dashboard.port: expected a whole number from 1 to 65535" in capsys.readouterr().err


def test_help_tells_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["dashboard", "--help"])
    shown = capsys.readouterr().out
    assert "--collector-token-file" in shown
    assert "--collector-token " not in shown
    assert "?incident=ID" in shown


def test_no_file_bears_the_name_of_a_standard_library_module() -> None:
    # Streamlit puts the script's folder first on the path.
    names = {path.stem for path in PACKAGE.rglob("*.py")} - {"__init__"}
    assert not names & sys.stdlib_module_names


def test_the_views_know_nothing_of_streamlit() -> None:
    sources = [*(PACKAGE / "view").glob("*.py"), PACKAGE / "answers.py", PACKAGE / "settings.py"]
    assert len(sources) > 8
    for path in sources:
        assert "import streamlit" not in path.read_text(encoding="utf-8"), path


def _contrast(one: str, other: str) -> float:
    """WCAG 2 contrast ratio of two colours."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_an_address_of_a_collector_that_is_none_is_said_at_the_start(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["dashboard", "--collector-url", "10.0.0.5:9470"]) == 2
    assert "dashboard.collector_url: expected an address that begins with http://" in capsys.readouterr().err
