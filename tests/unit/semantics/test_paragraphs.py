"""Short answers and paragraphs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ka2l_ray.semantics.paragraphs import is_paragraph, mostly_paragraphs, words

SHORT = [
    "",
    "Paris",
    "J. R. R. Tolkien, of St. John's, Oxford",
    "The U.S. Army Corps of Engineers, Washington, D.C.",
    "Paris is the capital of France. It lies on the Seine.",
    "Paris. Lyon. Marseille. Nice.",
    "3.5 x 10. 7 = 2",
    "法国的首都是巴黎。",
]
LONG = [
    "word " * 41,
    "Paris is the capital of France. It lies on the river Seine. It has two million people.",
    "First we add three and four.\nThat gives us seven apples.\nThen we take one apple away.",
    "法国的首都是巴黎和里昂。它位于塞纳河畔的北部。那里有两百万居民和许多游客。",
    "巴" * 81,
]


@pytest.mark.parametrize("text", SHORT)
def test_short_answers_are_no_paragraphs(text: str) -> None:
    assert not is_paragraph(text)


@pytest.mark.parametrize("text", LONG)
def test_many_words_or_several_sentences_are(text: str) -> None:
    assert is_paragraph(text)


def test_half_of_the_answers_are_not_most_of_them() -> None:
    assert not mostly_paragraphs([LONG[0], "Paris"])
    assert mostly_paragraphs([LONG[0], "Paris", LONG[1]])
    assert not mostly_paragraphs([])


def test_words_of_a_script_without_spaces_are_half_its_characters() -> None:
    assert words("two words") == 2
    assert words("巴黎 Paris") == 2


@pytest.mark.shared
@pytest.mark.parametrize(
    ("file", "paragraphs"),
    [
        ("gen_triviaqa_10x", False),
        ("gen_triviaqa_qwen25_3b_10x", False),
        ("gen_wikibio_selfcheck", True),
        ("gen_gsm8k_gpt3", True),
    ],
)
def test_real_answers(shared_data: Path, file: str, paragraphs: bool) -> None:
    rows = [json.loads(line)["generations"] for line in (shared_data / f"{file}.jsonl").read_text().splitlines()]
    assert (2 * sum(map(mostly_paragraphs, rows)) > len(rows)) is paragraphs
