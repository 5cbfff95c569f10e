"""docs/prometheus.md: its commands, settings and metrics exist, and its Prometheus configuration is one."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from tests import metric_pages

from unidle_collector.commands import collector, diagnose, store
from unidle_collector.prometheus.names import understood
from unidle_collector.prometheus.receiver import PATH
from unidle_collector.settings import CollectorSettings

TEXT = (Path(__file__).parents[2] / "docs" / "prometheus.md").read_text(encoding="utf-8")
FLAGS = {"diagnose": diagnose.arguments, "collector": collector.arguments, "store": store.arguments}


def commands() -> list[str]:
    return re.findall(r"^unidle (.+)$", TEXT, re.MULTILINE)


def test_there_are_commands_for_all_four_ways() -> None:
    assert len(commands()) == 4


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_page_is_understood(command: str) -> None:
    name, *words = command.split()
    parser = argparse.ArgumentParser()
    FLAGS[name](parser)
    parser.parse_args(words)


def test_flags_settings_and_metrics_of_the_page_exist(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    diagnose.arguments(parser)
    for flag in re.findall(r"`(--(?:match|since|until|json|bearer\S*|ca-file))\b", TEXT):
        assert flag.split()[0] in parser.format_help()
    fields = {field.name for field in dataclasses.fields(CollectorSettings)}
    named = set(re.findall(r"`((?:scrape|remote)_[a-z_]+)`", TEXT)) - {"remote_write"}
    assert {name.removesuffix("_file") if name == "scrape_token_file" else name for name in named} <= fields
    served = metric_pages.names(metric_pages.pages(tmp_path))
    metrics = set(re.findall(r"`(unidle_collector_\w+)`", TEXT))
    assert len(metrics) >= 3
    assert metrics <= served


def test_names_that_the_page_asks_for_are_understood() -> None:
    names = re.findall(r"DCGM_FI_(?:DEV|PROF)_\w+", TEXT)
    assert names
    assert all(understood(name) for name in names)


def test_the_configuration_on_the_page_is_what_promtool_takes(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    (write,) = yaml.safe_load(text)["remote_write"]
    assert write["url"].endswith(PATH)
    (relabel,) = write["write_relabel_configs"]
    for name in (
        "DCGM_FI_DEV_GPU_UTIL",
        "dcgm_gpu_utilization",
        "unidle_gpu_power_watts",
        "unidle_simulated",
    ):
        assert re.fullmatch(relabel["regex"], name)
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    token = tmp_path / "token"
    token.write_text("t", encoding="utf-8")
    file = tmp_path / "prometheus.yml"
    file.write_text(text.replace("/etc/prometheus/unidle-push.token", str(token)), encoding="utf-8")
    checked = subprocess.run(["promtool", "check", "config", str(file)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
