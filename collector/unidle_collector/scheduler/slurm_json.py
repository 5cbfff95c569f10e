"""Slurm's JSON as records: the shape of 22.05 and the newer one, told apart value by value.

Newer Slurm (23.02 and later) wraps numbers as {"set", "infinite", "number"} and makes states lists; 22.05 has
plain numbers, null and one word. Each reader here takes both. What is not there is None; what is there and
cannot be read costs its own record only, and is counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from unidle_agent.privacy import Pseudonymiser
from unidle_collector.interactive import named_so
from unidle_collector.scheduler import Grant, Job, JobState, Node, SchedulerError
from unidle_collector.scheduler.slurm_text import Gres, gpus, gres, hosts, numbers, tres

SECOND_NS = 1_000_000_000
MIB = 1024**2
YEAR_MIN = 365 * 24 * 60
"""What 22.05 shows as the time limit of a running job that has none."""
MOST_TEXT = 200
NOTHING_FOUND = 9003
"""Number of the "error" by which 22.05's sacct says that no job is in the time asked for."""
STATES: Mapping[str, JobState] = {
    "RUNNING": "running",
    "CONFIGURING": "running",
    "RESIZING": "running",
    "SIGNALING": "running",
    "STAGE_OUT": "completing",
    "COMPLETING": "completing",
    "SUSPENDED": "suspended",
    "STOPPED": "suspended",
    "PENDING": "pending",
    "REQUEUED": "pending",
    "REQUEUE_HOLD": "pending",
    "SPECIAL_EXIT": "pending",
}
"""Every other word means that the job is over."""
DOWN = {"down", "fail", "error", "unknown", "not_responding", "powered_down", "power_down", "future"}
CLOSED = DOWN | {"drain", "drained", "draining", "maintenance", "maint", "reboot_requested", "failing"}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Said:
    """The head of an answer."""

    document: Mapping[str, Any]
    cluster: str
    version: str


