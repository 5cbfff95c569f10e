"""From a line of the kernel log to what a person is told: agent and collector as they are run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.e2e.processes import answers, free_port, roles, wait_for
from tests.e2e.test_flight_recorder import BUSY, UUIDS, of_kind
from tests.nvml_library import build, environment, gpu, write

from unidle_collector.client import Client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_lines_of_the_kernel_log_become_incidents_with_their_words(tmp_path: Path) -> None:
    library, answer_file, log = build(tmp_path), tmp_path / "gpus.txt", tmp_path / "kmsg"
    write(answer_file, [gpu(number, **BUSY) for number in range(2)])
    os.mkfifo(log)
    port = free_port()
    url, token = f"http://127.0.0.1:{port}", {"push_token": "e2e-push-token"}
    client = Client(url)
    with roles(tmp_path) as start:
        start("collector", {"port": str(port), "data_dir": str(tmp_path / "data"), **token})
        wait_for(lambda: answers(f"{url}/api/v1/health"), "the collector")
        agent = {"port": "0", "push_url": url, "state_dir": str(tmp_path / "agent"), "kernel_log": str(log)}
        start("agent", {**agent, **token, "node": "real-1"}, environment(library, answer_file))
        wait_for(lambda: client.health().counters["rows_ingested"] >= 10, "ten rows")
        with log.open("wb", buffering=0) as end:
            end.write(
                b"4,8,2000,-;NVRM: Xid (PCI:0000:1c:00): 119, pid=4242, name=anna, GSP RPC timeout\n" * 5
            )
            (xid,) = wait_for(lambda: of_kind(client, "xid"), "the incident of the XID")
            end.write(b"4,9,3000,-;nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 20034, Fatal, Link 30 LTSSM\n")
            (switch,) = wait_for(lambda: of_kind(client, "nvswitch"), "the incident of the switch")
    assert [ref.gpu for ref in xid.finding.gpus] == [UUIDS[1]]
    assert xid.finding.evidence[0].text == (
        "XID 119 (GSP RPC timeout): once; kernel log: process 4242: GSP RPC timeout"
    )
    assert (switch.finding.subject, len(switch.finding.gpus)) == ("real-1", 2)
    assert not xid.finding.simulated
