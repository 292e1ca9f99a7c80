"""A worker that is killed in the middle of a stage costs nothing but time."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from ka2l_ray.actors.language_model import Engines, Model
from ka2l_ray.config import EngineConfig, ModelConfig, PromptConfig, SamplingConfig
from ka2l_ray.jobs.inputs import Inputs
from ka2l_ray.jobs.sample import sample
from ka2l_ray.store import Artefact, RunStore, StageDirectory
from tests.ray.commands import ka2l
from tests.ray.conftest import write_config

ENGINE = EngineConfig(shard_size=8, batch_tokens=2048)


def sampled(out: Path, asked: Artefact) -> Artefact:
    engines = Engines(ENGINE)
    try:
        return sample(
            StageDirectory(str(out)),
            "samples",
            questions=asked,
            model=Model(ModelConfig(path="bundled:student"), PromptConfig(instruction="")),
            sampling=SamplingConfig(k=10, max_tokens=12),
            engine=ENGINE,
            seed=(0, 0),
            engines=engines,
        )
    finally:
        engines.release()


def kill_process(title: str, when: Any, killed: list[int]) -> None:
    """Wait until ``when()`` and a process of that title is there, then kill -9 it, once."""
    deadline = time.monotonic() + 1200
    while time.monotonic() < deadline:
        if when():
            for process in psutil.process_iter(["cmdline"]):
                if (process.info["cmdline"] or [""])[0].startswith(title):
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
                    return
        time.sleep(0.005)


def test_a_killed_language_model_actor_is_replaced_and_no_row_is_lost(world_files: dict[str, str], tmp_path: Path) -> None:
    asked = Inputs(str(tmp_path / "inputs")).questions(world_files["pool"])
    left_alone = sampled(tmp_path / "alone", asked)
    killed: list[int] = []

    def some_written() -> bool:
        return len(list(tmp_path.glob("disturbed.partial-*/part-*.parquet"))) >= 2

    killer = threading.Thread(target=kill_process, args=("ray::LanguageModelActor", some_written, killed))
    killer.start()
    disturbed = sampled(tmp_path / "disturbed", asked)
    killer.join()
    assert len(killed) == 1, "the actor was not killed while it worked"
    a, b = (artefact.storage.read_table("").sort_by("question_id") for artefact in (left_alone, disturbed))
    assert len(a) == 160
    assert a["question_id"].to_pylist() == b["question_id"].to_pylist()
    assert a["generations"].to_pylist() == b["generations"].to_pylist()
    assert a["greedy"].to_pylist() == b["greedy"].to_pylist()


@pytest.mark.parametrize(
    ("title", "artefact", "pattern"),
    [
        ("ray::MapWorker(MapBatches(ClusterBatch))", "rounds/000/entropy", "*"),
        ("ray::RayTrainWorker", "rounds/000/adapter", "_scratch/ray_train/finetune/checkpoint_*"),
    ],
)
def test_a_run_ends_right_when_a_stage_worker_is_killed(
    title: str, artefact: str, pattern: str, small_run: dict[str, Any], tmp_path: Path
) -> None:
    killed: list[int] = []

    def at_work() -> bool:
        parent, last = artefact.rsplit("/", 1)
        return bool(list(Path(small_run["output"], parent).glob(f"{last}.partial-*/{pattern}")))

    killer = threading.Thread(target=kill_process, args=(title, at_work, killed))
    killer.start()
    done = ka2l("run", write_config(small_run, tmp_path))
    killer.join()
    assert len(killed) == 1, "no worker was killed while it worked"
    assert done.returncode == 0, done.stderr
    manifest = RunStore(small_run["output"]).manifest
    assert manifest[artefact].facts["rows"] > 0
    assert "rounds/000/evaluation" in manifest
