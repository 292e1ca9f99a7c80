"""Uncertainty scores and their quality, held against the definitions by brute force."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from scipy.optimize import minimize

from ka2l_ray.evaluation import rouge_l
from ka2l_ray.models.prompts import PromptConfig, Prompter
from ka2l_ray.semantics.clustering import Verdict
from ka2l_ray.semantics.entropy import semantic_entropy
from ka2l_ray.semantics.judges.exact import ExactJudge
from ka2l_ray.semantics.pairs import judge_pairs
from ka2l_ray.uncertainty.calibration import calibration_error
from ka2l_ray.uncertainty.p_true import Answered, case, encode, solved_examples
from ka2l_ray.uncertainty.scores import (
    answer_scores,
    aurc,
    cross_fitted_probability,
    cross_fitted_regression,
    fold_of,
    lexical_similarity,
    quality,
)

QUESTIONS = [f"Where was person {i} born?" for i in range(400)]


def test_scores_of_one_question() -> None:
    scores = answer_scores(["Bern", "Bern", "Basel"], [0, 0, 1], [-0.1, -0.3, -2.0], -0.2)
    assert scores["semantic entropy"] == semantic_entropy([0, 0, 1])
    assert scores["number of clusters"] == 2
    assert scores["regular entropy"] == pytest.approx(0.8)
    assert scores["log-likelihood"] == 0.2
    likelihood = [math.exp(-0.1) + math.exp(-0.3), math.exp(-2.0)]
    shares = [x / sum(likelihood) for x in likelihood]
    assert scores["semantic entropy, by likelihood"] == pytest.approx(-sum(p * math.log(p) for p in shares))
    assert "regular entropy" not in answer_scores(["a"], [0])


def test_lexical_similarity_is_the_mean_rouge_l_of_all_pairs() -> None:
    answers = ["the red house", "a red house", "a boat"]
    pairs = [(0, 1), (0, 2), (1, 2)]
    assert lexical_similarity(answers) == pytest.approx(np.mean([rouge_l(answers[i], [answers[j]]) for i, j in pairs]))
    assert lexical_similarity(["same"] * 4) == 1
    assert lexical_similarity(["one"]) == 1


def test_aurc_is_the_mean_risk_over_coverages_and_over_the_orders_of_equal_scores() -> None:
    wrong = np.array([False, True, True, False, True])
    score = np.array([0.1, 0.5, 0.5, 0.5, 0.9])
    risks = []
    for middle in permutations([1, 2, 3]):
        order = [0, *middle, 4]
        risks.append(np.mean([wrong[order[: n + 1]].mean() for n in range(5)]))
    assert aurc(wrong, score) == pytest.approx(np.mean(risks))
    assert aurc(wrong, np.zeros(5)) == pytest.approx(wrong.mean())


def logistic_fit(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Weights and bias of the ridge-penalised maximum likelihood, by another optimiser."""
    z = (x - x.mean(0)) / x.std(0)

    def loss(w: np.ndarray) -> float:
        t = z @ w[:-1] + w[-1]
        return float(np.logaddexp(0, t).sum() - t[y].sum() + 0.5 * (w[:-1] ** 2).sum())

    return minimize(loss, np.zeros(x.shape[1] + 1)).x


def test_probabilities_are_fitted_on_the_other_folds() -> None:
    generator = np.random.default_rng(0)
    score = generator.normal(size=400)
    wrong = generator.random(400) < 1 / (1 + np.exp(-2 * score))
    p = cross_fitted_probability(score, wrong, QUESTIONS)
    fold = np.array([fold_of(question) for question in QUESTIONS])
    for held_out in range(5):
        rest = fold != held_out
        weight, bias = logistic_fit(score[rest, None], wrong[rest])
        z = (score[~rest] - score[rest].mean()) / score[rest].std()
        np.testing.assert_allclose(p[~rest], 1 / (1 + np.exp(-(weight * z + bias))), atol=1e-3)
    assert calibration_error(wrong, p) < 0.1


def test_equal_questions_never_part_ways() -> None:
    assert fold_of("Who wrote Faust?") == fold_of("who wrote  faust")
    assert {fold_of(question) for question in QUESTIONS} == set(range(5))


