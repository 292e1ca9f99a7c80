"""The last number within an answer, written so that equal numbers are equal texts.

Without currency, unit and thousands' separators: 18.00 is 18, 1/2 is 0.5, 2 1/2 and 2-1/2 are 2.5, 10^2 and 1e2 are 100, and
1.5 x 10^3 is 1500. A hyphen between two numbers is no sign, and nothing is computed: of 2 x 1000 the last number is 1000. A comma
with two digits behind it, or one before a unit, is a decimal one (5,50; 12,5 %), unless it stands in a longer row of numbers or a
pair in brackets. Two groups of three digits or more, behind points or spaces, are thousands. Behind a letter a digit belongs
to a name (B12), but not in scripts that do not part words from numbers by spaces (答案是12). More than a hundred digits are
no number.
"""

from __future__ import annotations

import re
from fractions import Fraction

MOST_DIGITS = 100

_SPACELESS = r"\u0590-\u1dff\u2e80-\U0010ffff"
_NO_NAME = rf"(?<![^\W\d_{_SPACELESS}])(?<![\d_])"  # behind a Latin, Greek or Cyrillic letter a digit belongs to a name
_COUNTED = rf"\d(?:(?!\d)[{_SPACELESS}])"
_SIGNED = (  # no hyphen: not 3-5, nor 10月-12月
    rf"(?:(?<![\w)\]%])|(?<=[是为為于於得は])"
    rf"|(?<=[{_SPACELESS}])(?<!\d)(?<!{_COUNTED})(?<!{_COUNTED}[{_SPACELESS}])(?<!{_COUNTED}[{_SPACELESS}]{{2}}))"
)
_THOUSANDS = re.compile(
    rf"{_NO_NAME}(?<![.,/])(?<!\d )[1-9]\d{{0,2}}"
    r"(?:(?:\.\d{3}){2,}(?!\.?\d)|(?: \d{3}){2,}(?! ?\d)| 0\d\d(?! ?\d))"  # 000 is no number of its own
)
_TOO_LONG = re.compile(rf"\d{{{MOST_DIGITS + 1},}}(?:\.\d*)?|\d*\.\d{{{MOST_DIGITS + 1},}}|\d{{1,3}}(?:,\d{{3}}){{34,}}")
_LATEX_COMMA = re.compile(r"(?<=\d)(?:\{,\}|,?\\[!,;])(?=\d{3}(?!\d))")
_FRAC = re.compile(r"(?P<whole>(?<=\d) ?)?\\[dt]?frac ?(?:\{ ?(?P<sign>-?) ?([\d.,]+) ?\}|(\d)) ?(?:\{ ?(-?\d+) ?\}|(\d))")
_CURRENCY = re.compile(
    rf"(?<![^\W\d_{_SPACELESS}])(?:US\$|USD|EUR|GBP|INR|JPY|CNY|RMB|CAD|AUD|CHF|Rs\.?|₨) ?(?=[-+]?\.?\d)", re.IGNORECASE
)
_DATE = re.compile(r"(?<![\d.])\d+(?:/\d+){2,}")
_DECIMAL_COMMA = re.compile(r"(?<![\d.,(])(\d+|\d{1,3}(?:\.\d{3})+),(\d{2})(?![\d)]|[.,]\d)")
_UNIT = (
    r"(?:[%‰°€£¥]|(?:percent|per cent|prozent|procent|por ciento|pour cent|euros?|EUR|USD|Mio|Mrd|mil\w+|[kcdmµn]?m[23]?|[kmµ]?g"
    r"|[cdm]?l|m?s|min|h|t|[kMGT]?Hz|[kMG]?Wh?|k?J|k?cal|k?V|[мкс]?м|к?г|л|руб\w*|процент\w*)(?![\w']))"
)
_TENTHS = re.compile(rf"(?<![\d.,])(\d+),(\d\d?)(?= ?{_UNIT})", re.IGNORECASE)
_QUOTIENT = re.compile(
    rf"(?:{_SIGNED}(?P<sign>-))?{_NO_NAME}(?<![)\].^])(?P<above>\( ?-? ?\d+(?:\.\d+)? ?\)|\d+(?:\.\d+)?)"
    r" ?/ ?(?P<below>\( ?-? ?\d+ ?\)|-?\d+)(?!\.?\d)"
)
_SPACED_SIGN = re.compile(r"(?:^|[=:(是为為于於得は]|\b(?:is|are|was|equals?)) ?(?:- |— ?)(?=[\d.$£€¥₹])", re.IGNORECASE)
_NUMBER = re.compile(
    rf"""(?:{_SIGNED}(?P<sign>[-+]))?(?:[$£€¥₹][ ]?)?(?:(?<=[$£€¥₹])(?P<behind>-))?{_NO_NAME}(?<![.^])
    (?:(?P<whole>\d+)(?:[ ]|-)(?=\d+[ ]?/[ ]?\d))?
    (?P<number>\d{{1,2}}(?:,\d{{2}}){{1,5}},\d{{3}}(?!,?\d)|\d{{1,3}}(?:,\d{{3}})+(?!,?\d)(?:\.\d+)?|\d+(?:\.\d+)?|(?<!\d)\.\d+)
    (?:[ ]?/[ ]?(?P<below>0*[1-9]\d*)(?!\d|\.\d|[ ]?/[ ]?\d))?
    (?:[ ]?(?:[x×*·]|\\times|\\cdot)[ ]?10\^\{{?(?P<ten>[-+]?\d{{1,3}})(?!\d)\}}?
      |e(?P<e>[-+]?\d{{1,3}})(?![^\W{_SPACELESS}]|\d)|\^\{{?(?P<power>[-+]?\d{{1,3}})(?!\d)\}}?)?""",
    re.VERBOSE | re.IGNORECASE,
)


