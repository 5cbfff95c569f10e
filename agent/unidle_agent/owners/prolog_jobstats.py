"""The prolog files of jobstats: `/run/gpustat/` by default, the setting `gpustat_dir`.

A file is named after the GPU's index or the UUID of a GPU or MIG instance, and holds one line `JOBID UID`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from unidle_agent.config import AgentSettings
from unidle_agent.owners import Claims
from unidle_agent.owners.people import user_name
from unidle_agent.owners.prolog import read_folder
from unidle_agent.owners.running import RunningJobs
from unidle_agent.sample import GpuReading

FILE_NAME = re.compile(r"\d+|(GPU|MIG)-[\w/-]+")


class JobstatsFolder:
    """The files in `folder`."""

    name = "prolog-jobstats"
    precedence = 11

    def __init__(
        self,
        folder: Path,
        stale_s: float,
        running: Callable[[str], bool | None],
        now_s: Callable[[], float] = time.time,
        name_of: Callable[[int], str] = user_name,
    ) -> None:
        self._folder, self._stale_s, self._running = folder, stale_s, running
        self._now_s, self._name_of = now_s, name_of

    def read(self, gpus: Sequence[GpuReading]) -> Claims:
        """The job and user of every GPU; nothing where there is no such folder."""
        oldest_s = self._now_s() - self._stale_s
        return read_folder(
            self._folder,
            gpus,
            self.name,
            lambda name: FILE_NAME.fullmatch(name) is not None,
            self._parse,
            self._running,
            lambda changed_s: changed_s >= oldest_s,
        )

    def close(self) -> None:
        """Nothing is held."""

    def _parse(self, text: str) -> tuple[tuple[str, ...], str]:
        job, uid = text.split()
        return (job,), self._name_of(int(uid))


def source(settings: AgentSettings) -> JobstatsFolder | None:
    """Where `gpustat_dir` is set; a prolog may make the folder later."""
    if not settings.gpustat_dir:
        return None
    return JobstatsFolder(Path(settings.gpustat_dir), settings.owner_stale_s, RunningJobs())
