"""Judge ``contains``: after normalisation, one answer stands in the other, word for word.

As a judge of meaning it holds in both directions ("Paris" and "Paris, France"). As a judge of correctness it is directed: the
answer must hold an alias; an answer that is a part of an alias ("A" of "Vitamin A") does not say what the alias says.

What does not stand in a text as written may stand in it without its possessives ("John Locke's ideas" holds "John Locke") and
slashes between words ("electricity/power"; not km/h, 1/2). No negation is read: "not Paris" holds "Paris".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ka2l_ray.config import JudgePlace, JudgeSettings
from ka2l_ray.normalization import Form, normalize_answer
from ka2l_ray.semantics.clustering import DIFFERENT, SAME, Pair, Verdict

# Thai, Lao, Myanmar, Khmer, kana, Han
UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")

POSSESSIVE = re.compile(r"(?<=[^\W\d_])['\u2019]s\b", re.IGNORECASE)
SLASH = re.compile(r"(?<=[^\W\d_]{3})/(?=[^\W\d_]{3})")

FUNCTION_WORDS = frozenset(
    {"a", "an", "the", "i", "it", "he", "she", "we", "you", "they", "who", "what", "this", "that"}
    | {"no", "yes", "not", "one", "in", "on", "to", "of", "and", "or", "is", "was"}
)
"""Words that any sentence may hold: as an answer (The Who, "no", blood group A) one begins or ends it."""

MODEL_KEY: str | None = None


class ContainsJudge:
    """Whether one of two answers holds the other's words, next to each other and in their order.

    Args:
        directed: the first must hold the second's, not either the other's.
    """

    def __init__(self, normalize: Form = "unicode", *, directed: bool = False) -> None:
        self.normalize = normalize
        self.symmetric = not directed

    def verdicts(self, questions: Sequence[str], pairs: Sequence[Pair]) -> list[Verdict]:
        return [SAME if self._says(a, b) or (self.symmetric and self._says(b, a)) else DIFFERENT for a, b in pairs]

    def _says(self, text: str, part: str) -> bool:
        form = normalize_answer(part, self.normalize)
        if holds(normalize_answer(text, self.normalize), form):
            return True
        loosened = SLASH.sub(" ", POSSESSIVE.sub("", text))
        return loosened != text and holds(normalize_answer(loosened, self.normalize), form)


def holds(text: str, part: str) -> bool:
    """Whether the words of ``part`` stand in ``text``, both in their normal forms; nothing stands in no text.

    Words end at a space; in scripts that are written without spaces a part may begin and end anywhere.
    """
    at = text.find(part) if part else -1
    while at >= 0:
        end = at + len(part)
        within = at and end < len(text) and part in FUNCTION_WORDS
        if not within and _apart(text[at - 1 : at] if at else "", part[0]) and _apart(part[-1], text[end : end + 1]):
            return True
        at = text.find(part, at + 1)
    return False


def _apart(left: str, right: str) -> bool:
    """Whether a word may end between two neighbouring characters, or at an end of the text."""
    return not left.strip() or not right.strip() or bool(UNSPACED.match(left) or UNSPACED.match(right))


def make(settings: JudgeSettings, normalize: Form, directed: bool) -> ContainsJudge:
    return ContainsJudge(normalize, directed=directed)


def identity(settings: JudgeSettings, normalize: Form) -> dict[str, Any]:
    return {"normalize": normalize}


def place(settings: JudgeSettings) -> JudgePlace:
    return "here"
