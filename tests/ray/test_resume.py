"""A driver killed at any point, and started again, ends with the artefacts of a run that was left alone."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import load_file

from ka2l_ray.store.artefacts import RunStore
from tests.ray.commands import ka2l, ka2l_killed_in
from tests.ray.conftest import small_config, write_config

pytestmark = pytest.mark.check

KILLS = [
    ("rounds/000/samples", "part-*.parquet"),
    ("rounds/000/hidden_states", "part-*.parquet"),
    ("rounds/000/entropy", "_scratch/clusters/*.parquet"),
    ("rounds/000/probe", "_scratch/layers/*.json"),
    ("rounds/000/scores", ""),
    ("rounds/000/selection", ""),
    ("rounds/000/annotations", ""),
    ("rounds/000/replay", ""),
    ("rounds/000/adapter", "_scratch/ray_train/finetune/checkpoint_*"),
    ("rounds/000/evaluation", "_scratch/predictions/part-*.parquet"),
]


@pytest.fixture(scope="module")
def undisturbed(world_files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = ka2l("run", write_config(small_config(world_files, str(folder / "run")), folder))
    assert done.returncode == 0, done.stderr
    return RunStore(str(folder / "run"))


@pytest.mark.timeout(5400)
def test_killed_in_every_stage_in_turn_ends_as_the_undisturbed_run(
    undisturbed: RunStore, world_files: dict[str, str], tmp_path: Path
) -> None:
    output = str(tmp_path / "run")
    config = write_config(small_config(world_files, output), tmp_path)
    committed: dict[str, Any] = {}
    for target, pattern in KILLS:
        killed = ka2l_killed_in(target, pattern, "run", config)
        assert killed.returncode == -signal.SIGKILL, f"{target}: {killed.stderr}"
        manifest = _manifest(output)
        assert target not in manifest
        assert {name: manifest[name] for name in committed} == committed, "a finished stage was run again"
        committed = manifest
    done = ka2l("run", config)
    assert done.returncode == 0, done.stderr
    manifest = _manifest(output)
    assert {name: manifest[name] for name in committed} == committed
    again = RunStore(output)
    assert {n: a.key for n, a in again.manifest.items()} == {n: a.key for n, a in undisturbed.manifest.items()}
    for name, artefact in undisturbed.manifest.items():
        _assert_same_content(name, artefact.url, again.manifest[name].url)


def test_shards_finished_before_the_kill_are_not_sampled_again(world_files: dict[str, str], tmp_path: Path) -> None:
    output = str(tmp_path / "run")
    config = write_config(small_config(world_files, output), tmp_path)
    assert ka2l_killed_in("rounds/000/samples", "part-000000032-*.parquet", "run", config).returncode == -signal.SIGKILL
    assert ka2l_killed_in("rounds/000/hidden_states", "", "run", config).returncode == -signal.SIGKILL
    facts = _manifest(output)["rounds/000/samples"]["facts"]
    assert facts["rows"] == 100
    assert facts["resumed_rows"] >= 3 * 16


def test_the_same_command_on_a_finished_run_makes_nothing(undisturbed: RunStore) -> None:
    before = _manifest(undisturbed.root)
    done = ka2l("run", str(Path(undisturbed.root).parent / "config.yaml"))
    assert done.returncode == 0, done.stderr
    assert "0 artefacts made" in done.stdout
    assert _manifest(undisturbed.root) == before


def test_a_setting_may_change_from_a_round_on(world_files: dict[str, str], tmp_path: Path) -> None:
    """Whole rounds stay, labels and all; a smaller micro-batch changes nothing at all."""
    document = small_config(world_files, str(tmp_path / "run"))
    assert ka2l("run", write_config(document, tmp_path)).returncode == 0
    first = _manifest(document["output"])
    document["finetune"]["micro_batch_size"] = 2
    small = ka2l("run", write_config(document, tmp_path))
    assert "0 artefacts made" in small.stdout
    document["selection"]["budget"], document["probe"]["epochs"], document["stopping"]["max_rounds"] = 8, 5, 2
    done = ka2l("run", write_config(document, tmp_path))
    assert done.returncode == 0, done.stderr
    assert "another configuration holds from round 1 on (probe.epochs: 3 there, 5 now; selection.budget: 24 there" in done.stderr
    both = _manifest(document["output"])
    assert {name: both[name] for name in first} == first
    assert both["rounds/001/selection"]["facts"]["rows"] == 8
    again = ka2l("run", write_config(document, tmp_path))
    assert "0 artefacts made" in again.stdout
    assert _manifest(document["output"]) == both


def _manifest(output: str) -> dict[str, Any]:
    path = Path(output, "manifest.json")
    return json.loads(path.read_text())["artefacts"] if path.exists() else {}


def _assert_same_content(name: str, one: str, other: str) -> None:
    tables = [sorted(Path(url).glob("*.parquet")) for url in (one, other)]
    if tables[0]:
        a, b = (_rows(files) for files in tables)
        assert a.schema.equals(b.schema), name
        for column in a.column_names:
            if pa.types.is_floating(a.schema.field(column).type):
                np.testing.assert_allclose(a[column].to_numpy(), b[column].to_numpy(), atol=1e-5, err_msg=f"{name} {column}")
            elif not column.startswith("layer_"):
                assert a[column].to_pylist() == b[column].to_pylist(), f"{name} {column}"
    for weights in Path(one).glob("*.safetensors"):
        x, y = load_file(weights), load_file(Path(other, weights.name))
        assert x.keys() == y.keys()
        for tensor in x:
            np.testing.assert_allclose(x[tensor], y[tensor], atol=1e-5, err_msg=f"{name} {tensor}")


def _rows(files: list[Path]) -> pa.Table:
    import pyarrow.parquet as pq

    table = pa.concat_tables(
        [pq.read_table(f) for f in files if f.name not in ("layers.parquet", "predictions.parquet")] or [pq.read_table(files[0])]
    )
    return table.sort_by(table.column_names[0])
