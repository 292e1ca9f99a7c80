"""What normal forms keep of a formula, where prose has punctuation: operators, brackets beside them, factorials, derivatives.

* An operator between spaces binds its neighbours: x * 2 is ``x*2``. (A hyphen has rules of its own, in ``normalization``.)
* Brackets stay in pairs, and only beside an operator: (a+b)/2, but not Iron(III), f(x) or Paris (France). A hyphen is an operator
  where neither neighbour is a word of two letters or more; (R)-3 is a formula, (AFP) - Paris is not.
* ``!`` stays behind a number, a single letter or a bracket that ends in one (5!, n!, (n-1)!), but not where an answer's
  sentence ends ("It was 1945!"), and before a word (!x). ``!=`` is ``≠``, so 5! = 120 keeps its spaces.
* A minus before a symbol of two letters or more, where a hyphen would be dropped, is ``−`` (U+2212): where it is written so,
  behind a relation, an operator or an opening bracket (F = -kx, e^(-at)), at the beginning (-theta, -mgh; not -ase), and between
  short symbols (ad - bc). Without spaces, a - between two such symbols is a hyphen.
* Commas between numbers in brackets part no thousands, but a list: (4,1), (255, 255, 255). A pair keeps its brackets: [0,1]
  is not (0,1). A row of three or more loses its commas: 1,2,3 is ``1 2 3``.
* An apostrophe behind a single letter is a prime where a bracket or an operator follows: f'(2), y' = 3.
"""

from __future__ import annotations

import re

from ka2l_ray.words import MARKS

LETTER = r"[^\W\d_]"
WORD_CHARACTER = rf"[\w{MARKS}]"
FUNCTIONS = r"(?:sin|cos|tan|log|ln|exp|sqrt|max|min|lim)(?![\w])"  # words that are none beside a hyphen
BRACKETS = "()[]{}"
BEGINS = r"-?(?:\.\d|[^\s.,:'/*\\@_%#-])"  # an operand

_ENDS = r"[^\s.,:'/*\\@_-]"
_OPERATOR = r"(?:(?!-)[-−+*/\\%^=<>×÷≠≤≥]{1,3}|:=)"
_WORD = rf"{LETTER}[{MARKS}]*{LETTER}"
_NO_WORD = rf"(?: ?(?!{_WORD})| ?{FUNCTIONS})"
_LONE = rf"(?<!{WORD_CHARACTER}){LETTER}"

_SPACED = re.compile(rf"(?<={_ENDS}) (?!(?<=! )=)({_OPERATOR}) (?={BEGINS})")
_BRACKET = re.compile(r"[()\[\]{}]")
_BEFORE = re.compile(rf"{_ENDS}(?:{_OPERATOR}| {_OPERATOR} )$|(?:^|[^\w)\]}}])!$")
_BEHIND = re.compile(rf"(?:{_OPERATOR}| {_OPERATOR} )(?={BEGINS})")
_MINUS_BEFORE = re.compile(rf"(?<!{LETTER}{LETTER})(?:-| - |^- )$")
_MINUS_BEHIND = re.compile(rf"(?:-| - )(?={BEGINS}){_NO_WORD}")
_BEGINS_NO_WORD = re.compile(_NO_WORD)
_ENDS_IN_WORD = re.compile(rf"{_WORD}$")
_ENDS_IN_ONE = re.compile(rf"(?:\d|(?:^|[\W\d]){LETTER}) ?$")
_SPACE_WITHIN = re.compile(r"(?<=[(\[{]) | (?=[)\]}])")
_NO_SPACE = re.compile(r"(?<=[\w)\]}])(?=[(\[{])|(?<=[)\]}])(?=\w)")
_EXCLAIMED = re.compile(rf"(\d!+|{_LONE}!+(?!{LETTER})|[)\]}}]!+|(?<![^\s(\[{{+*/^=<>≠-])!(?=[\w(\[{{]))|!+")
_PRIMED = re.compile(rf"(?<!')({_LONE})('+)(?=\(| ?[=+*/^])")
_IN_PROSE = re.compile(rf"(?<!{LETTER})(?!{FUNCTIONS}){_WORD}")
_WINDOW = 12

