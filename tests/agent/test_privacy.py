"""Names become pseudonyms before anything leaves, and nothing that was planted gets out."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import stat
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.agent.owner_world import Node, gpu
from tests.agent.scripted_server import Reply, in_turn, serving

from unidle_agent.config import AgentSettings
from unidle_agent.errors import SettingError
from unidle_agent.owners import Claims
from unidle_agent.owners.cgroup import CgroupSource
from unidle_agent.owners.environ import EnvironSource
from unidle_agent.owners.prolog_hpc_job import HpcJobFolder
from unidle_agent.owners.prolog_jobstats import JobstatsFolder
from unidle_agent.owners.running import RunningJobs
from unidle_agent.privacy import KEY_FILE, Pseudonymiser, pseudonymiser
from unidle_agent.runtime import Agent
from unidle_agent.sample import GpuReading, Reading
from unidle_agent.segment import MAGIC, records
from unidle_agent.settings import Secret
from unidle_agent.wire import Owner

PATIENCE_S = 30.0
KEY = b"0123456789abcdef0123"
OWNER = Owner(True, "4711,team/alice-notebook", "alice,bob", used_by="12_3,grant", note="conflict")


def test_a_pseudonym_is_the_keyed_hash_with_the_keys_epoch() -> None:
    digest = hmac.new(KEY, b"user:alice", hashlib.sha256).digest()
    expected = base64.b32encode(digest).decode().lower()[:12]
    assert Pseudonymiser(KEY).token("user", "alice") == f"user-{Pseudonymiser(KEY).epoch}-{expected}"


def test_numbers_of_jobs_stay_and_all_names_go() -> None:
    hidden = Pseudonymiser(KEY).owner(OWNER)
    token = r"-[a-z2-7]{4}-[a-z2-7]{12}"
    assert re.fullmatch(f"4711,namespace{token}/pod{token}", hidden.job)
    assert re.fullmatch(f"user{token},user{token}", hidden.user)
    assert re.fullmatch(f"12_3,job{token}", hidden.used_by)
    assert (hidden.allocated, hidden.note) == (True, "conflict")


def test_another_key_is_another_epoch_and_kinds_do_not_meet() -> None:
    one, other = Pseudonymiser(KEY), Pseudonymiser(KEY + b"x")
    assert one.epoch != other.epoch
    assert one.token("user", "alice")[-12:] != other.token("user", "alice")[-12:]
    assert one.token("user", "alice")[-12:] != one.token("job", "alice")[-12:]


def test_internal_leaves_names_as_they_are(tmp_path: Path) -> None:
    settings = AgentSettings(privacy="internal", state_dir=str(tmp_path))
    assert pseudonymiser(settings).owner(OWNER) == OWNER
    assert list(tmp_path.iterdir()) == []


@given(st.text(min_size=3), st.text(min_size=3))
def test_no_name_is_in_its_pseudonym_and_none_shares_one(first: str, second: str) -> None:
    one = Pseudonymiser(KEY)
    assert (one.token("user", first) == one.token("user", second)) == (first == second)


def test_without_a_key_one_is_made_for_its_owner_alone_said_once_and_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "unidle.agent")
    settings = AgentSettings(state_dir=str(tmp_path / "state"))
    first = pseudonymiser(settings)
    second = pseudonymiser(settings)
    file = tmp_path / "state" / KEY_FILE
    assert first.token("user", "alice") == second.token("user", "alice")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(caplog.records) == 1
    assert file.read_text().strip() not in caplog.text
    assert list(file.parent.iterdir()) == [file]


def test_trying_out_leaves_no_key_behind(tmp_path: Path) -> None:
    pseudonymiser(AgentSettings(state_dir=str(tmp_path)), keep=False)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_said_and_names_are_hidden_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("unidle_agent.privacy.os.open", full)
    made = pseudonymiser(AgentSettings(state_dir=str(tmp_path)))
    assert made.token("user", "alice").startswith("user-")
    assert "No space left" in caplog.text


def test_a_short_key_is_refused_without_showing_it() -> None:
    with pytest.raises(SettingError, match="16 random") as caught:
        pseudonymiser(AgentSettings(privacy_key=Secret("tooshort")))
    assert "tooshort" not in str(caught.value)


# Nothing planted gets out

SECRETS = ("alice", "bob", "grant-proposal", "/home", "hidden-pod", "hidden-space", "sk-token", "uid4242")
PAGE = (
    b'DCGM_FI_DEV_GPU_UTIL{gpu="3",UUID="GPU-3",pod="hidden-pod",namespace="hidden-space"} 97\n'
    b'DCGM_FI_DEV_POWER_USAGE{gpu="3",UUID="GPU-3",pod="alice-hidden-pod"} watt\n'
    b'ice-hidden-pod",namespace="hidden-space"} 97 alice bob\n'
    b'DCGM_FI_DEV_GPU_TEMP{gpu="3",UUID="GPU-3",pod="alice'
)


class Gpus:
    """NVML's part: three GPUs with their processes."""

    name = "nvml"
    precedence = 10

    def read(self) -> Reading:
        rows = [gpu(0, 10, minor=0), gpu(1, 11, minor=1), gpu(2, 12, minor=2)]
        return Reading(tuple(GpuReading(row.facts, {"power_w": 1.0}, row.pids) for row in rows))

    def close(self) -> None:
        pass


