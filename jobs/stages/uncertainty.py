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
from ka2l_ray.evaluation import measure
from ka2l_ray.jobs.stages.p_wrong import check_exact
from ka2l_ray.jobs.stages.progress import progress
from ka2l_ray.store.artefacts import Artefact, Store
from ka2l_ray.store.storage import Storage
from ka2l_ray.uncertainty.p_true import Answered, case, solved_examples
from ka2l_ray.uncertainty.p_wrong import COMBINABLE, COMBINED, calibrate, combine
from ka2l_ray.uncertainty.scores import answer_scores, column_of, cross_fitted_regression, quality

PROBES = ("accuracy probe", "semantic-entropy probe, linear")
CROSS_FITTED = (*PROBES, COMBINED)
NOTHING_TO_COMBINE = (
    "--combine: there is nothing beside semantic entropy; give --hidden-states, --scores (p_unknown, p_true) or --p-true-model, "
    "or samples with greedy_logprob and greedy_token_ids"
)


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
        known = np.flatnonzero(rows["wrong"].is_valid().to_numpy())
        solved = rows.take(known)
        right = [not wrong for wrong in solved["wrong"].to_pylist()]
        shown = known[solved_examples(solved["question_id"].to_pylist(), right)]
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
    store: Store,
    name: str,
    *,
    answered: Artefact,
    entropy: Artefact,
    p_true: Artefact | None = None,
    hidden_states: Artefact | None = None,
    chances: Artefact | None = None,
    combined: bool = False,
) -> Artefact:
    """All scores of ``answered`` as a table with p(wrong), and the quality of each on the questions whose answers are known to be
    right or wrong, by group, as ``facts["quality"]``.

    Args:
        answered: ``schema.ANSWERED`` rows.
        entropy: of the same samples, every answer settled.
        p_true: of the same; the solved examples in it are left out of that score's figures.
        hidden_states: of the same questions; gives the accuracy probe and the linear semantic-entropy probe, cross-fitted.
        chances: ``schema.CHANCES`` of the same questions, made elsewhere.
        combined: adds the score that ``uncertainty.p_wrong.combine`` makes of those it takes.
    """
    parts = {"entropy": entropy, "p_true": p_true, "hidden_states": hidden_states, "chances": chances}
    inputs: dict[str, Any] = {
        "stage": "uncertainty",
        "answered": answered.key,
        **{k: v.key if v else None for k, v in parts.items()},
    }
    inputs["combined"] = combined

    def build(work: Storage) -> dict[str, Any]:
        rows = answered.storage.read_table("").to_pylist()
        clustered = {row["question_id"]: row for row in entropy.storage.read_table("").to_pylist()}
        check_exact([clustered[row["question_id"]]["bound"] for row in rows], entropy.url)
        for row in rows:
            row["label"] = clustered[row["question_id"]]["label"]
            ids = clustered[row["question_id"]]["cluster_ids"]
            row["scores"] = answer_scores(row["generations"], ids, row["log_likelihoods"], row["greedy_log_likelihood"])
        for part in filter(None, (chances, p_true)):
            _add_chances(rows, part)
        figures = []
        judge = answered.facts.get("judge")
        truths = {measure(judge) if judge else "as given": "wrong"} | ({"exact match": "no_exact_match"} if judge else {})
        for group in sorted({row["group"] for row in rows}):
            members = [row for row in rows if row["group"] == group]
            if hidden_states is not None:
                _add_probes(members, hidden_states)
            if combined:
                _add_combined(members)
            _add_p_wrong(members)
            for truth, column in truths.items():
                known = [{**row, "wrong": row[column]} for row in members if row[column] is not None]
                figures += [{"group": group, "truth": truth, **asdict(q)} for q in _qualities(known)]
        names = list(dict.fromkeys(name for row in rows for name in row["scores"]))
        columns = {
            name: [row[name] for row in rows]
            for name in ("question_id", "question", "group", "wrong", "no_exact_match", "label", "p_wrong")
        }
        columns |= {column_of(name): [row["scores"].get(name) for row in rows] for name in names}
        work.write_table("uncertainty.parquet", pa.table(columns))
        wrong = [row["wrong"] for row in rows if row["wrong"] is not None]
        return {"rows": len(rows), "labelled": len(wrong), "wrong": float(np.mean(wrong)), "quality": figures}

    return store.compute(name, inputs, build)


