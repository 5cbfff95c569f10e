"""Writes the pages of docs/ that the code itself is the source of: `python -m docs.generate [--check]`.

telemetry.md (fields and delays), findings.md (detectors), recommendations.md, settings.md, cli.md, api.md.
With --check nothing is written; the exit code is 1 when a page is stale.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import pkgutil
import sys
import tempfile
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import get_type_hints

from unidle_agent.cli import EXIT_CODES, GROUP, command_parser, summary
from unidle_agent.fields import FIELDS
from unidle_agent.settings import Secret
from unidle_collector import detectors, recommend
from unidle_collector.api import describe, reading_app
from unidle_collector.ingest.tokens import Tokens
from unidle_collector.live import Live
from unidle_collector.settings import CollectorSettings
from unidle_collector.store import Store

HERE = Path(__file__).parent
NOTE = "<!-- Written by `make docs` from the code; edit there. -->\n"

SETTINGS = (
    ("agent", "unidle_agent.config", "AgentSettings"),
    ("collector", "unidle_collector.settings", "CollectorSettings"),
    ("federation", "unidle_collector.federation.settings", "FederationSettings"),
    ("alerts", "unidle_alerts.settings", "AlertsSettings"),
    ("dashboard", "unidle_dashboard.settings", "DashboardSettings"),
    ("reader", "unidle_collector.reader_settings", "ReaderSettings"),
)


def telemetry() -> str:
    """Fields and the three delays, behind the hand-written head."""
    lines = [
        (HERE / "telemetry.head.md").read_text(encoding="utf-8").rstrip(),
        "",
        "## Fields",
        "",
        "One table in the code defines them (`agent/unidle_agent/fields.py`). Kind: a gauge is the value at the",
        "instant, a counter only rises, a state is a code or bit mask. A gauge marked ± is the mean since the row",
        "before, and columns `.min`, `.max` and `.zero` (share of the time at zero) travel beside it where it is read",
        "by NVML; the collector receives them and stores the mean. DCGM names are without `DCGM_FI_`, each",
        "with the factor to base units where it is not 1.",
        "",
        "| field | of | kind | unit | resolution | meaning | NVML | DCGM | OpenTelemetry |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for spec in FIELDS:
        dcgm = ", ".join(name if factor == 1 else f"{name} ×{factor:g}" for name, factor in spec.dcgm)
        cells = (
            f"`{spec.name}`",
            spec.scope,
            f"{spec.kind} ±" if spec.stats else spec.kind,
            spec.unit,
            f"{spec.resolution:g}",
            spec.doc,
            spec.nvml,
            dcgm,
            spec.otel,
        )
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "## Three delays per kind of finding",
        "",
        "Accounting: when the account is right (it is then corrected back to the begin). Finding: how long it must",
        "have lasted before a person is told. Grace: what is not held against a job. All in event time.",
        "",
        "| kind | state | accounting delay, s | finding delay, s | grace |",
        "|---|---|---|---|---|",
    ]
    for make in detectors.makers():
        detector = make(1, 1.0)
        delays = {cause: f"{detector.delay_s(cause):g}".replace("inf", "never") for cause in detector.causes}
        told = sorted(f"{delay} ({cause})" for cause, delay in delays.items())
        delay = told[0].partition(" ")[0] if len({*delays.values()}) == 1 else ", ".join(told)
        state = detector.state or "none by itself"
        lines.append(
            f"| `{detector.kind}` | {state} | {detector.accounting_delay_s:g} | {delay} | {detector.grace} |"
        )
    return "\n".join(lines) + "\n"


def findings() -> str:
    """One section per detector, its docstring."""
    parts = ["# Findings\n", "The same pages: `unidle explain KIND`.\n"]
    for kind, page in detectors.pages().items():
        parts.append(_section(kind, page))
    return "\n".join(parts)


def recommendations() -> str:
    """One section per rule, its docstring."""
    parts = [
        "# Recommendations\n",
        "Nothing is ever executed: each shows its command for a person to read and run.\n",
    ]
    for info in sorted(pkgutil.iter_modules(recommend.__path__), key=lambda item: item.name):
        parts.append(_section(info.name, import_module(f"{recommend.__name__}.{info.name}").__doc__ or ""))
    return "\n".join(parts)


def settings() -> str:
    """Every setting of every role."""
    lines = [
        "# Settings",
        "",
        "One TOML file (`--config`, `UNIDLE_CONFIG`, `./unidle.toml`, `/etc/unidle/unidle.toml`), overridden by",
        "environment variables, overridden by flags; the same names in all three: `period_s` of `[agent]` is",
        "`UNIDLE_AGENT_PERIOD_S` and `--period-s`. A secret has no flag of its own: give it in the environment, or as",
        "a file by `NAME_file`, `UNIDLE_..._NAME_FILE` or `--name-file`.",
    ]
    for section, module, name in SETTINGS:
        cls = getattr(import_module(module), name)
        kinds = get_type_hints(cls)
        lines += ["", f"## [{section}]", "", "| setting | default | meaning |", "|---|---|---|"]
        for field in dataclasses.fields(cls):
            default = "secret" if kinds[field.name] is Secret else f"`{_shown(field.default)}`"
            meaning = field.metadata["doc"]
            low, high = field.metadata["low"], field.metadata["high"]
            if low is not None:
                meaning += f" ({low:g} to {high:g})"
            if field.metadata["choices"]:
                meaning += f" ({' | '.join(field.metadata['choices'])})"
            lines.append(f"| `{field.name}` | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


API_HEAD = """# API of the collector

