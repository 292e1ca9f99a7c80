"""Clustering answers by meaning, many questions at once, asking the judge for no verdict that is not needed.

Two answers mean the same when verdicts in both directions say so (``strict``: entailment both ways; ``lenient``: no
contradiction, and not both neutral). Such verdicts need not be transitive, so the order of comparison has a name:

* ``founder_last``: each founder, in order, claims every later answer equivalent to it, and a later founder overwrites
  (the published reference implementation of semantic entropy, Farquhar et al., Nature 630, 2024).
* ``founder_first``: an answer joins the first founder that it matches.

The clusters are those of the literal algorithms. What is spared, and counted in ``Counts``: an answer meets founders only, newest
first under ``founder_last``, and stops at its first match; the reverse direction is asked only where the forward one leaves
the matter open; no (premise, hypothesis) is asked twice; equal texts can go without a verdict; and where only the label
known/unknown is wanted, a question stops as soon as no verdict to come can change it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from itertools import combinations
from typing import Literal, NamedTuple, Protocol

from ka2l_ray.semantics.abstention import without_answer_decided
from ka2l_ray.semantics.entropy import KA2L_THRESHOLD, entropy_bounds

Policy = Literal["founder_last", "founder_first"]
Pair = tuple[str, str]
"""(premise, hypothesis)."""
Entails = Callable[[list[Pair]], list[int]]

ENTAILMENT, NEUTRAL, CONTRADICTION = 2, 1, 0


class Verdict(NamedTuple):
    """Whether a premise entails a hypothesis, and what should be known of how that was found."""

    label: int
    truncated: bool = False
    """The judge did not see all of the text."""
    unparsable: bool = False
    """The judge's words could not be read; taken as neutral."""
    cached: bool = False
    """No model was asked."""


SAME, DIFFERENT = Verdict(ENTAILMENT), Verdict(CONTRADICTION)


class Judge(Protocol):
    """Says whether one answer entails another, given their question."""

    symmetric: bool
    """A verdict holds in both directions."""

    def verdicts(self, questions: Sequence[str], pairs: Sequence[Pair]) -> list[Verdict]:
        """Verdict of each (question, (premise's answer, hypothesis' answer))."""
        ...


@dataclass
class Counts:
    """What clustering cost and what it was spared; sums over questions."""

    judge_calls: int = 0
    """(premise, hypothesis) put to the judge's model."""
    reference_calls: int | None = None
    """What the literal ``founder_last`` asks for these clusters; None where not every answer was settled."""
    cached: int = 0
    """Verdicts from the cache of earlier runs."""
    remembered: int = 0
    """Verdicts that this question, or one of the same text beside it, had asked for already."""
    equal_texts: int = 0
    """Comparisons of equal texts, which took no verdict."""
    reverses_spared: int = 0
    """Comparisons that the forward direction decided."""
    founders_spared: int = 0
    """Founders that an answer did not meet, as it had matched."""
    answers_spared: int = 0
    """Answers never compared, as the label was decided without them."""
    empty_answers: int = 0
    """Answers without a word: one meaning of their own."""
    truncated: int = 0
    """Verdicts on texts beyond the judge's length."""
    unparsable: int = 0
    """Verdicts that could not be read."""

    def __iadd__(self, other: Counts) -> Counts:
        for each in fields(self):
            setattr(self, each.name, (getattr(self, each.name) or 0) + (getattr(other, each.name) or 0))
        return self


@dataclass(frozen=True)
class Clustering:
    """Meanings of one question's answers."""

    cluster_ids: list[int]
    """Numbered by first appearance; of the leading answers only, where the label was decided by them."""
    majority_answer: str
    triples: int
    non_transitive_triples: int
    counts: Counts = field(default_factory=Counts)


def cluster(answers: list[str], entails: Entails, *, policy: Policy = "founder_last", strict: bool = True) -> list[int]:
    """Cluster ids of one question's answers, numbered by first appearance.

    Args:
        answers: (n,) texts, n >= 1.
        entails: verdicts of (premise, hypothesis) pairs: 2 entailment, 1 neutral, 0 contradiction. It sees the answers as they
            are; ``cluster_many`` puts the question before them.
        policy: which founder claims an answer, see above.
        strict: equivalent means entailment both ways; else no contradiction and not both neutral.
    """
    return cluster_many([""], [answers], entails, policy=policy, strict=strict)[0]


