"""How shards of questions are shared out among the replicas of the language model.

A replica writes what it computes; the driver sees counts only. Shards are fixed ranges of questions with seeds of their own, so
whoever runs one again writes the same rows. Whatever dies, hangs or loses its node, no row is lost and none is there twice.
"""

from __future__ import annotations

import logging
import re
import time
from collections import deque
from collections.abc import Callable
from statistics import median
from typing import Any

import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, RayTaskError

from ka2l_ray.actors.language_model import Done, Model
from ka2l_ray.actors.replicas import Replica, Replicas, Task
from ka2l_ray.actors.rows import Rows
from ka2l_ray.actors.shards import Shard, ShardQueue
from ka2l_ray.actors.vllm_engine import EngineCrashed, EngineLost
from ka2l_ray.errors import UserError
from ka2l_ray.store.storage import Storage

logger = logging.getLogger(__name__)

ENGINE_DIED = (EngineLost, RayActorError, OutOfMemoryError, NodeDiedError)
IN_FLIGHT = 2  # shards of one replica: it works on one while the next is on its way
SECONDS_OF_A_WAIT = 1.0
START_SECONDS = 3600.0
"""What an engine may take for its first shard, loading included."""
RECENT = 64
"""Shards whose times the median is of."""


class EnginesDieError(RuntimeError):
    """Engines die faster than questions are answered."""


class HungError(RuntimeError):
    """An engine does not answer."""


