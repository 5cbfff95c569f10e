"""Has this machine GPUs: asked of the agent itself, in a process of its own, as a driver can hang."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping

from unidle_agent.config import AgentSettings
from unidle_agent.errors import UnidleError
from unidle_agent.fetch import get

DCGM_URL = "http://127.0.0.1:9400/metrics"
"""Where dcgm-exporter listens by default."""
WITHIN_S = 30.0
LARGEST_PAGE = 8 << 20


def dcgm_exporter_here(settings: AgentSettings) -> str:
    """The address of a dcgm-exporter on this machine that the settings do not name; empty: none."""
    if settings.dcgm_urls:
        return ""
    try:
        answer = get(DCGM_URL, "dcgm_urls", deadline_s=2.0, max_bytes=LARGEST_PAGE)
    except (UnidleError, OSError):
        return ""
    return DCGM_URL if answer.status == 200 and b"DCGM_FI_" in answer.body else ""


def count_gpus(environ: Mapping[str, str], dcgm_url: str) -> tuple[int, str]:
    """(how many GPUs the agent sees here, why none in a few words)."""
    command = [sys.executable, "-m", "unidle_agent.cli", "agent", "--once"]
    if dcgm_url:
        command += ["--dcgm-urls", dcgm_url]
    try:
        done = subprocess.run(command, env=dict(environ), capture_output=True, timeout=WITHIN_S, check=False)
        sample = json.loads(done.stdout)
        gpus, problems = len(sample["gpus"]), [str(problem) for problem in sample["problems"]]
    except subprocess.TimeoutExpired:
        return 0, f"the agent's first sample took longer than {WITHIN_S:.0f} s; see unidle doctor"
    except (ValueError, KeyError, TypeError):
        return 0, f"the agent could not sample: {done.stderr.decode(errors='replace').strip()[-200:]}"
    return gpus, "; ".join(problems) or "no NVIDIA driver and no dcgm-exporter"
