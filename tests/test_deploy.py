"""deploy/: every file is read by what it is for, or by the code that it is to start."""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, get_type_hints
from urllib.parse import urlsplit

import pytest
import yaml

from tests import metric_pages
from unidle_agent.cli import GROUP
from unidle_agent.config import AgentSettings
from unidle_agent.settings import Secret, load
from unidle_agent.usage import WRONG_USAGE
from unidle_alerts.settings import AlertsSettings
from unidle_collector.federation.settings import FederationSettings
from unidle_collector.reader_settings import ReaderSettings
from unidle_collector.settings import CollectorSettings
from unidle_dashboard.settings import DashboardSettings

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ROLES: dict[str, type[Any]] = {
    "agent": AgentSettings,
    "collector": CollectorSettings,
    "alerts": AlertsSettings,
    "dashboard": DashboardSettings,
}
SECTIONS = ROLES | {"federation": FederationSettings, "reader": ReaderSettings}
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
MOST_EXPOSED = 2.5
"""Of 10, by `systemd-analyze security`: below 3 it calls a unit "OK"."""


def command_parser(command: str) -> argparse.ArgumentParser:
    """The flags of `unidle COMMAND`, as it declares them itself."""
    (point,) = entry_points(group=GROUP, name=command)
    parser = argparse.ArgumentParser()
    import_module(point.value).arguments(parser)
    return parser


def with_secrets(folder: Path, text: str, *roots: str) -> Path:
    """`text` as a settings file, whose secret files lie in `folder` and exist."""
    for root in roots:
        for path in re.findall(rf'_file = "({re.escape(root)}[^"]+)"', text):
            secret = folder / path.removeprefix(root)
            secret.parent.mkdir(parents=True, exist_ok=True)
            secret.write_text("s3cret\n", encoding="utf-8")
        text = text.replace(f'_file = "{root}', f'_file = "{folder}/')
    file = folder / "settings.toml"
    file.write_text(text, encoding="utf-8")
    return file


# systemd


def directives(unit: Path) -> list[tuple[str, str]]:
    """Key and value of each line of a unit, in order; a key may come again."""
    text = re.sub(r"\\\n\s*", "", unit.read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line and line[0] not in "#["]
    return [(key, value) for key, _, value in (line.partition("=") for line in lines)]


def test_every_role_has_a_unit() -> None:
    assert [unit.stem for unit in UNITS] == sorted(f"unidle-{role}" for role in ROLES)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_starts_its_role_with_flags_that_it_has_and_credentials_that_it_loads(unit: Path) -> None:
    found = directives(unit)
    (start,) = [value for key, value in found if key == "ExecStart"]
    binary, role, *flags = shlex.split(start)
    assert binary == "/opt/unidle/bin/unidle"
    assert role == unit.stem.removeprefix("unidle-")
    command_parser(role).parse_args(flags)  # exits on a flag that is not there
    loaded = {value.partition(":")[0] for key, value in found if key == "LoadCredential"}
    assert loaded == set(re.findall(r"\$\{CREDENTIALS_DIRECTORY\}/(\S+)", start))
    if "${STATE_DIRECTORY}" in start:
        assert ("StateDirectory", f"unidle/{role}") in found


def test_jobs_of_any_user_reach_the_socket_of_the_agents_unit_where_the_docs_say() -> None:
    found = dict(directives(DEPLOY / "systemd" / "unidle-agent.service"))
    flags = command_parser("agent").parse_args(shlex.split(found["ExecStart"])[2:])
    folder = f"/run/{found['RuntimeDirectory']}"
    assert flags.reporter_socket == "${RUNTIME_DIRECTORY}/reporter.sock"
    assert found["RuntimeDirectoryMode"] == "0755"
    # Kept over a stop, a dynamic user's folder lies in /run/private, which is root's alone (systemd.exec(5)).
    assert "RuntimeDirectoryPreserve" not in found
    assert f"{folder}/reporter.sock" in (ROOT / "docs" / "in-job.md").read_text(encoding="utf-8")


