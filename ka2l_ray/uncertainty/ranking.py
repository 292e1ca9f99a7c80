"""How well a score ranks. numpy alone: the report reads it without torch.

scikit-learn has it too, but where scikit-learn is installed transformers imports it in every worker, a quarter of its start.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def auroc(truth: Sequence[int] | NDArray[np.integer] | NDArray[np.bool_], score: Sequence[float] | NDArray[np.floating]) -> float:
    """Area under the ROC curve, by ranks (Mann-Whitney), ties half; NaN where the truth holds one class only."""
    positive = np.asarray(truth) == 1
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return float("nan")
    _, inverse, counts = np.unique(np.asarray(score), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # from 1; equal scores share their mean rank
    return float((ranks[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def concordance(truth: NDArray[np.integer] | NDArray[np.floating], score: NDArray[np.floating]) -> float:
    """Share of the pairs of unequal truth that the score puts in the right order, ties half (Harrell's C); the AUROC where the
    truth is 0 or 1. NaN where all are equal."""
    if np.isin(truth, (0, 1)).all():
        return auroc(truth == 1, score)
    right = pairs = 0.0
    for value, mine in zip(truth.tolist(), score.tolist(), strict=True):
        below = score[truth < value]
        right += float((below < mine).sum() + 0.5 * (below == mine).sum())
        pairs += len(below)
    return right / pairs if pairs else float("nan")
