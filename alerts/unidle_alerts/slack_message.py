"""The payload of a Slack message: Block Kit, built and validated with slack_sdk's models.

Names come from people and jobs, so everything that is not our own constant text passes `_data`: it
loses control and bidi characters and backticks, `&`, `<`, `>` become entities, and it is cut to a
budget. The budgets add up to less than Slack takes even when every character needs an escape.
Data stands in plain_text objects; the one exception, the code block, is verbatim.
Limits: docs.slack.dev Block Kit reference; the total of about 13,200 is slackapi/bolt-js#2509.
"""

from __future__ import annotations

import html
import urllib.parse
from collections.abc import Iterable, Sequence
from typing import Any

from slack_sdk.models.blocks import (
    ActionsBlock,
    Block,
    ContextBlock,
    HeaderBlock,
    LinkButtonElement,
    MarkdownTextObject,
    PlainTextObject,
    SectionBlock,
)

from unidle_alerts import words
from unidle_alerts.evidence import action, affected, cause_line, evidence_lines
from unidle_alerts.notice import TOP, Notice, Tally, group_cost, headline, lasted, resolved_ns, summary
from unidle_collector.model import Finding, Incident
from unidle_collector.spoken import kind_words

MAX_HEADER_CHARS = 150
MAX_FALLBACK_CHARS = 300
MAX_SENTENCE_CHARS = 300
MAX_LINE_CHARS = 150
MAX_ROW_CHARS = 240
MAX_FOOTER_CHARS = 100
MAX_URL_CHARS = 500
MAX_EVIDENCE = 4
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def payload(notice: Notice, dashboard_url: str = "") -> dict[str, Any]:
    """What is posted to the webhook; raises slack_sdk's SlackObjectFormationError on our own mistakes."""
    return {
        "text": _data(summary(notice), MAX_FALLBACK_CHARS),
        "blocks": [block.to_dict() for block in _blocks(notice, dashboard_url)],
        "mrkdwn": False,
        "unfurl_links": False,
        "unfurl_media": False,
    }


def _blocks(notice: Notice, dashboard_url: str) -> list[Block]:
    header = HeaderBlock(text=_plain(headline(notice), MAX_HEADER_CHARS))
    if notice.kind == "test":
        return [header, _section("A test, sent by hand. Nothing has happened.", words.utc(notice.now_ns))]
    if notice.tally is not None:
        return [header, *_group(notice, notice.tally, dashboard_url)]
    incident = notice.incidents[0]
    body = _opened(notice, incident) if notice.kind == "opened" else _resolved(notice, incident)
    return [header, *body, *_button(dashboard_url, "Open incident", incident), _footer(incident)]


def _opened(notice: Notice, incident: Incident) -> list[Block]:
    finding = incident.finding
    facts = [
        *_job(finding),
        ("Since", f"{words.utc(finding.since_ns)}, {words.span(finding.since_ns, notice.now_ns)}"),
        ("Where", words.size(finding)),
        *([("Waits for", "; ".join(affected(finding.held_back_by)))] if finding.held_back_by else []),
        ("Cost now", words.rate(finding.cost_per_h)),
        ("So far", words.total(finding.cost_so_far)),
        ("Confidence", words.percent(finding.confidence)),
    ]
    do = action(incident)
    found = _first(evidence_lines(finding), MAX_EVIDENCE, "fact")
    title, cause = _data(finding.title, MAX_SENTENCE_CHARS), _data(cause_line(finding), MAX_LINE_CHARS)
    blocks = [_fields(facts), _section("Why", title, f"Cause: {cause}", *_each(found, MAX_LINE_CHARS))]
    if do.text:
        text, note = _data(do.text, MAX_SENTENCE_CHARS), _data(do.note, MAX_LINE_CHARS)
        confirm = _data(f"To confirm: {finding.confirm}", MAX_SENTENCE_CHARS) if finding.confirm else ""
        blocks.append(_section("Do", text, note, confirm))
    if do.command:
        blocks.append(_code(do.command))
    if len(finding.gpus) > 1:
        blocks.append(
            _section("Affected", *_each(_first(affected(finding.gpus), TOP, "node"), MAX_LINE_CHARS))
        )
    return blocks


def _resolved(notice: Notice, incident: Incident) -> list[Block]:
    facts = [*_job(incident.finding), ("Total", words.total(incident.finding.cost_so_far))]
    return [_section(_data(words.sentence(lasted(notice)), MAX_LINE_CHARS)), _fields(facts)]


