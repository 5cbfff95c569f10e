"""Tokens: what one is, and the table of those that hold now, looked up by hash.

A token is shown once, when it is made; the state database keeps its SHA-256 only. A write token is one
node's and writes that node's rows only; a read token reads the API and writes nothing.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from unidle_agent.errors import UnidleError

log = logging.getLogger("unidle.collector")

Kind = Literal["write", "read"]
PREFIX: dict[Kind, str] = {"write": "unidle_w_", "read": "unidle_r_"}
"""So that people and secret scanners see what they have before them."""
NOBODY: frozenset[str] = frozenset()
"""The nodes that one without a token may write."""
RELOAD_EACH_S = 5.0
"""How long a token that was made or revoked by `unidle tokens` may go unnoticed."""
USED_SAVED_EACH_S = 300.0


@dataclass(frozen=True, slots=True)
class Token:
    """A token as the state database keeps it; times are ns since the epoch."""

    id: str
    kind: Kind
    name: str
    """Of a write token: the node. Of a read token: what people call it."""
    hash: str
    """SHA-256 of the token, hexadecimal."""
    created_ns: int
    expires_ns: int | None = None
    revoked_ns: int | None = None
    used_ns: int | None = None
    """When it was last seen, to a few minutes; None: never."""

    def holds(self, now_ns: int) -> bool:
        """Is it good for anything at `now_ns`."""
        return (self.expires_ns is None or now_ns < self.expires_ns) and (
            self.revoked_ns is None or now_ns < self.revoked_ns
        )


class Table(Protocol):
    """Where tokens are kept: the state database."""

    def tokens(self) -> list[Token]: ...
    def tokens_revision(self) -> str: ...
    def tokens_used(self, used_ns: dict[str, int]) -> None: ...


def make(kind: Kind, name: str, now_ns: int, expires_ns: int | None = None) -> tuple[str, Token]:
    """A new token: (what to give away, what to keep)."""
    secret = PREFIX[kind] + secrets.token_urlsafe(32)
    return secret, Token(secrets.token_hex(4), kind, name, digest(secret), now_ns, expires_ns)


def digest(secret: str) -> str:
    """What is kept of a token. It is random and long, so that a plain hash is as good as a slow one."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


class Tokens:
    """The tokens that hold, in memory; follows the state database from a thread of its own.

    The shared tokens are those of the settings: one writes any node's rows, one reads. `may_be_open`:
    as long as there has never been a read token, anybody may read (on a loopback address).
    """

    def __init__(
        self,
        table: Table,
        clock_ns: Callable[[], int],
        *,
        shared_write: str = "",
        shared_read: str = "",
        may_be_open: bool = True,
    ) -> None:
        self._table = table
        self._clock_ns = clock_ns
        self._shared = {
            digest(text): kind for kind, text in (("write", shared_write), ("read", shared_read)) if text
        }
        self._may_be_open = may_be_open
        self._by_hash: dict[str, Token] = {}
        self._used_ns: dict[str, int] = {}
        self._revision = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="tokens", daemon=True)
        self.refresh()

    def start(self) -> None:
        """Begin to follow the state database."""
        self._thread.start()

    def stop(self) -> None:
        """Save when tokens were last used, and end."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=30)
        self._save_used()

    def refresh(self) -> None:
        """Take over what `unidle tokens` has changed."""
        revision = self._table.tokens_revision()
        if revision != self._revision:
            self._by_hash = {token.hash: token for token in self._table.tokens()}
            self._revision = revision

    def reading_is_open(self) -> bool:
        """May anybody read. To revoke the last read token does not open it again."""
        return (
            self._may_be_open
            and "read" not in self._shared.values()
            and not any(token.kind == "read" for token in self._by_hash.values())
        )

    def may_read(self, authorization: str) -> bool:
        """Does this Authorization header let one read."""
        return self._find(authorization, "read") is not None

    def may_write(self, authorization: str) -> frozenset[str] | None:
        """The nodes whose rows this Authorization header lets one write; None: any."""
        found = self._find(authorization, "write")
        if found is None:
            return NOBODY
        return None if found is ANY else frozenset((found.name,))

    def _find(self, authorization: str, kind: Kind) -> Token | None:
        scheme, _, secret = authorization.partition(" ")
        if scheme.lower() != "bearer" or not secret:
            return None
        hashed = digest(secret.strip())
        if self._shared.get(hashed) == kind:
            return ANY
        token = self._by_hash.get(hashed)
        now_ns = self._clock_ns()
        if token is None or token.kind != kind or not token.holds(now_ns):
            return None
        self._used_ns[token.id] = now_ns
        return token

    def _follow(self) -> None:
        since_saved_s = 0.0
        while not self._stop.wait(RELOAD_EACH_S):
            since_saved_s += RELOAD_EACH_S
            try:
                self.refresh()
                if since_saved_s >= USED_SAVED_EACH_S:
                    self._save_used()
                    since_saved_s = 0.0
            except UnidleError as error:
                log.warning("tokens: %s; those known so far hold on", error)

    def _save_used(self) -> None:
        used, self._used_ns = self._used_ns, {}
        if used:
            self._table.tokens_used(used)


ANY = Token("", "write", "", "", 0)
"""Stands for a shared token of the settings."""
