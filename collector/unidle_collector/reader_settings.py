"""Settings of the commands that only read: `[reader]` in the TOML file, UNIDLE_READER_*, flags."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from unidle_agent.settings import Secret, add_flags, setting


@dataclass(frozen=True, slots=True)
class ReaderSettings:
    """Where the collector is."""

    collector_url: str = setting("http://127.0.0.1:9470", "address of the collector")
    collector_token: Secret = setting(Secret(), "the collector's read token, where it has one")


def add_reader_flags(parser: argparse.ArgumentParser) -> None:
    """--collector-url, --collector-token-file and --config."""
    add_flags(parser, ReaderSettings)
