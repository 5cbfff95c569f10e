"""The reporter inside a job: real processes with a stand-in for torch, and a socket that listens."""

from __future__ import annotations

import ast
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from unidle_agent.injob import __main__ as command
from unidle_agent.injob import unidle_reporter
from unidle_agent.injob.cost import report

MODULE = Path(unidle_reporter.__file__)
TREE = Path(__file__).with_name("torch_tree")
GIB = 2**30

TRAIN = """
import torch
optimizer = torch.optim.SGD([torch.Parameter(torch.bfloat16)])
"""
START = "import unidle_reporter; unidle_reporter.start()\n"
CLOCK = """
now_s = 1000.0
unidle_reporter.monotonic = lambda: now_s
"""


class Ear:
    """The agent's socket, as far as a job can tell; it keeps `max_dgram_qlen` messages."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)

    def heard(self) -> list[dict[str, Any]]:
        out = []
        while True:
            try:
                out.append(json.loads(self.socket.recv(65536)))
            except BlockingIOError:
                return out


@pytest.fixture
def ear(tmp_path: Path) -> Iterator[Ear]:
    ear = Ear(tmp_path / "socket")
    yield ear
    ear.socket.close()


def job(script: str, path: Path | str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a job to its end, which must be a good one that says nothing on stderr."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{TREE}:{MODULE.parent}",
            "UNIDLE_REPORTER": str(path),
            **environ,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done


def test_the_file_is_of_python_3_8_and_of_the_standard_library_alone() -> None:
    tree = ast.parse(MODULE.read_text(encoding="utf-8"), feature_version=(3, 8))
    names = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name) or ""
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names
    assert "torch" not in names


def test_a_message_says_what_the_allocator_and_the_loop_do(ear: Ear) -> None:
    done = job(
        START
        + CLOCK
        + TRAIN
        + """
import os
for number, batch in enumerate(torch.utils.data.DataLoader(range(5))):
    now_s += 0.25
    optimizer.step()
print(os.getpid())
""",
        ear.path,
        RANK="11",
        LOCAL_RANK="3",
    )
    first, second = ear.heard()
    assert first["n"] == 1
    assert first["steps"] == 0 or first["steps"] is None  # the first batch came before the first step
    assert second == {
        "v": 1,
        "n": 2,
        "pid": int(done.stdout),
        "rank": 11,
        "local_rank": 3,
        "steps": 4,
        "step_time_s": 0.25,
        "wait_s": 0.0,
        "dtype": "bfloat16",
        "gpus": [
            {
                "i": 0,
                "uuid": "GPU-5f587dd4-1111-2222-3333-444455556666",
                "allocated": [10 * GIB, 12 * GIB],
                "reserved": [20 * GIB, 20 * GIB],
                "active": [11 * GIB, 13 * GIB],
                "inactive_split": [2 * GIB, 3 * GIB],
                "retries": 0,
                "ooms": 0,
            }
        ],
    }


def test_at_most_one_message_a_second_however_many_steps(ear: Ear) -> None:
    job(START + CLOCK + TRAIN + "for _ in range(256):\n    optimizer.step()\n    now_s += 1 / 64\n", ear.path)
    assert [one["steps"] for one in ear.heard()] == [1, 65, 129, 193]


def test_started_after_torch_or_twice_it_reports_once(ear: Ear) -> None:
    job(TRAIN + START + START + CLOCK + "optimizer.step()\n", ear.path)
    assert [one["steps"] for one in ear.heard()] == [1]


def test_it_never_imports_torch_and_does_nothing_without_an_address(ear: Ear) -> None:
    done = job(START + "import sys; print('torch' in sys.modules)", ear.path)
    assert done.stdout.strip() == "False"
    done = job("import unidle_reporter as u\nprint(u.start())" + TRAIN + "optimizer.step()\n", "")
    assert done.stdout.strip() == "False"
    assert ear.heard() == []


def test_the_import_of_torch_is_left_as_it_was(ear: Ear) -> None:
    done = job(
        START
        + """
