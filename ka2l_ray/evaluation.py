"""Answers held against their aliases: exact match, token F1, ROUGE-L, BLEU, METEOR; bootstrap intervals; forgetting.

Every metric is the best over the aliases, except BLEU, which takes them as its several references.
"""

from __future__ import annotations

import re
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

from ka2l_ray.normalization import normalize_answer

METRICS = ("exact_match", "token_f1", "rouge_l", "bleu", "meteor")


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


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 where the prediction equals any alias after SQuAD normalisation."""
    wanted = normalize_answer(prediction)
    return float(any(normalize_answer(answer) == wanted for answer in answers))


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """Best F1 of normalised tokens (SQuAD)."""
    return max((_f1(normalize_answer(prediction).split(), normalize_answer(a).split()) for a in answers), default=0.0)


def rouge_l(prediction: str, answers: Sequence[str]) -> float:
    """Best ROUGE-L F-measure."""
    return max((float(_rouge().score(answer, prediction)["rougeL"].fmeasure) for answer in answers), default=0.0)


def bleu(prediction: str, answers: Sequence[str]) -> float:
    """Sentence BLEU against all aliases, 0 to 1 (sacrebleu, effective order, as answers are short)."""
    return float(sacrebleu.sentence_bleu(prediction, list(answers), use_effective_order=True).score) / 100


def corpus_bleu(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU, 0 to 100, rows with fewer aliases than the most leaving their streams empty."""
    streams = [[row[i] if i < len(row) else None for row in answers] for i in range(max(map(len, answers)))]
    return float(sacrebleu.corpus_bleu(list(predictions), streams).score)


def meteor(prediction: str, answers: Sequence[str]) -> float | None:
    """Best METEOR (nltk), with WordNet synonyms where its data is present, else None: see ``meteor_data``."""
    if meteor_data() is None:
        return None
    return float(meteor_score([answer.lower().split() for answer in answers], prediction.lower().split()))


@cache
def meteor_data() -> str | None:
    """The WordNet that METEOR uses, or None where nltk has none (``python -m nltk.downloader wordnet``)."""
    try:
        nltk.data.find("corpora/wordnet.zip")
    except LookupError:
        try:
            nltk.data.find("corpora/wordnet")
        except LookupError:
            return None
    return "nltk wordnet"


def score_answer(prediction: str, answers: Sequence[str]) -> dict[str, float | None]:
    return {
        "exact_match": exact_match(prediction, answers),
        "token_f1": token_f1(prediction, answers),
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
        return float(predicted == wanted)
    precision, recall = shared / len(predicted), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)


class _Words:
    """Lower-case words of any script; rouge_score's own tokenizer knows a to z only."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"\w+", text.lower())


@cache
def _rouge() -> RougeScorer:
    return RougeScorer(["rougeL"], tokenizer=_Words())
