"""What a replica reserves, and which clusters could take it; no cluster needed."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import Qwen3Config

from ka2l_ray.actors import placement
from ka2l_ray.actors.placement import Bundle, check_supply, check_worker, replica_bundles, strategy, with_gpus, workers_now
from ka2l_ray.config import EngineConfig
from ka2l_ray.config_files import load_config
from ka2l_ray.errors import UserError

A100_NODE = {"CPU": 96.0, "GPU": 8.0}


def engine(**keys: object) -> EngineConfig:
    return EngineConfig.model_validate(keys)


def test_one_gpu_a_bundle_for_vllm_and_one_bundle_for_transformers() -> None:
    assert replica_bundles(engine(name="vllm", gpus=1, cpus=4, tensor_parallel=2, pipeline_parallel=2)) == [
        {"CPU": 4, "GPU": 1},
        {"GPU": 1},
        {"GPU": 1},
        {"GPU": 1},
    ]
    assert replica_bundles(engine(gpus=1, cpus=4, tensor_parallel=4)) == [{"CPU": 4, "GPU": 4}]
    mixed = engine(name="vllm", gpus=1, tensor_parallel=2)
    assert replica_bundles(mixed, "transformers") == [{"CPU": 1, "GPU": 2}], "its hidden states are transformers'"
    assert replica_bundles(engine(gpus=0.5)) == [{"CPU": 1, "GPU": 0.5}]
    assert replica_bundles(engine(cpus=2)) == [{"CPU": 2}]


def test_a_replica_is_packed_on_one_node_where_one_holds_it() -> None:
    wide = replica_bundles(engine(name="vllm", gpus=1, tensor_parallel=8))
    assert strategy(wide, [A100_NODE, A100_NODE]) == "STRICT_PACK"
    wider = replica_bundles(engine(name="vllm", gpus=1, tensor_parallel=8, pipeline_parallel=2))
    assert strategy(wider, [A100_NODE, A100_NODE]) == "PACK"


@pytest.mark.parametrize(
    ("keys", "nodes"),
    [
        ({"gpus": 1, "replicas": 16}, 2),
        ({"gpus": 1, "name": "vllm", "tensor_parallel": 8, "replicas": 2}, 2),
        ({"gpus": 1, "name": "vllm", "tensor_parallel": 8, "pipeline_parallel": 2}, 2),
        ({"gpus": 0.25, "replicas": 32}, 1),
        ({"cpus": 48, "replicas": 2}, 1),
    ],
)
def test_what_fits_is_not_refused(keys: dict[str, object], nodes: int) -> None:
    check_supply(engine(**keys), [A100_NODE] * nodes)


@pytest.mark.parametrize(
    ("keys", "nodes", "words"),
    [
        (
            {"gpus": 9, "replicas": 1},
            1,
            "engine asks for 9 GPUs and 1 CPUs (one replica); the cluster has 8 GPUs and 96 CPUs on one node; lower engine.gpus, "
            "or join a larger cluster",
        ),
        (
            {"gpus": 1, "tensor_parallel": 9, "replicas": 3},
            2,
            "engine asks for 27 GPUs and 3 CPUs (3 replicas of 9 GPUs and 1 CPUs each); the cluster has 16 GPUs and 192 CPUs "
            "on 2 nodes, the largest with 8 GPUs and 96 CPUs; lower engine.tensor_parallel, or join a larger cluster",
        ),
    ],
)
def test_what_never_fits_is_refused_with_demand_and_supply(keys: dict[str, object], nodes: int, words: str) -> None:
    """Sixteen GPUs are there, but nine on one node nowhere."""
    with pytest.raises(UserError) as error:
        check_supply(engine(**keys), [A100_NODE] * nodes)
    assert str(error.value) == words


def test_more_replicas_than_fit_now_are_no_error() -> None:
    """Those that fit begin; the others join when they can."""
    check_supply(engine(gpus=1, replicas=64), [A100_NODE] * 7)
    check_supply(engine(gpus=1, name="vllm", tensor_parallel=5, replicas=3), [A100_NODE] * 2)


@pytest.mark.parametrize(
    ("wanted", "each", "nodes", "now"),
    [
        (512, {"CPU": 8.0, "GPU": 1.0}, [A100_NODE] * 63, 504),
        (4, {"CPU": 1.0, "GPU": 0.0}, [{"CPU": 3.0}], 2),
        (4, {"CPU": 1.0, "GPU": 0.0}, [{"CPU": 2.0}, {"CPU": 2.0}], 3),
        (1, {"CPU": 1.0, "GPU": 0.0}, [{"CPU": 2.0}], 1),
        (2, {"CPU": 2.0, "GPU": 0.0}, [{"CPU": 2.0}, {"CPU": 2.0}], 1),
    ],
)
def test_workers_are_as_many_as_fit_beside_one_cpu_for_readers(
    wanted: int, each: Bundle, nodes: list[Bundle], now: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "cluster_nodes", lambda: nodes)
    monkeypatch.setattr(placement, "possible_nodes", lambda: nodes)
    assert workers_now("finetune", wanted, each) == now


def test_a_worker_that_no_node_could_take_is_refused() -> None:
    with pytest.raises(
        UserError,
        match=r"finetune asks for 1 GPUs and 8 CPUs a worker and one for what reads its rows; the cluster"
        r" has 4 CPUs on one node; set engine.gpus=0 to compute on CPUs, or join a larger cluster",
    ):
        check_worker("finetune", {"CPU": 8.0, "GPU": 1.0}, [{"CPU": 4.0}])
    check_worker("finetune", {"CPU": 8.0, "GPU": 1.0}, [{"CPU": 4.0}, A100_NODE])


def test_what_drives_all_gpus_of_a_copy_from_one_process_wants_them_on_one_node() -> None:
    wide = engine(name="vllm", tensor_parallel=8, pipeline_parallel=2, gpus=1)
    check_supply(wide, [A100_NODE] * 2)
    with pytest.raises(UserError, match=r"engine asks for 16 GPUs .* on one node, as pool scoring .* the largest with 8 GPUs"):
        check_supply(wide, [A100_NODE] * 2, "transformers")


def test_a_split_copy_takes_whole_gpus() -> None:
    with pytest.raises(ValueError, match="set gpus 1"):
        engine(gpus=0.5, tensor_parallel=2)


def test_auto_is_a_gpu_where_a_node_has_one(caplog: pytest.LogCaptureFixture) -> None:
    config = load_config(None, None, {"model.path": "bundled:student", "pool.questions": "q"})
    on_cpu, on_gpu = ({"CPU": 8.0}, {"CPU": 8.0, "GPU": 4.0})
    assert with_gpus(config, [on_cpu, on_gpu]).engine.gpus == 1
    assert with_gpus(config, [on_cpu, on_cpu]).engine.gpus == 0
    assert not caplog.records
    chosen = load_config(None, ["engine.gpus=0"], {"model.path": "bundled:student", "pool.questions": "q"})
    assert with_gpus(chosen, [on_gpu]) == chosen


def test_a_large_model_on_a_cpu_that_nobody_chose_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Qwen3Config(hidden_size=4096, num_hidden_layers=36, intermediate_size=12288).save_pretrained(tmp_path)
    config = load_config(None, None, {"model.path": str(tmp_path), "pool.questions": "q"})
    resolved = with_gpus(config, [{"CPU": 8.0}])
    assert resolved.engine.gpus == 0
    (record,) = caplog.records
    assert "no GPU here (engine.gpus auto)" in record.message
    assert "billion parameters, runs on the CPU in float32" in record.message
