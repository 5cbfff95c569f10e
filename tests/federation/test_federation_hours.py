"""The site's hours: added up anew while they change, and kept once they do not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tests.federation.reports import account

from unidle_collector.accounts.buckets import HOUR_NS
from unidle_collector.federation.parts import Hours
from unidle_collector.model import Account


class CountedLedger:
    """Every hour has an account; remembers which were added up."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def accounts(self, key_of: Any, start_ns: int, end_ns: int) -> list[Account]:
        self.asked.append(start_ns // HOUR_NS)
        return [account(key_of(None), productive=(end_ns - start_ns) / 1e9)]


def test_only_hours_that_can_still_change_are_added_up_again() -> None:
    ledger, window = CountedLedger(), SimpleNamespace(time_ns=1000 * HOUR_NS + HOUR_NS // 2)
    live: Any = SimpleNamespace(window=window, engine=SimpleNamespace(ledger=ledger))
    hours = Hours()
    told = hours.accounts(live)
    assert [int(one.key) // HOUR_NS for one in told] == list(range(976, 1001))
    assert told[-1].seconds["productive"] == 1800.0
    ledger.asked.clear()
    window.time_ns += 60 * 10**9
    again = hours.accounts(live)
    assert ledger.asked == [998, 999, 1000]
    assert again[-1].seconds["productive"] == 1860.0
    assert again[:-1] == told[:-1]
    ledger.asked.clear()
    window.time_ns += HOUR_NS
    assert len(hours.accounts(live)) == 25
    assert ledger.asked == list(range(977, 1002))
