"""Probabilities held against what came out: debiased calibration error, Platt, isotonic, concordance."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from ka2l_ray.uncertainty.calibration import (
    calibration_error,
    figures,
    isotonic_regression,
    log_loss,
    platt_scaling,
    reliability,
)
from ka2l_ray.uncertainty.ranking import auroc, concordance


def drawn(n: int, seed: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """(truth, p) with P(true) = p + shift."""
    rng = np.random.default_rng(seed)
    p = rng.random(n)
    return rng.random(n) < np.clip(p + shift, 0, 1), p


def plug_in(truth: np.ndarray, p: np.ndarray) -> float:
    bins = np.array_split(np.argsort(p), 10)
    return float(sum(abs(truth[i].mean() - p[i].mean()) * len(i) for i in bins) / len(p))


def test_ten_bins_of_twenty_do_not_charge_a_perfect_score_with_chance() -> None:
    found = [calibration_error(*drawn(200, seed)) for seed in range(200)]
    plain = [plug_in(*drawn(200, seed)) for seed in range(200)]
    assert np.mean(plain) > 0.065
    assert np.mean(found) < 0.025


@pytest.mark.parametrize("shift", [0.1, -0.2])
def test_a_score_that_is_off_is_charged_with_what_it_is_off(shift: float) -> None:
    found = [calibration_error(*drawn(2000, seed, shift)) for seed in range(30)]
    truth = np.mean([np.abs(np.clip(p + shift, 0, 1) - p).mean() for _, p in (drawn(2000, seed) for seed in range(30))])
    assert np.mean(found) == pytest.approx(truth, abs=0.01)


def test_figures_of_a_hand_made_case() -> None:
    found = figures(np.array([1, 0, 1, 0]), np.array([0.9, 0.2, 0.4, 0.6]))
    assert (found.rows, found.base_rate, found.auroc, found.accuracy) == (4, 0.5, 0.75, 0.5)
    assert found.brier == pytest.approx((0.01 + 0.04 + 0.36 + 0.36) / 4)
    assert found.log_loss == pytest.approx(-np.log([0.9, 0.8, 0.4, 0.4]).mean())
    assert found.base_rate_entropy == pytest.approx(math.log(2))
    assert math.isnan(figures(np.empty(0), np.empty(0)).brier)


def test_points_of_the_reliability_diagram_hold_all_rows_and_their_intervals_cover_the_truth() -> None:
    truth, p = drawn(3000, 0)
    points = reliability(truth, p)
    assert sum(point.rows for point in points) == 3000
    assert [point.p for point in points] == sorted(point.p for point in points)
    assert sum(point.low <= point.p <= point.high for point in points) >= 8


def test_platt_scaling_is_the_maximum_likelihood_with_his_targets() -> None:
    rng = np.random.default_rng(1)
    logit = rng.normal(3, 10, 400)
    truth = rng.random(400) < 1 / (1 + np.exp(-(0.2 * logit - 1)))
    positive = truth.sum()
    target = np.where(truth, (positive + 1) / (positive + 2), 1 / (402 - positive))

    def loss(at: np.ndarray) -> float:
        return log_loss(target, 1 / (1 + np.exp(-(at[0] * logit + at[1]))))

    np.testing.assert_allclose(platt_scaling(logit, truth), minimize(loss, [0.1, 0.0], tol=1e-10).x, rtol=1e-3)


def test_platt_scaling_stays_finite_and_turns_no_order_round() -> None:
    logit = np.linspace(-1, 1, 50)
    slope, offset = platt_scaling(logit, logit > 0)
    assert 0 < slope < 100
    assert abs(offset) < 1
    assert platt_scaling(logit, logit < 0)[0] > 0
    assert np.isfinite(platt_scaling(np.ones(50), logit > 0)).all()


def test_an_isotonic_curve_rises_everywhere_and_fits() -> None:
    rng = np.random.default_rng(2)
    logit = rng.normal(size=3000)
    chance = 0.2 + 0.6 * (logit > 0.3)  # no sigmoid
    truth = rng.random(3000) < chance
    knots, heights = isotonic_regression(logit, truth)
    assert (np.diff(knots) > 0).all()
    assert (np.diff(heights) > 0).all()
    assert ((heights > 0) & (heights < 1)).all()
    unseen = rng.normal(size=5000)
    p = np.interp(unseen, knots, heights)
    assert np.abs(p - (0.2 + 0.6 * (unseen > 0.3))).mean() < 0.03


def test_concordance_is_the_auroc_of_two_classes_and_a_rank_correlation_of_many() -> None:
    rng = np.random.default_rng(3)
    score = rng.integers(0, 5, 60) / 5
    binary = rng.integers(0, 2, 60)
    assert concordance(binary, score) == auroc(binary, score)
    truth = rng.integers(0, 4, 60) / 3
    pairs = [(i, j) for i in range(60) for j in range(60) if truth[i] > truth[j]]
    right = sum(1.0 if score[i] > score[j] else 0.5 if score[i] == score[j] else 0.0 for i, j in pairs)
    assert concordance(truth, score) == pytest.approx(right / len(pairs))
    assert math.isnan(concordance(np.full(4, 0.5), np.arange(4.0)))
