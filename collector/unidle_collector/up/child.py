"""The child's side of `unidle up`: run a module, and end when the parent does, however it ends.

`python -m unidle_collector.up.child PARENT_PID MODULE [ARGUMENT ...]`
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

PR_SET_PDEATHSIG = 1
"""linux/prctl.h: the signal that this process gets when its parent dies; kept across exec."""


def main() -> None:
    """Become the module."""
    parent, module, *rest = sys.argv[1:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # it died before we asked
        sys.exit("unidle up is gone")
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
