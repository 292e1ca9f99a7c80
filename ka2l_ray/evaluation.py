"""Answers held against their aliases: exact match, token F1, ROUGE-L, BLEU, METEOR; bootstrap intervals; forgetting.

Every metric is the best over the aliases, except BLEU, which takes them as its several references. In languages without spaces a
word is a character (``words``). A prediction that says nothing is right in none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import nltk
import numpy as np
import sacrebleu
from nltk.translate.meteor_score import meteor_score
from numpy.typing import NDArray
from rouge_score.rouge_scorer import RougeScorer

from ka2l_ray.normalization import Form, compatible, normalize_answer, normalize_question
from ka2l_ray.words import spaced

METRICS = ("exact_match", "token_f1", "rouge_l", "bleu", "meteor", "bert_score")


@dataclass(frozen=True)
class Interval:
    """A mean with its bootstrap interval."""

    mean: float
    low: float
    high: float
    n: int


def measure(judge: str) -> str:
    """What the share of right answers by a judge is called."""
    return "exact match" if judge == "exact" else f"right by {judge}"


def headline(facts: Mapping[str, Any]) -> str:
    """An evaluation in a few words: the share that is right, by the judge chosen, and beside it exact match."""
    exact = f"exact match {facts['by_exact_match']['accuracy']:.3f}"
    judge = facts["judge"]
    return exact if judge == "exact" else f"{measure(judge)} {facts['accuracy']:.3f}, {exact}"


def exact_match(prediction: str, answers: Sequence[str], form: Form = "unicode") -> float:
    """1 where the prediction says something and equals any alias in its normal form."""
    wanted = normalize_answer(prediction, form)
    return float(bool(wanted) and any(normalize_answer(answer, form) == wanted for answer in answers))


def token_f1(prediction: str, answers: Sequence[str], form: Form = "unicode") -> float:
    """Best F1 of the words of the normal forms (SQuAD's, where the form is)."""
    predicted = spaced(normalize_answer(prediction, form)).split()
    return max((_f1(predicted, spaced(normalize_answer(answer, form)).split()) for answer in answers), default=0.0)


def rouge_l(prediction: str, answers: Sequence[str]) -> float:
    """Best ROUGE-L F-measure; words as in ``normalize_question``: articles count."""
    return max((float(_rouge().score(answer, prediction)["rougeL"].fmeasure) for answer in answers), default=0.0)


def bleu(prediction: str, answers: Sequence[str]) -> float:
    """Sentence BLEU against all aliases, 0 to 1 (sacrebleu, effective order, as answers are short)."""
    references = [_for_bleu(answer) for answer in answers]
    return float(sacrebleu.sentence_bleu(_for_bleu(prediction), references, use_effective_order=True).score) / 100


def corpus_bleu(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU, 0 to 100, rows with fewer aliases than the most leaving their streams empty."""
    streams = [[_for_bleu(row[i]) if i < len(row) else None for row in answers] for i in range(max(map(len, answers)))]
    return float(sacrebleu.corpus_bleu([_for_bleu(prediction) for prediction in predictions], streams).score)


def _for_bleu(text: str) -> str:
    return spaced(compatible(text))


def meteor(prediction: str, answers: Sequence[str]) -> float:
    """Best METEOR (nltk) by the stages of ``meteor_stages``; words as in ROUGE-L, stems by Porter's rules, which are English."""
    references, words = [_words(answer) for answer in answers], _words(prediction)
    if not words or not any(references):
        return 0.0
    return float(meteor_score([reference for reference in references if reference], words, wordnet=_synonyms()))


@cache
def meteor_stages() -> str:
    """What METEOR matches words by: synonyms need nltk's WordNet data (``python -m nltk.downloader wordnet``)."""
    return "exact, stem" if isinstance(_synonyms(), _NoSynonyms) else "exact, stem, synonym (WordNet)"


def score_answer(prediction: str, answers: Sequence[str], form: Form = "unicode") -> dict[str, float | None]:
    """Every metric of one answer but BERTScore, which is computed over all at once."""
    return {
        "exact_match": exact_match(prediction, answers, form),
        "token_f1": token_f1(prediction, answers, form),
        "rouge_l": rouge_l(prediction, answers),
        "bleu": bleu(prediction, answers),
        "meteor": meteor(prediction, answers),
    }


def bootstrap(values: NDArray[np.float64], resamples: int, confidence: float, seed: int) -> Interval:
    """Mean and percentile interval over resampled questions."""
    n = len(values)
    if n == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    generator = np.random.default_rng(seed)
    means = np.array([values[generator.integers(0, n, n)].mean() for _ in range(resamples)])
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(values.mean()), float(low), float(high), n)


def split_figures(
    scores: dict[str, NDArray[np.float64]], known_before: NDArray[np.bool_], resamples: int, confidence: float, seed: int
) -> dict[str, dict[str, Interval]]:
    """Intervals of every metric on all questions, on those known before training and on those unknown before.

    Args:
        scores: metric name to (n,) values.
        known_before: (n,) whether the untrained model's greedy answer was right.
    """
    groups = {"all": np.ones(len(known_before), bool), "known_before": known_before, "unknown_before": ~known_before}
    return {
        group: {name: bootstrap(values[rows], resamples, confidence, seed) for name, values in scores.items()}
        for group, rows in groups.items()
    }


def _f1(predicted: list[str], wanted: list[str]) -> float:
    shared = sum((Counter(predicted) & Counter(wanted)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(predicted), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)


def _words(text: str) -> list[str]:
    return spaced(normalize_question(text)).split()


class _Words:
    """Of any script; rouge_score's own tokenizer knows a to z only."""

    def tokenize(self, text: str) -> list[str]:
        return _words(text)


@cache
def _rouge() -> RougeScorer:
    return RougeScorer(["rougeL"], tokenizer=_Words())


class _NoSynonyms:
    """In WordNet's place where its data is not there."""

    def synsets(self, word: str) -> list[Any]:
        return []


@cache
def _synonyms() -> Any:
    for name in ("corpora/wordnet.zip", "corpora/wordnet"):
        try:
            nltk.data.find(name)
        except LookupError:
            continue
        return nltk.corpus.wordnet
    return _NoSynonyms()
