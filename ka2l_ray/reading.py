"""How an answer is read before it is compared with another: what of its text is the answer, and that answer's normal form."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ka2l_ray.extraction import Extract, extract, extract_accepted
from ka2l_ray.normalization import Form, normalize_answer


@dataclass(frozen=True)
class Reading:
    """One for metrics, judges of meaning and of correctness, and entropy."""

    normalize: Form = "unicode"
    extract: Extract | None = None

    def answer(self, text: str) -> str:
        """What of a model's text is compared; empty where nothing is found in it."""
        return extract(text, self.extract).strip()

    def accepted(self, answers: list[str]) -> list[str]:
        """Accepted answers, read alike."""
        return [answer.strip() for answer in extract_accepted(answers, self.extract)]

    def form(self, answer: str) -> str:
        """The normal form of an answer that was read."""
        return normalize_answer(answer, self.normalize)

    def identity(self) -> dict[str, Any]:
        """For content keys."""
        return {"normalize": self.normalize, "extract": asdict(self.extract) if self.extract else None}


READING = Reading()
"""The whole text, in Unicode's normal form."""