def test_a_unit_that_serves_metrics_asks_for_their_token() -> None:
    start = dict(directives(DEPLOY / "systemd" / "unidle-agent.service"))["ExecStart"]
    flags = command_parser("agent").parse_args(shlex.split(start)[2:])
    assert flags.metrics_token_file == "${CREDENTIALS_DIRECTORY}/metrics-token"
    assert flags.push_token_file == "${CREDENTIALS_DIRECTORY}/push-token"


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_is_restarted_bounded_and_closed(unit: Path) -> None:
    found = directives(unit)
    assert {
        ("DynamicUser", "yes"),
        ("ProtectSystem", "strict"),
        ("NoNewPrivileges", "yes"),
        ("Restart", "on-failure"),
        ("RestartPreventExitStatus", str(WRONG_USAGE)),
        ("StartLimitIntervalSec", "0"),
        ("SystemCallFilter", "@system-service"),
    } <= set(found)
    keys = dict(found)
    assert "MemoryMax" in keys
    closed = {"PrivateDevices", "DevicePolicy", "DeviceAllow", "ProtectClock"} & set(keys)
    assert bool(closed) == ("agent" not in unit.stem), "the agent opens /dev/nvidia*"
    assert ("ProtectProc" in keys) == ("agent" not in unit.stem), "the agent reads the host's /proc"


def test_every_file_says_first_how_it_is_used() -> None:
    files = [path for path in DEPLOY.rglob("*") if path.is_file() and path.suffix not in (".md", ".json")]
    files = [path for path in files if "secrets" not in path.parts]
    assert len(files) > 20
    silent = [
        path for path in files if not path.read_text("utf-8").removeprefix("#!/bin/sh\n").startswith("# ")
    ]
    assert silent == []


def test_the_kernel_log_is_closed_unless_the_drop_in_is_copied() -> None:
    unit = dict(directives(DEPLOY / "systemd" / "unidle-agent.service"))
    assert (unit["ProtectKernelLogs"], unit["AmbientCapabilities"]) == ("yes", "")
    drop_in = dict(directives(DEPLOY / "systemd" / "unidle-agent.service.d" / "kernel-log.conf"))
    assert drop_in == {
        "ProtectKernelLogs": "no",
        "CapabilityBoundingSet": "CAP_SYSLOG",
        "AmbientCapabilities": "CAP_SYSLOG",
    }


def for_this_machine(folder: Path) -> list[Path]:
    """The units with a command that is there: systemd asks for it."""
    unidle = Path(sys.executable).with_name("unidle")
    out = []
    for unit in UNITS:
        copy = folder / unit.name
        text = unit.read_text(encoding="utf-8").replace("/opt/unidle/bin/unidle", str(unidle))
        copy.write_text(text, encoding="utf-8")
        out.append(copy)
    return out


needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine"
)


