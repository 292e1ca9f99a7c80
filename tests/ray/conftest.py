"""One local Ray for all tests of this folder, and a small run on the bundled world."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from ka2l_ray.config import RunConfig
from ka2l_ray.config_files import load_config
from ka2l_ray.jobs.session import ray_session
from ka2l_ray.world.facts import World


@pytest.fixture(scope="session", autouse=True)
def ray_address() -> Iterator[str]:
    with ray_session(None):
        address = ray.get_runtime_context().gcs_address
        os.environ["RAY_ADDRESS"] = address
        yield address
        del os.environ["RAY_ADDRESS"]


@pytest.fixture(scope="session")
def world_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths of a pool of 160 and a test set of 60 questions of the bundled world, of other facts."""
    folder = tmp_path_factory.mktemp("world")
    world = World()
    paths = {}
    for split, first, step, size in (("pool", 0, 12, 160), ("test", 6, 24, 60)):
        paths[split] = str(folder / f"{split}.jsonl")
        write_lines(paths[split], world.rows(split)[first::step][:size])
    return paths


@pytest.fixture
def small_run(world_files: dict[str, str], tmp_path: Path) -> dict[str, Any]:
    """A configuration of which every stage takes seconds."""
    return small_config(world_files, str(tmp_path / "run"))


def small_config(world_files: dict[str, str], output: str) -> dict[str, Any]:
    return {
        "preset": "bundled-world",
        "output": output,
        "pool": {"questions": world_files["pool"], "test": world_files["test"], "probing_size": 100},
        "sampling": {"k": 4},
        "engine": {"shard_size": 16},
        "probe": {"hidden_width": 64, "epochs": 3, "learning_rate": 1e-3},
        "selection": {"budget": 24},
        "finetune": {"epochs": 3, "batch_size": 8, "micro_batch_size": 8, "checkpoint_every": 2, "replay_known": 0.5},
        "evaluation": {"bootstrap": 50},
        "stopping": {"max_rounds": 1},
    }


def resolved(document: dict[str, Any], tmp_path: Path) -> RunConfig:
    return load_config(write_config(document, tmp_path))


def write_config(document: dict[str, Any], tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    return str(path)


def write_lines(path: str | Path, rows: list[dict[str, Any]]) -> str:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