def cluster_many(
    questions: Sequence[str],
    answer_lists: Sequence[Sequence[str]],
    entails: Entails,
    *,
    policy: Policy = "founder_last",
    strict: bool = True,
    label_only: bool = False,
    at: float = KA2L_THRESHOLD,
    equal_texts_equivalent: bool = False,
    counts: Counts | None = None,
) -> list[list[int]]:
    """Cluster ids of each question's answers; all questions advance together, so that ``entails`` sees large batches.

    Args:
        questions: (n,) texts; ``entails`` sees ``question + " " + answer`` on both sides.
        answer_lists: (n,) lists of answers, of any length >= 1.
        label_only: settle no more answers than it takes to know whether the semantic entropy is ``at`` nats or more. The ids
            returned are then of the leading answers, and their semantic entropy lies on the same side of ``at``.
        equal_texts_equivalent: equal answers take no verdict; else the judge is asked whether a text entails itself.
        counts: added to.
    """
    judge = _Callable(entails)
    found = cluster_answers(
        questions,
        answer_lists,
        judge,
        policy=policy,
        strict=strict,
        decided_at=at if label_only else None,
        equal_texts_equivalent=equal_texts_equivalent,
    )
    for each in found:
        if counts is not None:
            counts += each.counts
    return [each.cluster_ids for each in found]


def cluster_answers(
    questions: Sequence[str],
    answer_lists: Sequence[Sequence[str]],
    judge: Judge,
    *,
    policy: Policy = "founder_last",
    strict: bool = True,
    decided_at: float | None = None,
    asked: int | None = None,
    equal_texts_equivalent: bool = True,
    audited: Collection[int] = (),
    declines: Sequence[Sequence[bool]] | None = None,
) -> list[Clustering]:
    """As ``cluster_many``, with a judge that sees question and answers apart.

    Args:
        decided_at: nats; stop a question when its label at that threshold is decided. None: settle all answers.
        asked: answers whose entropy the label is of, where not all of them were drawn.
        audited: questions of which every pair of texts is judged, to count the triples that are not transitive:
            clustering alone never asks for all three sides of one.
        declines: of each answer whether it is silence or an abstention: a question that could yet turn out to go without an
            answer is not decided. None: only the entropy decides.
    """
    questions = list(questions)  # a Series is read by place, not by its index
    answer_lists = [list(row) for row in answer_lists]
    if not all(answer_lists):
        raise ValueError("a question without answers has no clusters; leave it out")
    counts = [Counts(empty_answers=sum(map(_is_empty, row))) for row in answer_lists]
    walks = [
        _walk(
            row,
            policy,
            strict,
            None if decided_at is None else _Stop(decided_at, asked or len(row), None if declines is None else declines[i]),
            equal_texts_equivalent,
            i in audited,
            count,
        )
        for i, (row, count) in enumerate(zip(answer_lists, counts, strict=True))
    ]
    results: list[tuple[list[int], int, int] | None] = [None] * len(walks)
    known: dict[str, dict[Pair, Verdict]] = defaultdict(dict)  # by question: verdicts hold for all questions of that text
    waiting: dict[int, Pair] = {}

    def key(pair: Pair) -> Pair:
        return (pair[1], pair[0]) if judge.symmetric and pair[1] < pair[0] else pair

    def advance(i: int, verdict: Verdict | None) -> None:
        """Go on with question i until it needs a verdict that is not known yet."""
        seen = known[questions[i]]
        try:
            pair = key(next(walks[i]) if verdict is None else walks[i].send(verdict.label))
            while pair in seen:
                counts[i].remembered += 1
                pair = key(walks[i].send(seen[pair].label))
            waiting[i] = pair
        except StopIteration as done:
            results[i] = done.value

    for i in range(len(walks)):
        advance(i, None)
    while waiting:
        first: dict[tuple[str, Pair], int] = {}
        for i, pair in waiting.items():
            first.setdefault((questions[i], pair), i)
        requests = list(first)
        for (question, pair), verdict in zip(
            requests, judge.verdicts([q for q, _ in requests], [p for _, p in requests]), strict=True
        ):
            known[question][pair] = verdict
            count = counts[first[question, pair]]
            count.judge_calls += not verdict.cached
            count.cached += verdict.cached
            count.truncated += verdict.truncated
            count.unparsable += verdict.unparsable
        stopped, waiting = waiting, {}
        for i, pair in stopped.items():
            counts[i].remembered += first[questions[i], pair] != i
            advance(i, known[questions[i]][pair])

    found = []
    for row, result, count in zip(answer_lists, results, counts, strict=True):
        assert result is not None
        ids, triples, broken = result
        if len(ids) == len(row):
            count.reference_calls = sum(2 * (len(row) - 1 - ids.index(founder)) for founder in set(ids))
        found.append(Clustering(ids, majority_answer(row[: len(ids)], ids), triples, broken, count))
    return found