@needs_systemd
def test_systemd_has_no_complaint_about_the_units(tmp_path: Path) -> None:
    command = ["systemd-analyze", "verify", *map(str, for_this_machine(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    ours = [line for line in done.stderr.splitlines() if "unidle" in line]
    assert (done.returncode, ours) == (0, [])


@needs_systemd
def test_systemd_finds_little_that_a_unit_could_still_reach(tmp_path: Path) -> None:
    for unit in for_this_machine(tmp_path):
        threshold = f"--threshold={MOST_EXPOSED * 10:.0f}"
        command = ["systemd-analyze", "security", "--offline=true", "--no-pager", threshold, str(unit)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if "unrecognized option" in done.stderr:
            pytest.skip("this systemd-analyze judges no files (it needs systemd 250)")
        assert done.returncode == 0, done.stdout + done.stderr


# unidle.toml


@pytest.mark.parametrize("section", SECTIONS)
def test_the_example_loads_and_shows_every_setting_with_its_default(section: str, tmp_path: Path) -> None:
    example = (DEPLOY / "unidle.toml").read_text(encoding="utf-8")
    flags = argparse.Namespace(config=str(with_secrets(tmp_path, example, "/etc/unidle/")))
    load(SECTIONS[section], section, flags, environ={})  # as it stands
    everything = re.sub(r"(?m)^# (\w+ = )", r"\1", example)
    flags = argparse.Namespace(config=str(with_secrets(tmp_path, everything, "/etc/unidle/")))
    settings = load(SECTIONS[section], section, flags, environ={})  # with every line that is commented out
    shown = tomllib.loads(everything)[section]
    active = tomllib.loads(example)[section]
    for field in dataclasses.fields(settings):
        if get_type_hints(SECTIONS[section])[field.name] is Secret:
            assert f"{field.name}_file" in shown
        else:
            assert field.name in shown
            if field.name not in active:
                assert getattr(settings, field.name) == field.default


def test_the_example_has_no_section_that_nobody_reads() -> None:
    document = tomllib.loads((DEPLOY / "unidle.toml").read_text(encoding="utf-8"))
    assert list(document) == list(SECTIONS)


# Kubernetes

KUBERNETES = DEPLOY / "kubernetes"
KUSTOMIZATION = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text(encoding="utf-8"))
RESOURCES = [
    document
    for name in KUSTOMIZATION["resources"]
    for document in yaml.safe_load_all((KUBERNETES / name).read_text(encoding="utf-8"))
]
WORKLOADS = {
    resource["metadata"]["labels"]["app.kubernetes.io/component"]: resource
    for resource in RESOURCES
    if resource["kind"] in ("DaemonSet", "Deployment")
}


def pod(role: str) -> dict[str, Any]:
    return WORKLOADS[role]["spec"]["template"]["spec"]


def container(role: str) -> dict[str, Any]:
    (one,) = pod(role)["containers"]
    return one


@pytest.fixture
def in_cluster(tmp_path: Path) -> dict[str, Any]:
    """Role -> the settings that it has in the cluster."""
    text = (KUBERNETES / "unidle.toml").read_text(encoding="utf-8")
    flags = argparse.Namespace(config=str(with_secrets(tmp_path, text, "/run/secrets/unidle/")))
    return {role: load(cls, role, flags, environ={}) for role, cls in ROLES.items()}


def test_every_role_has_a_workload_and_every_file_is_applied() -> None:
    assert set(WORKLOADS) == set(ROLES)
    files = {path.name for path in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml"}
    assert files == set(KUSTOMIZATION["resources"])
    assert not [one for one in RESOURCES if one["kind"] == "Secret"], "secrets are no part of a repository"


@pytest.mark.parametrize("role", ROLES)
def test_a_pod_has_no_rights_that_it_does_not_need(role: str) -> None:
    assert pod(role)["securityContext"]["runAsNonRoot"] is True
    assert pod(role)["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(role)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod(role)["automountServiceAccountToken"] is False
    taints = [{"key": "nvidia.com/gpu", "operator": "Exists"}] if role == "agent" else []
    assert pod(role).get("tolerations", []) == taints
    shared = {key for key in ("hostNetwork", "hostPID", "hostIPC") if pod(role).get(key)}
    assert shared == ({"hostNetwork", "hostPID"} if role == "agent" else set())
    assert "memory" in container(role)["resources"]["limits"]


@pytest.mark.parametrize("role", ROLES)
def test_the_names_of_services_do_not_become_settings(role: str, tmp_path: Path) -> None:
    assert pod(role)["enableServiceLinks"] is False
    file = tmp_path / "empty.toml"
    file.write_text("")
    with pytest.raises(Exception, match=r"port: expected a whole number.*tcp://"):  # what it prevents
        load(
            ROLES[role],
            role,
            argparse.Namespace(config=str(file)),
            environ={f"UNIDLE_{role.upper()}_PORT": "tcp://10.96.0.7:9470"},
        )


@pytest.mark.parametrize("role", ROLES)
def test_a_container_runs_its_role_of_this_version(role: str) -> None:
    assert container(role)["image"] == f"unidle:{PROJECT['project']['version']}"
    command, *flags = container(role)["args"]
    assert command == role
    command_parser(command).parse_args(flags)
    known = {f"UNIDLE_{role}_{field.name}".upper() for field in dataclasses.fields(ROLES[role])}
    given = {one["name"] for one in container(role).get("env", ()) if one["name"].startswith("UNIDLE_")}
    assert given <= known


@pytest.mark.parametrize("role", ROLES)
def test_what_a_role_reads_and_writes_is_mounted(role: str, in_cluster: dict[str, Any]) -> None:
    volumes = {volume["name"]: volume for volume in pod(role)["volumes"]}
    mounts = {mount["mountPath"]: mount for mount in container(role)["volumeMounts"]}
    assert {mount["name"] for mount in mounts.values()} == set(volumes)
    section = tomllib.loads((KUBERNETES / "unidle.toml").read_text(encoding="utf-8"))[role]
    for key, value in section.items():
        if key.endswith("_file"):
            folder, _, name = value.rpartition("/")
            assert "secret" in volumes[mounts[folder]["name"]]
            assert f"{volumes[mounts[folder]['name']]['secret']['secretName']} {name}" in readme_secrets()
    written = {str(getattr(in_cluster[role], key, "")) for key in ("state_dir", "data_dir")} - {""}
    assert written <= {path for path, mount in mounts.items() if not mount.get("readOnly")}


def test_the_agents_socket_is_on_the_node_where_the_pods_of_jobs_find_it(in_cluster: dict[str, Any]) -> None:
    socket = in_cluster["agent"].reporter_path
    (volume,) = [volume for volume in pod("agent")["volumes"] if "hostPath" in volume]
    assert volume["hostPath"] == {"path": str(socket.parent), "type": "DirectoryOrCreate"}
    mount = {"name": volume["name"], "mountPath": str(socket.parent)}
    assert mount in container("agent")["volumeMounts"], "and it can be written"
    (prepares,) = pod("agent")["initContainers"]
    user, group = (pod("agent")["securityContext"][key] for key in ("runAsUser", "runAsGroup"))
    assert prepares["command"] == ["chown", f"{user}:{group}", str(socket.parent)]
    assert prepares["image"] == container("agent")["image"]
    assert prepares["volumeMounts"] == [mount]
    assert prepares["securityContext"] == {
        "runAsNonRoot": False,
        "runAsUser": 0,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"], "add": ["CHOWN"]},
    }
    example = (ROOT / "docs" / "in-job.md").read_text(encoding="utf-8").partition("```yaml")[2]
    job = yaml.safe_load(example.partition("```")[0])
    assert job["env"] == [{"name": "UNIDLE_REPORTER", "value": str(socket)}]
    assert job["volumes"][0]["hostPath"] == volume["hostPath"]
    assert job["volumeMounts"][0]["mountPath"] == str(socket.parent)


def readme_secrets() -> set[str]:
    """`NAME KEY` of every secret that deploy/README.md tells to make."""
    text = (DEPLOY / "README.md").read_text(encoding="utf-8")
    return {
        f"{name} {key}"
        for name, key in re.findall(r"create secret generic (\S+) --from-(?:file|literal)=(\w+)=", text)
    }


def test_roles_find_the_collector_under_a_name_that_it_answers_to(in_cluster: dict[str, Any]) -> None:
    (service,) = [
        one for one in RESOURCES if one["kind"] == "Service" and one["metadata"]["name"] == "unidle-collector"
    ]
    collector = in_cluster["collector"]
    for url in (
        in_cluster["agent"].push_url,
        in_cluster["alerts"].collector_url,
        in_cluster["dashboard"].collector_url,
    ):
        host = urlsplit(url).hostname
        assert host == f"{service['metadata']['name']}.{KUSTOMIZATION['namespace']}.svc"
        assert host in collector.allowed_hosts
        assert urlsplit(url).port == service["spec"]["ports"][0]["port"] == collector.port


@pytest.mark.parametrize("role", ROLES)
def test_probes_and_services_use_the_port_that_the_role_listens_on(
    role: str, in_cluster: dict[str, Any]
) -> None:
    ports = {port["name"]: port["containerPort"] for port in container(role).get("ports", ())}
    probe = container(role)["livenessProbe"]
    asked = next(iter(probe[kind] for kind in ("httpGet", "tcpSocket") if kind in probe))["port"]
    assert ports.get(asked, asked) == in_cluster[role].port
    assert set(ports.values()) <= {in_cluster[role].port}


def test_a_dashboard_without_a_login_is_reached_by_nobody_in_the_cluster() -> None:
    (policy,) = [one for one in RESOURCES if one["kind"] == "NetworkPolicy"]
    labels = WORKLOADS["dashboard"]["spec"]["template"]["metadata"]["labels"]
    assert policy["spec"]["podSelector"]["matchLabels"] == labels
    assert policy["spec"]["ingress"] == []


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl on this machine")
def test_the_kernel_log_reaches_the_agents_pods_only_with_its_component(tmp_path: Path) -> None:
    folder = tmp_path / "kubernetes"
    shutil.copytree(KUBERNETES, folder)
    for components in ("", "components: [kernel-log]\n"):
        with (folder / "kustomization.yaml").open("a", encoding="utf-8") as end:
            end.write(components)
        built = subprocess.run(
            ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60, check=True
        ).stdout
        (agent,) = [
            one for one in yaml.safe_load_all(built)
            if (one["kind"], one["metadata"]["name"]) == ("DaemonSet", "unidle-agent")
        ]  # fmt: skip
        (container,) = agent["spec"]["template"]["spec"]["containers"]
        mounted = [mount["mountPath"] for mount in container["volumeMounts"]]
        assert ("/dev/kmsg" in mounted) == bool(components)
        assert container["securityContext"].get("privileged", False) == bool(components)
        assert "/etc/unidle" in mounted


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl on this machine")
def test_kustomize_builds_what_is_applied() -> None:
    done = subprocess.run(
        ["kubectl", "kustomize", str(KUBERNETES)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    built = list(yaml.safe_load_all(done.stdout))
    assert len(built) == len(RESOURCES) + 1, "and the ConfigMap"
    (settings,) = [one for one in built if one["kind"] == "ConfigMap"]
    assert settings["data"]["unidle.toml"] == (KUBERNETES / "unidle.toml").read_text(encoding="utf-8")
    mounted = {
        volume["configMap"]["name"]
        for one in built
        if one["kind"] in ("DaemonSet", "Deployment")
        for volume in one["spec"]["template"]["spec"]["volumes"]
        if "configMap" in volume
    }
    assert mounted == {settings["metadata"]["name"]}


def test_every_resource_is_valid_by_the_schemas_of_kubernetes() -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate to check")
    for resource in RESOURCES:
        validate.validate(resource, validate.latest_version(), strict=True)


# The image

DOCKERFILE = (DEPLOY / "container" / "Dockerfile").read_text(encoding="utf-8")


def test_the_image_is_built_from_all_that_the_build_reads_and_no_more() -> None:
    copied = {
        source for line in re.findall(r"(?m)^COPY (?!--)(.+)$", DOCKERFILE) for source in line.split()[:-1]
    }
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    needed = {Path(package).parts[0] for package in packages}
    needed |= {"pyproject.toml", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]}
    assert copied == needed
    ignore = (DEPLOY / "container" / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in ignore if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == needed
    assert not [name for name in needed for rule in rules[1:] if fnmatch.fnmatch(name, rule)]


def test_the_image_runs_a_role_that_exists_as_nobody_in_particular() -> None:
    offered = re.search(r"# (.+)\nARG ROLE=(\w+)", DOCKERFILE)
    assert offered is not None
    roles = set(PROJECT["project"]["optional-dependencies"]) - {
        "otlp",
        "influx",
        "nats",
        "postgres",
    }  # additions to a role
    assert set(offered[1].split(" | ")) == roles
    assert offered[2] == "all"
    user = re.search(r"(?m)^USER (\d+):", DOCKERFILE)
    assert user is not None
    assert {pod(role)["securityContext"]["runAsUser"] for role in ROLES} == {int(user[1])}
    floor = re.search(r"\d+\.\d+", PROJECT["project"]["requires-python"])
    assert floor is not None
    assert set(re.findall(r"(?m)^FROM (\S+)", DOCKERFILE)) == {f"python:{floor[0]}-slim"}


# Prometheus

PROMETHEUS = DEPLOY / "prometheus"
RULES = [
    rule
    for group in yaml.safe_load((PROMETHEUS / "unidle.rules.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]


OF_SITES = {"unidle_site_shard_up"}
"""On /metrics/site of collectors of shards, where tests/shards/test_site_view.py reads it."""


def test_rules_ask_for_metrics_that_there_are(tmp_path: Path) -> None:
    known = metric_pages.names(metric_pages.pages(tmp_path))
    asked = {name for rule in RULES for name in re.findall(r"\bunidle_\w+", rule["expr"])}
    assert len(asked) > 10
    assert asked <= known | OF_SITES


def test_rules_and_scrapes_speak_of_the_same_jobs_and_ports() -> None:
    scrapes = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    asked = {job for rule in RULES for job in re.findall(r'job="([^"]+)"', rule["expr"])}
    assert asked <= {scrape["job_name"] for scrape in scrapes}
    for scrape in scrapes:
        (target,) = scrape["static_configs"][0]["targets"]
        settings = ROLES[scrape["job_name"].removeprefix("unidle-")]()
        assert target == f"{settings.bind}:{settings.port}"


def promtool(*arguments: str | Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("no promtool on this machine")
    command = ["promtool", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_prometheus_takes_configuration_and_rules() -> None:
    promtool("check", "config", "--syntax-only", PROMETHEUS / "prometheus.yml")
    promtool("check", "rules", PROMETHEUS / "unidle.rules.yml")


def series(name: str, values: str) -> dict[str, str]:
    return {"series": name, "values": values}


FIRING = [
    ("UnidleCollectorDown", [series('up{job="unidle-collector",instance="c"}', "1 0x20")]),
    ("UnidleNothingArrives", [series('unidle_collector_rows_ingested_total{instance="c"}', "7x20")]),
    ("UnidleShardAway", [series('unidle_site_shard_up{shard="4",instance="c"}', "1x5 0x15")]),
    ("UnidleStoreRefuses", [series('unidle_collector_pushes_store_full_total{instance="c"}', "0+1x20")]),
    ("UnidleAgentLosesRows", [series('unidle_agent_batches_dropped_total{instance="n"}', "0+1x20")]),
    ("UnidleAlertsGivenUp", [series('unidle_alerts_given_up{destination="slack_webhook"}', "0x5 1x15")]),
    (
        "UnidleHoursLost",
        [
            series('unidle_fleet_lost_gpu_seconds{instance="c",job="j"}', "10800x60"),
            series('unidle_fleet_gpus{instance="c",job="j",state="idle"}', "4x60"),
            series('unidle_fleet_gpus{instance="c",job="j",state="productive"}', "6x60"),
        ],
    ),
]
QUIET = [
    series('up{job="unidle-collector",instance="c"}', "1x60"),
    series('unidle_collector_rows_ingested_total{instance="c"}', "0+480x60"),
    series('unidle_site_shard_up{shard="4",instance="c"}', "1x30 0 1x30"),
    series('unidle_collector_pushes_store_full_total{instance="c"}', "3x60"),
    series('unidle_agent_batches_dropped_total{instance="n"}', "3x60"),
    series('unidle_alerts_given_up{destination="slack_webhook"}', "0x60"),
    series('unidle_fleet_lost_gpu_seconds{instance="c",job="j"}', "3600x60"),
    series('unidle_fleet_gpus{instance="c",job="j",state="productive"}', "10x60"),
]


def cases() -> Iterator[dict[str, Any]]:
    for name, given in FIRING:
        fires = f'count(ALERTS{{alertname="{name}",alertstate="firing"}})'
        yield {
            "interval": "1m",
            "input_series": given,
            "promql_expr_test": [
                {
                    "expr": fires,
                    "eval_time": "20m" if len(given) == 1 else "55m",
                    "exp_samples": [{"value": 1}],
                }
            ],
        }
    nothing = {"expr": 'ALERTS{alertstate="firing"}', "eval_time": "55m", "exp_samples": []}
    yield {"interval": "1m", "input_series": QUIET, "promql_expr_test": [nothing]}


@pytest.mark.slow
def test_rules_fire_when_they_should_and_are_quiet_otherwise(tmp_path: Path) -> None:
    shutil.copy(PROMETHEUS / "unidle.rules.yml", tmp_path)
    document = {"rule_files": ["unidle.rules.yml"], "evaluation_interval": "1m", "tests": list(cases())}
    (tmp_path / "test.yml").write_text(yaml.safe_dump(document), encoding="utf-8")
    promtool("test", "rules", tmp_path / "test.yml")
