"""When two texts are the same answer, or the same question: both are brought to a normal form, and equal forms are the same.

``unicode``, for any language:

* NFKC and casefold. What cannot be seen (zero-width characters, marks of direction, soft hyphens) is left out; decimal digits of
  any script are ASCII ones. What NFKC would glue to a number is set off: 2½ is ``2 1/2``, 10² is ``10^2``, 10₂ is ``10_2``, but
  H₂O is ``h2o``, Ca²⁺ is ``ca2+``, NO₃⁻ is ``no3-``. One apostrophe and one hyphen, whatever their shape.
* Punctuation (by Unicode category) is dropped at the edges of words; brackets, quotes, commas and full stops that are not
  ASCII part words within. Kept is what makes another word of it: every symbol (C++), the # of C#, the point of .NET, % behind a
  number, feet and inches (6′, 6″), and what makes a formula of it (``formulas``: operators, brackets beside them, factorials).
* Initials lose their points and the spaces between them (U.S.A., J. K. and J K Rowling are ``usa`` and ``jk rowling``; Ph.D. is
  ``phd``), words the apostrophe between two letters, and 1980's before its s.
* Numbers keep signs, points, slashes and colons. Left out are commas that part thousands (1,000; not 0,123 or 1,5) and a plus at
  the very beginning; .5 is 0.5.
* A hyphen beside a word (two letters or more) is a space: well-known, COVID-19; but not behind an article (A-ha). Between others
  it stays: -5, 3-5, x-1, and at the end of a word: the blood group A-, Cl-, NO3- ions. Between spaces it binds its neighbours:
  3 - 5 is 3-5, $5 - $3 is $5-$3. An ampersand is ``and``.
* A dash before a letter at the beginning of a line is a bullet, dashes before a digit at the beginning are one minus. Asterisks
  of Markdown are left out in pairs: **A** is ``a``, A* is ``a*``.
* In answers ``the`` is dropped, and ``a`` or ``an`` at the beginning, where it can be no name (Vitamin A, A minor): all of them
  only if something remains.

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

from ka2l_ray.formulas import (
    BEGINS,
    BRACKETS,
    FUNCTIONS,
    LETTER,
    PAIR,
    WORD_CHARACTER,
    bound,
    bracketed,
    exclaimed,
    listed,
    primed,
    rowed,
    signed,
    stated,
)
from ka2l_ray.words import MARKS

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
    **dict.fromkeys("`´‘’‛ʹʻʼʽˈ׳", "'"),
    **dict.fromkeys("⁃‐‑‒–〜゠־᠆", "-"),
    **dict.fromkeys("—―⸺⸻", "—"),
    **dict.fromkeys("⁄∕", "/"),
    **dict.fromkeys("™℠", "®"),
    **{"٫": ".", "٬": ",", "٪": "%", "♯": "#", "״": '"'},
}
_WITHIN = "'.,:/-#%@*\\_‰′·"  # punctuation that may belong to a word

_PLAIN = re.compile(r"(?:[^\W_]| )*")
_WORD = re.compile(rf"(?!{FUNCTIONS}){LETTER}(?:{LETTER}|[{MARKS}])+")
_BULLET = re.compile(rf"^[ \t]*(?:\*|[-–](?=[ \t]+[\"'“‘«*_`]*{LETTER}))[ \t]", re.MULTILINE)
_MINUS_RUN = re.compile(r"^([\s\"'“‘(\[*_`]*+)(?:[-−‐‑‒–—―]{2,}+|[—―])(?=[$€£]?\.?\d)")
_EMPHASIS = re.compile(r"(?P<opens>(?<![^\s(\"'“‘])\*{1,3}+(?=[^\s*=]))|(?P<closes>(?<=[^\s*])\*{1,3}+(?=[\s.,;:!?)\"'”’]|$))")
_DOTTED = re.compile("i\u0307+")  # what casefold makes of İ
_TATWEEL = re.compile(rf"(?<=(?!ـ){WORD_CHARACTER})ـ++|(?<!ـ)ـ++(?=(?!ـ){WORD_CHARACTER})")
_FEET_AND_INCHES = re.compile(r"(?<![\w.'])(\d++)' ?(\d++)(?:\"|”|'')(?!\w)")
_SPACED_LETTERS = re.compile(rf"(?<!\S)({LETTER}(?: {LETTER}(?!\S))++)(?: (?=({LETTER}{{3,4}})))?")
_NO_PRIME = re.compile(rf"(?<={LETTER}{LETTER})′+|(?<![\d′])′+(?={LETTER})")
_THOUSANDS = re.compile(rf"({PAIR})|" r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?!,?\d)")
_APART = re.compile(rf"({PAIR})|" r"(?<!\d)[,:·](?!=)|[,:·](?![\d=])|[®©]|(?<!\d)—|—(?!\d)")
_SPACED_RANGE = re.compile(r"(?<=\d) *— *(?=\d)")
_SPACED_RATIO = re.compile(r"(?<=\d) : (?=\d)")
_APOSTROPHE_WITHIN = re.compile(rf"(?<={LETTER})'(?={LETTER})|(?<=\d)'(?=s\b)")
_DASHES = re.compile(
    rf"(?<!{WORD_CHARACTER})(?P<left>{WORD_CHARACTER}*+)(?P<before> ?)(?P<run>-+)(?P<after> ?)"
    rf"(?=(?:(?P<right>{WORD_CHARACTER}++)|(?P<operand>{BEGINS}))?(?P<follows>\S?))"
)
_ION = re.compile(rf"{LETTER}{{1,2}}|\w*{LETTER}\d+")
_JOINING = ("and", "or", "to")
_UNIT_APART = re.compile(r"(?<=\d) (?=[%‰°€£¥₹₩])|(?<=[$£€¥₹₩]) (?=\d)|(?<=\d′) (?=\d)")
_SPACED_INITIALS = re.compile(r"(?<![^\s'_])([^\W\d_])\. (?=[^\W\d_]\.(?!\w{2}))")
_INITIALS = re.compile(rf"(?=(?:.*\.)?{LETTER}(?:\.|$))(?:{LETTER}{{1,2}}\.)+{LETTER}{{1,2}}")
_RUN_ON_INITIALS = re.compile(rf"(?<![\w.])((?:{LETTER}\.)+)(?={LETTER}{{3}})")
_BELONGS = re.compile(rf"[\w.]%|\d‰|{WORD_CHARACTER}[#-]|[+]-|[\w′]′")
_STARRED = re.compile(rf"{LETTER}\*")
_LEADING_PLUS = re.compile(r"^\+(?=\d)")
_ARTICLES = ("a", "an", "the")
_NAMED_A = re.compile(r"(?:[^\W\d]|and|or|to|\W+)(?: .*)?|(?:flat|sharp)(?: (?:major|minor))?|major|minor")
_KEY = re.compile("flat|sharp|major|minor")
_NAMED_THE_A = re.compile(rf"(?<!\S)the a (?={LETTER}{{2}})(?!(?:an|the|and|or|to|flat|sharp|major|minor)(?!\S))")
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
    for _ in range(MOST_PASSES):  # two words may be neighbours only where an article is left out
        found = _normal(text)
        kept = " ".join(_without_articles(_NAMED_THE_A.sub("the a-", stated(found)).split()))
        text = _LEADING_PLUS.sub("", kept)
        if kept == found:
            break
    return text


def _without_articles(words: list[str]) -> list[str]:
    if all(word in _ARTICLES for word in words):
        return words
    words = [word for word in words if word != "the"]
    while words[0] in _ARTICLES and not _NAMED_A.fullmatch(" ".join(words[1:4])):
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
    text = listed(primed(_NO_PRIME.sub("'", text)))
    text = exclaimed(bracketed(text))
    if "," in text:
        text = rowed(_THOUSANDS.sub(lambda number: number[1] or number[0].replace(",", ""), text))
    text = _SPACED_RATIO.sub(":", _SPACED_RANGE.sub("-", text))
    text = _APART.sub(lambda found: found[1] or " ", _APOSTROPHE_WITHIN.sub("", text))
    if "-" in text:
        text = _DASHES.sub(_hyphen, _words_of(text))
    text = _SPACED_INITIALS.sub(r"\1.", bound(_UNIT_APART.sub("", _words_of(text))))
    return _words_of(" ".join(map(_trimmed, _RUN_ON_INITIALS.sub(r"\1 ", text).split())))


def _hyphen(found: re.Match[str]) -> str:
    left, right, before, after = found["left"], found["right"] or "", found["before"], found["after"]
    single = found["run"] == "-"
    ends = not right and not found["operand"] and (after or not found["follows"])
    if single and left and not before:
        if ends or (after and _ION.fullmatch(left) and _WORD.fullmatch(right) and right not in _JOINING):
            return f"{left}-{after}"
        if left in _ARTICLES and not after and not _KEY.fullmatch(right):
            return f"{left}-"
    if (found["operand"] or "").startswith("-"):
        return f"{left}- "
    beside_word = _WORD.fullmatch(left) or _WORD.fullmatch(right)
    if beside_word and before and not after:
        beside_word = _WORD.fullmatch(right)
    if ends or beside_word or not single:
        return f"{left} "
    return f"{left}{before if not after else ''}-"


def _trimmed(word: str) -> str:
    """A word without the punctuation at its edges."""
    head = len(word) - len(word.lstrip(_WITHIN.replace("-", "")))
    if head and word[head - 1] == "." and not word[:head].endswith("..") and head < len(word):
        head -= 1
    word = word[head:]
    if _STARRED.fullmatch(word):
        return word
    end = len(word)
    while end and word[end - 1] in _WITHIN and not _BELONGS.fullmatch(word, max(0, end - 2), end):
        end -= 1
    word = word[:end]
    if _INITIALS.fullmatch(word):
        return word.replace(".", "")
    return _BARE_POINT.sub("0.", word)


def _words_of(text: str) -> str:
    return " ".join(text.split())


def compatible(text: str) -> str:
    """NFKC, one spelling of apostrophes, hyphens and the like, and nothing glued to a number; case, words and spaces stay."""
    return text if text.isascii() else _compatible(text).replace("−", "-")


def _compatible(text: str) -> str:
    text = _RAISED_RUN.sub(_raised, _LOWERED_RUN.sub(_lowered, _THIN_THOUSANDS.sub(",", text)))
    return unicodedata.normalize("NFKC", text.translate(_SPELLING))


def _folded(text: str) -> str:
    """NFKC, casefold, single spaces; see the module."""
    text = _MINUS_RUN.sub(r"\1-", _BULLET.sub(" ", text.replace("`", "'")))
    if not (plain := text.isascii()):
        text = _TATWEEL.sub("", _compatible(text))
    text = signed(_words_of(_FEET_AND_INCHES.sub(r"\1′\2′′", _unemphasised(text))))
    if not plain:
        text = _DOTTED.sub("i", unicodedata.normalize("NFKC", text.casefold())).translate(_SPELLING)
    text = _SPACED_LETTERS.sub(_named, text)
    return text.casefold().replace("!=", "≠")


def _unemphasised(text: str) -> str:
    """The text without Markdown's asterisks; one that closes nothing stays (the grade A*)."""
    opened: list[int] = []

    def kept(found: re.Match[str]) -> str:
        if found["opens"]:
            opened.append(len(found[0]))
            return ""
        length = len(found[0])
        while opened and length >= opened[-1]:
            length -= opened.pop()
        return "*" * length

    return _EMPHASIS.sub(kept, text) if "*" in text else text


def _named(found: re.Match[str]) -> str:
    """Initials without their spaces: J K Rowling; but not where an article may be among them, or a list ends."""
    letters, name = found[1], found[2] or ""
    article = "a" in letters.split() or (letters.startswith("A ") and name.islower())
    return found[0] if article or name in ("", *_JOINING) else f"{letters.replace(' ', '')} "


def _raised(found: re.Match[str]) -> str:
    base, run = found[1] or "", found[2].translate(_PLAIN_DIGITS)
    charge = run[-1] in "+-" and (not base.isdecimal() or len(run) == 1)
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
    if character == "&":
        return " and "
    return " " if unicodedata.category(character).startswith("P") and character not in _WITHIN + BRACKETS + "—!" else character


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
