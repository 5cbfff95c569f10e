"""What a message says, and what no message may hold: markup from data, personal data, too much text."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes import SECOND_NS, START_NS, as_text, make_incident, make_recommendation, resolve

from unidle_alerts.notice import Notice, Tally, summary
from unidle_alerts.notifiers.stdout import Stdout
from unidle_alerts.privacy import permitted
from unidle_alerts.slack_message import payload
from unidle_collector.model import CauseShare, Cost, Evidence, Finding, GpuRef, Incident, Recommendation

KINDS = ("opened", "resolved", "passed", "group", "test")
DASHBOARD = "https://unidle.example.org"
NOW_NS = START_NS + 600 * SECOND_NS


def notice_of(kind: str, incident: Incident, site: str = "eu-fra-1") -> Notice:
    if kind in ("resolved", "passed"):
        incident = resolve(incident, START_NS + 420 * SECOND_NS)
    simulated = incident.finding.simulated
    if kind == "test":
        return Notice("test", NOW_NS, site, simulated)
    if kind == "group":
        tally = Tally(9_000, 900, 100, ((incident.finding.kind, 10_000),), "critical", 2.4e5, 3)
        return Notice("group", NOW_NS, site, simulated, (incident,) * 5, tally)
    return Notice(kind, NOW_NS, site, simulated, (incident,))  # type: ignore[arg-type]


def texts(document: Any) -> Iterator[str]:
    """Every text that Slack would show."""
    if isinstance(document, dict):
        for key, value in document.items():
            if key != "url":
                yield from texts(value)
    elif isinstance(document, list):
        for value in document:
            yield from texts(value)
    elif isinstance(document, str):
        yield document


def shown(document: dict[str, Any]) -> str:
    return "\n".join(texts(document))


def check_limits(document: dict[str, Any]) -> None:
    """Section 3 of the Block Kit limits, and the undocumented total."""
    blocks = document["blocks"]
    assert 1 <= len(blocks) <= 50
    assert document["text"].strip()
    assert len(as_text(document)) < 12_000
    for block in blocks:
        match block["type"]:
            case "header":
                assert 1 <= len(block["text"]["text"]) <= 150
                assert block["text"]["type"] == "plain_text"
            case "section":
                assert ("text" in block) or block["fields"]
                if "text" in block:
                    assert 1 <= len(block["text"]["text"]) <= 3000
                assert len(block.get("fields", [])) <= 10
                assert all(1 <= len(each["text"]) <= 2000 for each in block.get("fields", []))
            case "actions":
                assert 1 <= len(block["elements"]) <= 25
                assert all(len(each["text"]["text"]) <= 75 for each in block["elements"])
                assert all(len(each["url"]) <= 3000 for each in block["elements"])
            case "context":
                assert 1 <= len(block["elements"]) <= 10
                assert all(each["text"] for each in block["elements"])
            case other:
                pytest.fail(f"an unexpected block: {other}")


NASTY = [
    "<!channel>", "<https://evil.example|click>", "@here", "`", "```", "\n", "\u202e", "\u200b", "&", "&amp;",
    '"', "\\", "*", "_", "<", ">", "\x1b[31m", "\ud83d", "x" * 500, "<" * 400, "&" * 400, '"' * 400,
]  # fmt: skip
hostile = st.one_of(
    st.text(max_size=60),
    st.lists(st.one_of(st.sampled_from(NASTY), st.text(max_size=5)), max_size=8).map("".join),
    st.sampled_from(NASTY).map(lambda text: text * 50),
)
numbers = st.one_of(st.none(), st.floats(0, 1e18, allow_nan=False), st.just(0.0))
costs = st.builds(Cost, st.floats(0, 1e12), numbers, numbers)


@st.composite
def incidents(draw: st.DrawFn) -> Incident:
    gpu = st.builds(GpuRef, hostile, hostile, st.one_of(st.none(), st.integers(0, 15)), hostile)
    evidence = st.builds(Evidence, hostile, numbers, hostile, numbers, st.floats(0, 1e9), hostile)
    finding = Finding(
        id=draw(hostile), kind=draw(hostile), cause=draw(hostile), severity="critical", confidence=0.8,
        subject_kind="job", subject=draw(hostile), title=draw(hostile),
        since_ns=START_NS, updated_ns=START_NS, told_ns=None, job=draw(hostile), user=draw(hostile),
        nodes=tuple(draw(st.lists(hostile, max_size=3))), gpus=tuple(draw(st.lists(gpu, max_size=8))),
        runners_up=(CauseShare(draw(hostile), 0.1),) * draw(st.integers(0, 6)),
        evidence=tuple(draw(st.lists(evidence, max_size=6))), cost_so_far=draw(costs),
        cost_per_h=draw(costs), advice=draw(hostile), confirm=draw(hostile), simulated=draw(st.booleans()),
    )  # fmt: skip
    recommendation = make_recommendation(id=draw(hostile), title=draw(hostile), command=draw(hostile))
    return Incident(
        draw(hostile), "open", 1, START_NS, None, finding, (recommendation,) * draw(st.integers(0, 2))
    )


@settings(max_examples=400)
@given(incidents(), st.sampled_from(KINDS), st.sampled_from(["full", "ids_only"]), hostile)
def test_no_data_becomes_markup_and_no_limit_is_passed(
    incident: Incident, kind: str, content: str, site: str
) -> None:
    document = payload(notice_of(kind, permitted(incident, content), site), DASHBOARD)
    for text in texts(document):
        assert "<" not in text
        assert ">" not in text
        assert not re.search(r"&(?!(amp|lt|gt);)", text)
        assert not re.search("[\u200b-\u200f\u202a-\u202e\u2066-\u2069\x00-\x09\x0b-\x1f]", text)
        assert text.count("`") in (0, 6)
        if "`" in text:
            assert re.fullmatch(r"```[^`]+```", text)
    check_limits(document)


def test_the_worst_case_stays_below_the_total_that_slack_takes() -> None:
    huge = Cost(1e300, 1e300, 1e300)
    for char in ("<", "&", '"', "\\", "x"):
        text = char * 1000
        evidence = (Evidence(text, 1e18, text, 1e18, 1e9, text),) * 20
        gpus = tuple(GpuRef(f"{text}{number}", text, None, text) for number in range(30))
        incident = make_incident(
            text, kind=text, cause=text, job=text, title=text, advice=text, confirm=text, evidence=evidence,
            gpus=gpus, nodes=(text,), cost_so_far=huge, cost_per_h=huge,
        )  # fmt: skip
        for command in ("", char * 199, char * 1000):
            told = replace(incident, recommendations=(make_recommendation(title=text, command=command),))
            for kind in KINDS:
                check_limits(payload(notice_of(kind, told, site=text), f"https://{'h' * 300}.example"))


def test_an_open_incident_says_what_since_when_where_why_what_it_costs_and_what_to_do() -> None:
    document = payload(notice_of("opened", permitted(make_incident(), "full")), DASHBOARD)
    text = shown(document)
    for expected in (
        "WARNING · idle: memory held, nothing runs · eu-fra-1 · 8 GPUs on gpu-07",
        "Job\n4711",
        "Since\n2026-11-21 13:31 UTC, 41 min",
        "Cost now\n24.00 EUR/h, 5.2 kW",
        "So far\n12.40 EUR, 4.1 GPU-h, 2.6 kWh",
        "Confidence\n95 %",
        "gpu_util_ratio 0.2 %, threshold 1 %, over 31 min",
        "Do\nGive back 8 idle GPUs\nWins about 24.00 EUR, 8.0 GPU-h, 5.2 kWh within 60 min",
        "```scancel --signal=TERM 4711```",
        "gpu-07: GPU 0, 1, 2, 3, 4, 5, 6, 7 (NVIDIA B200)",
        "Rule idle",
        "Incident inc-1",
        "Data: measured, gpu_util_ratio",
        "Told 31 min after it began",
    ):
        assert expected in text
    (button,) = next(each for each in document["blocks"] if each["type"] == "actions")["elements"]
    assert button["url"] == "https://unidle.example.org/?incident=inc-1"


@pytest.mark.parametrize("content", ["full", "ids_only"])
def test_a_job_that_waits_for_one_gpu_names_it_at_every_content_level(content: str) -> None:
    slow = (GpuRef("gpu-09", "GPU-x", 3, "NVIDIA B200"),)
    incident = permitted(make_incident(kind="straggler", cause="straggler", held_back_by=slow), content)
    assert "Waits for\ngpu-09: GPU 3 (NVIDIA B200)" in shown(
        payload(notice_of("opened", incident), DASHBOARD)
    )


def test_a_resolved_incident_says_how_long_and_what_in_total_with_the_same_id() -> None:
    text = shown(payload(notice_of("resolved", make_incident()), DASHBOARD))
    assert "RESOLVED · idle: memory held, nothing runs" in text
    assert "Lasted 38 min, until 2026-11-21 14:09 UTC" in text
    assert "Total\n12.40 EUR, 4.1 GPU-h, 2.6 kWh" in text
    assert "Incident inc-1" in text


def test_a_group_counts_what_it_does_not_name() -> None:
    text = shown(payload(notice_of("group", make_incident())))
    assert "CRITICAL · 10,000 incidents: 9,000 opened, 900 resolved, 100 opened and resolved" in text
    assert "and 9,995 more" in text
    assert "at least 240,000.00 EUR/h: no price is known for 3 incidents" in text


@pytest.mark.parametrize("kind", KINDS)
def test_simulated_is_on_the_face_of_every_message(kind: str) -> None:
    document = payload(notice_of(kind, make_incident(simulated=True)))
    assert document["text"].startswith("SIMULATED")
    assert document["blocks"][0]["text"]["text"].startswith("SIMULATED")
    assert "SIMULATED" not in as_text(payload(notice_of(kind, make_incident())))


def test_what_is_not_known_is_said_and_not_shown_as_zero() -> None:
    unknown = Cost(4.0, None, None)
    text = shown(
        payload(
            notice_of(
                "opened",
                make_incident(
                    cost_so_far=unknown,
                    cost_per_h=unknown,
                    gpus=(),
                    nodes=(),
                    evidence=(Evidence("sm_active_ratio", None, "1", None, 60, ""),),
                ),
            )
        )
    )
    assert "EUR/h unknown (no price), kW unknown" in text
    assert "EUR unknown (no price), 4.0 GPU-h, kWh unknown" in text
    assert "sm_active_ratio unknown" in text
    assert "size unknown" in text


@pytest.mark.parametrize("command", ["scancel `id`", "scancel 1\r", "scancel 1\u202e", "x" * 1001, "&" * 201])
def test_a_command_that_cannot_be_shown_exactly_is_not_shown_at_all(command: str) -> None:
    incident = replace(make_incident(), recommendations=(make_recommendation(command=command),))
    text = shown(payload(notice_of("opened", incident)))
    assert "```" not in text
    assert "it is on the dashboard" in text


def test_a_command_of_several_lines_is_shown_as_it_is() -> None:
    command = "scontrol update NodeName=gpu-07 State=drain Reason='a<b'\nscontrol requeue 4711"
    incident = replace(make_incident(), recommendations=(make_recommendation(command=command),))
    assert f"```{command.replace('<', '&lt;')}```" in shown(payload(notice_of("opened", incident)))


def test_a_long_list_of_nodes_ends_with_how_many_more() -> None:
    gpus = tuple(GpuRef(f"gpu-{node:02d}", f"u{node}", 0, "B200") for node in range(12))
    text = shown(payload(notice_of("opened", make_incident(gpus=gpus, nodes=()))))
    assert "12 GPUs on 12 nodes" in text
    assert "and 7 more nodes" in text


MARK = "personal"
ALLOWED = {
    "id", "kind", "cause", "severity", "subject_kind", "nodes", "node", "gpu", "model", "field", "unit",
    "state", "lever", "finding_ids", "confidence",
}  # fmt: skip
"""Fields that may leave at ids_only (eu-trust, section 2). A new field is not among them by itself."""


def marked(record: Any, names: set[str]) -> Any:
    """`record` with MARK in every text of every field that is not in `names`."""
    if isinstance(record, tuple):
        return tuple(marked(each, names) for each in record)
    if not is_dataclass(record):
        return record
    changes = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, str) and field.name not in names:
            changes[field.name] = f"{MARK} /home/{MARK}/{field.name}"
        elif isinstance(value, tuple) and value and isinstance(value[0], str) and field.name not in names:
            changes[field.name] = (MARK,)
        else:
            changes[field.name] = marked(value, names)
    return replace(record, **changes)


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_of_ids_only_holds_nothing_personal_whatever_field_it_stood_in(kind: str) -> None:
    incident = marked(make_incident(), ALLOWED)
    assert MARK in incident.finding.job
    assert MARK in incident.recommendations[0].command
    bare = permitted(incident, "ids_only")
    assert MARK not in repr(bare)
    assert MARK not in as_text(payload(notice_of(kind, bare), DASHBOARD))
    if kind in ("opened", "group"):
        assert MARK in as_text(payload(notice_of(kind, incident), DASHBOARD)) or kind == "group"


def test_the_allow_list_knows_every_text_field_of_the_model() -> None:
    """Marks the model's fields by type, so that this fails when a text field is added and not decided."""
    decided = ALLOWED | {
        "subject", "title", "job", "user", "text", "advice", "confirm", "binding_constraint", "risk",
        "assumptions", "command", "undo", "notice", "measure",
    }  # fmt: skip
    named = {
        field.name
        for record in (Incident, Finding, Recommendation, Evidence, CauseShare, GpuRef)
        for field in fields(record)
        if "str" in str(field.type) or "Literal" in str(field.type)
    }
    assert named <= decided


