"""What both kinds of job-map file share: a prolog writes one per GPU, the epilog removes it.

A file whose epilog never ran is a false allocation. It is believed at once where its job is seen to run,
less while it is young, and little once it is older than `owner_stale_s` and nothing of its job is seen. A
folder that is there speaks for the whole node: a GPU without a file is held by nobody.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from unidle_agent.errors import SourceError
from unidle_agent.owners import Claims
from unidle_agent.owners.devices import rows_of
from unidle_agent.owners.resolve import SHARED, STALE
from unidle_agent.sample import GpuReading
from unidle_agent.wire import Owner

MAX_FILE_BYTES = 4096

Parse = Callable[[str], tuple[tuple[str, ...], str]]
"""Text of a file -> its jobs and the user; raises ValueError where it is no such file."""


def read_folder(
    folder: Path,
    gpus: Sequence[GpuReading],
    source: str,
    wanted: Callable[[str], bool],
    parse: Parse,
    running: Callable[[str], bool | None],
    young: Callable[[float], bool],
) -> Claims:
    """The claims of every file in `folder` whose name is `wanted`; `young` judges its time of change."""
    try:
        files = sorted(folder.iterdir())
    except FileNotFoundError:
        return Claims()
    except OSError as error:
        raise SourceError(f"{folder} cannot be read ({error.strerror}): run the agent as root") from None
    claims = {gpu.facts.uuid: Owner(False, source=source, confidence="medium") for gpu in gpus}
    unread = 0
    for path in files:
        if not wanted(path.name):
            continue
        try:
            with path.open("rb") as file:
                jobs, user = parse(file.read(MAX_FILE_BYTES).decode("utf-8", "replace"))
                changed_s = os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:  # the epilog was faster
            continue
        except (OSError, ValueError):
            unread += 1
            for uuid in rows_of(path.name, gpus):  # held by somebody, who cannot be told
                claims.pop(uuid, None)
            continue
        if jobs:
            owner = _owner(jobs, user, source, any(running(job) for job in jobs), young(changed_s))
            claims |= dict.fromkeys(rows_of(path.name, gpus), owner)
    # Neither the name nor the text of such a file: anything may stand there.
    problems = (f"{unread} files in {folder} are no job maps or cannot be read",) if unread else ()
    return Claims(claims, problems=problems)


def _owner(jobs: tuple[str, ...], user: str, source: str, runs: bool, young: bool) -> Owner:
    confidence = "high" if runs else "medium" if young else "low"
    note = "" if runs or young else STALE
    if len(jobs) > 1:
        confidence, note = ("low" if confidence == "low" else "medium"), note or SHARED
    return Owner(True, ",".join(jobs), user, source=source, confidence=confidence, note=note)
