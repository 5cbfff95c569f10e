"""Pseudonyms: users and names of jobs and pods become keyed tokens before anything is stored or sent.

A token is HMAC-SHA256(site key, "kind:value"), cut to 60 bits, in base32: `user-k3fq-mzxw6ytboi2t`. The
middle part, the epoch, is the key's own fingerprint: a new key begins a new epoch, and tokens of two epochs
cannot be taken for each other. The same key on all nodes gives the same person the same token everywhere.
Without the key a token says nothing, and names cannot be tried out; who has it can: a token is still
personal data (GDPR, article 4(5)). Job ids that are numbers stay, so that one can talk about a job.

The setting `privacy = internal` leaves names as they are.
"""

from __future__ import annotations

import base64
import hmac
import logging
import os
import re
import secrets
from dataclasses import replace
from pathlib import Path

from unidle_agent.config import AgentSettings
from unidle_agent.errors import SettingError, UnidleError
from unidle_agent.wire import Owner

log = logging.getLogger("unidle.agent")

KEY_FILE = "privacy.key"
MIN_KEY_CHARACTERS = 16
"""A shorter key could be guessed, and then every name be tried."""
TOKEN_CHARACTERS = 12
EPOCH_CHARACTERS = 4
JOB_NUMBER = re.compile(r"\d+(_\d+)?([.+]\d+)?")
"""Slurm's ids of jobs, array tasks (13_1), steps (13.0) and parts of heterogeneous jobs (13+1)."""
MAX_REMEMBERED = 4096


class Pseudonymiser:
    """Hides names under `key`; with the key None it leaves them as they are."""

    def __init__(self, key: bytes | None) -> None:
        self._key = key
        self.epoch = "" if key is None else self._token("epoch:", EPOCH_CHARACTERS)
        """Fingerprint of the key; it does not help to find it."""
        self._owners: dict[Owner, Owner] = {}

    def token(self, kind: str, value: str) -> str:
        """The pseudonym of one value; the empty text stays empty."""
        if self._key is None or not value:
            return value
        return f"{kind}-{self.epoch}-{self._token(f'{kind}:{value}', TOKEN_CHARACTERS)}"

    def owner(self, owner: Owner) -> Owner:
        """`owner` as it may be stored and sent."""
        if self._key is None:
            return owner
        known = self._owners.get(owner)
        if known is None:
            if len(self._owners) >= MAX_REMEMBERED:
                self._owners.clear()
            known = self._owners[owner] = replace(
                owner,
                job=self._each("job", owner.job),
                user=self._each("user", owner.user),
                used_by=self._each("job", owner.used_by),
            )
        return known

    def _each(self, kind: str, joined: str) -> str:
        """The pseudonyms of names joined by commas; numbers of jobs stay."""
        return ",".join(self._one(kind, name) for name in joined.split(","))

    def _one(self, kind: str, name: str) -> str:
        if kind == "job" and JOB_NUMBER.fullmatch(name):
            return name
        space, slash, pod = name.partition("/")
        if kind == "job" and slash:  # the pods of one namespace stay together
            return f"{self.token('namespace', space)}/{self.token('pod', pod)}"
        return self.token(kind, name)

    def _token(self, message: str, characters: int) -> str:
        assert self._key is not None
        digest = hmac.digest(self._key, message.encode(), "sha256")
        return base64.b32encode(digest).decode().lower()[:characters]


def pseudonymiser(settings: AgentSettings, *, keep: bool = True) -> Pseudonymiser:
    """What the settings ask for; raises UnidleError where a key is too short or cannot be read.

    Without `privacy_key` the key of the state folder counts. Where there is none, one is made, and kept
    there if `keep`; a folder that cannot be written makes it a key for this run alone, which is said.
    """
    if settings.privacy == "internal":
        return Pseudonymiser(None)
    given = settings.privacy_key.reveal()
    if given:
        if len(given) < MIN_KEY_CHARACTERS:
            raise SettingError(
                "agent.privacy_key",
                f"at least {MIN_KEY_CHARACTERS} random characters, e.g. of openssl rand -hex 32",
                f"{len(given)} characters",
                "privacy_key",
            )
        return Pseudonymiser(given.encode())
    return Pseudonymiser(_own_key(settings.state_path / KEY_FILE, keep=keep))


def _own_key(file: Path, *, keep: bool) -> bytes:
    try:
        key = file.read_text(encoding="ascii").strip()
    except (PermissionError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UnidleError(f"{file}: expected the key of the pseudonyms, it cannot be read ({why})") from None
    except OSError:  # it is not there, or the disk is sick: that stops no sampling
        key = ""
    if len(key) >= MIN_KEY_CHARACTERS:
        return key.encode()
    key = secrets.token_hex(32)
    if keep:
        _write_key(file, key)
    return key.encode()


def _write_key(file: Path, key: str) -> None:
    """Leave the key for the next start, whole or not at all, for its owner's eyes only."""
    draft = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(key + "\n")
            out.flush()
            os.fsync(out.fileno())
        draft.replace(file)
    except OSError as error:
        log.warning(
            "no privacy_key is set and %s cannot be written (%s): pseudonyms hold until this agent stops",
            file,
            error.strerror,
        )
        return
    log.info(
        "no privacy_key is set: made one in %s; give all nodes the same one, so that a user has the same "
        "pseudonym everywhere",
        file,
    )
