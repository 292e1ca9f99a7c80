"""The core alone: the wheel without its dependencies, the packages that docs/python.md names, and the page itself on top."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ka2l_ray.world import bundled_path
from tests.packaging.conftest import CHECKOUT, run
from tests.pages.page import MARKER
from tests.pages.test_python_page import PAGE, install_commands

pytestmark = [pytest.mark.check, pytest.mark.timeout(1500)]


def test_the_page_runs_where_ray_deepspeed_and_vllm_are_absent(wheel: Path, tmp_path: Path) -> None:
    run([sys.executable, "-m", "venv", str(tmp_path / "venv")], tmp_path)
    found = tmp_path / "venv" / "bin"
    commands = install_commands().replace(" ka2l_ray\n", f" {wheel}\n")
    assert str(wheel) in commands
    environment = {
        "PATH": f"{found}:{os.environ['PATH']}",
        "PIP_CONSTRAINT": str(CHECKOUT / "constraints.txt"),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    keep = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(["sh", "-ec", commands], cwd=tmp_path, env={**keep, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    python = str(found / "python")
    listed = run([python, "-m", "pip", "list", "--format=freeze"], tmp_path).lower()
    assert "ka2l_ray==" in listed.replace("-", "_")
    assert not {"ray", "deepspeed", "vllm", "datasets"} & {line.split("==")[0] for line in listed.splitlines()}
    said = run([python, str(CHECKOUT / "tests/pages/page.py"), str(PAGE), bundled_path("bundled:student")], tmp_path)
    assert said.rstrip().endswith(f"{MARKER} loaded: neither ray nor vllm nor deepspeed")
    where = run([python, "-c", "import ka2l_ray; print(ka2l_ray.__file__)"], tmp_path)
    assert Path(where.strip()).is_relative_to(tmp_path)
