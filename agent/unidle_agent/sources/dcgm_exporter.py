"""A running dcgm-exporter: every GPU on its /metrics page, in base units.

A scrape has an interval of its own. Between two scrapes the source repeats which GPUs there are and who
owns them, but no value: a value counts once, at the tick of the scrape that brought it. So a GPU that
only this source sees has a sample at scrape times, and a row without any value at the ticks between,
which is no sample. The exporter itself takes a sample every 30 s by default (its option
`--collect-interval`): scraping faster than that brings the same values again, as the exporter reports
them for that moment.

XIDs and SXids that a page counts beyond the page before are events (`unidle_agent.dcgm_faults`).

A page that is torn loses the torn lines, one that is too big or does not come in time is a problem that
is said and counted, and the next scrape tries again. After three intervals without a page its GPUs are
no longer known.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace

from unidle_agent import fetch
from unidle_agent.dcgm import parse_page
from unidle_agent.dcgm_faults import News
from unidle_agent.errors import SourceError
from unidle_agent.sample import GpuReading, Reading

MAX_PAGE_BYTES = 16 * 1024 * 1024
"""A page of 8 GPUs is 70 kB, one of 16 GPUs in 7 MIG instances each with every field below 2 MB."""
MAX_DEADLINE_S = 4.0
MAX_TOLD = 3
"""Most bad lines of one page that are shown; all are counted."""
QUOTE = re.compile(r": ['\"].*", re.DOTALL)
STALE_AFTER = 3
"""Scrape intervals without a page after which its GPUs are no longer known."""


class DcgmExporterSource:
    """The page at `url`, scraped every `scrape_s` seconds."""

    name = "dcgm-exporter"
    precedence = 20

    def __init__(
        self,
        url: str,
        scrape_s: float = 5.0,
        *,
        max_bytes: int = MAX_PAGE_BYTES,
        monotonic: Callable[[], float] = time.monotonic,
        time_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        fetch.target(url, "agent.dcgm_urls")
        self.url = url
        self.counts = {"scrapes": 0, "failed_scrapes": 0, "too_big": 0, "torn_pages": 0, "bad_lines": 0}
        self._scrape_s = scrape_s
        self._max_bytes = max_bytes
        self._monotonic, self._time_ns = monotonic, time_ns
        self._news = News()
        self._due_s = monotonic()
        self._page_s = float("-inf")
        self._known: tuple[GpuReading, ...] = ()
        self._problems: tuple[str, ...] = ()

    def read(self) -> Reading:
        """A fresh page when one is due, else what is known without values; raises SourceError."""
        now_s = self._monotonic()
        # Ticks come a hair early or late: without slack, each such tick would cost a whole period.
        if now_s < self._due_s - 0.05 * self._scrape_s:
            return Reading(gpus=self._without_values(now_s), problems=self._problems)
        missed = int(max(0.0, now_s - self._due_s) // self._scrape_s)
        self._due_s += self._scrape_s * (missed + 1)
        try:
            return self._scrape()
        except fetch.FetchError as error:
            self.counts["failed_scrapes"] += 1
            self.counts["too_big"] += isinstance(error, fetch.TooBigError)
            self._problems = (f"{self.url}: {error}; is dcgm-exporter running there?",)
            known = self._without_values(now_s)
            if not known:
                raise SourceError(self._problems[0]) from error
            return Reading(gpus=known, problems=self._problems)

    def close(self) -> None:
        """Nothing is held: every scrape has a connection of its own."""

    def _scrape(self) -> Reading:
        self.counts["scrapes"] += 1
        deadline_s = min(MAX_DEADLINE_S, max(self._scrape_s, 1.0))
        answer = fetch.get(
            self.url, "agent.dcgm_urls", deadline_s=deadline_s, max_bytes=self._max_bytes, Accept="text/plain"
        )
        if answer.status != 200:
            raise fetch.FetchError(f"expected HTTP 200, came {answer.status}{_location(answer)}")
        page = parse_page(answer.body, complete=answer.whole)
        self.counts["bad_lines"] += page.bad_lines
        self.counts["torn_pages"] += not answer.whole
        # What is quoted of a page may name a pod or a person.
        problems = [QUOTE.sub("", problem) for problem in page.problems[:MAX_TOLD]]
        if page.bad_lines:
            problems.append(f"{page.bad_lines} lines could not be read and were left out")
        if not answer.whole:
            problems.append("the page ended before its announced end")
        if not page.gpus:
            problems.append("no GPU on the page: is it a dcgm-exporter's /metrics?")
        if len(hosts := sorted({*page.nodes} - {""})) > 1:
            problems.append(f"the page joins the hosts {', '.join(hosts)}: all count as this node")
        self._page_s = self._monotonic()
        self._known = page.gpus
        self._problems = tuple(f"{self.url}: {problem}" for problem in problems)
        events = self._news.events(page.faults, self._time_ns(), whole=answer.whole and not page.bad_lines)
        return Reading(gpus=page.gpus, problems=self._problems, events=events)

    def _without_values(self, now_s: float) -> tuple[GpuReading, ...]:
        if now_s - self._page_s > STALE_AFTER * self._scrape_s:
            self._known = ()
        return tuple(replace(gpu, values={}) for gpu in self._known)


def _location(answer: fetch.Answer) -> str:
    where = answer.headers.get("location")
    return f" to {where}: redirects are not followed, set the final address" if where else ""
