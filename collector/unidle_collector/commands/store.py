"""Look after the collector's store: what it holds, whether it is whole, take rows out, put rows in.

  sizes     bytes and time ranges by level: rows (raw), roll-ups of 10 s, 1 min and 1 h, histograms of jobs,
            log, state, accounts
  verify    read every row, every record of the log, the accounts and the state database; exit code 1 when
            anything is wrong
  export    rows as one .parquet or .csv file, which `unidle diagnose` reads, and `unidle store backfill`
  backfill  rows of such a file, or of a Prometheus, into the store, its roll-ups and the accounts; the same
            rows again are not stored again, and hours that hold accounts stay as they are

The first three only read and may be used while the collector runs. For `backfill` stop it first. Times are
ISO 8601 (UTC unless they say otherwise), or how long ago: 90m, 24h, 7d.

Examples:
  unidle store sizes
  unidle store verify --data-dir /var/lib/unidle
  unidle store export week.parquet --from 7d
  unidle store export gpu.csv --from 2026-03-01T08:00 --to 2026-03-01T10:00 --gpu GPU-4f1c --field power_w
  unidle store backfill week.parquet --data-dir /var/lib/unidle-new
  unidle store backfill --prometheus http://127.0.0.1:9090 --from 7d
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from rich.table import Table

from unidle_agent.errors import UsageError
from unidle_agent.settings import load
from unidle_agent.wire import Batch
from unidle_collector.accounts.backfilled import Booked, PastAccounts
from unidle_collector.scheduler.names import pseudonyms
from unidle_collector.screen import screen
from unidle_collector.settings import CollectorSettings
from unidle_collector.store.backfill import backfill, batches_of_export
from unidle_collector.store.errors import StoreError
from unidle_collector.store.looking import Level, levels_of, problems_of, segments_of
from unidle_collector.store.opening import open_store
from unidle_collector.store.reader import Reader

_AGO = re.compile(r"(\d+(?:\.\d+)?)(m|h|d)")
ACTIONS = ("sizes", "verify", "export", "backfill")
_SECONDS = {"m": 60, "h": 3600, "d": 86_400}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("what", choices=ACTIONS, metavar="|".join(ACTIONS), help="what to do; see above")
    parser.add_argument("file", nargs="?", type=Path, help="of export and backfill: a .parquet or .csv file")
    parser.add_argument("--config", metavar="FILE", help="TOML file with the settings of the collector")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of the store (default: the collector's)")
    parser.add_argument(
        "--from",
        dest="start",
        default="24h",
        metavar="TIME",
        help="of export and --prometheus (default: 24h)",
    )
    parser.add_argument(
        "--to", dest="end", default="0m", metavar="TIME", help="of export and --prometheus (default: now)"
    )
    parser.add_argument("--node", action="append", default=[], help="export: only this node; may be repeated")
    parser.add_argument("--gpu", action="append", default=[], help="export: only this GPU; may be repeated")
    parser.add_argument(
        "--field", action="append", default=[], help="export: only this field; may be repeated"
    )
    parser.add_argument("--json", action="store_true", help="sizes and verify: for machines")
    server = parser.add_argument_group("backfill from a Prometheus instead of a file")
    server.add_argument("--prometheus", metavar="URL", help="base address of its API")
    server.add_argument("--match", default="", metavar="LABELS", help="only series with these labels")
    server.add_argument("--bearer-token-file", type=Path, metavar="FILE", help="file that holds its token")
    server.add_argument("--ca-file", default="", metavar="FILE", help="https: who signed its certificate")


def run(args: argparse.Namespace) -> int:
    """Do what was asked; 1 when `verify` finds something wrong."""
    settings = load(CollectorSettings, "collector", args)
    if args.what == "backfill" and bool(args.file) == bool(args.prometheus):
        raise UsageError("expected either a file or --prometheus URL: unidle store backfill FILE.parquet")
    if args.what == "export" and args.file is None:
        raise UsageError("expected a file: unidle store export FILE.parquet")
    if args.what in ("sizes", "verify") and args.file is not None:
        raise UsageError(f"{args.what} takes no file, came {str(args.file)!r}: --data-dir names the store")
    if args.what == "sizes":
        return _sizes(levels_of(settings.data_dir), as_json=args.json)
    if args.what == "verify":
        return _verify(settings.data_dir, as_json=args.json)
    if args.what == "export":
        return _export(settings.data_dir, args)
    return _backfill(settings, args)


def _backfill(settings: CollectorSettings, args: argparse.Namespace) -> int:
    store = open_store(settings)
    try:
        rows = _past(settings, args) if args.prometheus else batches_of_export(args.file)
        accounts = PastAccounts(settings.data_dir / "accounts", store.keep_state_ns, time.time_ns())
        done = backfill(store, rows, progress=_say_rows, told=accounts.take)
        booked = accounts.finish()
    finally:
        store.close()
    _say("")
    print(f"{done.rows} rows stored; {done.known} batches were in the store already")
    print(_booked(booked))
    return 0


def _booked(booked: Booked) -> str:
    """What became of the accounts, in a sentence."""
    if booked == Booked():
        return "no accounts: the rows are of less than one sampling interval"
    left = [f"{booked.held} had accounts already"] if booked.held else []
    left += [f"{booked.partial} not whole"] if booked.partial else []
    left += [f"{booked.old} of longer ago than keep_state_days"] if booked.old else []
    more = f" (hours left as they are: {', '.join(left)})" if left else ""
    return f"accounts of {booked.hours} hours booked{more}; nothing is told of the past, findings are of now"


def _past(settings: CollectorSettings, args: argparse.Namespace) -> Iterator[Batch]:
    """What a Prometheus has of the time asked for."""
    # Only here: the other actions do without its client.
    from unidle_collector.prometheus.api import Api, token_of
    from unidle_collector.prometheus.backfill import batches

    now_ns = time.time_ns()
    start_s, end_s = (_instant(text, now_ns) / 1e9 for text in (args.start, args.end))
    api = Api(args.prometheus, token=token_of(args.bearer_token_file), ca_file=args.ca_file)
    try:
        yield from batches(api, start_s, end_s, pseudonyms(settings), match=args.match)
    finally:
        api.close()


def _sizes(levels: list[Level], *, as_json: bool) -> int:
    if as_json:
        print(json.dumps([asdict(level) for level in levels], indent=2))
        return 0
    table = Table("level", "files", "MB", "from", "to", box=None)
    for level in levels:
        size = f"{level.size_bytes / 1e6:.1f}"
        table.add_row(level.name, str(level.files), size, _time(level.start_ns), _time(level.end_ns))
    screen().print(table)
    return 0


def _verify(directory: Path, *, as_json: bool) -> int:
    problems = problems_of(directory, lambda done, of: _say(f"verify: {done} of {of} files"))
    _say("")
    if as_json:
        print(json.dumps({"ok": not problems, "problems": problems}, indent=2))
    else:
        print("\n".join(problems) or f"{directory}: nothing wrong")
    return 1 if problems else 0


def _export(directory: Path, args: argparse.Namespace) -> int:
    now_ns = time.time_ns()
    start_ns, end_ns = _instant(args.start, now_ns), _instant(args.end, now_ns)
    if start_ns >= end_ns:
        raise UsageError(f"expected --from before --to, came {_time(start_ns)} and {_time(end_ns)} UTC")
    if not args.file.absolute().parent.is_dir():
        raise StoreError(f"{args.file}: expected a folder to write the file into, there is none")
    reader = Reader(segments_of(directory))
    try:
        rows = reader.export(
            args.file,
            start_ns,
            end_ns,
            nodes=args.node,
            gpus=args.gpu,
            fields=args.field,
        )
    finally:
        reader.close()
    if not rows:
        args.file.unlink()
        only = " of " + ", ".join((*args.node, *args.gpu)) if args.node or args.gpu else ""
        raise StoreError(
            f"expected rows{only} from {_time(start_ns)} to {_time(end_ns)} UTC, there are none: "
            "unidle store sizes says what times there are, /api/v1/gpus what GPUs"
        )
    print(f"{rows} rows written to {args.file}; the newest minutes, still in the log, are not among them")
    return 0


def _instant(text: str, now_ns: int) -> int:
    """A time of a flag in ns."""
    ago = _AGO.fullmatch(text)
    if ago:
        return now_ns - int(float(ago[1]) * _SECONDS[ago[2]] * 1e9)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"expected a time such as 2026-03-01T08:00 or 24h, came {text!r}") from error
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()) * 1_000_000_000


def _time(time_ns: int | None) -> str:
    if time_ns is None:
        return "-"
    return datetime.fromtimestamp(time_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _say_rows(rows: int) -> None:
    _say(f"backfill: {rows} rows")


def _say(text: str) -> None:
    """One line on the terminal that is written over; nothing where nobody looks."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
