"""The policy of a site, its door and its audit log; and a federation that asks."""

from __future__ import annotations

import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from tests.collector.pushing import START_S, Site, batch
from tests.fakes import FakeClock
from tests.federation.reports import NOW_NS, TOKEN, report

from unidle_agent.errors import SettingError, UnidleError
from unidle_agent.settings import Secret
from unidle_agent.wire import Owner
from unidle_collector.api import create_app
from unidle_collector.federation.app import create_app as federation_app
from unidle_collector.federation.following import Following, Source, ask, load_sources
from unidle_collector.federation.policy import load_policy
from unidle_collector.federation.report import SHARES, SiteReport
from unidle_collector.federation.settings import FederationSettings
from unidle_collector.ingest.tokens import Tokens
from unidle_collector.store.errors import StoreFull

BUSY = {"gpu_util_ratio": 0.9, "sm_active_ratio": 0.8, "power_w": 600.0}


def write(folder: Path, text: str, jurisdiction: str = "EU") -> Path:
    (folder / "hq.token").write_text(TOKEN + "\n")
    path = folder / "policy.toml"
    path.write_text(
        f'{text}\n[[receiver]]\nname = "hq"\njurisdiction = "{jurisdiction}"\n'
        f'token_file = "{folder}/hq.token"\n'
    )
    return path


