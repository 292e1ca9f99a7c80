"""Stage evaluate: greedy-like answers on held-out questions, metrics, and what was known before but is no longer."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ka2l_ray import schema
from ka2l_ray.actors.engines import Engines
from ka2l_ray.actors.language_model import Model, engine_identity
from ka2l_ray.config import EngineConfig, EvaluationConfig, SamplingConfig
from ka2l_ray.errors import UserError
from ka2l_ray.evaluation import METRICS, corpus_bleu, meteor_data, score_answer, split_figures
from ka2l_ray.jobs.stages.progress import progress
from ka2l_ray.store.artefacts import Artefact, Store
from ka2l_ray.store.storage import Storage


def evaluate(
    store: Store,
    name: str,
    *,
    test: Artefact,
    model: Model,
    sampling: SamplingConfig,
    config: EvaluationConfig,
    engine: EngineConfig,
    seed: tuple[int, ...],
    engines: Engines,
    before: Artefact | None = None,
) -> Artefact:
    """The evaluation table of ``test``.

    Args:
        before: evaluation of the untrained model on the same questions; splits every figure by known and unknown.

    Raises:
        UserError: a test question without answers.
    """
    answering = sampling.model_dump(mode="json", include={"greedy_temperature", "max_tokens", "stop"})
    inputs = {
        "stage": "evaluate",
        "test": test.key,
        "model": model.identity(),
        "sampling": answering,
        "evaluation": config.model_dump(mode="json", include={"bootstrap", "confidence"}),
        "engine": engine_identity(engine, engine.name),
        "seed": list(seed),
        "before": before.key if before else None,
        "meteor": meteor_data(),
    }

    def build(work: Storage) -> dict[str, Any]:
        questions = test.storage.read_table("")
        unanswered = questions.filter(pc.is_null(questions["answers"]))
        if len(unanswered):
            raise UserError(
                f"evaluate: test question '{unanswered['question_id'][0]}' has no answers "
                f"({len(unanswered)} of {len(questions)} have none); a test set needs an 'answers' column"
            )
        answers_dir = work.at("_scratch/predictions")
        with progress(f"evaluate {name}") as update:
            counts = engines.run_shards(model, "answer", answers_dir, questions, (sampling, (*seed, "evaluate")), update)
        table = _score(questions, answers_dir.read_table(""), before)
        work.write_table("evaluation.parquet", table)
        return {**counts, "meteor_data": meteor_data() or "absent: METEOR left out", **summarise(table, config)}

    return store.compute(name, inputs, build)


def _score(questions: pa.Table, predictions: pa.Table, before: Artefact | None) -> pa.Table:
    texts = predictions["prediction"].fill_null("")  # a question that could not be done is answered wrongly
    prediction_of = dict(zip(predictions["question_id"].to_pylist(), texts.to_pylist(), strict=True))
    known: dict[str, bool] = {}
    if before is not None:
        earlier = before.storage.read_table("", columns=["question_id", "exact_match"])
        known = {
            i: em == 1.0 for i, em in zip(earlier["question_id"].to_pylist(), earlier["exact_match"].to_pylist(), strict=True)
        }
    rows = []
    for row in questions.to_pylist():
        scores = score_answer(prediction_of[row["question_id"]], row["answers"])
        known_before = known.get(row["question_id"]) if before is not None else scores["exact_match"] == 1.0
        rows.append({**row, "prediction": prediction_of[row["question_id"]], **scores, "known_before": known_before})
    return pa.Table.from_pylist(rows, schema=schema.EVALUATION)


def summarise(table: pa.Table, config: EvaluationConfig) -> dict[str, Any]:
    """Means with intervals, on all questions and split by what was known before; learned and forgotten shares."""
    names = [name for name in METRICS if not table[name].null_count]
    scores = {name: table[name].to_numpy() for name in names}
    known = table["known_before"].to_numpy(zero_copy_only=False).astype(bool)
    split = split_figures(scores, known, config.bootstrap, config.confidence, seed=0)
    correct = scores["exact_match"] == 1.0
    return {
        "figures": {group: {name: asdict(interval) for name, interval in figures.items()} for group, figures in split.items()},
        "corpus_bleu": corpus_bleu(table["prediction"].to_pylist(), table["answers"].to_pylist()),
        "learned": int((correct & ~known).sum()),
        "forgotten": int((~correct & known).sum()),
        "known_before": int(known.sum()),
        "accuracy": float(np.mean(correct)),
    }
