"""What an agent alone costs: a clean environment with the wheel's [agent] and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST_BYTES = 8_000_000
HEAVY = ("numpy", "pandas", "pyarrow", "streamlit", "rich", "influxdb_client", "pydantic", "fastapi")
BROUGHT_BY_VENV = (
    "pip",
    "setuptools",
    "_distutils_hack",
    "distutils-precedence.pth",
    "pkg_resources",
    "wheel",
)

pytestmark = pytest.mark.slow


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment in which the wheel's agent was installed."""
    folder = tmp_path_factory.mktemp("install")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
    (wheel,) = folder.glob("unidle-*.whl")
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-compile", f"unidle[agent] @ {wheel.as_uri()}")
    return python


def test_an_agent_alone_takes_at_most_8_mb_of_site_packages(python: Path) -> None:
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    sizes = {
        path.relative_to(site): path.stat().st_size
        for path in site.rglob("*")
        if path.is_file()
        and path.suffix != ".pyc"
        and not path.relative_to(site).parts[0].startswith(BROUGHT_BY_VENV)
    }
    total = sum(sizes.values())
    print(f"site-packages of unidle[agent] without .pyc: {total / 1e6:.2f} MB")
    assert total <= MOST_BYTES, sorted(sizes.items(), key=lambda item: -item[1])[:10]


def test_a_sample_is_taken_without_importing_anything_heavy(python: Path) -> None:
    program = (
        "import sys, json, contextlib, io\n"
        "from unidle_agent import cli\n"
        "out = io.StringIO()\n"
        "with contextlib.redirect_stdout(out):\n"
        "    code = cli.main(['agent', '--once', '--period-s', '0.1'])\n"
        "print(json.dumps([code, json.loads(out.getvalue()), sorted(sys.modules)]))\n"
    )
    code, document, modules = json.loads(run(python, "-c", program))
    assert code == 0
    assert "load_1m" in document["host"]
    assert not {name.partition(".")[0] for name in modules} & set(HEAVY)


def test_the_other_roles_say_how_to_install_them(python: Path) -> None:
    done = subprocess.run(
        [python, "-m", "unidle_agent.cli", "doctor", "--json"], capture_output=True, text=True, timeout=120
    )
    absent = [one for one in json.loads(done.stdout)["checks"] if one["name"].startswith("role ")]
    assert {one["name"] for one in absent} == {"role alerts"}
    assert all("pip install 'unidle[" in one["todo"] for one in absent)
