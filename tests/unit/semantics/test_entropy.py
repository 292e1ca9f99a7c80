"""Semantic entropy and the thresholds on it, held against the definitions by brute force."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp

from ka2l_ray.semantics.entropy import (
    bias_corrected_entropy,
    entropy_bounds,
    labels,
    rao_semantic_entropy,
    regular_entropy,
    semantic_entropy,
    threshold,
    waves,
)

RNG = np.random.default_rng(0)

# Semantic entropies of ten answers: what the thresholds will meet, ties included.
SE_OF_TEN = [semantic_entropy([0] * (10 - n) + list(range(1, n + 1))) for n in range(10)]


@pytest.mark.parametrize(
    ("sizes", "nats"), [([10], 0.0), ([9, 1], 0.3251), ([8, 2], 0.5004), ([5, 5], math.log(2)), ([1] * 10, 2.3026)]
)
def test_semantic_entropy_of_cluster_sizes(sizes: list[int], nats: float) -> None:
    ids = [cluster for cluster, size in enumerate(sizes) for _ in range(size)]
    assert semantic_entropy(ids) == pytest.approx(nats, abs=5e-5)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=20))
def test_semantic_entropy_lies_between_zero_and_ln_n(ids: list[int]) -> None:
    assert 0 <= semantic_entropy(ids) <= math.log(len(ids)) + 1e-12


@given(st.lists(st.integers(0, 6), min_size=1, max_size=20), st.permutations(range(7)), st.randoms(use_true_random=False))
def test_semantic_entropy_depends_neither_on_names_nor_on_order(ids: list[int], names: list[int], random) -> None:
    renamed = [names[i] for i in ids]
    random.shuffle(renamed)
    assert semantic_entropy(renamed) == semantic_entropy(ids)  # to the bit: a threshold must not split equal entropies


def test_no_answers_have_no_semantic_entropy() -> None:
    with pytest.raises(ValueError, match="no answers"):
        semantic_entropy([])


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(-50, 0)), min_size=1, max_size=12))
def test_rao_semantic_entropy_by_the_published_formulas(drawn: list[tuple[int, float]]) -> None:
    """``logsumexp_by_id`` with ``sum_normalized``, then ``predictive_entropy_rao``."""
    ids, log_likelihoods = zip(*drawn, strict=True)
    by_meaning = [
        logsumexp([x for c, x in drawn if c == meaning]) - logsumexp(np.array(log_likelihoods)) for meaning in sorted(set(ids))
    ]
    expected = -sum(np.exp(x) * x for x in by_meaning)
    assert rao_semantic_entropy(ids, log_likelihoods) == pytest.approx(expected, abs=1e-9)


def test_equal_likelihoods_make_rao_the_plain_semantic_entropy() -> None:
    ids = [0, 0, 1, 2, 2, 2]
    assert rao_semantic_entropy(ids, [-1.5] * 6) == pytest.approx(semantic_entropy(ids))
    assert rao_semantic_entropy([0, 1], [0.0, -1000.0]) == pytest.approx(0)
    with pytest.raises(ValueError, match="2 cluster ids for 3"):
        rao_semantic_entropy([0, 1], [0.0, 0.0, 0.0])


def test_regular_entropy_is_the_mean_surprise() -> None:
    assert regular_entropy([-1.0, -3.0]) == 2.0
    with pytest.raises(ValueError, match="no answers"):
        regular_entropy([])


@pytest.mark.parametrize("meanings", [1, 4, 10, 30])
def test_the_correction_takes_at_least_a_third_of_the_bias_of_few_answers(meanings: int) -> None:
    """Answers drawn from meanings of known shares; ten of them, many times over."""
    generator = np.random.default_rng(0)
    shares = generator.dirichlet(np.full(meanings, 1.0))
    truth = float(-(shares * np.log(shares)).sum())
    drawn = [generator.choice(meanings, 10, p=shares).tolist() for _ in range(2000)]
    plain = np.mean([semantic_entropy(ids) for ids in drawn]) - truth
    corrected = np.mean([bias_corrected_entropy(ids) for ids in drawn]) - truth
    assert abs(corrected) <= 2 / 3 * abs(plain) + 1e-9


def test_chao_shen_by_hand() -> None:
    # Sizes 2, 1, 1 of 4: coverage 1 - 2/4; shares 1/4, 1/8, 1/8, each seen with 1 - (1 - share)^4.
    expected = -sum(p * math.log(p) / (1 - (1 - p) ** 4) for p in (1 / 4, 1 / 8, 1 / 8))
    assert bias_corrected_entropy([0, 0, 1, 2]) == pytest.approx(expected)
    assert bias_corrected_entropy([0, 0, 0]) == 0
    assert bias_corrected_entropy([0]) == 0


def entropies_spanning_half() -> list[np.ndarray]:
    """Vectors with values on both sides of 0.5: continuous ones, those of ten answers, and some with values at just 0.5."""
    vectors = [RNG.uniform(0, math.log(10), RNG.integers(2, 40)) for _ in range(200)]
    vectors += [RNG.choice(SE_OF_TEN, RNG.integers(2, 40)) for _ in range(200)]
    vectors += [np.append(RNG.uniform(0, 1.2, RNG.integers(2, 40)), 0.5) for _ in range(50)]
    return [v for v in vectors if v.min() < 0.5 < v.max()]


def eq_3_cost(entropies: np.ndarray, tau: float) -> float:
    """KA2L Eq. 3: mean squared deviation of the entropies from their own 0/1 labels at ``tau``."""
    return float(np.mean((entropies - (entropies >= tau)) ** 2))


def test_threshold_ka2l_labels_as_the_minimiser_of_eq_3_does() -> None:
    vectors = entropies_spanning_half()
    assert len(vectors) > 300
    for entropies in vectors:
        # Between two neighbouring values every tau gives the same labels, so the values themselves are all the candidates.
        costs = {tau: eq_3_cost(entropies, tau) for tau in np.unique(entropies)}
        best = min(costs.values())
        ours = labels(entropies, threshold(entropies, "ka2l"))
        assert eq_3_cost(entropies, 0.5) == pytest.approx(best, abs=1e-15)
        optima = [labels(entropies, tau) for tau, cost in costs.items() if cost <= best + 1e-15]
        undecided = entropies == 0.5  # labelling these 0 or 1 costs the same
        for optimum in optima:
            np.testing.assert_array_equal(ours[~undecided], optimum[~undecided])
        assert any(np.array_equal(ours, optimum) for optimum in optima)


def test_threshold_ka2l_does_not_depend_on_the_values() -> None:
    assert threshold(np.array([0.0, 2.3]), "ka2l") == threshold(np.array([1.0, 2.0]), "ka2l") == 0.5


def within_groups(values: np.ndarray) -> float:
    return float(((values - values.mean()) ** 2).sum()) if len(values) else 0.0


@pytest.mark.parametrize("kind", ["continuous", "of ten answers"])
def test_threshold_two_means_is_the_best_of_all_splits(kind: str) -> None:
    for _ in range(200):
        n = RNG.integers(2, 30)
        entropies = RNG.uniform(0, 2.3, n) if kind == "continuous" else RNG.choice(SE_OF_TEN, n)
        values = np.unique(entropies)
        if len(values) == 1:
            continue
        splits = [(a + b) / 2 for a, b in pairwise(values)]
        best = min(within_groups(entropies[entropies < at]) + within_groups(entropies[entropies >= at]) for at in splits)
        at = threshold(entropies, "two_means")
        assert min(entropies) < at < max(entropies)
        assert within_groups(entropies[entropies < at]) + within_groups(entropies[entropies >= at]) == pytest.approx(
            best, abs=1e-12
        )


def test_threshold_two_means_of_one_value_calls_all_known() -> None:
    entropies = np.full(5, 0.3)
    assert labels(entropies, threshold(entropies, "two_means")).sum() == 0


def test_threshold_two_means_by_hand() -> None:
    # {0, 0.1} and {2.0, 2.2}: 0.005 + 0.02 within the groups; either other split leaves far more.
    assert threshold(np.array([2.2, 0.0, 2.0, 0.1]), "two_means") == pytest.approx((0.1 + 2.0) / 2)


@pytest.mark.parametrize(
    ("quantile", "expected"),
    [(0.1, 0.2), (0.25, 0.2), (0.5, 0.4), (0.74, 0.6), (0.75, 0.6)],
)
def test_threshold_quantile_is_the_least_value_with_that_share_below(quantile: float, expected: float) -> None:
    entropies = np.array([0.6, 0.0, 0.4, 0.2])
    assert threshold(entropies, "quantile", quantile=quantile) == expected


@given(st.lists(st.sampled_from(SE_OF_TEN), min_size=1, max_size=40), st.floats(0.01, 0.99))
def test_threshold_quantile_leaves_at_least_that_share_known_and_no_more_than_needed(
    values: list[float], quantile: float
) -> None:
    entropies = np.array(values)
    known = labels(entropies, threshold(entropies, "quantile", quantile=quantile)) == 0
    assert known.mean() >= quantile - 1e-12
    without_the_last_value = entropies < entropies[known].max()
    assert without_the_last_value.mean() < quantile


def test_threshold_fixed_is_what_was_given() -> None:
    assert threshold(np.array([0.0, 1.0]), "fixed", fixed=0.7) == 0.7


def test_an_unknown_rule_names_the_rules() -> None:
    with pytest.raises(ValueError, match=r"no threshold rule 'mean'.*ka2l, two_means, quantile, fixed"):
        threshold(np.array([0.0]), "mean")


def test_labels_at_the_threshold_are_unknown() -> None:
    """KA2L Eq. 5: SE >= threshold."""
    at = semantic_entropy([0] * 8 + [1] * 2)
    entropies = np.array([np.nextafter(at, 0), at, np.nextafter(at, 9)])
    assert labels(entropies, at).tolist() == [0, 1, 1]
    assert labels(entropies, at).dtype == np.int8


def test_of_ten_answers_one_stray_is_known_and_two_alike_strays_are_not() -> None:
    entropies = np.array(
        [semantic_entropy([0] * 9 + [1]), semantic_entropy([0] * 8 + [1] * 2), semantic_entropy([0] * 8 + [1, 2])]
    )
    assert labels(entropies, threshold(entropies, "ka2l")).tolist() == [0, 1, 1]


def _meanings(k: int) -> list[list[int]]:
    """All ways in which k answers fall into clusters, numbered by first appearance."""
    grown = [[0]]
    for _ in range(k - 1):
        grown = [[*ids, new] for ids in grown for new in range(max(ids) + 2)]
    return grown


@pytest.mark.parametrize("drawn", range(1, 8))
def test_entropy_bounds_are_the_extremes_over_all_answers_to_come(drawn: int) -> None:
    completions: dict[tuple[int, ...], list[float]] = {}
    for ids in _meanings(7):
        completions.setdefault(tuple(ids[:drawn]), []).append(semantic_entropy(ids))
    for first, entropies in completions.items():
        assert entropy_bounds(first, 7) == pytest.approx((min(entropies), max(entropies)), abs=1e-12)


def test_waves_end_where_like_answers_decide_and_with_all() -> None:
    assert waves(10, 0.5) == [4, 9, 10]
    assert waves(5, 0.5) == [2, 5]
    assert waves(2, 0.5) == [2]
    assert waves(10, 100.0) == [2, 4, 10]


@pytest.mark.parametrize("kind", [np.array, torch.tensor, pd.Series], ids=["array", "tensor", "Series"])
@pytest.mark.parametrize("entropy", [semantic_entropy, bias_corrected_entropy])
def test_cluster_ids_may_be_an_array_a_tensor_or_a_series(kind: Any, entropy: Any) -> None:
    for ids in ([0] * 8 + [1] * 2, [0, 1, 2]):
        assert entropy(kind(ids)) == entropy(ids)
    with pytest.raises(ValueError, match="no answers"):
        entropy(kind([]))
    with pytest.raises(ValueError, match=r"the shape \(2, 2\)"):
        entropy(np.array([[0, 1], [0, 0]]))
