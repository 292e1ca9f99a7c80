"""Test questions that are nearly a question of the pool: how many, and which; counted, never refused.

The rule: two questions are near-duplicates where their sets of words (characters, in scripts without spaces) share at least
``SHARED`` of all that stand in either (Jaccard). In words: of ten, one may be another. It is about text alone: in pools made from
templates two facts are often nearer than two ways to ask for one, so the count tells where to look, not what is wrong.

All pairs are found, none by chance: of questions that share so much, the rarest few words of each (as many as may be lacking, and
one) must have one in common (the prefix filter of Chaudhuri et al. 2006, Bayardo et al. 2007). Only the test set is held; a pool
question with words that no test question has is done with when they are counted, so any pool can be read through.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from ka2l_ray.words import WORD, spaced

SHARED = 0.8


class Twin(NamedTuple):
    """The pool's question that is nearest to a test question, and how near: the share of words in both."""

    question_id: str
    question: str
    shared: float


class NearDuplicates:
    """Test questions, held against those of a pool as they are read.

    Args:
        questions: (id, text) of the test set.
    """

    def __init__(self, questions: Iterable[tuple[str, str]]) -> None:
        self.words = {question_id: words(text) for question_id, text in questions}
        self.twins: dict[str, Twin] = {}
        counts = Counter(word for row in self.words.values() for word in row)
        self._rank = {word: rank for rank, (_, word) in enumerate(sorted((count, word) for word, count in counts.items()))}
        self._holders: dict[int, list[str]] = {}
        for question_id, row in self.words.items():
            for rank in sorted(self._rank[word] for word in row)[: _decisive(len(row))]:
                self._holders.setdefault(rank, []).append(question_id)

    def look(self, question_id: str, question: str) -> None:
        """One question of the pool."""
        row = words(question)
        known = sorted(rank for word in row if (rank := self._rank.get(word)) is not None)
        left = _decisive(len(row)) - (len(row) - len(known))
        for near in {holder for rank in known[: max(0, left)] for holder in self._holders.get(rank, ())}:
            shared = len(row & self.words[near]) / len(row | self.words[near])
            if shared >= SHARED and (near not in self.twins or shared > self.twins[near].shared):
                self.twins[near] = Twin(question_id, question, shared)


def words(text: str) -> frozenset[str]:
    """What is compared of a question."""
    if not text.isascii():
        text = spaced(unicodedata.normalize("NFKC", text))
    return frozenset(WORD.findall(text.lower()))


def _decisive(size: int) -> int:
    """Of so many words, the rarest so many hold one of any question that shares enough."""
    return size - math.ceil(SHARED * size - 1e-9) + 1 if size else 0


def said(found: int, of: int) -> str:
    """The count in words."""
    return f"{found:,} of {of:,} test questions share at least {SHARED:.0%} of their words with a question of the pool"
