"""Accounts of hours that are no longer held in memory, added up from where they are kept.

The collector holds the accounts of eight days in memory. For a longer window the finished hours before that
are read from disk (or PostgreSQL), by whoever asks and beside the collector's thread; what came of it is
kept for the next page and the next look, until an hour joins it.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from unidle_agent.errors import UnidleError
from unidle_agent.wire import Owner
from unidle_collector.accounts.buckets import HOUR_NS
from unidle_collector.accounts.dimensions import Dimensions
from unidle_collector.accounts.hours import MEASURED, with_dimensions
from unidle_collector.accounts.keeping import Keeper
from unidle_collector.accounts.ledger import Code
from unidle_collector.accounts.tally import Tally, pairs_of
from unidle_collector.catalogue import catalogue
from unidle_collector.model import GpuRef
from unidle_collector.pergpu import Floats

RefKey = Callable[[GpuRef, Owner, Dimensions], str | None]
"""The account that the time of a GPU under an owner counts in, with what was kept of its job beside it; None
leaves it out."""

OF_GPU = ("index", "model", "share")
"""Columns of an hour that say what a GPU is."""
MOST_KEPT_BYTES = 64 * 2**20
"""Of results, all together."""


class PastError(UnidleError):
    """The accounts of an hour cannot be read."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question for accounts, with what memory says to it."""

    by: str
    key_of: RefKey
    as_of: Hashable
    """What the keys rest on, beside the hours themselves."""
    start_ns: int
    until_ns: int
    """From here on memory holds every hour that there is."""
    number_of: Callable[[str, str], int | None]
    """Number of a GPU, by node and name, in the members of `now`."""
    now: Tally

    @property
    def in_memory(self) -> bool:
        """Does memory hold all that there can be of the answer."""
        return self.start_ns >= self.until_ns


