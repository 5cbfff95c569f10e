"""Where the time went: accounts from memory, and from disk where they are of longer ago."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from unidle_collector import reading
from unidle_collector.accounts.past_hours import Asked
from unidle_collector.accounts.tally import Tally
from unidle_collector.api.desk import Desk
from unidle_collector.api.forms import ERRORS, LISTED, listing
from unidle_collector.api.pages import Cut, Page, Paged
from unidle_collector.api.words import MOST_TEXT, LongWindowS
from unidle_collector.live import Live
from unidle_collector.model import Account

By = Annotated[
    str,
    Query(
        max_length=MOST_TEXT,
        description="fleet, gpu, node, job, user, team, partition, model, site or hour",
        examples=["job"],
    ),
]


def routes(desk: Desk) -> APIRouter:
    """The one question."""
    router = APIRouter(prefix="/api/v1", tags=["past"], responses=ERRORS)
    live = desk.live

    @router.get("/accounts", response_model=list[Account], responses=LISTED)
    async def accounts(
        request: Request, page: Paged, by: By = "job", window_s: LongWindowS = 3600.0
    ) -> Response:
        """Where the time went: GPU-seconds by state and cause, and what was lost; in the order of the keys.

        Over whole spans of five minutes, of hours where they are older than a day, as far back as accounts
        are kept (`keep_state_days`). What is older than eight days is read from disk, which may take seconds.
        """
        if by == reading.HOUR:
            return await listing(desk, request, Account, await _by_hour(desk, page, window_s))
        whole = await desk.ask(lambda: reading.asked(live, by, window_s))
        if whole is None:
            nothing: Cut[Account] = Cut([])
            return await listing(desk, request, Account, nothing)
        run = desk.beside if whole.in_memory else desk.long
        found = await run(lambda: _cut(page, live.past.whole(whole)))
        return await listing(desk, request, Account, found)

    return router


async def _by_hour(desk: Desk, page: Page, window_s: float) -> Cut[Account]:
    """A page of hours: of spans without any time there is no account, so it may take more of them."""
    live = desk.live
    spans = await desk.ask(lambda: reading.spans(live, window_s))
    first = page.first(spans, lambda span: (span[0],))
    found: list[Account] = []
    while first < len(spans) and len(found) <= page.limit:
        here = spans[first : first + page.limit + 1 - len(found)]
        first += len(here)
        asked = [await desk.ask(partial(reading.asked_hour, live, span)) for span in here]
        run = desk.beside if all(one.in_memory for one in asked) else desk.long
        found += await run(partial(_hours, live, here, asked))
    return page.of(found, lambda account: (int(account.key),))


def _hours(live: Live, spans: Sequence[tuple[int, int]], asked: Sequence[Asked]) -> list[Account]:
    tallies = [reading.named(live.past.whole(one), span) for span, one in zip(spans, asked, strict=True)]
    return [account for tally in tallies for account in tally.accounts()]


def _cut(page: Page, tally: Tally) -> Cut[Account]:
    """Only the accounts of the page are made, of which a fleet by GPU has many."""
    first = 0
    if page.after is not None:
        key = page.after[0]
        if not isinstance(key, str):
            raise page.wrong()
        first = tally.behind(key)
    return page.of(list(tally.accounts(first, page.limit + 1)), lambda account: (account.key,))
