"""Multiple choice: what a row's options are, which is right, and what is asked."""

from __future__ import annotations

from typing import Any

import pytest

from ka2l_ray.errors import UserError
from ka2l_ray.extraction import Extract, extract_accepted
from ka2l_ray.options import Choice, choice_of, question_key, shows_options, with_options

SCALES = ["Nominal scale", "Dichotomous scale", "Interval/Ratio scale", "Ordinal scale"]


def read(row: dict[str, Any]) -> Choice:
    choice = choice_of("f.jsonl:3", row, row.get("answers") or [], "unicode")
    assert choice is not None
    return choice


def fault(row: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        read(row)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("label", ["C", "c", " C. ", "(C)", 2, 2.0])
def test_the_right_option_is_a_letter_or_an_index(label: Any) -> None:
    assert read({"options": SCALES, "label": label}).right == 2


@pytest.mark.parametrize("answers", [["Interval/Ratio scale"], ["interval/ratio scale."], ["C"], ["c"]])
def test_without_a_label_the_answers_say_the_right_option(answers: list[str]) -> None:
    assert read({"choices": SCALES, "answers": answers}).right == 2


def test_an_answer_that_is_an_options_text_and_anothers_letter_is_the_text() -> None:
    assert read({"options": ["D", "A", "K", "C"], "answers": ["A"]}).right == 1  # vitamins


def test_a_row_without_options_is_no_choice_whatever_its_label() -> None:
    assert choice_of("f:1", {"label": True}, [], "unicode") is None
    assert choice_of("f:1", {"label": 3, "options": None}, ["x"], "unicode") is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"options": SCALES, "answers": ["Likert scale"]}, "no answer is among the 'options'; give 'label'"),
        ({"options": SCALES, "answers": SCALES[:2]}, "'answers' holds 2 of the options; say by 'label'"),
        ({"options": SCALES, "label": "E"}, "'label' is 'E'; give a letter from A to D, or an index from 0 to 3"),
        ({"options": SCALES, "label": 4}, "'label' is 4; give"),
        ({"options": SCALES, "label": -1}, "'label' is -1; give"),
        ({"options": SCALES, "label": True}, "'label' is True; give"),
        ({"options": SCALES, "label": "A", "answers": ["Ordinal scale"]}, "'label' is 'A', 'Nominal scale', but 'answers' says"),
        ({"options": [*SCALES, " "], "label": "A"}, "'options' must be a list of texts, none of them empty"),
        ({"options": "A or B", "label": "A"}, "'options' must be a list of texts"),
        ({"choices": {"text": SCALES}, "label": "A"}, "'choices' must be a list of texts"),
        ({"options": ["yes"], "label": "A"}, "'options' holds 1 options; a question has 2 to 26"),
        ({"options": [str(n) for n in range(27)], "label": "A"}, "'options' holds 27 options; a question has 2 to 26"),
    ],
)
def test_options_that_are_wrong_are_one_line_with_their_place(row: dict[str, Any], message: str) -> None:
    assert fault(row).startswith(f"f.jsonl:3: {message}")


def test_a_shown_option_is_answered_by_letter_text_or_line_a_hidden_one_by_its_text() -> None:
    choice = read({"options": SCALES, "label": "C"})
    assert choice.accepted(["Ratio"], "show") == ["C", "Interval/Ratio scale", "Ratio", "C. Interval/Ratio scale"]
    assert choice.accepted(["Ratio", "C"], "hide") == ["Interval/Ratio scale", "Ratio"]
    assert (choice.target("show"), choice.target("hide")) == ("C", "Interval/Ratio scale")
    assert Choice(tuple(SCALES), None).accepted([], "show") == []
    assert read({"options": ["AB", "0"], "label": "A"}).accepted(["ab"], "hide") == ["AB", "ab"]  # a blood group, no letters


def test_where_letters_are_read_the_right_letter_alone_is_accepted() -> None:
    letter = Extract("letter")
    bacteria = read({"options": ["Yersinia", "E. coli", "Staph", "Vibrio"], "label": "B"}).accepted([], "show")
    assert bacteria == ["B", "E. coli", "B. E. coli"]
    assert extract_accepted(bacteria, letter) == ["B"]
    many = read({"options": [f"option number {n}" for n in range(26)], "label": 25}).accepted([], "show")
    assert extract_accepted(many, letter) == ["Z"] == extract_accepted(["The answer is Z."], letter)


def test_a_text_that_is_another_options_letter_is_no_answer_where_letters_are() -> None:
    vitamins = read(
        {"options": ["D", "A", "K", "C"], "label": "D"}
    )  # the right one is vitamin C, whose text is option K's letter
    assert vitamins.accepted(["C"], "show") == ["D", "D. C"]
    assert vitamins.accepted(["C"], "hide") == ["C"]
    bacteria = read({"options": ["E. coli", "C. difficile", "S. aureus"], "label": "B"})
    assert bacteria.accepted([], "show") == ["B", "C. difficile", "B. C. difficile"]  # a species, which reads as no letter
    assert set(extract_accepted(bacteria.accepted([], "show"), Extract("letter"))) == {"B"}
    assert Choice(bacteria.options, 0).accepted([], "show") == ["A", "E. coli", "A. E. coli"]  # no option has the letter E


@pytest.mark.parametrize("options", [["Red!", "red"], ["the red", "RED", "red."]])
def test_options_that_all_say_the_same_are_refused(options: list[str]) -> None:
    assert fault({"options": options, "label": "A"}).startswith(f"f.jsonl:3: the 'options' all say '{options[0]}'")


def test_options_of_signs_alone_differ() -> None:
    assert read({"options": ["+", "-"], "label": "A"}).right == 0


def test_options_of_one_text_are_one_option_under_two_letters() -> None:
    twice = read({"options": ["heart", "liver", "heart", "skin"], "answers": ["heart"]})
    assert twice.accepted([], "show") == ["A", "C", "heart", "A. heart", "C. heart"]
    assert (twice.target("show"), twice.target("hide")) == ("A", "heart")


def test_the_question_as_asked_and_what_it_is_known_by() -> None:
    asked = with_options("Which is warm?", ["ice", "fire"])
    assert asked == "Which is warm?\nA. ice\nB. fire"
    assert shows_options(asked, ["ice", "fire"])
    assert not shows_options("Which is warm?", ["ice", "fire"])
    key = question_key("which is  warm", ["ice", "fire"], "unicode")
    assert key == question_key(asked, ["ice", "fire"], "unicode") == question_key("Which is warm?", ["Fire", "ice"], "unicode")
    assert key != question_key("Which is warm?", ["ice", "snow"], "unicode") != question_key("Which is warm?", None, "unicode")
