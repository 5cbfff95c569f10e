"""Pages of a list: at most `limit` items, and a Link header that leads to the next ones.

A cursor holds the sort key of the last item, not its number: what comes or goes before it moves nothing.
"""

from __future__ import annotations

import base64
import binascii
import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar
from urllib.parse import urlencode

from fastapi import Depends, Query, Request

from unidle_collector.reading import AskedWrongError

USUAL, MOST = 1_000, 10_000

T = TypeVar("T")
Key = tuple[Any, ...]
"""Numbers and texts that order a list without ties."""


@dataclass(frozen=True, slots=True)
class Cut(Generic[T]):
    """The items of a page."""

    items: list[T]
    following: str = ""
    """Cursor of the next page; empty on the last one."""


@dataclass(frozen=True, slots=True)
class Page:
    """The page that is asked for."""

    path: str
    limit: int
    after: Key | None
    """Sort key of the last item before it."""

    def cut(self, items: Sequence[T], key: Callable[[T], Key]) -> Cut[T]:
        """The page of `items`, which are in ascending order of `key`."""
        first = self.first(items, key)
        return self.of(list(items[first : first + self.limit + 1]), key)

    def first(self, items: Sequence[T], key: Callable[[T], Key]) -> int:
        """Where the page begins in `items`, which are in ascending order of `key`."""
        if self.after is None:
            return 0
        try:
            return bisect_right(items, self.after, key=key)
        except TypeError as error:
            raise self.wrong() from error

    def of(self, items: list[T], key: Callable[[T], Key]) -> Cut[T]:
        """The page that begins with `items`: one more than `limit` where there is a next one."""
        if len(items) <= self.limit:
            return Cut(items)
        return Cut(items[: self.limit], self.cursor(key(items[self.limit - 1])))

    def cursor(self, key: Key) -> str:
        """What leads to the items behind `key`."""
        text = json.dumps([self.path, *key], separators=(",", ":"))
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    def wrong(self) -> AskedWrongError:
        """The cursor is of no list like this one."""
        return AskedWrongError("after: expected the cursor of a Link header of this list, came another text")


def _page(
    request: Request,
    limit: Annotated[
        int, Query(ge=1, le=MOST, description="most items of the answer", examples=[USUAL])
    ] = USUAL,
    after: Annotated[
        str,
        Query(
            max_length=2000,
            description="cursor of the Link header of the page before; empty: the first page",
            examples=["WyIvYXBpL3YxL2dwdXMiLDk5OV0"],
        ),
    ] = "",
) -> Page:
    page = Page(request.url.path, limit, None)
    if not after:
        return page
    try:
        path, *key = json.loads(base64.b64decode(after + "=" * (-len(after) % 4), b"-_", validate=True))
    except (binascii.Error, ValueError, TypeError) as error:
        raise page.wrong() from error
    if path != page.path or not key or not all(_may_be_key(part) for part in key):
        raise page.wrong()
    return Page(page.path, limit, tuple(key))


Paged = Annotated[Page, Depends(_page)]


def _may_be_key(part: object) -> bool:
    """A text that has a UTF-8 form, or a number that a database takes."""
    if isinstance(part, str):
        return not any("\ud800" <= letter <= "\udfff" for letter in part)
    return isinstance(part, int | float) and abs(part) < 2**63


def link(request: Request, following: str) -> dict[str, str]:
    """The header that leads on; it names the query only, so that it holds behind any proxy."""
    if not following:
        return {}
    rest = [(name, value) for name, value in request.query_params.multi_items() if name != "after"]
    return {"Link": f'<?{urlencode([*rest, ("after", following)])}>; rel="next"'}
