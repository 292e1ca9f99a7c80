"""The replicas of the language model, and how shards of questions are shared out among them.

A replica writes what it computes; the driver sees counts only. Shards are fixed ranges of questions with seeds of their own, so
whoever runs one again writes the same rows. Whatever dies, no row is lost and none is there twice.
"""

from __future__ import annotations

import json
import logging
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ka2l_ray.actors.language_model import COUNTS, LanguageModelActor, Model, Role, check_engine
from ka2l_ray.actors.placement import remove, replica_bundles, reserve, total
from ka2l_ray.actors.shards import Shard, ShardQueue, missing, redundant, shard_of
from ka2l_ray.actors.vllm_engine import EngineCrashed, EngineLost
from ka2l_ray.config import EngineConfig
from ka2l_ray.errors import UserError
from ka2l_ray.store.storage import Storage

logger = logging.getLogger(__name__)

ENGINE_DIED = (EngineLost, RayActorError, OutOfMemoryError, NodeDiedError)
IN_FLIGHT = 2  # shards of one replica: it works on one while the next is on its way
CLOSE_SECONDS = 20


class EnginesDieError(RuntimeError):
    """Engines die faster than questions are answered."""


@dataclass
class _Replica:
    actor: Any
    group: PlacementGroup
    tasks: deque[tuple[Any, Shard]] = field(default_factory=deque)
    """(result to come, shard), the one it works on first."""