class Broken:
    """A source of owners whose errors quote what it read."""

    name = "broken"
    precedence = 1

    def read(self, gpus: object) -> Claims:
        raise ValueError("alice at /home/alice/grant-proposal")

    def close(self) -> None:
        pass


def plant(root: Path) -> list[object]:
    """Every source of owners, over a node full of names."""
    node = Node(root)
    variables = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_USER": "alice",
        "SLURM_JOB_NAME": "grant-proposal",
        "SLURMD_NODENAME": "n",
        "HOME": "/home/alice",
        "API_KEY": "sk-token",
    }
    node.process(
        10, "0::/system.slice/slurmstepd.scope/job_7/step_0\n", title="/home/alice/run.py", **variables
    )
    node.process(11, "0::/user.slice/alice.slice\n", title="/home/alice/run.py", **variables)
    node.process(12, "0::/\n", SLURM_JOB_ID="grant-proposal", SLURM_JOB_USER="bob", SLURMD_NODENAME="n")
    node.job_cgroup("7")
    maps, stats = root / "maps", root / "stats"
    maps.mkdir()
    stats.mkdir()
    (maps / "0").write_text("grant-proposal\n7\n")
    (stats / "2").write_text("grant-proposal 4242\n")
    (stats / "1").write_text("/home/alice alice bob\n")
    running = RunningJobs(node.proc, node.cgroups)
    return [
        Broken(),
        HpcJobFolder(maps, 1.0, running),
        JobstatsFolder(stats, 1.0, running, name_of=lambda uid: f"uid{uid}"),
        CgroupSource(node.proc, lambda uid: "alice"),
        EnvironSource(running, node.proc),
    ]


def test_no_planted_name_is_in_any_byte_spooled_sent_logged_or_on_metrics(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("DEBUG")
    (tmp_path / "node").mkdir()
    planted = plant(tmp_path / "node")
    monkeypatch.setattr("unidle_agent.owners.watch.sources", lambda settings: planted)
    monkeypatch.setattr("unidle_agent.runtime._nvml", lambda settings, ring: Gpus())
    with serving(lambda request: Reply(503)) as collector, serving(in_turn(Reply(body=PAGE))) as exporter:
        settings = AgentSettings(
            node="n1",
            nvml="on",
            port=0,
            period_s=0.1,
            batch_s=0.2,
            dcgm_scrape_s=0.1,
            dcgm_urls=(exporter.url,),
            push_url=collector.url,
            state_dir=str(tmp_path / "state"),
        )
        agent, stop = Agent(settings), threading.Event()
        thread = threading.Thread(target=agent.run, args=(stop,))
        thread.start()
        try:
            wait_until(lambda: b"user-" in spooled(tmp_path / "state") and bool(collector.requests))
            out = {"metrics": agent.page().encode(), "health": repr(agent.health()).encode()}
        finally:
            stop.set()
            thread.join(PATIENCE_S)
    out["spool"] = spooled(tmp_path / "state")
    out["sent"] = b"".join(zlib.decompress(request.body) for request in collector.requests)
    out["log"] = caplog.text.encode()
    assert b"job-" in out["metrics"]
    assert b"broken: unexpected ValueError" in out["health"]
    for where, data in out.items():
        assert data, where
        assert [secret for secret in SECRETS if secret.encode() in data] == [], where


def spooled(state: Path) -> bytes:
    """Everything under the state folder, as it lies there and inflated."""
    files = [path for path in state.rglob("*") if path.is_file()]
    raw = b"".join(path.read_bytes() for path in files)
    segments = [path for path in files if path.read_bytes().startswith(MAGIC)]
    batches = (
        zlib.decompress(record.payload) for path in segments for record, _ in records(path, len(MAGIC))
    )
    return raw + b"".join(batches)


def wait_until(holds: Callable[[], bool]) -> None:
    for _ in range(int(PATIENCE_S / 0.05)):
        if holds():
            return
        threading.Event().wait(0.05)
    raise AssertionError("it never held")
