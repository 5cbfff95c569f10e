"""How rows travel through NATS: subjects and the shard of a node, the same for agents and collectors.

    unidle.rows.SHARD.NODE    batches, kept by the stream UNIDLE
    unidle.reply.NODE         what a collector asks of an agent; kept by nobody

The number of shards is part of the protocol: were it a setting, an agent that has another one would
publish where nobody listens.
"""

from __future__ import annotations

import hashlib
import re

SHARDS = 16
"""Most collectors that share a fleet; a shard of 100,000 GPUs has 6,250, fewer than one collector takes."""
STREAM = "UNIDLE"
ROWS = "unidle.rows"
SCHEMES = ("nats://", "tls://")

_PLAIN = re.compile(r"[A-Za-z0-9_-]")
_ESCAPED = re.compile(r"=([0-9a-f]+)=")


def shard_of(node: str) -> int:
    """The shard of a node: even, and the same for ever."""
    return int.from_bytes(hashlib.sha256(node.encode()).digest()[:8]) % SHARDS


def token_of(node: str) -> str:
    """A node's name as one token of a subject: a dot would begin another, a star would mean all."""
    return "".join(char if _PLAIN.match(char) else f"={ord(char):x}=" for char in node)


def node_of(token: str) -> str:
    """The name that `token_of` took."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), token)


def rows_subject(node: str) -> str:
    """Where a node publishes its batches."""
    return f"{ROWS}.{shard_of(node)}.{token_of(node)}"


def reply_subject(node: str) -> str:
    """Where it listens to what collectors ask."""
    return f"unidle.reply.{token_of(node)}"


def is_nats(url: str) -> bool:
    """Is this the address of NATS, or else of a collector."""
    return url.startswith(SCHEMES)
