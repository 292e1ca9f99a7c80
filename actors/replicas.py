"""The replicas of the language model: a placement group each, begun with the first that has a place; others join and leave.

They stay while stages ask for the same base model, whatever the adapter.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import psutil
import ray
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ka2l_ray.actors.language_model import LanguageModelActor, Role, check_engine
from ka2l_ray.actors.placement import (
    check_supply,
    cluster_nodes,
    demand,
    has_a_place,
    possible_nodes,
    remove,
    replica_bundles,
    strategy,
    total,
)
from ka2l_ray.actors.shards import Shard
from ka2l_ray.config import EngineConfig
from ka2l_ray.errors import UserError

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 20
SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_TO_END = 10.0
"""How long workers of a stage that is done may hold what they had."""


@dataclass
class Task:
    """What a replica was asked: a shard, or with ``reason`` a question to be written with its error."""

    result: Any
    shard: Shard
    reason: str | None = None


@dataclass
class Replica:
    """A copy of the model: its placement group, and its actor once that has a place."""

    group: PlacementGroup
    actor: Any = None
    tasks: deque[Task] = field(default_factory=deque)
    """The one that it works on first."""
    begun: float = 0.0
    """When it began that one, by this process's clock."""
    loaded: bool = False
    waits_since: float = field(default_factory=time.monotonic)


class Replicas:
    """The replicas of one model at a time.

    Args:
        lora_rank: of the adapters to come; vLLM sets room aside for them when it starts.
    """

    def __init__(self, config: EngineConfig, *, lora_rank: int = 0) -> None:
        self.config = config
        self.lora_rank = lora_rank
        self.role: Role | None = None
        self.members: list[Replica] = []
        self.loads = 0
        self.looked = 0.0

    def start(self, role: Role) -> None:
        """Ask for the places of all replicas, and wait for the first.

        Raises:
            UserError: no node that there can be takes one, or none is free within ``engine.placement_timeout``.
        """
        if self.role != role:
            self.release()
            check_engine(role.base, self.config, k=1)
            self.role = role
        possible = possible_nodes()
        check_supply(self.config, possible, role.backend)
        bundles = replica_bundles(self.config, role.backend)
        how = strategy(bundles, possible)
        while len(self.members) < self.config.replicas:
            self.members.append(Replica(placement_group(bundles, strategy=how)))
        begun = time.monotonic()
        while not self.place() and time.monotonic() - begun < self.config.placement_timeout:
            time.sleep(0.05)
        if not any(replica.actor for replica in self.members):
            self.release()
            raise UserError(
                f"{demand(self.config)}; after {self.config.placement_timeout:g} s no replica has a place; wait for other work "
                "to end, or raise engine.placement_timeout"
            )

    def place(self) -> int:
        """Start an actor wherever a replica without one has got its place; how many replicas have one."""
        homeless = [replica for replica in self.members if replica.actor is None]
        if homeless and (len(homeless) == len(self.members) or time.monotonic() - self.looked > SECONDS_BETWEEN_LOOKS):
            self.looked = time.monotonic()
            for replica in homeless:
                if has_a_place(replica.group):
                    replica.actor, replica.loaded = self._actor(replica.group), False
        return sum(replica.actor is not None for replica in self.members)

    def replace(self, replica: Replica) -> None:
        """End a replica's actor; it gets another where it was, or where its node's loss takes its place."""
        ray.kill(replica.actor)
        replica.actor, replica.waits_since = None, time.monotonic()
        self.looked = 0.0

    def give_up(self, replica: Replica) -> None:
        remove([replica.group])
        self.members.remove(replica)

    def _actor(self, group: PlacementGroup) -> Any:
        """An engine in its placement group; it loads when it is first asked."""
        assert self.role is not None
        bundles = replica_bundles(self.config, self.role.backend)
        first, spread = bundles[0], len(bundles) > 1  # vLLM's workers take the GPUs, the engine itself none
        actor: Any = LanguageModelActor
        return actor.options(
            num_cpus=first["CPU"],
            num_gpus=0 if spread else first.get("GPU", 0),
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=0, placement_group_capture_child_tasks=True
            ),
        ).remote(self.role)

    @property
    def gpus(self) -> float:
        """That all replicas hold."""
        return self.config.replicas * total(replica_bundles(self.config))["GPU"]

    def release(self) -> None:
        """End the engines and give back what they hold."""
        actors = [replica.actor for replica in self.members if replica.actor is not None]
        if self.role is not None and self.role.backend == "vllm":  # its engine is a process of its own
            closing = [actor.close.remote() for actor in actors]
            if closing:
                ray.wait(closing, num_returns=len(closing), timeout=CLOSE_SECONDS)
        for actor in actors:
            ray.kill(actor)
        remove([replica.group for replica in self.members])
        self.members, self.role = [], None

    def drop_unplaced(self) -> None:
        for replica in [replica for replica in self.members if replica.actor is None]:
            self.give_up(replica)

    def make_room(self, cpus: float, gpus: float, memory: float = 0) -> None:
        """End the engines if a stage that wants ``cpus``, ``gpus`` and (on one node) ``memory`` bytes could not start, or not
        read, beside them; the workers of the stage before may be on their way out."""
        if not self.members:
            return
        wanted, held = {"CPU": cpus + 1, "GPU": gpus}, total(replica_bundles(self.config))
        there = ray.cluster_resources()
        fits = all(there.get(kind, 0) - len(self.members) * held[kind] >= amount for kind, amount in wanted.items())
        if len(cluster_nodes()) == 1 and psutil.virtual_memory().available < memory:
            fits = False
        begun = time.monotonic()
        while fits and not _free(wanted):
            fits = time.monotonic() - begun < SECONDS_TO_END
            time.sleep(0.2)
        if not fits:
            self.release()


def _free(wanted: dict[str, float]) -> bool:
    free = ray.available_resources()
    return all(free.get(kind, 0) >= amount for kind, amount in wanted.items())