def _group(notice: Notice, tally: Tally, dashboard_url: str) -> list[Block]:
    kinds = [f"{count:,} {kind_words(kind)}" for kind, count in tally.kinds]
    if others := tally.incidents - sum(count for _, count in tally.kinds):
        kinds.append(f"{others:,} of other kinds")
    rows = _each((_row(each, notice.now_ns) for each in notice.incidents), MAX_ROW_CHARS)
    left = tally.incidents - len(rows)
    more = f"and {left:,} more" if left else ""
    return [
        _section(
            "What", _data(", ".join(kinds), MAX_SENTENCE_CHARS), _data(group_cost(tally), MAX_LINE_CHARS)
        ),
        _section("Worst first" if tally.opened else "Among them", *rows, more),
        *_button(dashboard_url, "Open all incidents", None),
        ContextBlock(elements=[_plain("Told together because many changed at once.", MAX_FOOTER_CHARS)]),
    ]


def _row(incident: Incident, now_ns: int) -> str:
    finding = incident.finding
    if incident.state == "open":
        time = f"for {words.span(finding.since_ns, now_ns)}, {words.rate(finding.cost_per_h)}"
    else:
        time = f"resolved after {words.span(finding.since_ns, resolved_ns(incident))}"
    return f"{words.what(finding)}, {words.size(finding)}, {time}, incident {incident.id}"


def _footer(incident: Incident) -> Block:
    finding = incident.finding
    source = "SIMULATED" if finding.simulated else "measured"
    after = words.span(finding.since_ns, incident.opened_ns)
    told = "at once" if after == "0 s" else f"{after} after it began"
    counters = ", ".join(dict.fromkeys(each.field for each in finding.evidence))
    texts = [
        f"Rule {finding.kind}",
        f"Incident {incident.id}",
        f"Data: {source}" + (f", {counters}" if counters else ""),
        f"Told {told}",
    ]
    return ContextBlock(elements=[_plain(text, MAX_FOOTER_CHARS) for text in texts])


def _job(finding: Finding) -> list[tuple[str, str]]:
    return [("Job", finding.job)] if finding.job else []


def _button(dashboard_url: str, label: str, incident: Incident | None) -> list[Block]:
    """A plain link: it needs no Slack app and no way in from outside."""
    if not dashboard_url:
        return []
    url = f"{dashboard_url.rstrip('/')}/"
    if incident is not None:
        url += "?" + urllib.parse.urlencode({"incident": incident.id}, errors="replace")
    if len(url) > MAX_URL_CHARS:
        return []
    return [ActionsBlock(elements=[LinkButtonElement(text=label, url=url)])]


def _first(lines: Sequence[str], count: int, word: str) -> list[str]:
    left = len(lines) - count
    return [*lines[:count], *([f"and {words.plural(left, 'more ' + word)}"] if left > 0 else [])]


def _each(lines: Iterable[str], limit: int) -> list[str]:
    """Lines of data, each cut on its own, so that a long one hides no other."""
    return [_data(line, limit) for line in lines]


def _fields(facts: Iterable[tuple[str, str]]) -> Block:
    texts = (f"{label}\n{_data(value, MAX_LINE_CHARS)}" for label, value in facts)
    return SectionBlock(fields=[PlainTextObject(text=text, emoji=False) for text in texts])


def _section(*harmless: str) -> Block:
    """Lines that are constant or have passed `_data`."""
    return SectionBlock(text=PlainTextObject(text="\n".join(filter(None, harmless)), emoji=False))


def _plain(text: str, limit: int) -> PlainTextObject:
    return PlainTextObject(text=_data(text, limit), emoji=False)


def _code(command: str) -> Block:
    """Its lines are plain (evidence.action): no backtick in them can end the block."""
    escaped = html.escape(command, quote=False)
    return SectionBlock(text=MarkdownTextObject(text=f"```{escaped}```", verbatim=True))


def _data(text: str, limit: int) -> str:
    """`text` made harmless, at most `limit` characters once escaped."""
    pieces = [_ENTITIES.get(char, char) for char in words.clean(text)]
    if sum(map(len, pieces)) <= limit:
        return "".join(pieces)
    kept, used = [], 1
    for piece in pieces:
        if used + len(piece) > limit:
            break
        kept.append(piece)
        used += len(piece)
    return "".join(kept) + "…"
