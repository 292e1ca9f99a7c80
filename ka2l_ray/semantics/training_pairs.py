"""Pairs of answers to train a judge on: those that somebody judged, and those that a pool of questions with answers holds.

A pool's aliases mean the same. What means something else must be near, or the judge learns to tell a river from a year: it is an
answer to a question that reads alike ("Which river ...?"), or the answer that reads most alike, of another question. Numbers are
held against their neighbours, options against the other options of their question.

No question that the judge is to be measured on may stand in training: ``Held`` knows them by their words, whatever the file.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ka2l_ray.errors import UserError
from ka2l_ray.normalization import normalize_answer, normalize_question
from ka2l_ray.questions import answers_of, read_rows

Embed = Callable[[Sequence[str]], Tensor]
"""(n,) texts to (n, d) unit vectors."""

NEIGHBOURS = 30
"""Questions, or answers, among which one that means something else is drawn."""
ALIKE = 0.75
"""Share of words from which on two questions are one: of the words of both, so many are common."""
LABELS = {1: True, 0: False, "1": True, "0": False, "entailment": True, "neutral": False, "contradiction": False}
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
SENTENCES = ("It is {}.", "The answer is {}.", "It was {}", "I think it is {}.", "It's called {}.", "That would be {}.")


class TrainingPair(NamedTuple):
    """Two answers to a question (which may be empty), and whether they mean the same."""

    question: str
    a: str
    b: str
    same: bool
    judged: bool
    """Somebody judged this very pair; else it was made from a pool."""
    accepted: tuple[str, ...] = ()
    """Of a judged answer ``b``: all that it may mean, where that is known; ``a`` is the one most like it."""


@dataclass
class Held:
    """Questions that stay out of training: the same after normalisation, or of the same words but a few."""

    questions: set[str] = field(default_factory=set)
    _by_word: dict[str, list[frozenset[str]]] = field(default_factory=dict)

    def add(self, question: str) -> None:
        key = normalize_question(question)
        if key and key not in self.questions:
            self.questions.add(key)
            words = frozenset(key.split())
            for word in words:
                self._by_word.setdefault(word, []).append(words)

    def __contains__(self, question: str) -> bool:
        key = normalize_question(question)
        if not key or key in self.questions:
            return bool(key)
        words = frozenset(key.split())
        # Of n words at most n (1 - ALIKE) may be missing: one of the rarest so many and one is common to both.
        rarest = sorted(words, key=lambda word: len(self._by_word.get(word, ())))[: int(len(words) * (1 - ALIKE)) + 1]
        return any(len(words & other) >= ALIKE * len(words | other) for word in rarest for other in self._by_word.get(word, ()))


def held(paths: Iterable[str]) -> Held:
    """The questions of files of any kind.

    Raises:
        UserError: no such file, or a malformed line.
    """
    found = Held()
    for path in paths:
        for _, row in read_rows(path):
            if isinstance(row.get("question"), str):
                found.add(row["question"])
    return found


def judged_pairs(path: str, out: Held) -> Iterator[TrainingPair]:
    """Rows {"question" (may be null), "a", "b", "label"} whose question is not in ``out``.

    ``label`` is 1 or 0, or entailment, neutral, contradiction. Where ``gold`` lists all accepted answers, ``b`` is held against
    the one most like it, as a judge of correctness holds it against the best.

    Raises:
        UserError: no such file, or a row that lacks something.
    """
    for place, row in read_rows(path):
        question, a, b, label = (row.get(name) for name in ("question", "a", "b", "label"))
        if not (isinstance(a, str) and isinstance(b, str)) or not isinstance(label, str | int) or label not in LABELS:
            raise UserError(f"{place}: a pair has the texts 'a' and 'b' and a 'label': 1 where they mean the same, else 0")
        if not isinstance(question, str | None):
            raise UserError(f"{place}: 'question' must be a text or null, this is {question!r:.60}")
        gold = row.get("gold") or [a]
        if not isinstance(gold, list) or not all(isinstance(answer, str) for answer in gold):
            raise UserError(f"{place}: 'gold' must be a list of texts, all accepted answers; this is {gold!r:.60}")
        if question and question in out:
            continue
        nearest = max(gold, key=lambda answer: likeness(answer, b))
        yield TrainingPair(question or "", nearest, b, LABELS[label], True, tuple(gold))


def likeness(a: str, b: str) -> float:
    """Share of the shorter text's letter triples that stand in the other."""
    first, second = (_triples(text) for text in (a, b))
    return len(first & second) / max(1, min(len(first), len(second)))


def _triples(text: str) -> set[str]:
    text = f" {text.lower()} "
    return {text[i : i + 3] for i in range(len(text) - 2)}


