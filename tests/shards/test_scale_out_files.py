"""deploy/scale-out: read by what it is for, and held against the settings and the roles that it starts."""

from __future__ import annotations

import argparse
import asyncio
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nats
import pytest
import yaml
from nats.js.api import StreamConfig
from tests.shards.nats_servers import Cluster, program

from unidle_agent.config import AgentSettings
from unidle_agent.settings import load
from unidle_agent.shards import ROWS, STREAM
from unidle_alerts.settings import AlertsSettings
from unidle_collector.settings import CollectorSettings
from unidle_dashboard.settings import DashboardSettings

FOLDER = Path(__file__).parents[2] / "deploy" / "scale-out"
ROLES: dict[str, type[Any]] = {
    "agent": AgentSettings,
    "collector": CollectorSettings,
    "alerts": AlertsSettings,
    "dashboard": DashboardSettings,
}
TOML = (FOLDER / "unidle.toml").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
FILES = ("nats.yaml", "postgres.yaml", "victoria.yaml", "collector.yaml")
RESOURCES = [
    document for name in FILES for document in yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8"))
]
SETS = {one["metadata"]["name"]: one["spec"] for one in RESOURCES if one["kind"] == "StatefulSet"}
SERVICES = {one["metadata"]["name"]: one["spec"] for one in RESOURCES if one["kind"] == "Service"}


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """Role -> its settings, with secrets that are there."""
    text = TOML
    for path in re.findall(r'_file = "(/run/secrets/unidle/[^"]+)"', TOML):
        secret = tmp_path / path.removeprefix("/")
        secret.parent.mkdir(parents=True, exist_ok=True)
        secret.write_text("postgresql://unidle:s3cret@h/unidle" if path.endswith("url") else "who:s3cret")
        text = text.replace(f'"{path}"', f'"{secret}"')
    file = tmp_path / "unidle.toml"
    file.write_text(text)
    flags = argparse.Namespace(config=str(file))
    return {role: load(cls, role, flags, environ={}) for role, cls in ROLES.items()}


def collectors_secrets() -> set[str]:
    section = TOML.partition("[collector]")[2].partition("\n[")[0]
    return set(re.findall(r'_file = "([^"]+)"', section))


def test_roles_find_each_other_under_names_that_there_are(settings: dict[str, Any]) -> None:
    urls = [settings["agent"].push_url, *settings["collector"].nats_url, settings["collector"].series_url]
    urls += [settings[role].collector_url for role in ("alerts", "dashboard")]
    aliases = {
        alias
        for service in COMPOSE["services"].values()
        for alias in service.get("networks", {}).get("default", {}).get("aliases", ())
    }
    for url in urls:
        host, port = urlsplit(url).hostname, urlsplit(url).port
        assert host in aliases, url
        known = SERVICES | {"unidle-collector": SERVICES["unidle-collectors"]}  # the other is the base's
        assert port in {one["port"] for one in known[str(host)]["ports"]}, url
    assert settings["collector"].port == 9470


def test_collectors_find_each_other_by_names_of_their_own(settings: dict[str, Any]) -> None:
    spec = SETS["unidle-collector"]
    environment = {one["name"]: one.get("value") for one in spec["template"]["spec"]["containers"][0]["env"]}
    url = environment["UNIDLE_COLLECTOR_ADVERTISE_URL"]
    assert url == f"http://$(POD_NAME).{spec['serviceName']}:{settings['collector'].port}"
    assert SERVICES[spec["serviceName"]]["clusterIP"] == "None"
    assert spec["replicas"] >= 2
    advertised = set()
    for name in ("collector-a", "collector-b"):
        service = COMPOSE["services"][name]
        advertised.add(service["environment"]["UNIDLE_COLLECTOR_ADVERTISE_URL"])
        assert service["hostname"] == name, "the name under which it holds its shards"
    assert advertised == {"http://collector-a:9470", "http://collector-b:9470"}


def test_a_collector_has_every_secret_that_its_settings_name_and_a_folder_that_it_writes() -> None:
    pod = SETS["unidle-collector"]["template"]["spec"]
    mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert {str(Path(path).parent) for path in collectors_secrets()} <= set(mounts)
    assert mounts["/var/lib/unidle"] == "data"
    for name in ("collector-a", "collector-b"):
        given = {secret["target"] for secret in COMPOSE["services"][name]["secrets"]}
        assert given == collectors_secrets()
        assert any(volume.endswith(":/var/lib/unidle") for volume in COMPOSE["services"][name]["volumes"])


