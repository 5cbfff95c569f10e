"""How much a distributed training job loses to its slowest part, from the timeline of its operations.

    operations = read(path)            # who did what when: operations.py
    plan = plans(operations)           # what waits for what: schedule.py
    report = analyse(operations)       # the same steps with the delays taken away: whatif.py, verdict.py

Every operation of every rank is replayed in the order in which it was recorded. An operation on one rank
takes as long as it took; one that several ranks do together (a send and its receive, a collective) starts
when the last of them is there and takes as long as the transfer then took. Replaying the steps as they
were, and again with every operation as long as its kind is on average, gives two step times; their ratio
is the slowdown. Replaying with only some operations as they were says who is to blame.
"""

from unidle_collector.timeline.operations import Operations, TimelineError, read
from unidle_collector.timeline.report import document, render
from unidle_collector.timeline.verdict import Explanation, Report, analyse

__all__ = ["Explanation", "Operations", "Report", "TimelineError", "analyse", "document", "read", "render"]