def test_full_has_the_job_and_the_command_but_never_the_user() -> None:
    incident = make_incident(title="job of u-5f3a idles", advice="ask u-5f3a")
    command = make_recommendation(command="scancel --user=u-5f3a 4711")
    full = permitted(replace(incident, recommendations=(command,)), "full")
    text = as_text(payload(notice_of("opened", full), DASHBOARD))
    assert "u-5f3a" not in repr(full) + text
    assert "scancel --user=[user] 4711" in text
    assert "Job\\n4711" in text


@pytest.mark.parametrize("content", ["ids_only", "full"])
def test_permitting_twice_changes_nothing(content: str) -> None:
    once = permitted(make_incident(), content)
    assert permitted(once, content) == once


def test_the_terminal_shows_no_control_characters_of_data() -> None:
    stream = io.StringIO()
    notice = notice_of("opened", make_incident("a\x1b[2Jb", job="x\r\ny", title="\u202eevil"))
    assert Stdout(stream=stream).send(notice).kind == "delivered"
    assert summary(notice) not in stream.getvalue()
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", stream.getvalue())
    assert "$ scancel --signal=TERM 4711" in stream.getvalue()


def test_what_would_confirm_it_stands_beside_a_command_and_without_one() -> None:
    incident = make_incident()
    told = replace(incident, finding=replace(incident.finding, confirm="iostat -x 5 on n1"))
    for recommendations in ((), (make_recommendation(),)):
        text = shown(payload(notice_of("opened", replace(told, recommendations=recommendations))))
        assert "To confirm: iostat -x 5 on n1" in text


def test_a_cause_that_cannot_be_told_is_not_called_a_cause() -> None:
    incident = make_incident()
    finding = replace(
        incident.finding, cause="undetermined", confidence=0.6, runners_up=(CauseShare("storage", 0.4),)
    )
    text = shown(payload(notice_of("opened", replace(incident, finding=finding))))
    assert "Cause: cannot tell; likeliest: storage too slow 40 %" in text
    assert "undetermined (" not in text


def test_clock_event_reasons_are_shown_as_a_bit_mask() -> None:
    incident = make_incident()
    reasons = Evidence("clock_event_reasons", float(0x88), "bits", None, 60.0, "")
    text = shown(
        payload(
            notice_of("opened", replace(incident, finding=replace(incident.finding, evidence=(reasons,))))
        )
    )
    assert "clock_event_reasons 0x88, over 60 s" in text