import importlib.util, sys
before = len(sys.meta_path)
assert importlib.util.find_spec("torch") is not None  # as libraries probe for it
import torch
loader = torch.__spec__.loader
print(type(loader).__name__, "exec_module" in vars(loader), before - len(sys.meta_path))
""",
        ear.path,
    )
    assert done.stdout.split() == ["SourceFileLoader", "False", "1"]


def test_a_torch_that_cannot_be_imported_fails_as_it_would_alone(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart is missing')\n")
    probe = """
for _ in (1, 2):
    try:
        import torch
    except ImportError as error:
        print(error)
"""
    done = job(START + probe, tmp_path / "none", PYTHONPATH=f"{tmp_path}:{MODULE.parent}")
    assert done.stdout.splitlines() == ["libcudart is missing"] * 2
    done = job(START + probe, tmp_path / "none", PYTHONPATH=str(MODULE.parent))
    assert done.stdout.splitlines() == ["No module named 'torch'"] * 2


@pytest.mark.parametrize("what", ["absent", "gone", "full", "no_socket", "too_long"])
def test_no_agent_can_hold_or_break_the_job(what: str, ear: Ear, tmp_path: Path) -> None:
    path = ear.path
    if what == "absent":
        path = tmp_path / "none" / "socket"
    elif what == "gone":
        ear.socket.close()
    elif what == "no_socket":
        path = tmp_path / "file"
        path.write_text("")
    elif what == "too_long":
        path = tmp_path / ("x" * 200)
    done = job(
        START
        + CLOCK
        + TRAIN
        + "for _ in range(2000):\n    optimizer.step()\n    now_s += 1.0\nprint('trained')\n",
        path,
    )
    assert done.stdout.strip() == "trained"
    if what == "full":  # nobody has read: what the kernel keeps is there, the rest was dropped
        heard = ear.heard()
        assert 0 < len(heard) < 2000
        assert [one["n"] for one in heard] == list(range(1, len(heard) + 1))


def test_the_kernel_is_told_never_to_wait(ear: Ear) -> None:
    script = """
import socket
socket.socket.sendto = lambda self, *_: print(self.gettimeout())
optimizer.step()
"""
    assert job(START + TRAIN + script, ear.path).stdout == "0.0\n"


@pytest.mark.parametrize(
    "breakage",
    [
        "torch._C._cuda_memoryStats = None",
        "torch._C._cuda_memoryStats = lambda device: {'allocated_bytes': 7}",
        "torch.cuda.get_device_properties = lambda index: 1 / 0",
        "del torch._C._cuda_getDevice",
        "optimizer.param_groups = None; optimizer.step()",
        "unidle_reporter.monotonic = None",
        "sys.modules['json'] = None",
        "sys.modules['socket'] = None",
    ],
)
def test_a_torch_that_is_not_as_expected_costs_messages_and_nothing_else(breakage: str, ear: Ear) -> None:
    done = job(
        START
        + CLOCK
        + TRAIN
        + f"import sys\n{breakage}\n"
        + "for _ in torch.utils.data.DataLoader(range(30)):\n    optimizer.step()\n    now_s += 1.0\n"
        + "print('trained')\n",
        ear.path,
    )
    assert done.stdout.strip() == "trained"
    assert ear.heard() == []


def test_an_old_torch_without_hooks_still_gives_what_it_has(ear: Ear) -> None:
    script = """
import torch, sys
del sys.modules["torch.optim.optimizer"].register_optimizer_step_post_hook
del torch._C._cuda_attach_out_of_memory_observer
"""
    job(script + START + "for _ in torch.utils.data.DataLoader(range(3)): pass\n", ear.path)
    (message,) = ear.heard()
    assert message["steps"] is None
    assert message["gpus"][0]["reserved"] == [20 * GIB, 20 * GIB]


def test_waiting_counts_once_and_in_the_training_thread_only(ear: Ear) -> None:
    job(
        START
        + CLOCK
        + TRAIN
        + """
import threading
def slow(seconds, items):
    global now_s
    for item in items:
        now_s += seconds
        yield item
DataLoader = torch.utils.data.DataLoader
inner = DataLoader(slow(2.0, range(9)))
outer = DataLoader(item for item in inner)       # a data set that reads from a DataLoader itself
optimizer.step()
for _ in zip(range(3), outer):
    optimizer.step()
