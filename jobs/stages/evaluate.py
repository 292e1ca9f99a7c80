"""Stage evaluate: greedy-like answers on held-out questions, whether they are right, metrics, and what is known no longer."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ka2l_ray import schema
from ka2l_ray.actors.engines import Engines
from ka2l_ray.actors.language_model import Model, engine_identity
from ka2l_ray.config import EngineConfig, EvaluationConfig, SamplingConfig
from ka2l_ray.errors import UserError
from ka2l_ray.evaluation import METRICS, corpus_bleu, meteor_stages, score_answer, split_figures
from ka2l_ray.jobs.stages.bert_score import bert_score_identity, bert_score_note, bert_scores
from ka2l_ray.jobs.stages.correctness import correctness, correctness_identity
from ka2l_ray.jobs.stages.progress import progress
from ka2l_ray.reading import READING, Reading
from ka2l_ray.store.artefacts import Artefact, Store, difference
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
    reading: Reading = READING,
) -> Artefact:
    """The evaluation table of ``test``.

    Args:
        before: evaluation of the untrained model on the same questions; splits every figure by known and unknown.
        reading: what of an answer is compared, and its normal form.

    Raises:
        UserError: a test question without answers, or ``before`` is by another judge.
    """
    answering = sampling.model_dump(mode="json", include={"greedy_temperature", "max_tokens", "stop"})
    identity = correctness_identity(config, reading)
    inputs = {
        "stage": "evaluate",
        "test": test.key,
        "model": model.identity(),
        "sampling": answering,
        "evaluation": config.model_dump(mode="json", include={"bootstrap", "confidence"}),
        "correctness": identity,
        "engine": engine_identity(engine, engine.name),
        "seed": list(seed),
        "before": before.key if before else None,
        "meteor": meteor_stages(),
        "bert_score": bert_score_identity(config),
    }
    if before is not None and before.inputs.get("correctness") != identity:
        differs = difference({"judge": before.inputs.get("correctness")}, {"judge": identity})
        raise UserError(f"{before.url}: evaluated by another judge ({differs}); evaluate it by the same one")

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
        said = _by_id(answers_dir.read_table(""), "prediction")
        texts = pa.array([said[i] or "" for i in questions["question_id"].to_pylist()])  # what could not be done is wrong
        asked = questions.append_column("prediction", texts)
        judged, cost = correctness(name, asked, work.at("_scratch"), config=config, reading=reading, engines=engines)
        semantic = bert_scores(asked, work.at("_scratch/bert_score"), config=config, reading=reading, engines=engines)
        table = _score(asked, judged, semantic, before, reading)
        work.write_table("evaluation.parquet", table)
        notes = {"meteor": f"matches words by {meteor_stages()}", "bert_score": bert_score_note(config)}
        return {**counts, **cost, "metric_notes": notes, **summarise(table, config, reading)}

    return store.compute(name, inputs, build)


def _score(asked: pa.Table, judged: pa.Table, semantic: dict[str, float], before: Artefact | None, reading: Reading) -> pa.Table:
    correct, exact = _by_id(judged, "correct"), _by_id(judged, "exact_match")
    known, known_exact = correct, exact
    if before is not None:
        earlier = before.storage.read_table("", columns=["question_id", "correct", "exact_match"])
        known, known_exact = _by_id(earlier, "correct"), _by_id(earlier, "exact_match")
    rows = []
    for row in asked.to_pylist():
        i = row["question_id"]
        scores = score_answer(reading.answer(row["prediction"]), reading.accepted(row["answers"]), reading.normalize)
        scores |= {"correct": float(correct[i]), "exact_match": float(exact[i]), "bert_score": semantic.get(i)}
        before_it = {
            "known_before": None if known.get(i) is None else known[i] == 1,
            "exact_match_before": None if known_exact.get(i) is None else known_exact[i] == 1,
        }
        rows.append({**row, **scores, **before_it})
    return pa.Table.from_pylist(rows, schema=schema.EVALUATION)


def _by_id(table: pa.Table, column: str) -> dict[str, Any]:
    return dict(zip(table["question_id"].to_pylist(), table[column].to_pylist(), strict=True))


def summarise(table: pa.Table, config: EvaluationConfig, reading: Reading) -> dict[str, Any]:
    """Means with intervals, on all questions and split by what was known before; learned and forgotten counts.

    All by the judge of the configuration; those of exact match stand beside them, under ``by_exact_match``.
    """
    names = ["correct", *(name for name in METRICS if not table[name].null_count)]
    scores = {name: table[name].to_numpy() for name in names}
    known = _known(table, "known_before")
    split = split_figures(scores, known, config.bootstrap, config.confidence, seed=0)
    return {
        "judge": config.judge,
        "figures": {group: {name: asdict(interval) for name, interval in figures.items()} for group, figures in split.items()},
        "corpus_bleu": corpus_bleu(
            [reading.answer(text) for text in table["prediction"].to_pylist()],
            [reading.accepted(answers) for answers in table["answers"].to_pylist()],
        ),
        **_changes(scores["correct"], known),
        "by_exact_match": _changes(scores["exact_match"], _known(table, "exact_match_before")),
    }


def _known(table: pa.Table, column: str) -> NDArray[np.bool_]:
    known: NDArray[np.bool_] = table[column].to_numpy(zero_copy_only=False).astype(bool)
    return known


def _changes(right: NDArray[np.float64], known_before: NDArray[np.bool_]) -> dict[str, Any]:
    correct = right == 1.0
    return {
        "learned": int((correct & ~known_before).sum()),
        "forgotten": int((~correct & known_before).sum()),
        "known_before": int(known_before.sum()),
        "accuracy": float(np.mean(correct)),
    }
