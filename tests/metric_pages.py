"""The /metrics pages of the roles, as their code makes them: what documents and rules may name."""

from __future__ import annotations

import re
from pathlib import Path

from tests.agent.scripted_server import dead_url
from tests.collector.pushing import site
from tests.fakes import FakeCollector, FakeNotifier
from unidle_agent.config import AgentSettings
from unidle_agent.runtime import Agent
from unidle_alerts.service import Service
from unidle_alerts.settings import AlertsSettings


def pages(folder: Path) -> str:
    """Agent, collector and alerts, one after the other; `folder` is for their files."""
    return "".join((_agent(folder / "agent"), _collector(folder / "collector"), _alerts(folder / "alerts")))


def names(text: str) -> set[str]:
    """Families on a page."""
    return set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))


def _agent(folder: Path) -> str:
    url = dead_url()
    agent = Agent(AgentSettings(push_url=url, dcgm_urls=(url,), nvml="off", port=0, state_dir=str(folder)))
    try:
        return agent.page()
    finally:
        agent._exporter.close()
        agent._close()


def _collector(folder: Path) -> str:
    with site(folder) as here:
        return here.http.get("/metrics").text


def _alerts(folder: Path) -> str:
    service = Service(AlertsSettings(state_dir=str(folder), port=0), FakeCollector(), (FakeNotifier(),))
    try:
        return service.metrics()
    finally:
        service.close()