def test_the_layer_that_knows_is_chosen_and_noise_predicts_nothing() -> None:
    generator = np.random.default_rng(0)
    truth = generator.random(400) < 0.4
    noise = generator.normal(size=(400, 8)).astype(np.float32)
    signal = noise + truth[:, None].astype(np.float32)
    p = cross_fitted_regression({3: noise, 7: signal}, truth, QUESTIONS)
    found = quality("probe", p, truth, QUESTIONS, resamples=200)
    assert found.auroc > 0.95
    assert found.auroc_low <= found.auroc <= found.auroc_high
    blind = quality("noise", cross_fitted_regression({3: noise}, truth, QUESTIONS), truth, QUESTIONS, resamples=200)
    assert blind.auroc < 0.6
    assert found.brier < blind.brier
    assert found.aurc < blind.aurc


def test_cross_fitted_scores_of_noise_rank_by_chance() -> None:
    """Pooled, they rank worse: what is fitted on the other folds leans against the share of wrong answers in one's own."""
    found, pooled, risks, pooled_risks = [], [], [], []
    for seed in range(20):
        generator = np.random.default_rng(seed)
        truth = generator.random(120) < 0.3
        noise = generator.normal(size=(120, 2)).astype(np.float32)
        p = cross_fitted_regression({0: noise}, truth, QUESTIONS[:120])
        by_fold = quality("noise", p, truth, QUESTIONS[:120], resamples=2, cross_fitted=True)
        over_all = quality("noise", p, truth, QUESTIONS[:120], resamples=2)
        found.append(by_fold.auroc)
        pooled.append(over_all.auroc)
        risks.append(by_fold.aurc - truth.mean())  # that of a score that says nothing
        pooled_risks.append(over_all.aurc - truth.mean())
    assert abs(np.mean(found) - 0.5) < 0.04
    assert np.mean(pooled) < np.mean(found) - 0.03
    assert abs(np.mean(risks)) < 0.02
    assert np.mean(pooled_risks) > np.mean(risks) + 0.015


def test_where_all_answers_are_right_nothing_can_be_ranked() -> None:
    found = quality("se", np.arange(50.0), np.zeros(50, bool), QUESTIONS[:50])
    assert math.isnan(found.auroc)
    assert math.isnan(found.auroc_low)
    assert found.aurc == 0


def test_p_true_shows_solved_cases_half_of_them_wrong(plain_tokenizer, tokenizer) -> None:
    right = [i % 3 > 0 for i in range(60)]
    shown = solved_examples([f"q{i}" for i in range(60)], right)
    assert [right[i] for i in shown].count(True) == 4
    assert len(shown) == len(set(shown)) == 8
    text = case(Answered("Who?", ["he", "she"], "he"), True)
    assert text == (
        "Question: Who?\nBrainstormed answers:\nhe\nshe\nPossible answer: he\n"
        "Is the possible answer:\nA) True\nB) False\nThe possible answer is: A"
    )
    ids, true, false = encode(Prompter(plain_tokenizer, PromptConfig(instruction="")), case(Answered("Who?", [], "he")))
    assert plain_tokenizer.decode(ids, skip_special_tokens=True).endswith("The possible answer is:")
    assert (plain_tokenizer.decode(true).strip(), plain_tokenizer.decode(false).strip()) == ("A", "B")
    opened, _, _ = encode(Prompter(plain_tokenizer, PromptConfig(instruction="", prefill=" Well,")), "Is it?")
    assert plain_tokenizer.decode(opened, skip_special_tokens=True) == "Is it? Well,"
    chat, _, _ = encode(Prompter(tokenizer, PromptConfig(instruction="")), "Is it?")
    assert chat == Prompter(tokenizer, PromptConfig(instruction="")).encode(
        tokenizer.apply_chat_template([{"role": "user", "content": "Is it?"}], tokenize=False, add_generation_prompt=True)
    )


class SaysYes:
    symmetric = True

    def verdicts(self, questions, pairs) -> list[Verdict]:
        return [Verdict(2)] * len(pairs)


def test_judges_are_held_against_people() -> None:
    rows = [
        {"question": "Who?", "a": "the Pope", "b": "Pope", "label": 1},
        {"question": None, "a": "he", "b": "a man", "label": 1},
        {"question": "Who?", "a": "x", "b": "y", "label": 0},
        {"question": "Who?", "a": "x", "b": "X.", "label": 0},
    ]
    exact = judge_pairs(ExactJudge(), rows)
    assert (exact.accuracy, exact.precision, exact.recall, exact.f1) == (0.5, 0.5, 0.5, 0.5)
    yes = judge_pairs(SaysYes(), rows)
    assert (yes.accuracy, yes.recall, yes.f1) == (0.5, 1.0, pytest.approx(2 / 3))
