"""What benchmarks/real_model.py measures: pure functions of judged answers and hidden states.

A truth is a column of 0 and 1 whose 1 is what a score should be high for: the label (1 unknown), or that the greedy-like answer
is wrong. Figures of a probe are always of questions that it was not fitted on; a seed draws the folds and the first weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ka2l_ray.probes import fit_layers, fit_probe, p_unknown
from ka2l_ray.seeds import generator
from ka2l_ray.semantics.entropy import semantic_entropy
from ka2l_ray.uncertainty.ranking import auroc
from ka2l_ray.uncertainty.scores import auroc_over_folds

FOLDS = 5
LEAST = 10  # rows of the rarer class, below which an AUROC is not given
States = Mapping[int, NDArray[np.floating]]
"""(n, d) by layer."""
NAN = float("nan")


def by_number(cluster_ids: Sequence[Sequence[int]], wrong: NDArray[np.bool_], k: int, seed: int) -> float:
    """AUROC of the semantic entropy of ``k`` answers of each question, drawn from all that there are, against a wrong answer.

    The meanings are those of all answers.
    """
    draw = generator("answers", seed, k)
    drawn = [np.asarray(ids)[draw.permutation(len(ids))[:k]] for ids in cluster_ids]
    return auroc(wrong, np.array([semantic_entropy(ids) for ids in drawn]))


def interval(wrong: NDArray[np.bool_], score: NDArray[np.floating], resamples: int = 1000) -> tuple[float, float]:
    """95 % bootstrap interval of the AUROC, over questions."""
    draw = generator("bootstrap", len(wrong))
    rows = [draw.integers(0, len(wrong), len(wrong)) for _ in range(resamples)]
    low, high = np.nanquantile([auroc(wrong[i], score[i]) for i in rows], [0.025, 0.975])
    return float(low), float(high)


def enough(truth: NDArray[np.bool_]) -> bool:
    """Whether both classes have rows enough for an AUROC to say something."""
    return min(int(truth.sum()), int((~truth).sum())) >= LEAST


def draw_folds(n: int, seed: int) -> NDArray[np.int64]:
    return generator("folds", seed).permutation(n) % FOLDS


def by_layer(states: States, truth: NDArray[np.bool_], within: NDArray[np.int64], seed: int, **how: Any) -> dict[int, float]:
    """AUROC of the probe of each layer: each is fitted on three folds, ended by a fourth and tested on the fifth.

    Args:
        within: (n,) data set of each question. Ranks are compared within a fold and a set: that one set is harder than another is
            easily read off a state, and says nothing of a question.
        how: arguments of ``fit_probe``.
    """
    fold = draw_folds(len(truth), seed)
    found = {}
    for layer, rows in states.items():
        p = np.zeros(len(truth))
        for held_out in range(FOLDS):
            test, validation = fold == held_out, fold == (held_out + 1) % FOLDS
            rest = ~(test | validation)
            judged = (rows[validation], truth[validation].astype(np.int8))
            probe, _ = fit_probe(rows[rest], truth[rest].astype(np.int8), validation=judged, layer=layer, seed=seed, **how)
            p[test] = predicted(probe, rows[test])
        found[layer] = auroc_over_folds(truth, p, FOLDS * within + fold)
    return found


def cross_fitted(states: States, truth: NDArray[np.bool_], seed: int, **how: Any) -> tuple[NDArray[np.float64], list[int]]:
    """(p of each question by the other folds' probe, the layer that each fold's validation chose)."""
    fold = draw_folds(len(truth), seed)
    p, layers = np.zeros(len(truth)), []
    for held_out in range(FOLDS):
        test, rest = fold == held_out, fold != held_out
        probe, layer = fitted({at: rows[rest] for at, rows in states.items()}, truth[rest], seed, **how)
        p[test] = predicted(probe, states[layer][test])
        layers.append(layer)
    return p, layers


def fitted(states: States, truth: NDArray[np.bool_], seed: int, **how: Any) -> tuple[Any, int]:
    """(probe, its layer), chosen on a fifth of the rows that the probes were not fitted on, the rarer class alike in both."""
    validation = np.zeros(len(truth), bool)
    for side in (truth, ~truth):
        members = generator("validation", seed).permutation(np.flatnonzero(side))
        validation[members[: len(members) // FOLDS]] = True
    probe, fit, _ = fit_layers(dict(states), truth.astype(np.int8), validation=validation, seed=seed, **how)
    return probe, fit.layer


def predicted(probe: Any, states: NDArray[np.floating]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = p_unknown(probe, torch.from_numpy(np.asarray(states, np.float32))).double().numpy()
    return found


def matrix(
    states: Mapping[str, States], truth: Mapping[str, NDArray[np.bool_]], seed: int, **how: Any
) -> dict[str, dict[str, float]]:
    """AUROC of the probe fitted on each data set (first key) on each other (second key); on its own, cross-fitted.

    NaN where a class has too few rows.
    """
    how["calibration"] = "none"  # of ranks alone
    found: dict[str, dict[str, float]] = {}
    for source in states:
        found[source] = dict.fromkeys(states, NAN)
        if not enough(truth[source]):
            continue
        probe, layer = fitted(states[source], truth[source], seed, **how)
        for target in states:
            if not enough(truth[target]):
                continue
            if target == source:
                p, _ = cross_fitted(states[source], truth[source], seed, **how)
                found[source][target] = auroc_over_folds(truth[source], p, draw_folds(len(p), seed))
            else:
                found[source][target] = auroc(truth[target], predicted(probe, states[target][layer]))
    return found


def deciles(p: NDArray[np.floating], columns: Mapping[str, NDArray[Any]], parts: int = 10) -> list[dict[str, float]]:
    """Mean ``p`` and means of the columns, in parts of equally many questions from the lowest p on."""
    order = np.array_split(np.argsort(p, kind="stable"), parts)
    return [{"p": float(p[i].mean()), **{name: float(np.mean(column[i])) for name, column in columns.items()}} for i in order]


def over_seeds(values: Sequence[float]) -> dict[str, float]:
    """Mean, and the largest distance of a seed from it; NaN where a seed has none."""
    mean = float(np.mean(values))
    return {"mean": mean, "spread": float(np.max(np.abs(np.asarray(values) - mean)))}
