"""Say what works on this machine, what does not, and what to do about it.

Looks for the NVIDIA driver and its permissions, GPM, a DCGM host engine and dcgm-exporter beside the
agent, Slurm, Kubernetes, the kernel's pressure files, and for what the other roles need where they are
installed: collector, store, Slack. It changes nothing. Every check has a deadline and all run at once, so
the answer comes within seconds, whatever hangs.

examples:
  unidle doctor
  unidle doctor --json | jq '.checks[] | select(.status == "fail")'

The exit code is 0 when nothing fails; what is merely absent or could be better is no failure.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TypeAlias

from unidle_agent.checks import DEADLINE_S, CheckResult
from unidle_agent.errors import UnidleError, UsageError, reason

GROUP = "unidle.checks"

Check: TypeAlias = Callable[[], CheckResult]


def arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `unidle doctor`."""
    parser.add_argument("--config", metavar="FILE", help="TOML file with the settings of the roles")
    parser.add_argument("--json", action="store_true", help="for machines: {ok, checks: [...]}")
    parser.add_argument(
        "--deadline-s",
        metavar="NUMBER",
        type=float,
        default=2 * DEADLINE_S,
        help="seconds after which a check counts as hung (default: %(default)g)",
    )


def run(args: argparse.Namespace) -> int:
    """Run every check that is installed; 1 when any fails."""
    if args.deadline_s <= 0:
        raise UsageError(f"--deadline-s: expected more than 0, came {args.deadline_s:g}")
    logging.basicConfig(level=logging.CRITICAL)  # what a check has to say is in its result
    if args.config:
        os.environ["UNIDLE_CONFIG"] = args.config  # where each role's own checks look for its settings
    absent, checks = installed(sorted(entry_points(group=GROUP), key=_in_order_of_data))
    results = [*examine(checks, args.deadline_s), *absent]
    failed = [result.name for result in results if result.status == "fail"]
    if args.json:
        print(json.dumps({"ok": not failed, "checks": [asdict(result) for result in results]}, indent=2))
    else:
        print(render(results))
    return 1 if failed else 0


def installed(points: Iterable[EntryPoint]) -> tuple[list[CheckResult], list[Check]]:
    """The checks of every role that can be imported, and a result for each that cannot."""
    absent: list[CheckResult] = []
    checks: list[Check] = []
    for point in points:
        try:
            checks += import_module(point.value).CHECKS
        except ModuleNotFoundError as error:
            found = f"not installed here (the Python package {error.name} is missing)"
            todo = f"pip install 'unidle[{point.name}]', if this machine is to run it"
            absent.append(CheckResult(f"role {point.name}", "absent", found, todo))
    if not checks:
        found = f"no check is registered (entry points {GROUP}): the installation is incomplete"
        absent.append(CheckResult("installation", "fail", found, "install unidle again"))
    return absent, checks


def examine(checks: Sequence[Check], deadline_s: float) -> list[CheckResult]:
    """Run all checks at once; one that hangs or breaks is a failed result, never an exception."""
    results: dict[int, CheckResult] = {}

    def answer(number: int, check: Check) -> None:
        try:
            results[number] = check()
        except UnidleError as error:
            results[number] = CheckResult(_name(check), "fail", str(error), "correct the setting")
        except OSError as error:
            found = f"{error.filename}: {reason(error)}" if error.filename else reason(error)
            todo = "let this user reach it, or run unidle doctor as the user that the role runs as"
            results[number] = CheckResult(_name(check), "fail", found, todo)
        except Exception as error:
            if isinstance(error, ImportError) or "unknown encoding" in str(error):
                found, todo = f"this user cannot read all of Python ({error})", "see the check of python"
            else:
                found, todo = f"the check itself broke: {type(error).__name__}: {error}", "please report this"
            results[number] = CheckResult(_name(check), "fail", found, todo)

    threads = [
        threading.Thread(target=answer, args=item, name=_name(item[1]), daemon=True)
        for item in enumerate(checks)
    ]
    for thread in threads:
        thread.start()
    end_s = time.monotonic() + deadline_s
    for thread in threads:
        thread.join(max(0.0, end_s - time.monotonic()))
    given = dict(results)  # a check that answers after this moment is late
    return [given.get(number) or _late(check, deadline_s) for number, check in enumerate(checks)]


def render(results: Sequence[CheckResult]) -> str:
    """The results as a table, the verdict last."""
    width = max((len(result.name) for result in results), default=0)
    lines = []
    for result in results:
        lines.append(f"{result.status:<6}  {result.name:<{width}}  {result.found}")
        if result.todo:
            lines.append(f"{'':<6}  {'':<{width}}  -> {result.todo}")
    return "\n".join([*lines, "", _verdict(results)])


def _verdict(results: Sequence[CheckResult]) -> str:
    failed = [result.name for result in results if result.status == "fail"]
    warned = [result.name for result in results if result.status == "warn"]
    if failed:
        more = f"; also worth a look: {', '.join(warned)}" if warned else ""
        return f"{len(failed)} of {len(results)} checks fail: {', '.join(failed)}{more}"
    if warned:
        return f"nothing fails; worth a look: {', '.join(warned)}"
    return "all that is here works"


def _late(check: Check, deadline_s: float) -> CheckResult:
    return CheckResult(
        _name(check),
        "fail",
        f"no answer within {deadline_s:g} s",
        "whatever it asks hangs: look at it by hand",
    )


def _name(check: Check) -> str:
    return getattr(check, "__name__", type(check).__name__).replace("_", "-")


def _in_order_of_data(point: EntryPoint) -> tuple[int, str]:
    order = ("agent", "collector", "alerts")
    return (order.index(point.name) if point.name in order else len(order), point.name)
