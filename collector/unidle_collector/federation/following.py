"""Asks every site for its report, each from a thread of its own, and keeps the last one, also on disk."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from unidle_agent import fetch
from unidle_agent.errors import SettingError, UnidleError
from unidle_agent.settings import Secret
from unidle_collector.federation.policy import check_keys, read_token, read_toml, tables
from unidle_collector.federation.report import SiteReport

log = logging.getLogger("unidle.federation")

MOST_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Source:
    """Where a site answers."""

    url: str
    token: Secret
    ca_file: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of one source."""

    source: Source
    report: SiteReport | None = None
    answered_ns: int | None = None
    """This clock when `report` came."""
    error: str = ""
    """Why the last question failed; empty when it did not, and before the first."""


Ask = Callable[[Source, float], SiteReport]
"""Asks a source for its report within so many seconds; raises UnidleError."""


def load_sources(path: Path) -> tuple[Source, ...]:
    """The sites of a federation; raises SettingError naming what is wrong in the file.

    [[site]]
    url = "https://unidle.fra.example.org:9470"
    token_file = "/etc/unidle/federation/fra.token"
    ca_file = ""
    """
    document = read_toml(path, {"site"})
    found = []
    for entry in tables(document, "site", path):
        check_keys("site", entry, {"url", "token_file", "ca_file"}, path)
        url = entry.get("url")
        if not isinstance(url, str):
            raise SettingError("site.url", "a URL such as https://HOST:9470", url, str(path))
        to = fetch.target(url, "site.url")
        if not (to.secure or to.loopback):
            raise SettingError(
                "site.url", "https, because what crosses is nobody else's to read", url, str(path)
            )
        token = read_token("site.token_file", entry.get("token_file"), path)
        found.append(Source(url.rstrip("/"), token, str(entry.get("ca_file", ""))))
    if not found:
        raise SettingError("site", "at least one table [[site]]", "none", str(path))
    if len({source.url for source in found}) < len(found):
        raise SettingError("site.url", "each site once", "one twice", str(path))
    return tuple(found)


def ask(source: Source, deadline_s: float) -> SiteReport:
    """GET the report of a site; raises UnidleError with what to do. Redirects are not followed."""
    to = fetch.target(source.url, "site.url")
    over = fetch.connection(to, deadline_s, source.ca_file)
    try:
        answer = fetch.exchange(
            over,
            "GET",
            f"{to.path}/api/v1/federation",
            deadline_s=deadline_s,
            max_bytes=MOST_BYTES,
            headers={"Authorization": f"Bearer {source.token.reveal()}"},
        )
    finally:
        over.close()
    if answer.status == 401:
        raise UnidleError("HTTP 401: its federation_file has no receiver with this token")
    if answer.status != 200 or not answer.whole:
        raise UnidleError(f"expected a whole report, came HTTP {answer.status}, {len(answer.body)} bytes")
    try:
        return _reports().validate_json(answer.body)
    except ValidationError as error:
        raise UnidleError(
            f"the report does not fit this version of unidle ({error.error_count()} places)"
        ) from error


class Following:
    """The sites of a federation, followed until told to stop."""

    def __init__(
        self,
        sources: Sequence[Source],
        folder: Path,
        poll_s: float,
        deadline_s: float,
        ask: Ask = ask,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Takes up the last reports in `folder`, which must be there."""
        self._folder, self._poll_s, self._deadline_s = folder, poll_s, deadline_s
        self._ask, self._clock_ns = ask, clock_ns
        self._seen = {source.url: self._kept(source) for source in sources}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._follow, args=(source,), daemon=True, name=f"site-{number}")
            for number, source in enumerate(sources)
        ]

    def start(self) -> None:
        """Begin to ask."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End; a question that is under way is not waited for longer than its deadline."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=self._deadline_s + 1)

    def seen(self) -> list[Seen]:
        """What is known of every source, in the order of the file."""
        with self._lock:
            return list(self._seen.values())

    def look(self, source: Source) -> None:
        """Ask one source once. What it fails to say leaves its last report as it was."""
        before = self._seen[source.url]
        try:
            report = self._ask(source, self._deadline_s)
            after = Seen(source, report, self._clock_ns())
            self._keep(after)
        except UnidleError as error:
            after = replace(before, error=str(error))
            if before.error != after.error:
                log.warning("%s: %s", source.url, error)
        with self._lock:
            self._seen[source.url] = after

    def _follow(self, source: Source) -> None:
        while not self._stop.is_set():
            self.look(source)
            self._stop.wait(self._poll_s)

    # -- over a restart --------------------------------------------------------------------------

    def _path(self, source: Source) -> Path:
        return self._folder / f"{hashlib.sha256(source.url.encode()).hexdigest()[:16]}.json"

    def _keep(self, seen: Seen) -> None:
        if seen.report is None:
            return
        path = self._path(seen.source)
        new = path.with_suffix(".new")
        try:
            new.write_bytes(_reports().dump_json(seen.report))
            os.utime(new, ns=(self._clock_ns(), seen.answered_ns or 0))
            new.replace(path)
        except OSError as error:
            log.warning("%s: the last report cannot be kept for a restart: %s", path, error)

    def _kept(self, source: Source) -> Seen:
        path = self._path(source)
        try:
            return Seen(source, _reports().validate_json(path.read_bytes()), path.stat().st_mtime_ns)
        except (OSError, ValidationError):
            return Seen(source)  # never kept, or by another version: it is asked at once anyway


@cache
def _reports() -> TypeAdapter[SiteReport]:
    return TypeAdapter(SiteReport)
