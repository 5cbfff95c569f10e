"""All shards of a site as one collector: held against a single collector that got the same rows."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import TypeAdapter
from starlette.testclient import TestClient
from tests.collector.api_server import listening
from tests.collector.pushing import START_S, Site, batch
from tests.collector.test_live import COOL, HELD
from tests.federation.reports import TOKEN
from tests.federation.test_federation_policy import write
from tests.shards.nats_servers import free_ports

from unidle_agent.settings import Secret
from unidle_agent.shards import SHARDS, shard_of
from unidle_agent.wire import Batch, encode
from unidle_collector.api import reading_app
from unidle_collector.client import Client
from unidle_collector.federation.report import DIMENSIONS, OTHERS, WINDOWS_S, SiteReport
from unidle_collector.ingest.tokens import Tokens
from unidle_collector.settings import CollectorSettings
from unidle_collector.shards.app import ShardsApp
from unidle_collector.shards.leases import Lease
from unidle_collector.shards.progress import Progress
from unidle_collector.shards.view.asking import Asking
from unidle_collector.shards.view.findings import Part
from unidle_collector.store import open_state
from unidle_collector.store.errors import StoreError

pytestmark = pytest.mark.slow

JOB_OF = {"n28": "4711", "n42": "4711", "n09": "4711", "n06": "busy"}
"""Node -> its job; 4711 is in two shards and idle."""
HERE, THERE, EMPTY = (3,), (4, 8), 0
SECONDS = 1830
READ = "read-token-of-the-test"
"""All collectors have it; what is asked of the other one goes with the reader's."""


class Collector:
    """One of two collectors, without a broker: it holds `shards`."""

    def __init__(self, name: str, folder: Path, leases: list[Lease], shards: dict[int, Site]) -> None:
        self.holder, self.leases = name, leases
        self.settings = CollectorSettings(data_dir=folder, allowed_hosts=("testserver", "127.0.0.1"))
        self.problems: dict[str, str] = {}
        self.counters: Counter[str] = Counter()
        self.parts: list[Part] = []
        self.state = open_state(folder / f"{name}.sqlite")
        self.incidents = SimpleNamespace(
            problem="", parts=lambda: self.parts, kept=lambda shard: (1, 2) if shard in THERE else None
        )
        self.held = {
            shard: SimpleNamespace(
                shard=shard,
                live=one.live,
                keeper=SimpleNamespace(progress=Progress(), saves=0),
                feed=SimpleNamespace(behind=0),
                closing=False,
            )
            for shard, one in shards.items()
        }
        self.http = TestClient(
            ShardsApp(self, Tokens(self.state, time.time_ns, shared_read=READ)),  # type: ignore[arg-type]
            headers={"Authorization": f"Bearer {READ}"},
        )

        self.away = False
        self.stale: list[list[Lease]] = []
        """What the table says before it says how it is."""

    def table(self) -> list[Lease]:
        if self.away:
            raise StoreError("expected to read the state, came nothing")
        return self.stale.pop() if self.stale else list(self.leases)


@dataclass
class Both:
    """The site in shards, and the single collector."""

    a: Collector
    b: Collector
    single: Site

    def get(self, path: str, of: Any = None) -> Any:
        reply = (of or self.a).http.get(f"/api/v1/{path}")
        assert reply.status_code == 200, reply.text
        assert "x-unidle-gaps" not in reply.headers
        return reply.json()


def row_of(node: str, number: int) -> Batch:
    """The batch of that number: the nodes of the idle job hold memory only."""
    values = HELD if JOB_OF[node] == "4711" else COOL
    gpus = (f"{node}-a", f"{node}-b")
    return batch(number, 30 * number, 30, values, node=node, gpus=gpus, job=JOB_OF[node])


