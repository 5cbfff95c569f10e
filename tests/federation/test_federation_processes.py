"""Three real collectors in two jurisdictions and a real federation, every byte between them recorded."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tests.collector.pushing import START_S, batch
from tests.e2e.processes import Role, answers, free_port, roles, wait_for
from tests.federation.wiretap import Wiretap, wiretap

from unidle_agent.wire import Owner, encode
from unidle_collector.client import ApiError, Client
from unidle_collector.model import Account

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PUSH_TOKEN = "push-token-of-every-site"
BUSY = {"gpu_util_ratio": 0.9, "sm_active_ratio": 0.8, "power_w": 600.0, "memory_used_bytes": 7e10}
ANYWHERE = (
    "fleet.now",
    "accounts.fleet",
    "accounts.hour",
    "findings.counts",
    "recommendations.totals",
    "health",
)
INSIDE = ("accounts.model", "accounts.team", "accounts.cause", "accounts.node", "eur")
ALWAYS_SECRET = ("GPU-", "user-of-", "job-of-", PUSH_TOKEN)


@dataclass(frozen=True)
class Place:
    """A site of the test: one node of two GPUs per user."""

    name: str
    jurisdiction: str
    users: int
    simulated: bool = False


PLACES = (Place("fra", "EU", 6), Place("par", "EU", 2, simulated=True), Place("zrh", "CH", 6))


@dataclass
class Fabric:
    """What runs."""

    client: Client
    sites: dict[str, Client]
    taps: dict[str, Wiretap]
    collectors: dict[str, Role]
    ports: dict[str, int]


@pytest.fixture(scope="module")
def fabric(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fabric]:
    folder = tmp_path_factory.mktemp("fabric")
    with ExitStack() as stack:
        found = Fabric(Client("http://127.0.0.1"), {}, {}, {}, {})
        entries = []
        for place in PLACES:
            home = folder / place.name
            home.mkdir()
            port = found.ports[place.name] = free_port()
            found.collectors[place.name] = _collector(stack.enter_context(roles(home)), home, place, port)
            url = f"http://127.0.0.1:{port}"
            wait_for(lambda url=url: answers(f"{url}/api/v1/health"), f"the collector of {place.name}")
            _push(url, place)
            found.sites[place.name] = Client(url)
            found.taps[place.name] = stack.enter_context(wiretap(port))
            entries.append((found.taps[place.name].port, home / "hq.token"))
        entries.append((found.ports["fra"], folder / "fra" / "hq.token"))  # a second path to fra
        (folder / "sites.toml").write_text(
            "\n".join(
                f'[[site]]\nurl = "http://127.0.0.1:{port}"\ntoken_file = "{file}"' for port, file in entries
            )
        )
        port = free_port()
        settings = {"port": str(port), "sites_file": str(folder / "sites.toml"), "poll_s": "1"}
        stack.enter_context(roles(folder))("federation", {**settings, "data_dir": str(folder / "federation")})
        found.client = Client(f"http://127.0.0.1:{port}")
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/api/v1/health"), "the federation")
        wait_for(
            lambda: (
                all(one.state == "current" for one in found.client.sites())
                and len(found.client.sites()) == len(PLACES)
            ),
            "all sites",
        )
        yield found


def _collector(start: Callable[..., Role], home: Path, place: Place, port: int) -> Role:
    (home / "hq.token").write_text(f"token-of-the-federation-at-{place.name}\n")
    (home / "policy.toml").write_text(
        f"""
        smallest_group = 5
        [share]
        anywhere = {json.dumps(ANYWHERE)}
        inside = {json.dumps(INSIDE)}
        [[receiver]]
        name = "hq"
        jurisdiction = "EU"
        token_file = "{home / "hq.token"}"
        """
    )
    settings = {"port": str(port), "data_dir": str(home / "data"), "push_token": PUSH_TOKEN}
    policy = {"jurisdiction": place.jurisdiction, "federation_file": str(home / "policy.toml")}
    return start("collector", {**settings, **policy, "site": place.name})


def _push(url: str, place: Place) -> None:
    """A minute up to now of every node; the first one has a GPU of a model that nobody else has."""
    first_s = int(time.time()) - START_S - 70
    for number in range(place.users):
        item = batch(
            1,
            first_s,
            60,
            BUSY,
            node=f"node-{place.name}-{number}",
            gpus=(f"GPU-{place.name}-{number}-0", f"GPU-{place.name}-{number}-1"),
            simulated=place.simulated,
        )
        owner = Owner(
            allocated=True, job=f"job-of-{place.name}-{number}", user=f"user-of-{place.name}-{number}"
        )
        facts = [replace(fact, owner=owner, model="NVIDIA H100 80GB HBM3") for fact in item.facts or ()]
        if number == 0:
            facts[1] = replace(facts[1], model="NVIDIA B200")
        request = urllib.request.Request(
            f"{url}/api/v1/push",
            data=encode(replace(item, facts=tuple(facts))),
            headers={"Authorization": f"Bearer {PUSH_TOKEN}"},
        )
        with urllib.request.urlopen(request, timeout=10) as reply:
            assert reply.status == 200
    client = Client(url)
    wait_for(lambda: _known(client.fleet().account).get("productive", 0) >= place.users * 2 * 59, "accounts")


def _known(account: Account) -> dict[str, float]:
    """GPU-seconds by state without the unknown ones, which go on while the test looks."""
    return {state: seconds for state, seconds in account.seconds.items() if state != "unknown" and seconds}


def _only(accounts: list[Account], key: str) -> Account:
    (found,) = [account for account in accounts if account.key == key]
    return found


def test_sums_equal_the_accounts_of_the_sites(fabric: Fabric) -> None:
    own = {name: _known(client.fleet(86_400).account) for name, client in fabric.sites.items()}
    total = fabric.client.fleet(86_400)
    assert (total.gpus, total.nodes, total.jobs) == (28, 14, 14)
    productive = sum(account["productive"] for account in own.values())
    assert productive >= 28 * 59
    assert _known(total.account) == pytest.approx({"productive": productive})
    by_site = fabric.client.accounts("site", 86_400)
    assert {account.key for account in by_site} == set(own)
    for name, account in own.items():
        assert _known(_only(by_site, name)) == pytest.approx(account)
        assert _known(fabric.client.fleet(86_400, name).account) == pytest.approx(account)
    law = fabric.client.accounts("jurisdiction", 86_400)
    assert _known(_only(law, "CH")) == pytest.approx(own["zrh"])
    eu = own["fra"]["productive"] + own["par"]["productive"]
    assert _known(_only(law, "EU")) == pytest.approx({"productive": eu})
    hours = [_known(hour).get("productive", 0.0) for hour in fabric.client.accounts("hour", 86_400)]
    assert sum(hours) == pytest.approx(productive)


def test_models_of_few_people_are_told_as_others(fabric: Fabric) -> None:
    models = fabric.client.accounts("model", 86_400)
    assert {account.key for account in models} == {"others"}
    fra = [one.report for one in fabric.client.sites() if one.key == "fra" and one.report]
    assert fra[0].policy.merged == {"model": 2, "team": 0}


def test_a_site_that_is_reached_by_two_paths_is_counted_once(fabric: Fabric) -> None:
    (fra,) = [one for one in fabric.client.sites() if one.key == "fra"]
    paths = {fra.url, *fra.also_at}
    assert paths == {f"http://127.0.0.1:{port}" for port in (fabric.taps["fra"].port, fabric.ports["fra"])}


def test_what_is_forbidden_is_in_no_byte_that_crosses(fabric: Fabric) -> None:
    for tap in fabric.taps.values():
        assert b'"site_id"' in tap.sent  # it is readable here, so nothing can hide in it
        for secret in ALWAYS_SECRET:
            assert secret.encode() not in tap.sent, secret
    for name, inside in (("fra", True), ("par", True), ("zrh", False)):
        sent = fabric.taps[name].sent
        assert (f"node-{name}-0".encode() in sent) == inside
        assert (b'"model":[' in sent) == inside
        assert b"NVIDIA" not in sent  # one user has the only B200; so H100 minus the whole would tell it


def test_what_is_withheld_is_said(fabric: Fabric) -> None:
    reports = {one.key: one.report for one in fabric.client.sites()}
    fra, zrh = reports["fra"], reports["zrh"]
    assert fra is not None
    assert zrh is not None
    assert (fra.policy.same_jurisdiction, zrh.policy.same_jurisdiction) == (True, False)
    assert set(INSIDE) <= set(fra.policy.shared)
    assert set(INSIDE) <= set(zrh.policy.withheld)
    assert fabric.client.fleet().gaps == ("zrh: withheld by policy: causes, money",)


def test_each_site_that_is_simulated_says_so_itself(fabric: Fabric) -> None:
    simulated = {one.key: one.report.simulated for one in fabric.client.sites() if one.report}
    assert simulated == {"fra": False, "par": True, "zrh": False}
    assert fabric.client.fleet().simulated
    assert not fabric.client.fleet(3600, "fra").simulated


def test_every_crossing_is_written_down_at_the_site(fabric: Fabric) -> None:
    sent = bytes(fabric.taps["zrh"].sent).count(b"HTTP/1.1 200")
    crossings = fabric.sites["zrh"].crossings()
    assert 0 < sent <= len(crossings)
    assert {(one.receiver, one.receiver_jurisdiction) for one in crossings} == {("hq", "EU")}
    assert {one.shared for one in crossings} == {tuple(sorted(ANYWHERE))}


@pytest.mark.parametrize("token", ["", "token-of-the-federation-at-par", PUSH_TOKEN])
def test_nobody_else_gets_a_report(fabric: Fabric, token: str) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{fabric.ports['fra']}/api/v1/federation",
        headers={"Authorization": f"Bearer {token}"} if token else {},
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    assert refused.value.code == 401


def test_rows_are_asked_for_at_their_sites(fabric: Fabric) -> None:
    with pytest.raises(ApiError, match="rows stay with their sites"):
        fabric.client.gpus()


def test_a_site_that_dies_is_unknown_since_then_and_stays_in_the_sum(fabric: Fabric) -> None:
    before = fabric.client.fleet(86_400)
    fabric.collectors["zrh"].process.kill()
    fabric.collectors["zrh"].process.wait(10)
    (zrh,) = wait_for(
        lambda: [one for one in fabric.client.sites() if one.key == "zrh" and one.state == "away"], "zrh away"
    )
    assert zrh.report is not None
    assert zrh.error
    after = fabric.client.fleet(86_400)
    assert after.gpus == before.gpus
    assert _known(after.account) == pytest.approx(_known(before.account))
    assert any(gap.startswith("zrh: unknown since ") for gap in after.gaps)
    assert any(problem.startswith("zrh: away") for problem in fabric.client.health().problems)