class Asked(NamedTuple):
    """A question of a pool."""

    question: str
    answers: list[str]
    options: list[str]
    """That are offered with it; often none."""


def pool(path: str, out: Held) -> Iterator[Asked]:
    """Questions of a pool that have answers, and are not in ``out``.

    Raises:
        UserError: no such file, or a malformed row.
    """
    for place, row in read_rows(path):
        question, answers = row.get("question"), answers_of(place, row)
        if isinstance(question, str) and answers and question not in out:
            yield Asked(question.strip(), answers, _options(row))


def _options(row: Mapping[str, Any]) -> list[str]:
    options = row.get("options") or row.get("choices") or []
    values = options.values() if isinstance(options, dict) else options
    return [option for option in values if isinstance(option, str)]


def pool_pairs(asked: Sequence[Asked], embed: Embed, rng: random.Random) -> Iterator[TrainingPair]:
    """For each question two pairs that mean the same and two or three that do not, as far as it holds them."""
    questions = embed([each.question for each in asked])
    answers = embed([each.answers[0] for each in asked])
    nearest = zip(_nearest(questions), _nearest(answers), strict=True)
    for each, (by_question, by_answer) in zip(asked, nearest, strict=True):
        a, *others = rng.sample(each.answers, min(3, len(each.answers)))
        for b in others or [reworded(a, each.question, rng)]:
            yield _in_any_order(each.question, a, b, True, rng)
        wrong_options = [option for option in each.options if not _one(option, each.answers)]
        if wrong_options:
            yield _in_any_order(each.question, a, rng.choice(wrong_options), False, rng)
        changed = other_number(a, rng)
        if changed is not None:
            yield _in_any_order(each.question, a, changed, False, rng)
        for neighbours in filter(None, (by_question, by_answer)):  # a question alone has none
            wrong = rng.choice(asked[rng.choice(neighbours)].answers)
            if not _one(wrong, each.answers):
                stated = reworded(wrong, each.question, rng) if rng.random() < 0.25 else wrong
                yield _in_any_order(each.question, a, stated, False, rng)


def _in_any_order(question: str, a: str, b: str, same: bool, rng: random.Random) -> TrainingPair:
    return TrainingPair(question, *((a, b) if rng.random() < 0.5 else (b, a)), same, judged=False)


def _one(answer: str, accepted: Sequence[str]) -> bool:
    """Whether the answer may be an accepted one: the letters of one stand in the other."""
    mine = normalize_answer(answer)
    return not mine or any(mine in other or other in mine for other in map(normalize_answer, accepted))


@torch.inference_mode()
def _nearest(vectors_ND: Tensor) -> list[list[int]]:
    """Rows of the ``NEIGHBOURS`` most alike of each row, itself left out."""
    found: list[list[int]] = []
    for start in range(0, len(vectors_ND), 1024):
        cosines = vectors_ND[start : start + 1024] @ vectors_ND.T
        cosines[torch.arange(len(cosines)), torch.arange(start, start + len(cosines))] = -2.0
        found += cosines.topk(min(NEIGHBOURS, len(vectors_ND) - 1), dim=-1).indices.tolist()
    return found


def reworded(answer: str, question: str, rng: random.Random) -> str:
    """The same answer as another model might put it: a sentence, a plural, a figure as a word, what was asked for behind it."""
    ways = [rng.choice(SENTENCES).format(answer)]
    if answer.isdecimal() and answer.isascii() and int(answer) < len(NUMBERS):
        ways.append(NUMBERS[int(answer)])
    elif answer[-1:].isalpha():
        ways.append(answer[:-1] if answer.endswith("s") and not answer.endswith("ss") else f"{answer}s")
        kind = re.search(r"\b(?:which|what)\s+(?:(?:kind|type|sort)s?\s+of\s+)?([a-z]{4,})\b", question.lower())
        if kind is not None and kind[1] not in answer.lower() and kind[1] not in ("were", "does", "have", "that", "will"):
            ways += [f"{answer} {kind[1]}", f"{kind[1]} {answer}"]
    return rng.choice(ways)


def other_number(answer: str, rng: random.Random) -> str | None:
    """The answer with its last number changed to one near it or alike; None where it has none."""
    found = list(re.finditer(r"\d+", answer))
    if not found:
        return None
    digits, (start, end) = found[-1][0], found[-1].span()
    ways = [
        str(int(digits) + rng.choice([-10, -2, -1, 1, 2, 10, 100])),
        digits[:-1] + str((int(digits[-1]) + rng.randint(1, 9)) % 10),
    ]
    changed = rng.choice([way for way in ways if not way.startswith("-")] or ["0"])
    return None if int(changed) == int(digits) else answer[:start] + changed + answer[end:]
