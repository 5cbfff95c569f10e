"""JSON or Arrow: what the Accept header asks for, and the words on it in the schema."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, cast

from fastapi import Request, Response
from pydantic import TypeAdapter

from unidle_collector.api import arrow
from unidle_collector.api.desk import Desk
from unidle_collector.api.pages import Cut, link

JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a question was not answered."""

    detail: str
    """What was expected, what came, and what to do."""


ERRORS: dict[int | str, dict[str, Any]] = {
    401: {"model": Problem, "description": "no read token, or one that does not hold (any more)"},
    422: {"model": Problem, "description": "the question is at fault"},
    503: {"model": Problem, "description": "the collector cannot say now; ask again"},
}
MISSING: dict[int | str, dict[str, Any]] = {
    404: {"model": Problem, "description": "what is asked for is not here"}
}
LISTED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the items of the page",
        "headers": {
            "Link": {
                "description": "leads to the next page where there is one",
                "schema": {"type": "string", "examples": ['<?limit=1000&after=WyIv...>; rel="next"']},
            }
        },
        "content": {arrow.MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
    }
}


def wants_arrow(request: Request) -> bool:
    """Does the Accept header put Arrow before JSON; no wildcard does."""
    weights = {}
    for part in request.headers.get("accept", "").split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        stated = [piece.removeprefix("q=") for piece in parameters if piece.startswith("q=")]
        try:
            weights[name.lower()] = float(stated[0]) if stated else 1.0
        except ValueError:
            weights[name.lower()] = 0.0
    asked = weights.get(arrow.MEDIA_TYPE, 0.0)
    return asked > 0 and asked >= weights.get(JSON, 0.0)


async def listing(desk: Desk, request: Request, kind: type[Any], page: Cut[Any]) -> Response:
    """A page of records of the dataclass `kind`, encoded beside everything else."""
    as_arrow = wants_arrow(request)
    body = await desk.beside(partial(encoded, kind, page.items, as_arrow))
    return reply(request, body, as_arrow, page.following)


def reply(request: Request, body: bytes, as_arrow: bool, following: str = "") -> Response:
    """An answer that says in which form it is and where it goes on."""
    headers = {"Vary": "Accept", **link(request, following)}
    return Response(body, media_type=arrow.MEDIA_TYPE if as_arrow else JSON, headers=headers)


def encoded(kind: type[Any], items: Sequence[Any], as_arrow: bool) -> bytes:
    """Records of the dataclass `kind` in the form that is asked for."""
    if as_arrow:
        return arrow.stream(arrow.table(kind, items))
    return _adapter(cast(Hashable, kind)).dump_json(list(items))


@cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(list[kind])  # type: ignore[valid-type]
