"""Which answers decline to answer, on strings and against marks made by hand; what a question's answers come to."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ka2l_ray.semantics.abstention import abstains, expanded, without_answer, without_answer_decided

MARKS = Path(__file__).with_name("abstention_marks.jsonl")
ANSWERS = Path(__file__).parents[4] / "shared/data/gen_simpleqa_15models.jsonl"


@pytest.mark.parametrize(
    "answer",
    [
        *("The Who", "Guess Who", "Nobody", "No one", "None", "Nothing", "No", "Sorry", "Mr. Nobody", "The Unknown Soldier"),
        *('"I Don\'t Know" by Ozzy Osbourne', "I Don't Know How to Love Him", 'The song is "I Don\'t Know".', "I Don't Know"),
        *("Don't Know Why", "I Can't Tell You Why", "You Don't Know Jack", "God Only Knows", "No Country for Old Men"),
        *("I'm not sure, but I think it is Paris.", "Paris, though I cannot confirm this.", "Paris (I am not sure)."),
        *("I don't know exactly, but it was 1950.", "[1903] (This is a guess, as the actual year is not provided.)"),
        *(
            "I don't know, maybe Paris?",
            "I'm not certain, perhaps Paris.",
            "I don't know exactly, around 1950",
            "I don't know, but Paris.",
        ),
        *("Possibly Paris. I don't know.", "He is credited as the drummer, though he was not officially listed as a member."),
        *("There is no such film.", "He did not attend a school.", "Lack of oxygen", "The award was not given out in 2014."),
        *("Unknown Pleasures", "It is not known for its beaches.", "Uncertainty principle", "Data", ""),
    ],
)
def test_a_name_a_guess_or_a_denial_is_an_answer(answer: str) -> None:
    assert not abstains(answer)


@pytest.mark.parametrize(
    "answer",
    [
        *(
            "I don't know",
            "I don\u2019t know.",
            "I DON'T KNOW",
            "i dont know",
            "**I don't know**",
            '"I don\'t know."',
            "idk",
            "N/A",
        ),
        *("Unknown.", "No idea", "I honestly have no idea.", "I'm not sure.", "Answer: I don't know", "Nobody knows."),
        *("I'm sorry, but as an AI language model, I don't have access to that information.", "I can't help with that."),
        *("I couldn't find any information about this.", "I am unable to verify the date.", "It is unclear who wrote it."),
        *("The exact date is not provided in the given information.", "[The answer cannot be determined.]", "Not available"),
        *("There is not enough information to answer.", "The date is unknown.", "I would need more context to answer."),
        *("I'm not aware of this band. However, if you could provide more context, I may be able to help.", "Sorry, no idea."),
        *("He was a chemist. Unfortunately, I do not have information on his school.", "St. Jude's date cannot be determined."),
        *("There isn't enough information to answer.", "I have absolutely no idea", "There is no way to know."),
        *(
            "Good question. I'm not sure.",
            "Oh, I don't know",
            "Um... I'm not sure",
            "A: I don't know",
            "I've never heard of that",
        ),
        *(
            "Désolé, je ne sais pas.",
            "Lo siento, no lo sé",
            "Извините, я не знаю.",
            "죄송합니다. 모르겠습니다.",
            "Das weiß ich leider nicht",
        ),
        *("As an AI language model, I do not have access to real-time data.", "I do not possess that information"),
        *("我不知道。", "わかりません", "Je ne sais pas.", "Ich weiß es nicht.", "No lo sé.", "Я не знаю."),
    ],
)
def test_who_declines_abstains(answer: str) -> None:
    assert abstains(answer)


def test_what_is_told_instead_of_the_number_asked_for_is_no_answer() -> None:
    told = "I couldn't find any information about the year. However, I found that {}."
    assert abstains(told.format("he was a botanist"), "In what year was he born?")
    assert not abstains(told.format("he was born in 1801"), "In what year was he born?")
    assert not abstains(told.format("he was a botanist"), "What was his profession?")


@pytest.mark.parametrize(
    ("answer", "question"),
    [
        ("[answer].", ""),
        ('[answer]" where [answer] is your complete answer.', ""),
        ("The secret identity is [insert name here].", ""),
        ("[Day], [Month], [Year]", "When was it?"),
        (
            "[The surname of the individual who won the prize in 1958]",
            "What is the surname of the individual who won the prize in 1958?",
        ),
        ("[The population of Darrud would need to be looked up.]", "What was the population of Darrud?"),
    ],
)
def test_an_empty_place_is_no_answer(answer: str, question: str) -> None:
    assert abstains(answer, question)


@pytest.mark.parametrize(
    ("answer", "question"),
    [
        ("[Paris]", "What is the capital of France?"),
        ("[Answer]: Paris", "What is the capital of France?"),
        ("<answer>Paris</answer>", "What is the capital of France?"),
        ("[The High School of the Holy Name]", "Which high school did she attend?"),
        ("The list is [1, 2, 3].", "What does it print?"),
    ],
)
def test_brackets_may_hold_an_answer(answer: str, question: str) -> None:
    assert not abstains(answer, question)


def test_what_a_model_says_of_itself_declines_only_where_nothing_stands_behind_it() -> None:
    disclaimer = "As an AI language model, I don't have access to the latest updates. However, {}"
    assert not abstains(
        disclaimer.format("as of 2021, the co-hosts were Adrienne Houghton and Loni Love."), "Who are the co-hosts?"
    )
    assert abstains(disclaimer.format("you can check the show's website."), "Who are the co-hosts?")
    assert abstains(disclaimer.format("I can suggest that you look at the show's website."), "Who are the co-hosts?")


def test_what_is_told_behind_an_abstention_answers_where_it_is_what_was_asked_for() -> None:
    question = "Which mycologist circumscribed the genus Lillicoa?"
    told = "I'm not aware of a mycologist named Lillicoa. However, I found that {}"
    assert abstains(told.format("Lillicoa is a genus of fungi."), question)
    assert not abstains(told.format("the genus Lillicoa was circumscribed by Desjardin."), question)
    assert not abstains(told.format("Lillicoa is a genus of fungi. It was circumscribed by Desjardin."), question)
    assert abstains(
        told.format("Lillicoa is a genus. Could you say more of the genus Lillicoa and who circumscribed it?"), question
    )
    born = "I couldn't find any James Young. However, I found information on a James Young from Ohio. "
    assert abstains(born, "In what year was James Young of Ohio born?")
    assert not abstains(born + "James Young was born in 1838.", "In what year was James Young of Ohio born?")


def test_patterns_of_a_configuration_stand_beside_or_instead_of_the_defaults() -> None:
    assert not abstains("No comment.")
    assert abstains("No comment.", patterns=expanded(["default", "^no comment$"]))
    assert abstains("NO COMMENT", patterns=expanded(["^No comment$"]))
    assert not abstains("I don't know", patterns=expanded(["^no comment$"]))
    assert not abstains("I don't know", patterns=expanded([]))
    each_by_itself = expanded(["default", "(?i)^no comment", r"(?P<x>\w+) (?P=x)", "(?P<x>pass)$"])
    said = [abstains(each, patterns=each_by_itself) for each in ("No comment", "mum mum", "pass", "Paris")]
    assert said == [True, True, True, False]


def marked() -> dict[str, list[tuple[bool, bool, str]]]:
    """(marked, found, answer) by set. The first was read before any pattern was written, each later one when the patterns
    stood, measured once (docs/semantic_entropy.md has those figures), and tuned on afterwards."""
    if not ANSWERS.is_file():
        pytest.skip(f"{ANSWERS} is not there: the answers' licence is not stated, so only their marks are kept here")
    told = {}
    for line in ANSWERS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for model, answer in zip(row["models"], row["generations"], strict=True):
            told[row["id"], model] = (row["question"], answer)
    sets: dict[str, list[tuple[bool, bool, str]]] = {}
    for line in MARKS.read_text(encoding="utf-8").splitlines():
        mark = json.loads(line)
        question, answer = told[mark["id"], mark["model"]]
        sets.setdefault(mark["set"], []).append((mark["abstains"], abstains(answer, question), answer))
    return sets


def test_precision_and_recall_on_marked_answers() -> None:
    sets = marked()
    assert [len(rows) for rows in sets.values()] == [200, 150, 150, 120, 250, 200]
    for rows in (sets["first"], [row for each in sets.values() for row in each]):
        right = sum(mark and found for mark, found, _ in rows)
        assert right / sum(found for _, found, _ in rows) >= 0.95, [text for mark, found, text in rows if found and not mark]
        assert right / sum(mark for mark, _, _ in rows) >= 0.95, [text for mark, found, text in rows if mark and not found]


@pytest.mark.parametrize(
    ("ids", "declines", "without"),
    [
        ([0] * 10, [True] * 10, True),  # "I don't know", ten times
        ([0] * 10, [False] * 10, False),
        ([0] * 9 + [1], [False] * 9 + [True], False),
        ([0] * 5 + [1] * 5, [False] * 5 + [True] * 5, True),
        ([0, 0, 0, 0, 1, 2, 3, 4, 5, 6], [False] * 4 + [True] * 6, True),  # six wordings of one abstention
        ([0, 0, 0, 1, 1, 1, 2, 2, 2, 2], [False] * 6 + [True] * 4, True),
        ([0] * 10, [True] * 5 + [False] * 5, True),  # the judge knows other wordings of it than the patterns do
        ([0] * 10, [True] * 4 + [False] * 6, False),
        (list(range(10)), [False] * 10, False),
    ],
)
def test_a_question_goes_without_an_answer_where_no_meaning_outnumbers_silence(
    ids: list[int], declines: list[bool], without: bool
) -> None:
    assert without_answer(np.array(ids), np.array(declines)) == without
    assert without_answer(np.array([ids, ids]), np.array([declines, declines])).tolist() == [without] * 2


def test_a_label_is_decided_only_where_answers_to_come_cannot_make_or_break_an_abstention() -> None:
    assert without_answer_decided([0] * 9, [False] * 9, 10)
    assert without_answer_decided([0] * 9, [True] * 9, 10)
    assert not without_answer_decided([0] * 9, [True] * 4 + [False] * 5, 10)  # the tenth may tip it
