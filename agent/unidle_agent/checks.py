"""What `unidle doctor` asks: is this here, does it work, and what is to be done about it.

A module in the entry-point group `unidle.checks` lists its checks in CHECKS. A check takes nothing,
returns one CheckResult, and is named after what it checks. It runs in a thread of its own with a
deadline, beside all others, and changes nothing on the machine.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from unidle_agent import fetch
from unidle_agent.config import AgentSettings
from unidle_agent.dcgm import parse_page
from unidle_agent.errors import NotStartedError, SourceError, reason
from unidle_agent.push import PATH, calls_batch_bad
from unidle_agent.sample import Reading
from unidle_agent.settings import load
from unidle_agent.shards import is_nats
from unidle_agent.sources.dcgm_exporter import MAX_PAGE_BYTES
from unidle_agent.sources.kernel_log import KernelLog
from unidle_agent.wire import CONTENT_TYPE

Status = Literal["ok", "warn", "fail", "absent"]

DEADLINE_S = 5.0
"""Of one look at one thing: a check as a whole may take twice that."""
HOST_ENGINE = ("127.0.0.1", 5555)
EXPORTER_URL = "http://127.0.0.1:9400/metrics"
NO_SLURM_CONF = ("DNS SRV lookup failed", "Could not establish a configuration source")
"""What Slurm's commands say without a slurm.conf."""
GPM_PAIR_S = 0.2
"""Time between two GPM samples: nvml.h asks for more than 100 ms."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One answer. `absent` is a plain fact (no Slurm here), `warn` costs something, `fail` is broken."""

    name: str
    status: Status
    found: str
    todo: str = ""
    """What to do about it; empty where there is nothing to do."""


def python() -> CheckResult:
    """May this user start the Python that runs here: the agent reads the driver in a child process."""
    if os.access(sys.executable, os.X_OK):
        return CheckResult("python", "ok", f"{sys.executable}, {sys.version.split()[0]}")
    found = f"expected a Python that this user may execute, came {sys.executable}: other checks fail by that"
    todo = "install unidle where this user can read and execute it, such as /opt/unidle, not in a home"
    return CheckResult("python", "fail", found, todo)


def nvidia_driver() -> CheckResult:
    """Does the driver answer by NVML, and which GPUs does it name."""
    name = "nvidia-driver"
    try:
        reading = _nvml(gpm="off")
    except NotStartedError as error:
        todo = "see the check of python; let this user start processes"
        return CheckResult(name, "fail" if _device_files(Path("/dev")) else "warn", str(error), todo)
    except (SourceError, ImportError) as error:
        if not _device_files(Path("/dev")):
            return CheckResult(name, "absent", str(error), "nothing, where this node has no NVIDIA GPU")
        return CheckResult(name, "fail", str(error), "run nvidia-smi; load or reinstall the driver")
    if not reading.gpus:
        found = "; ".join(reading.problems) or "the driver answers and names no GPU"
        return CheckResult(name, "fail", found, "run nvidia-smi, and look for XID lines in dmesg")
    models: dict[str, int] = {}
    for gpu in reading.gpus:
        models[gpu.facts.model or "GPU"] = models.get(gpu.facts.model or "GPU", 0) + 1
    found = ", ".join(f"{count} x {model}" for model, count in models.items())
    found += f", driver {reading.gpus[0].facts.driver or 'unknown'}"
    if reading.problems:
        return CheckResult(name, "warn", f"{found}; {'; '.join(reading.problems)}", "run nvidia-smi -q")
    return CheckResult(name, "ok", found)


def permissions(dev: Path = Path("/dev"), proc: Path = Path("/proc")) -> CheckResult:
    """May this user open the GPUs, and read their profiling counters."""
    name = "permissions"
    files = _device_files(dev)
    if not files:
        return CheckResult(name, "absent", f"no NVIDIA device files in {dev}")
    closed = [str(file) for file in files if not os.access(file, os.R_OK | os.W_OK)]
    if closed:
        todo = (
            f"run the agent as root or in the group that owns {closed[0]}; in a container, pass the devices"
        )
        return CheckResult(name, "fail", f"this user may not open {', '.join(closed)}", todo)
    found = f"{len(files)} device files can be opened"
    if _admin_only(proc / "driver/nvidia/params") and os.geteuid() != 0:
        return CheckResult(
            name,
            "warn",
            f"{found}; profiling counters (SM, tensor, DRAM activity) are for administrators only",
            "run the agent as root or with CAP_SYS_ADMIN, or set NVreg_RestrictProfilingToAdminUsers=0 "
            "for the module nvidia in /etc/modprobe.d and reboot",
        )
    return CheckResult(name, "ok", found)


