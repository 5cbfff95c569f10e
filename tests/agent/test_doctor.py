"""`unidle doctor`: each check against something real, and the table that people see."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from tests.agent.scripted_server import Reply, Request, dead_url, in_turn, serving

from unidle_agent import checks, cli
from unidle_agent.checks import CheckResult
from unidle_agent.commands import doctor
from unidle_agent.sources import kernel_log

OK, WARN, FAIL, ABSENT = (
    CheckResult("pressure", "ok", "readable"),
    CheckResult("gpm", "warn", "old GPUs", "buy new ones"),
    CheckResult("slurm", "fail", "controller down", "start it"),
    CheckResult("kubernetes", "absent", "no socket"),
)


@pytest.fixture(autouse=True)
def settings_from_environment_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("UNIDLE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("unidle_agent.settings.DEFAULT_FILES", ())


def test_the_table_has_every_result_what_to_do_and_a_plain_verdict() -> None:
    assert doctor.render([OK, WARN, FAIL, ABSENT]) == (
        "ok      pressure    readable\n"
        "warn    gpm         old GPUs\n"
        "                    -> buy new ones\n"
        "fail    slurm       controller down\n"
        "                    -> start it\n"
        "absent  kubernetes  no socket\n"
        "\n"
        "1 of 4 checks fail: slurm; also worth a look: gpm"
    )
    assert doctor.render([OK, WARN]).endswith("nothing fails; worth a look: gpm")
    assert doctor.render([OK, ABSENT]).endswith("all that is here works")


def test_a_check_that_may_not_or_cannot_says_why_and_not_that_it_broke() -> None:
    def closed_folder() -> CheckResult:
        raise PermissionError(13, "Permission denied", "/root/x")

    def half_a_python() -> CheckResult:
        raise LookupError("unknown encoding: idna")

    def bug() -> CheckResult:
        raise KeyError("x")

    found = {result.name: result for result in doctor.examine([closed_folder, half_a_python, bug], 5)}
    assert found["closed-folder"].found == "/root/x: Permission denied"
    assert "as the user that the role runs as" in found["closed-folder"].todo
    assert found["half-a-python"].found == "this user cannot read all of Python (unknown encoding: idna)"
    assert found["bug"].found == "the check itself broke: KeyError: 'x'"


def test_a_python_that_this_user_may_not_execute_is_the_cause_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checks.python().status == "ok"
    closed = tmp_path / "python3"
    closed.write_text("")
    monkeypatch.setattr("sys.executable", str(closed))
    assert (checks.python().status, str(closed) in checks.python().found) == ("fail", True)
    driver = checks.nvidia_driver()
    assert driver.status == ("fail" if Path("/dev/nvidiactl").exists() else "warn")
    assert driver.found == f"the process that asks the driver cannot be started: {closed}: Permission denied"


def test_slurm_without_a_slurm_conf_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("squeue", "scontrol"):
        said = "scontrol: error: fetch_config: DNS SRV lookup failed"
        (tmp_path / name).write_text(f"#!/bin/sh\necho {said} >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert checks.slurm() == CheckResult(
        "slurm",
        "warn",
        "Slurm's commands are here and find no slurm.conf",
        "nothing, where this node is in no cluster; else set SLURM_CONF, or see that slurm.conf is there",
    )


@pytest.mark.parametrize("deadline", ["0", "-1"])
def test_a_deadline_that_no_check_can_meet_is_refused(
    deadline: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor", "--deadline-s", deadline]) == 2
    assert "--deadline-s: expected more than 0" in capsys.readouterr().err


@pytest.mark.parametrize(("results", "code"), [([OK, WARN, ABSENT], 0), ([OK, FAIL], 1)])
def test_exit_code_and_json_say_whether_anything_fails(
    results: list[CheckResult],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(doctor, "installed", lambda points: ([], [lambda one=one: one for one in results]))
    assert cli.main(["doctor", "--json"]) == code
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is (code == 0)
    assert [check["status"] for check in document["checks"]] == [one.status for one in results]


def test_a_check_that_hangs_or_breaks_is_a_failed_result_and_delays_no_other() -> None:
    release = threading.Event()

    def hung_thing() -> CheckResult:
        release.wait(60)
        return OK

    def broken_thing() -> CheckResult:
        raise ZeroDivisionError("oops")

    results = doctor.examine([hung_thing, broken_thing, lambda: OK], deadline_s=0.2)
    release.set()
    assert [(result.name, result.status) for result in results] == [
        ("hung-thing", "fail"),
        ("broken-thing", "fail"),
        ("pressure", "ok"),
    ]
    assert "no answer within 0.2 s" in results[0].found
    assert "ZeroDivisionError" in results[1].found


def test_a_role_whose_packages_are_missing_is_shown_as_not_installed() -> None:
    points = [
        EntryPoint("agent", "unidle_agent.checks", doctor.GROUP),
        EntryPoint("alerts", "surely_not_installed.checks", doctor.GROUP),
    ]
    absent, found = doctor.installed(points)
    assert found == list(checks.CHECKS)
    assert [(result.name, result.status) for result in absent] == [("role alerts", "absent")]
    assert "pip install 'unidle[alerts]'" in absent[0].todo


def test_an_installation_without_any_check_is_a_failure_and_not_all_right() -> None:
    absent, _ = doctor.installed([])
    assert [result.status for result in absent] == ["fail"]


def test_a_wrong_setting_is_a_failed_check_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIDLE_AGENT_PERIOD_S", "often")
    (result,) = doctor.examine([checks.collector], 10)
    assert result.status == "fail"
    assert "agent.period_s: expected a number" in result.found


def test_the_real_doctor_answers_on_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) in (0, 1)
    names = [check["name"] for check in json.loads(capsys.readouterr().out)["checks"]]
    assert {"nvidia-driver", "permissions", "gpm", "slurm", "kubernetes", "pressure", "collector"} <= set(
        names
    )


def test_device_files_that_can_be_opened_are_well_and_admin_only_counters_are_worth_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checks.permissions(tmp_path, tmp_path).status == "absent"
    for name in ("nvidiactl", "nvidia0", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert checks.permissions(tmp_path, tmp_path).found == "2 device files can be opened"
    params = tmp_path / "driver/nvidia/params"
    params.parent.mkdir(parents=True)
    params.write_text("RmProfilingAdminOnly: 1\n")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert checks.permissions(tmp_path, tmp_path).status == "ok"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    result = checks.permissions(tmp_path, tmp_path)
    assert result.status == "warn"
    assert "NVreg_RestrictProfilingToAdminUsers=0" in result.todo


def test_device_files_that_cannot_be_opened_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia3").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    result = checks.permissions(tmp_path, tmp_path)
    assert result.status == "fail"
    assert "nvidia3" in result.found


def test_a_host_engine_is_found_by_its_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        assert checks.dcgm_host_engine(address).status == "ok"
    assert checks.dcgm_host_engine(address).status == "absent"


PAGE = b'DCGM_FI_DEV_POWER_USAGE{gpu="0",UUID="GPU-0"} 1\n'


def test_an_exporter_that_the_agent_does_not_read_is_worth_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.dcgm_exporter(dead_url()).status == "absent"
    with serving(in_turn(Reply(body=PAGE))) as server:
        result = checks.dcgm_exporter(server.url)
        assert (result.status, result.todo) == ("warn", f"set dcgm_urls = {server.url}")
        monkeypatch.setenv("UNIDLE_AGENT_DCGM_URLS", server.url)
        assert checks.dcgm_exporter().found == f"{server.url}: 1 GPUs"
        assert checks.dcgm_exporter().status == "ok"


def test_an_exporter_that_is_configured_and_gone_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIDLE_AGENT_DCGM_URLS", dead_url())
    assert checks.dcgm_exporter().status == "fail"


@pytest.mark.parametrize(
    ("script", "status", "found"),
    [
        ("echo 'Slurmctld(primary) at head is UP'", "ok", "Slurmctld(primary) at head is UP"),
        ("echo 'Slurmctld(primary) at head is DOWN'; exit 1", "fail", "DOWN"),
        ("echo 'munge: no socket' >&2; exit 1", "fail", "munge: no socket"),
        ("exec sleep 60", "fail", "does not answer within 0.3 s"),
    ],
    ids=["up", "down", "no munge", "hung"],
)
def test_slurm_is_asked_and_its_answer_shown(
    script: str, status: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("squeue", "scontrol"):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(checks, "DEADLINE_S", 0.3 if "sleep" in script else 20)
    result = checks.slurm()
    assert result.status == status
    assert found in result.found


def test_no_slurm_is_a_plain_fact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert checks.slurm().status == "absent"


def test_the_kubelet_s_socket_is_tried(tmp_path: Path) -> None:
    path = tmp_path / "k.sock"
    assert checks.kubernetes(path).status == "absent"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        assert checks.kubernetes(path).status == "fail", "bound, and nobody listens"
        server.listen()
        assert checks.kubernetes(path).status == "ok"


def test_pressure_off_says_how_to_switch_it_on(tmp_path: Path) -> None:
    result = checks.pressure(tmp_path)
    assert result.status == "warn"
    assert "psi=1" in result.todo


def test_a_kernel_log_out_of_reach_says_what_is_missed_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "kmsg"
    monkeypatch.setenv("UNIDLE_AGENT_KERNEL_LOG", str(log))
    assert checks.kernel_log().status == "absent"
    os.mkfifo(log)
    assert checks.kernel_log().status == "ok"

    def refuse(*_: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(kernel_log.os, "open", refuse)
    refused = checks.kernel_log()
    assert refused.status == "warn"
    assert "errors of NVSwitches not at all" in refused.found
    assert "CAP_SYSLOG" in refused.todo
    monkeypatch.setenv("UNIDLE_AGENT_KERNEL_LOG", "")
    assert checks.kernel_log().status == "absent"


def collector(token: str) -> Callable[[Request], Reply]:
    """As a collector does: the token is looked at before the body."""

    def script(request: Request) -> Reply:
        if request.headers.get("authorization") != f"Bearer {token}":
            return Reply(401)
        return Reply(200) if request.body else Reply(400, b'{"detail": "expected a batch"}')

    return script


@pytest.mark.parametrize(
    ("token", "status", "found"),
    [
        ("right", "ok", "takes pushes from here"),
        ("wrong", "fail", "does not take this token"),
        ("", "fail", "push_token is not set"),
    ],
)
def test_the_collector_is_asked_whether_it_takes_the_token(
    token: str, status: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(collector("right")) as server:
        monkeypatch.setenv("UNIDLE_AGENT_PUSH_URL", server.url)
        monkeypatch.setenv("UNIDLE_AGENT_PUSH_TOKEN", token)
        result = checks.collector()
    assert result.status == status
    assert found in result.found
    assert token == "" or token not in f"{result}".replace("push_token", "")


def test_no_collector_configured_and_none_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.collector().status == "warn"
    monkeypatch.setenv("UNIDLE_AGENT_PUSH_URL", dead_url())
    assert checks.collector().status == "fail"
    with serving(in_turn(Reply(404))) as server:
        monkeypatch.setenv("UNIDLE_AGENT_PUSH_URL", server.url)
        assert "HTTP 404" in checks.collector().found