def test_what_compose_mounts_is_there_or_made_by_the_script(tmp_path: Path) -> None:
    script = ["sh", str(FOLDER / "secrets.sh"), str(tmp_path / "secrets")]
    subprocess.run(script, check=True, timeout=20)
    made = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert {Path(one["file"]).name for one in COMPOSE["secrets"].values()} <= set(made)
    assert {one["file"] for one in COMPOSE["configs"].values()} <= {path.name for path in FOLDER.iterdir()}
    assert (tmp_path / "secrets").stat().st_mode & 0o077 == 0
    assert len({made["read.token"], made["postgres"], made["collector"], made["agents"]}) == 4
    assert made["postgres"] in made["postgres.url"]
    subprocess.run(script, check=True, timeout=20)
    assert {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()} == made, "kept"


def test_a_pod_has_no_rights_that_it_does_not_need() -> None:
    for name, spec in SETS.items():
        pod = spec["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["enableServiceLinks"] is False, name
        (container,) = pod["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True, name
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
        assert "memory" in container["resources"]["limits"], name


def test_every_resource_is_valid_by_the_schemas_of_kubernetes() -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate to check")
    for resource in RESOURCES:
        validate.validate(resource, validate.latest_version(), strict=True)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl on this machine")
def test_kustomize_puts_the_collectors_in_the_place_of_the_one() -> None:
    done = subprocess.run(["kubectl", "kustomize", str(FOLDER)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    built = list(yaml.safe_load_all(done.stdout))
    kinds = {(one["kind"], one["metadata"]["name"]) for one in built}
    assert ("StatefulSet", "unidle-collector") in kinds
    assert not kinds & {("Deployment", "unidle-collector"), ("PersistentVolumeClaim", "unidle-collector")}
    maps = {one["metadata"]["name"]: one["data"] for one in built if one["kind"] == "ConfigMap"}
    assert sorted(map(list, maps.values())) == [["nats.conf"], ["unidle.toml"]]
    assert TOML in [data.get("unidle.toml") for data in maps.values()]
    by_name = {(one["kind"], one["metadata"]["name"]): one["spec"] for one in built if "spec" in one}
    service = by_name["Service", "unidle-collector"]
    labels = by_name["StatefulSet", "unidle-collector"]["template"]["metadata"]["labels"]
    assert service["selector"].items() <= labels.items(), "any of them answers for the site"


@pytest.mark.slow
def test_nats_takes_the_configuration_and_agents_may_only_publish(tmp_path: Path) -> None:
    program()
    subprocess.run(["sh", str(FOLDER / "secrets.sh"), str(tmp_path / "secrets")], check=True, timeout=20)
    secrets = tmp_path / "secrets"
    conf, users = tmp_path / "etc/nats/nats.conf", tmp_path / "run/secrets/unidle/nats/users.conf"
    for file in (conf, users):
        file.parent.mkdir(parents=True)
    shutil.copy(secrets / "users.conf", users)
    text = (FOLDER / "nats-one.conf").read_text()
    conf.write_text(
        re.sub(r"(?m)^(listen|  store_dir|  max_file_store):.*$", "", text)
    )  # it is elsewhere here
    server = Cluster(tmp_path / "nats", extra=("-c", str(conf)))

    async def connect(name: str) -> nats.NATS:
        user, _, password = (secrets / name).read_text().partition(":")
        return await nats.connect(server.urls, user=user, password=password)

    async def steps() -> None:
        collector, agent = await connect("collector"), await connect("agents")
        await collector.jetstream().add_stream(StreamConfig(name=STREAM, subjects=[f"{ROWS}.*.*"]))
        await agent.jetstream().publish(f"{ROWS}.3.n28", b"rows")
        assert (await collector.jetstream().stream_info(STREAM)).state.messages == 1
        with pytest.raises(nats.errors.Error):
            await agent.jetstream(timeout=1).stream_info(STREAM)
        await collector.close()
        await agent.close()

    try:
        asyncio.run(steps())
    finally:
        server.stop()