def gpm() -> CheckResult:
    """Does the driver give SM, tensor and DRAM activity."""
    name = "gpm"
    otherwise = "run dcgm-exporter with DCGM_FI_PROF_* fields and set dcgm_urls: losses are then of grade sm"
    try:
        reading = _nvml(gpm="on")
    except (SourceError, ImportError):
        return CheckResult(name, "absent", "no driver to ask")
    if not reading.gpus:
        return CheckResult(name, "absent", "no GPU answers")
    having = [gpu for gpu in reading.gpus if "sm_active_ratio" in gpu.values]
    if len(having) == len(reading.gpus):
        return CheckResult(name, "ok", f"SM, tensor and DRAM activity of {len(having)} GPUs")
    why = "; ".join(reading.problems) or "it needs Hopper or newer"
    return CheckResult(name, "warn", f"{len(having)} of {len(reading.gpus)} GPUs give it: {why}", otherwise)


def dcgm_host_engine(address: tuple[str, int] = HOST_ENGINE) -> CheckResult:
    """Does a DCGM host engine run beside the agent."""
    name = "dcgm-host-engine"
    try:
        socket.create_connection(address, timeout=DEADLINE_S).close()
    except OSError:
        return CheckResult(name, "absent", f"nothing listens on {address[0]}:{address[1]}")
    return CheckResult(
        name,
        "ok",
        f"listens on {address[0]}:{address[1]}",
        "if SM activity shows gaps while both run, set gpm = off and read the exporter by dcgm_urls",
    )


def dcgm_exporter(default_url: str = EXPORTER_URL) -> CheckResult:
    """Does a dcgm-exporter answer, and does the agent read it."""
    name = "dcgm-exporter"
    wanted = load(AgentSettings, "agent").dcgm_urls
    found = []
    for url in wanted or (default_url,):
        try:
            answer = fetch.get(url, "agent.dcgm_urls", deadline_s=DEADLINE_S, max_bytes=MAX_PAGE_BYTES)
        except fetch.FetchError as error:
            if not wanted:
                return CheckResult(name, "absent", f"{url}: {error}")
            return CheckResult(name, "fail", f"{url}: {error}", "start dcgm-exporter, or correct dcgm_urls")
        page = parse_page(answer.body, complete=answer.whole)
        if answer.status != 200 or not page.gpus:
            found.append(f"{url}: HTTP {answer.status}, no GPU on the page")
            return CheckResult(name, "fail" if wanted else "absent", "; ".join(found), "look at the page")
        found.append(f"{url}: {len(page.gpus)} GPUs")
    if not wanted:
        return CheckResult(
            name, "warn", f"{found[0]}, but the agent does not read it", f"set dcgm_urls = {url}"
        )
    return CheckResult(name, "ok", "; ".join(found))


def slurm() -> CheckResult:
    """Can the Slurm controller be asked from here."""
    name = "slurm"
    if shutil.which("squeue") is None or shutil.which("scontrol") is None:
        return CheckResult(name, "absent", "no squeue and scontrol on PATH")
    try:
        ping = subprocess.run(
            ["scontrol", "ping"], capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )
    except subprocess.TimeoutExpired:
        todo = "check SlurmctldHost in slurm.conf and the way to it"
        return CheckResult(name, "fail", f"scontrol ping does not answer within {DEADLINE_S:g} s", todo)
    said = " ".join((ping.stdout or ping.stderr).split())[:200]
    if ping.returncode == 0 and " UP" in ping.stdout:
        return CheckResult(name, "ok", said)
    if any(words in said for words in NO_SLURM_CONF):
        todo = (
            "nothing, where this node is in no cluster; else set SLURM_CONF, or see that slurm.conf is there"
        )
        return CheckResult(name, "warn", "Slurm's commands are here and find no slurm.conf", todo)
    return CheckResult(name, "fail", said or "scontrol ping fails", "check slurmctld, munge and slurm.conf")


def kubernetes(kubelet: Path = Path("/var/lib/kubelet/pod-resources/kubelet.sock")) -> CheckResult:
    """Can the kubelet be asked which pod holds which GPU."""
    name = "kubernetes"
    if not kubelet.exists():
        return CheckResult(name, "absent", f"no pod-resources socket at {kubelet}")
    with socket.socket(socket.AF_UNIX) as to:
        to.settimeout(DEADLINE_S)
        try:
            to.connect(str(kubelet))
        except PermissionError:
            todo = "run the agent as root; in a pod, mount the folder of the socket"
            return CheckResult(name, "warn", f"{kubelet}: this user may not ask", todo)
        except OSError as error:
            return CheckResult(name, "fail", f"{kubelet}: {reason(error)}", "is the kubelet running?")
    return CheckResult(name, "ok", f"the kubelet answers at {kubelet}")


def pressure(proc: Path = Path("/proc")) -> CheckResult:
    """Does the kernel tell stalls (PSI), the evidence for starvation by CPU, memory and storage."""
    try:
        (proc / "pressure/io").read_text(encoding="ascii")
    except OSError as error:
        todo = "boot with psi=1 (kernel with CONFIG_PSI); until then causes of starvation stay uncertain"
        return CheckResult("pressure", "warn", f"{proc}/pressure cannot be read: {error.strerror}", todo)
    return CheckResult("pressure", "ok", f"{proc}/pressure is readable")


