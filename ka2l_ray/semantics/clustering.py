"""Clustering answers by meaning, many questions at once, asking the judge for no verdict that is not needed.

Verdicts need not be transitive, so the order of comparison has a name:

* ``founder_last``: each founder, in order, claims every later answer equivalent to it, and a later founder overwrites
  (the published reference implementation of semantic entropy). Comparing an answer with the founders newest first and
  stopping at the first match gives the same clusters with fewer verdicts.
* ``founder_first``: an answer joins the first founder that it matches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, Protocol

from ka2l_ray.semantics.entropy import semantic_entropy

Policy = Literal["founder_last", "founder_first"]
Pair = tuple[str, str]


class EquivalenceJudge(Protocol):
    """Says which pairs of answers mean the same, given their question. ``calls`` counts the pairs put to a model."""

    def equivalent(self, questions: Sequence[str], pairs: Sequence[Pair]) -> tuple[list[bool], list[int]]:
        """Verdict of each (question, pair), and how many model calls each one took."""
        ...


@dataclass(frozen=True)
class Clustering:
    """Meanings of one question's answers."""

    cluster_ids: list[int]
    semantic_entropy: float
    majority_answer: str
    judge_calls: int
    triples: int
    non_transitive_triples: int


def cluster(
    questions: Sequence[str],
    generations: Sequence[Sequence[str]],
    judge: EquivalenceJudge,
    policy: Policy,
    audited: Collection[int] = (),
) -> list[Clustering]:
    """Clusters the answers of each question; verdicts are asked for in waves over all questions, so that they batch.

    Args:
        questions: (n,) texts.
        generations: (n, k) answers, k >= 1, k may differ by question.
        judge: asked once for each unordered pair of distinct texts that is compared.
        policy: what to do where verdicts are not transitive.
        audited: questions of which every pair of texts is judged, to count the triples that are not transitive:
            clustering alone never asks for all three sides of one.
    """
    walks = [_assign([text.strip() for text in answers], policy) for answers in generations]
    verdicts: list[dict[Pair, bool]] = [{} for _ in walks]
    calls = [0] * len(walks)
    assigned: list[list[int] | None] = [None] * len(walks)
    waiting: dict[int, Pair] = {}

    def advance(i: int, verdict: bool | None) -> None:
        """Go on with question i until it needs a verdict that is not known yet."""
        try:
            pair = next(walks[i]) if verdict is None else walks[i].send(verdict)
            while _unordered(pair) in verdicts[i]:
                pair = walks[i].send(verdicts[i][_unordered(pair)])
            waiting[i] = pair
        except StopIteration as done:
            assigned[i] = done.value

    for i in range(len(walks)):
        advance(i, None)
    while waiting:
        asked = list(waiting.items())
        waiting.clear()
        answers, used = judge.equivalent([questions[i] for i, _ in asked], [pair for _, pair in asked])
        for (i, pair), verdict, count in zip(asked, answers, used, strict=True):
            verdicts[i][_unordered(pair)] = verdict
            calls[i] += count
            advance(i, verdict)
    open_pairs = [(i, pair) for i in audited for pair in _pairs(generations[i]) if pair not in verdicts[i]]
    if open_pairs:
        answers, used = judge.equivalent([questions[i] for i, _ in open_pairs], [pair for _, pair in open_pairs])
        for (i, pair), verdict, count in zip(open_pairs, answers, used, strict=True):
            verdicts[i][pair] = verdict
            calls[i] += count

    results = []
    for i, answers_i in enumerate(generations):
        ids = assigned[i]
        assert ids is not None
        triples, broken = transitivity(verdicts[i]) if i in audited else (0, 0)
        majority = majority_answer([text.strip() for text in answers_i], ids)
        results.append(Clustering(ids, semantic_entropy(ids), majority, calls[i], triples, broken))
    return results


def _unordered(pair: Pair) -> Pair:
    return pair if pair[0] <= pair[1] else (pair[1], pair[0])


def _pairs(answers: Sequence[str]) -> list[Pair]:
    return list(combinations(sorted({text.strip() for text in answers}), 2))


def _assign(answers: list[str], policy: Policy) -> Generator[Pair, bool, list[int]]:
    """Yields (founder's text, answer's text) to compare, receives the verdict, returns cluster ids by order of founding.

    Equal texts are equivalent without a verdict.
    """
    founders: list[str] = []
    ids: list[int] = []
    for answer in answers:
        order = range(len(founders))
        for founder in reversed(order) if policy == "founder_last" else order:
            if founders[founder] == answer or (yield (founders[founder], answer)):
                ids.append(founder)
                break
        else:
            ids.append(len(founders))
            founders.append(answer)
    return ids


def majority_answer(answers: Sequence[str], cluster_ids: Sequence[int]) -> str:
    """Commonest text within the largest cluster; ties go to the one seen first."""
    largest = Counter(cluster_ids).most_common(1)[0][0]
    members = [text for text, cluster_id in zip(answers, cluster_ids, strict=True) if cluster_id == largest]
    return Counter(members).most_common(1)[0][0]


def transitivity(verdicts: dict[Pair, bool]) -> tuple[int, int]:
    """(triples of texts with all three verdicts known, those of them with exactly two equivalences)."""
    known = {frozenset(pair): verdict for pair, verdict in verdicts.items()}
    texts = sorted({text for pair in known for text in pair})
    triples = broken = 0
    for triple in combinations(texts, 3):
        sides = [known.get(frozenset(side)) for side in combinations(triple, 2)]
        if None not in sides:
            triples += 1
            broken += sum(map(bool, sides)) == 2
    return triples, broken
