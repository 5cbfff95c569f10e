"""The job-map folder of dcgm-exporter (`--hpc-job-mapping-dir`): the setting `job_map_dir`.

A file is named after the GPU's index, or `index.instance` for a MIG instance, and holds one job id per
line; several lines are several jobs. Other names are ignored, as dcgm-exporter does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from unidle_agent.config import AgentSettings
from unidle_agent.owners import Claims
from unidle_agent.owners.devices import INDEX
from unidle_agent.owners.prolog import read_folder
from unidle_agent.owners.running import RunningJobs
from unidle_agent.sample import GpuReading


class HpcJobFolder:
    """The files in `folder`."""

    name = "prolog-hpc-job"
    precedence = 10

    def __init__(
        self,
        folder: Path,
        stale_s: float,
        running: Callable[[str], bool | None],
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._folder, self._stale_s, self._running, self._now_s = folder, stale_s, running, now_s

    def read(self, gpus: Sequence[GpuReading]) -> Claims:
        """The jobs of every GPU; nothing where there is no such folder."""
        oldest_s = self._now_s() - self._stale_s
        return read_folder(
            self._folder,
            gpus,
            self.name,
            lambda name: INDEX.fullmatch(name) is not None,
            lambda text: (tuple(dict.fromkeys(text.split())), ""),
            self._running,
            lambda changed_s: changed_s >= oldest_s,
        )

    def close(self) -> None:
        """Nothing is held."""


def source(settings: AgentSettings) -> HpcJobFolder | None:
    """Where `job_map_dir` is set."""
    if not settings.job_map_dir:
        return None
    return HpcJobFolder(Path(settings.job_map_dir), settings.owner_stale_s, RunningJobs())