threading.Thread(target=lambda: list(DataLoader(slow(50.0, [1])))).start()
optimizer.step()
now_s += 1.0
optimizer.step()
""",
        ear.path,
    )
    assert ear.heard()[-1]["wait_s"] == 6.0


def test_time_waited_is_unknown_where_the_training_thread_reads_no_loader(ear: Ear) -> None:
    job(START + TRAIN + "optimizer.step()\n", ear.path)
    assert ear.heard()[0]["wait_s"] is None


def test_of_several_optimizers_the_first_sets_the_pace_until_it_is_quiet(ear: Ear) -> None:
    job(
        START
        + CLOCK
        + TRAIN
        + """
other = torch.optim.SGD([torch.Parameter(torch.float16)])
for _ in range(4):
    now_s += 0.5
    optimizer.step()
    other.step()
now_s += 61.0
for _ in range(3):
    now_s += 0.5
    other.step()
""",
        ear.path,
    )
    heard = ear.heard()
    assert [one["steps"] for one in heard] == [1, 3, 5, 7]
    assert [one["step_time_s"] for one in heard] == [None, 0.5, 0.5, 0.5]
    assert [one["dtype"] for one in heard] == ["bfloat16", "bfloat16", "float16", "float16"]


def test_steps_are_unknown_once_nothing_steps_any_more(ear: Ear) -> None:
    script = """
optimizer.step()
now_s += 100.0
for _ in torch.utils.data.DataLoader([1]): pass
"""
    job(START + CLOCK + TRAIN + script, ear.path)
    assert [one["steps"] for one in ear.heard()] == [1, None]


def test_inside_torch_compile_the_hook_leaves_nothing(ear: Ear) -> None:
    job(START + TRAIN + "torch.compiler.compiling = True\noptimizer.step()\n", ear.path)
    assert ear.heard() == []


@pytest.mark.parametrize(
    ("use", "dtype"),
    [
        pytest.param("with torch.amp.autocast_mode.autocast('cuda'): pass", "bfloat16", id="autocast"),
        pytest.param(
            "with torch.amp.autocast_mode.autocast('cuda', enabled=False): pass", "float32", id="autocast off"
        ),
        pytest.param("pass", "float32", id="the parameters' own"),
        pytest.param("matmul.fp32_precision = 'tf32'", "tf32", id="float32 on tensor cores"),
        pytest.param(
            "del matmul.fp32_precision; torch.get_float32_matmul_precision = lambda: 'high'",
            "tf32",
            id="the same before torch 2.9",
        ),
    ],
)
def test_number_format(use: str, dtype: str, ear: Ear) -> None:
    script = """
matmul = torch.backends.cuda.matmul
parameters = [torch.Parameter(torch.float32, elements=100), torch.Parameter(torch.float16, elements=5)]
optimizer = torch.optim.SGD(parameters)
"""
    job(START + TRAIN + script + use + "\noptimizer.step()\n", ear.path)
    assert ear.heard()[0]["dtype"] == dtype


def test_every_device_of_the_parameters_is_told_and_a_job_of_the_cpu_has_none(ear: Ear) -> None:
    many = "optimizer = torch.optim.SGD([torch.Parameter(index=i) for i in (2, 1)])\noptimizer.step()\n"
    job(START + TRAIN + many, ear.path)
    assert [gpu["i"] for gpu in ear.heard()[0]["gpus"]] == [0, 1, 2]
    cpu = "torch.cuda.initialized = False\noptimizer.step()\n"
    job(START + TRAIN + cpu, ear.path)
    assert [one["gpus"] for one in ear.heard()] == [[]]


def test_what_the_async_allocator_does_not_keep_is_not_told_as_zero(ear: Ear) -> None:
    job(
        START
        + TRAIN
        + "torch.cuda.backend = 'cudaMallocAsync'\noptimizer.step()\nassert not torch.observers\n",
        ear.path,
    )
    assert set(ear.heard()[0]["gpus"][0]) == {"i", "uuid", "allocated", "reserved"}


def test_before_torch_knew_uuids_the_environment_may(ear: Ear) -> None:
    script = "torch.UUID = ''\noptimizer.step()\n"
    job(START + TRAIN + script, ear.path, CUDA_VISIBLE_DEVICES="GPU-5f587dd4-1111-2222-3333-444455556667,1")
    job(START + TRAIN + script, ear.path, CUDA_VISIBLE_DEVICES="3,1")
    assert [one["gpus"][0]["uuid"] for one in ear.heard()] == ["GPU-5f587dd4-1111-2222-3333-444455556667", ""]


def test_out_of_memory_is_one_last_message_though_none_is_due(ear: Ear) -> None:
    script = """