def push_together(one: Site, batches: list[Batch]) -> None:
    """As one group: no node is behind because another one came first."""
    may_go = threading.Event()
    one.live.ask(may_go.wait)
    answers = [one.live.push(encode(item), one.clock(), None) for item in batches]
    may_go.set()
    for answer in answers:
        answer.result(timeout=30)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    folder = tmp_path_factory.mktemp("site")
    assert {shard_of(node) for node in JOB_OF} == {*HERE, *THERE}
    single = Site(folder / "single")
    sites = {shard: Site(folder / str(shard), part=f"/{shard}") for shard in (*HERE, *THERE, EMPTY)}
    for number in range(SECONDS // 30):
        for shards, one in (({*HERE, *THERE}, single), *(({shard}, here) for shard, here in sites.items())):
            one.clock.at_s = START_S + 30 * number + 30
            push_together(one, [row_of(node, number) for node in JOB_OF if shard_of(node) in shards])
            one.settle(30 * number + 33)
    for one in (single, *sites.values()):
        # Minutes older than the live window come from files, which the upkeep makes every 20 s of real time.
        one.live.store.convert_all(one.clock())
    leases = [Lease(shard, "a", "", 1, 9.0) for shard in range(SHARDS)]
    with ExitStack() as stack:
        patched = stack.enter_context(pytest.MonkeyPatch.context())
        # What is compared here must not depend on how busy the machine is.
        patched.setattr("unidle_collector.shards.app.Asking", partial(Asking, deadline_s=60.0))
        b = Collector("b", folder, leases, {shard: sites[shard] for shard in THERE})
        url = stack.enter_context(listening(b))
        for shard in THERE:
            leases[shard] = Lease(shard, "b", url, 1, 9.0)
        held = {shard: sites[shard if shard in HERE else EMPTY] for shard in set(range(SHARDS)) - set(THERE)}
        a = Collector("a", folder, leases, held)
        url = stack.enter_context(listening(a))
        for shard in held:
            leases[shard] = Lease(shard, "a", url, 1, 9.0)
        yield Both(a, b, single)
        for one in (single, *sites.values()):
            one.live.stop()


def near(value: Any) -> Any:
    """Sums of floats in another order are the same up to rounding."""
    if isinstance(value, dict):
        return {key: near(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [near(inner) for inner in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


BY = ("fleet", "site", "model", "job", "user", "team", "partition", "node", "gpu", "hour")


@pytest.mark.parametrize("by", BY)
def test_accounts_of_all_shards_are_those_of_a_single_collector_ratios_included(both: Both, by: str) -> None:
    window_s = 7200 if by == "hour" else 3600
    alone = both.get(f"accounts?by={by}&window_s={window_s}", both.single)
    together = both.get(f"accounts?by={by}&window_s={window_s}")
    assert near({one["key"]: one for one in together}) == near({one["key"]: one for one in alone})
    assert len(together) == len(alone)


def test_the_fleet_at_a_glance_is_that_of_a_single_collector(both: Both) -> None:
    together, alone = both.get("fleet"), both.get("fleet", both.single)
    ignored = {"open_incidents"}  # of the state, which this test does not share
    assert near({k: v for k, v in together.items() if k not in ignored}) == near(
        {k: v for k, v in alone.items() if k not in ignored}
    )
    assert (together["gpus"], together["jobs"]) == (8, 2)


def test_nodes_gpus_and_jobs_are_those_of_a_single_collector(both: Both) -> None:
    assert near(both.get("nodes")) == near(both.get("nodes", both.single))
    together, alone = both.get("gpus"), both.get("gpus", both.single)
    for gpu in (*together, *alone):  # a field that no GPU of a shard has sent is not there
        gpu["values"] = {name: value for name, value in gpu["values"].items() if value is not None}
    together.sort(key=lambda gpu: gpu["gpu"])
    assert together == sorted(alone, key=lambda gpu: gpu["gpu"])
    jobs, alone = both.get("jobs"), both.get("jobs", both.single)
    for job in (*jobs, *alone):
        job["gpus"].sort(key=lambda ref: ref["gpu"])
        job["nodes"].sort()
    assert jobs == alone


def test_what_two_shards_find_about_one_job_is_one_finding_with_all_of_its_gpus(both: Both) -> None:
    (together,), (alone,) = both.get("findings"), both.get("findings", both.single)
    for name in ("kind", "cause", "severity", "subject", "since_ns", "told_ns", "job", "nodes"):
        assert together[name] == alone[name]
    for name in ("cost_so_far", "cost_per_h"):
        assert near(together[name]) == near(alone[name])
    assert {ref["gpu"] for ref in together["gpus"]} == {ref["gpu"] for ref in alone["gpus"]}
    assert together["title"].endswith("(and 2 GPUs of the job on 1 other node)")
    (advice,), (advised,) = both.get("recommendations"), both.get("recommendations", both.single)
    assert advice["command"] == advised["command"] == "scancel 4711"
    assert near(advice["gain"]) == near(advised["gain"])


def test_a_finding_has_the_id_of_its_incident_and_the_cost_of_parts_that_are_over(both: Both) -> None:
    (before,) = both.get("findings")
    (raw,) = both.a.http.get("/shards/3/api/v1/findings").json()
    (finding,) = Client(f"{both.a.leases[4].url}/shards/4", READ).findings()
    assert {raw["id"], finding.id} - {before["id"]}, "each shard has its own"
    over = replace(finding, id="idle-over", ended_ns=1, since_ns=finding.since_ns - 10**9)
    both.a.parts = [Part(raw["id"], "idle-site", None), Part("idle-over", "idle-site", over)]
    try:
        (after,) = both.get("findings")
        assert after["id"] == "idle-site"
        more = finding.cost_so_far.gpu_h
        assert after["cost_so_far"]["gpu_h"] == pytest.approx(before["cost_so_far"]["gpu_h"] + more)
        assert after["cost_per_h"] == before["cost_per_h"]
        assert after["since_ns"] == before["since_ns"] - 10**9
    finally:
        both.a.parts = []


@pytest.mark.parametrize("path", ["gpus", "nodes", "jobs", "accounts?by=node", "accounts?by=gpu", "accounts"])
@pytest.mark.parametrize("limit", [1, 2, 3])
def test_pages_over_shards_together_are_the_list(both: Both, path: str, limit: int) -> None:
    name, _, query = path.partition("?")
    asked = [*parse_qsl(query), ("limit", str(limit))]
    found: list[Any] = []
    while True:
        reply = both.a.http.get(f"/api/v1/{name}", params=asked)
        assert len(reply.json()) <= limit
        found += reply.json()
        if "next" not in reply.links:
            break
        asked = parse_qsl(reply.links["next"]["url"][1:])
    assert found == both.get(path)


def test_the_answer_is_the_same_whichever_collector_is_asked(both: Both) -> None:
    for path in ("fleet", "gpus", "nodes", "jobs", "accounts?by=job", "findings", "recommendations", "queue"):
        assert near(both.get(path)) == near(both.get(path, both.b)), path


def test_gpus_come_as_one_table_and_series_from_the_shard_of_the_node(both: Both) -> None:
    with listening(both.a) as url:
        client = Client(url, READ)
        gpus = client.gpus(["power_w"])
        assert {(one.node, one.values["power_w"]) for one in gpus if one.job == "busy"} == {("n06", 600.0)}
        assert len(gpus) == 8
        assert [one.node for one in client.gpus(node="n09")] == ["n09", "n09"]
        series = client.series("n09", "n09-a", "power_w", 600)
        assert set(series.values) == {120.0}
        alone = both.get("series?node=n09&gpu=n09-a&field=power_w&window_s=600", both.single)
        assert list(series.values) == alone["values"]


def test_wrong_questions_get_the_words_of_a_single_collector(both: Both) -> None:
    for path in ("accounts?by=moon", "series?node=n09&field=moon", "gpus?node=n44", "gpus?after=bad",
                 "nodes?limit=0", "incidents/none", "quantile?job=none&field=power_w"):  # fmt: skip
        together, alone = both.a.http.get(f"/api/v1/{path}"), both.single.http.get(f"/api/v1/{path}")
        assert together.status_code == alone.status_code >= 400, path
        assert together.json()["detail"]


def metrics(http: TestClient, path: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Values by name and labels; those of shards added up."""
    reply = http.get(path)
    assert reply.status_code == 200, reply.text
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in text_string_to_metric_families(reply.text):
        for sample in family.samples:
            key = sample.name, frozenset(item for item in sample.labels.items() if item[0] != "shard")
            found[key] = found.get(key, 0.0) + sample.value
    return found


OF_FLEET = ("unidle_fleet_", "unidle_account_", "unidle_findings", "unidle_open_findings", "unidle_gpus")


def test_metrics_of_the_site_are_those_of_a_single_collector_from_whichever_is_scraped(both: Both) -> None:
    alone = metrics(both.single.http, "/metrics")
    expected = {key: value for key, value in alone.items() if key[0].startswith(OF_FLEET)}
    assert {name for name, _ in expected} >= {"unidle_account_gpu_seconds_total", "unidle_findings"}
    for one in (both.a, both.b):
        together = metrics(one.http, "/metrics/site")
        of_fleet = {key: value for key, value in together.items() if key[0].startswith(OF_FLEET)}
        assert of_fleet == pytest.approx(expected)
        assert together["unidle_site_shard_up", frozenset()] == SHARDS
    if promtool := shutil.which("promtool"):
        page = both.a.http.get("/metrics/site").text
        checked = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, text=True)
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_metrics_of_a_shard_that_is_away_are_not_there_and_its_gpus_are_unknown(both: Both) -> None:
    leases = list(both.a.leases)
    leases[4] = Lease(4, "", "", 1, -1.0)
    http = again(both, leases).http
    text = http.get("/metrics/site").text
    assert '\nunidle_site_shard_up{shard="4"} 0\n' in text
    assert '\nunidle_site_shard_up{shard="8"} 1\n' in text
    assert "\nunidle_site_gpus_away 2\n" in text
    assert '\nunidle_fleet_gpus{state="unknown"} 2\n' in text
    assert '\nunidle_gpus{simulated="0"} 6\n' in text
    assert 'total{shard="4"' not in text
    assert 'total{shard="8"' in text
    nobody = [Lease(shard, "", "", 1, -1.0) for shard in range(SHARDS)]
    assert again(both, nobody).http.get("/metrics/site").status_code == 503, "no empty fleet"
    assert again(both, nobody).http.get("/metrics").status_code == 200
    assert both.a.http.get("/metrics/site", headers={"Authorization": ""}).status_code == 401


def test_every_path_of_a_single_collector_is_there_with_its_parameters(both: Both) -> None:
    alone = reading_app(both.single.live, both.single.tokens).openapi()["paths"]
    together = both.a.http.get("/openapi.json").json()["paths"]
    of_one_collector = {"/api/v1/push", "/api/v1/federation", "/api/v1/federation/crossings"}
    assert set(alone) - of_one_collector <= set(together)
    for path in set(alone) - of_one_collector:
        names = [
            {one["name"] for one in paths[path]["get"].get("parameters", ())} for paths in (alone, together)
        ]
        assert names[0] == names[1], path


def again(both: Both, leases: list[Lease] | None = None) -> Collector:
    """The first collector anew: it has looked at no lease yet."""
    asked = Collector("a", both.a.settings.data_dir, both.a.leases if leases is None else leases, {})
    asked.held = both.a.held
    return asked


def test_without_a_token_nothing_is_answered(both: Both) -> None:
    for path in ("fleet", "gpus", "events", "shards", "collector"):
        assert both.a.http.get(f"/api/v1/{path}", headers={"Authorization": ""}).status_code == 401


def test_a_shard_that_has_moved_since_is_found_where_it_is(both: Both) -> None:
    asked = again(both)
    of_b = both.a.leases[4]
    asked.stale = [[replace(of_b, shard=shard) for shard in range(SHARDS)]]  # b sends one on to a
    assert [one["node"] for one in asked.http.get("/api/v1/nodes").json()] == sorted(JOB_OF)


def test_who_holds_what_is_remembered_while_the_database_is_away(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = again(both)
    monkeypatch.setattr("unidle_collector.shards.view.asking.TABLE_HOLDS_S", 0)
    assert len(asked.http.get("/api/v1/nodes").json()) == len(JOB_OF)
    asked.away = True
    assert len(asked.http.get("/api/v1/nodes").json()) == len(JOB_OF)


def test_a_shard_that_breaks_is_a_gap_and_not_the_end_of_the_answer(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(both.a.held[3].live.engine.ledger, "tally", lambda *_: 1 / 0)
    found = both.a.http.get("/api/v1/accounts?by=fleet")
    assert (found.status_code, found.headers["x-unidle-gaps"]) == (200, "shard 3: HTTP 500")
    assert found.json()[0]["seconds"]["unknown"] == 0, "what it has kept is not known here"


def test_a_collector_that_hangs_is_waited_for_once_in_an_answer(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unidle_collector.shards.app.Asking", partial(Asking, deadline_s=2.0))
    with socket.create_server(("127.0.0.1", 0)) as hung:
        url = f"http://127.0.0.1:{hung.getsockname()[1]}"
        leases = [
            replace(one, holder="c", url=url) if one.shard in (5, 9, 15) else one for one in both.a.leases
        ]
        found = again(both, leases).http.get("/api/v1/gpus")
        hung.setblocking(False)
        asked = 0
        with suppress(BlockingIOError):
            while True:
                hung.accept()[0].close()
                asked += 1
    assert (len(found.json()), asked) == (8, 1)
    assert [gap.partition(":")[0] for gap in found.headers["x-unidle-gaps"].split("; ")] == [
        "shard 5", "shard 9", "shard 15",
    ]  # fmt: skip
    assert found.headers["x-unidle-gaps"].count("no whole answer within 2 s") == 3


def test_where_no_shard_answers_there_is_no_empty_list(both: Both) -> None:
    asked = again(both, [Lease(shard, "", "", 1, -1.0) for shard in range(SHARDS)])
    for path in ("findings", "gpus", "nodes", "jobs", "accounts?by=job", "accounts?by=gpu", "fleet"):
        told = asked.http.get(f"/api/v1/{path}")
        assert told.status_code == 503, path
        assert "no shard answers: shard 0: no collector holds it" in told.json()["detail"]
    assert asked.http.get("/api/v1/incidents").json() == []
    assert asked.http.get("/api/v1/health").json()["ok"] is False


def test_a_shard_that_does_not_answer_is_named_and_its_gpus_are_unknown(both: Both) -> None:
    leases, (port,) = both.a.leases, free_ports(1)
    before = list(leases)
    leases[4] = Lease(4, "c", f"http://127.0.0.1:{port}", 1, 9.0)
    leases[5] = Lease(5, "", "", 1, -1.0)
    try:
        asked = again(both)
        fleet = asked.http.get("/api/v1/fleet")
        assert "shard 4: c at http" in fleet.headers["x-unidle-gaps"]
        told = fleet.json()
        assert [gap.partition(":")[0] for gap in told["gaps"]] == ["shard 4", "shard 5"]
        assert "connection refused" in told["gaps"][0]
        assert "no collector holds it" in told["gaps"][1]
        assert (told["gpus"], told["nodes"], told["states"]["unknown"]) == (8, 4, 2)
        assert told["account"]["seconds"]["unknown"] >= 2 * 3600
        health = asked.http.get("/api/v1/health").json()
        assert health["ok"] is False
        assert health["counters"]["shards_away"] == 2
        assert any("shard 4" in problem for problem in health["problems"])
        nodes = asked.http.get("/api/v1/nodes")
        assert [one["node"] for one in nodes.json()] == ["n06", "n28", "n42"]
        assert "shard 4" in nodes.headers["x-unidle-gaps"]
        series = asked.http.get("/api/v1/series?node=n09&gpu=n09-a&field=power_w")
        assert (series.status_code, "shard 4" in series.json()["detail"]) == (503, True)
    finally:
        leases[:] = before


POLICY = """smallest_group = 3
[share]
anywhere = ["fleet.now", "accounts.fleet", "accounts.hour", "findings.counts", "health"]
inside = [
    "accounts.model", "accounts.team", "accounts.cause", "accounts.job", "accounts.user", "eur",
    "recommendations.totals",
]
"""


def reporting(of: Collector, folder: Path, policy: str = POLICY) -> TestClient:
    """The same collector with a policy, and a receiver that asks it; a reader's token does not lead there."""
    of.settings = replace(
        of.settings,
        federation_file=str(write(folder, policy)),
        jurisdiction="EU",
        site="fra",
        read_token=Secret(READ),
    )
    app = ShardsApp(of, Tokens(of.state, time.time_ns, shared_read=READ))  # type: ignore[arg-type]
    return TestClient(app, headers={"Authorization": f"Bearer {TOKEN}"})


def told(http: TestClient) -> SiteReport:
    reply = http.get("/api/v1/federation")
    assert reply.status_code == 200, reply.text
    return TypeAdapter(SiteReport).validate_json(reply.content)


def test_the_report_to_a_federation_is_that_of_a_single_collector_from_whichever_is_asked(
    both: Both, tmp_path: Path
) -> None:
    live = both.single.live
    before, live.settings = (
        live.settings,
        replace(live.settings, federation_file=str(write(tmp_path, POLICY)), jurisdiction="EU", site="fra"),
    )
    try:
        app = reading_app(live, both.single.tokens)
    finally:
        live.settings = before
    alone = told(TestClient(app, headers={"Authorization": f"Bearer {TOKEN}"}))
    a, b = again(both), both.b
    b.state = a.state  # what they share
    for http in (reporting(a, tmp_path), reporting(b, tmp_path)):
        whole = told(http)
        assert whole.now is not None
        assert near(asdict(whole.now)) == near(asdict(alone.now))  # type: ignore[arg-type]
        assert (whole.policy.merged, whole.simulated) == (alone.policy.merged, alone.simulated)
        for window_s in WINDOWS_S:
            for by in DIMENSIONS:
                mine, theirs = whole.accounts(window_s, by), alone.accounts(window_s, by)
                assert (mine is None) is (theirs is None), by
                assert {one.key: near(asdict(one)) for one in mine or ()} == {
                    one.key: near(asdict(one)) for one in theirs or ()
                }, by
        assert [near(asdict(one)) for one in whole.findings or ()] == [
            near(asdict(one)) for one in alone.findings or ()
        ]
        assert near([asdict(one) for one in whole.recommendations or ()]) == near(
            [asdict(one) for one in alone.recommendations or ()]
        )
        assert http.get("/api/v1/fleet").status_code == 401, "a receiver is no reader"
        assert http.get("/api/v1/federation/part?window_s=3600&by=user").status_code == 401
        part = http.get("/shards/3/api/v1/federation", follow_redirects=False)
        assert part.status_code in (307, 401), "no report of a part of a site"
    ids = {told(reporting(one, tmp_path)).site_id for one in (a, b, a)}
    assert len(ids) == 1, "counted once, whichever answers"
    reader = {"Authorization": f"Bearer {READ}"}
    crossings = reporting(b, tmp_path).get("/api/v1/federation/crossings", headers=reader).json()
    assert len(crossings) == 5, "each answer by each collector, in one log"
    assert both.a.http.get("/api/v1/federation").status_code == 401
    little = told(reporting(a, tmp_path, '[share]\nanywhere = ["fleet.now"]'))
    assert little.now is not None
    assert [window.by for window in little.windows] == [{}] * len(WINDOWS_S)


def test_gpus_of_a_shard_that_is_away_are_unknown_to_the_federation(both: Both, tmp_path: Path) -> None:
    whole = told(reporting(again(both), tmp_path))
    leases = list(both.a.leases)
    leases[4] = Lease(4, "", "", 1, -1.0)
    less = told(reporting(again(both, leases), tmp_path))
    assert less.now is not None
    assert whole.now is not None
    assert (less.now.gpus, less.now.states["unknown"]) == (whole.now.gpus, 2)
    for by in ("fleet", "hour"):
        mine, theirs = less.accounts(86_400.0, by), whole.accounts(86_400.0, by)
        assert mine is not None
        assert theirs is not None
        for one, other in zip(mine, theirs, strict=True):
            assert one.gpus == other.gpus
            assert sum(one.seconds.values()) >= sum(other.seconds.values())
            assert one.seconds["unknown"] > other.seconds["unknown"]
    for by in ("model", "team"):  # beside the report of before, a group could be what one person did
        (one,) = less.accounts(86_400.0, by) or ()
        assert one.key == OTHERS
        assert one.gpus == 6
    assert less.health is not None
    assert less.health.ok is False
    nobody = [Lease(shard, "", "", 1, -1.0) for shard in range(SHARDS)]
    away = reporting(again(both, nobody), tmp_path).get("/api/v1/federation")
    assert (away.status_code, away.headers["retry-after"]) == (503, "10")
