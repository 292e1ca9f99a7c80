"""A worker that is killed in the middle of a stage costs nothing but time, and rounds add up."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

from ka2l_ray.config import EngineConfig, SamplingConfig
from ka2l_ray.jobs.commands.inputs import Inputs
from ka2l_ray.store.artefacts import RunStore
from tests.ray.commands import ka2l
from tests.ray.conftest import write_config
from tests.ray.sampling import sampled

pytestmark = pytest.mark.check

ENGINE = EngineConfig(shard_size=8, batch_tokens=2048)
SAMPLING = SamplingConfig(k=10, max_tokens=12)


def kill_process(title: str, when: Any, killed: list[int]) -> None:
    """Wait until ``when()`` and a process of that title is there, then kill -9 it, once."""
    deadline = time.monotonic() + 1200
    while time.monotonic() < deadline:
        if when():
            for process in psutil.Process().children(recursive=True):  # other tests may run beside these
                with suppress(psutil.NoSuchProcess):
                    if (process.cmdline() or [""])[0].startswith(title):
                        process.kill()
                        killed.append(process.pid)
                        return
        time.sleep(0.005)


def test_a_killed_language_model_actor_is_replaced_and_no_row_is_lost(world_files: dict[str, str], tmp_path: Path) -> None:
    asked = Inputs(str(tmp_path / "inputs")).questions(world_files["pool"])
    left_alone = sampled(tmp_path / "alone", asked, SAMPLING, ENGINE)
    killed: list[int] = []

    def some_written() -> bool:
        return len(list(tmp_path.glob("disturbed.partial-*/part-*.parquet"))) >= 2

    killer = threading.Thread(target=kill_process, args=("ray::LanguageModelActor", some_written, killed))
    killer.start()
    disturbed = sampled(tmp_path / "disturbed", asked, SAMPLING, ENGINE)
    killer.join()
    assert len(killed) == 1, "the actor was not killed while it worked"
    a, b = (artefact.storage.read_table("").sort_by("question_id") for artefact in (left_alone, disturbed))
    assert len(a) == 160
    assert a["question_id"].to_pylist() == b["question_id"].to_pylist()
    assert a["generations"].to_pylist() == b["generations"].to_pylist()
    assert a["greedy"].to_pylist() == b["greedy"].to_pylist()


def test_a_lost_node_takes_its_engine_and_one_that_joins_brings_another(world_files: dict[str, str], tmp_path: Path) -> None:
    """On a cluster of its own, in a process of its own: this one is joined to the tests' Ray."""
    command = [sys.executable, "-m", "tests.ray.lose_a_node", world_files["pool"], str(tmp_path / "samples")]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert "rows 160 of 160, engines 3" in done.stdout, done.stderr[-3000:]


def test_two_rounds_end_right_when_a_judge_and_a_training_worker_are_killed(small_run: dict[str, Any], tmp_path: Path) -> None:
    """They label no question twice and train on all labels so far."""
    small_run["stopping"] = {"max_rounds": 2}
    output = Path(small_run["output"])
    killers, killed = [], {}
    for title, pattern in (
        ("ray::MapWorker(MapBatches(ClusterBatch))", "rounds/000/entropy.partial-*/*"),
        ("ray::RayTrainWorker", "rounds/001/adapter.partial-*/_scratch/ray_train/finetune/checkpoint_*"),
    ):
        killed[title] = []
        arguments = (title, partial(_is_there, output, pattern), killed[title])
        killers.append(threading.Thread(target=kill_process, args=arguments))
        killers[-1].start()
    done = ka2l("run", write_config(small_run, tmp_path))
    for killer in killers:
        killer.join()
    assert all(len(pids) == 1 for pids in killed.values()), f"a worker was not killed while it worked: {killed}"
    assert done.returncode == 0, done.stderr
    loads = [line.partition("model loaded: ")[2] for line in done.stderr.splitlines() if "model loaded: " in line]
    assert sum("by an engine" in line for line in loads) == 1, "engines stay, from stage to stage and from round to round"
    assert sum("by 1 training workers" in line for line in loads) == 2
    manifest = RunStore(small_run["output"]).manifest
    first, second = (set(pd.read_parquet(manifest[f"rounds/00{r}/selection"].url)["question_id"]) for r in (0, 1))
    assert len(first) == len(second) == 24
    assert not first & second
    probing = set(pd.read_parquet(manifest["rounds/001/probing_set"].url)["question_id"])
    assert not probing & first
    scored = set(pd.read_parquet(manifest["rounds/001/scores"].url)["question_id"])
    assert len(scored) == 160 - 24
    assert not scored & first
    replayed = [set(pd.read_parquet(manifest[f"rounds/00{r}/replay"].url)["question_id"]) for r in (0, 1)]
    assert not replayed[0] & (first | replayed[1])
    adapter = manifest["rounds/001/adapter"].facts["sources"]
    assert adapter == {"column": 48, "replay": len((replayed[0] | replayed[1]) - second)}
    drift = manifest["rounds/001/probe"].facts["drift"]
    assert 0 <= drift["auroc_previous"] <= 1
    assert (output / "report.html").stat().st_size > 10_000
    status = ka2l("status", small_run["output"])
    assert "rounds/001/adapter" in status.stdout.replace("\n", "")


def _is_there(directory: Path, pattern: str) -> bool:
    return any(directory.glob(pattern))
