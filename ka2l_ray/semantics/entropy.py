"""Semantic entropy (KA2L Eq. 2), its relatives, and the thresholds that turn it into known/unknown (KA2L Eq. 3-5 and others)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

# Eq. 3-4 in closed form: labelling a question 1 costs (SE - 1)^2, labelling it 0 costs SE^2, so 1 is cheaper iff SE > 0.5.
KA2L_THRESHOLD = 0.5
LEAST_SHARE = 1 / 20  # of either class; below it rule ``auto`` leaves Eq. 3's constant


def semantic_entropy(cluster_ids: Sequence[int] | NDArray[np.integer]) -> float:
    """-sum_c (|c|/N) ln(|c|/N) over the clusters of N answers, in nats (KA2L Eq. 2).

    For N = 10: {10} 0; {9,1} 0.3251; {8,2} 0.5004; all distinct 2.3026.
    """
    return _entropy_of_sizes(_sizes(cluster_ids))


def _sizes(cluster_ids: Sequence[int] | NDArray[np.integer]) -> list[int]:
    """Of the clusters of one question's answers: a list, an array, a tensor or a Series of (n,) ids."""
    ids = np.asarray(cluster_ids)
    if not ids.size:
        raise ValueError("semantic entropy of no answers is not defined")
    if ids.ndim != 1:
        raise ValueError(f"semantic entropy is of one question's answers; these cluster ids have the shape {ids.shape}")
    return sorted(Counter(ids.tolist()).values())


def rao_semantic_entropy(
    cluster_ids: Sequence[int] | NDArray[np.integer], log_likelihoods: Sequence[float] | NDArray[np.floating]
) -> float:
    """-sum_c p(c) ln p(c), nats, where a meaning's probability is the share of its answers' likelihoods in all of them.

    Farquhar et al. (Nature 630, 2024), Eq. 5, with length-normalised likelihoods as in their code (``sum_normalized``).

    Args:
        cluster_ids: (n,) meanings, n >= 1.
        log_likelihoods: (n,) nats, mean over an answer's tokens.
    """
    if len(cluster_ids) != len(log_likelihoods) or not len(cluster_ids):
        raise ValueError(f"{len(cluster_ids)} cluster ids for {len(log_likelihoods)} log-likelihoods")
    weights = np.exp(np.asarray(log_likelihoods, dtype=np.float64) - max(log_likelihoods))
    _, cluster = np.unique(cluster_ids, return_inverse=True)
    return _entropy_of_sizes(np.bincount(cluster, weights))


def regular_entropy(log_likelihoods: Sequence[float] | NDArray[np.floating]) -> float:
    """-mean of the answers' log-likelihoods, nats: the Monte Carlo estimate of predictive entropy (Malinin and Gales, 2021).

    Args:
        log_likelihoods: (n,) nats; mean over an answer's tokens for the length-normalised form.
    """
    if not len(log_likelihoods):
        raise ValueError("regular entropy of no answers is not defined")
    return float(-np.mean(log_likelihoods))


def bias_corrected_entropy(cluster_ids: Sequence[int] | NDArray[np.integer]) -> float:
    """Semantic entropy, nats, with meanings that were not drawn allowed for (Chao and Shen, Environ. Ecol. Stat. 10, 2003).

    The plain estimate is too low for few answers. Shares are scaled by Good's coverage, C = 1 - singletons/N, and each term is
    divided by its chance to be seen at all, 1 - (1 - C p)^N. All distinct: one singleton is taken for a doubleton, else C is 0.
    """
    sizes = np.array(_sizes(cluster_ids))
    n = int(sizes.sum())
    singletons = int((sizes == 1).sum())
    coverage = 1 - (singletons - (singletons == n)) / n
    shares = coverage * sizes / n
    seen = 1 - (1 - shares) ** n
    return float(abs(-(shares * np.log(shares) / seen).sum()))


def entropy_bounds(cluster_ids: Sequence[int], k: int) -> tuple[float, float]:
    """Least and greatest semantic entropy, in nats, that ``k`` answers can have whose first ones fell into ``cluster_ids``.

    Least: all that are still to come join the largest cluster. Greatest: each is a meaning of its own. Any other way to
    share them out lies between, as entropy falls when a cluster grows at the cost of a smaller one.
    """
    *smaller, largest = sorted(Counter(cluster_ids).values())
    to_come = k - len(cluster_ids)
    return _entropy_of_sizes([*smaller, largest + to_come]), _entropy_of_sizes([*smaller, largest, *[1] * to_come])


