"""When two texts are the same answer, or the same question: both are brought to a normal form, and equal forms are the same.

``unicode``, for any language:

* NFKC and casefold. What cannot be seen (zero-width characters, marks of direction, soft hyphens) is left out; decimal digits of
  any script are ASCII ones. What NFKC would glue to a number is set off: 2½ is ``2 1/2``, 10² is ``10^2``, 10₂ is ``10_2``, but
  H₂O is ``h2o``, Ca²⁺ is ``ca2+``. One apostrophe and one hyphen, whatever their shape.
* Punctuation (by Unicode category) is dropped at the edges of words; brackets, quotes, commas and full stops that are not
  ASCII part words within. Kept is what makes another word of it: every symbol (C++), the # of C#, the point of .NET, % behind a
  number. Initials lose their points (U.S.A. and J. K. are ``usa`` and ``jk``), words the apostrophe between two letters.
* Numbers keep signs, points, slashes and colons. Left out are commas that part thousands (1,000; not 0,123 or 1,5) and a plus at
  the very beginning; .5 is 0.5.
* A hyphen beside a word (two letters or more) is a space: well-known, COVID-19; but not behind an article (A-ha). Between others
  it stays: -5, 3-5, x-1, and at the end of a word: the blood group A-, Cl-. Between spaces it binds its neighbours: 3 - 5 is 3-5,
  and so do + = / between theirs. An ampersand by itself is ``and``.
* In answers ``the`` is dropped, and ``a`` or ``an`` at the beginning, where it can be no name (Vitamin A): all of them only if
  something remains.

``squad`` is SQuAD's, as papers report: lower case, no ASCII punctuation, no articles. It holds -5 for 5 and C++ for C.

A form is empty only where the text shows nothing: one of articles or of punctuation alone stays what it is. Normalising twice
changes nothing. Accents and units stay (café is not cafe, 5% and $5 are not 5), and no form knows synonyms.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

Form = Literal["unicode", "squad"]

MOST_PASSES = 8
ANSWERS_KEPT = 1 << 16  # answers of one question come again and again

_ASCII_PUNCTUATION = re.compile(f"[{re.escape(string.punctuation)}]")
_SQUAD_ARTICLES = re.compile(r"\b(a|an|the)\b")

_RAISED, _LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "₀₁₂₃₄₅₆₇₈₉"
_PLAIN_DIGITS = str.maketrans(_RAISED + _LOWERED, "0123456789+-n0123456789")
_RAISED_RUN = re.compile(f"([^\\W{_RAISED}]|[)\\]}}])?([{_RAISED}]+)")
_LOWERED_RUN = re.compile(f"(\\d)?([{_LOWERED}]+)")
_THIN_THOUSANDS = re.compile("(?<=\\d)[\u00a0\u2009\u202f](?=\\d{3}(?!\\d))")

_UNSEEN = "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0"  # beside those of category Cf
_SPELLED = {
    **dict.fromkeys("`´‘’‛ʹʻʼʽˈ", "'"),
    **dict.fromkeys("−⁃‐‑‒–〜゠־᠆", "-"),
    **dict.fromkeys("—―⸺⸻", "—"),
    **dict.fromkeys("⁄∕", "/"),
    **dict.fromkeys("™℠", "®"),
    **{"٫": ".", "٬": ",", "٪": "%", "♯": "#"},
}
_WITHIN = "'.,:/-#&%@*\\_‰"  # punctuation that may belong to a word

_PLAIN = re.compile(r"(?:[^\W_]| )*")
_WORD = re.compile(r"[^\W\d_]{2,}")
_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?!,?\d)")
_APART = re.compile(r"(?<!\d)[,:]|[,:](?!\d)|[®©]|(?<!\d)—|—(?!\d)")
_SPACED_RANGE = re.compile(r"(?<=\d) *— *(?=\d)")
_APOSTROPHE_WITHIN = re.compile(r"(?<=[^\W\d_])'(?=[^\W\d_])")
_DASHES = re.compile(r"(?P<left>\w*)(?P<before> *)(?P<run>-+)(?P<after> *)(?=(?P<right>\w*)(?P<follows>[^\s\w]?))")
_BOUND = re.compile(r"(?<=\w) ([+=<>×÷^/]) (?=\w)|(?<=\d) ([*:]) (?=\d)")
_UNIT_APART = re.compile(r"(?<=\d) (?=[%‰°€£¥₹₩])|(?<=[$£€¥₹₩]) (?=\d)")
_SPACED_INITIALS = re.compile(r"(?<!\S)([^\W\d_])\. (?=[^\W\d_]\.(?!\w{2}))")
_INITIALS = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]")
_BELONGS = re.compile(r"(?:[\w.]%|\d‰|\w#|\w-|[+]-)$")
_LEADING_PLUS = re.compile(r"^\+(?=\d)")
_ARTICLES = ("a", "an", "the")
_NAMED_A = re.compile(r"[^\W\d]|and|or|to|\W+")
_BARE_POINT = re.compile(r"(?<![\w.])\.(?=\d)")


def normalize_answer(text: str, form: Form = "unicode") -> str:
    """What makes two answers the same answer."""
    return _answer(text, form)


def normalize_question(text: str, form: Form = "unicode") -> str:
    """What makes two questions the same question: as of answers, but for the articles, which count."""
    if form == "squad":
        return _words_of(_ASCII_PUNCTUATION.sub(" ", text.lower())) or _folded(text)
    return _normal(text)


@lru_cache(ANSWERS_KEPT)
def _answer(text: str, form: Form) -> str:
    if form == "squad":
        bare = _words_of(_ASCII_PUNCTUATION.sub("", text.lower()))
        return _words_of(_SQUAD_ARTICLES.sub(" ", bare)) or bare or _folded(text)
    words = _normal(text).split()
    return _LEADING_PLUS.sub("", " ".join(_without_articles(words)))


def _without_articles(words: list[str]) -> list[str]:
    if all(word in _ARTICLES for word in words):
        return words
    words = [word for word in words if word != "the"]
    while words[0] in _ARTICLES and not _NAMED_A.fullmatch(words[1]):
        words = words[1:]
    return words


def _normal(text: str) -> str:
    """The folded text in words; passes are made until one changes nothing, as a rule the second."""
    folded = _folded(text)
    found = _pass(folded)
    for _ in range(MOST_PASSES):
        if (again := _pass(_folded(found))) == found:
            break
        found = again
    return found or folded


def _pass(folded: str) -> str:
    text = _words_of(folded.translate(_PARTED))
    if _PLAIN.fullmatch(text):
        return text
    if "," in text:
        text = _THOUSANDS.sub(lambda number: number[0].replace(",", ""), text)
    text = _APART.sub(" ", _APOSTROPHE_WITHIN.sub("", _SPACED_RANGE.sub("-", text)))
    if "-" in text:
        text = _DASHES.sub(_hyphen, text)
    text = _BOUND.sub(r"\1\2", _UNIT_APART.sub("", _words_of(text)))
    return _words_of(" ".join(map(_trimmed, _SPACED_INITIALS.sub(r"\1.", text).split())))


def _hyphen(found: re.Match[str]) -> str:
    left, right, before, after = found["left"], found["right"], found["before"], found["after"]
    ends = not right and (after or not found["follows"])
    if ends and left and not before and found["run"] == "-":
        return f"{left}-{after}"
    if left in _ARTICLES and not before and not after and found["run"] == "-":
        return f"{left}-"
    beside_word = _WORD.fullmatch(left) or _WORD.fullmatch(right)
    if beside_word and before and not after:
        beside_word = _WORD.fullmatch(right)
    if ends or beside_word or found["run"] != "-":
        return f"{left} "
    return f"{left}{before if not after else ''}-"


def _trimmed(word: str) -> str:
    """A word without the punctuation at its edges."""
    if word == "&":
        return "and"
    head = len(word) - len(word.lstrip(_WITHIN.replace("-", "")))
    if head and word[head - 1] == "." and not word[:head].endswith("..") and head < len(word):
        head -= 1
    word = word[head:]
    while word and word[-1] in _WITHIN and not _BELONGS.search(word):
        word = word[:-1]
    if _INITIALS.fullmatch(word):
        return word.replace(".", "")
    return _BARE_POINT.sub("0.", word)


def _words_of(text: str) -> str:
    return " ".join(text.split())


def compatible(text: str) -> str:
    """NFKC, one spelling of apostrophes, hyphens and the like, and nothing glued to a number; case, words and spaces stay."""
    if text.isascii():
        return text
    text = _RAISED_RUN.sub(_raised, _LOWERED_RUN.sub(_lowered, _THIN_THOUSANDS.sub(",", text)))
    return unicodedata.normalize("NFKC", text.translate(_SPELLING))


def _folded(text: str) -> str:
    """NFKC, casefold, single spaces; see the module."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", compatible(text).casefold()).translate(_SPELLING)
    return _words_of(text.casefold().replace("`", "'"))


