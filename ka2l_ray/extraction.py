"""The answer within a longer text: the last number of a calculation, the letter of an option, or what a pattern finds.

Predictions and accepted answers are read alike before they are compared. Where nothing is found the text says nothing, and
nothing is never right; an accepted answer in which nothing is found stays as it is.
"""

from __future__ import annotations

import re
import string
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from ka2l_ray.last_number import last_number
from ka2l_ray.option_letter import option_letter

How = Literal["last_number", "letter", "regex"]

_THOUSANDS = re.compile("(?<=\\d)[\u00a0\u2007\u2009\u202f](?=\\d{3}(?!\\d))")  # NFKC makes plain spaces of them
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_MIXED = re.compile("(?<=\\d)(?=[¼-¾⅐-⅞])")
_DASHES = str.maketrans("⁄∕−‐‑‒–", "//-----")


@dataclass(frozen=True)
class Extract:
    """How an answer is read out of a text; ``pattern`` is of ``regex``."""

    how: How
    pattern: str = ""


def extract(text: str, how: Extract | None) -> str:
    """The answer within ``text``; all of it where ``how`` is None, empty where nothing is found.

    ``last_number`` and ``letter``: see the modules ``last_number`` and ``option_letter``. ``regex``: of the last match that says
    something, the first group that takes part in it, else all of it.
    """
    return text if how is None else _extracted(text, how)


def extract_accepted(answers: list[str], how: Extract | None) -> list[str]:
    """Accepted answers, read as predictions are; one in which nothing is found stays as it is.

    Where letters are read and one is among them, letters alone count: the option's text may read as another one (E. coli).
    """
    if how is not None and how.how == "letter":
        bare = [answer.strip(" ().").upper() for answer in answers]
        answers = [each for each in bare if len(each) == 1 and each in string.ascii_uppercase] or answers
    return [extract(answer, how) or answer for answer in answers]


@lru_cache(1 << 16)
def _extracted(text: str, how: Extract) -> str:
    if how.how == "regex":
        return _last_match(text, how.pattern)
    text = _plain(text)
    return last_number(text) if how.how == "last_number" else option_letter(text)


def _last_match(text: str, pattern: str) -> str:
    last = ""
    for found in re.finditer(pattern, text):
        value = next((group for group in found.groups() if group is not None), found[0])
        last = value if value.strip() else last
    return last


def _plain(text: str) -> str:
    """Full-width and raised characters, fractions, dashes and thousands' spaces as ASCII has them."""
    text = _RAISED.sub(lambda run: "^" + unicodedata.normalize("NFKC", run[0]), _THOUSANDS.sub(",", text))
    return unicodedata.normalize("NFKC", _MIXED.sub(" ", text)).translate(_DASHES)
