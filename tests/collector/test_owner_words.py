"""Who holds a GPU, in words, from the agent's note to the API."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.collector.pushing import START_S, batch, site

from unidle_agent.owners import resolve
from unidle_agent.wire import Owner
from unidle_collector.owner_words import SENTENCES, owner_words


@pytest.mark.parametrize(
    ("job", "note", "used_by", "words"),
    [
        ("7", "", "", ""),
        ("", "", "", ""),
        ("7", "no process", "", "allocated to job 7, no process on it"),
        ("7", "conflict", "8", "allocated to job 7, but used by job 8"),
        ("", "conflict", "8", "used by job 8, allocated to nobody"),
        ("", "orphan", "8", "still used by processes of job 8, which has ended"),
        ("", "orphan", "8,9,10", "still used by processes of jobs 8, 9 and 10, which have ended"),
        ("", "not allocated", "8", "used by job 8, allocated to nobody"),
        ("7,8", "shared", "", "shared by jobs 7 and 8"),
        ("", "", "8", "used by job 8, of which nobody says whether it runs"),
        ("7", "a word of tomorrow", "", "a word of tomorrow"),
        ("7", "{job.__class__}", "", "{job.__class__}"),
        ("{used_by}", "conflict", "{job}", "allocated to job {used_by}, but used by job {job}"),
    ],
)
def test_an_owner_in_words(job: str, note: str, used_by: str, words: str) -> None:
    assert owner_words(job, note, used_by) == words


def test_every_note_of_the_agent_has_its_sentence() -> None:
    notes = {value for name, value in vars(resolve).items() if name.isupper()}
    assert notes == set(SENTENCES)


def test_the_api_tells_note_and_user_of_a_gpu_and_that_an_owner_is_inferred(tmp_path: Path) -> None:
    told = batch(1, 0, 5, {"gpu_util_ratio": 0.9})
    first, second = told.facts or ()
    owners = (
        Owner(False, source="slurm", confidence="high", note="orphan", used_by="41"),
        Owner(True, "42", source="processes", confidence="inferred"),
    )
    facts = (replace(first, owner=owners[0]), replace(second, owner=owners[1]))
    with site(tmp_path) as here:
        here.clock.at_s = START_S + 5
        assert here.push(replace(told, facts=facts))[0] == 200
        here.settle(10)
        rows = [
            {key: gpu[key] for key in ("job", "owner_note", "used_by", "inferred")}
            for gpu in here.get("gpus")
        ]
    assert rows == [
        {"job": "", "owner_note": "orphan", "used_by": "41", "inferred": False},
        {"job": "42", "owner_note": "", "used_by": "", "inferred": True},
    ]
