"""Where the replicas of a model go: a placement group each, asked of the whole cluster before anything waits."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from ka2l_ray.config import EngineConfig, RunConfig
from ka2l_ray.errors import UserError
from ka2l_ray.models.model_files import skeleton

logger = logging.getLogger(__name__)

Bundle = dict[str, float]
LARGE_ON_A_CPU = 1e9  # parameters


def replica_bundles(config: EngineConfig, backend: str | None = None) -> list[Bundle]:
    """What one replica reserves for ``backend`` (``config.name`` unless said otherwise).

    The transformers engine drives all its GPUs from one process: one bundle. vLLM puts a worker on each: one GPU a bundle,
    the first with the engine's CPUs besides.
    """
    shards = config.tensor_parallel * config.pipeline_parallel
    if not config.gpus_each:
        return [{"CPU": config.reserved_cpus}]
    if (backend or config.name) == "transformers" or shards == 1:
        return [{"CPU": config.reserved_cpus, "GPU": config.gpus_each * shards}]
    return [{"CPU": config.reserved_cpus, "GPU": 1.0}, *({"GPU": 1.0} for _ in range(shards - 1))]


def with_gpus(config: RunConfig, nodes: Sequence[Bundle]) -> RunConfig:
    """``config`` with ``engine.gpus`` a number: ``auto`` is 1 where one of ``nodes`` has a GPU, else 0.

    A model that is slow on a CPU is warned of where nobody asked for a CPU.
    """
    if config.engine.gpus != "auto":
        return config
    gpus = 1.0 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0
    if not gpus:
        size = sum(parameter.numel() for parameter in skeleton(config.model).parameters())
        if size > LARGE_ON_A_CPU:
            logger.warning(
                "no GPU here (engine.gpus auto): %s, %.1f billion parameters, runs on the CPU%s",
                config.model.path,
                size / 1e9,
                " in float32" if config.model.dtype == "auto" else "",
            )
    return config.model_copy(update={"engine": config.engine.model_copy(update={"gpus": gpus})})


def strategy(bundles: Sequence[Bundle], nodes: Sequence[Bundle]) -> str:
    """``STRICT_PACK`` where a replica fits one node, else ``PACK``: as few nodes as hold it."""
    whole = total(bundles)
    return "STRICT_PACK" if any(_holds(node, whole) for node in nodes) else "PACK"


def check_supply(config: EngineConfig, nodes: Sequence[Bundle], backend: str | None = None) -> None:
    """Raise a UserError that holds demand against supply where ``nodes`` could never take the replicas."""
    bundles = replica_bundles(config, backend)
    if _capacity(bundles, nodes, config.replicas) < config.replicas:
        whole = ""
        if backend == "transformers" and config.tensor_parallel * config.pipeline_parallel > 1:
            whole = " on one node each, as pool scoring and the transformers engine want it"
        raise UserError(f"{_demand(config)}{whole}; {_supply(nodes)}; {_remedy(config, nodes)}")


def replicas_a_node(config: EngineConfig) -> int:
    """How many replicas a node holds where the nodes that can take one share them out evenly."""
    whole = total(replica_bundles(config, "transformers"))
    nodes = sum(_holds(node, whole) for node in cluster_nodes())
    return -(-config.replicas // max(1, nodes))


def cluster_nodes() -> list[Bundle]:
    """CPUs and GPUs of each living node."""
    return [{k: node["Resources"].get(k, 0.0) for k in ("CPU", "GPU")} for node in ray.nodes() if node["Alive"]]


@contextmanager
def reserved(config: EngineConfig, backend: str | None = None) -> Iterator[list[PlacementGroup]]:
    """A placement group for each replica; all are removed at the end, whatever happens.

    Raises:
        UserError: the cluster is too small, or stays busy for ``config.placement_timeout`` seconds.
    """
    groups = reserve(config, backend)
    try:
        yield groups
    finally:
        remove(groups)


def reserve(config: EngineConfig, backend: str | None = None) -> list[PlacementGroup]:
    """As ``reserved``; the caller removes the groups."""
    nodes = cluster_nodes()
    check_supply(config, nodes, backend)
    bundles = replica_bundles(config, backend)
    how = strategy(bundles, nodes)
    groups: list[PlacementGroup] = []
    try:
        groups += [placement_group(bundles, strategy=how) for _ in range(config.replicas)]
        ready, waiting = ray.wait([g.ready() for g in groups], num_returns=len(groups), timeout=config.placement_timeout)
        if waiting:
            free = ray.available_resources()
            raise UserError(
                f"{_demand(config)}; after {config.placement_timeout:g} s {len(ready)} of {config.replicas} replicas have a "
                f"place, {_amounts(free)} are free; wait for other work to end, or raise engine.placement_timeout"
            )
    except BaseException:
        remove(groups)
        raise
    return groups


def remove(groups: Sequence[PlacementGroup]) -> None:
    for group in groups:
        remove_placement_group(group)


def total(bundles: Sequence[Bundle]) -> Bundle:
    return {kind: sum(bundle.get(kind, 0.0) for bundle in bundles) for kind in ("CPU", "GPU")}


def _capacity(bundles: Sequence[Bundle], nodes: Sequence[Bundle], wanted: int) -> int:
    """How many replicas the nodes take, up to ``wanted``: whole ones node by node, or spread where no node takes one."""
    spread = strategy(bundles, nodes) == "PACK"
    free = [dict(node) for node in nodes]
    placed = 0
    while placed < wanted and _place(bundles if spread else [total(bundles)], free):
        placed += 1
    return placed


def _place(bundles: Sequence[Bundle], free: list[dict[str, float]]) -> bool:
    """Take ``bundles`` out of ``free``; False (and ``free`` is spent) where one fits nowhere."""
    for bundle in bundles:
        node = next((node for node in free if _holds(node, bundle)), None)
        if node is None:
            return False
        for kind, amount in bundle.items():
            node[kind] = node.get(kind, 0.0) - amount
    return True


def _holds(node: Bundle, bundle: Bundle) -> bool:
    return all(node.get(kind, 0.0) + 1e-6 >= amount for kind, amount in bundle.items())


def _demand(config: EngineConfig) -> str:
    one = total(replica_bundles(config))
    each = f"{config.replicas} replicas of {_amounts(one)} each" if config.replicas > 1 else "one replica"
    whole = {kind: amount * config.replicas for kind, amount in one.items()}
    return f"engine asks for {_amounts(whole)} ({each})"


def _supply(nodes: Sequence[Bundle]) -> str:
    on = f"on {len(nodes)} nodes, the largest with {_amounts(max(nodes, key=_size))}" if len(nodes) > 1 else "on one node"
    return f"the cluster has {_amounts(total(nodes))} {on}"


def _size(node: Bundle) -> tuple[float, float]:
    return node.get("GPU", 0.0), node.get("CPU", 0.0)


def _remedy(config: EngineConfig, nodes: Sequence[Bundle]) -> str:
    if config.gpus_each and not total(nodes)["GPU"]:
        return "set engine.gpus=0 to compute on CPUs, or join a cluster that has GPUs"
    keys = ["engine.replicas" if config.replicas > 1 else "engine.cpus"]
    if config.gpus_each and config.tensor_parallel * config.pipeline_parallel > 1:
        keys.append("engine.tensor_parallel")
    return f"lower {' or '.join(keys)}, or join a larger cluster"


def _amounts(resources: Any) -> str:
    gpus = f"{resources['GPU']:g} GPUs and " if resources.get("GPU") else ""
    return f"{gpus}{resources.get('CPU', 0):g} CPUs"