class PastHours:
    """One question at a time is worked on; the others wait for it."""

    def __init__(self, keeper: Keeper, codes: Sequence[Code]) -> None:
        self._keeper = keeper
        self._codes = [(code.state, code.cause) for code in codes]
        self._results: OrderedDict[Hashable, Tally] = OrderedDict()
        self._lock = threading.Lock()

    def whole(self, asked: Asked) -> Tally:
        """The answer of memory and disk together; raises PastError. Not for the collector's own thread."""
        if asked.in_memory:
            return asked.now
        with self._lock:
            hours = self._keeper.hours(asked.start_ns // HOUR_NS * HOUR_NS, asked.until_ns)
            if not hours:
                return asked.now
            key = (asked.by, asked.as_of, tuple(hours))
            found = self._results.pop(key, None)
            if found is None:
                adding = _Adding(asked, self._codes)
                for begin, read in reversed(hours.items()):  # what was said of a job last holds
                    try:
                        adding.add(read())
                    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
                        raise PastError(
                            f"accounts of {datetime.fromtimestamp(begin // 10**9, UTC):%Y-%m-%d %H:%M} UTC: "
                            f"expected an hour as the collector writes it, came {error}: restore it from a "
                            "backup or remove it"
                        ) from error
                found = adding.tally(min(hours))
            self._keep(key, found)
        return asked.now.plus(found)

    def _keep(self, key: Hashable, found: Tally) -> None:
        self._results[key] = found
        while len(self._results) > 1 and sum(one.nbytes for one in self._results.values()) > MOST_KEPT_BYTES:
            self._results.popitem(last=False)


class _Adding:
    """Adds tables of hours up by group."""

    def __init__(self, asked: Asked, codes: Sequence[tuple[str, str]]) -> None:
        self._asked = asked
        self._code = {f"{state}.{cause}": number for number, (state, cause) in enumerate(codes)}
        self._groups: dict[str, int] = {}
        self._owners: dict[str, Owner] = {}
        self._unnumbered: dict[tuple[str, str], int] = {}
        self._members: set[tuple[int, int]] = set()
        self._known: dict[tuple[str, str, str], int] = {}
        """(Node, GPU, owner) -> its place in the three lists."""
        self._group: list[int] = []
        self._share: list[float] = []
        self._price: list[float] = []
        self._of_code = np.zeros((5, len(codes), 64))
        """[seconds | lost_s | lost_eur | unpriced | lost_j, codes, groups]"""
        self._of_group = np.zeros((5, 64))
        """[seconds of known power | integral and known seconds of either activity, groups]"""

    def add(self, table: pa.Table) -> None:
        """Take an hour's table (see hours.Hour); the newest comes first."""
        table = with_dimensions(table)
        (node, nodes), (gpu, gpus), (owner, owners) = (_encoded(table, n) for n in ("node", "gpu", "owner"))
        both = (node.astype(np.int64) * len(gpus) + gpu) * len(owners) + owner
        encoded = pa.array(both).dictionary_encode()
        place, distinct = encoded.indices.to_numpy(), encoded.dictionary.to_numpy()
        names = [
            (nodes[n], gpus[g], owners[o])
            for n, g, o in zip(
                (distinct // (len(gpus) * len(owners))).tolist(),
                (distinct // len(owners) % len(gpus)).tolist(),
                (distinct % len(owners)).tolist(),
                strict=True,
            )
        ]
        new = [number for number, name in enumerate(names) if name not in self._known]
        if new:
            rows = np.zeros(len(names), dtype=np.int64)
            rows[place[::-1]] = np.arange(place.size)[::-1]  # the first row of each
            about = table.select([*OF_GPU, "team", "partition"]).take(pa.array(rows[new])).to_pylist()
            for number, row in zip(new, about, strict=True):
                kept = Dimensions(row["team"], row["partition"])
                self._meet(names[number], kept, *(row[name] for name in OF_GPU))
            self._grow()
        met = np.array([self._known[name] for name in names], dtype=np.int64)[place]
        self._book(table, np.array(self._group)[met], np.array(self._share)[met], np.array(self._price)[met])

    def _meet(
        self, name: tuple[str, str, str], kept: Dimensions, index: int | None, model: str, share: float
    ) -> None:
        """Remember what a GPU under an owner counts as."""
        node, gpu, text = name
        owner = self._owners.get(text)
        if owner is None:
            owner = self._owners[text] = Owner(**json.loads(text))
        key = self._asked.key_of(GpuRef(node, gpu, index, model), owner, kept)
        entry = catalogue().model(model)
        group = -1 if key is None else self._groups.setdefault(key, len(self._groups))
        self._known[name] = len(self._known)
        self._group.append(group)
        self._share.append(share)
        self._price.append(np.nan if entry is None or entry.eur_per_h is None else entry.eur_per_h / 3600)
        if group >= 0:
            # As the fleet of now numbers it; one that is not there any more behind all of those.
            known = self._asked.number_of(node, gpu)
            if known is None:
                known = 2**31 + self._unnumbered.setdefault((node, gpu), len(self._unnumbered))
            self._members.add((group, known))

    def _book(self, table: pa.Table, group: NDArray[np.int64], share: Floats, price: Floats) -> None:
        """Add the rows of a table, of which group, share and price are known; all [rows]."""
        what, names = _encoded(table, "what")
        seconds, lost_s, lost_j, integral = (
            table[name].to_numpy().astype(np.float64) for name in ("seconds", "lost_s", "lost_j", "integral")
        )
        codes = np.array([-1 if name in MEASURED else self._number_of_code(name) for name in names])[what]
        rows = np.flatnonzero((group >= 0) & (codes >= 0))
        where = codes[rows], group[rows]
        money = (lost_s * price)[rows]
        unpriced = np.isnan(money)
        for sums, values in zip(
            self._of_code,
            (
                (seconds * share)[rows],
                lost_s[rows],
                np.where(unpriced, 0.0, money),
                np.where(unpriced, lost_s[rows], 0.0),
                lost_j[rows],
            ),
            strict=True,
        ):
            np.add.at(sums, where, values)
        for number, name in enumerate(MEASURED):
            if name not in names:
                continue
            mine = np.flatnonzero((group >= 0) & (what == names.index(name)))
            if number == 0:
                np.add.at(self._of_group[0], group[mine], seconds[mine])
            else:
                np.add.at(self._of_group[2 * number - 1], group[mine], integral[mine])
                np.add.at(self._of_group[2 * number], group[mine], seconds[mine])

    def tally(self, first_ns: int) -> Tally:
        """All of it; `first_ns` is the begin of the first hour."""
        count = len(self._groups)
        seconds, lost_s, lost_eur, unpriced, lost_j = self._of_code[..., :count].copy()
        members = np.array(sorted(self._members), dtype=np.int64).reshape(-1, 2)
        return Tally(
            codes=self._asked.now.codes,
            keys=list(self._groups),
            start_ns=max(self._asked.start_ns, first_ns),
            end_ns=self._asked.now.end_ns,
            seconds=seconds,
            lost_s=lost_s,
            lost_eur=lost_eur,
            unpriced=unpriced,
            lost_j=lost_j,
            power_s=self._of_group[0, :count].copy(),
            activity=self._of_group[1:, :count].reshape(2, 2, count).copy(),
            members=pairs_of(members[:, 0], members[:, 1]),
        )

    def _grow(self) -> None:
        need, have = len(self._groups), self._of_group.shape[-1]
        if need > have:
            more = max(need, 2 * have) - have
            self._of_code = np.pad(self._of_code, ((0, 0), (0, 0), (0, more)))
            self._of_group = np.pad(self._of_group, ((0, 0), (0, more)))

    def _number_of_code(self, name: str) -> int:
        """Time under a cause that does not exist any more is unknown."""
        return self._code.get(name, self._code["unknown."])


def _encoded(table: pa.Table, name: str) -> tuple[NDArray[np.int32], list[str]]:
    """A column of texts as numbers of distinct ones."""
    column = table[name]
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    column = column.unify_dictionaries().combine_chunks()
    return column.indices.to_numpy(), column.dictionary.to_pylist()
