"""Judge ``exact``: two answers mean the same when they are equal after normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ka2l_ray.config import JudgePlace, JudgeSettings
from ka2l_ray.normalization import Form, normalize_answer
from ka2l_ray.semantics.clustering import DIFFERENT, SAME, Pair, Verdict

MODEL_KEY: str | None = None


class ExactJudge:
    """Two answers are equivalent when their normal forms are equal."""

    symmetric = True

    def __init__(self, normalize: Form = "unicode") -> None:
        self.normalize = normalize

    def verdicts(self, questions: Sequence[str], pairs: Sequence[Pair]) -> list[Verdict]:
        form = self.normalize
        return [SAME if normalize_answer(a, form) == normalize_answer(b, form) else DIFFERENT for a, b in pairs]


def make(settings: JudgeSettings, normalize: Form, directed: bool) -> ExactJudge:
    return ExactJudge(normalize)


def identity(settings: JudgeSettings, normalize: Form) -> dict[str, Any]:
    return {"normalize": normalize}


def place(settings: JudgeSettings) -> JudgePlace:
    return "here"
