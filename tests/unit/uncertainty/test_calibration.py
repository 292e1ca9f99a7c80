"""Probabilities held against what came out: debiased calibration error, Platt, isotonic, concordance."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from ka2l_ray.uncertainty.calibration import (
    auroc_interval,
    calibration_error,
    figures,
    isotonic_regression,
    log_loss,
    platt_scaling,
    reliability,
    sigmoid,
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


def test_equal_p_are_one_bin_whatever_the_order_of_their_rows() -> None:
    truth, p = np.repeat([0, 1], 500), np.full(1000, 0.5)
    assert calibration_error(truth, p) == 0
    assert [(point.rows, point.share) for point in reliability(truth, p)] == [(1000, 0.5)]
    rng = np.random.default_rng(4)
    p = np.repeat([0.1, 0.3, 0.7, 0.9], [80, 500, 300, 120])
    truth = rng.random(1000) < p + 0.05
    order = rng.permutation(1000)
    points = reliability(truth, p)
    assert [point.rows for point in points] == [580, 300, 120]  # the first edge, at row 100, lies among equal p
    assert [point.p for point in points] == pytest.approx([(80 * 0.1 + 500 * 0.3) / 580, 0.7, 0.9])
    assert [point.share for point in reliability(truth[order], p[order])] == [point.share for point in points]
    assert calibration_error(truth, p) == pytest.approx(calibration_error(truth[order], p[order]))
    sorted_truth = np.concatenate([np.sort(truth[p == value]) for value in np.unique(p)])
    assert calibration_error(sorted_truth, p) == pytest.approx(calibration_error(truth, p))
    assert math.isnan(calibration_error(np.empty(0), np.empty(0)))
    assert calibration_error(np.array([1]), np.array([0.2])) >= 0


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


@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e4])
def test_platt_scaling_does_not_depend_on_the_unit_of_the_scores(unit: float) -> None:
    rng = np.random.default_rng(5)
    score = rng.normal(size=2000)
    truth = rng.random(2000) < 1 / (1 + np.exp(-2 * score))
    slope, offset = platt_scaling(score, truth)
    scaled = platt_scaling(unit * score + 3 * unit, truth)
    assert scaled == pytest.approx((slope / unit, offset - 3 * slope), rel=1e-6)
    assert slope == pytest.approx(2, abs=0.3)
    turned = platt_scaling(unit * score, ~truth)
    assert turned[0] > 0
    p = 1 / (1 + np.exp(-(turned[0] * unit * score + turned[1])))
    assert (p.max() - p.min(), p.mean()) == pytest.approx((0, (~truth).mean()), abs=0.03)


def test_platt_scaling_of_equal_scores_is_the_base_rate() -> None:
    truth = np.arange(50) < 20
    for value in (0.1, 1.0, -1e5):  # the mean of fifty 0.1 is not 0.1
        slope, offset = platt_scaling(np.full(50, value), truth)
        assert 1 / (1 + math.exp(-(slope * value + offset))) == pytest.approx(0.4, abs=0.01)


def brute_force_isotonic(x: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(distinct x,) the rising curve of least squares by its min-max formula (Robertson, Wright and Dykstra, 1988)."""
    groups = [truth[x == value] for value in np.unique(x)]
    n = len(groups)
    mean = [[np.concatenate(groups[a : b + 1]).mean() if b >= a else math.nan for b in range(n)] for a in range(n)]
    return np.array([max(min(mean[a][b] for b in range(i, n)) for a in range(i + 1)) for i in range(n)])


def test_an_isotonic_curve_does_not_part_equal_scores() -> None:
    for truth in ([1, 0, 1], [1, 1, 0]):
        assert np.interp([0, 1], *isotonic_regression(np.array([0, 1, 1]), np.array(truth))) == pytest.approx(2 / 3, abs=0.001)
    rng = np.random.default_rng(6)
    for _ in range(20):
        x = rng.integers(0, 7, 60)
        truth = rng.random(60) < x / 7
        values, counts = np.unique(x, return_counts=True)
        wanted = brute_force_isotonic(x, truth)
        for share in np.unique(wanted):  # at a block's centre the curve is at its height
            block = wanted == share
            centre = np.average(values[block], weights=counts[block])
            assert np.interp(centre, *isotonic_regression(x, truth)) == pytest.approx(share, abs=0.011)
        order = rng.permutation(60)
        np.testing.assert_allclose(isotonic_regression(x[order], truth[order]), isotonic_regression(x, truth), atol=1e-9)


def test_an_isotonic_curve_of_equal_scores_has_two_ends() -> None:
    for value in (0.0, 3.0, -1e5):
        knots, heights = isotonic_regression(np.full(10, value), np.arange(10) < 4)
        assert len(knots) >= 2
        assert (np.diff(knots.astype(np.float32)) > 0).all()
        assert np.interp(value, knots, heights) == pytest.approx(0.4, abs=0.01)


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


def test_the_interval_of_an_auroc_is_as_wide_as_it_varies_from_sample_to_sample() -> None:
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(400):
        truth = np.arange(120) % 4 == 0
        seen.append(figures(truth, sigmoid(rng.normal(size=120) + 1.2 * truth)))
    spread = np.std([each.auroc for each in seen])
    low, high = np.mean([auroc_interval(each) for each in seen], axis=0)
    assert (high - low) / 2 == pytest.approx(1.96 * spread, rel=0.1)
    assert all(math.isnan(each) for each in auroc_interval(figures(np.ones(5), np.full(5, 0.5))))


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
