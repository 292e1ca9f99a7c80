"""Split halves against known probabilities, the ceilings against whoever knows them, rule auto and what k makes of 0.5 nats."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ka2l_ray.semantics.entropy import agreeing_answers, auto_threshold, semantic_entropy, threshold
from ka2l_ray.semantics.reliability import cohen_kappa, half_entropies, reliability
from ka2l_ray.uncertainty.ranking import auroc


def test_halves_are_disjoint_random_and_of_the_question_alone() -> None:
    found = half_entropies("q", [0] * 5 + [1] * 5, [False] * 10)
    again = half_entropies("q", [0] * 5 + [1] * 5, [False] * 10)
    assert found is not None
    assert again is not None
    assert found[0].tolist() == again[0].tolist()
    assert all(half_entropies(f"q{i}", list(range(7)), [False] * 7)[0] == pytest.approx(math.log(3)) for i in range(20))  # type: ignore[index]
    first, second = zip(*[half_entropies(f"q{i}", [0] * 9 + [1], [False] * 10)[0] for i in range(200)], strict=True)  # type: ignore[index]
    odd = semantic_entropy([0, 0, 0, 0, 1])
    assert all(sorted(pair) == pytest.approx([0, odd]) for pair in zip(first, second, strict=True))
    assert 60 < np.count_nonzero(first) < 140
    assert half_entropies("q", [0, 0, 1], [False] * 3) is None


def test_a_half_goes_without_an_answer_as_a_whole_does() -> None:
    found = half_entropies("q", [0] * 10, [True] * 10)
    assert found is not None
    assert (found[0].tolist(), found[1].tolist()) == ([0, 0], [True, True])


def test_agreement_kappa_and_ceilings_of_labels_with_known_probabilities() -> None:
    generator = np.random.default_rng(0)
    p = generator.uniform(size=200_000)
    draws = generator.uniform(size=(len(p), 2)) < p[:, None]  # one label a half
    found = reliability(draws.astype(float), np.zeros_like(draws), 0.5, share_unknown=0.5, half=5)
    assert found.agreement == pytest.approx(2 / 3, abs=0.005)
    assert found.kappa == pytest.approx(1 / 3, abs=0.01)
    assert found.entropy_reliability == pytest.approx(1 / 2, abs=0.01)
    # Whoever knows p of labels that repeat with kappa c: here c = 1/3, as of p = 0 or 1 a third of the time, else 1/2.
    certain = generator.uniform(size=len(p)) < 1 / 3
    p = np.where(certain, np.round(p), 0.5)
    label = generator.uniform(size=len(p)) < p
    assert ((p > 0.5) == label)[certain].all()
    right = np.where(certain, 1.0, 0.5).mean()
    assert right <= found.accuracy_ceiling == pytest.approx((1 + math.sqrt(1 / 3)) / 2, abs=0.01)
    assert auroc(label, p) <= found.auroc_ceiling + 0.005


def test_the_auroc_ceiling_is_met_by_uniform_probabilities() -> None:
    p = np.linspace(0, 1, 2001)
    best = (1 + np.abs(p[:, None] - p).mean() / (2 * 0.5 * 0.5)) / 2
    label = np.random.default_rng(0).uniform(size=p.size) < p
    assert best == pytest.approx(auroc(label, p), abs=0.02)
    # Such labels repeat with kappa 1/3, the variance of p over u(1-u).
    draws = np.random.default_rng(1).uniform(size=(100_000, 2)) < 0.5
    draws[::3, 1] = draws[::3, 0]
    found = reliability(draws.astype(float), np.zeros_like(draws), 0.5, share_unknown=0.5, half=5)
    assert found.auroc_ceiling == pytest.approx(best, abs=0.01)


def test_one_class_has_no_kappa_and_no_ceiling() -> None:
    found = reliability(np.zeros((10, 2)), np.zeros((10, 2), bool), 0.5, share_unknown=0.0, half=5)
    assert found.agreement == 1
    assert all(map(math.isnan, (found.kappa, found.accuracy_ceiling, found.auroc_ceiling)))
    assert math.isnan(cohen_kappa(np.ones(3, bool), np.ones(3, bool)))
    silent = reliability(np.zeros((10, 2)), np.array([[True, True]] * 5 + [[False, False]] * 5), 0.5, share_unknown=0.5, half=5)
    assert silent.kappa == 1


def test_at_half_a_nat_nine_of_ten_and_all_of_five_must_agree() -> None:
    assert {k: agreeing_answers(k, 0.5) for k in (2, 5, 7, 10, 20)} == {2: 2, 5: 5, 7: 6, 10: 9, 20: 17}
    for k in (5, 10, 20):
        need = agreeing_answers(k, 0.5)
        assert semantic_entropy([0] * need + [1] * (k - need)) < 0.5 <= semantic_entropy([0] * (need - 1) + [1] * (k - need + 1))


@pytest.mark.parametrize(
    ("entropies", "unknown", "rule", "known"),
    [
        ([0.0] * 50 + [2.0] * 50, 0, "ka2l", 50),
        ([0.0] * 5 + [2.0] * 95, 0, "ka2l", 5),  # a twentieth is enough
        ([0.0] * 4 + [1.5] * 40 + [2.3] * 56, 0, "two_means", 44),
        ([0.0] + [2.0] * 50 + [2.3] * 49, 0, "two_means", 51),  # two_means alone would part the one from the rest
        ([0.0] * 60 + [0.325] * 40, 0, "two_means", 60),  # nothing is unknown by Eq. 3
        ([0.0] * 40, 60, "ka2l", 40),  # sixty abstain, which are unknown
        ([2.3] * 100, 0, "ka2l", 0),  # nothing to part
        ([2.3], 0, "ka2l", 0),
        ([], 0, "ka2l", 0),
    ],
)
def test_auto_leaves_the_constant_where_a_class_is_nearly_empty(
    entropies: list[float], unknown: int, rule: str, known: int
) -> None:
    taken, at = auto_threshold(np.array(entropies), unknown)
    assert taken == rule
    assert (taken == "ka2l") == (at == 0.5)
    assert int((np.array(entropies) < at).sum()) == known
    if not unknown and entropies:
        assert threshold(entropies, "auto") == at
