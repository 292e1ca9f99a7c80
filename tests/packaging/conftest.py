"""The wheel of this checkout, and commands run far from it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]


def run(command: list[str], folder: Path) -> str:
    """Its output; in ``folder``, without what this process's environment knows of the checkout or of a running Ray."""
    known = ("PYTHONPATH", "RAY_ADDRESS", "KA2L_RAY_LOCAL_CLUSTER", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in known}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(CHECKOUT)], folder)
    (built,) = folder.glob("*.whl")
    return built
