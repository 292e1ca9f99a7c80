"""The answer within a longer text, by example and on real models' solutions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ka2l_ray.extraction import Extract, extract, extract_accepted

NUMBER, LETTER = Extract("last_number"), Extract("letter")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 72", "72"),
        ("10 - 3 = 7 apples.", "7"),
        ("18.00", "18"),
        ("$1,234.50 in all", "1234.5"),
        ("1,2,3", "3"),
        ("x=-5", "-5"),
        ("−5", "-5"),
        ("- 5", "-5"),
        ("-$5", "-5"),
        ("3-5", "5"),
        ("10 - 3", "3"),
        ("1/2", "0.5"),
        ("2 1/2", "2.5"),
        ("2½ cups", "2.5"),
        ("1/3", "1/3"),
        ("\\frac{3}{4}", "0.75"),
        ("10²", "100"),
        ("1.5×10^3", "1500"),
        ("1e-3", "0.001"),
        ("5%.", "5"),
        (".5", "0.5"),
        ("-0", "0"),
        ("１２", "12"),
        ("A: 31", "31"),
        ("B12", ""),
        ("None", ""),
        ("", ""),
    ],
)
def test_last_number(text: str, number: str) -> None:
    assert extract(text, NUMBER) == number


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        *[
            (text, "B")
            for text in ("B", "b", "(B)", "[B]", "B.", "B) Paris", "B - Paris", "**B**", "Ｂ", "B\nbecause it is", "$\\boxed{B}$")
        ],
        ("A", "A"),
        ("The correct answer is (C) because A is wrong", "C"),
        ("Answer: D", "D"),
        ("option c", "C"),
        ("The answer is: **C**", "C"),
        ("The answer is A because it is so", "A"),
        ("It must be (D).", "D"),
        ("A cat", ""),
        ("I think so", ""),
        ("the answer is a cat", ""),
        ("Answer: A cat", ""),
        ("Vitamin D", ""),
        ("Dr. No", ""),
        ("I don't know", ""),
        ("", ""),
    ],
)
def test_letter(text: str, letter: str) -> None:
    assert extract(text, LETTER) == letter


def test_a_pattern_gives_its_last_match_or_the_first_group_of_it() -> None:
    assert extract("Final: Rome. Final: Paris.", Extract("regex", r"Final: (\w+)")) == "Paris"
    assert extract("1931 or 1932", Extract("regex", r"\d{4}")) == "1932"
    assert extract("Rome", Extract("regex", r"Final: (\w+)")) == ""


def test_all_of_a_text_without_a_way_to_extract() -> None:
    assert extract("The answer is B.", None) == "The answer is B."


def test_an_accepted_answer_in_which_nothing_is_found_stays() -> None:
    assert extract_accepted(["#### 7", "seven"], NUMBER) == ["7", "seven"]


@given(st.integers(-(10**12), 10**12), st.sampled_from(["{}", "{:,}", "so it is {}.", "$$ {} $$", "{}.0", "({})"]))
def test_a_number_is_found_whatever_stands_around(number: int, around: str) -> None:
    assert extract(around.format(number), NUMBER) == str(number)


@given(st.text(max_size=40))
def test_what_was_extracted_is_extracted_again(text: str) -> None:
    for how in (NUMBER, LETTER):
        assert extract(extract(text, how), how) == extract(text, how)


@pytest.mark.shared
def test_last_numbers_judge_real_solutions_as_their_source_does(shared_data: Path) -> None:
    rows = [json.loads(line) for line in (shared_data / "gen_gsm8k_gpt3.jsonl").read_text().splitlines()]
    for row in rows:
        accepted = extract_accepted(row["answers"], NUMBER)
        assert [extract(text, NUMBER) in accepted for text in row["generations"]] == row["correct"]
