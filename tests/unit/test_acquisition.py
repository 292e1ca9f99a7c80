"""Query strategies: what each one chooses, in which order, and what it refuses."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ka2l_ray.acquisition import STRATEGIES, select, strategy, top
from ka2l_ray.errors import UserError
from ka2l_ray.seeds import generator

COLUMNS = {
    "p_unknown": np.array([0.1, 0.9, 0.5, 0.7, 0.2, 0.95]),
    "next_token_entropy": np.array([3.0, 0.1, 2.0, 0.2, 1.0, 0.0]),
    "option_entropy": np.array([0.4, 0.0, 0.1, 1.3, 1.2, 0.2]),
    "semantic_entropy": np.array([0.0, 0.3, 2.3, 0.5, 1.1, 0.7]),
}
RANKING = {
    "ka2l": "p_unknown",
    "entropy": "next_token_entropy",
    "option_entropy": "option_entropy",
    "semantic_entropy": "semantic_entropy",
}
NEEDS = {**RANKING, "ka2l_draw": "p_unknown"}
NAMES = [*NEEDS, "random"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("ka2l", [5, 1, 3]), ("entropy", [0, 2, 4]), ("option_entropy", [3, 4, 0]), ("semantic_entropy", [2, 4, 5])],
)
def test_ranking_strategies_take_the_highest_in_order(name: str, expected: list[int]) -> None:
    indices, scores = select(name, COLUMNS, 3, generator(0))
    assert indices.tolist() == expected
    assert scores.tolist() == COLUMNS[RANKING[name]][expected].tolist()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("budget", [1, 4, 6])
def test_every_strategy_spends_the_budget_on_distinct_rows_and_repeats_with_its_seed(name: str, budget: int) -> None:
    indices, scores = select(name, COLUMNS, budget, generator(1))
    assert len(indices) == len(set(indices.tolist())) == len(scores) == budget
    assert set(indices.tolist()) <= set(range(6))
    assert select(name, COLUMNS, budget, generator(1))[0].tolist() == indices.tolist()


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=30), st.integers(0, 3), st.data())
def test_top_leaves_nothing_higher_behind(values: list[float], seed: int, data: st.DataObject) -> None:
    scores = np.array(values)
    budget = data.draw(st.integers(1, len(values)))
    indices, chosen = top(scores, budget, generator(seed))
    assert chosen.tolist() == sorted(values, reverse=True)[:budget] == scores[indices].tolist()


def test_ties_are_broken_at_random_but_by_the_seed() -> None:
    columns = {"p_unknown": np.array([0.9] + [0.5] * 20)}
    choices = [tuple(select("ka2l", columns, 6, generator(seed))[0].tolist()) for seed in range(200)]
    assert all(choice[0] == 0 for choice in choices)
    assert choices == [tuple(select("ka2l", columns, 6, generator(seed))[0].tolist()) for seed in range(200)]
    times = np.bincount([row for choice in choices for row in choice[1:]], minlength=21)[1:]
    assert times.sum() == 1000
    # Each tied row is expected 50 times with a standard deviation of 6: no position is favoured.
    assert times.min() > 25
    assert times.max() < 75


def test_random_is_a_uniform_draw_without_a_score() -> None:
    assert np.isnan(select("random", COLUMNS, 3, generator(0))[1]).all()
    times = np.bincount(np.concatenate([select("random", COLUMNS, 3, generator(seed))[0] for seed in range(400)]), minlength=6)
    assert times.sum() == 1200
    assert times.min() > 160  # expected 200, standard deviation 10
    assert times.max() < 240


def test_ka2l_draw_draws_among_the_predicted_unknown() -> None:
    """p >= 0.5 is unknown: rows 1, 2, 3, 5, each as likely as any other, whatever its p."""
    draws = [select("ka2l_draw", COLUMNS, 2, generator(seed)) for seed in range(400)]
    assert all(set(indices.tolist()) <= {1, 2, 3, 5} for indices, _ in draws)
    assert all(scores.tolist() == COLUMNS["p_unknown"][indices].tolist() for indices, scores in draws)
    times = np.bincount(np.concatenate([indices for indices, _ in draws]), minlength=6)[[1, 2, 3, 5]]
    assert times.min() > 160  # expected 200, standard deviation 10
    assert times.max() < 240


def test_ka2l_draw_fills_up_with_the_likeliest_of_the_rest() -> None:
    indices, scores = select("ka2l_draw", COLUMNS, 5, generator(0))
    assert set(indices[:4].tolist()) == {1, 2, 3, 5}
    assert indices[4] == 4
    assert scores[4] == 0.2


def test_a_budget_beyond_the_pool_is_refused() -> None:
    for name in NAMES:
        with pytest.raises(UserError, match="budget is 7 labels, the unlabelled pool has 6 questions; lower"):
            select(name, COLUMNS, 7, generator(0))


def test_an_unknown_strategy_names_those_there_are() -> None:
    with pytest.raises(UserError, match=r"no strategy 'kal2'; there are: .*ka2l, .*random"):
        strategy("kal2")
    with pytest.raises(UserError, match="no strategy 'kal2'"):
        select("kal2", COLUMNS, 1, generator(0))


@pytest.mark.parametrize(("name", "column"), NEEDS.items())
def test_a_column_that_is_missing_or_has_gaps_is_named(name: str, column: str) -> None:
    without = {c: values for c, values in COLUMNS.items() if c != column}
    with pytest.raises(UserError, match=f"strategy '{name}' needs the column '{column}'"):
        select(name, without, 1, generator(0))
    gap = {**COLUMNS, column: np.where(np.arange(6) == 3, np.nan, COLUMNS[column])}
    with pytest.raises(UserError, match=f"strategy '{name}' needs the column '{column}'"):
        select(name, gap, 1, generator(0))


def test_columns_that_a_strategy_does_not_need_may_have_gaps() -> None:
    columns = {**COLUMNS, "semantic_entropy": np.full(6, np.nan)}
    assert select("ka2l", columns, 1, generator(0))[0].tolist() == [5]


def test_no_strategy_is_given_a_gold_answer() -> None:
    gold = {"answers", "target", "exact_match", "known_before", "label"}
    assert not gold & {column for s in STRATEGIES.values() for column in s.needs}


@pytest.mark.parametrize("name", NAMES)
def test_columns_may_be_a_filtered_frame_and_the_seed_a_number(name: str) -> None:
    frame = pd.DataFrame({"question": list("abcdef"), **COLUMNS}, index=range(10, 16))
    kept = frame[frame.p_unknown < 0.9]
    indices, scores = select(name, kept, 2, 5)
    again, same = select(name, {column: kept[column].to_numpy() for column in COLUMNS}, 2, generator(5))
    assert indices.tolist() == again.tolist()
    np.testing.assert_array_equal(scores, same)
