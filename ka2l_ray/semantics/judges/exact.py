"""Judge ``exact``: two answers mean the same when they are equal after normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ka2l_ray.config import JudgeSettings
from ka2l_ray.questions import normalize_answer
from ka2l_ray.semantics.clustering import DIFFERENT, SAME, Pair, Verdict


class ExactJudge:
    """Two answers are equivalent when they are equal after normalisation."""

    symmetric = True

    def verdicts(self, questions: Sequence[str], pairs: Sequence[Pair]) -> list[Verdict]:
        return [SAME if normalize_answer(a) == normalize_answer(b) else DIFFERENT for a, b in pairs]


def make(settings: JudgeSettings) -> ExactJudge:
    return ExactJudge()


def identity(settings: JudgeSettings) -> dict[str, Any]:
    return {}


def holds_model(settings: JudgeSettings) -> bool:
    return False
