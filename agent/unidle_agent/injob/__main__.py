"""Puts the in-job reporter into a job's Python, and says what it costs.

  python -m unidle_agent.injob --pth                        how to switch it on, in words
  python -m unidle_agent.injob --pth --into SITE_PACKAGES   which files would be written there
  python -m unidle_agent.injob --pth --into SITE_PACKAGES --yes
                                                            write them
  python -m unidle_agent.injob --cost                       measure the cost of a step and of a message here

SITE_PACKAGES of a job's environment: `python -c 'import site; print(site.getsitepackages()[0])'` there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

MODULE = Path(__file__).with_name("unidle_reporter.py")
PTH = "unidle_reporter.pth"
LINE = "import os; os.environ.get('UNIDLE_REPORTER') and __import__('unidle_reporter').start()\n"
"""Run by every start of that Python: without the variable it costs one look into the environment."""

HOW = f"""\
The reporter is one file of the standard library alone:
  {MODULE}
Two ways to switch it on in a job:
1. In the training script, with the file beside it:
     import unidle_reporter
     unidle_reporter.start("/run/unidle/reporter.sock")
2. Without touching the script: the file and a line in {PTH}, both in the site-packages of the job's
   Python, and in the job's environment UNIDLE_REPORTER=/run/unidle/reporter.sock. The line is
     {LINE.strip()}
   To write both: python -m unidle_agent.injob --pth --into SITE_PACKAGES --yes
   To take them away: delete unidle_reporter.py and {PTH} there.
"""


def main(arguments: Sequence[str]) -> int:
    """Do what the flags say; 2 where the folder is none or may not be written."""
    parser = argparse.ArgumentParser(
        prog="python -m unidle_agent.injob",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pth", action="store_true", help="say how to switch the reporter on, or install it")
    parser.add_argument("--into", metavar="SITE_PACKAGES", type=Path, help="folder to install it into")
    parser.add_argument("--yes", action="store_true", help="write the files, not only name them")
    parser.add_argument("--cost", action="store_true", help="measure and print the cost")
    args = parser.parse_args(arguments)
    if args.cost:
        from unidle_agent.injob.cost import report

        sys.stdout.write(report() + "\n")
        return 0
    if not args.pth:
        parser.print_help()
        return 0
    if args.into is None:
        sys.stdout.write(HOW)
        return 0
    return _install(args.into, write=args.yes)


def _install(folder: Path, *, write: bool) -> int:
    files = {folder / MODULE.name: MODULE.read_text(encoding="utf-8"), folder / PTH: LINE}
    if not folder.is_dir():
        sys.stderr.write(f"--into: expected the site-packages folder of a Python, came {folder}\n")
        return 2
    for path, text in files.items():
        try:
            if write:
                path.write_text(text, encoding="utf-8")
        except OSError as error:
            sys.stderr.write(f"{path} could not be written: {error.strerror or error}\n")
            return 2
        sys.stdout.write(f"{'written' if write else 'would write'}: {path}, {len(text)} characters\n")
    if not write:
        sys.stdout.write("nothing was written: add --yes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