def waves(k: int, at: float) -> list[int]:
    """Numbers of answers, the last of them ``k``, at which it pays to look whether the label at ``at`` nats is decided.

    Different answers show early: after two fifths. Like ones settle nothing before so many agree that the rest cannot
    disagree enough.
    """
    agree = next(n for n in range(1, k + 1) if n == k or entropy_bounds([0] * n, k)[1] < at)
    return sorted({max(2, -(-2 * k // 5)), max(2, agree), k})


def _entropy_of_sizes(sizes: Iterable[float]) -> float:
    counts = np.array(sorted(sizes))
    shares = counts / counts.sum()
    shares = shares[shares > 0]
    return float(abs(-(shares * np.log(shares)).sum()))


def threshold(
    entropies: Sequence[float] | NDArray[np.float64], rule: str, *, quantile: float = 0.5, fixed: float = KA2L_THRESHOLD
) -> float:
    """The semantic entropy, in nats, from which a question counts as unknown (Eq. 5: SE >= threshold).

    Args:
        entropies: (n,) nats, n >= 1.
        rule: ``ka2l`` (Eq. 3-4, the constant 0.5), ``two_means`` (least squared deviation within the two groups, as in
            semantic-entropy probes), ``quantile`` (the least value with at least that share below it), ``fixed``; ``auto``: what
            ``auto_threshold`` takes.
    """
    if rule == "auto":
        return auto_threshold(entropies)[1]
    if rule == "ka2l":
        return KA2L_THRESHOLD
    if rule == "fixed":
        return fixed
    values, counts = np.unique(entropies, return_counts=True)
    if rule == "quantile":
        below = (np.cumsum(counts) - counts) / counts.sum()
        reached = np.flatnonzero(below >= quantile)
        return float(values[reached[0]] if len(reached) else np.nextafter(values[-1], np.inf))
    if rule == "two_means":
        return _two_means(values, counts, np.arange(len(values) - 1))
    raise ValueError(f"no threshold rule '{rule}'; there are: auto, ka2l, two_means, quantile, fixed")


def auto_threshold(entropies: Sequence[float] | NDArray[np.float64], unknown: int = 0) -> tuple[str, float]:
    """Rule ``auto``: (the rule that it takes, nats).

    Eq. 3's constant, unless it leaves one class less than a twentieth of the questions: then ``two_means``, and where that splits
    off less than a twentieth too, the best of its splits that do not. Where there is no such split either (nearly all questions
    have one semantic entropy), the constant stays.

    Args:
        entropies: (n,) nats, of the questions that are labelled by them.
        unknown: questions beside them that are unknown whatever their entropy.
    """
    known = int((np.asarray(entropies) < KA2L_THRESHOLD).sum())
    least = LEAST_SHARE * (len(entropies) + unknown)
    at = constrained_two_means(entropies, unknown)
    if min(known, len(entropies) - known + unknown) >= least or at is None:
        return "ka2l", KA2L_THRESHOLD
    return "two_means", at


def constrained_two_means(entropies: Sequence[float] | NDArray[np.float64], unknown: int = 0) -> float | None:
    """Of the splits that leave each class a twentieth, the one of ``two_means``, nats; None where there is none.

    Args:
        entropies, unknown: as of ``auto_threshold``.
    """
    values, counts = np.unique(entropies, return_counts=True)
    least = LEAST_SHARE * (counts.sum() + unknown)
    below = np.cumsum(counts)[:-1]  # questions known, at each split
    allowed = np.flatnonzero((below >= least) & (counts.sum() - below + unknown >= least))
    return _two_means(values, counts, allowed) if len(allowed) else None


def agreeing_answers(k: int, at: float) -> int:
    """Answers of ``k`` that must mean the same, at least, for a semantic entropy below ``at`` nats: 9 of 10 and 5 of 5 at 0.5."""
    return next((n for n in range(1, k) if _entropy_of_sizes([n] * (k // n) + [k % n] * (k % n > 0)) < at), k)


def labels(entropies: NDArray[np.float64], at: float) -> NDArray[np.int8]:
    """1 (unknown) where SE >= ``at``, else 0 (known); KA2L Eq. 5."""
    return (entropies >= at).astype(np.int8)


def _two_means(values: NDArray[np.float64], counts: NDArray[np.int64], allowed: NDArray[np.intp]) -> float:
    """Midpoint of the split of sorted distinct values that leaves the least squared deviation within its two sides.

    Args:
        allowed: splits to choose from; each stands behind the value of its number.
    """
    if len(values) == 1:
        return float(np.nextafter(values[0], np.inf))
    weight = np.cumsum(counts)[:-1]
    total = np.cumsum(values * counts)
    square = np.cumsum(values**2 * counts)
    left = square[:-1] - total[:-1] ** 2 / weight
    right = (square[-1] - square[:-1]) - (total[-1] - total[:-1]) ** 2 / (counts.sum() - weight)
    best = int(allowed[np.argmin((left + right)[allowed])])
    return float((values[best] + values[best + 1]) / 2)
