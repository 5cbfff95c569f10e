"""Where the NVML child says which GPU it looks at."""

from __future__ import annotations

import os

from unidle_agent.whereabouts import Whereabouts


def test_what_one_process_writes_another_reads_after_its_death() -> None:
    where = Whereabouts.create()
    assert where.read() == ""
    child = os.fork()
    if child == 0:
        Whereabouts.attach(os.dup(where.fd)).write("GPU-1")
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    assert where.read() == "GPU-1"
    where.write("")
    assert where.read() == ""


def test_a_name_too_long_is_cut_and_never_spills() -> None:
    where = Whereabouts.create()
    where.write("x" * 500)
    where.write("GPU-2")
    assert where.read() == "GPU-2"


def test_its_descriptor_is_closed_with_it() -> None:
    where = Whereabouts.create()
    fd = where.fd
    del where
    try:
        os.fstat(fd)
    except OSError:
        return
    raise AssertionError(f"descriptor {fd} is still open")
