"""The figures of benchmarks/real_model.py, from judged answers and hidden states, as JSON values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import real_model_measures as measures
from numpy.typing import NDArray

from ka2l_ray.semantics.entropy import KA2L_THRESHOLD, labels, semantic_entropy, threshold
from ka2l_ray.store.artefacts import Artefact
from ka2l_ray.uncertainty.p_wrong import combine
from ka2l_ray.uncertainty.scores import answer_scores, quality

MAIN = ("SciQ", "WebQuestions")  # whose figures are given one by one; the others are what a probe is taken to
SEEDS = (0, 1, 2)
NUMBERS = tuple(range(2, 11))
LAYERS = tuple(range(0, 31, 3))
FEW = tuple(range(0, 31, 6))
ATTENTION = (18,)  # the states of every token are kept: one layer
POSITIONS = {"last_prompt_token": FEW, "mean": FEW, "attention": ATTENTION}
KINDS: dict[str, dict[str, Any]] = {
    "linear": {"kind": "linear"},
    "mlp": {"kind": "mlp", "hidden_width": 512},  # KA2L's 14336 takes 28 times as long
}


class Found:
    """Samples, meanings and correctness of one data set, by judge."""

    def __init__(self, samples: list[dict[str, Any]], judged: Mapping[str, Artefact]) -> None:
        self.samples = samples
        self.questions = [row["question"] for row in samples]
        tables = {judge: artefact.storage.read_table("") for judge, artefact in judged.items()}
        self.cluster_ids = {judge: table["cluster_ids"].to_pylist() for judge, table in tables.items()}
        self.wrong = {judge: ~table["correct"].to_numpy() for judge, table in tables.items()}
        self.entropy = {judge: np.array([semantic_entropy(ids) for ids in rows]) for judge, rows in self.cluster_ids.items()}


def label(found: Mapping[str, Found], names: Sequence[str], judge: str) -> tuple[NDArray[np.bool_], float]:
    """(unknown or not of all questions of some sets, the threshold of ``two_means`` over them)."""
    entropies = np.concatenate([found[name].entropy[judge] for name in names])
    at = threshold(entropies, "two_means")
    return labels(entropies, at).astype(bool), at


def overview(found: Mapping[str, Found]) -> dict[str, Any]:
    """Of each set: questions, share right, what the rules call unknown, words of an answer."""
    rows = {}
    for name, each in found.items():
        judges = list(each.wrong)
        words = [len(text.split()) for row in each.samples for text in row["generations"]]
        rows[name] = {
            "questions": len(each.questions),
            "words": float(np.median(words)),
            "right": {judge: float((~each.wrong[judge]).mean()) for judge in judges},
            "entropy": {judge: float(each.entropy[judge].mean()) for judge in judges},
            "known": {judge: float((each.entropy[judge] < KA2L_THRESHOLD).mean()) for judge in judges},
            "two_means": {judge: label(found, [name], judge)[1] for judge in judges},
            "unknown": {judge: float(label(found, [name], judge)[0].mean()) for judge in judges},
        }
    return rows


def entropy_figures(found: Mapping[str, Found], judges: Sequence[str]) -> dict[str, Any]:
    """AUROC of semantic entropy against a wrong answer by judge of meaning, judge of correctness and number of answers."""
    whole: dict[str, Any] = {}
    numbers: dict[str, Any] = {}
    for correct in judges:
        for meaning in judges:
            for name in MAIN:
                each = found[name]
                area = low = high = measures.NAN
                if measures.enough(each.wrong[correct]):
                    low, high = measures.interval(each.wrong[correct], each.entropy[meaning])
                    area = measures.auroc(each.wrong[correct], each.entropy[meaning])
                whole.setdefault(name, {}).setdefault(meaning, {})[correct] = {"auroc": area, "low": low, "high": high}
            numbers.setdefault(correct, {})[meaning] = {
                k: measures.over_seeds(
                    [
                        float(np.mean([measures.by_number(f.cluster_ids[meaning], f.wrong[correct], k, seed) for f in main]))
                        for seed in SEEDS
                    ]
                )
                for k in NUMBERS
                for main in [[found[name] for name in MAIN]]
            }
    return {"whole": whole, "numbers": numbers}


def score_figures(found: Mapping[str, Found], states: Mapping[str, measures.States], two: Sequence[str]) -> dict[str, Any]:
    """Every score's AUROC and AURC against a wrong answer, by set and judge; ``combined`` is fitted on the other folds."""
    rows: dict[str, Any] = {}
    for judge in two:
        for name in MAIN:
            each = found[name]
            unknown, _ = label(found, [name], judge)
            columns: dict[str, list[float]] = {}
            for row, ids in zip(each.samples, each.cluster_ids[judge], strict=True):
                given = row["generations"], ids, row["log_likelihoods"], row["greedy_log_likelihood"]
                for score, value in answer_scores(*given).items():
                    columns.setdefault(score, []).append(value)
            scores = {score: np.array(values) for score, values in columns.items()}
            scores["p(unknown)"] = measures.cross_fitted(states[name], unknown, 0, **KINDS["linear"])[0]
            used = ("semantic entropy", "p(unknown)", "log-likelihood")
            wrong = each.wrong[judge]
            scores["combined"] = combine({score: scores[score] for score in used}, wrong.tolist(), each.questions)
            for score, values in scores.items():
                fitted = score == "combined"
                one = quality(score, values, wrong, each.questions, resamples=300, cross_fitted=fitted)
                rows.setdefault(judge, {}).setdefault(score, {})[name] = {
                    "auroc": one.auroc,
                    "low": one.auroc_low,
                    "high": one.auroc_high,
                    "aurc": one.aurc,
                    "wrong": one.wrong,
                }
    return rows


