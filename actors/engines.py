"""The language model over questions: shards that its replicas write, and what is made of them when all are there.

How shards are shared out: ``feeding``. Where the replicas are, and how long they stay: ``replicas``.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import Any

from ka2l_ray.actors.feeding import Feed
from ka2l_ray.actors.language_model import COUNTS, TOO_LONG_FOR, Model, Role
from ka2l_ray.actors.replicas import Replicas
from ka2l_ray.actors.rows import Rows
from ka2l_ray.actors.shards import Shard, missing, redundant, shard_of
from ka2l_ray.errors import UserError
from ka2l_ray.store.storage import Storage

logger = logging.getLogger(__name__)

LISTING_SECONDS = 30.0
"""How long a shard that an engine has written may stay unseen here: a network filesystem lists what it last saw."""
SECONDS_BETWEEN_LISTINGS = 1.0


class Engines(Replicas):
    """The replicas of one model at a time, and how they are run over questions."""

    def run_shards(
        self,
        model: Model,
        method: str,
        work: Storage,
        questions: Rows,
        arguments: tuple[Any, ...],
        on_shard: Callable[[int, int], None],
        of: int | None = None,
        shard_size: int | None = None,
    ) -> dict[str, int]:
        """Run an actor method over all rows of ``questions`` that are not yet written, and add up its counts.

        Args:
            method: of ``LanguageModelActor``; called as method(questions, *arguments).
            work: where the shards are written, as ``part-<first>-<end>.parquet``.
            on_shard: told (questions done, questions in all) after each shard.
            of: questions of the whole stage, where these are a part of them: what the error rate is a share of.
            shard_size: rows of a shard; ``engine.shard_size`` when left out.

        Raises:
            UserError: too many questions fail (``engine.max_error_rate``), or what was written is not to be seen here.
            EnginesDieError: engines die again and again, or of one exception on different shards.
        """
        self._drop_too_long(work)
        todo = missing(_written(work), len(questions), shard_size or self.config.shard_size)
        done = len(questions) - sum(map(len, todo))
        on_shard(done, len(questions))
        if todo:
            self.start(Role.of(model, method, arguments, self.config, self.lora_rank))
            feed = Feed(self, model, method, work, questions, arguments, todo, of=of or len(questions))
            feed.errors = _counts(work).get("errors", 0)
            try:
                feed.run(lambda rows: on_shard(done + rows, len(questions)))
            except BaseException:
                self.release()  # what is in flight would go on writing
                raise
            self.drop_unplaced()  # a place that comes now would be taken from the stages between
        counts = _finish(work, questions)
        if counts.get("cut_in_thought"):
            logger.warning(
                "%s: %d answers end inside their think block and count as empty; sampling.max_tokens gives them more room",
                method,
                counts["cut_in_thought"],
            )
        return {"resumed_rows": done, **counts}

    def _drop_too_long(self, work: Storage) -> None:
        """Delete shards in which questions were too long for another ``engine.max_model_len`` than today's."""
        for shard in _written(work):
            before = (work.read_schema(shard.file).metadata or {}).get(TOO_LONG_FOR)
            if before is not None and before.decode() != str(self.config.max_model_len):
                work.delete(shard.file)


def _written(work: Storage) -> list[Shard]:
    """Shards that are there."""
    return [shard for file in work.parquet_files() if (shard := shard_of(file)) is not None]


def _counts(work: Storage) -> dict[str, int]:
    """What the written shards cost, added up."""
    totals: dict[str, int] = {}
    for shard in _written(work):
        counts = json.loads((work.read_schema(shard.file).metadata or {}).get(COUNTS, b"{}"))
        for name, value in counts.items():
            totals[name] = totals.get(name, 0) + value
    return totals


def _finish(work: Storage, questions: Rows) -> dict[str, int]:
    """Drop what is there twice, make sure that nothing is missing, and add up the counts that each file bears."""
    begun = time.monotonic()
    while left := missing(_written(work), len(questions), len(questions)):
        if time.monotonic() - begun > LISTING_SECONDS:
            raise UserError(
                f"{work.url()}: questions {left[0].start} to {left[0].stop - 1} were written but are not here; "
                "the output must lie on storage that all nodes share"
            )
        time.sleep(SECONDS_BETWEEN_LISTINGS)
    for shard in redundant(_written(work)):
        work.delete(shard.file)
    return {**_counts(work), "rows": len(questions)}
