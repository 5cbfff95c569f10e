"""The NFS source, over mountstats of the kernel's form."""

from __future__ import annotations

from pathlib import Path

import pytest

from unidle_agent.errors import SourceError
from unidle_agent.sources.nfs import NfsSource

LOCAL = "device /dev/vda mounted on / with fstype ext4\n"
MOUNTINFO = """\
22 1 254:1 / / rw - ext4 /dev/vda rw
36 22 0:42 / /home/alice rw - nfs4 filer:/export/alice rw
37 22 0:42 / /data rw - nfs4 filer:/export rw
38 22 0:43 / /scratch rw - nfs filer2:/scratch rw
"""


def mount(device: str, where: str, read: int, written: int, again: int, kind: str = "nfs4") -> str:
    return f"""\
device {device} mounted on {where} with fstype {kind} statvers=1.1
\topts:\trw,vers=4.2,rsize=1048576
\tage:\t123
\tevents:\t1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27
\tbytes:\t11 12 13 14 {read} {written} 17 18
\tRPC iostats version: 1.1  p/v: 100003/4 (nfs)
\txprt:\ttcp 0 0 1 0 0 900 900 0 900 0 3 0 0
\tper-op statistics
\t        NULL: 1 1 0 44 24 0 0 0 0
\t        READ: 500 {500 + again} 2 100 200 300 400 500 0
\t       WRITE: 40 40 0 100 200 300 400 500 0

"""


def write(root: Path, mountstats: str, mountinfo: str = MOUNTINFO) -> NfsSource:
    (root / "self").mkdir(exist_ok=True)
    (root / "self" / "mountstats").write_text(mountstats)
    (root / "self" / "mountinfo").write_text(mountinfo)
    return NfsSource(root)


def test_bytes_over_the_network_and_retransmits_of_all_servers_are_summed(tmp_path: Path) -> None:
    text = LOCAL + mount("filer:/export", "/data", 1000, 200, 3) + mount("f2:/s", "/scratch", 7, 5, 1, "nfs")
    assert write(tmp_path, text).read().host == {
        "nfs_read_bytes": 1007,
        "nfs_written_bytes": 205,
        "nfs_retransmits": 4,
    }


def test_a_file_system_that_is_mounted_twice_counts_once(tmp_path: Path) -> None:
    text = mount("filer:/export/alice", "/home/alice", 1000, 200, 3) + mount(
        "filer:/export", "/data", 1000, 200, 3
    )
    assert write(tmp_path, text).read().host["nfs_read_bytes"] == 1000


def test_without_nfs_its_fields_are_unknown(tmp_path: Path) -> None:
    assert write(tmp_path, LOCAL).read().host == {}


def test_a_line_that_is_not_as_expected_is_an_error_that_names_no_mount(tmp_path: Path) -> None:
    text = mount("filer:/export/alice", "/home/alice", 1, 1, 0).replace("bytes:\t11 12", "bytes:\talice")
    with pytest.raises(SourceError, match="not as expected") as caught:
        write(tmp_path, text.replace(" 13 14 1 1 17", "")).read()
    assert "alice" not in str(caught.value)


def test_this_machine_can_be_read() -> None:
    assert NfsSource().read().problems == ()
