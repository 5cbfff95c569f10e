"""Which dcgm-exporters are scraped: named one by one, or by Prometheus's file_sd and http_sd.

Both give groups, `[{"targets": ["host:port"], "labels": {...}}]`, as JSON or (files) YAML. Of the labels
`node` names the node, `__scheme__` and `__metrics_path__` say how to ask; the others are left alone.
https://prometheus.io/docs/prometheus/latest/http_sd/
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from unidle_agent import fetch
from unidle_agent.errors import UnidleError

DEADLINE_S = 10.0
MAX_BYTES = 16 * 1024 * 1024
MOST_TARGETS = 20_000
PATH = "/metrics"
NODE_LABELS = ("node", "__meta_kubernetes_pod_node_name", "kubernetes_node", "hostname", "Hostname")


class DiscoveryError(UnidleError):
    """Targets cannot be found out: says where, what was expected and what came."""


@dataclass(frozen=True, slots=True)
class Target:
    """One exporter."""

    url: str
    node: str = ""
    """As discovery names it; empty where it does not."""


def named(text: str, where: str, node: str = "", scheme: str = "http", path: str = PATH) -> Target:
    """`host:port`, or a whole URL; raises DiscoveryError."""
    url = text if "://" in text else f"{scheme}://{text}"
    try:
        fetch.target(url, where)
        if not urlsplit(url).path.strip("/"):
            url = url.rstrip("/") + path
    except UnidleError as error:
        raise DiscoveryError(str(error)) from error
    return Target(url, node)


def from_files(patterns: Sequence[str]) -> list[Target]:
    """The targets of all files; a last part such as `*.json` stands for many."""
    out: list[Target] = []
    for pattern in patterns:
        path = Path(pattern)
        files = sorted(path.parent.glob(path.name)) if "*" in path.name else [path]
        for file in files:
            try:
                text = file.read_text(encoding="utf-8")
                groups = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
            except (OSError, ValueError, yaml.YAMLError) as error:
                raise DiscoveryError(f"{file}: expected a readable file_sd file: {error}") from error
            out += from_groups(groups, str(file))
    return out


def from_http(url: str, token: str, ca_file: str) -> list[Target]:
    """The targets that an http_sd endpoint names."""
    to = fetch.target(url, "collector.scrape_http_sd")
    over = fetch.connection(to, DEADLINE_S, ca_file)
    headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    try:
        answer = fetch.exchange(
            over, "GET", to.path, deadline_s=DEADLINE_S, max_bytes=MAX_BYTES, headers=headers
        )
    except fetch.FetchError as error:
        raise DiscoveryError(f"{url}: {error}") from error
    finally:
        over.close()
    if answer.status != 200 or not answer.whole:
        raise DiscoveryError(f"{url}: expected HTTP 200 and a whole list, came {answer.status}")
    try:
        groups = json.loads(answer.body)
    except ValueError as error:
        raise DiscoveryError(f"{url}: expected JSON, came {answer.body[:40]!r}") from error
    return from_groups(groups, url)


def from_groups(groups: Any, where: str) -> list[Target]:
    """Targets of file_sd or http_sd groups; raises DiscoveryError."""
    expected = f'{where}: expected a list of {{"targets": ["host:port"], "labels": {{}}}}'
    if groups is None:  # an empty YAML file
        return []
    if not isinstance(groups, list):
        raise DiscoveryError(f"{expected}, came {type(groups).__name__}")
    out = []
    for group in groups:
        labels = (group.get("labels") or {}) if isinstance(group, dict) else None
        texts = group.get("targets") if isinstance(group, dict) else None
        if not isinstance(labels, dict) or not isinstance(texts, list):
            raise DiscoveryError(f"{expected}, came {str(group)[:80]}")
        # A label that names the node does so for one target; several of a group are told apart by address.
        node = (
            next((str(labels[key]) for key in NODE_LABELS if labels.get(key)), "") if len(texts) == 1 else ""
        )
        scheme, path = str(labels.get("__scheme__", "http")), str(labels.get("__metrics_path__", PATH))
        out += [named(str(text), where, node, scheme, path) for text in texts]
    if len(out) > MOST_TARGETS:
        raise DiscoveryError(f"{where}: expected at most {MOST_TARGETS} targets, came {len(out)}")
    return out
