"""No group of fewer than k persons is told apart, and none can be worked out by taking the rest away.

Groups that are too small become one, `others`. Where that one is still too small, the smallest of the
others joins it: else the whole minus what is told would be just that group. So the sum always stays
the whole, and a whole of fewer than k persons is told as one group. A group that nobody works in (free
GPUs) names nobody; it may be told, and it hides nobody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

from unidle_collector.federation.adding import add_accounts
from unidle_collector.federation.report import OTHERS
from unidle_collector.model import Account


def merge_small(
    accounts: Sequence[Account], persons: Mapping[str, Set[str]], k: int
) -> tuple[list[Account], int]:
    """Accounts of disjoint groups with the small ones merged, and how many were merged.

    `persons`: key of an account -> who works in it; a key that is not there has nobody.
    """
    people = {account.key: frozenset(persons.get(account.key, ())) for account in accounts}
    hidden = [key for key, who in people.items() if 0 < len(who) < k]
    left = sorted((key for key in people if key not in hidden), key=lambda key: (len(people[key]), key))
    while hidden and left and len(frozenset[str]().union(*(people[key] for key in hidden))) < k:
        hidden.append(left.pop(0))
    if not hidden:
        return list(accounts), 0
    told = [account for account in accounts if account.key not in hidden]
    merged = add_accounts(OTHERS, [account for account in accounts if account.key in hidden])
    return [*told, merged], len(hidden)
