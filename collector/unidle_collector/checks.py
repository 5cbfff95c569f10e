"""What `unidle doctor` checks of the collector here: its stores, its scheduler. Nothing is changed."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

from unidle_agent.checks import CheckResult
from unidle_agent.errors import UnidleError
from unidle_agent.settings import load
from unidle_collector import scheduler as schedulers
from unidle_collector.settings import CollectorSettings

LEAST_FREE_BYTES = 2 * 1024**3


def store() -> CheckResult:
    """Is there a store here, can it be written, is its state database whole, is there room."""
    name = "store"
    try:
        directory = load(CollectorSettings, "collector").data_dir
    except UnidleError as error:
        return CheckResult(name, "fail", str(error), "correct the setting")
    if not directory.is_dir():
        found = f"no store at {directory}"
        return CheckResult(name, "absent", found, "nothing, where no collector runs on this machine")
    if not os.access(directory, os.W_OK | os.X_OK):
        return CheckResult(
            name,
            "fail",
            f"{directory} cannot be written by this user",
            "correct its owner, or set data_dir in [collector]",
        )
    free = shutil.disk_usage(directory).free
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    found = f"{directory}: {size / 1e9:.2f} GB, {free / 1e9:.1f} GB free on its disk"
    problem = state_problem(directory / "state.sqlite")
    if problem:
        return CheckResult(name, "fail", f"{found}; {problem}", "stop the collector and restore state.sqlite")
    if free < LEAST_FREE_BYTES:
        return CheckResult(
            name, "warn", found, "free some space, or lower keep_days or keep_gb in [collector]"
        )
    return CheckResult(name, "ok", found)


def series() -> CheckResult:
    """Does the series store answer, where one is set."""
    name = "series store"
    try:
        settings = load(CollectorSettings, "collector")
        if settings.series == "embedded":
            todo = "nothing: series are kept in the collector's own store"
            return CheckResult(name, "absent", "series = embedded", todo)
        from unidle_collector.series import reader  # needs what a machine with an agent only does not have

        engine = reader(settings)
        return CheckResult(name, "ok", engine.ping() if engine else settings.series)
    except UnidleError as error:
        return CheckResult(name, "fail", str(error), "correct series_url and series_token in [collector]")


def state_problem(path: Path) -> str:
    """What SQLite says of the state database, empty when it is whole or not there yet."""
    if not path.exists():
        return ""
    try:
        with sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=2) as database:
            row = database.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        return f"state.sqlite: {error}"
    return "" if row and row[0] == "ok" else f"state.sqlite: {row[0] if row else 'no answer'}"


def scheduler() -> CheckResult:
    """Does the scheduler that the settings name answer, and does anything of its answer stay unread."""
    name = "scheduler"
    try:
        source = schedulers.source(load(CollectorSettings, "collector"))
    except UnidleError as error:
        return CheckResult(name, "fail", str(error), "correct the setting")
    if source is None:
        todo = "set scheduler in [collector], where this machine's collector shall ask Slurm or Kubernetes"
        return CheckResult(name, "absent", "no scheduler is asked", todo)
    try:
        snapshot = source.read()
    except UnidleError as error:
        return CheckResult(name, "fail", str(error), "unidle scheduler asks once and shows what comes")
    found = f"{source.name} {snapshot.version}: {len(snapshot.nodes)} nodes, {len(snapshot.jobs)} jobs"
    if snapshot.problems:
        return CheckResult(name, "warn", f"{found}; {snapshot.problems[0]}", "unidle scheduler shows more")
    return CheckResult(name, "ok", found)


CHECKS = (store, series, scheduler)