class Engines:
    """The replicas of one model at a time; they stay while stages ask for the same base model, whatever the adapter.

    Args:
        lora_rank: of the adapters to come; vLLM sets room aside for them when it starts.
    """

    def __init__(self, config: EngineConfig, *, lora_rank: int = 0) -> None:
        self.config = config
        self.lora_rank = lora_rank
        self.role: Role | None = None
        self.replicas: list[_Replica] = []
        self.groups: list[PlacementGroup] = []
        self.lost = 0

    def run_shards(
        self,
        model: Model,
        method: str,
        work: Storage,
        questions: pa.Table,
        arguments: tuple[Any, ...],
        on_shard: Callable[[int, int], None],
        of: int | None = None,
    ) -> dict[str, int]:
        """Run an actor method over all rows of ``questions`` that are not yet written, and add up its counts.

        Args:
            method: of ``LanguageModelActor``; called as method(questions, *arguments).
            work: where the shards are written, as ``part-<first>-<end>.parquet``.
            on_shard: told (questions done, questions in all) after each shard.
            of: questions of the whole stage, where these are a part of them: what the error rate is a share of.

        Raises:
            UserError: too many questions fail (``engine.max_error_rate``), or what was written is not to be seen here.
            EnginesDieError: engines die more often than ``engine.max_restarts``, or of one exception on different shards.
        """
        queue = ShardQueue(missing(_written(work), len(questions), self.config.shard_size), attempts=self.config.max_attempts)
        done = resumed = len(questions) - sum(len(shard) for shard in queue.waiting)
        on_shard(done, len(questions))
        if queue:
            role = Role.of(model, method, arguments, self.config, self.lora_rank)
            run = _Run(method, work, questions, arguments, model.adapter, model.adapter_key, queue, of or len(questions))
            run.errors = _counts(work).get("errors", 0)
            self._start(role)
            self.lost = 0
            try:
                while queue or any(replica.tasks for replica in self.replicas):
                    done += self._step(run)
                    on_shard(done, len(questions))
            except BaseException:
                self.release()  # what is in flight would go on writing
                raise
        counts = _finish(work, questions)
        if counts.get("cut_in_thought"):
            logger.warning(
                "%s: %d answers end inside their think block and count as empty; sampling.max_tokens gives them more room",
                method,
                counts["cut_in_thought"],
            )
        return {"resumed_rows": resumed, **counts}

    def _step(self, run: _Run) -> int:
        """Keep every replica busy, wait for one shard, and note how it went; rows done."""
        for replica in self.replicas:
            while run.queue and len(replica.tasks) < IN_FLIGHT:
                shard = run.queue.take()
                replica.tasks.append((run.submit(replica.actor, shard), shard))
        working = {replica.tasks[0][0]: replica for replica in self.replicas if replica.tasks}
        done, _ = ray.wait(list(working), num_returns=1, timeout=self.config.placement_timeout)
        if not done:
            self._without_the_homeless(run)
            return 0
        (first,) = done
        replica = working[first]
        shard = replica.tasks[0][1]
        try:
            rows: int = ray.get(first)
        except UserError:
            raise
        except ENGINE_DIED as error:
            return self._engine_died(run, replica, error)
        except RayTaskError as error:
            replica.tasks.popleft()
            logger.warning("%s: questions %d to %d failed: %s", run.method, shard.start, shard.stop - 1, _reason(error))
            return self._failed(run, shard, _reason(error), engine_died=False)
        replica.tasks.popleft()
        run.went_through(shard)
        return rows

    def _engine_died(self, run: _Run, replica: _Replica, error: Exception) -> int:
        """Put a new engine in the dead one's place; its first shard was being worked on, the others were not begun."""
        self.lost += 1
        reason = _reason(error)
        logger.warning("an engine died (%d so far): %s", self.lost, reason)
        _, shard = replica.tasks.popleft()
        for _, waiting in reversed(replica.tasks):
            run.queue.put_back(waiting)
        replica.tasks.clear()
        ray.kill(replica.actor)
        if isinstance(error, EngineCrashed):
            run.crashed(shard, reason)
        if self.lost > self.config.max_restarts:
            raise EnginesDieError(f"engines died {self.lost} times (engine.max_restarts {self.config.max_restarts}): {reason}")
        replica.actor = self._actor(replica.group)
        if run.work.exists(shard.file):  # it died between its last write and its answer
            return len(shard)
        return self._failed(run, shard, reason, engine_died=True)

    def _without_the_homeless(self, run: _Run) -> None:
        """Give up replicas whose place is gone with its node and found no other; the others do their shards.

        Raises:
            EnginesDieError: none is left.
        """
        for replica in list(self.replicas):
            if replica.group.wait(timeout_seconds=1):
                continue
            logger.warning("a replica has had no place for %g s: it is given up", self.config.placement_timeout)
            for _, shard in reversed(replica.tasks):
                run.queue.put_back(shard)
            ray.kill(replica.actor)
            remove([replica.group])
            self.groups.remove(replica.group)
            self.replicas.remove(replica)
        if not self.replicas:
            raise EnginesDieError(
                f"no node has a place for an engine any more (engine.placement_timeout {self.config.placement_timeout:g} s); "
                "join a larger cluster and run the same command again"
            )

    def _failed(self, run: _Run, shard: Shard, reason: str, *, engine_died: bool) -> int:
        """Try again in parts, or give up a single question: it is written with its error. Rows done."""
        if not run.queue.failed(shard, engine_died=engine_died):
            return 0
        row = run.questions.slice(shard.start, 1)
        question_id = row["question_id"][0].as_py()
        run.errors += 1
        run.causes.pop(shard.family, None)  # found: it is this question's, and not the engine's
        logger.warning("question '%s' is given up: %s", question_id, reason)
        if run.errors > self.config.max_error_rate * run.of:
            raise UserError(
                f"{run.method}: {run.errors} of {run.of} questions failed, engine.max_error_rate allows "
                f"{self.config.max_error_rate:g}; the last: question '{question_id}': {reason}"
            )
        for replica in self.replicas:
            if not replica.group.wait(timeout_seconds=1):  # its node is lost
                continue
            try:
                ray.get(run.give_up(replica.actor, shard, reason))
                return 1
            except ENGINE_DIED as error:  # found out again, and replaced, at its next shard
                logger.warning("an engine died: %s", _reason(error))
        raise EnginesDieError(f"no engine is left to write question '{question_id}' with its error: {reason}")

    def _start(self, role: Role) -> None:
        if self.role == role:
            return
        self.release()
        check_engine(role.base, self.config, k=1)
        self.groups = reserve(self.config, role.backend)
        self.role = role
        self.replicas = [_Replica(self._actor(group), group) for group in self.groups]

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
        if self.replicas and self.role is not None and self.role.backend == "vllm":  # its engine is a process of its own
            closing = [replica.actor.close.remote() for replica in self.replicas]
            ray.wait(closing, num_returns=len(closing), timeout=CLOSE_SECONDS)
        for replica in self.replicas:
            ray.kill(replica.actor)
        remove(self.groups)
        self.replicas, self.groups, self.role = [], [], None

    def make_room(self, cpus: float, gpus: float) -> None:
        """End the engines if a stage that wants ``cpus`` and ``gpus`` could not start, or not read, beside them."""
        free = ray.available_resources()
        if self.replicas and (free.get("CPU", 0) < cpus + 1 or free.get("GPU", 0) < gpus):
            self.release()


