"""docs/python.md says what is so: its code runs, its output is the model's, its list of packages is pyproject's."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import torch

from ka2l_ray.world import bundled_path
from tests.pages.page import NAMED, blocks, run

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = CHECKOUT / "docs/python.md"
REAL = CHECKOUT / NAMED
NUMBER = re.compile(r"-?\d+\.\d+")


def install_commands() -> str:
    (found,) = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return str(found)


def test_the_core_group_is_part_of_what_the_engine_needs_and_is_what_the_page_installs() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    core = project["dependency-groups"]["core"]
    assert set(core) < set(project["project"]["dependencies"])
    without, group = (shlex.split(line) for line in install_commands().splitlines())
    assert without == ["pip", "install", "--no-deps", "ka2l_ray"]
    assert group == ["pip", "install", *core]


def test_the_page_runs_on_the_bundled_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the real model; what it says of these questions, silence mostly, is of no interest."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    page = PAGE.read_text(encoding="utf-8")
    printed = list(run(page, bundled_path("bundled:student")))
    assert len(printed) == len(blocks(page)) >= 7
    assert {"adapter", "probe.safetensors"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.check
@pytest.mark.skipif(not REAL.is_dir(), reason=f"{NAMED} is not there (make models)")
def test_the_page_shows_what_the_real_model_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Word for word; numbers to a hundredth, or two of a hundred."""
    monkeypatch.chdir(tmp_path)
    page = PAGE.read_text(encoding="utf-8")
    for (code, shown), said in zip(blocks(page), run(page, str(REAL)), strict=True):
        assert NUMBER.sub("#", said) == NUMBER.sub("#", shown or ""), code
        numbers = [[float(number) for number in NUMBER.findall(text)] for text in (said, shown or "")]
        assert numbers[0] == pytest.approx(numbers[1], rel=0.02, abs=0.011), code
