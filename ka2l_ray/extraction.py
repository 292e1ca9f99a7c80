"""The answer within a longer text: the last number of a calculation, the letter of an option, or what a pattern finds.

Predictions and accepted answers are read alike before they are compared. Where nothing is found the text says nothing, and
nothing is never right; an accepted answer in which nothing is found stays as it is.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal

How = Literal["last_number", "letter", "regex"]

_FRAC = re.compile(r"\\[dt]?frac\s*\{(\d+)\}\s*\{(\d+)\}")
_NUMBER = re.compile(
    r"""(?:(?<![\w)\]%])(?P<sign>[-+]))?(?:[$£€¥₹][ ]?)?(?<![\w.^])
    (?:(?P<whole>\d+)[ ]+(?=\d+/\d))?
    (?P<number>\d{1,3}(?:,\d{3})+(?!,?\d)(?:\.\d+)?|\d+(?:\.\d+)?|(?<!\d)\.\d+)
    (?:/(?P<below>0*[1-9]\d*)(?![\d./]*\d))?
    (?:\s*(?:[x×*·]|\\times)\s*10\^?\{?(?P<ten>[-+]?\d{1,3})(?!\d)\}?|e(?P<e>[-+]?\d{1,3})(?!\w)|\^\{?(?P<power>\d{1,2})(?!\d)\}?)?""",
    re.VERBOSE | re.IGNORECASE,
)
_SPACED_SIGN = re.compile(r"(?:^|(?<==))\s*-\s+(?=[\d.$£€¥₹])")
_LETTER = r"[*_(\[{'\"`$]*\\?(?:text|boxed|mathrm)?[({\[]*([A-Ja-j])(?![\w'’])"
_SAID = re.compile(
    rf"(?:answer|option|choice)(?:\s+(?:is|would be|should be))?\s*[:=]?\s*(?:option|choice|letter)?\s*{_LETTER}", re.I
)
_ENCLOSED = re.compile(r"[(\[]([A-J])[)\]]|\*\*([A-J])\*\*|\\boxed\{(?:\\text\{)?\(?([A-J])\)?\}")
_OPENS = re.compile(rf"^\s*{_LETTER}(?:\s*$|[*_)\]}}'\"`$]*\s*[).:,;\]*\n]|\s+[-–—]\s)")

_GOES_ON = re.compile(r"(?:[a-j]|A|I)\s+(?!because|since|as|and|is|for)[a-z]")  # an article, a pronoun


@dataclass(frozen=True)
class Extract:
    """How an answer is read out of a text; ``pattern`` is of ``regex``: its first group where it has one, its last match."""

    how: How
    pattern: str = ""


def extract(text: str, how: Extract | None) -> str:
    """The answer within ``text``; all of it where ``how`` is None, empty where nothing is found.

    ``last_number``: without currency, unit and thousands' commas, equal numbers alike (18.00 is 18, 1/2 is 0.5, 2 1/2 is 2.5,
    10² and 1e2 are 100); a hyphen between two numbers is no sign. ``letter``: A to J, as a capital: the last that is said to be
    the answer, else the one that the text is or opens with (B, (b), **B.**, C) Paris), else the last in brackets; an article and
    a word's first letter are none.
    """
    return text if how is None else _extracted(text, how)


def extract_accepted(answers: list[str], how: Extract | None) -> list[str]:
    """Accepted answers, read as predictions are; one in which nothing is found stays as it is."""
    return [extract(answer, how) or answer for answer in answers]


@lru_cache(1 << 16)
def _extracted(text: str, how: Extract) -> str:
    if how.how == "regex":
        found = list(re.finditer(how.pattern, text))
        return "" if not found else (found[-1][1] if found[-1].re.groups else found[-1][0]) or ""
    text = _plain(text)
    return _last_number(text) if how.how == "last_number" else _letter(text)


def _plain(text: str) -> str:
    """Full-width and raised characters, fractions and dashes as ASCII has them."""
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda run: "^" + unicodedata.normalize("NFKC", run[0]), text)
    text = re.sub("[¼-¾⅐-⅞]", lambda sign: " " + unicodedata.normalize("NFKC", sign[0]), text)
    return unicodedata.normalize("NFKC", text).translate(str.maketrans("⁄∕−‐‑–", "//----"))


def _last_number(text: str) -> str:
    found = list(_NUMBER.finditer(_SPACED_SIGN.sub(" -", _FRAC.sub(r" \1/\2", text))))
    return _written(_value(found[-1])) if found else ""


def _value(found: re.Match[str]) -> Fraction:
    number = Fraction(found["number"].replace(",", "")) / int(found["below"] or 1) + int(found["whole"] or 0)
    number = number ** int(found["power"] or 1) * Fraction(10) ** int(found["ten"] or found["e"] or 0)
    return -number if found["sign"] == "-" else number


def _written(number: Fraction) -> str:
    """As a decimal where it has an end, else as a fraction in lowest terms."""
    places, below = 0, number.denominator
    while below % 10 == 0 or below % 2 == 0 or below % 5 == 0:
        below //= 10 if below % 10 == 0 else 2 if below % 2 == 0 else 5
        places += 1
    if below != 1:
        return f"{number.numerator}/{number.denominator}"
    digits = str(abs(int(number * 10**places))).rjust(places + 1, "0")
    sign = "-" if number < 0 else ""
    return sign + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)


def _letter(text: str) -> str:
    said = [found[1].upper() for found in _SAID.finditer(text) if not _GOES_ON.match(text, found.start(1))]
    if said:
        return said[-1]
    if opens := _OPENS.match(text):
        return opens[1].upper()
    enclosed = [next(filter(None, found.groups())) for found in _ENCLOSED.finditer(text)]
    return enclosed[-1] if enclosed else ""
