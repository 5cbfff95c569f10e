"""The InfiniBand source, over a tree like /sys/class/infiniband."""

from __future__ import annotations

from pathlib import Path

import pytest

from unidle_agent.recheck import EXTRA_PER_MIN, LOOKS
from unidle_agent.sources.infiniband import PERIOD_S, InfinibandSource


def write_port(
    root: Path,
    device: str,
    rate: str = "400 Gb/sec (4X NDR)",
    state: str = "4: ACTIVE",
    link_layer: str = "InfiniBand",
    **counters: int,
) -> None:
    port = root / device / "ports" / "1"
    (port / "counters").mkdir(parents=True, exist_ok=True)
    for name, text in (("rate", rate), ("state", state), ("link_layer", link_layer)):
        (port / name).write_text(text + "\n")
    for name, count in counters.items():
        (port / "counters" / name).write_text(f"{count}\n")


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_data_counters_are_bytes_and_errors_one_sum_over_all_ports(tmp_path: Path) -> None:
    write_port(
        tmp_path,
        "mlx5_0",
        port_xmit_data=1000,
        port_rcv_data=10,
        port_xmit_wait=5,
        symbol_error=2,
        VL15_dropped=1,
    )
    write_port(tmp_path, "mlx5_1", port_xmit_data=1, port_rcv_data=0, port_xmit_wait=1, link_downed=4)
    assert InfinibandSource(tmp_path).read().host == {
        "ib_sent_bytes": 4004,
        "ib_received_bytes": 40,
        "ib_transmit_waits": 6,
        "ib_link_errors": 7,
        "ib_ports_active": 2,
        "ib_ports_inactive": 0,
        "ib_ports_slow": 0,
    }


@pytest.mark.parametrize(
    ("port", "active", "inactive", "slow"),
    [
        pytest.param({"rate": "200 Gb/sec (4X HDR)"}, 3, 0, 1, id="a port below the others is slow"),
        pytest.param(
            {"state": "1: DOWN", "rate": "10 Gb/sec"}, 2, 1, 0, id="a port that is down is not slow"
        ),
        pytest.param(
            {"rate": "25 Gb/sec (1X EDR)", "link_layer": "Ethernet"},
            3,
            0,
            0,
            id="kinds of link are not compared",
        ),
        pytest.param({"rate": "unknown"}, 3, 0, 0, id="a rate that is not known is not slow"),
    ],
)
def test_states_of_ports(tmp_path: Path, port: dict[str, str], active: int, inactive: int, slow: int) -> None:
    write_port(tmp_path, "mlx5_0")
    write_port(tmp_path, "mlx5_1")
    write_port(tmp_path, "mlx5_2", **port)  # type: ignore[arg-type]
    host = InfinibandSource(tmp_path).read().host
    assert (host["ib_ports_active"], host["ib_ports_inactive"], host["ib_ports_slow"]) == (
        active,
        inactive,
        slow,
    )
    assert "ib_sent_bytes" not in host, "what no card has is unknown, not 0"


def test_the_cards_are_asked_every_ten_seconds_only(tmp_path: Path) -> None:
    write_port(tmp_path, "mlx5_0", port_xmit_data=1)
    clock = Clock()
    source = InfinibandSource(tmp_path, monotonic=clock)
    assert source.due()
    assert source.read().host["ib_sent_bytes"] == 4
    clock.now_s = PERIOD_S - 1
    assert not source.due()
    clock.now_s = PERIOD_S - 0.01  # a tick that comes a hair early is the tenth all the same
    assert source.due()


def test_ports_that_turned_bad_are_read_again_at_the_next_ticks_without_their_traffic(tmp_path: Path) -> None:
    write_port(tmp_path, "mlx5_0", port_xmit_data=1, symbol_error=0)
    clock = Clock()
    source = InfinibandSource(tmp_path, monotonic=clock)
    source.read()
    write_port(tmp_path, "mlx5_0", state="1: DOWN")
    clock.now_s += PERIOD_S
    assert source.read().host["ib_ports_inactive"] == 1
    again = []
    for _ in range(int(PERIOD_S) - 2):
        clock.now_s += 1.0
        if source.due():
            again.append(source.read().host)
    bad = {"ib_ports_active": 0, "ib_ports_inactive": 1, "ib_ports_slow": 0, "ib_link_errors": 0}
    assert again == [bad] * LOOKS


def test_a_port_that_flaps_is_read_no_oftener_than_its_budget(tmp_path: Path) -> None:
    write_port(tmp_path, "mlx5_0")
    clock = Clock()
    source = InfinibandSource(tmp_path, monotonic=clock)
    reads = 0
    for second in range(120):
        write_port(tmp_path, "mlx5_0", state="1: DOWN" if second % 2 else "4: ACTIVE", link_downed=second)
        clock.now_s += 1.0
        if source.due():
            source.read()
            reads += 1
    usual = 120 / PERIOD_S + 1
    assert usual + 2 * EXTRA_PER_MIN - 1 <= reads <= usual + 3 * EXTRA_PER_MIN


def test_a_node_without_cards_has_no_such_fields(tmp_path: Path) -> None:
    assert InfinibandSource(tmp_path / "none").read().host == {}
