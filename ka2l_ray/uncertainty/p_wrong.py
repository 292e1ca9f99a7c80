"""What a number means: p(wrong), the chance that the greedy-like answer is wrong, from one score or from several combined.

Both are cross-fitted: a question whose answer is known to be right or wrong gets the probability that the other folds' questions
give it, one that is not gets that of all questions of which it is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ka2l_ray.errors import UserError
from ka2l_ray.uncertainty.calibration import ISOTONIC_FROM, calibration_error, isotonic_regression, platt_scaling, sigmoid
from ka2l_ray.uncertainty.scores import FOLDS, fold_of, regress

Method = Literal["platt", "isotonic"]
Wrong = Sequence[bool | None]
"""(n,) whether each question's answer is wrong; None: not known."""
Rows = NDArray[np.bool_]

COMBINABLE = ("semantic entropy", "p(unknown)", "semantic-entropy probe, linear", "P(True)", "log-likelihood")
"""Scores that ``combine`` takes: what was said, what the states hold, what the model says of its answer, how likely it was."""
COMBINED = "combined"


@dataclass(frozen=True)
class Calibrated:
    """p(wrong) of every question, and how well it fits those that are labelled."""

    p_wrong: NDArray[np.float64]
    method: Method
    labelled: int
    wrong: float
    """Share of wrong answers among the labelled."""
    calibration_error: float
    """Debiased."""
    brier: float


def calibrate(score: NDArray[np.float64], wrong: Wrong, questions: Sequence[str]) -> Calibrated:
    """p(wrong) of each question from one ``score`` (n,), by isotonic regression or Platt scaling (``ISOTONIC_FROM``).

    Raises:
        UserError: of fewer than two answers it is known whether they are right.
    """
    labelled, truth = _known(wrong)
    method: Method = "isotonic" if labelled.sum() >= ISOTONIC_FROM else "platt"

    def predict(fitting: Rows, judged: Rows) -> NDArray[np.float64]:
        if method == "isotonic":
            knots, risen = isotonic_regression(score[fitting], truth[fitting])
            return np.interp(score[judged], knots, risen)
        slope, offset = platt_scaling(score[fitting], truth[fitting])
        return sigmoid(slope * score[judged] + offset)

    p = cross_fitted(predict, labelled, truth, questions)
    error = calibration_error(truth[labelled], p[labelled])
    brier = float(np.mean((p[labelled] - truth[labelled]) ** 2))
    return Calibrated(p, method, int(labelled.sum()), float(truth[labelled].mean()), error, brier)


def combine(scores: Mapping[str, NDArray[np.float64]], wrong: Wrong, questions: Sequence[str]) -> NDArray[np.float64]:
    """(n,) p(wrong) by a logistic regression on several ``scores`` (n,) at once.

    Semantic entropy alone misses what a model says wrongly ten times; its states, or the likelihood of the answer, may not. A
    NaN, such as P(True) of a question that was shown as an example, counts as the mean of the questions fitted on.

    Raises:
        UserError: of fewer than two answers it is known whether they are right.
    """
    labelled, truth = _known(wrong)
    columns_NF = np.stack([np.asarray(column, np.float64) for column in scores.values()], axis=1)

    def predict(fitting: Rows, judged: Rows) -> NDArray[np.float64]:
        with_all = fitting[:, None] & ~np.isnan(columns_NF)
        means_F = np.where(with_all, columns_NF, 0).sum(0) / with_all.sum(0).clip(1)
        return regress(np.where(np.isnan(columns_NF), means_F, columns_NF), truth, fitting, judged)

    return cross_fitted(predict, labelled, truth, questions)


def cross_fitted(
    predict: Callable[[Rows, Rows], NDArray[np.float64]], labelled: Rows, truth: Rows, questions: Sequence[str]
) -> NDArray[np.float64]:
    """(n,) probabilities: of a labelled row by ``predict`` fitted on the other folds' labelled rows, of any other by all of them.

    Args:
        predict: (rows to fit on, rows to judge) -> p of the latter.
        labelled: (n,) rows whose ``truth`` is known.
        questions: (n,) texts, which decide the folds.
    """
    fold = np.array([fold_of(question) for question in questions])
    p = np.full(len(truth), float(truth[labelled].mean()))
    parts = [(labelled & (fold != held_out), labelled & (fold == held_out)) for held_out in range(FOLDS)]
    for fitting, judged in [*parts, (labelled, ~labelled)]:
        if judged.any() and len(set(truth[fitting].tolist())) == 2:
            p[judged] = predict(fitting, judged)
    return p


def _known(wrong: Wrong) -> tuple[Rows, Rows]:
    """(n,) whether it is known, and (n,) whether it is wrong as far as it is.

    Raises:
        UserError: it is known of fewer than two.
    """
    labelled = np.array([each is not None for each in wrong], bool)
    if labelled.sum() < 2:
        raise UserError(
            f"p(wrong) is fitted on answers known to be right or wrong, and {labelled.sum()} of {len(labelled)} are; "
            "give --correct COLUMN, or --answers FILE"
        )
    return labelled, np.array([bool(each) for each in wrong], bool)
