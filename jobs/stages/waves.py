"""Sampling in waves: a question whose known/unknown label the answers so far decide draws no more."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ka2l_ray import schema
from ka2l_ray.actors.engines import Engines
from ka2l_ray.actors.language_model import Model
from ka2l_ray.config import EntropyConfig, SamplingConfig
from ka2l_ray.jobs.stages.entropy import cluster_samples, known_threshold
from ka2l_ray.reading import Reading
from ka2l_ray.semantics.clustering import label_decided
from ka2l_ray.semantics.entropy import waves
from ka2l_ray.semantics.judges import judge_gpus
from ka2l_ray.store.storage import Storage

PER_ANSWER = ("generations", "token_ids", "token_logprobs", "finish_reasons")


def sample_until_decided(
    engines: Engines,
    model: Model,
    work: Storage,
    questions: pa.Table,
    sampling: SamplingConfig,
    seed: tuple[int, ...],
    until: EntropyConfig,
    reading: Reading,
    on_shard: Callable[[int, int], None],
    of: int,
) -> dict[str, int]:
    """Write the samples table of ``questions`` into ``work``; each row has as many answers as its label took.

    A wave's clusters are those that all answers will have, as an answer's cluster depends on the answers before it alone
    (under both policies), and its answers those that a single pass draws, as each has a seed of its own.
    """
    at = known_threshold(until)
    drawn: dict[str, dict[str, Any]] = {}
    counts: dict[str, int] = {}
    asked = questions
    for wave, (first, last) in enumerate(pairwise([0, *waves(sampling.k, at)])):
        here = work.at(f"_scratch/wave-{wave}")
        spent = engines.run_shards(model, "sample", here.at("samples"), asked, (sampling, seed, first, last), on_shard, of)
        for name, value in spent.items():
            counts[name] = counts.get(name, 0) + value
        for row in here.at("samples").read_table("").to_pylist():
            _extend(drawn, row)
        if last == sampling.k:
            break
        undecided = _undecided(engines, here, drawn, asked, sampling.k, until, reading)
        asked = asked.filter(pc.is_in(asked["question_id"], value_set=undecided))
        if not len(asked):
            break
    table = pa.Table.from_pylist([drawn[i] for i in questions["question_id"].to_pylist()], schema=schema.SAMPLES)
    work.write_table("samples.parquet", table)
    answers = sum(map(len, table["generations"].drop_null().to_pylist()))
    return {**counts, "errors": len(table) - table["error"].null_count, "answers": answers}


def _extend(drawn: dict[str, dict[str, Any]], row: dict[str, Any]) -> None:
    """Put a wave's answers behind the earlier ones; a question that fails in any wave has failed."""
    earlier = drawn.setdefault(row["question_id"], row)
    if earlier is row:
        return
    if row["error"] is not None:
        drawn[row["question_id"]] = row
        return
    for name in PER_ANSWER:
        earlier[name] += row[name]


def _undecided(
    engines: Engines,
    here: Storage,
    drawn: dict[str, dict[str, Any]],
    asked: pa.Table,
    k: int,
    until: EntropyConfig,
    reading: Reading,
) -> pa.Array:
    """Ids of the questions of this wave whose label at the threshold can still change."""
    at = known_threshold(until)
    rows = [drawn[i] for i in asked["question_id"].to_pylist() if drawn[i]["error"] is None]
    if not rows:
        return pa.array([], pa.string())
    here.write_table("so_far/samples.parquet", pa.Table.from_pylist(rows, schema=schema.SAMPLES))
    gpus = judge_gpus(until, 1.0 if engines.gpus else 0.0)
    engines.make_room(until.replicas, gpus * until.replicas)
    cluster_samples(here.at("so_far"), here.at("clusters"), here.at("checkpoint"), until, reading=reading, gpus=gpus)
    rows = here.at("clusters").read_table("", columns=["question_id", "cluster_ids", "declines"]).to_pylist()
    undecided = [
        row["question_id"]
        for row in rows
        if not label_decided(row["cluster_ids"], at, k, None if until.abstentions == "known" else row["declines"])
    ]
    return pa.array(undecided, pa.string())
