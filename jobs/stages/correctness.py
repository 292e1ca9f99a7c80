"""Correctness by the judge of the configuration: in workers of its own where it is a model, here where it only compares texts."""

from __future__ import annotations

import logging
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ka2l_ray import schema
from ka2l_ray.actors.engines import Engines
from ka2l_ray.actors.judge import CorrectBatch, correctness_table
from ka2l_ray.actors.placement import workers_now
from ka2l_ray.config import EvaluationConfig
from ka2l_ray.errors import UserError
from ka2l_ray.jobs.stages.progress import progress
from ka2l_ray.jobs.stages.streaming import map_rows
from ka2l_ray.reading import Reading
from ka2l_ray.semantics.cache import shared
from ka2l_ray.semantics.correctness import judge_answers
from ka2l_ray.semantics.judges import judge_gpus, judge_place, make_judge, verdict_identity
from ka2l_ray.store.artefacts import Artefact, Store
from ka2l_ray.store.storage import Storage

logger = logging.getLogger(__name__)

ROWS_PER_BLOCK = 512  # answers that are judged together
COUNTS = ("judge_calls", "cached_verdicts", "truncated", "unparsable")
ASKED, GIVEN = ["question_id", "question", "prediction", "answers"], ["question_id", "question", "greedy", "answers"]
TO_JUDGE = pa.schema([schema.EVALUATION.field(name) for name in ASKED])


def correctness_identity(config: EvaluationConfig, reading: Reading) -> dict[str, Any]:
    """For content keys: what decides whether an answer is right.

    Raises:
        UserError: no such judge's model.
    """
    return {**verdict_identity(config, reading.normalize), **reading.identity()}


def judged(
    store: Store, name: str, *, answered: Artefact, config: EvaluationConfig, reading: Reading, engines: Engines
) -> Artefact:
    """``schema.ANSWERED`` rows with whether the greedy answer is wrong, where there are accepted answers to hold it against."""
    inputs = {"stage": "judged", "answered": answered.key, "correctness": correctness_identity(config, reading)}

    def build(work: Storage) -> dict[str, Any]:
        rows = answered.storage.read_table("").to_pylist()
        having = [row for row in rows if row["answers"]]
        asked = pa.table({name: [row[of] for row in having] for name, of in zip(ASKED, GIVEN, strict=True)}, schema=TO_JUDGE)
        found, cost = correctness(name, asked, work.at("_scratch"), config=config, reading=reading, engines=engines)
        said = {row["question_id"]: row for row in found.to_pylist()}
        for row in having:
            row["wrong"] = not said[row["question_id"]]["correct"]
            row["no_exact_match"] = not said[row["question_id"]]["exact_match"]
        work.write_table("judged.parquet", pa.Table.from_pylist(rows, schema=schema.ANSWERED))
        return {"rows": len(rows), "judge": config.judge, **cost}

    return store.compute(name, inputs, build)


def greedy_correctness(
    store: Store,
    name: str,
    *,
    samples: Artefact,
    answers: Artefact,
    config: EvaluationConfig,
    reading: Reading,
    engines: Engines,
) -> Artefact:
    """``schema.CORRECTNESS`` of the greedy answers of ``samples`` that have accepted ones in ``answers``, for the report."""
    inputs: dict[str, Any] = {"stage": "correctness", "samples": samples.key, "answers": answers.key}
    inputs["correctness"] = correctness_identity(config, reading)

    def build(work: Storage) -> dict[str, Any]:
        said = samples.storage.read_table("", columns=["question_id", "question", "greedy"])
        said = said.filter(pc.is_valid(said["greedy"]))
        sampled = said["question_id"].combine_chunks()
        accepted: dict[str, list[str]] = {}
        for file in answers.storage.parquet_files():  # the pool may be far larger than what was sampled of it
            part = answers.storage.read_table(file, columns=["question_id", "answers"])
            part = part.filter(pc.and_(pc.is_in(part["question_id"], sampled), pc.is_valid(part["answers"])))
            accepted.update(zip(part["question_id"].to_pylist(), part["answers"].to_pylist(), strict=True))
        rows = [
            {**row, "prediction": row["greedy"], "answers": accepted[row["question_id"]]}
            for row in said.to_pylist()
            if row["question_id"] in accepted
        ]
        if not rows:
            return {"rows": 0, "judge": config.judge}
        asked = pa.Table.from_pylist(rows, schema=TO_JUDGE)
        found, cost = correctness(name, asked, work.at("_scratch"), config=config, reading=reading, engines=engines)
        work.write_table("correctness.parquet", found)
        return {"rows": len(rows), "judge": config.judge, **cost}

    return store.compute(name, inputs, build)


def correctness(
    name: str, answered: pa.Table, work: Storage, *, config: EvaluationConfig, reading: Reading, engines: Engines
) -> tuple[pa.Table, dict[str, int]]:
    """(``schema.CORRECTNESS`` rows of ``answered``, what they cost).

    Args:
        answered: question_id, question, prediction, answers; in memory, as a test set is.
        work: for what workers read and write; an earlier attempt's rows there are taken up.
        engines: they make room for a judge's workers.

    Raises:
        UserError: half of a language model's verdicts could not be read.
    """
    if judge_place(config) == "here":
        judge = None if config.judge == "exact" else make_judge(config, reading.normalize, directed=True)
        ids, questions, predictions, accepted = (answered[column].to_pylist() for column in ASKED)
        found = correctness_table(ids, judge_answers(questions, predictions, accepted, judge, reading))
    else:
        work.write_table("answered/answered.parquet", answered.select(ASKED))
        gpus = judge_gpus(config, 1.0 if engines.gpus else 0.0)
        actors = workers_now("evaluation", config.replicas, {"CPU": 1.0, "GPU": gpus})
        engines.make_room(actors, gpus * actors)
        with progress(f"judge {name}") as update, shared(config, verdict_identity(config, reading.normalize)) as settings:
            rows = 0

            def on_file(file: str) -> None:
                nonlocal rows
                rows += work.at("correctness").read_table(file, columns=["question_id"]).num_rows
                update(rows, len(answered))

            map_rows(
                work.at("answered"),
                work.at("correctness"),
                worker=CorrectBatch,
                arguments=(settings, reading),
                columns=ASKED,
                actors=actors,
                cpus=1,
                gpus=gpus,
                rows_per_block=ROWS_PER_BLOCK,
                checkpoint=work.at("checkpoint"),
                on_file=on_file,
            )
        found = work.at("correctness").read_table("")
    counts = {column: pc.sum(found[column]).as_py() or 0 for column in COUNTS}
    _warn(name, counts)
    return found, counts


def _warn(name: str, counts: dict[str, int]) -> None:
    if counts["unparsable"] > 0.5 * max(1, counts["judge_calls"]):
        raise UserError(
            f"{name}: {counts['unparsable']} of {counts['judge_calls']} verdicts could not be read: the judge said neither "
            "yes nor no; change evaluation.llm_prompt, or give another evaluation.llm_model"
        )
    notes = {
        "verdicts are on texts longer than the judge takes, of which it did not see all": counts["truncated"],
        "verdicts could not be read and were taken for wrong": counts["unparsable"],
    }
    for note, count in notes.items():
        if count:
            logger.warning("%s: %d %s", name, count, note)
