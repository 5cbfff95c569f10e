"""The reporter in a real PyTorch loop on the CPU, where there is a PyTorch.

torch is no dependency of unidle: name a Python that has it in UNIDLE_TORCH_PYTHON, or install it here.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from unidle_agent.injob import unidle_reporter

pytestmark = pytest.mark.slow

MODULE = Path(unidle_reporter.__file__)

LOOP = """
import os, sys
import unidle_reporter
unidle_reporter.start()
import torch
from torch.utils.data import DataLoader, TensorDataset

def main():
    assert unidle_reporter.VERSION == 1
    data = TensorDataset(torch.randn(96, 8), torch.zeros(96, dtype=torch.long))
    model = torch.nn.Linear(8, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    for workers, how in ((0, None), (2, "fork"), (2, "spawn")):
        unidle_reporter._reporters[0]._due_s = 0.0
        for inputs, labels in DataLoader(data, 8, num_workers=workers, multiprocessing_context=how):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = torch.nn.functional.cross_entropy(model(inputs), labels)
            loss.backward()
            optimizer.step()
    unidle_reporter._reporters[0]._due_s = 0.0
    optimizer.step()

    @torch.jit.script
    def scripted(x):
        with torch.autocast("cpu"):
            return torch.mm(x, x)
    assert scripted(torch.ones(2, 2)).dtype == torch.bfloat16

    weight = torch.nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    compiled = torch.compile(torch.optim.SGD([weight], lr=1.0).step, backend="eager")
    for _ in range(4):
        compiled()
    assert weight.item() == -3.0
    print(os.getpid())

if __name__ == "__main__":
    main()
"""


@pytest.fixture
def python() -> str:
    python = os.environ.get("UNIDLE_TORCH_PYTHON") or sys.executable
    if subprocess.run([python, "-c", "import torch"], capture_output=True, check=False).returncode:
        pytest.skip(f"{python} has no torch; set UNIDLE_TORCH_PYTHON to one that has")
    return python


def test_a_real_training_loop_reports_steps_waits_and_format_and_its_loaders_are_silent(
    python: str, tmp_path: Path
) -> None:
    loop = tmp_path / "loop.py"
    loop.write_text(LOOP)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "socket"))
        ear.setblocking(False)
        done = subprocess.run(
            [python, str(loop)],
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(MODULE.parent),
                "UNIDLE_REPORTER": str(tmp_path / "socket"),
            },
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        heard = []
        with contextlib.suppress(BlockingIOError):
            while True:
                heard.append(json.loads(ear.recv(65536)))
    assert [one["n"] for one in heard] == list(range(1, len(heard) + 1))
    assert {one["pid"] for one in heard} == {int(done.stdout)}
    last = heard[-1]
    assert last["steps"] == 3 * 12 + 1
    assert last["dtype"] == "bfloat16"
    assert last["wait_s"] > 0
    assert last["step_time_s"] > 0
    assert last["gpus"] == []
