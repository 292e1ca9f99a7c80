"""Near-duplicates of a test set in a pool: the rule by example, and every pair that comparing all with all finds."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ka2l_ray.near_duplicates import SHARED, NearDuplicates, said, words


def found(test: list[str], pool: list[str]) -> dict[str, str]:
    near = NearDuplicates((str(i), text) for i, text in enumerate(test))
    for i, text in enumerate(pool):
        near.look(str(i), text)
    return {key: twin.question_id for key, twin in near.twins.items()}


@pytest.mark.parametrize(
    ("test", "pool", "near"),
    [
        ("Who wrote the novel that was published first in 1931?", "Who wrote a novel that was published first in 1931", True),
        ("What is 3 + 5?", "What is 3 - 5?", True),
        ("Where was Fra born?", "Where was Fra born", True),
        ("What’s the capital of France", "What's the capital of France?", True),
        ("在哪一年巴黎举办了奥运会？", "在哪一年巴黎举办过奥运会", True),
        ("Where was Fra born?", "Where was Bel born?", False),
        ("Where was Fra born?", "In which town did Fra see the light of day?", False),
        ("?", "!", False),
    ],
)
def test_near_duplicates_share_four_words_of_five(test: str, pool: str, near: bool) -> None:
    assert found([test], [pool]) == ({"0": "0"} if near else {})


@pytest.mark.parametrize("text", ["हिन्दी में क्षेत्र", "தமிழ் மொழி", "می‌خواهم", "naïve Ğ"])
def test_words_keep_their_marks(text: str) -> None:
    assert words(text) == set(unicodedata.normalize("NFKC", text).lower().split())


def test_the_nearest_is_named_once_a_test_question() -> None:
    test = "a b c d e f g h i j"
    assert found([test, "z"], ["a b c d e f g h i x", f"{test} x", f"{test} x y", "q"]) == {"0": "1"}


questions = st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=0, max_size=9).map(" ".join), max_size=8)


@given(questions, questions)
def test_every_near_duplicate_is_found(test: list[str], pool: list[str]) -> None:
    def shared(a: str, b: str) -> float:
        return len(words(a) & words(b)) / max(1, len(words(a) | words(b)))

    assert set(found(test, pool)) == {str(i) for i, a in enumerate(test) if any(shared(a, b) >= SHARED for b in pool)}


def test_the_count_is_said_with_its_rule() -> None:
    assert said(3, 1200) == "3 of 1,200 test questions share at least 80% of their words with a question of the pool"


@pytest.mark.shared
def test_among_questions_that_people_wrote(shared_data: Path) -> None:
    with (shared_data / "triviaqa.jsonl").open(encoding="utf-8") as lines:
        texts = [json.loads(line)["question"] for line in lines]
    near = NearDuplicates((text, text) for text in texts[:1000])
    for text in texts[1000:]:
        near.look(text, text)
    twin = near.twins["Las Vegas is situated in which US State?"]
    assert (twin.question, round(twin.shared, 3)) == ("Las Vegas is in which US State?", 0.875)
    assert len(near.twins) == 3
