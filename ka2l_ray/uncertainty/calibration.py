"""Probabilities held against what came out, and made to fit it. numpy alone: the report reads it without torch.

The plug-in calibration error (mean |share - mean p| over bins) is never zero: a perfectly calibrated score of 200 rows in ten
bins shows 0.1. ``calibration_error`` takes that bias off (Kumar, Liang and Ma, 2019, arXiv 1909.10155, debias its square;
Roelofs et al., 2022, arXiv 2012.08668, measure it for bins of equal mass).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ka2l_ray.uncertainty.ranking import auroc

BINS = 10
LEAST_ROWS = 20  # of a point in a reliability diagram
Z = 1.959964  # of a normal distribution, 95 % lie within so many standard deviations
ISOTONIC_FROM = 1000
"""Rows from which a curve is fitted by isotonic regression, by Platt scaling below: of few, steps are noise."""
CONSTANT = 1e-12  # a standard deviation of so small a part of the mean is rounding
LEAST_SLOPE = 0.01
"""Of Platt's curve, in logits a standard deviation of the scores."""
LEAST_MARGIN = 1e-3
"""Of the greatest score, by which an isotonic curve goes beyond the scores: a curve of equal ones has two ends too."""
KEEPS_ORDER = 0.01
"""Share of Platt's curve in an isotonic one: what isotonic regression ties stays in its order."""

Floats = NDArray[np.floating]
Truth = NDArray[np.bool_] | NDArray[np.integer]


@dataclass(frozen=True)
class Figures:
    """How a probability does against the truth."""

    rows: int
    base_rate: float
    """Share of the rows that are true."""
    auroc: float
    accuracy: float
    """Share right at p = 0.5."""
    brier: float
    """Mean squared error of p; always saying the base rate gives base rate x (1 - base rate)."""
    calibration_error: float
    """Debiased, over ten bins of equally many rows, as far as equal p stay together."""
    log_loss: float
    """Nats; always saying the base rate gives its entropy."""
    base_rate_entropy: float


@dataclass(frozen=True)
class Bin:
    """One point of a reliability diagram: rows of similar p."""

    p: float
    share: float
    rows: int
    low: float
    high: float
    """95 % interval of the share (Wilson, 1927)."""


def figures(truth: Truth, p: Floats) -> Figures:
    """Figures of ``p`` (n,) against ``truth`` (n,) of 0 and 1; NaN where there are no rows, or no two classes."""
    true, p = np.asarray(truth) == 1, np.asarray(p, np.float64)
    if not len(true):
        return Figures(0, *[float("nan")] * 7)
    rate = float(true.mean())
    return Figures(
        rows=len(true),
        base_rate=rate,
        auroc=auroc(true, p),
        accuracy=float(((p >= 0.5) == true).mean()),
        brier=float(np.mean((p - true) ** 2)),
        calibration_error=calibration_error(true, p),
        log_loss=log_loss(true, p),
        base_rate_entropy=log_loss(np.array([rate]), np.array([rate])),
    )


def log_loss(truth: Floats | Truth, p: Floats, weights: tuple[float, float] = (1.0, 1.0)) -> float:
    """Mean cross-entropy in nats of ``p`` (n,) with ``truth`` (n,), 0 to 1.

    Args:
        weights: of what is not true and of what is.
    """
    p = np.asarray(p, np.float64).clip(1e-12, 1 - 1e-12)
    return float(-np.mean(weights[1] * truth * np.log(p) + weights[0] * (1 - np.asarray(truth, np.float64)) * np.log1p(-p)))


def calibration_error(truth: Truth, p: Floats, bins: int = BINS) -> float:
    """Mean |share true - mean p| over bins by p (``_bins``), without what chance adds to it; 0 at least.

    A bin of n rows shows a difference d plus noise of variance s² = sum p (1 - p) / n², whose absolute value is too large by
    E|N(d, s²)| - |d| (the folded normal's mean), d² being taken for the square seen less s², or zero.
    """
    true, p = np.asarray(truth, np.float64), np.asarray(p, np.float64)
    total = 0.0
    for at in _bins(p, bins):
        seen = abs(float(true[at].mean() - p[at].mean()))
        noise = math.sqrt(float((p[at] * (1 - p[at])).sum())) / len(at)
        total += len(at) * (seen - _excess(seen, noise))
    return max(0.0, total / len(p)) if len(p) else float("nan")


def _bins(p: Floats, bins: int) -> list[NDArray[np.intp]]:
    """Rows of each bin: equally many, by p, but that equal p never part: an edge among them moves behind the last. Fewer bins
    where p has fewer values."""
    order = np.argsort(p, kind="stable")
    rising = p[order]
    cuts = np.cumsum([len(part) for part in np.array_split(rising, bins)])[:-1]
    edges = np.unique([np.searchsorted(rising, rising[cut - 1], side="right") for cut in cuts if cut])
    return [at for at in np.split(order, edges) if len(at)]


def _excess(seen: float, noise: float) -> float:
    """By how much a mean with normal noise exceeds, in absolute value, what it is the mean of."""
    if noise < 1e-12:
        return 0.0
    d = math.sqrt(max(0.0, seen**2 - noise**2))
    folded = noise * math.sqrt(2 / math.pi) * math.exp(-(d**2) / (2 * noise**2)) + d * math.erf(d / (noise * math.sqrt(2)))
    return folded - d


