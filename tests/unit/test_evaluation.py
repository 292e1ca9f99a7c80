"""Metrics by worked examples, intervals against the normal approximation, and the split by what was known before."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ka2l_ray.evaluation
from ka2l_ray.evaluation import (
    METRICS,
    bleu,
    bootstrap,
    corpus_bleu,
    exact_match,
    meteor,
    meteor_stages,
    rouge_l,
    score_answer,
    split_figures,
    token_f1,
)


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("Eiffel Tower", ["eiffel tower"], 1.0),
        ("the  Eiffel tower!", ["An Eiffel Tower"], 1.0),
        ("U.S.A", ["United States", "USA"], 1.0),
        ("medical doctor", ["physician", "medical doctor"], 1.0),
        ("Paris, France", ["Paris"], 0.0),
        ("1931", ["1932"], 0.0),
        ("", ["Paris"], 0.0),
        ("", ["A"], 0.0),
        ("A", ["A"], 1.0),
        ("−5", ["5"], 0.0),
        ("巴黎。", ["巴黎"], 1.0),
        ("Paris", [], 0.0),
    ],
)
def test_exact_match_is_by_normal_form_against_any_alias(prediction: str, answers: list[str], expected: float) -> None:
    assert exact_match(prediction, answers) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("the cat sat", ["cat sat down"], 0.8),  # precision 2/2, recall 2/3
        ("the cat sat", ["dog", "cat sat down", "the cat sat there then"], 0.8),  # the best alias: recall 2/4 gives 2/3
        ("Paris, France", ["Paris"], 2 / 3),
        ("Paris", ["paris!"], 1.0),
        ("no no no", ["no"], 0.5),  # a word counts as often as it stands in both
        ("Rome", ["Paris"], 0.0),
        ("", ["Paris"], 0.0),
        ("the", ["a"], 0.0),
        ("", [""], 0.0),
        ("東京都", ["東京"], 0.8),  # by character: 2 of 3 and 2
        ("Paris", [], 0.0),
    ],
)
def test_token_f1_is_the_best_over_aliases(prediction: str, answers: list[str], expected: float) -> None:
    assert token_f1(prediction, answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("the brown quick fox", ["the quick brown fox"], 0.75),  # longest common subsequence 3 of 4 and 4
        ("quick fox", ["the quick brown fox"], 2 / 3),  # 2 of 2 and 4
        ("quick fox", ["slow dog", "quick fox"], 1.0),
        ("Quick FOX.", ["quick fox"], 1.0),
        ("dog", ["fox"], 0.0),
        ("dog", [], 0.0),
    ],
)
def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence(prediction: str, answers: list[str], expected: float) -> None:
    assert rouge_l(prediction, answers) == pytest.approx(expected)


def test_rouge_l_of_equal_answers_is_1_in_any_script() -> None:
    assert rouge_l("東京", ["東京"]) == 1.0


@pytest.mark.parametrize("text", ["Paris", "medical doctor", "the city of Quast", "one two three four five six"])
def test_bleu_of_an_answer_equal_to_an_alias_is_1(text: str) -> None:
    assert bleu(text, [text]) == pytest.approx(1.0)
    assert bleu(text, ["something else", text]) == pytest.approx(1.0)


def test_bleu_by_hand() -> None:
    # Unigrams 1 of 2; bigrams 0 of 1, smoothed to 1/2; equal lengths: sqrt(1/2 * 1/2).
    assert bleu("red car", ["blue car"]) == pytest.approx(0.5)
    # All of one word right, the reference twice as long: brevity penalty exp(1 - 2/1).
    assert bleu("Paris", ["Paris France"]) == pytest.approx(math.exp(-1))
    assert bleu("", ["Paris"]) == 0.0


@pytest.mark.parametrize(
    ("prediction", "answer"), [("ｱﾒﾘｶ", "アメリカ"), ("１２月", "12月"), ("Cafe\u0301", "Café"), ("It’s", "It's")]
)
def test_bleu_reads_one_form_of_each_character(prediction: str, answer: str) -> None:
    assert bleu(prediction, [answer]) == pytest.approx(1)
    assert bleu(answer, [prediction]) == pytest.approx(1)
    ending = " and three more words"
    assert corpus_bleu([prediction + ending], [["else", answer + ending]]) == pytest.approx(100)


@pytest.mark.parametrize(("prediction", "answer"), [("10²", "102"), ("paris", "Paris"), ("x ≠ y", "x = y")])
def test_bleu_does_not_make_equal_what_is_not(prediction: str, answer: str) -> None:
    assert bleu(prediction, [answer]) < 1


def test_corpus_bleu_of_equal_answers_is_100() -> None:
    predictions = ["the city of Quast", "one two three four five"]
    assert corpus_bleu(predictions, [["Quast", predictions[0]], [predictions[1]]]) == pytest.approx(100)


def test_corpus_bleu_does_not_mind_how_many_aliases_a_row_has() -> None:
    predictions = ["the old city", "a very good medical doctor"]  # the first is shorter than its reference: brevity counts
    ragged = [["the old city of Quast"], ["a good medical doctor", "a physician", "a very good doctor"]]
    square = [ragged[0] * 3, ragged[1]]  # an alias said thrice says no more than once
    assert 0 < corpus_bleu(predictions, ragged) < 100
    assert corpus_bleu(predictions, ragged) == pytest.approx(corpus_bleu(predictions, square))


def test_meteor_matches_words_and_stems_and_says_so() -> None:
    # One matching chunk of m words: 1 - 0.5 (1/m)^3.
    assert meteor("medical doctor", ["Lyon", "medical doctor"]) == pytest.approx(1 - 0.5 / 8)
    assert meteor("medical doctors", ["medical doctor"]) == pytest.approx(1 - 0.5 / 8)
    assert meteor("東京都", ["東京都"]) == pytest.approx(1 - 0.5 / 27)
    assert meteor("cat", ["dog"]) == 0.0
    assert meteor_stages() in ("exact, stem", "exact, stem, synonym (WordNet)")


def test_wordnet_adds_synonyms_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lemma:
        def name(self) -> str:
            return "physician"

    class Synset:
        def lemmas(self) -> list[Lemma]:
            return [Lemma()]

    class WordNet:
        def synsets(self, word: str) -> list[Synset]:
            return [Synset()] if word == "doctor" else []

    assert meteor("the doctor", ["the physician"]) < 0.6
    monkeypatch.setattr(ka2l_ray.evaluation, "_synonyms", WordNet)
    assert meteor("the doctor", ["the physician"]) == pytest.approx(1 - 0.5 / 8)


@pytest.mark.parametrize("said", ["", " ", "\u200b"])
def test_nothing_is_right_in_no_metric(said: str) -> None:
    for answers in (["A"], ["the"], [""], [".", "-"]):
        for form in ("unicode", "squad"):
            assert set(score_answer(said, answers, form).values()) == {0.0}  # type: ignore[arg-type]


@pytest.mark.parametrize(("prediction", "answer"), [("東京都", "東京"), ("巴黎铁塔", "巴黎"), ("กรุงเทพมหานคร", "กรุงเทพ")])
def test_languages_without_spaces_are_scored_by_character(prediction: str, answer: str) -> None:
    scores = score_answer(prediction, [answer])
    assert scores["exact_match"] == 0.0
    for name in ("token_f1", "rouge_l", "bleu", "meteor"):
        assert 0.2 < (scores[name] or 0) < 1, name
    assert corpus_bleu([prediction * 2], [[answer * 2]]) > 5


def test_squads_form_decides_exact_match_and_f1_alone() -> None:
    assert score_answer("C++", ["C"], "squad")["exact_match"] == score_answer("C++", ["C"], "squad")["token_f1"] == 1.0
    assert score_answer("C++", ["C"])["exact_match"] == score_answer("C++", ["C"])["token_f1"] == 0.0


def test_score_answer_has_every_metric() -> None:
    scores = score_answer("the medical doctor", ["physician", "medical doctor"])
    assert (*scores, "bert_score") == METRICS
    assert scores["exact_match"] == scores["token_f1"] == 1.0
    assert scores["rouge_l"] == pytest.approx(0.8)  # articles count here: 2 of 3 and 2


words = st.text("abc xyz,.THE", max_size=20)


@given(words, st.lists(words, min_size=1, max_size=3))
def test_every_metric_is_between_0_and_1_and_an_exact_match_has_f1_1(prediction: str, answers: list[str]) -> None:
    scores = {name: value for name, value in score_answer(prediction, answers).items() if value is not None}
    assert all(0 <= value <= 1 + 1e-9 for value in scores.values())
    if scores["exact_match"]:
        assert scores["token_f1"] == 1.0


def test_bootstrap_interval_is_the_normal_one_for_many_questions() -> None:
    values = np.array([0.0, 1.0] * 200)
    interval = bootstrap(values, 2000, 0.95, seed=0)
    half = 1.96 * 0.5 / math.sqrt(400)
    assert interval.mean == 0.5
    assert interval.n == 400
    assert interval.low == pytest.approx(0.5 - half, abs=0.006)
    assert interval.high == pytest.approx(0.5 + half, abs=0.006)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=60), st.integers(0, 3))
def test_bootstrap_interval_holds_the_mean_and_stays_within_the_values(values: list[float], seed: int) -> None:
    interval = bootstrap(np.array(values), 200, 0.95, seed)
    assert min(values) - 1e-12 <= interval.low <= interval.high <= max(values) + 1e-12
    assert interval.low - 1e-12 <= interval.mean <= interval.high + 1e-12


def test_bootstrap_interval_shrinks_with_n_and_widens_with_confidence() -> None:
    rng = np.random.default_rng(0)

    def width(n: int, confidence: float) -> float:
        interval = bootstrap(rng.random(n), 1000, confidence, seed=0)
        return interval.high - interval.low

    assert width(1600, 0.95) == pytest.approx(width(100, 0.95) / 4, rel=0.25)
    assert width(400, 0.5) < width(400, 0.9) < width(400, 0.99)


def test_bootstrap_repeats_with_its_seed() -> None:
    values = np.random.default_rng(0).random(50)
    assert bootstrap(values, 100, 0.95, seed=1) == bootstrap(values, 100, 0.95, seed=1)
    assert bootstrap(values, 100, 0.95, seed=1) != bootstrap(values, 100, 0.95, seed=2)


def test_bootstrap_of_nothing_is_not_a_number() -> None:
    interval = bootstrap(np.array([]), 100, 0.95, seed=0)
    assert interval.n == 0
    assert math.isnan(interval.mean)
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)


def test_figures_are_split_by_what_was_known_before() -> None:
    scores = {"exact_match": np.array([1.0, 0.0, 1.0, 0.0, 0.0]), "token_f1": np.array([1.0, 0.5, 1.0, 0.2, 0.3])}
    known = np.array([True, True, False, False, False])
    figures = split_figures(scores, known, 100, 0.95, seed=0)
    means = {group: {name: round(interval.mean, 6) for name, interval in row.items()} for group, row in figures.items()}
    assert means == {
        "all": {"exact_match": 0.4, "token_f1": 0.6},
        "known_before": {"exact_match": 0.5, "token_f1": 0.75},
        "unknown_before": {"exact_match": 0.333333, "token_f1": 0.5},
    }
    assert {group: row["exact_match"].n for group, row in figures.items()} == {"all": 5, "known_before": 2, "unknown_before": 3}


def test_a_group_without_questions_has_no_figure() -> None:
    figures = split_figures({"exact_match": np.ones(3)}, np.ones(3, bool), 100, 0.95, seed=0)
    assert figures["unknown_before"]["exact_match"].n == 0
    assert math.isnan(figures["unknown_before"]["exact_match"].mean)