def check_combinable(answered: Artefact) -> None:
    """Raise a UserError where the samples give nothing that semantic entropy can be combined with."""
    likelihoods = answered.storage.read_table("", columns=["greedy_log_likelihood"])["greedy_log_likelihood"]
    if likelihoods.null_count == len(likelihoods):
        raise UserError(NOTHING_TO_COMBINE)


def _qualities(rows: list[dict[str, Any]]) -> Iterator[Any]:
    for name in dict.fromkeys(name for row in rows for name in row["scores"]):
        having = [row for row in rows if row["scores"].get(name) is not None]
        score = np.array([row["scores"][name] for row in having])
        wrong, questions = np.array([row["wrong"] for row in having]), [row["question"] for row in having]
        yield quality(name, score, wrong, questions, cross_fitted=name in CROSS_FITTED)


def _add_chances(rows: list[dict[str, Any]], chances: Artefact) -> None:
    """p(unknown), P(True) and the options' entropy, as scores that are higher where the model seems to know less."""
    table = chances.storage.read_table("")
    of = {row["question_id"]: row for row in table.to_pylist()}
    for row in rows:
        found = of.get(row["question_id"], {})
        if found.get("p_unknown") is not None:
            row["scores"]["p(unknown)"] = found["p_unknown"]
        if found.get("p_true") is not None:
            row["scores"]["P(True)"] = 1 - found["p_true"]
        if found.get("option_entropy") is not None:
            row["scores"]["option entropy"] = found["option_entropy"]


def _add_combined(rows: list[dict[str, Any]]) -> None:
    """The score of all others at once.

    Raises:
        UserError: semantic entropy is all there is.
    """
    scores = {
        name: np.array([row["scores"].get(name, np.nan) for row in rows], float)
        for name in COMBINABLE
        if any(name in row["scores"] for row in rows)
    }
    if len(scores) == 1:
        raise UserError(NOTHING_TO_COMBINE)
    found = combine(scores, [row["wrong"] for row in rows], [row["question"] for row in rows])
    for row, p in zip(rows, found.tolist(), strict=True):
        row["scores"][COMBINED] = p


def _add_p_wrong(rows: list[dict[str, Any]]) -> None:
    """Of semantic entropy, calibrated."""
    score = np.array([row["scores"]["semantic entropy"] for row in rows])
    found = calibrate(score, [row["wrong"] for row in rows], [row["question"] for row in rows])
    for row, p in zip(rows, found.p_wrong.tolist(), strict=True):
        row["p_wrong"] = p


def _add_probes(rows: list[dict[str, Any]], hidden_states: Artefact) -> None:
    """p(wrong) and p(unknown) by logistic regression on hidden states, each question's fitted without it."""
    states, position = _states(hidden_states)
    kept = [row for row in rows if row["question_id"] in position]
    if not kept:
        raise UserError(f"{hidden_states.url}: holds none of these questions; give the hidden states of the same questions")
    order = [position[row["question_id"]] for row in kept]
    layers = {layer: values[order] for layer, values in states.items()}
    questions = [row["question"] for row in kept]
    for name, column in zip(PROBES, ("wrong", "label"), strict=True):
        of = [i for i, row in enumerate(kept) if row[column] is not None]
        truth = np.array([bool(kept[i][column]) for i in of])
        found = cross_fitted_regression(
            {layer: values[of] for layer, values in layers.items()}, truth, [questions[i] for i in of]
        )
        for i, p in zip(of, found.tolist(), strict=True):
            kept[i]["scores"][name] = p


def _states(hidden_states: Artefact) -> tuple[dict[int, NDArray[np.floating]], dict[str, int]]:
    """((n, d) states by layer, row of each question)."""
    table = hidden_states.storage.read_table("")
    table = table.filter(pc.is_null(table["error"]))
    layers = {}
    for name in table.column_names:
        if name.startswith("layer_"):
            column = table[name].combine_chunks()
            if not pa.types.is_fixed_size_list(column.type):
                raise UserError(f"{hidden_states.url}: states of every token (position attention); give those of one position")
            layers[int(name.removeprefix("layer_"))] = column.flatten().to_numpy().reshape(len(table), -1)
    return layers, {question_id: i for i, question_id in enumerate(table["question_id"].to_pylist())}