def _raised(found: re.Match[str]) -> str:
    base, run = found[1] or "", found[2].translate(_PLAIN_DIGITS)
    charge = run[-1] in "+-" and not base.isdecimal()
    return base + ("" if charge or not base else "^") + run


def _lowered(found: re.Match[str]) -> str:
    base, run = found[1] or "", found[2].translate(_PLAIN_DIGITS)
    return f"{base}_{run}" if base else run


class _Table(dict[int, str]):
    """For ``str.translate``, filled as characters come."""

    def __init__(self, of: Callable[[str], str]) -> None:
        self.of = of

    def __missing__(self, code: int) -> str:
        self[code] = found = self.of(chr(code))
        return found


def _parted(character: str) -> str:
    """A space for punctuation that belongs to no word."""
    return " " if unicodedata.category(character).startswith("P") and character not in _WITHIN + "—" else character


def _spelled(character: str) -> str:
    """What NFKC leaves as it is, or would glue to what stands beside it."""
    category = unicodedata.category(character)
    compatible = unicodedata.normalize("NFKC", character)
    if character.isascii():
        return character
    if category == "Cf" or character in _UNSEEN or 0xFE00 <= ord(character) <= 0xFE0F or 0xE0100 <= ord(character) <= 0xE01EF:
        return ""
    if category == "Nd":
        return str(unicodedata.decimal(character))
    if any(digit.isdecimal() for digit in compatible):
        return f" {compatible} ".replace("⁄", "/")
    if character in _SPELLED:
        return _SPELLED[character]
    return character


_SPELLING, _PARTED = _Table(_spelled), _Table(_parted)