def load(name: str, data: bytes) -> Said:
    """The answer of the command `name`; raises SchedulerError when it is no JSON or reports errors."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SchedulerError(
            f"{name} --json: expected JSON, came {data[:60]!r}: Slurm 21.08 or newer with JSON is needed"
        ) from error
    if not isinstance(document, dict):
        raise SchedulerError(f"{name} --json: expected an object, came {type(document).__name__}")
    errors = document.get("errors") or []
    wrong = [one for one in errors if not _is_empty(one)] if isinstance(errors, list) else [errors]
    if wrong:
        first = wrong[0]
        text = first.get("description") or first.get("error") if isinstance(first, dict) else first
        raise SchedulerError(f"{name} --json reports: {str(text)[:MOST_TEXT]}")
    meta = _object(document.get("meta"))
    slurm = _object(meta.get("Slurm") or meta.get("slurm"))
    return Said(document, str(slurm.get("cluster") or ""), str(slurm.get("release") or ""))


def _is_empty(error: Any) -> bool:
    return isinstance(error, dict) and error.get("error_number") == NOTHING_FOUND


def jobs(said: Said, hide: Pseudonymiser) -> tuple[list[Job], list[str]]:
    """Jobs of `squeue --json`, and what could not be read."""
    return _each(said, "jobs", "job_id", lambda raw: _job(raw, hide))


def nodes(said: Said) -> tuple[list[Node], list[str]]:
    """Nodes of `sinfo --json` (22.05) or `scontrol show nodes --json`, and what could not be read."""
    return _each(said, "nodes", "name", _node)


def ended(said: Said, hide: Pseudonymiser) -> tuple[list[Job], list[str]]:
    """Jobs of `sacct --json` that are over, and what could not be read."""
    found, problems = _each(said, "jobs", "job_id", lambda raw: _ended(raw, hide))
    return [job for job in found if job.state == "ended"], problems


def _each(
    said: Said, key: str, name: str, read: Callable[[Mapping[str, Any]], T]
) -> tuple[list[T], list[str]]:
    """One record per entry of the list `key`; an entry that cannot be read is told and left out."""
    rows = said.document.get(key)
    if not isinstance(rows, list):
        raise SchedulerError(f"expected a list of {key} in Slurm's JSON, came {type(rows).__name__}")
    out, wrong = [], []
    for row in rows:
        try:
            out.append(read(row))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            which = row.get(name, "?") if isinstance(row, dict) else "?"
            wrong.append(f"{key.removesuffix('s')} {which} ({error})")
    text = f"{len(wrong)} of {len(rows)} {key} cannot be read, first: {wrong[0]}" if wrong else ""
    return out, [text[:MOST_TEXT]] if text else []


# -- jobs ----------------------------------------------------------------------------------------------


def _job(raw: Mapping[str, Any], hide: Pseudonymiser) -> Job:
    number = int(raw["job_id"])
    state = _state(raw.get("job_state"))
    account, user = _text(raw.get("account")), _text(raw.get("user_name"))
    array, tasks = _array(raw)
    return Job(
        id=str(number),
        state=state,
        user=hide.token("user", user),
        # Many sites give each person an account of their own: that is a name, too.
        team=hide.token("user", account) if account == user else account,
        partition=_text(raw.get("partition")),
        array=array,
        tasks=tasks,
        het=_het(raw),
        grants=() if state in ("pending", "ended") else _grants(raw),
        requested_gpus=_requested(raw),
        requested_cpus=_number(raw.get("cpus")),
        requested_memory_bytes=_memory(raw),
        time_limit_s=_limit_s(raw.get("time_limit")),
        submitted_ns=_instant(raw.get("submit_time")),
        eligible_ns=_instant(raw.get("eligible_time")),
        started_ns=None if state == "pending" else _instant(raw.get("start_time")),
        reason=_reason(raw.get("state_reason")),
        features=_text(raw.get("features"))[:MOST_TEXT],
        interactive=_interactive(raw),
    )


def _ended(raw: Mapping[str, Any], hide: Pseudonymiser) -> Job:
    """Of `sacct`: times and requests lie in objects of their own there."""
    times, wanted = _object(raw.get("time")), _object(raw.get("required"))
    account, user = _text(raw.get("account")), _text(raw.get("user"))
    return Job(
        id=str(int(raw["job_id"])),
        state=_state(_object(raw.get("state")).get("current")),
        user=hide.token("user", user),
        team=hide.token("user", account) if account == user else account,
        partition=_text(raw.get("partition")),
        requested_gpus=_counted(_object(raw.get("tres")).get("requested")),
        requested_cpus=_number(wanted.get("CPUs")),
        time_limit_s=_limit_s(times.get("limit")),
        submitted_ns=_instant(times.get("submission")),
        eligible_ns=_instant(times.get("eligible")),
        started_ns=_instant(times.get("start")),
    )


def _state(value: Any) -> JobState:
    """The state that says most of a job's GPUs: a job can be RUNNING and COMPLETING at once."""
    words = [value] if isinstance(value, str) else [str(word) for word in value or ()]
    if not words:
        raise ValueError("expected a state")
    found = [STATES.get(word.upper(), "ended") for word in words]
    return "completing" if "completing" in found else found[0]


def _grants(raw: Mapping[str, Any]) -> tuple[Grant, ...]:
    names = hosts(_text(raw.get("nodes")))
    detail = raw.get("gres_detail") or []
    if not detail:  # a job without GPUs, or a Slurm that does not say which
        return tuple(Grant(name, 0 if _requested(raw) == 0 else None) for name in names)
    if len(detail) != len(names):
        raise ValueError(f"expected resources of {len(names)} nodes, came {len(detail)}")
    return tuple(_grant(name, gres(str(text))) for name, text in zip(names, detail, strict=True))


def _grant(node: str, found: tuple[Gres, ...]) -> Grant:
    count, indices, kind = gpus(found)
    shares = [one for one in found if one.name in ("shard", "mps") and one.count]
    if shares and not count:
        used = [one.indices for one in shares]
        told = None if None in used else tuple(sorted({n for part in used for n in part or ()}))
        return Grant(node, 0 if told is None else len(told), told, "", shared=True)
    return Grant(node, count, indices, kind)


def _requested(raw: Mapping[str, Any]) -> int | None:
    """GPUs that the job asks for; which of the texts is filled depends on how it asked."""
    accounted = tres(_text(raw.get("tres_req_str")))
    if accounted is not None:
        return accounted
    per_job = gpus(gres(_text(raw.get("tres_per_job"))))[0]
    if per_job:
        return per_job
    for key, of in (("tres_per_node", "node_count"), ("tres_per_task", "tasks")):
        each = gpus(gres(_text(raw.get(key))))[0]
        if each:
            number = _number(raw.get(of))
            return None if number is None else each * max(1, number)
    return None if gpus(gres(_text(raw.get("tres_per_socket"))))[0] else 0


