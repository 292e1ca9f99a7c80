"""Uncertainty scores of a question (KA2L Table 9), and how well each tells wrong answers from right ones.

Every score is higher where the model seems to know less. Quality is measured against the greedy-like answer being wrong: AUROC,
the area under the risk-coverage curve (AURC; Geifman and El-Yaniv, 2017: mean error rate of the answers kept, over all
coverages), and calibration of the score as a probability of error, after Platt scaling fitted on other questions.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray

from ka2l_ray.evaluation import rouge_l
from ka2l_ray.normalization import normalize_question
from ka2l_ray.probes import logistic_regression, p_unknown
from ka2l_ray.semantics.entropy import bias_corrected_entropy, rao_semantic_entropy, regular_entropy, semantic_entropy
from ka2l_ray.uncertainty.calibration import calibration_error
from ka2l_ray.uncertainty.ranking import auroc

FOLDS = 5


def answer_scores(
    generations: Sequence[str],
    cluster_ids: Sequence[int],
    log_likelihoods: Sequence[float] | None = None,
    greedy_log_likelihood: float | None = None,
) -> dict[str, float]:
    """Scores of one question that its answers give; those whose inputs are missing are left out.

    Args:
        generations: (k,) sampled answers.
        cluster_ids: (k,) their meanings.
        log_likelihoods: (k,) nats, mean over each answer's tokens.
        greedy_log_likelihood: nats, mean over the tokens of the greedy-like answer.
    """
    scores = {
        "semantic entropy": semantic_entropy(cluster_ids),
        "semantic entropy, bias-corrected": bias_corrected_entropy(cluster_ids),
        "number of clusters": float(len(set(cluster_ids))),
        "lexical similarity": -lexical_similarity(generations),
    }
    if log_likelihoods is not None:
        scores["semantic entropy, by likelihood"] = rao_semantic_entropy(cluster_ids, log_likelihoods)
        scores["regular entropy"] = regular_entropy(log_likelihoods)
    if greedy_log_likelihood is not None:
        scores["log-likelihood"] = -greedy_log_likelihood
    return scores


def column_of(score: str) -> str:
    """Its name in a table: ``P(True)`` is the column ``p_true``."""
    return re.sub(r"[^a-z0-9]+", "_", score.lower()).strip("_")


def lexical_similarity(answers: Sequence[str]) -> float:
    """Mean ROUGE-L of all pairs of answers, 0 to 1 (Fomicheva et al., 2020); 1 for a single answer."""
    pairs = list(combinations(answers, 2))
    known: dict[tuple[str, str], float] = {}
    total = 0.0
    for a, b in pairs:
        if (a, b) not in known:
            known[a, b] = 1.0 if a == b else rouge_l(a, [b])
        total += known[a, b]
    return total / len(pairs) if pairs else 1.0


@dataclass(frozen=True)
class Quality:
    """How well one score tells wrong answers from right ones."""

    score: str
    questions: int
    wrong: float
    """Share of wrong answers: the AURC of a score that says nothing."""
    auroc: float
    auroc_low: float
    auroc_high: float
    aurc: float
    calibration_error: float
    """Debiased calibration error of p(wrong), over ten bins of equally many questions (``uncertainty.calibration``)."""
    brier: float
    """Mean squared error of p(wrong); a constant gives wrong x (1 - wrong)."""


def quality(
    name: str,
    score: NDArray[np.float64],
    wrong: NDArray[np.bool_],
    questions: Sequence[str],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    cross_fitted: bool = False,
) -> Quality:
    """Quality of ``score`` (n,) against ``wrong`` (n,); the AUROC's interval by resampling questions.

    NaN where all answers are right, or all wrong.

    Args:
        cross_fitted: the score is one of ``cross_fitted_regression``: its AUROC and AURC are means over folds.
    """
    generator = np.random.default_rng(seed)
    n = len(score)
    fold = np.array([fold_of(question) for question in questions]) if cross_fitted else np.zeros(n, int)
    low = high = float("nan")
    if 0 < wrong.sum() < n:
        drawn = [generator.integers(0, n, n) for _ in range(resamples)]
        tail = (1 - confidence) / 2
        low, high = np.nanquantile([auroc_over_folds(wrong[i], score[i], fold[i]) for i in drawn], [tail, 1 - tail])
    p_wrong = cross_fitted_probability(score, wrong, questions)
    return Quality(
        score=name,
        questions=n,
        wrong=float(wrong.mean()),
        auroc=auroc_over_folds(wrong, score, fold),
        auroc_low=float(low),
        auroc_high=float(high),
        aurc=float(np.mean([aurc(wrong[fold == each], score[fold == each]) for each in np.unique(fold)])),
        calibration_error=calibration_error(wrong, p_wrong),
        brier=float(np.mean((p_wrong - wrong) ** 2)),
    )


def auroc_over_folds(wrong: NDArray[np.bool_], score: NDArray[np.float64], fold: NDArray[np.integer]) -> float:
    """Mean AUROC of the folds that hold right and wrong answers; NaN where none does.

    Scores fitted on the other folds must not be ranked across folds: where a fold holds more wrong answers, the others hold
    fewer, and its scores are lower, so that pooled scores of pure noise have an AUROC below a half.
    """
    found = [auroc(wrong[fold == each], score[fold == each]) for each in np.unique(fold)]
    kept = [each for each in found if not np.isnan(each)]
    return float(np.mean(kept)) if kept else float("nan")


def aurc(wrong: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    """Mean, over n coverages, of the share of wrong answers among those with the lowest scores; equal scores in random order."""
    _, group, sizes = np.unique(score, return_inverse=True, return_counts=True)
    errors = np.bincount(group, wrong)
    share = (errors / sizes)[np.repeat(np.arange(len(sizes)), sizes)]
    return float(np.mean(np.cumsum(share) / np.arange(1, len(score) + 1)))


def fold_of(question: str) -> int:
    """Fold of a question by hash of its normalised text: equal questions never part ways."""
    return int.from_bytes(hashlib.sha256(f"fold {normalize_question(question)}".encode()).digest()[:4], "big") % FOLDS


def cross_fitted_probability(
    score: NDArray[np.float64], wrong: NDArray[np.bool_], questions: Sequence[str]
) -> NDArray[np.float64]:
    """p(wrong) of each question by Platt scaling (a logistic regression on the score), fitted on the other folds."""
    return cross_fitted_regression({0: np.asarray(score, np.float32)[:, None]}, wrong, questions)


def cross_fitted_regression(
    states: dict[int, NDArray[np.floating]], truth: NDArray[np.bool_], questions: Sequence[str]
) -> NDArray[np.float64]:
    """p(truth) of each question by logistic regression on one layer's states, fitted on the other folds.

    Semantic-entropy probes (Kossen et al., 2024) where ``truth`` is "unknown by semantic entropy", accuracy probes where it is
    "the answer is wrong". In each fold the layer is chosen by log-likelihood on a part of the questions fitted on.

    Args:
        states: (n, d) features by layer.
        truth: (n,).
        questions: (n,) texts, which decide the folds.
    """
    fold = np.array([fold_of(question) for question in questions])
    p = np.full(len(truth), float(truth.mean()))
    for held_out in range(FOLDS):
        test, rest = fold == held_out, fold != held_out
        if not test.any() or len(set(truth[rest].tolist())) < 2:
            continue
        layers = list(states)
        if len(layers) > 1:
            choosing = fold == (held_out + 1) % FOLDS
            fitting = rest & ~choosing
            losses = {}
            for layer in layers:
                found = regress(states[layer], truth, fitting, choosing)
                chance = np.where(truth[choosing], found, 1 - found)
                losses[layer] = float(-np.log(chance.clip(1e-12)).mean())
            layers = [min(layers, key=losses.__getitem__)]
        p[test] = regress(states[layers[0]], truth, rest, test)
    return p


def regress(
    states: NDArray[np.floating], truth: NDArray[np.bool_], fitting: NDArray[np.bool_], judged: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """p(truth) of the rows ``judged``, by the logistic regression of the rows ``fitting``."""
    probe = logistic_regression(states[fitting], truth[fitting])
    found: NDArray[np.float64] = p_unknown(probe, torch.from_numpy(np.asarray(states[judged], np.float32))).double().numpy()
    return found