def last_number(text: str) -> str:
    """As a decimal where it ends, else as a fraction in lowest terms; empty where there is none. Linear in the text's length."""
    values = map(_value, reversed(list(_NUMBER.finditer(_as_ascii(text)))))
    return next((_written(value) for value in values if value is not None), "")


def _as_ascii(text: str) -> str:
    """Numbers in one notation."""
    text = _THOUSANDS.sub(lambda number: re.sub("[ .]", "", number[0]), re.sub(r"[^\S\n]+", " ", text))
    text = _TOO_LONG.sub("…", _LATEX_COMMA.sub(",", text))
    text = _CURRENCY.sub("$", _FRAC.sub(_quotient, text))
    text = _DATE.sub(lambda date: date[0].replace("/", ", "), text)
    text = _DECIMAL_COMMA.sub(lambda number: f"{number[1].replace('.', '')}.{number[2]}", text)
    text = _QUOTIENT.sub(_with_one_sign, _TENTHS.sub(r"\1.\2", text))
    return _SPACED_SIGN.sub(lambda sign: sign[0].rstrip("-— ") + " -", text)


def _quotient(found: re.Match[str]) -> str:
    above, below = found[3] or found[4], found[5] or found[6]
    return f"{'' if found['whole'] is None else ' '}{found['sign'] or ''}{above.replace(',', '')}/{below}"


def _with_one_sign(found: re.Match[str]) -> str:
    above, below = (re.sub("[() ]", "", found[name]) for name in ("above", "below"))
    minus = [found["sign"] or "", above[0], below[0]].count("-") % 2
    return f"{'-' if minus else ''}{above.lstrip('-')}/{below.lstrip('-')}"


def _value(found: re.Match[str]) -> Fraction | None:
    """None where it has too many digits, or is divided by zero."""
    number, below = Fraction(found["number"].replace(",", "")), int(found["below"] or 1)
    whole, power, ten = (int(found[name] or 0) for name in ("whole", "power", "ten"))
    power, ten = power if found["power"] else 1, ten or int(found["e"] or 0)
    if abs(ten) > MOST_DIGITS or abs(power) * len(found["number"]) > MOST_DIGITS or (power < 0 and not number):
        return None
    value = number / below
    if whole and value < 1:  # else it is no mixed number: 10-3/2
        value += whole
    value = value**power * Fraction(10) ** ten
    if max(abs(value.numerator), value.denominator) >= 10**MOST_DIGITS:
        return None
    return -value if "-" in (found["sign"], found["behind"]) else value


def _written(number: Fraction) -> str:
    places, below = 0, number.denominator
    while below % 10 == 0 or below % 2 == 0 or below % 5 == 0:
        below //= 10 if below % 10 == 0 else 2 if below % 2 == 0 else 5
        places += 1
    if below != 1 or places > MOST_DIGITS:
        return f"{number.numerator}/{number.denominator}"
    digits = str(abs(int(number * 10**places))).rjust(places + 1, "0")
    sign = "-" if number < 0 else ""
    return sign + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)