_SYMBOL = rf"(?!{FUNCTIONS})(?={LETTER}[{MARKS}]*{LETTER})"
_GREEK = "(?:alpha|beta|gamma|delta|epsilon|theta|lambda|sigma|omega|phi|psi|rho|tau|eta|mu|nu|xi|pi)"
_FORMULA = re.compile(r"[=<>≠≤≥≈^√∫∑]|\w(?:[+*×÷]| [+*×÷] )[\w(]")
_SIGN = re.compile(rf"(?:(?:(?<=[=<>≠≤≥≈] )|^)− ?|(?<=[=<>≠≤≥≈] )- ?|(?<=[=≠≤≥≈+*/^×÷(\[{{])-|(?<=[+*/×÷] )-){_SYMBOL}")
_NO_SIGN = re.compile(rf"−(?! ?{_SYMBOL})")
_FIRST_SIGN = re.compile(rf"^([\"'“‘]*)-(?={_GREEK}(?!\w)|[b-df-hj-np-tv-xz]{{2,4}}$)")
_SIGN_OF_FORMULA = re.compile(rf"^([\"'“‘]*)-{_SYMBOL}")
_NO_SYMBOL = "(?!(?:an|as|by|do|go|he|if|in|is|it|me|my|no|of|on|or|so|to|up|us|we|and|are|but|for|its|not|the|was|who)(?!\\w))"
_DIFFERENCE = re.compile(
    rf"(?:(?<=[\d)\]}}])|(?<=(?<!{LETTER})[a-z]{{2}})|(?<=(?<!{LETTER}){LETTER})) - "
    rf"{_NO_SYMBOL}(?=[a-z]{{2}}(?!\w))"
)
_DIFFERENCE_OF_FORMULA = re.compile(rf"(?<=[\w)\]}}]) - {_NO_SYMBOL}(?=[a-z]{{2,3}}(?!\w))")
_NUMBER = r"-?(?:(?!0\d)\d++(?:[./]\d++)?+|\.\d++|∞)"
_LISTED = re.compile(rf"([(\[{{]) ?({_NUMBER}(?: ?, ?{_NUMBER})++) ?([)\]}}])")
_ROW = re.compile(rf"(?<![\w.,-]){_NUMBER}(?:,{_NUMBER}){{2,}}+(?!,?\d)")
PAIR = rf"[(\[{{]{_NUMBER},{_NUMBER}[)\]}}]"
_PAIR = re.compile(PAIR)


def primed(text: str) -> str:
    """The text with primes for the apostrophes of derivatives."""
    return _PRIMED.sub(lambda found: found[1] + "′" * len(found[2]), text)


def bound(text: str) -> str:
    """The text without the spaces around operators."""
    return _SPACED.sub(r"\1", text)


def exclaimed(text: str) -> str:
    """The text without exclamation marks that are no operators; of the brackets only those of formulas are there."""
    return _EXCLAIMED.sub(lambda found: found[1] or " ", text) if "!" in text else text


def stated(text: str) -> str:
    """An answer without the exclamation marks that end a sentence."""
    return text.rstrip("! ") if text.endswith("!") and _IN_PROSE.search(text) else text


def signed(text: str) -> str:
    """The text, its case still as written, with ``−`` for each minus before a symbol, and ``-`` for every other."""
    if "-" in text:
        related = _FORMULA.search(text)
        text = (_SIGN_OF_FORMULA if related else _FIRST_SIGN).sub(r"\1−", text)
        text = (_DIFFERENCE_OF_FORMULA if related else _DIFFERENCE).sub(" − ", text)
    return _NO_SIGN.sub("-", _SIGN.sub("−", text))


def listed(text: str) -> str:
    """The text with lists of numbers in brackets spelt alike: (4,1), but (1 2 3)."""
    return _LISTED.sub(_list, text)


def _list(found: re.Match[str]) -> str:
    numbers = [number.strip() for number in found[2].split(",")]
    return found[1] + ("," if len(numbers) == 2 else " ").join(numbers) + found[3]


def rowed(text: str) -> str:
    """The text without the commas of rows of numbers."""
    return _ROW.sub(lambda found: found[0].replace(",", " "), text)


def bracketed(text: str) -> str:
    """The text with spaces for its brackets, but for those of formulas."""
    characters, opened, kept = list(text), [], False
    for found in _BRACKET.finditer(text):
        place = found.start()
        characters[place] = " "
        if found[0] in "([{":
            opened.append(place)
        elif opened:
            begin = opened.pop()
            if _operated(text, begin, place):
                characters[begin], characters[place], kept = text[begin], found[0], True
    text = " ".join("".join(characters).split())
    return _NO_SPACE.sub(" ", _SPACE_WITHIN.sub("", text)) if kept else text


def _operated(text: str, begin: int, end: int) -> bool:
    """Whether an operator stands before or behind the brackets at two places."""
    before, first = text[max(0, begin - 6) : begin], text[begin + 1 : begin + _WINDOW]
    last, behind = text[max(0, end - 6) : end], text[end + 1 : end + _WINDOW]
    return bool(
        _PAIR.fullmatch(text, begin, end + 1)
        or _BEFORE.search(before)
        or _BEHIND.match(behind)
        or (_MINUS_BEFORE.search(before) and _BEGINS_NO_WORD.match(first))
        or (_MINUS_BEHIND.match(behind) and not _ENDS_IN_WORD.search(last))
        or (behind.startswith("!") and _ENDS_IN_ONE.search(last))
    )
