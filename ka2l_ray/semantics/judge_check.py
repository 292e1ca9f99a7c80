"""How good a judge is on one's own answers: pairs drawn for a person, and what the person's word says of the judge.

Pairs of different answers to one question fall into four strata: those that the judge calls the same and those it holds apart,
each parted into the plain ones and the borderline ones, where the letters say otherwise: neither of two merged answers stands in
the other, or one of two separated answers does. Each stratum gets an equal part of the pairs, and counts by its size again, so
that the accuracy is that of all pairs of the run. Answers are read as they were for the judge; equal ones are left out.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from ka2l_ray.reading import READING, Reading
from ka2l_ray.seeds import derive_seed
from ka2l_ray.uncertainty.calibration import wilson

STRATA = ("merged", "merged, borderline", "separated", "separated, borderline")
"""Of an interval of 95 %."""


@dataclass(frozen=True)
class AnswerPair:
    """Two answers to one question, and where the judge's verdict and their letters put them."""

    question: str
    a: str
    b: str
    stratum: str

    @property
    def merged(self) -> bool:
        """Whether the judge calls them the same."""
        return self.stratum.startswith("merged")


def answer_pairs(
    question: str,
    answers: Sequence[str],
    cluster_ids: Sequence[int],
    declines: Sequence[bool],
    reading: Reading = READING,
) -> Iterator[AnswerPair]:
    """All pairs of different answers among those that were settled. Silence and abstention are not put to the judge.

    Args:
        declines: of each settled answer: whether it is one of these.
        reading: what of an answer was compared.
    """
    settled = zip(map(reading.answer, answers[: len(cluster_ids)]), cluster_ids, declines, strict=True)
    meaning = {answer: cluster for answer, cluster, declined in settled if answer and not declined}
    for a, b in combinations(sorted(meaning), 2):
        merged = meaning[a] == meaning[b]
        plain = _holds(reading.form(a), reading.form(b)) == merged
        yield AnswerPair(question, a, b, ("merged" if merged else "separated") + ("" if plain else ", borderline"))


def _holds(a: str, b: str) -> bool:
    """Whether the words of one normal form stand in the other."""
    first, second = sorted((f" {a} ", f" {b} "), key=len)
    return bool(first.strip()) and first in second


class Draw:
    """Draws pairs out of a stream, holding no more than it may give; the same pairs whatever their order in the stream.

    Args:
        pairs: at most.
        seed: which of them.
    """

    def __init__(self, pairs: int, seed: int) -> None:
        self.pairs, self.seed = pairs, seed
        self.population = Counter[str]()
        self._least: dict[str, list[tuple[int, int, AnswerPair]]] = {name: [] for name in STRATA}

    def add(self, question_id: str, pairs: Iterable[AnswerPair]) -> None:
        for pair in pairs:
            self.population[pair.stratum] += 1
            heap, rank = self._least[pair.stratum], derive_seed(self.seed, "judge-check", question_id, pair.a, pair.b)
            entry = (-rank, self.population[pair.stratum], pair)  # the number keeps pairs themselves from being compared
            if len(heap) < self.pairs:
                heapq.heappush(heap, entry)
            elif entry > heap[0]:
                heapq.heapreplace(heap, entry)

    def drawn(self) -> list[AnswerPair]:
        """The pairs, in an order that tells nothing of their strata."""
        found: list[tuple[int, AnswerPair]] = []
        for name, share in shares({name: self.population[name] for name in STRATA}, self.pairs).items():
            found += [(-rank, pair) for rank, _, pair in sorted(self._least[name], key=lambda entry: -entry[0])[:share]]
        return [pair for _, pair in sorted(found, key=lambda entry: derive_seed("order", entry[0]))]


def shares(population: Mapping[str, int], pairs: int) -> dict[str, int]:
    """How many of each stratum: equal parts, and what a small one cannot fill goes to the others."""
    found = dict.fromkeys(population, 0)
    for _ in range(min(pairs, sum(population.values()))):
        open_ = [name for name in population if found[name] < population[name]]
        found[min(open_, key=lambda name: found[name])] += 1
    return found


@dataclass(frozen=True)
class Estimate:
    """A share, with an interval of 95 %, and the pairs behind it. NaN where there are none."""

    value: float
    low: float
    high: float
    pairs: int


@dataclass(frozen=True)
class Checked:
    """What a person's word says of the judge."""

    labelled: int
    drawn: int
    accuracy: Estimate
    """Share of all pairs of different answers on which judge and person agree."""
    false_merges: Estimate
    """Share of the pairs that the judge calls the same and the person does not."""
    false_splits: Estimate
    """Share of the pairs that the judge holds apart and the person calls the same."""
    strata: dict[str, dict[str, int]] = field(default_factory=dict)
    """Of each: its size, the pairs labelled, those on which judge and person agree."""


def check(drawn: Sequence[AnswerPair], population: Mapping[str, int], same: Mapping[int, bool]) -> Checked:
    """Accuracy of the judge.

    Args:
        population: pairs of the run in each stratum.
        same: the person's word on pairs, by their place in ``drawn``; pairs may be missing.
    """
    counts = {name: [0, 0] for name in STRATA}  # labelled, agreeing
    for place, word in same.items():
        pair = drawn[place]
        counts[pair.stratum][0] += 1
        counts[pair.stratum][1] += word == pair.merged

    def estimate(names: Sequence[str], wrong: bool = False) -> Estimate:
        parts = [(population.get(name, 0), counts[name][0], counts[name][1]) for name in names]
        return stratified([(size, n, n - k if wrong else k) for size, n, k in parts])

    merged, separated = STRATA[:2], STRATA[2:]
    return Checked(
        labelled=len(same),
        drawn=len(drawn),
        accuracy=estimate(STRATA),
        false_merges=estimate(merged, wrong=True),
        false_splits=estimate(separated, wrong=True),
        strata={
            name: {"pairs": population.get(name, 0), "labelled": counts[name][0], "agree": counts[name][1]} for name in STRATA
        },
    )


def stratified(parts: Sequence[tuple[int, int, int]]) -> Estimate:
    """Share over strata of (size, drawn, hits), each weighted by its size; a stratum of which nothing was drawn is left out.

    The interval is Wilson's, at the number of pairs of a simple draw that would have this estimate's variance; each stratum's
    variance is taken with a hit and a miss added, or a stratum without misses would claim to have none. Of one stratum it is
    Wilson's own.
    """
    parts = [part for part in parts if part[0] and part[1]]
    pairs, whole = sum(n for _, n, _ in parts), sum(size for size, _, _ in parts)
    if not parts:
        return Estimate(math.nan, math.nan, math.nan, 0)
    value = sum(size / whole * k / n for size, n, k in parts)
    softened = [(size / whole, n, (k + 1) / (n + 2)) for size, n, k in parts]
    centre = sum(weight * p for weight, _, p in softened)
    variance = sum(weight**2 * p * (1 - p) / n for weight, n, p in softened)
    low, high = wilson(value, centre * (1 - centre) / variance)
    return Estimate(value, low, high, pairs)
