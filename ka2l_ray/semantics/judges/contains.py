"""Judge ``contains``: after normalisation, one answer stands in the other, word for word.

As a judge of meaning it holds in both directions ("Paris" and "Paris, France"). As a judge of correctness it is directed: the
answer must hold an alias; an answer that is a part of an alias ("A" of "Vitamin A") does not say what the alias says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ka2l_ray.config import JudgeSettings
from ka2l_ray.questions import normalize_answer
from ka2l_ray.semantics.clustering import DIFFERENT, SAME, Pair, Verdict


class ContainsJudge:
    """Whether one of two answers holds the other's words, next to each other and in their order.

    Args:
        directed: the first must hold the second's, not either the other's.
    """

    def __init__(self, *, directed: bool = False) -> None:
        self.symmetric = not directed

    def verdicts(self, questions: Sequence[str], pairs: Sequence[Pair]) -> list[Verdict]:
        return [SAME if self._holds(normalize_answer(a), normalize_answer(b)) else DIFFERENT for a, b in pairs]

    def _holds(self, a: str, b: str) -> bool:
        return holds(a, b) or (self.symmetric and holds(b, a))


def holds(text: str, part: str) -> bool:
    """Whether the words of ``part`` stand in ``text``; nothing stands in no text, and no text holds nothing."""
    return bool(part) and f" {part} " in f" {text} "


def make(settings: JudgeSettings) -> ContainsJudge:
    return ContainsJudge()


def identity(settings: JudgeSettings) -> dict[str, Any]:
    return {}


def holds_model(settings: JudgeSettings) -> bool:
    return False
