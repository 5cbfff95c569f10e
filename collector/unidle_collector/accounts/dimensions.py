"""What the time of a job is accounted by beside the job itself: its scheduler says it while it knows the job.

The scheduler forgets a job soon after it ended, and its time stays in the accounts for months. So what it
said is kept with the accounts themselves: in every hour, and in the checkpoint for hours that are not over.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

MOST_REMEMBERED = 100_000
"""Jobs: about 25 MB. What is older is in the hours that their time is in."""


@dataclass(frozen=True, slots=True)
class Dimensions:
    """Of one job; empty is unknown."""

    team: str = ""
    partition: str = ""


NOTHING = Dimensions()


class JobDimensions:
    """Of the jobs that were told of last, those that run and those that are over."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Dimensions] = OrderedDict()

    def learn(self, job: str, said: Dimensions) -> None:
        """What the scheduler says of a job, or once said; that it says nothing takes nothing back."""
        if not job or said == NOTHING:
            return
        self._known[job] = said
        self._known.move_to_end(job)
        if len(self._known) > MOST_REMEMBERED:
            self._known.popitem(last=False)

    def of(self, job: str) -> Dimensions:
        """What is known of a job, of the first one where several share a GPU; for any thread."""
        return self._known.get(first_of(job), NOTHING)


def first_of(job: str) -> str:
    """The job that the time of `job` counts as: the first where several share a GPU."""
    return job.partition(",")[0]
