"""The measures of benchmarks/real_model.py, by hand and on states of which it is known what they hold."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.real_model_measures import (
    by_layer,
    by_number,
    cross_fitted,
    deciles,
    draw_folds,
    enough,
    interval,
    matrix,
    over_seeds,
)
from ka2l_ray.semantics.entropy import semantic_entropy
from ka2l_ray.uncertainty.ranking import auroc

LINEAR = {"kind": "linear"}


def world(n: int, seed: int) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """States of two layers, of which the second tells the truth, and the truth."""
    generator = np.random.default_rng(seed)
    truth = generator.random(n) < 0.4
    noise = generator.normal(size=(2, n, 6)).astype(np.float32)
    return {0: noise[0], 1: noise[1] + 1.5 * truth[:, None] * np.eye(6, dtype=np.float32)[0]}, truth


def test_fewer_answers_are_drawn_from_all_and_say_less() -> None:
    generator = np.random.default_rng(0)
    wrong = generator.random(300) < 0.5
    ids = [list(generator.integers(0, 8 if each else 6, 10)) for each in wrong]
    whole = auroc(wrong, np.array([semantic_entropy(row) for row in ids]))
    assert by_number(ids, wrong, 10, seed=0) == by_number(ids, wrong, 10, seed=1) == pytest.approx(whole)
    few = [by_number(ids, wrong, 2, seed) for seed in range(3)]
    assert len(set(few)) == 3
    assert 0.5 < np.mean(few) < whole - 0.05
    low, high = interval(wrong, np.array([semantic_entropy(row) for row in ids]), resamples=200)
    assert low < whole < high < low + 0.15


def test_the_layer_that_tells_is_found_and_chosen() -> None:
    states, truth = world(300, 0)
    found = by_layer(states, truth, np.zeros(300, int), 0, **LINEAR)
    assert abs(found[0] - 0.5) < 0.1
    assert found[1] > 0.75
    p, layers = cross_fitted(states, truth, 0, **LINEAR)
    assert layers == [1] * 5
    assert auroc(truth, p) > 0.75


def test_that_a_set_is_harder_is_no_merit_of_a_probe() -> None:
    """A state that says which of two sets a question is of, and nothing else."""
    generator = np.random.default_rng(0)
    within = np.repeat([0, 1], 200)
    truth = generator.random(400) < np.where(within, 0.9, 0.1)
    states = {0: (within[:, None] + 0.01 * generator.normal(size=(400, 3))).astype(np.float32)}
    assert by_layer(states, truth, np.zeros(400, int), 0, **LINEAR)[0] > 0.8
    assert abs(by_layer(states, truth, within, 0, **LINEAR)[0] - 0.5) < 0.1


def test_a_probe_holds_where_the_same_direction_tells() -> None:
    (alike, one), (also, two) = world(200, 1), world(200, 2)
    generator = np.random.default_rng(3)
    other = {layer: generator.normal(size=(200, 6)).astype(np.float32) for layer in (0, 1)}
    rare = np.arange(200) < 9
    truths = {"a": one, "b": two, "c": generator.random(200) < 0.5, "d": rare}
    found = matrix({"a": alike, "b": also, "c": other, "d": other}, truths, 0, **LINEAR)
    assert min(found["a"]["a"], found["a"]["b"], found["b"]["a"]) > 0.75
    assert abs(found["a"]["c"] - 0.5) < 0.15
    assert all(math.isnan(value) for value in (*found["d"].values(), found["a"]["d"]))
    assert not enough(rare)
    assert enough(np.arange(200) < 10)


def test_folds_are_of_equal_size_and_drawn_by_the_seed() -> None:
    assert np.bincount(draw_folds(100, 0)).tolist() == [20] * 5
    assert (draw_folds(100, 0) != draw_folds(100, 1)).any()


def test_deciles_by_hand() -> None:
    p = np.array([0.9, 0.1, 0.2, 0.8])
    rows = deciles(p, {"right": np.array([False, True, True, False])}, parts=2)
    assert rows == [{"p": pytest.approx(0.15), "right": 1.0}, {"p": pytest.approx(0.85), "right": 0.0}]


def test_over_seeds_is_the_mean_and_the_farthest_from_it() -> None:
    assert over_seeds([0.5, 0.6, 0.7]) == {"mean": pytest.approx(0.6), "spread": pytest.approx(0.1)}
    assert math.isnan(over_seeds([0.5, float("nan")])["mean"])