def _counted(rows: Any) -> int | None:
    """GPUs of sacct's list of resources, where `gpu` is the sum of `gpu:b200` and its like."""
    if not isinstance(rows, list):
        return None
    of = {str(row.get("name")): int(row.get("count") or 0) for row in rows if row.get("type") == "gres"}
    return of.get("gpu", sum(count for name, count in of.items() if name.startswith("gpu:")))


def _array(raw: Mapping[str, Any]) -> tuple[str, int]:
    parent = _number(raw.get("array_job_id")) or 0
    waiting = _text(raw.get("array_task_string")).partition("%")[0].strip("[]")
    if not parent:
        return "", 1
    if waiting:
        if waiting.endswith("..."):  # Slurm cuts long lists: at least these
            waiting = waiting.removesuffix("...").rpartition(",")[0]
        return f"{parent}_[{waiting}]", sum(_tasks(part) for part in waiting.split(",")) or 1
    task = _number(raw.get("array_task_id"))
    return (f"{parent}_{task}", 1) if task is not None else ("", 1)


def _tasks(part: str) -> int:
    """How many tasks `3`, `1-9` or `1-9:2` names."""
    span, _, step = part.partition(":")
    return -(-len(numbers(span)) // int(step or 1)) if span else 0


def _reason(value: Any) -> str:
    reason = _text(value)
    return "" if reason == "None" else reason[:MOST_TEXT]


def _het(raw: Mapping[str, Any]) -> str:
    first = _number(raw.get("het_job_id")) or 0
    return f"{first}+{_number(raw.get('het_job_offset')) or 0}" if first else ""


def _memory(raw: Mapping[str, Any]) -> int | None:
    per_node, nodes_ = _number(raw.get("memory_per_node")), _number(raw.get("node_count"))
    if per_node:
        return per_node * MIB * max(1, nodes_ or 1)
    per_cpu, cpus = _number(raw.get("memory_per_cpu")), _number(raw.get("cpus"))
    return per_cpu * cpus * MIB if per_cpu and cpus else None


def _limit_s(value: Any) -> float | None:
    minutes = _number(value)
    return None if minutes is None or minutes >= YEAR_MIN else minutes * 60.0


def _interactive(raw: Mapping[str, Any]) -> bool | None:
    """What a person sits at; a plain srun may be either."""
    if named_so(_text(raw.get("name"))):
        return True
    return False if raw.get("batch_flag") is True else None


# -- nodes ---------------------------------------------------------------------------------------------


def _node(raw: Mapping[str, Any]) -> Node:
    words = raw.get("state")
    found = [words] if isinstance(words, str) else list(words or ())
    states = tuple(
        dict.fromkeys(str(w).lower().strip("*~#!%$@^-") for w in (*found, *(raw.get("state_flags") or ())))
    )
    total, _, kinds = gpus(gres(_text(raw.get("gres"))))
    used_text = raw.get("gres_used")
    used, indices, _ = gpus(gres(_text(used_text)))
    features = raw.get("features") or ()
    return Node(
        name=str(raw["name"]),
        states=states,
        available=not CLOSED & set(states),
        down=bool(DOWN & set(states)),
        reason=_text(raw.get("reason"))[:MOST_TEXT],
        gpus=total,
        gpus_used=None if used_text is None else used,
        indices_used=indices if used_text and total else None,
        kinds=tuple(kinds.split(",")) if kinds else (),
        features=tuple(features.split(",")) if isinstance(features, str) else tuple(map(str, features)),
        partitions=tuple(map(str, raw.get("partitions") or ())),
    )


# -- values --------------------------------------------------------------------------------------------


def _number(value: Any) -> int | None:
    """A number of either shape; None where it is not set or without bound."""
    if isinstance(value, dict):
        if value.get("infinite") or not value.get("set"):
            return None
        value = value.get("number")
    if value is None or isinstance(value, bool):
        return None
    return int(value)


def _instant(value: Any) -> int | None:
    seconds = _number(value)
    return seconds * SECOND_NS if seconds else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) and value not in ("(null)", "None assigned") else ""


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
