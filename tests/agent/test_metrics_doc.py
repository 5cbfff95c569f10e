"""docs/metrics.md: the names it shows exist, and its queries give what it says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from unidle_agent.config import NAMES
from unidle_agent.exporter import XidCounts, families, render
from unidle_agent.fields import GPU_FIELDS
from unidle_agent.sample import GpuReading, Reading, Value
from unidle_agent.wire import GpuFacts, Owner

TEXT = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
FULL: dict[str, Value] = {field.name: 1 if field.dtype == "u8" else 0.5 for field in GPU_FIELDS}


def node() -> Reading:
    """Two GPUs of one job, of which one does nothing, and one that nobody holds."""
    held, free = Owner(True, job="4711", user="u-1", source="slurm"), Owner(False)
    owners = (held, held, free)
    return Reading(
        tuple(
            GpuReading(
                GpuFacts(f"GPU-{index}", index, "B200", owner=owner),
                {
                    **FULL,
                    "gpu_util_ratio": (0.5, 0.0, 0.0)[index],
                    "sm_active_ratio": (0.25, 0.0, 0.0)[index],
                },
            )
            for index, owner in enumerate(owners)
        ),
        {},
    )


def test_every_metric_that_the_page_names_is_served() -> None:
    served = "".join(render(families(node(), names, "n1")) for names in NAMES)
    known = {*re.findall(r"^# TYPE (\S+)", served, re.MULTILINE), XidCounts().metric().name}
    named = set(re.findall(r"\b(?:unidle_gpu|unidle_host|DCGM_FI)_\w+", TEXT))
    assert len(named) >= 7
    assert named <= known


@pytest.mark.slow
def test_the_queries_give_what_the_page_says(tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    queries = re.findall(r"```promql\n(.*?)```", TEXT, re.DOTALL)
    active, wasted, joined = (" ".join(query.split()) for query in queries)
    tests = [
        {"expr": active, "exp_samples": [{"labels": '{job="4711"}', "value": 0.25}]},
        {
            "expr": wasted,
            "exp_samples": [
                {"labels": 'unidle_gpu_util_ratio{instance="n1",gpu="1",uuid="GPU-1"}', "value": 0}
            ],
        },
        {"expr": f"sum by (gpu, job) ({joined})", "exp_samples": [percent_of(0, 50), percent_of(1, 0)]},
    ]
    series = [
        {"series": line.partition(" ")[0].replace("{", '{instance="n1",', 1), "values": line.split()[-1]}
        for line in {*lines("own"), *lines("dcgm")}
        if not line.startswith("unidle_gpu_job_info") or "UUID" in line
    ]
    group = {"interval": "1m", "input_series": series, "promql_expr_test": tests}
    file = tmp_path / "queries.yml"
    file.write_text(json.dumps({"tests": [group]}), encoding="utf-8")
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def percent_of(gpu: int, percent: int) -> dict[str, object]:
    return {"labels": f'{{gpu="{gpu}",job="4711"}}', "value": percent}


def lines(names: str) -> list[str]:
    """The samples of a page; names without blanks keep a line's value its last word."""
    page = render(families(node(), names, "n1"))
    return [line for line in page.splitlines() if not line.startswith("#")]
