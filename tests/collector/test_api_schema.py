"""The schema of the API: complete, and docs/api.md says the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from docs import generate
from tests.collector.pushing import site

DOC = Path(__file__).parents[2] / "docs" / "api.md"


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with site(tmp_path_factory.mktemp("schema")) as here:
        found: dict[str, Any] = here.http.get("/openapi.json").json()
        return found


def test_the_page_of_the_docs_is_what_is_served() -> None:
    text = DOC.read_text(encoding="utf-8")
    assert text == generate.NOTE + generate.api(), "make docs writes it anew"


def test_everything_that_was_promised_is_there(schema: dict[str, Any]) -> None:
    promised = [
        "fleet",
        "nodes",
        "gpus",
        "jobs",
        "series",
        "findings",
        "recommendations",
        "incidents",
        "accounts",
        "health",
        "push",
    ]
    assert {f"/api/v1/{name}" for name in promised} <= set(schema["paths"])


def test_every_question_says_what_it_is_what_it_takes_and_how_it_can_fail(schema: dict[str, Any]) -> None:
    reads = {path: methods["get"] for path, methods in schema["paths"].items() if "get" in methods}
    assert len(reads) >= 16
    for path, about in reads.items():
        assert about["description"], path
        assert {"200", "401", "422", "503"} <= set(about["responses"]), path
        assert "{" not in path or "404" in about["responses"]
        assert about["responses"]["422"]["content"]["application/json"]["schema"]["$ref"].endswith("/Problem")
        for parameter in about.get("parameters", ()):
            assert parameter["description"], (path, parameter["name"])
            kind = parameter["schema"]
            assert "default" in kind or "examples" in kind or "anyOf" in kind, (path, parameter["name"])


def test_lists_are_paged_and_come_as_arrow(schema: dict[str, Any]) -> None:
    for name in ["gpus", "nodes", "jobs", "accounts", "findings", "incidents", "recommendations", "targets"]:
        about = schema["paths"][f"/api/v1/{name}"]["get"]
        assert {"limit", "after"} <= {parameter["name"] for parameter in about["parameters"]}
        reply = about["responses"]["200"]
        assert set(reply["content"]) == {"application/json", "application/vnd.apache.arrow.stream"}
        assert reply["content"]["application/json"]["schema"]["type"] == "array"
        assert "Link" in reply["headers"]


def test_fields_are_described_by_the_docstrings_of_the_records(schema: dict[str, Any]) -> None:
    fields = schema["components"]["schemas"]["GpuNow"]["properties"]
    assert fields["values"]["description"] == "Field -> latest value in base units."
    assert schema["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    assert set(schema["paths"]["/api/v1/push"]["post"]["responses"]) >= {"200", "401", "403", "503"}