optimizer.step()
torch.statistics["num_ooms"] = 1
(observer,) = torch.observers
observer(0, 3 * torch.GIB, 80 * torch.GIB, torch.GIB)
"""
    job(START + CLOCK + TRAIN + script, ear.path)
    first, last = ear.heard()
    assert "oom" not in first
    assert last["oom"] == {"i": 0, "asked": 3 * GIB, "limit": 80 * GIB, "free": GIB}
    assert last["gpus"][0]["ooms"] == 1


def test_loader_workers_are_silent_forked_or_spawned(ear: Ear) -> None:
    forked = """
import os
optimizer.step()
def child(work):
    if (pid := os.fork()) == 0:
        work()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
def load():
    list(torch.utils.data.DataLoader(range(3)))
def train():
    optimizer.step()
child(load)
child(train)
"""
    job(START + TRAIN + forked, ear.path)
    first, second = ear.heard()
    assert (first["n"], first["steps"], second["n"], second["steps"]) == (1, 1, 1, 1)
    assert first["pid"] != second["pid"]
    spawned = """
import sys
sys.modules['torch.utils.data._utils.worker']._worker_info = object()
optimizer.step()
"""
    job(START + TRAIN + spawned, ear.path)
    assert ear.heard() == []


def test_threads_that_step_at_once_send_one_message_after_the_other(tmp_path: Path) -> None:
    script = """
import json, threading
sent = []
unidle_reporter.PERIOD_S = 0.0
unidle_reporter._Reporter._send = lambda self, message: sent.append(json.loads(message)["n"])
optimizers = [torch.optim.SGD([torch.Parameter()]) for _ in range(8)]
def train(optimizer):
    for batch in torch.utils.data.DataLoader(range(500)):
        optimizer.step()
threads = [threading.Thread(target=train, args=(one,)) for one in optimizers]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert sent == list(range(1, len(sent) + 1))
print(len(sent))
"""
    assert int(job(START + TRAIN + script, tmp_path / "none").stdout) > 500


def test_hooks_that_run_while_the_interpreter_shuts_down_are_quiet(ear: Ear) -> None:
    script = """
class Late:
    def __del__(self):
        for _ in range(3):
            optimizer.step()
torch.late = Late()
import atexit
atexit.register(optimizer.step)
"""
    job(START + TRAIN + script, ear.path)
    assert ear.heard()


def test_installed_by_pth_it_needs_the_variable_alone(
    ear: Ear, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = tmp_path / "site"
    assert command.main(["--pth", "--into", str(site), "--yes"]) == 2
    site.mkdir()
    assert command.main(["--pth", "--into", str(site)]) == 0
    assert not list(site.iterdir())
    assert "nothing was written: add --yes" in capsys.readouterr().out
    assert command.main(["--pth", "--into", str(site), "--yes"]) == 0
    assert sorted(path.name for path in site.iterdir()) == ["unidle_reporter.pth", "unidle_reporter.py"]

    begin = f"import site, sys\nsite.addsitedir({str(site)!r})\n"
    done = job(begin + "print('unidle_reporter' in sys.modules)", "", PYTHONPATH=str(TREE))
    assert done.stdout.strip() == "False"
    job(begin + TRAIN + "optimizer.step()\n", ear.path, PYTHONPATH=str(TREE))
    assert [one["steps"] for one in ear.heard()] == [1]


def test_how_to_use_it_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--pth"]) == 0
    text = capsys.readouterr().out
    assert str(MODULE) in text
    assert command.LINE.strip() in text


def test_the_cost_table_has_every_case_and_a_small_message() -> None:
    lines = report().splitlines()
    assert [line.partition("  ")[0] for line in lines[1:-1]] == [
        "step, no message due",
        "batch, no message due",
        "message, agent absent",
        "message, agent not reading",
        "message, agent reading",
    ]
    assert 200 < int(lines[-1].split()[-1]) < 600
    assert "torch" not in sys.modules