class Feed:
    """One pass of a method over questions.

    Args:
        todo: shards that are not yet written.
        of: questions of the whole stage; what the error rate is a share of.
    """

    def __init__(
        self,
        replicas: Replicas,
        model: Model,
        method: str,
        work: Storage,
        questions: Rows,
        arguments: tuple[Any, ...],
        todo: list[Shard],
        *,
        of: int,
    ) -> None:
        self.replicas, self.model, self.method = replicas, model, method
        self.config = replicas.config
        self.work, self.questions, self.arguments = work, questions, arguments
        self.queue = ShardQueue(todo, attempts=self.config.max_attempts)
        self.of = of
        self.errors = 0
        self.deaths = 0
        """Since a shard was last written."""
        self.given_up: deque[tuple[Shard, str]] = deque()
        """Single questions, to be written with their error."""
        self.seconds: deque[float] = deque(maxlen=RECENT)
        """A question, of the last shards."""
        self.causes: dict[int, str] = {}
        """Exception that engines died of, by the family of the shard that they worked on."""

    def run(self, on_rows: Callable[[int], None]) -> None:
        """Until every shard is written; ``on_rows`` is told how many questions are."""
        rows = 0
        while self.queue or self.given_up or any(replica.tasks for replica in self.replicas.members):
            rows += self._step()
            on_rows(rows)

    def _step(self) -> int:
        """Keep every replica busy, wait for one shard, and note how it went; rows done."""
        self.replicas.place()
        for replica in self.replicas.members:
            self._feed(replica)
        working = {replica.tasks[0].result: replica for replica in self.replicas.members if replica.tasks}
        if not working:
            self._without_a_place()
            time.sleep(SECONDS_OF_A_WAIT / 4)
            return 0
        done, _ = ray.wait(list(working), num_returns=1, timeout=SECONDS_OF_A_WAIT)
        if not done:
            self._end_the_hung()
            return 0
        return self._took(working[done[0]])

    def _feed(self, replica: Replica) -> None:
        while replica.actor is not None and len(replica.tasks) < IN_FLIGHT and (self.queue or self.given_up):
            if not replica.tasks:
                replica.begun = time.monotonic()
            if self.given_up:
                shard, reason = self.given_up.popleft()
                replica.tasks.append(Task(self._submit(replica, "give_up", shard, reason), shard, reason))
            else:
                shard = self.queue.take()
                adapter = self.model.adapter, self.model.adapter_key
                replica.tasks.append(Task(self._submit(replica, "run", shard, *adapter), shard))

    def _submit(self, replica: Replica, what: str, shard: Shard, *how: str | None) -> Any:
        rows = self.questions.slice(shard.start, len(shard))
        return getattr(replica.actor, what).remote(self.method, self.work.url(), shard.file, rows, *how, self.arguments)

    def _took(self, replica: Replica) -> int:
        """The result of what ``replica`` worked on; rows done."""
        task = replica.tasks[0]
        try:
            written: Done = ray.get(task.result)
        except UserError:
            raise
        except ENGINE_DIED as error:
            return self._engine_died(replica, error)
        except RayTaskError as error:
            self._next(replica)
            logger.warning(
                "%s: questions %d to %d failed: %s", self.method, task.shard.start, task.shard.stop - 1, _reason(error)
            )
            self._failed(task.shard, _reason(error), engine_died=False)
            return 0
        if task.reason is None:
            self.seconds.append((time.monotonic() - replica.begun - (written.loading or 0)) / len(task.shard))
        self._next(replica)
        self.deaths = 0
        replica.loaded = True
        self._went_through(task.shard)
        if written.loading is not None:
            self.replicas.loads += 1
            logger.info("model loaded: %s by an engine, in %.1f s", self.model.base.path, written.loading)
        if written.errors and task.reason is None:
            self._count_errors(written.errors, written.reason)
        return len(task.shard)

    def _next(self, replica: Replica) -> None:
        replica.tasks.popleft()
        replica.begun = time.monotonic()

    def _engine_died(self, replica: Replica, error: Exception) -> int:
        """Put a new engine in the dead one's place; its first shard was being worked on, the others were not begun. Rows done.

        Raises:
            EnginesDieError: engines die and nothing is written between.
        """
        reason, task = _reason(error), replica.tasks.popleft()
        node_lost = _lost_its_node(error)
        self.deaths += not node_lost
        logger.warning("an engine died%s: %s", " with its node" if node_lost else "", reason)
        for waiting in reversed(replica.tasks):
            self._put_back(waiting)
        replica.tasks.clear()
        self.replicas.replace(replica)
        if isinstance(error, EngineCrashed):
            self._crashed(task.shard, reason)
        if self.deaths > self.config.max_restarts:
            raise EnginesDieError(
                f"{self.deaths} engines died and nothing was written between (engine.max_restarts "
                f"{self.config.max_restarts}): {reason}"
            )
        if self.work.exists(task.shard.file):  # it died between its last write and its answer
            return len(task.shard)
        if node_lost or task.reason is not None:
            self._put_back(task)
        else:
            self._failed(task.shard, reason, engine_died=True)
        return 0

    def _put_back(self, task: Task) -> None:
        if task.reason is None:
            self.queue.put_back(task.shard)
        else:
            self.given_up.appendleft((task.shard, task.reason))

    def _end_the_hung(self) -> None:
        """End engines that take ``engine.deadline_factor`` times as long for a shard as was usual; it is tried again."""
        now, usual = time.monotonic(), median(self.seconds) if self.seconds else None
        for replica in self.replicas.members:
            if not replica.tasks:
                continue
            shard, took, allowed = replica.tasks[0].shard, now - replica.begun, START_SECONDS
            if usual is not None and replica.loaded:
                allowed = max(self.config.deadline_least, self.config.deadline_factor * usual * len(shard))
            if took > allowed:
                expected = "" if usual is None else f", {usual * len(shard):.1f} s are usual"
                self._engine_died(replica, HungError(f"no answer to a shard in {took:.0f} s{expected}: taken for hung"))

    def _without_a_place(self) -> None:
        """Raise an EnginesDieError where no replica has had a place for ``engine.placement_timeout`` seconds."""
        wait = self.config.placement_timeout
        if all(time.monotonic() - replica.waits_since > wait for replica in self.replicas.members if replica.actor is None):
            raise EnginesDieError(
                f"no node has a place for an engine any more (engine.placement_timeout {wait:g} s); "
                "join a larger cluster and run the same command again"
            )

    def _failed(self, shard: Shard, reason: str, *, engine_died: bool) -> None:
        """Try again in parts, or give up a single question, which is then written with its error."""
        if not self.queue.failed(shard, engine_died=engine_died):
            return
        question_id = self.questions.slice(shard.start, 1)["question_id"][0].as_py()
        self.causes.pop(shard.family, None)  # found: it is this question's, and not the engine's
        logger.warning("question '%s' is given up: %s", question_id, reason)
        self._count_errors(1, f"question '{question_id}': {reason}")
        self.given_up.append((shard, reason))

    def _count_errors(self, questions: int, reason: str) -> None:
        self.errors += questions
        most = self.config.max_error_rate
        if self.errors > most * self.of:
            raise UserError(
                f"{self.method}: {self.errors} of {self.of} questions failed, engine.max_error_rate allows {most:g}; "
                f"the last: {reason}"
            )

    def _crashed(self, shard: Shard, reason: str) -> None:
        """Note what an engine died of.

        Raises:
            EnginesDieError: an engine died of the same on another shard; it is not one question's doing.
        """
        cause = re.sub(r"0x[0-9a-f]+|\d+", "#", reason)
        if any(before == cause for family, before in self.causes.items() if family != shard.family):
            raise EnginesDieError(f"{self.method}: engines die of one cause on different shards of questions: {reason}")
        self.causes[shard.family] = cause

    def _went_through(self, shard: Shard) -> None:
        """A whole shard that an engine died on before: whatever it was has passed. Parts of one say nothing of the rest."""
        if shard.origin is None:
            self.causes.pop(shard.family, None)


def _lost_its_node(error: Exception) -> bool:
    """Whether an actor ended because its node did: no fault of its shard's."""
    return isinstance(error, NodeDiedError) or (isinstance(error, RayActorError) and "its node has died" in str(error))


def _reason(error: Exception) -> str:
    """The last line of an error, without Ray's wrapping."""
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {' '.join(str(cause).strip().splitlines()[-1:])[:300]}"
