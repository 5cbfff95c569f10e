"""What `unidle up` starts: the services, their ports, folders, tokens and settings."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from unidle_agent.errors import UnidleError
from unidle_agent.settings import DEFAULT_FILES
from unidle_collector.up.supervise import Service

ROLES = ("collector", "agent", "dashboard", "alerts")
"""In the order of their ports."""
PORT_BASE = 9470
HIGHEST_PORT = 65_535
LOCK = "up.lock"
"""The file by which one `unidle up` keeps another off its folder."""
MARKER = "SIMULATED"
"""The file that says that a folder is a demo's, and may be emptied."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Files that hold the tokens."""

    push: Path
    read: Path


@dataclass(frozen=True, slots=True)
class Plan:
    """Where everything is."""

    data_dir: Path
    ports: dict[str, int]
    tokens: Tokens
    demo: bool

    def url(self, role: str) -> str:
        """The address of a role."""
        return f"http://127.0.0.1:{self.ports[role]}"

    @property
    def truth_file(self) -> Path:
        """What the simulator says that it injected."""
        return self.data_dir / "truth.json"

    @property
    def log_dir(self) -> Path:
        """The children's logs."""
        return self.data_dir / "logs"

    @property
    def read_token(self) -> str:
        """The collector's read token."""
        return self.tokens.read.read_text(encoding="utf-8").strip()


def make_plan(data_dir: Path, port_base: int | None, demo: bool) -> Plan:
    """Prepare folders and tokens; a demo's folder is emptied first. Raises UnidleError."""
    if demo:
        _empty(data_dir)
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    if demo:
        (data_dir / MARKER).write_text("Everything in this folder is simulated.\n", encoding="utf-8")
    tokens = Tokens(_token(data_dir / "push.token"), _token(data_dir / "read.token"))
    return Plan(data_dir.resolve(), find_ports(port_base), tokens, demo)


def find_ports(port_base: int | None) -> dict[str, int]:
    """Role -> port. From `port_base` on, and no other; or near PORT_BASE, what is free."""
    if port_base is not None:
        wanted = {role: port_base + number for number, role in enumerate(ROLES)}
        for role, port in wanted.items():
            if not _is_free(port):
                raise UnidleError(
                    f"port {port} for {role} is taken or not allowed; stop what listens there, "
                    f"or give another --port-base"
                )
        return wanted
    ports: dict[str, int] = {}
    for number, role in enumerate(ROLES):
        first = max([PORT_BASE + number, *(port + 1 for port in ports.values())])
        free = next((port for port in range(first, first + 200) if _is_free(port)), None)
        if free is None:
            raise UnidleError(f"no free port for {role} from {first} to {first + 199}; give a --port-base")
        ports[role] = free
    return ports


def services(
    plan: Plan,
    environ: Mapping[str, str],
    webhook_url: str,
    demo_slack: bool,
    dcgm_url: str,
) -> list[Service]:
    """The children in the order in which they start.

    A demo runs on the product's defaults alone: neither the user's file nor environment reaches it, but
    for Slack where `demo_slack` says so.
    """
    base = _demo_environment(plan, environ) if plan.demo else dict(environ)
    alerts_base = _demo_alerts_environment(base, environ) if plan.demo and demo_slack else base
    read, push = str(plan.tokens.read), str(plan.tokens.push)
    collector = {
        "port": plan.ports["collector"],
        "bind": "127.0.0.1",
        "data_dir": plan.data_dir / "collector",
    }
    agent = {"port": plan.ports["agent"], "bind": "127.0.0.1", "state_dir": plan.data_dir / "agent"}
    if not plan.demo:
        agent |= {"push_url": plan.url("collector"), "push_token_file": push}
    if dcgm_url:
        agent |= {"dcgm_urls": dcgm_url}
    reader = {"collector_url": plan.url("collector"), "collector_token_file": read}
    dashboard = {**reader, "port": plan.ports["dashboard"], "bind": "127.0.0.1"}
    alerts = {
        **reader,
        "port": plan.ports["alerts"],
        "bind": "127.0.0.1",
        "state_dir": plan.data_dir / "alerts",
        "dashboard_url": plan.url("dashboard"),
    }
    if webhook_url:
        alerts |= {"slack_webhook_url": webhook_url, "slack_hosts": "127.0.0.1"}
    simulator = {
        "collector_url": plan.url("collector"),
        "push_token_file": push,
        "truth_file": plan.truth_file,
    }
    tokens = {"push_token_file": push, "read_token_file": read}
    out = [
        _role(plan, "collector", {**collector, **tokens}, base, "/api/v1/health", plan.read_token),
        _role(plan, "agent", agent, base, "/health"),
        _role(plan, "alerts", alerts, alerts_base, "/health"),
        _role(plan, "dashboard", dashboard, base, "/_stcore/health"),
    ]
    if plan.demo:
        play = Service("simulator", ("unidle_collector.simulator",), _with(base, "simulator", simulator))
        out.insert(1, play)  # first of all after the collector: its history takes the longest
    return out


def _role(
    plan: Plan, name: str, values: Mapping[str, object], base: Mapping[str, str], health: str, token: str = ""
) -> Service:
    return Service(
        name=name,
        arguments=("unidle_agent.cli", name),
        environment=_with(base, name, values),
        health_url=plan.url(name) + health,
        health_token=token,
        address=plan.url(name) + ("/metrics" if name in ("agent", "alerts") else ""),
    )


def _with(base: Mapping[str, str], section: str, values: Mapping[str, object]) -> dict[str, str]:
    """`base` with settings of a section; a secret's file must not lose to a variable that is there."""
    out = dict(base)
    for name, value in values.items():
        variable = f"UNIDLE_{section}_{name}".upper()
        out.pop(variable.removesuffix("_FILE"), None)
        out[variable] = str(value)
    return out


def _demo_environment(plan: Plan, environ: Mapping[str, str]) -> dict[str, str]:
    config = plan.data_dir / "demo.toml"
    config.write_text("# The demo runs on the product's defaults.\n", encoding="utf-8")
    kept = {name: value for name, value in environ.items() if not name.startswith("UNIDLE_")}
    return {**kept, "UNIDLE_CONFIG": str(config), "UNIDLE_COLLECTOR_SITE": "demo (SIMULATED)"}


def _demo_alerts_environment(base: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """The user's own alerts settings, and the file that may hold them."""
    mine = {name: value for name, value in environ.items() if name.startswith("UNIDLE_ALERTS_")}
    config = environ.get("UNIDLE_CONFIG") or next((f for f in DEFAULT_FILES if Path(f).is_file()), None)
    return {**base, **mine, **({"UNIDLE_CONFIG": str(Path(config).resolve())} if config else {})}


def _empty(data_dir: Path) -> None:
    """Make room for a new demo, and delete nothing that is not an old one."""
    entries = [entry for entry in data_dir.iterdir() if entry.name != LOCK] if data_dir.exists() else []
    if entries and not (data_dir / MARKER).is_file():
        raise UnidleError(f"{data_dir} holds files and is no demo's folder (no file {MARKER}); give another")
    for entry in entries:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _token(path: Path) -> Path:
    """A file with a token that only its owner reads; one that is there is kept."""
    if not path.is_file():
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(secrets.token_urlsafe(32) + "\n")
    return path.resolve()


def _is_free(port: int) -> bool:
    if not 0 < port <= HIGHEST_PORT:
        return False
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do
        try:
            trial.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
