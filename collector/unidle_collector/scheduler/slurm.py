"""Slurm by its own client commands: squeue, sinfo and sacct with --json, each within a deadline.

    squeue --json                 jobs: who holds which GPUs of which node, who waits and why
    sinfo --json                  nodes in 22.05; newer Slurm groups them, and is asked by
    scontrol show nodes --json    instead
    sacct --json                  jobs that are over, every five minutes, where slurmdbd keeps books

Run it on one machine per cluster that has a slurm.conf (SLURM_CONF names another), as a user who may see all
jobs: where PrivateData hides jobs, that takes an operator. Nothing is ever changed in Slurm.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from unidle_agent.privacy import Pseudonymiser
from unidle_collector.scheduler import Job, Node, SchedulerError, Snapshot, calls, slurm_json
from unidle_collector.scheduler.names import pseudonyms
from unidle_collector.settings import CollectorSettings

BOOKS_EACH_S = 300.0
NO_BOOKS_EACH_S = 3600.0
LOOK_BACK_S = 6 * 3600.0
"""How far sacct is asked back at the start: a day of a busy cluster would be more than a poll may take."""
OVERLAP_S = 600.0
NO_BOOKS = "accounting storage is disabled"


class Slurm:
    """The cluster that the commands in `bin_dir` (empty: on PATH) speak to."""

    name = "slurm"

    def __init__(
        self,
        hide: Pseudonymiser,
        *,
        bin_dir: str = "",
        cluster: str = "",
        deadline_s: float = 20.0,
        environ: Mapping[str, str] | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hide = hide
        self._bin_dir = bin_dir
        self._cluster = cluster
        self._deadline_s = deadline_s
        self._environ = environ
        self._clock_ns = clock_ns
        self._monotonic = monotonic
        self._grouped = False
        """This Slurm's sinfo groups nodes, so scontrol is asked."""
        self._books_due_s = float("-inf")
        self._booked_ns: int | None = None
        self._unread: list[str] = []
        """What could not be read of the books the last time; it holds until they are asked again."""

    def read(self) -> Snapshot:
        """Jobs, nodes and, now and then, what is over; raises SchedulerError when jobs or nodes fail."""
        taken_ns = self._clock_ns()
        said = self._ask("squeue")
        jobs, problems = slurm_json.jobs(said, self._hide)
        nodes, wrong = self._nodes()
        over, unkept = self._books(taken_ns)
        ended = {job.id: job for job in (*over, *(job for job in jobs if job.state == "ended"))}
        cluster = self._cluster or said.cluster or next(iter(_clusters(said)), "")
        return Snapshot(
            scheduler=self.name,
            cluster=cluster,
            version=said.version,
            taken_ns=taken_ns,
            jobs=tuple(job for job in jobs if job.state != "ended"),
            nodes=tuple(nodes),
            ended=ended,
            problems=(*problems, *wrong, *unkept),
        )

    def _ask(self, command: str, *arguments: str) -> slurm_json.Said:
        path = str(Path(self._bin_dir) / command) if self._bin_dir else command
        return slurm_json.load(
            command, calls.run([path, *arguments, "--json"], self._deadline_s, environ=self._environ)
        )

    def _nodes(self) -> tuple[list[Node], list[str]]:
        if not self._grouped:
            said = self._ask("sinfo")
            if "sinfo" not in said.document:
                return slurm_json.nodes(said)
            self._grouped = True
        return slurm_json.nodes(self._ask("scontrol", "show", "nodes"))

    def _books(self, now_ns: int) -> tuple[list[Job], list[str]]:
        """Jobs that ended since the last look; a site without slurmdbd has no books, which is no problem."""
        if self._monotonic() < self._books_due_s:
            return [], self._unread
        self._books_due_s = self._monotonic() + BOOKS_EACH_S
        back_s = OVERLAP_S if self._booked_ns is not None else LOOK_BACK_S
        since = datetime.fromtimestamp((self._booked_ns or now_ns) / 1e9 - back_s, UTC).astimezone()
        try:
            said = self._ask("sacct", "--allusers", "--allocations", f"--starttime={since:%Y-%m-%dT%H:%M:%S}")
            found, self._unread = slurm_json.ended(said, self._hide)
        except SchedulerError as error:
            kept = NO_BOOKS not in str(error)
            self._unread = [str(error)] if kept else []
            if not kept:
                self._books_due_s = self._monotonic() + NO_BOOKS_EACH_S
            return [], self._unread
        self._booked_ns = now_ns
        return found, self._unread


def _clusters(said: slurm_json.Said) -> list[str]:
    """Names of the cluster as its jobs carry them: 22.05 names it nowhere else."""
    rows = said.document.get("jobs") or []
    return [str(row["cluster"]) for row in rows[:1] if isinstance(row, dict) and row.get("cluster")]


def source(settings: CollectorSettings) -> Slurm | None:
    """Where `scheduler = slurm`."""
    if settings.scheduler != "slurm":
        return None
    return Slurm(
        pseudonyms(settings),
        bin_dir=os.path.expanduser(settings.slurm_bin_dir),  # noqa: PTH111  # empty stays empty
        cluster=settings.slurm_cluster,
        deadline_s=settings.scheduler_deadline_s,
    )
