"""The wheel, in an environment of its own outside the checkout: what a newcomer installs, and nothing that lies about here."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import pytest

from tests.packaging.conftest import CHECKOUT, run, tracked

pytestmark = [pytest.mark.check, pytest.mark.timeout(1500)]

SMALLEST = [
    "pool.probing_size=120",
    "sampling.k=4",
    "selection.budget=16",
    "finetune.epochs=1",
    "finetune.replay_known=0",
    "stopping.max_rounds=1",
    "probe.epochs=2",
]


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` of an environment that holds the wheel and what its metadata asks for."""
    folder = tmp_path_factory.mktemp("bare")
    run([sys.executable, "-m", "venv", str(folder / "venv")], folder)
    found = folder / "venv" / "bin"
    pip = [str(found / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    run([*pip, "-c", str(CHECKOUT / "constraints.txt"), str(wheel)], folder)
    return found


def test_the_wheel_holds_every_module_and_nothing_else(wheel: Path) -> None:
    links = {"ka2l_ray/actors", "ka2l_ray/jobs"}
    folders = ("ka2l_ray", "actors", "jobs")
    ours = {f"ka2l_ray/{file.removeprefix('ka2l_ray/')}" for file in tracked() if file.split("/")[0] in folders}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == ours - links


def test_doctor_and_the_smallest_demo_run_outside_the_checkout(bare: Path, tmp_path: Path) -> None:
    where = run([str(bare / "python"), "-c", "import ka2l_ray; print(ka2l_ray.__file__)"], tmp_path)
    assert Path(where.strip()).is_relative_to(bare.parent)
    said = run([str(bare / "ka2l"), "doctor"], tmp_path)
    assert "failed" not in said
    overrides = [word for override in SMALLEST for word in ("-o", override)]
    run([str(bare / "ka2l"), "demo", "--out", "demo", *overrides], tmp_path)
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert summary["labels"] == {"ka2l": 16, "random": 16}
    assert summary["se_auroc_truth"] >= 0.9
    assert (tmp_path / "demo" / "report.html").is_file()
