"""The policy of a site: what it lets cross, and to whom. A TOML file that only this site holds.

    smallest_group = 5                    # persons behind a model or a team that is told apart

    [share]
    anywhere = ["fleet.now", "accounts.fleet", "findings.counts", "health"]
    inside = ["accounts.model", "accounts.team"]       # also to receivers of the site's own jurisdiction

    [[receiver]]
    name = "group-hq"
    jurisdiction = "EU"
    token_file = "/etc/unidle/federation-group-hq.token"

Without the file nothing crosses. A receiver is known by its token; its jurisdiction is what this file
says, never what it says of itself.
"""

from __future__ import annotations

import hmac
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unidle_agent.errors import SettingError, UsageError, reason
from unidle_agent.settings import Secret
from unidle_collector.federation.report import PERSONAL, SHARES

LEAST_GROUP = 2
LEAST_TOKEN = 20
"""Characters; a shorter one can be guessed."""


@dataclass(frozen=True, slots=True)
class Receiver:
    """A federation that this site answers."""

    name: str
    jurisdiction: str
    token: Secret


@dataclass(frozen=True, slots=True)
class Policy:
    """What crosses to whom."""

    jurisdiction: str
    """Of the site."""
    anywhere: frozenset[str] = frozenset()
    inside: frozenset[str] = frozenset()
    smallest_group: int = 5
    receivers: tuple[Receiver, ...] = ()

    def receiver(self, authorization: str) -> Receiver | None:
        """Whose token this Authorization header bears."""
        found = None
        for one in self.receivers:  # all of them, so that the time taken says nothing
            if hmac.compare_digest(authorization.encode(), f"Bearer {one.token.reveal()}".encode()):
                found = one
        return found

    def same_jurisdiction(self, receiver: Receiver) -> bool:
        """Is the receiver where the site is; what is not said is the same as nothing."""
        here, there = self.jurisdiction.casefold(), receiver.jurisdiction.casefold()
        return bool(here) and here == there

    def shared_with(self, receiver: Receiver) -> frozenset[str]:
        """What of SHARES may cross to `receiver`."""
        if self.same_jurisdiction(receiver):
            return self.anywhere | self.inside
        return self.anywhere - PERSONAL


def load_policy(path: Path, jurisdiction: str) -> Policy:
    """Read the policy of a site in `jurisdiction`; raises SettingError naming what is wrong in it."""
    document = read_toml(path, {"smallest_group", "share", "receiver"})
    share = document.get("share", {})
    check_keys("share", share, {"anywhere", "inside"}, path)
    anywhere, inside = (
        _shares(f"share.{name}", share.get(name, []), path) for name in ("anywhere", "inside")
    )
    if wrong := sorted(anywhere & PERSONAL):
        raise SettingError(
            "share.anywhere",
            "nothing that leads to a person: that may only stand in inside",
            wrong,
            str(path),
        )
    smallest = document.get("smallest_group", 5)
    if not isinstance(smallest, int) or isinstance(smallest, bool) or smallest < LEAST_GROUP:
        raise SettingError("smallest_group", f"a whole number from {LEAST_GROUP}", smallest, str(path))
    receivers = tuple(_receiver(entry, path) for entry in tables(document, "receiver", path))
    if len({one.name for one in receivers}) < len(receivers):
        raise SettingError("receiver.name", "a name of its own for each", "one twice", str(path))
    if len({one.token for one in receivers}) < len(receivers):
        raise SettingError("receiver.token_file", "a token of its own for each", "one twice", str(path))
    return Policy(jurisdiction, anywhere, inside, smallest, receivers)


def _shares(key: str, raw: object, path: Path) -> frozenset[str]:
    if not isinstance(raw, list) or not all(isinstance(item, str) for item in raw):
        raise SettingError(key, "a list of texts", raw, str(path))
    if unknown := [item for item in raw if item not in SHARES]:
        raise SettingError(key, f"some of {', '.join(SHARES)}", unknown[0], str(path))
    return frozenset(raw)


def _receiver(entry: Mapping[str, Any], path: Path) -> Receiver:
    check_keys("receiver", entry, {"name", "jurisdiction", "token_file"}, path)
    name, jurisdiction = entry.get("name"), entry.get("jurisdiction", "")
    if not isinstance(name, str) or not name:
        raise SettingError("receiver.name", "a text", name, str(path))
    if not isinstance(jurisdiction, str):
        raise SettingError("receiver.jurisdiction", "a text", jurisdiction, str(path))
    return Receiver(name, jurisdiction, read_token("receiver.token_file", entry.get("token_file"), path))


# -- reading such files; the list of sites is one, too --------------------------------------------


def read_toml(path: Path, keys: set[str]) -> dict[str, Any]:
    """The document in `path`, which has no other keys than `keys`."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: expected a readable TOML file: {reason(error)}") from error
    check_keys("the file", document, keys, path)
    return document


def check_keys(what: str, entry: object, keys: set[str], path: Path) -> None:
    """A misspelt key of a policy must not be taken for silence."""
    if not isinstance(entry, Mapping):
        raise SettingError(what, "a table", entry, str(path))
    if unknown := sorted(set(entry) - keys):
        raise SettingError(what, f"no other keys than {', '.join(sorted(keys))}", unknown[0], str(path))


def tables(document: Mapping[str, Any], name: str, path: Path) -> list[Mapping[str, Any]]:
    """The tables [[name]] of a document."""
    entries = document.get(name, [])
    if not isinstance(entries, list):
        raise SettingError(name, f"tables [[{name}]]", entries, str(path))
    return entries


def read_token(key: str, file: object, path: Path) -> Secret:
    """The token in the file that an entry names."""
    if not isinstance(file, str) or not file:
        raise SettingError(key, "the path of a file that holds a token", file, str(path))
    try:
        text = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(key, f"a readable file ({reason(error)})", file, str(path)) from error
    if len(text) < LEAST_TOKEN:
        raise SettingError(key, f"a file with a token of at least {LEAST_TOKEN} characters", file, str(path))
    return Secret(text)
