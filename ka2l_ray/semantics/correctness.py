"""Whether an answer is right: it is, or a judge says that it means, what one of the accepted answers says, given the question.

Exact match is right whatever the judge; only other answers are put to it. The direction is from the answer to the accepted one:
an NLI judge is asked whether the answer entails it ("Paris, the capital" says "Paris"), ``contains`` whether the answer holds it.
An answer in which there is nothing is wrong, and so is one that declines, whatever its words hold ("I don't know who sang that").
Answers of many questions go to the judge together, with one accepted answer each,
then those that are still wrong with more of theirs: few verdicts are asked for, in large batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ka2l_ray.reading import Reading
from ka2l_ray.semantics.abstention import abstains
from ka2l_ray.semantics.clustering import ENTAILMENT, Judge, Pair

MORE = 4  # accepted answers of one question in a wave, over those of the wave before


@dataclass
class Correctness:
    """Of one answer."""

    correct: bool
    """By the judge, or by exact match."""
    exact_match: bool
    judge_calls: int = 0
    cached: int = 0
    truncated: int = 0
    unparsable: int = 0


def judge_answers(
    questions: Sequence[str],
    predictions: Sequence[str],
    accepted: Sequence[Sequence[str]],
    judge: Judge | None,
    reading: Reading,
) -> list[Correctness]:
    """Correctness of one prediction a question against its accepted answers.

    Args:
        questions: (n,) texts.
        predictions: (n,) the model's words.
        accepted: (n,) lists; any of them is right.
        judge: made ``directed``; None: exact match alone.
    """
    said = [reading.answer(text) for text in predictions]
    found, waiting = [], {}
    for i, (answer, row) in enumerate(zip(said, accepted, strict=True)):
        aliases = {form: alias for alias in reading.accepted(list(row)) if (form := reading.form(alias))}
        form = reading.form(answer)
        found.append(Correctness(form in aliases, form in aliases))
        if judge is not None and form and form not in aliases and aliases and not abstains(predictions[i], questions[i]):
            waiting[i] = list(aliases.values())
    size = 1
    while waiting:
        assert judge is not None
        asked: dict[tuple[str, Pair], list[int]] = {}
        for i, aliases_left in waiting.items():
            for alias in aliases_left[:size]:
                asked.setdefault((questions[i], _pair(judge, said[i], alias)), []).append(i)
        verdicts = judge.verdicts([question for question, _ in asked], [pair for _, pair in asked])
        for rows, verdict in zip(asked.values(), verdicts, strict=True):
            count = found[rows[0]]
            count.judge_calls += not verdict.cached
            count.cached += verdict.cached
            count.truncated += verdict.truncated
            count.unparsable += verdict.unparsable
            for i in rows:
                found[i].correct |= verdict.label == ENTAILMENT
        waiting = {i: left[size:] for i, left in waiting.items() if left[size:] and not found[i].correct}
        size *= MORE
    return found


def _pair(judge: Judge, answer: str, alias: str) -> Pair:
    """As clustering asks: a symmetric judge's verdicts have one order, and one place in a cache."""
    return (alias, answer) if judge.symmetric and alias < answer else (answer, alias)
