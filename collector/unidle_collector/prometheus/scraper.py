"""Asks dcgm-exporters for their pages, for sites that have exporters and no agents.

Every target keeps a phase of its own within the interval, drawn once, so that 1,250 of them are not
asked at the same moment. A scrape has a deadline; as many as MOST_AT_ONCE are under way, so that targets
that hang take no more than that many threads from those that answer. Rows enter like pushed ones.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal

from unidle_agent import fetch
from unidle_agent.dcgm import Page, parse_page
from unidle_agent.errors import UnidleError
from unidle_agent.sample import GpuReading, Reading
from unidle_agent.sources.dcgm_exporter import MAX_PAGE_BYTES
from unidle_collector.live import Live
from unidle_collector.model import TargetNow
from unidle_collector.prometheus import targets
from unidle_collector.prometheus.feed import Feed
from unidle_collector.prometheus.targets import Target
from unidle_collector.scheduler.names import pseudonyms
from unidle_collector.settings import CollectorSettings

MOST_AT_ONCE = 64
MOST_DEADLINE_S = 8.0
DISCOVER_EACH_S = 30.0
LOOK_EACH_S = 0.1
MOST_NAMED = 3
"""Targets that do not answer which are named in health; all are counted."""

SOURCE = ("dcgm-exporter", 20)


def wanted(settings: CollectorSettings) -> bool:
    """Is there anything to scrape."""
    return bool(settings.scrape_targets or settings.scrape_file_sd or settings.scrape_http_sd)


@dataclass(slots=True)
class _State:
    """One target and what became of its last scrape."""

    target: Target
    due_s: float
    busy: bool = False
    now: TargetNow | None = None


class Scraper:
    """Keeps the targets and their schedule in a thread of its own."""

    def __init__(
        self,
        settings: CollectorSettings,
        live: Live,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        spread: Callable[[], float] = random.random,
    ) -> None:
        self._settings = settings
        self._live = live
        self._monotonic = monotonic
        self._spread = spread
        self._interval_s = settings.scrape_interval_s
        self._static = [targets.named(text, "collector.scrape_targets") for text in settings.scrape_targets]
        for url in settings.scrape_http_sd:
            fetch.target(url, "collector.scrape_http_sd")
        self._discovered: dict[str, list[Target]] = {}
        self._states: dict[str, _State] = {}
        self._feed = Feed(live.push, live.clock_ns, "scrape", pseudonyms(settings))
        self._pool = ThreadPoolExecutor(MOST_AT_ONCE, thread_name_prefix="scrape")
        self._discovering: Future[None] | None = None
        self._discover_due_s = monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scraper", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Wait for what is under way, and hand it over."""
        self._stop.set()
        self._thread.join(timeout=30)
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._feed.send()

    def targets(self) -> list[TargetNow]:
        """Every target as it is now."""
        states = sorted(self._states.items())
        return [state.now or TargetNow(url, state.target.node, "waiting") for url, state in states]

    def look(self) -> None:
        """Start what is due, hand over what came."""
        now_s = self._monotonic()
        if now_s >= self._discover_due_s and (self._discovering is None or self._discovering.done()):
            self._discover_due_s = now_s + DISCOVER_EACH_S
            self._discovering = self._pool.submit(self._discover)
        for state in list(self._states.values()):
            if now_s >= state.due_s and not state.busy:
                # What was missed is left out: the phase stays.
                state.due_s += self._interval_s * (int((now_s - state.due_s) / self._interval_s) + 1)
                state.busy = True
                self._pool.submit(self._scrape, state)
        if self._feed.waiting:
            self._feed.send()
        self._say_problems()

    def _run(self) -> None:
        while not self._stop.wait(LOOK_EACH_S):
            self.look()

    def _discover(self) -> None:
        """Ask every source of targets; one that fails keeps what it named before."""
        problem = ""
        settings = self._settings
        sources: dict[str, Callable[[], list[Target]]] = {
            "files": partial(targets.from_files, settings.scrape_file_sd)
        }
        for url in settings.scrape_http_sd:
            sources[url] = partial(
                targets.from_http, url, settings.scrape_token.reveal(), settings.scrape_ca_file
            )
        for name, find in sources.items():
            try:
                self._discovered[name] = find()
            except UnidleError as error:
                problem = str(error)
        self._note("scrape_discovery", problem)
        everything = [*self._static, *(each for found in self._discovered.values() for each in found)]
        known = {target.url: target for target in everything}
        now_s = self._monotonic()
        states = {}
        for url, target in known.items():
            before = self._states.get(url)
            if before is None:
                states[url] = _State(target, now_s + self._spread() * self._interval_s)
            else:
                before.target = target
                states[url] = before
        self._states = states

    def _scrape(self, state: _State) -> None:
        target, counters = state.target, self._live.counters
        begun_s, time_ns = self._monotonic(), self._live.clock_ns()
        counters["scrapes"] += 1
        try:
            page, whole = self._page(target)
            gpus = self._take(target, page, time_ns)
            problem = _doubt(page, whole, gpus)
            up: Literal["up", "down"] = "up" if gpus else "down"
        except UnidleError as error:
            problem, up, gpus = str(error), "down", 0
        finally:
            state.busy = False
        counters["scrapes_failed"] += up == "down"
        state.now = TargetNow(
            target.url, target.node, up, problem, gpus, time_ns, self._monotonic() - begun_s
        )

    def _page(self, target: Target) -> tuple[Page, bool]:
        to = fetch.target(target.url, "collector.scrape_targets")
        deadline_s = min(self._interval_s, MOST_DEADLINE_S)
        over = fetch.connection(to, deadline_s, self._settings.scrape_ca_file)
        headers = {"Accept": "text/plain"}
        if self._settings.scrape_token:
            headers["Authorization"] = f"Bearer {self._settings.scrape_token.reveal()}"
        try:
            answer = fetch.exchange(
                over, "GET", to.path, deadline_s=deadline_s, max_bytes=MAX_PAGE_BYTES, headers=headers
            )
        finally:
            over.close()
        if answer.status != 200:
            to_where = answer.headers.get("location", "")
            moved = f" to {to_where}: redirects are not followed" if to_where else ""
            raise fetch.FetchError(f"expected HTTP 200, came {answer.status}{moved}")
        return parse_page(answer.body, complete=answer.whole), answer.whole

    def _take(self, target: Target, page: Page, time_ns: int) -> int:
        """Hand over the rows of a page; returns how many GPUs it has."""
        hosts = set(page.nodes)
        fallback = target.node or fetch.target(target.url, "collector.scrape_targets").host
        gpus: dict[str, list[GpuReading]] = {}
        for host, gpu in zip(page.nodes, page.gpus, strict=True):
            # Discovery knows the node better than an exporter in a pod does, but not of a page of several.
            node = target.node if target.node and len(hosts) == 1 else host or fallback
            gpus.setdefault(node, []).append(gpu)
        for node, mine in gpus.items():
            self._feed.add(node, time_ns, [(*SOURCE, Reading(tuple(mine)))], self._interval_s)
        return len(page.gpus)

    def _say_problems(self) -> None:
        states = self.targets()
        down = [each for each in states if each.state == "down"]
        text = ""
        if down:
            shown = "; ".join(f"{each.url}: {each.problem}" for each in down[:MOST_NAMED])
            text = f"{len(down)} of {len(states)} scrape targets give no GPU: {shown}"
        self._note("scrape", text)
        fed = self._feed.fed
        self._note("scrape_rows", f"scraped rows wait: {fed.problem}" if self._feed.waiting else "")
        self._live.counters["scrape_batches_dropped"] = fed.dropped + fed.refused

    def _note(self, key: str, text: str) -> None:
        if text:
            self._live.problems[key] = text
        else:
            self._live.problems.pop(key, None)


def _doubt(page: Page, whole: bool, gpus: int) -> str:
    """What is wrong with a page that came; empty when nothing is."""
    if not gpus:
        return "no GPU on the page: is it a dcgm-exporter's /metrics?"
    if not whole:
        return "the page ended before its announced end"
    return f"{page.bad_lines} lines could not be read and were left out" if page.bad_lines else ""


def counted(states: list[TargetNow]) -> dict[str, int]:
    """State -> targets."""
    out = dict.fromkeys(("up", "down", "waiting"), 0)
    for each in states:
        out[each.state] += 1
    return out
