"""A site in shards as a federation hears of it: the parts of all shards added up, and only then what crosses.

Groups are as small as they are over the whole site, so persons are counted over all shards before any group
is told apart. A shard that does not answer is in the report as GPUs of which nobody knows anything, and no
group is told apart meanwhile: what it lacks beside the last report could be what one person did.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

from fastapi import Request

from unidle_agent.settings import Secret
from unidle_collector.federation.adding import add_accounts
from unidle_collector.federation.gate import PART
from unidle_collector.federation.parts import About, Part, now_of, wellness_of
from unidle_collector.federation.report import GROUPED, OTHERS, WINDOWS_S
from unidle_collector.model import Account
from unidle_collector.pergpu import SECOND_NS
from unidle_collector.shards.view import merging
from unidle_collector.shards.view.asking import HOST, Query, Reader, none_answers
from unidle_collector.shards.view.site import Site, advised

SITE_ID = "site_id"
"""Key under which all collectors of a site keep the id that one of them made."""


class OfShards:
    """See federation.gate.Site. A receiver is no reader: shards are asked by this collector's own token."""

    def __init__(self, site: Site, site_id: str, read_token: Secret) -> None:
        self._site, self._site_id, self._read_token = site, site_id, read_token

    async def part(self, request: Request, window_s: float, wanted: Collection[str]) -> Part:
        """See Site; raises NoAnswerError where no shard answers."""
        if not wanted:
            return Part({}, {})
        reader = self._reader(request)
        query: Query = [("window_s", window_s), *(("by", name) for name in wanted)]
        found = await self._site.asking.records(reader, Part, PART, query)
        if not found:
            raise none_answers(reader)
        whole = as_one(together(found)) if reader.gaps else together(found)
        gpus = sum(shard.gpus for shard in await self._site.away(reader))
        by = {name: tuple(_with_away(name, one, gpus) for one in told) for name, told in whole.by.items()}
        return Part(by, whole.persons)

    async def about(self, request: Request) -> About:
        """See Site; raises NoAnswerError where no shard answers."""
        reader = self._reader(request)
        findings = await self._site.findings(reader)
        fleet, health = await asyncio.gather(
            self._site.fleet(reader, WINDOWS_S[0], findings), self._site.health(reader)
        )
        return About(
            site_id=self._site_id,
            site=self._site.site,
            simulated=fleet.simulated,
            sent_ns=self._site.clock_ns(),
            as_of_ns=fleet.time_ns,
            now=now_of(fleet),
            findings=findings,
            recommendations=advised(findings),
            health=wellness_of(health),
        )

    def _reader(self, request: Request) -> Reader:
        headers = {HOST: request.headers.get("host", "").encode("latin-1")}
        if self._read_token:
            headers[b"authorization"] = f"Bearer {self._read_token.reveal()}".encode()
        return Reader(headers)


def together(parts: Mapping[int, Part]) -> Part:
    """The parts of several shards as one: a group is in several of them, and so is a person."""
    by: dict[str, list[Account]] = {}
    persons: dict[str, dict[str, set[str]]] = {}
    for part in parts.values():
        for name, accounts in part.by.items():
            by.setdefault(name, []).extend(accounts)
        for name, groups in part.persons.items():
            for key, who in groups.items():
                persons.setdefault(name, {}).setdefault(key, set()).update(who)
    return Part(
        {name: tuple(merging.accounts(accounts)) for name, accounts in by.items()},
        {name: {key: tuple(sorted(who)) for key, who in groups.items()} for name, groups in persons.items()},
    )


def as_one(whole: Part) -> Part:
    """The same with all groups of a dimension as one."""
    by, persons = dict(whole.by), dict(whole.persons)
    for name in GROUPED:
        if accounts := by.get(name):
            by[name] = (add_accounts(OTHERS, accounts),)
            who = {person for group in whole.persons.get(name, {}).values() for person in group}
            persons[name] = {OTHERS: tuple(sorted(who))}
    return Part(by, persons)


def _with_away(name: str, account: Account, gpus: int) -> Account:
    """Time of GPUs whose shard does not answer is unknown, in the accounts of the whole."""
    if not gpus or name not in ("fleet", "hour"):
        return account
    return merging.with_unknown(account, gpus, (account.end_ns - account.start_ns) / SECOND_NS)
