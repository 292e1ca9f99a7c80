"""Stage uncertainty: every score of a question that its artefacts give, and how well each tells wrong answers from right ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ka2l_ray.actors.engines import Engines
from ka2l_ray.actors.language_model import Model, engine_identity
from ka2l_ray.config import EngineConfig
from ka2l_ray.errors import UserError
from ka2l_ray.jobs.stages.progress import progress
from ka2l_ray.store.artefacts import Artefact, Store
from ka2l_ray.store.storage import Storage
from ka2l_ray.uncertainty.p_true import Answered, case, solved_examples
from ka2l_ray.uncertainty.scores import answer_scores, column_of, cross_fitted_regression, quality


def p_true(store: Store, name: str, *, answered: Artefact, model: Model, engine: EngineConfig, engines: Engines) -> Artefact:
    """P(True) of every greedy-like answer but those shown as solved examples.

    Raises:
        UserError: answers are missing, or so few that there is none left to show.
    """
    inputs = {
        "stage": "p_true",
        "answered": answered.key,
        "model": model.identity(),
        "engine": engine_identity(engine, engine.name),
    }

    def build(work: Storage) -> dict[str, Any]:
        rows = answered.storage.read_table("")
        if rows["greedy"].null_count:
            raise UserError(f"{answered.url}: P(True) is of the greedy answer, and {rows['greedy'].null_count} rows have none")
        right = [not wrong for wrong in rows["wrong"].to_pylist()]
        shown = solved_examples(rows["question_id"].to_pylist(), right)
        if len(shown) == len(rows):
            raise UserError(f"P(True) shows {len(shown)} solved questions and there are no more; give more samples")
        texts = [
            case(Answered(row["question"], row["generations"], row["greedy"]), not row["wrong"])
            for row in rows.take(shown).to_pylist()
        ]
        asked = rows.take(np.setdiff1d(np.arange(len(rows)), shown))
        with progress(f"P(True) {name}") as update:
            counts = engines.run_shards(model, "p_true", work, asked, ("".join(f"{text}\n\n" for text in texts),), update)
        return {**counts, "examples": len(shown)}

    return store.compute(name, inputs, build)


def uncertainty(
    store: Store, name: str, *, answered: Artefact, entropy: Artefact, p_true: Artefact | None, hidden_states: Artefact | None
) -> Artefact:
    """All scores of ``answered`` as a table, and the quality of each, by group, as ``facts["quality"]``.

    Args:
        answered: ``schema.ANSWERED`` rows.
        entropy: of the same samples, every answer settled.
        p_true: of the same; the solved examples in it are left out of that score's figures.
        hidden_states: of the same questions; gives the accuracy probe and the linear semantic-entropy probe, cross-fitted.
    """
    parts = {"entropy": entropy, "p_true": p_true, "hidden_states": hidden_states}
    inputs = {"stage": "uncertainty", "answered": answered.key, **{k: v.key if v else None for k, v in parts.items()}}

    def build(work: Storage) -> dict[str, Any]:
        rows = answered.storage.read_table("").to_pylist()
        clustered = {row["question_id"]: row for row in entropy.storage.read_table("").to_pylist()}
        if any(clustered[row["question_id"]]["bound"] != "exact" for row in rows):
            raise UserError(f"{entropy.url}: bounds of semantic entropy cannot be compared; set entropy.label_only=false")
        for row in rows:
            row["label"] = clustered[row["question_id"]]["label"]
            ids = clustered[row["question_id"]]["cluster_ids"]
            row["scores"] = answer_scores(row["generations"], ids, row["log_likelihoods"], row["greedy_log_likelihood"])
        if p_true is not None:
            chance = dict(zip(*(p_true.storage.read_table("")[c].to_pylist() for c in ("question_id", "p_true")), strict=True))
            for row in rows:
                if chance.get(row["question_id"]) is not None:
                    row["scores"]["P(True)"] = 1 - chance[row["question_id"]]
        figures = []
        for group in sorted({row["group"] for row in rows}):
            members = [row for row in rows if row["group"] == group]
            if hidden_states is not None:
                _add_probes(members, hidden_states)
            figures += [{"group": group, **asdict(q)} for q in _qualities(members)]
        names = list(dict.fromkeys(name for row in rows for name in row["scores"]))
        columns = {name: [row[name] for row in rows] for name in ("question_id", "question", "group", "wrong", "label")}
        columns |= {column_of(name): [row["scores"].get(name) for row in rows] for name in names}
        work.write_table("uncertainty.parquet", pa.table(columns))
        return {"rows": len(rows), "wrong": float(np.mean([row["wrong"] for row in rows])), "quality": figures}

    return store.compute(name, inputs, build)


def _qualities(rows: list[dict[str, Any]]) -> Iterator[Any]:
    for name in dict.fromkeys(name for row in rows for name in row["scores"]):
        having = [row for row in rows if row["scores"].get(name) is not None]
        score = np.array([row["scores"][name] for row in having])
        yield quality(name, score, np.array([row["wrong"] for row in having]), [row["question"] for row in having])


def _add_probes(rows: list[dict[str, Any]], hidden_states: Artefact) -> None:
    """p(wrong) and p(unknown) by logistic regression on hidden states, each question's fitted without it."""
    states, position = _states(hidden_states)
    kept = [row for row in rows if row["question_id"] in position]
    if not kept:
        raise UserError(f"{hidden_states.url}: holds none of these questions; give the hidden states of the same questions")
    order = [position[row["question_id"]] for row in kept]
    layers = {layer: values[order] for layer, values in states.items()}
    questions = [row["question"] for row in kept]
    targets = {
        "accuracy probe": [row["wrong"] for row in kept],
        "semantic-entropy probe, linear": [row["label"] == 1 for row in kept],
    }
    for name, truth in targets.items():
        for row, p in zip(kept, cross_fitted_regression(layers, np.array(truth, bool), questions), strict=True):
            row["scores"][name] = float(p)


def _states(hidden_states: Artefact) -> tuple[dict[int, NDArray[np.floating]], dict[str, int]]:
    """((n, d) states by layer, row of each question)."""
    table = hidden_states.storage.read_table("")
    table = table.filter(pc.is_null(table["error"]))
    layers = {}
    for name in table.column_names:
        if name.startswith("layer_"):
            column = table[name].combine_chunks()
            layers[int(name.removeprefix("layer_"))] = column.flatten().to_numpy().reshape(len(table), -1)
    return layers, {question_id: i for i, question_id in enumerate(table["question_id"].to_pylist())}