def truths(found: Mapping[str, Found], names: Sequence[str], judge: str) -> dict[str, NDArray[np.bool_]]:
    wrong = np.concatenate([found[name].wrong[judge] for name in names])
    return {"label": label(found, names, judge)[0], "wrong": wrong}


def layer_figures(found: Mapping[str, Found], states: Mapping[str, measures.States], two: Sequence[str]) -> dict[str, Any]:
    """AUROC of each layer's probe on SciQ and WebQuestions together, by judge, truth, kind and layer."""
    joined = {layer: np.concatenate([states[name][layer] for name in MAIN]) for layer in LAYERS}
    within = np.repeat(np.arange(len(MAIN)), [len(found[name].questions) for name in MAIN])
    figures: dict[str, Any] = {}
    for judge in two:
        for truth, values in truths(found, MAIN, judge).items():
            for kind, how in KINDS.items():
                layers = LAYERS if kind == "linear" else FEW
                some = {layer: joined[layer] for layer in layers}
                seeds = [measures.by_layer(some, values, within, seed, **how) for seed in SEEDS]
                figures.setdefault(judge, {}).setdefault(truth, {})[kind] = {
                    layer: measures.over_seeds([each[layer] for each in seeds]) for layer in layers
                }
                print(f"  probes: {kind} of {truth} by {judge}", flush=True)
    return figures


def decile_figures(found: Mapping[str, Found], states: Mapping[str, measures.States], two: Sequence[str]) -> dict[str, Any]:
    """Share of right greedy answers and mean semantic entropy by decile of p(unknown), mean of three cross-fitted probes."""
    joined = {layer: np.concatenate([states[name][layer] for name in MAIN]) for layer in FEW}
    figures = {}
    for judge in two:
        both = truths(found, MAIN, judge)
        fits = [measures.cross_fitted(joined, both["label"], seed, **KINDS["linear"]) for seed in SEEDS]
        entropy = np.concatenate([found[name].entropy[judge] for name in MAIN])
        columns = {"accuracy": ~both["wrong"], "entropy": entropy, "unknown": both["label"]}
        p = np.mean([p for p, _ in fits], axis=0)
        layers = [layer for _, chosen in fits for layer in chosen]
        accuracy = float((~both["wrong"]).mean())
        figures[judge] = {"rows": measures.deciles(p, columns), "accuracy": accuracy, "layers": sorted(set(layers))}
    return figures


def matrix_figures(
    found: Mapping[str, Found], states: Mapping[str, Mapping[str, measures.States]], two: Sequence[str]
) -> dict[str, Any]:
    """AUROC of linear probes fitted on one set and tested on each, by position, judge and truth."""
    figures: dict[str, Any] = {}
    for position, by_set in states.items():
        some = {name: {layer: by_set[name][layer] for layer in POSITIONS[position]} for name in by_set}
        for judge in two:
            for truth in ("label", "wrong"):
                values = {name: truths(found, [name], judge)[truth] for name in found}
                drawn = SEEDS[:1] if position == "attention" else SEEDS  # a fit of all tokens takes fifty times as long
                seeds = [measures.matrix(some, values, seed, **KINDS["linear"]) for seed in drawn]
                figures.setdefault(position, {}).setdefault(judge, {})[truth] = {
                    a: {b: measures.over_seeds([each[a][b] for each in seeds]) for b in found} for a in found
                }
        print(f"  matrix: {position}", flush=True)
    return figures