Below `http://127.0.0.1:9470`; the whole schema, with the type and meaning of every field, is at `/openapi.json`.
Every time is ns since the epoch, every value in base units, unknown is null.

**Tokens.** `Authorization: Bearer TOKEN` with a read token (`unidle tokens create --read NAME`); none is needed on a
loopback address as long as none was made. Read tokens write nothing, write tokens read nothing.

**Pages.** A list answers with at most `limit` items and, where there are more, with
`Link: <?limit=...&after=...>; rel="next"`, relative to the address asked for. A cursor names the last item, not its
number: what comes or goes meanwhile shifts nothing. Where the order is by worth or size (`recommendations`, `jobs`),
an item that moves between two pages can be on both or on neither.

**Arrow.** Lists and `/api/v1/series` come as an Arrow IPC stream with
`Accept: application/vnd.apache.arrow.stream`; the columns are the fields. That is a fraction of the bytes of JSON;
`fields` and `node` of `/api/v1/gpus` ask for less still.

**SIMULATED.** `X-Unidle-Simulated` is on every answer of a collector that holds simulated GPUs, with their number where
others are there, too; each GPU, finding, recommendation and series says it of itself.

"""


def api() -> str:
    """Every path of the collector, from the schema that it serves."""
    with tempfile.TemporaryDirectory() as folder:
        settings = CollectorSettings(data_dir=Path(folder))
        store = Store(settings.data_dir)
        try:
            live = Live(settings, store)
            served = reading_app(live, Tokens(store.state, live.clock_ns))
        finally:
            store.close()
    return API_HEAD + describe.page(served.openapi())


CLI_HEAD = """# Commands

`unidle COMMAND --help` shows the same pages. What a command answers goes to stdout, what it says meanwhile and every
complaint to stderr. `--json` is for scripts: one document, base units, unknown is null, times in ns since the epoch.
Colours are left out where NO_COLOR is set or the output is no terminal; COLUMNS sets the width. Completion of words:
`unidle completion --help`.

| exit code | means |
|---|---|"""


def cli() -> str:
    """The help page of every command."""
    parts = [CLI_HEAD, *(f"| {code} | {meaning} |" for code, meaning in EXIT_CODES), ""]
    for point in sorted(entry_points(group=GROUP), key=lambda item: item.name):
        module = import_module(point.value)
        parts += [f"## unidle {point.name}\n", f"{summary(point)}\n", "```text"]
        parser = command_parser(point.name, module)
        parser.formatter_class = lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=100)
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            parser.print_help()
        parts += [text.getvalue().rstrip(), "```\n"]
    return "\n".join(parts)


def _section(name: str, docstring: str) -> str:
    """A docstring with its indented paragraphs as Markdown."""
    first, _, rest = docstring.strip().partition("\n")
    out = [f"## {name}\n", first, ""]
    for line in rest.splitlines():
        if line and not line.startswith(" "):
            out.append(f"**{line}**  ")
        else:
            out.append(line.removeprefix("    "))
    return "\n".join(out) + "\n"


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(str(item) for item in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


PAGES = {
    "api.md": api,
    "telemetry.md": telemetry,
    "findings.md": findings,
    "recommendations.md": recommendations,
    "settings.md": settings,
    "cli.md": cli,
}


def main() -> int:
    """Write the pages, or with --check say which are stale."""
    check = "--check" in sys.argv[1:]
    stale = []
    for name, build in PAGES.items():
        path, text = HERE / name, NOTE + build()
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if not check:
            path.write_text(text, encoding="utf-8")
    if stale:
        sys.stderr.write(f"docs: {'stale' if check else 'written'}: {', '.join(stale)}\n")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
