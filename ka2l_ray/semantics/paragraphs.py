"""Short answers told from paragraphs: equivalence of meaning, and so semantic entropy, is of short factual answers.

Two paragraphs hardly ever say the same in every sentence, so that what is known seems unknown (Farquhar et al. split them into
claims; here they are told of, not split).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

MOST_WORDS = 40
SENTENCES = 3
SENTENCE_WORDS = 4  # fewer are an initial, an abbreviation or an item of a list
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"  # Thai to Khmer, kana, Han
_UNSPACED = re.compile(f"[{UNSPACED}]")
_END = re.compile("[.!?]+[\"'\u2019\u201d)\\]]*\\s+|[\u3002\uff01\uff1f\u061f\u0964]+|\\n+")  # of Han, Arabic and Devanagari, too


def words(text: str) -> float:
    """Words of a text; in scripts without spaces a character counts as half of one."""
    unspaced = len(_UNSPACED.findall(text))
    return unspaced / 2 + len(_UNSPACED.sub(" ", text).split())


def is_paragraph(text: str) -> bool:
    """Whether a text has more than ``MOST_WORDS`` words, or ``SENTENCES`` sentences or more."""
    return words(text) > MOST_WORDS or sum(words(part) >= SENTENCE_WORDS for part in _END.split(text)) >= SENTENCES


def mostly_paragraphs(answers: Sequence[str]) -> bool:
    """Whether more than half of the answers are paragraphs."""
    return 2 * sum(map(is_paragraph, answers)) > len(answers)
