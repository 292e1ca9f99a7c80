"""Words of any language, for the metrics that count them: scripts that put no spaces between words are read by character.

Those are Chinese characters, kana, Thai, Lao, Burmese and Khmer; a character keeps its combining marks. Korean has spaces.
"""

from __future__ import annotations

import re

_UNSPACED = (
    "\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Chinese characters, kana
    "\U00020000-\U0003ffff"
    "\u0e01-\u0e30\u0e32\u0e33\u0e3f-\u0e46\u0e81-\u0eb0\u0eb2\u0eb3\u0ebd-\u0ec6"  # Thai, Lao, without their marks
    "\u1000-\u102a\u103f\u1050-\u1055\u1780-\u17b3"  # Burmese, Khmer
)
_MARKS = (
    "\u0300-\u036f\u3099\u309a\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece"
    "\u102b-\u103e\u1056-\u1059\u17b4-\u17d3"
)
_CHARACTER = re.compile(f"[{_UNSPACED}][{_MARKS}]*")


def spaced(text: str) -> str:
    """The text with spaces around each character of a script that has none; others are left as they are."""
    return text if text.isascii() else _CHARACTER.sub(lambda character: f" {character[0]} ", text)
