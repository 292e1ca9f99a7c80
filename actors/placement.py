"""Where the replicas of a model go: a placement group each, asked of the whole cluster before anything waits."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import ray
from ray._private.state import state
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from ka2l_ray.config import EngineConfig, RunConfig
from ka2l_ray.errors import UserError
from ka2l_ray.models.model_files import skeleton

logger = logging.getLogger(__name__)

Bundle = dict[str, float]
LARGE_ON_A_CPU = 1e9  # parameters
READERS_CPUS = 1.0  # of a stage of Ray Data or Ray Train, beside its workers
MOST_TO_COME = 64  # nodes of a group that an autoscaler adds without a limit


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
    """Raise a UserError that holds demand against supply where ``nodes`` could never take a single replica."""
    bundles = replica_bundles(config, backend)
    if not _capacity(bundles, nodes, 1):
        whole = ""
        if backend == "transformers" and config.tensor_parallel * config.pipeline_parallel > 1:
            whole = " on one node, as pool scoring and the transformers engine want it"
        raise UserError(f"{demand(config)}{whole}; {_supply(nodes)}; {_remedy(config, nodes)}")


def check_worker(section: str, each: Bundle, nodes: Sequence[Bundle]) -> None:
    """Raise a UserError where ``nodes`` could never take one worker of a stage, and one CPU for what reads its rows.

    Args:
        section: of the configuration, for the message.
        each: what a worker reserves.
    """
    if not _fitting(1, each, nodes):
        remedy = "set engine.gpus=0 to compute on CPUs, or " if each.get("GPU") else ""
        raise UserError(
            f"{section} asks for {_amounts(each)} a worker and one for what reads its rows; {_supply(nodes)}; {remedy}join a "
            "larger cluster"
        )


def workers_now(section: str, wanted: int, each: Bundle) -> int:
    """How many of ``wanted`` workers the living nodes take beside one CPU for readers; at least one, which is waited for.

    Fewer than wanted do the same work in more time: the result does not depend on their number.

    Raises:
        UserError: as of ``check_worker``.
    """
    check_worker(section, each, possible_nodes())
    found = max(1, _fitting(wanted, each, cluster_nodes()))
    if found < wanted:
        logger.warning("%s asks for %d workers of %s; %d fit now", section, wanted, _amounts(each), found)
    return found


def _fitting(wanted: int, each: Bundle, nodes: Sequence[Bundle]) -> int:
    free = sorted((dict(node) for node in nodes), key=lambda node: node.get("CPU", 0.0))
    if not _place([{"CPU": READERS_CPUS}], free[::-1]):  # the node with the most
        return 0
    found = 0
    while found < wanted and _place([each], free):
        found += 1
    return found


def replicas_a_node(config: EngineConfig) -> int:
    """How many replicas a node holds where the nodes that can take one share them out evenly."""
    whole = total(replica_bundles(config, "transformers"))
    nodes = sum(_holds(node, whole) for node in cluster_nodes())
    return -(-config.replicas // max(1, nodes))


def cluster_nodes() -> list[Bundle]:
    """CPUs and GPUs of each living node."""
    return [{k: node["Resources"].get(k, 0.0) for k in ("CPU", "GPU")} for node in ray.nodes() if node["Alive"]]


def possible_nodes() -> list[Bundle]:
    """CPUs and GPUs of the living nodes, and of those that an autoscaler may add."""
    cluster = state.get_cluster_config()
    groups = [] if cluster is None else cluster.node_group_configs
    to_come = [
        {kind: float(group.resources.get(kind, 0)) for kind in ("CPU", "GPU")}
        for group in groups
        for _ in range(MOST_TO_COME if group.max_count < 0 else group.max_count)
    ]
    return cluster_nodes() + to_come


def has_a_place(group: PlacementGroup) -> bool:
    """Whether all its bundles are on living nodes."""
    entry = placement_group_table(group)
    living = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    return entry["state"] == "CREATED" and living.issuperset(entry["bundles_to_node_id"].values())


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


def demand(config: EngineConfig) -> str:
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
    key = "engine.cpus"
    if config.gpus_each:
        key = "engine.tensor_parallel" if config.tensor_parallel * config.pipeline_parallel > 1 else "engine.gpus"
    return f"lower {key}, or join a larger cluster"


def _amounts(resources: Any) -> str:
    gpus = f"{resources['GPU']:g} GPUs and " if resources.get("GPU") else ""
    return f"{gpus}{resources.get('CPU', 0):g} CPUs"