def kernel_log() -> CheckResult:
    """May this user read the kernel log: processes and words of XIDs, and the errors of NVSwitches."""
    name, path = "kernel-log", load(AgentSettings, "agent").kernel_log
    if not path:
        return CheckResult(name, "absent", "kernel_log is empty: it is not read")
    without = "XIDs come by NVML without process and words, errors of NVSwitches not at all"
    try:
        KernelLog(path).close()
    except FileNotFoundError:
        todo = "in a container, pass the device /dev/kmsg: deploy/README.md"
        return CheckResult(name, "absent", f"there is no {path}: {without}", todo)
    except OSError as error:
        todo = "give the agent CAP_SYSLOG (deploy/README.md says how, and what that right is worth)"
        return CheckResult(name, "warn", f"{path}: {error.strerror}: {without}", todo)
    return CheckResult(name, "ok", f"{path} is readable")


def _nats(urls: str) -> CheckResult:
    """Does one of these servers greet as NATS does; who may publish there shows in /health of the agent."""
    problems = []
    for url in urls.split(","):
        parts = urlsplit(url.strip())
        try:
            with socket.create_connection((parts.hostname or "", parts.port or 4222), DEADLINE_S) as over:
                over.settimeout(DEADLINE_S)
                if over.recv(5).startswith(b"INFO"):
                    return CheckResult("collector", "ok", f"{url}: a NATS server answers")
                problems.append(f"{url}: expected the greeting of a NATS server")
        except (OSError, ValueError) as error:
            problems.append(f"{url}: {error}")
    return CheckResult("collector", "fail", "; ".join(problems), "start nats-server, or correct push_url")


def collector() -> CheckResult:
    """Does the collector that this agent pushes to answer, and take its token."""
    name = "collector"
    settings = load(AgentSettings, "agent")
    if not settings.push_url:
        todo = "set push_url; until then the agent only serves /metrics"
        return CheckResult(name, "warn", "push_url is not set: this agent pushes nowhere", todo)
    if is_nats(settings.push_url):
        return _nats(settings.push_url)
    to = fetch.target(settings.push_url, "agent.push_url")
    headers = {"Content-Type": CONTENT_TYPE}
    if settings.push_token:
        headers["Authorization"] = f"Bearer {settings.push_token.reveal()}"
    try:
        over = fetch.connection(
            to, DEADLINE_S, settings.push_ca_file, settings.push_cert_file, settings.push_key_file
        )
        # An empty body is no batch: a collector that complains of it has accepted the token before.
        answer = fetch.exchange(
            over, "POST", to.path + PATH, deadline_s=DEADLINE_S, max_bytes=65536, headers=headers, body=b""
        )
    except fetch.FetchError as error:
        todo = "start it with: unidle collector; or correct push_url"
        return CheckResult(name, "fail", f"{settings.push_url}: {error}", todo)
    over.close()
    if answer.status in (401, 403):
        todo = "give the agent the collector's push token (UNIDLE_AGENT_PUSH_TOKEN or push_token_file)"
        found = (
            "does not take this token" if settings.push_token else "wants a token and push_token is not set"
        )
        return CheckResult(name, "fail", f"{settings.push_url} {found}", todo)
    if calls_batch_bad(answer):
        return CheckResult(name, "ok", f"{settings.push_url} answers and takes pushes from here")
    return CheckResult(
        name, "fail", f"{settings.push_url}{PATH} answers HTTP {answer.status}", "is push_url a collector?"
    )


CHECKS: tuple[Callable[[], CheckResult], ...] = (
    python,
    nvidia_driver,
    permissions,
    gpm,
    dcgm_host_engine,
    dcgm_exporter,
    slurm,
    kubernetes,
    pressure,
    kernel_log,
    collector,
)


def _nvml(gpm: str) -> Reading:
    """Two passes over the GPUs in a child process, which a hung driver cannot take with it."""
    import time

    from unidle_agent.poller import PolledNvml

    source = PolledNvml(gpm, deadline_s=DEADLINE_S / 2, start_s=DEADLINE_S)
    try:
        first = source.read()
        if gpm == "off":
            return first
        time.sleep(GPM_PAIR_S)
        second = source.read()
        return Reading(second.gpus, second.host, (*first.problems, *second.problems))
    finally:
        source.close()


def _device_files(dev: Path) -> list[Path]:
    return sorted(
        path for path in dev.glob("nvidia*") if path.name[6:].isdecimal() or path.name == "nvidiactl"
    )


def _admin_only(params: Path) -> bool:
    try:
        return "RmProfilingAdminOnly: 1" in params.read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
