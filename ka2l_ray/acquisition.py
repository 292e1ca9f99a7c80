"""Query strategies: pure functions from columns of the unlabelled pool to the questions worth a label.

A strategy is ``(columns, budget, generator) -> (indices, acquisition scores)`` under a name in ``STRATEGIES``, with the
columns it needs. No gold answer is among them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ka2l_ray.errors import UserError
from ka2l_ray.seeds import generator

Columns = dict[str, NDArray[np.float64]]
Choice = tuple[NDArray[np.int64], NDArray[np.float64]]


@dataclass(frozen=True)
class Strategy:
    name: str
    needs: tuple[str, ...]
    choose: Callable[[Columns, int, np.random.Generator], Choice]
    summary: str


STRATEGIES: dict[str, Strategy] = {}
SCORED = ("p_unknown", "next_token_entropy", "option_entropy", "semantic_entropy")
"""Columns that a run scores its pool with."""


def register(name: str, needs: tuple[str, ...], summary: str) -> Callable[[Callable[..., Choice]], Callable[..., Choice]]:
    """Put a strategy under its name."""

    def put(choose: Callable[..., Choice]) -> Callable[..., Choice]:
        STRATEGIES[name] = Strategy(name, needs, choose, summary)
        return choose

    return put


def strategy(name: str) -> Strategy:
    if name not in STRATEGIES:
        raise UserError(f"no strategy '{name}'; there are: {', '.join(STRATEGIES)}")
    return STRATEGIES[name]


def strategy_of_a_run(name: str) -> Strategy:
    """A strategy whose columns a run scores its pool with.

    Raises:
        UserError: there is none of this name, or it ranks by what only a command gives.
    """
    found = strategy(name)
    if not set(found.needs) <= set(SCORED):
        raise UserError(
            f"strategy '{name}' needs the column '{found.needs[0]}', which a run does not score its pool with; "
            "give its table to ka2l select, or choose another strategy"
        )
    return found


def select(name: str, columns: Mapping[str, ArrayLike], budget: int, seed: int | np.random.Generator) -> Choice:
    """``budget`` distinct rows in order of choice, and the score behind each (NaN: drawn at random).

    Args:
        name: a strategy.
        columns: equally long columns of the unlabelled pool (arrays, lists, Series, a DataFrame of them); those that the
            strategy needs must be there, without NaN.
        budget: labels to spend, at most the number of rows.
        seed: of draws and ties; or a generator to draw from.

    Raises:
        UserError: unknown strategy, a column missing, or a budget beyond the pool.
    """
    chosen = strategy(name)
    arrays = {name: np.asarray(values) for name, values in columns.items()}
    for column in chosen.needs:
        if column not in arrays or np.isnan(arrays[column].astype(np.float64)).any():
            raise UserError(f"strategy '{name}' needs the column '{column}' for every question; score the pool with it first")
    rows = len(next(iter(arrays.values())))
    if budget > rows:
        raise UserError(f"the budget is {budget} labels, the unlabelled pool has {rows} questions; lower selection.budget")
    draw = seed if isinstance(seed, np.random.Generator) else generator(seed)
    indices, scores = chosen.choose(arrays, budget, draw)
    assert len(set(indices.tolist())) == len(indices) == budget
    return indices, scores


def top(scores: NDArray[np.float64], budget: int, generator: np.random.Generator) -> Choice:
    """The highest scores; ties in random order."""
    order = np.lexsort((generator.permutation(len(scores)), -scores))[:budget]
    return order, scores[order]


@register("ka2l", ("p_unknown",), "highest probability of being unknown")
def ka2l(columns: Columns, budget: int, generator: np.random.Generator) -> Choice:
    return top(columns["p_unknown"], budget, generator)


@register("ka2l_draw", ("p_unknown",), "drawn at random among the predicted unknown, as in the paper's 5k Unknown sets")
def ka2l_draw(columns: Columns, budget: int, generator: np.random.Generator) -> Choice:
    """KA2L section 4.2; where fewer than the budget are predicted unknown, the likeliest of the rest fill it up."""
    p = columns["p_unknown"]
    unknown = generator.permutation(np.flatnonzero(p >= 0.5))[:budget]
    rest = np.flatnonzero(p < 0.5)
    filling = rest[top(p[rest], budget - len(unknown), generator)[0]] if len(unknown) < budget else rest[:0]
    chosen = np.concatenate([unknown, filling]).astype(np.int64)
    return chosen, p[chosen]


@register("entropy", ("next_token_entropy",), "highest next-token entropy at the last prompt token")
def entropy(columns: Columns, budget: int, generator: np.random.Generator) -> Choice:
    return top(columns["next_token_entropy"], budget, generator)


@register("option_entropy", ("option_entropy",), "highest entropy of the options' likelihoods; only for multiple choice")
def option_entropy(columns: Columns, budget: int, generator: np.random.Generator) -> Choice:
    return top(columns["option_entropy"], budget, generator)


@register("semantic_entropy", ("semantic_entropy",), "highest semantic entropy; only for questions that were sampled")
def semantic_entropy(columns: Columns, budget: int, generator: np.random.Generator) -> Choice:
    return top(columns["semantic_entropy"], budget, generator)


@register("combined", ("combined",), "highest p(wrong) by several scores, of ka2l entropy --combine; only for sampled questions")
def combined(columns: Columns, budget: int, generator: np.random.Generator) -> Choice:
    return top(columns["combined"], budget, generator)


@register("random", (), "uniform draw")
def random(columns: Columns, budget: int, generator: np.random.Generator) -> Choice:
    rows = len(next(iter(columns.values())))
    return generator.permutation(rows)[:budget], np.full(budget, np.nan)
