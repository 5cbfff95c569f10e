"""`unidle sites` as people read it, over a federation's own server."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
from tests.federation.fake_federation import serving

from unidle_collector.commands import sites

TOKEN = "read-token-of-the-test"


def said(
    *flags: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("UNIDLE_READER_COLLECTOR_TOKEN", TOKEN)
    parser = argparse.ArgumentParser()
    sites.arguments(parser)
    with serving(folder, TOKEN) as federation:
        assert sites.run(parser.parse_args(["--collector-url", federation.url, *flags])) == 0
    return capsys.readouterr().out


def test_each_site_is_a_line_with_what_is_simulated_unknown_and_withheld(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = said(folder=tmp_path, monkeypatch=monkeypatch, capsys=capsys).splitlines()
    assert lines[0].split("  ")[0] == "site"
    assert lines[1].split() == [
        "fra",
        "EU",
        "512",
        "0.5",
        "GPU-h,",
        "20",
        "EUR",
        "100%",
        "3",
        "1",
        "s",
        "ago",
    ]
    assert lines[2].startswith("par  SIMULATED ")
    assert "0.5 GPU-h, EUR unknown" in lines[3]
    assert "zrh: unknown since 2026-11-21 13:47:00 UTC: connection refused: nothing listens there" in lines
    assert "fra: withheld by policy: accounts.node, accounts.user, accounts.job" in lines


def test_machines_get_the_whole_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(said("--json", folder=tmp_path, monkeypatch=monkeypatch, capsys=capsys))
    assert [(one["key"], one["state"]) for one in found] == [
        ("fra", "current"),
        ("par", "current"),
        ("zrh", "away"),
    ]
    assert found[2]["report"]["policy"]["same_jurisdiction"] is False
