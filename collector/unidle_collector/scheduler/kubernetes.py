"""Kubernetes by its API server: pods that hold or ask for GPUs, and the nodes.

    GET /api/v1/pods?fieldSelector=status.phase!=Succeeded,status.phase!=Failed     500 at a time
    GET /api/v1/nodes

Which GPUs of a node a pod has, only the kubelet knows: the agents ask it (podresources). A service account
that may `list` pods and nodes is enough; nothing is ever changed. In a pod the address, token and authority
come from its service account, elsewhere from `kubernetes_url`, `kubernetes_token_file`, `kubernetes_ca_file`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

from unidle_agent.errors import SettingError
from unidle_agent.fetch import Answer, FetchError, Target, connection, exchange, target
from unidle_agent.owners.podresources import RESOURCES
from unidle_agent.privacy import Pseudonymiser
from unidle_agent.wire import Owner
from unidle_collector.interactive import named_so
from unidle_collector.scheduler import Grant, Job, JobState, Node, SchedulerError, Snapshot
from unidle_collector.scheduler.names import pseudonyms
from unidle_collector.settings import CollectorSettings

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
PAGE = 500
MOST_PAGE_BYTES = 64 * 1024 * 1024
MOST_PAGES = 1000
MOST_TEXT = 200
CONTAINER_ID_SHOWN = 12
"""What agents keep of a container's id."""
UNITS = {"": Decimal(1), "m": Decimal("1e-3"), "u": Decimal("1e-6"), "n": Decimal("1e-9")}
UNITS |= {letter: Decimal(1000) ** power for power, letter in enumerate("kMGTPE", 1)}
UNITS |= {f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTPE", 1)}
NOTEBOOKS = ("singleuser-server", "notebook")
"""Values of component labels that JupyterHub and Kubeflow give to what a person sits at."""

T = TypeVar("T")


class Kubernetes:
    """The cluster behind the API server at `url`."""

    name = "kubernetes"

    def __init__(
        self,
        url: str,
        hide: Pseudonymiser,
        *,
        token_file: Path | None = None,
        ca_file: str = "",
        selector: str = "",
        team_label: str = "",
        queue_label: str = "",
        deadline_s: float = 20.0,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._target: Target = target(url, "collector.kubernetes_url")
        self._hide = hide
        self._token_file = token_file
        self._ca_file = ca_file
        self._selector = selector
        self._team_label = team_label
        self._queue_label = queue_label
        self._deadline_s = deadline_s
        self._clock_ns = clock_ns

    def read(self) -> Snapshot:
        """Pods and nodes now; raises SchedulerError with what to do."""
        taken_ns = self._clock_ns()
        wanted = {"fieldSelector": "status.phase!=Succeeded,status.phase!=Failed"}
        if self._selector:
            wanted["labelSelector"] = self._selector
        jobs, problems = _each("pods", self._list("/api/v1/pods", wanted), self._job)
        used: dict[str, int] = {}
        for job in jobs:
            for grant in job.grants:
                used[grant.node] = used.get(grant.node, 0) + (grant.gpus or 0)
        # With a selector we see some pods only: what is not ours may still be in use.
        counted = None if self._selector else used
        listed = self._list("/api/v1/nodes", {})
        nodes, unread = _each("nodes", listed, lambda raw: _node(raw, counted))
        return Snapshot(self.name, "", "", taken_ns, tuple(jobs), tuple(nodes), problems=(*problems, *unread))

    def _list(self, path: str, query: Mapping[str, str]) -> list[Mapping[str, Any]]:
        """Every item of a list, page by page; one that expired half-way is begun anew, once."""
        for again in (True, False):
            try:
                return [item for page in self._pages(path, query) for item in page]
            except _ExpiredError:
                if not again:
                    break
        raise SchedulerError(f"{path}: the list expired twice before it was read whole (410)")

    def _pages(self, path: str, query: Mapping[str, str]) -> Iterator[list[Mapping[str, Any]]]:
        over = connection(self._target, self._deadline_s, self._ca_file)
        onward = ""
        try:
            for _ in range(MOST_PAGES):
                asked = {**query, "limit": str(PAGE)} | ({"continue": onward} if onward else {})
                try:
                    answer = exchange(
                        over,
                        "GET",
                        f"{self._target.path}{path}?{urlencode(asked)}",
                        deadline_s=self._deadline_s,
                        max_bytes=MOST_PAGE_BYTES,
                        headers={"Accept": "application/json"} | self._credentials(),
                    )
                except FetchError as error:
                    raise SchedulerError(f"{self._target.host}: {path}: {error}") from error
                page = _page(path, answer)
                items = page.get("items") or []
                yield items
                onward = (page.get("metadata") or {}).get("continue") or ""
                if not onward:
                    return
            raise SchedulerError(f"{path}: expected at most {MOST_PAGES * PAGE} items, there are more")
        finally:
            over.close()

    def _credentials(self) -> dict[str, str]:
        """Read each time: the kubelet replaces a service account's token within the hour."""
        if self._token_file is None:
            return {}
        try:
            token = self._token_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text"
            raise SchedulerError(f"{self._token_file}: expected a token of the API server ({why})") from None
        return {"Authorization": f"Bearer {token}"}

    def _hidden(self, name: str) -> str:
        """The pseudonym that agents have for `NAMESPACE/POD`, `pod/UID` and `container/ID`."""
        return self._hide.owner(Owner(job=name)).job

    def _job(self, pod: Mapping[str, Any]) -> Job:
        meta, spec, status = pod["metadata"], pod["spec"], pod.get("status") or {}
        labels: Mapping[str, str] = meta.get("labels") or {}
        space = str(meta["namespace"])
        wanted = _wanted(spec)
        gpus = sum(int(count) for name, count in wanted.items() if name.startswith(RESOURCES))
        kinds = [name.removeprefix("nvidia.com/") for name in wanted if name.startswith(RESOURCES[1])]
        node = str(spec.get("nodeName") or "")
        containers = status.get("containerStatuses") or ()
        ids = [str(one.get("containerID") or "").rpartition("//")[2] for one in containers]
        return Job(
            id=self._hidden(f"{space}/{meta['name']}"),
            state=_state(meta, status, node),
            aliases=tuple(
                self._hidden(name)
                for name in (
                    f"pod/{meta.get('uid', '')}",
                    *(f"container/{one[:CONTAINER_ID_SHOWN]}" for one in ids if one),
                )
            ),
            team=labels.get(self._team_label, "") or self._hide.token("namespace", space),
            partition=labels.get(self._queue_label, ""),
            grants=(Grant(node, gpus, kind=",".join(kinds)),) if node else (),
            requested_gpus=gpus,
            requested_cpus=-(-int(wanted["cpu"] * 1000) // 1000) if "cpu" in wanted else None,
            requested_memory_bytes=int(wanted["memory"]) if "memory" in wanted else None,
            time_limit_s=spec.get("activeDeadlineSeconds"),
            submitted_ns=_instant(meta.get("creationTimestamp")),
            eligible_ns=_instant(meta.get("creationTimestamp")),
            started_ns=_instant(status.get("startTime")) if node else None,
            reason="" if node else _why(status),
            features=",".join(f"{k}={v}" for k, v in sorted((spec.get("nodeSelector") or {}).items()))[
                :MOST_TEXT
            ],
            interactive=_interactive(meta, labels),
        )


def _each(
    what: str, items: list[Mapping[str, Any]], read: Callable[[Mapping[str, Any]], T]
) -> tuple[list[T], list[str]]:
    """One record per item; those that cannot be read are told, with the first one's reason, and left out."""
    out, wrong = [], []
    for item in items:
        try:
            out.append(read(item))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            wrong.append(str(error) or type(error).__name__)
    text = f"{len(wrong)} of {len(items)} {what} cannot be read, first: {wrong[0]}" if wrong else ""
    return out, [text[:MOST_TEXT]] if text else []


class _ExpiredError(Exception):
    """410: the list that a page was asked of is not kept any more."""


def _page(path: str, answer: Answer) -> Mapping[str, Any]:
    """One page; raises SchedulerError with what to do."""
    if answer.status == 410:
        raise _ExpiredError
    if answer.status == 401:
        raise SchedulerError(f"{path}: the API server refuses the token (401): set kubernetes_token_file")
    if answer.status == 403:
        raise SchedulerError(
            f"{path}: the token may not list this (403): bind its account to a ClusterRole with the verb "
            "list on pods and nodes (docs/scheduler.md)"
        )
    if answer.status in (429, 503):
        after = answer.headers.get("retry-after", "")
        wait_s = float(after) if after.isdecimal() else 0.0
        raise SchedulerError(f"{path}: the API server asks to come again ({answer.status})", wait_s)
    if answer.status != 200:
        raise SchedulerError(f"{path}: expected a list, came HTTP {answer.status}: look at the API server")
    if not answer.whole:
        raise SchedulerError(f"{path}: the answer was cut off before its end")
    try:
        page = json.loads(answer.body)
    except (ValueError, RecursionError) as error:
        raise SchedulerError(f"{path}: expected JSON, came {answer.body[:60]!r}") from error
    if not isinstance(page, dict) or not isinstance(page.get("items") or [], list):
        raise SchedulerError(f"{path}: expected a list of the API server, came something else")
    return page


def _state(meta: Mapping[str, Any], status: Mapping[str, Any], node: str) -> JobState:
    if status.get("phase") in ("Succeeded", "Failed"):
        return "ended"
    if not node:
        return "pending"
    return "completing" if meta.get("deletionTimestamp") else "running"


def _wanted(spec: Mapping[str, Any]) -> dict[str, Decimal]:
    """What a pod asks for: its containers together, or its most demanding step before them.

    An init container that restarts always runs beside the others, and counts with them.
    """
    together: dict[str, Decimal] = {}
    before: dict[str, Decimal] = {}
    beside = [one for one in spec.get("initContainers") or () if one.get("restartPolicy") == "Always"]
    for container in (*spec.get("containers", ()), *beside):
        for name, count in _resources(container).items():
            together[name] = together.get(name, Decimal(0)) + count
    for container in spec.get("initContainers") or ():
        for name, count in _resources(container).items():
            before[name] = max(before.get(name, Decimal(0)), count)
    return {
        name: max(together.get(name, Decimal(0)), before.get(name, Decimal(0))) for name in together | before
    }


def _resources(container: Mapping[str, Any]) -> dict[str, Decimal]:
    found = container.get("resources") or {}
    return {
        name: quantity(text)
        for name, text in {**(found.get("limits") or {}), **(found.get("requests") or {})}.items()
    }


def quantity(text: Any) -> Decimal:
    """A quantity such as `500m`, `4`, `8Gi` or `1e3` in base units; raises ValueError."""
    written = str(text)
    digits = written.rstrip("numkKMGTPEi")
    unit = UNITS.get(written[len(digits) :])
    try:
        if unit is None:
            raise InvalidOperation
        return Decimal(digits) * unit
    except InvalidOperation:
        raise ValueError(f"expected a quantity such as 500m or 8Gi, came {written[:40]!r}") from None


def _why(status: Mapping[str, Any]) -> str:
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") != "True":
            return str(condition.get("reason") or "")[:MOST_TEXT]
    return ""


def _interactive(meta: Mapping[str, Any], labels: Mapping[str, str]) -> bool | None:
    if labels.get("app.kubernetes.io/component", labels.get("component", "")) in NOTEBOOKS:
        return True
    if "notebook-name" in labels:
        return True
    if any(owner.get("kind") == "Job" for owner in meta.get("ownerReferences") or ()):
        return False
    return True if named_so(str(meta.get("name", ""))) else None


def _node(raw: Mapping[str, Any], used: Mapping[str, int] | None) -> Node:
    meta, spec, status = raw.get("metadata") or {}, raw.get("spec") or {}, raw.get("status") or {}
    conditions: list[Mapping[str, Any]] = status.get("conditions") or []
    ready = next((one for one in conditions if one.get("type") == "Ready"), {})
    down, closed = ready.get("status") != "True", bool(spec.get("unschedulable"))
    labels: Mapping[str, str] = meta.get("labels") or {}
    gpus = {
        name: int(quantity(count))
        for name, count in (status.get("allocatable") or {}).items()
        if name.startswith(RESOURCES)
    }
    product = labels.get("nvidia.com/gpu.product", "")
    mig = [name.removeprefix("nvidia.com/") for name in gpus if name.startswith(RESOURCES[1])]
    name = str(meta.get("name", ""))
    return Node(
        name=name,
        states=("not_ready" if down else "ready", *(("unschedulable",) if closed else ())),
        available=not down and not closed,
        down=down,
        reason=str(ready.get("reason") or "") if down else "",
        gpus=sum(gpus.values()),
        gpus_used=None if used is None else used.get(name, 0),
        kinds=tuple(dict.fromkeys([*([product] if product else []), *mig])),
        features=tuple(
            f"{key}={value}" for key, value in sorted(labels.items()) if key.startswith("nvidia.com/")
        ),
    )


def _instant(text: Any) -> int | None:
    """RFC 3339 as ns since the epoch."""
    return int(datetime.fromisoformat(text).timestamp()) * 10**9 if isinstance(text, str) else None


def source(settings: CollectorSettings) -> Kubernetes | None:
    """Where `scheduler = kubernetes`; raises SettingError where no API server can be told."""
    if settings.scheduler != "kubernetes":
        return None
    host = os.environ.get("KUBERNETES_SERVICE_HOST", "")
    port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    inside = f"https://{f'[{host}]' if ':' in host else host}:{port}" if host else ""
    url = settings.kubernetes_url or inside
    if not url:
        raise SettingError(
            "collector.kubernetes_url", "the URL of the API server, because this is no pod", "", "settings"
        )
    own = not settings.kubernetes_url
    token = Path(settings.kubernetes_token_file) if settings.kubernetes_token_file else None
    return Kubernetes(
        url,
        pseudonyms(settings),
        token_file=token or (ACCOUNT / "token" if own else None),
        ca_file=settings.kubernetes_ca_file or (str(ACCOUNT / "ca.crt") if own else ""),
        selector=settings.kubernetes_selector,
        team_label=settings.kubernetes_team_label,
        queue_label=settings.kubernetes_queue_label,
        deadline_s=settings.scheduler_deadline_s,
    )
