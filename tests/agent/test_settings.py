"""Settings: one name in the file, the environment and the flags."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import pytest

from unidle_agent.config import AgentSettings
from unidle_agent.errors import SettingError, UnidleError
from unidle_agent.settings import Secret, add_flags, as_environment, load, setting


@dataclass(frozen=True, slots=True)
class Sample:
    url: str = setting("", "an address")
    period_s: float = setting(1.0, "seconds, of 100 % use", low=0.1, high=60)
    port: int = setting(9, "a port", low=0, high=65535)
    fast: bool = setting(False, "hurry")
    mode: str = setting("auto", "a choice", choices=("auto", "off"))
    urls: tuple[str, ...] = setting((), "addresses")
    folder: Path = setting(Path("/tmp/x"), "a folder")
    token: Secret = setting(Secret(), "a token")


def flags(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_flags(parser, Sample)
    return parser.parse_args(argv)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("unidle_agent.settings.DEFAULT_FILES", ("unidle.toml",))
    return tmp_path / "unidle.toml"


def test_defaults_hold_without_any_source(file: Path) -> None:
    assert load(Sample, "x", environ={}) == Sample()


def test_flag_beats_environment_beats_file(file: Path) -> None:
    file.write_text('[x]\nurl = "file"\nperiod_s = 3\nport = 3\n[y]\nurl = "other"\n')
    environ = {"UNIDLE_X_PERIOD_S": "2", "UNIDLE_X_PORT": "2"}
    found = load(Sample, "x", flags("--port", "1"), environ)
    assert (found.url, found.period_s, found.port) == ("file", 2.0, 1)


def test_every_kind_is_read_from_text(file: Path) -> None:
    found = load(
        Sample,
        "x",
        flags("--fast", "--urls", "a, b,", "--folder", "~/f", "--mode", "off", "--period-s", "0.5"),
        {},
    )
    assert found.fast is True
    assert found.urls == ("a", "b")
    assert found.folder == Path.home() / "f"
    assert (found.mode, found.period_s) == ("off", 0.5)


def test_a_secret_comes_from_the_environment_or_a_file_and_never_shows_itself(
    file: Path, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("hush\n")
    for found in (
        load(Sample, "x", None, {"UNIDLE_X_TOKEN": "hush"}),
        load(Sample, "x", None, {"UNIDLE_X_TOKEN_FILE": str(tmp_path / "token")}),
        load(Sample, "x", flags("--token-file", str(tmp_path / "token")), {}),
    ):
        assert found.token.reveal() == "hush"
        assert "hush" not in f"{found!r}{found.token}"
    with pytest.raises(SystemExit):
        flags("--token", "hush")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("perid_s = 1", r"x\.perid_s: expected a known setting, did you mean 'period_s'"),
        ("period_s = 0", r"x\.period_s: expected a number from 0.1 to 60, came 0 "),
        ("period_s = nan", r"x\.period_s: expected a number from 0.1 to 60, came nan"),
        ('port = "many"', r"x\.port: expected a whole number from 0 to 65535, came 'many'"),
        ("port = 1.5", r"x\.port: expected a whole number"),
        ("port = true", r"x\.port: expected a whole number"),
        ('fast = "perhaps"', r"x\.fast: expected true or false, came 'perhaps'"),
        ('mode = "fast"', r"x\.mode: expected auto \| off, came 'fast'"),
        ("urls = [1]", r"x\.urls: expected a list of texts"),
        ("url = 7", r"x\.url: expected a text, came 7"),
    ],
)
def test_a_bad_value_names_key_expectation_value_and_place(file: Path, text: str, complaint: str) -> None:
    file.write_text(f"[x]\n{text}\n")
    with pytest.raises(SettingError, match=complaint) as error:
        load(Sample, "x", environ={})
    assert "unidle.toml" in str(error.value)


def test_a_bad_secret_is_not_in_the_message(file: Path) -> None:
    file.write_text("[x]\ntoken = 12345\n")
    with pytest.raises(SettingError) as error:
        load(Sample, "x", environ={})
    assert "12345" not in str(error.value)


def test_a_file_that_is_no_toml_or_is_not_there_is_named(file: Path, tmp_path: Path) -> None:
    file.write_text("[x\n")
    with pytest.raises(UnidleError, match=r"unidle\.toml: expected TOML"):
        load(Sample, "x", environ={})
    with pytest.raises(SettingError, match="config: expected a readable TOML file"):
        load(Sample, "x", environ={"UNIDLE_CONFIG": str(tmp_path / "none")})


def test_settings_survive_the_way_through_an_environment(file: Path) -> None:
    sent = Sample(url="u", fast=True, urls=("a", "b"), token=Secret("hush"), period_s=0.25)
    environ = as_environment(sent, "x")
    assert set(environ) == {
        "UNIDLE_X_URL",
        "UNIDLE_X_FAST",
        "UNIDLE_X_URLS",
        "UNIDLE_X_TOKEN",
        "UNIDLE_X_PERIOD_S",
    }
    assert load(Sample, "x", None, environ) == sent


def test_help_names_defaults_and_takes_a_percent_sign(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        flags("--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "seconds, of 100 % use (default: 1.0)" in shown
    assert "--mode auto|off" in shown
    assert "(default: )" not in shown


def test_the_agent_listens_on_loopback_and_sends_nothing_until_told() -> None:
    settings = AgentSettings()
    assert (settings.bind, settings.port, settings.push_url, settings.dcgm_urls) == (
        "127.0.0.1",
        9471,
        "",
        (),
    )


def test_the_spool_is_where_the_user_may_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert AgentSettings().state_path == Path("/var/lib/unidle/agent")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert AgentSettings().state_path == Path.home() / ".local/state/unidle/agent"
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert AgentSettings().state_path == Path("/state/unidle/agent")
    assert AgentSettings(state_dir="/elsewhere").state_path == Path("/elsewhere")
