"""The pseudonyms of what a scheduler names: those of the agents, because the key is the same."""

from __future__ import annotations

import os

from unidle_agent.config import AgentSettings
from unidle_agent.privacy import Pseudonymiser, pseudonymiser
from unidle_collector.settings import CollectorSettings


def pseudonyms(settings: CollectorSettings) -> Pseudonymiser:
    """By `privacy` and `privacy_key` of the collector; a key of its own is kept in `data_dir`.

    Raises UnidleError where the key is too short or cannot be read.
    """
    agents = AgentSettings(
        privacy=settings.privacy, privacy_key=settings.privacy_key, state_dir=str(settings.data_dir)
    )
    # Who only looks, as another user, must not leave a key that the collector cannot read.
    own = settings.data_dir.is_dir() and settings.data_dir.stat().st_uid == os.geteuid()
    return pseudonymiser(agents, keep=own)


def epoch(token: str) -> str:
    """Which key made a pseudonym such as `user-k3fq-mzxw6ytboi2t`; empty for a plain name."""
    words = token.partition("/")[0].split("-")
    return words[1] if len(words) == 3 and words[0] in ("user", "job", "pod", "namespace") else ""
