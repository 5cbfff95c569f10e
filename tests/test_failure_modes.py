"""docs/failure-modes.md stays true: its tests, metrics and quotations exist, and no situation is missing."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import metric_pages
from unidle_agent.exporter import metric_name
from unidle_agent.fields import FIELDS
from unidle_agent.sender import OUTCOMES

ROOT = Path(__file__).parents[1]
HEADER = ["situation", "what happens", "what you see", "what is lost", "proved by"]
TEST_ID = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
QUOTATION = re.compile(r"“([^”]+)”")
METRIC = re.compile(r"`(unidle_\w+)(?:\{([^}]*)\})?`")
DEMANDED = [
    "malformed push",
    "wrong token",
    "clock hours off",
    "duplicate batch",
    "nan",
    "negative counter",
    "counter reset",
    "unknown gpu",
    "page of 50 mb",
    "push of 50 mb",
    "torn page",
    "title line",
    "hung driver",
    "lost gpu",
    "no driver",
    "collector dead",
    "spool full",
    "disk full",
    "kill -9",
    "restart",
    "node silent",
    "late rows",
    "future rows",
    "429",
    "5xx",
    "400",
    "times out",
    "slack redirects",
    "alerts killed",
    "dashboard without collector",
    "dcgm-exporter down",
    "zip bomb",
    "foreign host header",
]


class Row(NamedTuple):
    """One line of a table."""

    situation: str
    happens: str
    see: str
    lost: str
    proof: str


def read(page: str) -> list[Row]:
    """All rows of all tables; a table with other columns, or a row with more or fewer, is an error."""
    rows = []
    for line in page.splitlines():
        if not line.startswith("|"):
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert len(cells) == len(HEADER), f"expected {len(HEADER)} cells: {line}"
        if cells != HEADER and set(cells) != {"---"}:
            rows.append(Row(*cells))
    return rows


PAGE = (ROOT / "docs" / "failure-modes.md").read_text(encoding="utf-8")
ROWS = read(PAGE)


@cache
def functions_of(path: str) -> frozenset[str]:
    """Names of the test functions of a file, read without running it."""
    file = ROOT / path
    if not file.is_file():
        return frozenset()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def unproven(row: Row) -> list[str]:
    """What is wrong with a row's proof."""
    named = TEST_ID.findall(row.proof)
    wrong = [f"{path} has no {name}" for path, name in named if name not in functions_of(path)]
    left = TEST_ID.sub("", row.proof).replace("<br>", "").strip()
    return [*wrong, *(["no test"] if not named else []), *([f"not a test: {left}"] if left else [])]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.situation)
def test_a_row_is_complete_and_its_tests_exist(row: Row) -> None:
    assert all(row)
    assert unproven(row) == []


@pytest.mark.parametrize("demanded", DEMANDED)
def test_no_situation_is_missing(demanded: str) -> None:
    assert [row for row in ROWS if re.search(rf"\b{re.escape(demanded)}", row.situation, re.IGNORECASE)]


def test_no_situation_is_told_twice() -> None:
    situations = [row.situation for row in ROWS]
    assert len(situations) == len(set(situations)) >= 40


def test_every_metric_of_the_page_exists(tmp_path: Path) -> None:
    pages = metric_pages.pages(tmp_path)
    # A GPU and a driver are not there in a test: their families come from the table, that event from a test.
    known = metric_pages.names(pages) | {metric_name(field) for field in FIELDS}
    for name, labels in METRIC.findall(PAGE):
        assert name in known
        if labels and 'source="nvml"' not in labels:
            assert f"{name}{{{labels}}}" in pages
    assert {labels for name, labels in METRIC.findall(PAGE) if name == "unidle_agent_pushes_total"} <= {
        f'outcome="{outcome}"' for outcome in OUTCOMES
    }


def test_every_quotation_of_the_page_is_said_by_the_code() -> None:
    packages = ("agent", "collector", "alerts", "dashboard")
    sources = [file.read_text(encoding="utf-8") for name in packages for file in (ROOT / name).rglob("*.py")]
    # A text that is continued on the next line reads as one.
    said = re.sub(r'"\s*\n\s*f?"', "", "\n".join(sources)) + "Invalid host header"  # Starlette's own words
    missing = [text for text in QUOTATION.findall(PAGE) if text not in said]
    assert missing == []


@pytest.mark.parametrize(
    "proof",
    ["", "by hand", "`tests/test_failure_modes.py::test_that_is_not_there`", "`tests/none.py::test_a`"],
)
def test_a_row_without_a_real_test_is_noticed(proof: str) -> None:
    assert unproven(Row("a", "b", "c", "d", proof))
