"""The wheel of this checkout, and commands run far from it."""

from __future__ import annotations

import os
import shutil
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


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    return listed.stdout.split()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what git tracks: a build leaves files beside its sources, and two may run at a time."""
    folder, sources = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("sources")
    for file in tracked():
        (sources / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(CHECKOUT / file, sources / file, follow_symlinks=False)
    run([sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(sources)], folder)
    (built,) = folder.glob("*.whl")
    return built