class _Callable:
    """A function of texts as a judge: the question stands before the answer on both sides."""

    symmetric = False

    def __init__(self, entails: Entails) -> None:
        self.entails = entails

    def verdicts(self, questions: Sequence[str], pairs: Sequence[Pair]) -> list[Verdict]:
        return [Verdict(label) for label in self.entails(joined(questions, pairs))]


def joined(questions: Sequence[str], pairs: Sequence[Pair]) -> list[Pair]:
    """(premise, hypothesis) texts: ``question + " " + answer``; the answer alone where the question is empty."""
    return [(f"{q} {a}".strip(), f"{q} {b}".strip()) for q, (a, b) in zip(questions, pairs, strict=True)]


Verdicts = Generator[Pair, int, bool]


def _walk(
    answers: Sequence[str],
    policy: Policy,
    strict: bool,
    stop: _Stop | None,
    equal_texts_equivalent: bool,
    audit: bool,
    counts: Counts,
) -> Generator[Pair, int, tuple[list[int], int, int]]:
    """Yields (premise, hypothesis) answers, receives labels; returns (cluster ids, triples, triples not transitive)."""

    def same(a: str, b: str) -> Verdicts:
        if _is_empty(a) or _is_empty(b):
            return _is_empty(a) and _is_empty(b)
        if equal_texts_equivalent and a == b:
            counts.equal_texts += 1
            return True
        return (yield from _equivalent(a, b, strict, counts))

    founders: list[str] = []
    ids: list[int] = []
    for answer in answers:
        order = range(len(founders))
        if policy == "founder_last":
            order = order[::-1]
        for met, founder in enumerate(order, 1):
            if (yield from same(founders[founder], answer)):
                counts.founders_spared += len(founders) - met
                ids.append(founder)
                break
        else:
            ids.append(len(founders))
            founders.append(answer)
        if stop is not None and label_decided(ids, *stop):
            counts.answers_spared += len(answers) - len(ids)
            break
    if not audit:
        return ids, 0, 0
    verdicts = {}
    for a, b in combinations(sorted(set(answers)), 2):
        verdicts[a, b] = yield from same(a, b)
    return ids, *transitivity(verdicts)


def _equivalent(a: str, b: str, strict: bool, counts: Counts) -> Verdicts:
    """Design section 4. The verdict on two answers is the same whichever of them is asked first."""
    forward = yield a, b
    if forward != ENTAILMENT if strict else forward == CONTRADICTION:
        counts.reverses_spared += 1
        return False
    reverse = yield b, a
    if strict:
        return reverse == ENTAILMENT
    return reverse != CONTRADICTION and (forward, reverse) != (NEUTRAL, NEUTRAL)


def _is_empty(answer: str) -> bool:
    return not answer.strip()


class _Stop(NamedTuple):
    """When a question's label is decided: arguments of ``label_decided``."""

    at: float
    k: int
    declines: Sequence[bool] | None


def label_decided(cluster_ids: Sequence[int], at: float, k: int, declines: Sequence[bool] | None = None) -> bool:
    """Whether the first answers' meanings decide the label that all ``k`` will have.

    Args:
        at: nats.
        declines: of these answers, or more, whether each is silence or an abstention, where that makes a question unknown.
    """
    least, greatest = _bounds(tuple(sorted(Counter(cluster_ids).values())), k)
    if least >= at or greatest >= at or declines is None:
        return least >= at or greatest < at
    return without_answer_decided(cluster_ids, declines[: len(cluster_ids)], k)


@lru_cache(maxsize=4096)
def _bounds(sizes: tuple[int, ...], k: int) -> tuple[float, float]:
    return entropy_bounds([i for i, size in enumerate(sizes) for _ in range(size)], k)


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