@dataclass
class _Run:
    """One pass of a method over questions."""

    method: str
    work: Storage
    questions: pa.Table
    arguments: tuple[Any, ...]
    adapter: str | None
    adapter_key: str | None
    queue: ShardQueue
    of: int
    errors: int = 0
    causes: dict[int, str] = field(default_factory=dict)
    """Exception that engines died of, by the family of the shard that they worked on."""

    def crashed(self, shard: Shard, reason: str) -> None:
        """Note what an engine died of.

        Raises:
            EnginesDieError: an engine died of the same on another shard; it is not one question's doing.
        """
        cause = re.sub(r"0x[0-9a-f]+|\d+", "#", reason)
        if any(before == cause for family, before in self.causes.items() if family != shard.family):
            raise EnginesDieError(f"{self.method}: engines die of one cause on different shards of questions: {reason}")
        self.causes[shard.family] = cause

    def went_through(self, shard: Shard) -> None:
        """A whole shard that an engine died on before: whatever it was has passed. Parts of one say nothing of the rest."""
        if shard.origin is None:
            self.causes.pop(shard.family, None)

    def submit(self, actor: Any, shard: Shard) -> Any:
        rows = self.questions.slice(shard.start, len(shard))
        return actor.run.remote(self.method, self.work.url(), shard.file, rows, self.adapter, self.adapter_key, self.arguments)

    def give_up(self, actor: Any, shard: Shard, reason: str) -> Any:
        rows = self.questions.slice(shard.start, len(shard))
        return actor.give_up.remote(self.method, self.work.url(), shard.file, rows, reason, self.arguments)


def _written(work: Storage) -> list[Shard]:
    return [shard for file in work.parquet_files() if (shard := shard_of(file)) is not None]


def _finish(work: Storage, questions: pa.Table) -> dict[str, int]:
    """Drop what is there twice, make sure that nothing is missing, and add up the counts that each file bears."""
    for shard in redundant(_written(work)):
        work.delete(shard.file)
    left = missing(_written(work), len(questions), len(questions))
    if left:
        raise UserError(
            f"{work.url()}: questions {left[0].start} to {left[0].stop - 1} were written but are not here; "
            "the output must lie on storage that all nodes share"
        )
    return {**_counts(work), "rows": len(questions)}


def _counts(work: Storage) -> dict[str, int]:
    """What the written shards cost, added up."""
    totals: dict[str, int] = {}
    for shard in _written(work):
        counts = json.loads((work.read_schema(shard.file).metadata or {}).get(COUNTS, b"{}"))
        for name, value in counts.items():
            totals[name] = totals.get(name, 0) + value
    return totals


def _reason(error: Exception) -> str:
    """The last line of an error, without Ray's wrapping."""
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {' '.join(str(cause).strip().splitlines()[-1:])[:300]}"
