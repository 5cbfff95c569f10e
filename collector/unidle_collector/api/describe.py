"""The schema at /openapi.json: what FastAPI finds out by itself, and what only the code's docstrings say."""

from __future__ import annotations

import ast
import inspect
from functools import cache
from typing import Any

from fastapi import FastAPI

from unidle_collector import model
from unidle_collector.ingest import door

BEARER = {
    "type": "http",
    "scheme": "bearer",
    "description": "a read token (`unidle tokens create --read NAME`, or the collector's read_token); not "
    "needed on a loopback address as long as there is none",
}


def complete(app: FastAPI, *, pushes: bool = True) -> None:
    """Let `app` serve the schema with what every field means, the tokens, and pushes where it takes any."""
    plain = app.openapi

    def schema() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _completed(plain(), pushes)
        return app.openapi_schema

    app.openapi = schema  # type: ignore[method-assign]  # FastAPI's own way to extend it


def page(schema: dict[str, Any]) -> str:
    """Every path with its parameters and answers, as Markdown."""
    parts = []
    for path, methods in sorted(schema["paths"].items()):
        for method, about in methods.items():
            parts += [f"## {method.upper()} {path}", "", about["description"].replace("\n", " "), ""]
            if parameters := about.get("parameters"):
                parts += ["| parameter | type | default | meaning |", "|---|---|---|---|"]
                parts += [_parameter_row(parameter) for parameter in parameters]
                parts.append("")
            parts += [_answers(about["responses"]), ""]
    return "\n".join(parts)


def _parameter_row(parameter: dict[str, Any]) -> str:
    kind = parameter["schema"]
    bounds = [f"{word} {kind[name]:g}" for name, word in BOUNDS.items() if name in kind]
    default = "needed" if parameter["required"] else f"`{kind['default']}`" if kind.get("default") else ""
    meaning = parameter["description"] + (f" ({', '.join(bounds)})" if bounds else "")
    return f"| `{parameter['name']}` | {_kind(kind)} | {default} | {meaning} |"


BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}


def _answers(responses: dict[str, Any]) -> str:
    found = []
    for status, response in sorted(responses.items()):
        kinds = response.get("content", {})
        shape = _kind(kinds.get("application/json", {}).get("schema", {}))
        arrow = " or Arrow" if len(kinds) > 1 else ""
        found.append(f"{status} {shape}{arrow}" if status == "200" else f"{status} {response['description']}")
    return "Answers: " + "; ".join(found) + "."


def _kind(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return f"`{schema['$ref'].rpartition('/')[2]}`"
    if "anyOf" in schema:
        return " or ".join(_kind(one) for one in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{one}`" for one in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return str(schema.get("type", "any"))


def _completed(schema: dict[str, Any], pushes: bool) -> dict[str, Any]:
    words = _words()
    components = schema["components"]
    for name, record in components["schemas"].items():
        for field, about in record.get("properties", {}).items():
            if text := words.get(name, {}).get(field):
                about.setdefault("description", text)
    components["securitySchemes"] = {"bearer": BEARER}
    schema["security"] = [{"bearer": []}, {}]
    if pushes:
        schema["paths"][door.PATH] = {"post": _push()}
    return schema


def _push() -> dict[str, Any]:
    """What a node sends; answered outside FastAPI, so that it is told here."""
    responses = {
        "200": "the rows are on disk: {ack, send_facts, duplicate}",
        "400": "the bytes are no batch; it says what was expected",
        "401": "no token or certificate that lets one write",
        "403": "the rows are another node's; nothing is stored",
        "413": f"more than {door.MAX_BODY_BYTES} bytes",
        "429": "too many of this node's batches wait; Retry-After says when to come again",
        "503": "too much waits, or the disk is full; Retry-After says when to come again",
    }
    return {
        "summary": "Push",
        "description": "A batch of a node's rows: MessagePack of column buffers (`unidle_agent.wire`).",
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string"}}},
        },
        "responses": {status: {"description": text} for status, text in responses.items()},
        "security": [{"bearer": []}],
    }


@cache
def _words() -> dict[str, dict[str, str]]:
    """Record -> field -> the docstring below it in `model`."""
    found: dict[str, dict[str, str]] = {}
    for record in ast.parse(inspect.getsource(model)).body:
        if not isinstance(record, ast.ClassDef):
            continue
        for line, below in zip(record.body, record.body[1:], strict=False):
            if (
                isinstance(line, ast.AnnAssign)
                and isinstance(line.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                text = inspect.cleandoc(str(below.value.value))
                found.setdefault(record.name, {})[line.target.id] = text
    return found
