"""Questions are taken in whatever people hold them, and what is no question is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from ka2l_ray.api.given import read_questions
from ka2l_ray.errors import UserError

QUESTIONS = ["Who wrote Faust?", "Where is Oslo?", " What is 2 + 2? "]
FRAME = pd.DataFrame({"id": [7, 8, 9], "question": QUESTIONS, "answers": [["Goethe"], "Norway", None]}, index=["x", "y", "z"])

FORMS: dict[str, Callable[[], Any]] = {
    "list": lambda: QUESTIONS,
    "tuple": lambda: tuple(QUESTIONS),
    "array": lambda: np.array(QUESTIONS),
    "Series": lambda: pd.Series(QUESTIONS),
    "filtered Series": lambda: pd.Series(["", *QUESTIONS]).loc[lambda s: s != ""],
    "DataFrame": lambda: FRAME,
    "Arrow table": lambda: pa.Table.from_pandas(FRAME[["question"]]),
    "Arrow column": lambda: pa.chunked_array([QUESTIONS[:1], QUESTIONS[1:]]),
    "columns": lambda: {"question": QUESTIONS},
    "rows": lambda: [{"question": question} for question in QUESTIONS],
}


@pytest.mark.parametrize("form", FORMS)
def test_the_questions_are_the_same_whatever_holds_them(form: str) -> None:
    assert read_questions(FORMS[form]()).questions == ["Who wrote Faust?", "Where is Oslo?", "What is 2 + 2?"]


def test_ids_are_those_given_else_the_index_else_the_place() -> None:
    assert read_questions(FRAME).question_ids == ["7", "8", "9"]
    assert read_questions(FRAME.question).question_ids == ["x", "y", "z"]
    assert read_questions(FORMS["filtered Series"]()).question_ids == ["1", "2", "3"]
    assert read_questions(QUESTIONS).question_ids == ["0", "1", "2"]
    repeated = pd.Series(QUESTIONS, index=[0, 0, 1])
    assert read_questions(repeated).question_ids == ["0", "1", "2"]


def test_accepted_answers_are_lists_or_nothing() -> None:
    assert read_questions(FRAME).answers == [["Goethe"], ["Norway"], None]
    table = pa.table({"question": QUESTIONS, "answers": [["a", "b"], [], None]})
    assert read_questions(table).answers == [["a", "b"], None, None]
    assert read_questions(QUESTIONS).answers is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("Who wrote Faust?", "a single text was given"),
        ([], "there is no question"),
        (["Who?", None], "row 1: None is no question"),
        (pd.Series(["Who?", np.nan]), "row 1: nan is no question"),
        ([{"text": "Who?"}], "no column 'question' among text"),
        (pd.DataFrame({"id": ["a", "a"], "question": ["x?", "y?"]}), "id 'a' stands there twice"),
        ([{"question": "x?", "answers": 5}], "row 0: 'answers' must be a list of strings"),
    ],
)
def test_what_is_no_question_is_refused_by_name(data: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_questions(data)