def reliability(truth: Truth, p: Floats) -> list[Bin]:
    """Points of the reliability diagram: the bins of ``calibration_error``, fewer where ten would not hold twenty rows each."""
    true, p = np.asarray(truth) == 1, np.asarray(p, np.float64)
    found = []
    for at in _bins(p, min(BINS, max(1, len(p) // LEAST_ROWS))):
        share = float(true[at].mean())
        found.append(Bin(float(p[at].mean()), share, len(at), *wilson(share, len(at))))
    return found


def wilson(share: float, n: float) -> tuple[float, float]:
    """Wilson's (1927) interval of 95 % for a share seen in ``n`` draws."""
    middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def auroc_interval(seen: Figures) -> tuple[float, float]:
    """Hanley and McNeil's (1982) interval of 95 % for an AUROC; NaN where there are no two classes."""
    a, positives = seen.auroc, seen.rows * seen.base_rate
    negatives = seen.rows - positives
    if math.isnan(a) or not positives or not negatives:
        return float("nan"), float("nan")
    of_positives, of_negatives = a / (2 - a) - a**2, 2 * a**2 / (1 + a) - a**2
    variance = a * (1 - a) + (positives - 1) * of_positives + (negatives - 1) * of_negatives
    half = Z * math.sqrt(max(0.0, variance) / (positives * negatives))
    return max(0.0, a - half), min(1.0, a + half)


def platt_scaling(logit: Floats, truth: Truth) -> tuple[float, float]:
    """(slope, offset) of sigmoid(slope x logit + offset) by maximum likelihood, with Platt's (1999) targets: a truth that the
    logits separate wholly leaves the slope finite. The slope is never below ``LEAST_SLOPE``, whatever the logits' unit:
    calibration turns no order round."""
    x, true = np.asarray(logit, np.float64), np.asarray(truth) == 1
    positive, negative = int(true.sum()), int((~true).sum())
    target = np.where(true, (positive + 1) / (positive + 2), 1 / (negative + 2))
    centre, spread = float(x.mean()), float(x.std())
    if spread <= CONSTANT * abs(centre):
        spread = 1.0
    slope, offset = _newton((x - centre) / spread, target)
    if slope < LEAST_SLOPE:
        slope, offset = LEAST_SLOPE, math.log((positive + 1) / (negative + 1))
    return slope / spread, offset - slope * centre / spread


def _newton(x: NDArray[np.float64], target: NDArray[np.float64]) -> tuple[float, float]:
    """(slope, offset) of the logistic regression of ``target`` on ``x``; steps are halved until the loss falls."""
    features = np.stack([x, np.ones_like(x)], axis=1)

    def loss(at: NDArray[np.float64]) -> float:
        z = features @ at
        return float(np.sum(np.logaddexp(0, z) - target * z))

    found = np.zeros(2)
    for _ in range(100):
        p = sigmoid(features @ found)
        gradient = features.T @ (p - target)
        curvature = (features * (p * (1 - p))[:, None]).T @ features + 1e-10 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        while loss(found - step) > loss(found) and np.abs(step).max() > 1e-12:
            step = step / 2
        found = found - step
        if np.abs(step).max() < 1e-10:
            break
    return float(found[0]), float(found[1])


def isotonic_regression(logit: Floats, truth: Truth) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(logits, probabilities) of a rising curve through the pooled blocks' centres (pool adjacent violators; centred as in Oron
    and Flournoy, 2017), to be read by linear interpolation. A hundredth of it is Platt's curve, which keeps blocks and ends in
    their order."""
    x, true = np.asarray(logit, np.float64), np.asarray(truth, np.float64)
    values, of, counts = np.unique(x, return_inverse=True, return_counts=True)
    shares = np.bincount(of, true) / counts
    blocks: list[list[float]] = []  # weight, mean of truth, mean of x
    for value, share, count in zip(values.tolist(), shares.tolist(), counts.tolist(), strict=True):
        blocks.append([float(count), share, value])
        while len(blocks) > 1 and blocks[-2][1] >= blocks[-1][1]:
            weight, mean, centre = blocks.pop()
            into = blocks[-1]
            both = into[0] + weight
            blocks[-1] = [both, (into[0] * into[1] + weight * mean) / both, (into[0] * into[2] + weight * centre) / both]
    slope, offset = platt_scaling(x, truth)
    beyond = max(float(x.std()), LEAST_MARGIN * float(np.abs(x).max())) or 1.0
    wide = np.linspace(values[0] - beyond, values[-1] + beyond, 64)
    knots = np.union1d([block[2] for block in blocks], wide)
    risen = np.interp(knots, [block[2] for block in blocks], [block[1] for block in blocks])
    return knots, (1 - KEEPS_ORDER) * risen + KEEPS_ORDER * sigmoid(slope * knots + offset)


def sigmoid(z: NDArray[np.float64]) -> NDArray[np.float64]:
    p: NDArray[np.float64] = 1 / (1 + np.exp(-z.clip(-500, 500)))
    return p


def summary(truth: Truth, p: Floats) -> dict[str, Any]:
    """Figures and reliability as JSON values, for facts and cards."""
    return {**asdict(figures(truth, p)), "reliability": [asdict(each) for each in reliability(truth, p)] if len(p) else []}
