"""Make, list, replace and revoke the tokens that nodes push with and readers read with.

A node's token writes that node's rows and nothing else. A read token reads the API and writes nothing;
as soon as one was made, reading needs one. A token is shown once; the collector keeps its hash. Run it
where the collector runs, with the same data_dir; a running collector takes notice within five seconds.

The one push_token of the collector's settings, which writes any node's rows, goes on to work: for a few
machines it is enough. Where many people have root on nodes, give each node its own.

Examples:
  unidle tokens create --node gpu-001
  unidle tokens create --node gpu-001 --node gpu-002 --write-to /root/tokens   # gpu-001.token, ...
  unidle tokens create --read grafana --expires-days 90
  unidle tokens list --json | jq '.[] | select(.used_ns == null)'       # never used
  unidle tokens rotate 5f0c21aa --keep-old-h 24
  unidle tokens revoke 5f0c21aa
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from unidle_agent.errors import UnidleError, UsageError
from unidle_agent.settings import load
from unidle_collector.ingest.tokens import Kind, Token, make
from unidle_collector.settings import CollectorSettings
from unidle_collector.store import State
from unidle_collector.store.opening import open_shared_state

HOUR_NS = 3600 * 10**9
DAY_NS = 24 * HOUR_NS


class TokenError(UnidleError):
    """There is no such token, or it cannot be made."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """What to do, and to which."""
    where = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    for each in (parser, where):  # before the action or behind it
        each.add_argument("--config", metavar="FILE", help="TOML file with the settings of the collector")
        each.add_argument("--data-dir", metavar="DIR", help="folder of the store (default: the collector's)")
    actions = parser.add_subparsers(dest="action", required=True, metavar="create|list|rotate|revoke")
    create = actions.add_parser("create", parents=[where], help="make tokens, each shown once")
    whose = create.add_mutually_exclusive_group(required=True)
    whose.add_argument("--node", action="append", metavar="NODE", help="a token that writes this node's rows")
    whose.add_argument(
        "--read", action="append", metavar="NAME", help="a token that reads; NAME is for the list"
    )
    create.add_argument(
        "--expires-days", type=float, metavar="DAYS", help="days after which it is good for nothing"
    )
    create.add_argument(
        "--write-to", type=Path, metavar="DIR", help="folder for NAME.token files (mode 600); shows nothing"
    )
    listed = actions.add_parser(
        "list", parents=[where], help="every token: whose, since when, until when, last used"
    )
    listed.add_argument("--json", action="store_true", help="one JSON list, for machines; without hashes")
    rotate = actions.add_parser(
        "rotate", parents=[where], help="make a new token in place of one; the old goes on for a while"
    )
    rotate.add_argument("id", help="of the token, from the list")
    rotate.add_argument(
        "--keep-old-h", type=float, default=24.0, metavar="HOURS", help="hours that the old one still holds"
    )
    rotate.add_argument(
        "--write-to", type=Path, metavar="DIR", help="folder for the NAME.token file (mode 600)"
    )
    revoke = actions.add_parser("revoke", parents=[where], help="end tokens now")
    revoke.add_argument("id", nargs="+", help="of the token, from the list")


def run(args: argparse.Namespace) -> int:
    """Change or show the table of tokens."""
    settings = load(CollectorSettings, "collector", args)
    now_ns = time.time_ns()
    for flag in ("expires_days", "keep_old_h"):
        if (getattr(args, flag, None) or 0.0) < 0:
            name = flag.replace("_", "-")
            raise UsageError(f"--{name}: expected 0 or more, came {getattr(args, flag):g}")
    with _state(settings) as state:
        if args.action == "create":
            kind: Kind = "write" if args.node else "read"
            expires_ns = None if args.expires_days is None else now_ns + int(args.expires_days * DAY_NS)
            _give(
                [make(kind, name, now_ns, expires_ns) for name in args.node or args.read],
                state,
                args.write_to,
            )
        elif args.action == "list":
            _show_json(state.tokens(), now_ns) if args.json else _show(state.tokens(), now_ns)
        elif args.action == "rotate":
            (old,) = _holding(state, [args.id], now_ns)
            fresh = make(old.kind, old.name, now_ns, old.expires_ns)
            _give([fresh], state, args.write_to)
            state.save_tokens([replace(old, revoked_ns=now_ns + int(args.keep_old_h * HOUR_NS))])
        else:
            ended = [replace(token, revoked_ns=now_ns) for token in _holding(state, args.id, now_ns)]
            state.save_tokens(ended)
            for token in ended:
                print(f"revoked {token.id} ({token.kind}, {token.name}); it holds for at most 5 s more")
    return 0


@contextmanager
def _state(settings: CollectorSettings) -> Iterator[State]:
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o750)
    state = open_shared_state(settings)
    try:
        yield state
    finally:
        state.close()


def _holding(state: State, ids: Sequence[str], now_ns: int) -> list[Token]:
    known = {token.id: token for token in state.tokens()}
    for one in ids:
        if one not in known or not known[one].holds(now_ns):
            raise TokenError(f"expected the id of a token that holds, came {one!r}: see unidle tokens list")
    return [known[one] for one in ids]


def _give(made: Sequence[tuple[str, Token]], state: State, folder: Path | None) -> None:
    """Keep the hashes first: a token that was given away and is not known would be a riddle."""
    for _, token in made:
        if not token.name or "/" in token.name or token.name.startswith(".") or len(token.name) > 256:
            raise TokenError(f"expected a name of 1 to 256 characters without '/', came {token.name!r}")
    state.save_tokens([token for _, token in made])
    for secret, token in made:
        if folder is None:
            print(f"{token.name}  {token.id}  {secret}")
            continue
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / f"{token.name}.token"
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secret + "\n")
    if folder is not None:
        print(f"{len(made)} tokens in {folder}, each readable by its owner only")


def _show(tokens: Sequence[Token], now_ns: int) -> None:
    if not tokens:
        print("no tokens: nodes push with the one push_token; unidle tokens create --node NODE makes one")
        return
    rows = [("id", "kind", "name", "created", "holds until", "last used")]
    for token in tokens:
        ends = [at_ns for at_ns in (token.expires_ns, token.revoked_ns) if at_ns is not None]
        until = _day(min(ends)) if ends else "for ever"
        ended = "" if token.holds(now_ns) else " (over)"
        used = _day(token.used_ns) if token.used_ns else "never"
        rows.append((token.id, token.kind, token.name, _day(token.created_ns), until + ended, used))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _show_json(tokens: Sequence[Token], now_ns: int) -> None:
    names = ("id", "kind", "name", "created_ns", "expires_ns", "revoked_ns", "used_ns")
    rows = [{**{n: getattr(token, n) for n in names}, "holds": token.holds(now_ns)} for token in tokens]
    print(json.dumps(rows, indent=2))


def _day(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M")