@pytest.mark.parametrize(
    ("here", "there", "shared"),
    [
        ("EU", "EU", {"fleet.now", "accounts.user"}),
        ("eu", "EU", {"fleet.now", "accounts.user"}),
        ("CH", "EU", {"fleet.now"}),
        ("", "", {"fleet.now"}),
        ("EU", "", {"fleet.now"}),
    ],
)
def test_more_crosses_within_a_jurisdiction(tmp_path: Path, here: str, there: str, shared: set[str]) -> None:
    text = '[share]\nanywhere = ["fleet.now"]\ninside = ["accounts.user"]'
    policy = load_policy(write(tmp_path, text, there), here)
    assert policy.shared_with(policy.receivers[0]) == shared


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[share]\nanywhere = ["accounts.user"]', "nothing that leads to a person"),
        ('[share]\nanywhere = ["accounts.jobs"]', "share.anywhere: expected some of fleet.now"),
        ('[share]\neverywhere = ["fleet.now"]', "no other keys than anywhere, inside, came 'everywhere'"),
        ("smallest_group = 1", "smallest_group: expected a whole number from 2, came 1"),
        ('[[receiver]]\nname = "hq"\ntoken_file = "none"', "a readable file"),
        ("[share", "expected a readable TOML file"),
    ],
)
def test_a_policy_that_says_something_else_than_meant_does_not_start(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(UnidleError, match=said) as error:
        load_policy(write(tmp_path, text), "EU")
    assert TOKEN not in str(error.value)


def door(folder: Path, text: str) -> tuple[Site, TestClient]:
    """A site with that policy and two GPUs of one user, and its HTTP face."""
    running = Site(folder / "data")
    running.live.settings = replace(
        running.live.settings, federation_file=str(write(folder, text)), jurisdiction="EU", site="fra"
    )
    item = batch(1, 0, 60, BUSY, job="job-1")
    owner = Owner(allocated=True, job="job-1", user="u-1")
    facts = tuple(replace(fact, owner=owner) for fact in item.facts or ())
    assert running.push(replace(item, facts=facts))[0] == 200
    running.settle(70)
    tokens = Tokens(running.live.store.state, running.clock, shared_read="read-token-of-the-test")
    return running, TestClient(create_app(running.live, tokens))


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_everything_that_can_cross_does_where_the_policy_says_so(tmp_path: Path) -> None:
    shares = ", ".join(f'"{name}"' for name in SHARES)
    running, http = door(tmp_path, f"smallest_group = 2\n[share]\ninside = [{shares}]")
    try:
        told = http.get("/api/v1/federation", headers=bearer(TOKEN)).json()
    finally:
        running.live.stop()
    by = told["windows"][1]["by"]
    assert set(by) == {"fleet", "hour", "model", "team", "node", "user", "job"}
    assert [account["key"] for account in by["user"]] == ["u-1"]
    assert [account["key"] for account in by["model"]] == ["others"]
    assert told["policy"]["withheld"] == []
    assert told["now"]["gpus"] == 2


def test_a_site_that_shares_nothing_tells_its_name_and_its_policy_only(tmp_path: Path) -> None:
    running, http = door(tmp_path, "")
    try:
        told = http.get("/api/v1/federation", headers=bearer(TOKEN)).json()
    finally:
        running.live.stop()
    assert [told[name] for name in ("now", "findings", "recommendations", "health")] == [None] * 4
    assert [window["by"] for window in told["windows"]] == [{}, {}, {}]
    assert told["policy"]["withheld"] == list(SHARES)


def test_what_cannot_be_written_down_does_not_cross(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running, http = door(tmp_path, '[share]\nanywhere = ["fleet.now"]')

    def full(*_: object) -> None:
        raise StoreFull("no space left for state.sqlite")

    monkeypatch.setattr(running.live.store.state, "save_crossing", full)
    try:
        reply = http.get("/api/v1/federation", headers=bearer(TOKEN))
    finally:
        running.live.stop()
    assert reply.status_code == 503
    assert reply.json() == {"detail": "no space left for state.sqlite"}


def test_a_token_of_a_receiver_reads_nothing_else_and_a_read_token_gets_no_report(tmp_path: Path) -> None:
    running, http = door(tmp_path, '[share]\nanywhere = ["fleet.now"]')
    try:
        assert http.get("/api/v1/gpus", headers=bearer(TOKEN)).status_code == 401
        assert http.get("/api/v1/federation/crossings", headers=bearer(TOKEN)).status_code == 401
        read = bearer("read-token-of-the-test")
        assert http.get("/api/v1/federation", headers=read).status_code == 401
        assert http.get("/api/v1/federation/crossings", headers=read).json() == []
        assert http.get("/api/v1/federation", headers=bearer(TOKEN)).status_code == 200
        (row,) = http.get("/api/v1/federation/crossings", headers=read).json()
        assert (row["receiver"], row["shared"], row["time_ns"]) == (
            "hq",
            ["fleet.now"],
            (START_S + 70) * 10**9,
        )
    finally:
        running.live.stop()


# -- the federation --------------------------------------------------------------------------------


class Sites:
    """Sites in memory: what `ask` would get."""

    def __init__(self, **reports: SiteReport) -> None:
        self.reports, self.down = reports, set[str]()

    def __call__(self, source: Source, deadline_s: float) -> SiteReport:
        if source.url in self.down:
            raise UnidleError("connection refused")
        return self.reports[source.url]


def test_a_site_keeps_its_last_report_while_it_is_away_and_over_a_restart(tmp_path: Path) -> None:
    sites, clock, source = Sites(fra=report("fra")), FakeClock(NOW_NS), Source("fra", Secret(TOKEN))
    following = Following([source], tmp_path, 30.0, 5.0, sites, clock)
    following.look(source)
    sites.down.add("fra")
    clock.forward(600)
    following.look(source)
    (before,) = following.seen()
    assert before.report == sites.reports["fra"]
    assert (before.answered_ns, before.error) == (NOW_NS, "connection refused")
    (after,) = Following([source], tmp_path, 30.0, 5.0, sites, clock).seen()
    assert (after.report, after.answered_ns) == (before.report, NOW_NS)


class _Drip(BaseHTTPRequestHandler):
    """Sends a byte now and then, for ever: each of them in time, the whole never."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        try:
            while not self.server.over.wait(0.05):  # type: ignore[attr-defined]
                self.wfile.write(b" ")
        except OSError:
            pass

    def log_message(self, *_: object) -> None:
        """Silence."""


def test_a_site_that_drips_is_given_up_after_the_deadline() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Drip)
    server.daemon_threads = True
    server.over = threading.Event()  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(UnidleError, match=r"no whole answer within 0\.5 s"):
            ask(Source(f"http://127.0.0.1:{server.server_port}", Secret(TOKEN)), 0.5)
    finally:
        server.over.set()  # type: ignore[attr-defined]
        server.shutdown()
        server.server_close()


def test_reports_travel_in_the_clear_on_loopback_only(tmp_path: Path) -> None:
    (tmp_path / "hq.token").write_text(TOKEN)
    path = tmp_path / "sites.toml"
    path.write_text(f'[[site]]\nurl = "http://10.0.0.5:9470"\ntoken_file = "{tmp_path}/hq.token"\n')
    with pytest.raises(SettingError, match=r"site\.url: expected https"):
        load_sources(path)


def test_the_federation_asks_for_its_read_token_and_shows_no_row(tmp_path: Path) -> None:
    source = Source("fra", Secret(TOKEN))
    following = Following(
        [source], tmp_path, 30.0, 5.0, Sites(fra=report("fra", simulated=True)), FakeClock(NOW_NS)
    )
    following.look(source)
    settings = FederationSettings(read_token=Secret("read"))
    http = TestClient(federation_app(settings, following, FakeClock(NOW_NS)))
    assert http.get("/api/v1/sites").status_code == 401
    reply = http.get("/api/v1/fleet", headers=bearer("read"))
    assert reply.headers["X-Unidle-Simulated"] == "SIMULATED"
    assert reply.json()["gpus"] == 8
    assert http.get("/api/v1/fleet?window_s=60", headers=bearer("read")).status_code == 422
    assert http.get("/api/v1/incidents", headers=bearer("read")).status_code == 404
    assert TOKEN not in http.get("/api/v1/sites", headers=bearer("read")).text
    page = http.get("/metrics", headers=bearer("read")).text
    assert 'unidle_federation_site_up{site="fra",jurisdiction="EU"} 1' in page
