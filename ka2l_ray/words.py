"""Words of any language, for the metrics that count them: scripts that put no spaces between words are read by character.

Those are Chinese characters, kana, Thai, Lao, Burmese and Khmer; a character keeps its combining marks. Korean has spaces.
"""

from __future__ import annotations

import re
import unicodedata

_UNSPACED = (
    "\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Chinese characters, kana
    "\U00020000-\U0003ffff"
    "\u0e01-\u0e30\u0e32\u0e33\u0e3f-\u0e46\u0e81-\u0eb0\u0eb2\u0eb3\u0ebd-\u0ec6"  # Thai, Lao, without their marks
    "\u1000-\u102a\u103f\u1050-\u1055\u1780-\u17b3"  # Burmese, Khmer
)


def _marks() -> str:
    """Combining marks (of the basic plane), as the inside of a regular expression's class."""
    codes = [code for code in range(0x10000) if unicodedata.category(chr(code)).startswith("M")]
    begins = [code for code in codes if unicodedata.category(chr(code - 1))[0] != "M"]
    ends = [code for code in codes if unicodedata.category(chr(code + 1))[0] != "M"]
    return "".join(f"{chr(begin)}-{chr(end)}" for begin, end in zip(begins, ends, strict=True))


MARKS = _marks()
_CHARACTER = re.compile(f"[{_UNSPACED}][{MARKS}]*")
WORD = re.compile(f"[\\w{MARKS}\u200c\u200d]+")  # joiners are no ends


def spaced(text: str) -> str:
    """The text with spaces around each character of a script that has none; others are left as they are."""
    return text if text.isascii() else _CHARACTER.sub(lambda character: f" {character[0]} ", text)
