"""Reading questions: both formats, and every fault named with its place."""

from __future__ import annotations

import json
import logging
import re
from itertools import permutations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ka2l_ray.errors import UserError
from ka2l_ray.questions import QuestionReader, read_rows, row_id, training_target

ROWS = [
    {"id": "a", "question": "Where was Fra born?", "answers": ["Quast", "the city of Quast"]},
    {"id": "b", "question": " Who employs Fra? ", "answers": None},
    {"id": "c", "question": "When was Fra born?", "answers": ["1931"]},
]
NOTHING_ELSE = dict.fromkeys(("target", "options", "label", "fact"))
AS_READ = [
    {"question_id": "a", "question": "Where was Fra born?", "answers": ["Quast", "the city of Quast"], **NOTHING_ELSE},
    {"question_id": "b", "question": "Who employs Fra?", "answers": None, **NOTHING_ELSE},
    {"question_id": "c", "question": "When was Fra born?", "answers": ["1931"], **NOTHING_ELSE},
]


def jsonl(path: Path, *rows: Any) -> Path:
    """A file of one line a row; a string stands as it is."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


def fault(path: Path) -> str:
    """The one-line message with which reading ``path`` fails."""
    with pytest.raises(UserError) as error:
        list(QuestionReader(path))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_jsonl_parquet_and_a_directory_of_parquet_give_the_same_rows(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table, tmp_path / "pool.parquet")
    (tmp_path / "parts").mkdir()
    pq.write_table(table.slice(0, 1), tmp_path / "parts/part-0.parquet")
    pq.write_table(table.slice(1), tmp_path / "parts/part-1.parquet")
    (tmp_path / "parts/_artefact.json").write_text("{}")
    for path in (jsonl(tmp_path / "pool.jsonl", *ROWS), tmp_path / "pool.parquet", tmp_path / "parts"):
        assert list(QuestionReader(path)) == AS_READ


def test_empty_lines_are_passed_over_and_counted(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "pool.jsonl", ROWS[0], "", "   ", "{")
    assert fault(path).startswith(f"{path}:4: not JSON")


def test_question_id_serves_as_id_and_numbers_as_ids_become_text(tmp_path: Path) -> None:
    rows = [{"id": 7, "question": "A?"}, {"question_id": "x", "question": "B?"}, {"question_id": 8, "question": "C?"}]
    assert [row["question_id"] for row in QuestionReader(jsonl(tmp_path / "pool.jsonl", *rows))] == ["7", "x", "8"]


def test_the_number_7_and_the_text_7_are_the_same_id(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "pool.jsonl", {"id": 7, "question": "A?"}, {"id": "7", "question": "B?"})
    assert fault(path) == f"{path}:2: id '7' stands in an earlier row; ids must be unique"


def test_parquet_ids_may_be_integers(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1, 2], "question": ["A?", "B?"]}), tmp_path / "pool.parquet")
    assert [row["question_id"] for row in QuestionReader(tmp_path / "pool.parquet")] == ["1", "2"]


@pytest.mark.parametrize(
    ("answers", "read"),
    [(None, None), ("Quast", ["Quast"]), (["Quast", " "], ["Quast"]), ([], None), ("", None), ([" "], None)],
)
def test_answers_are_a_list_a_text_or_nothing(tmp_path: Path, answers: Any, read: list[str] | None) -> None:
    path = jsonl(tmp_path / "pool.jsonl", {"id": "a", "question": "A?", "answers": answers})
    assert [row["answers"] for row in QuestionReader(path)] == [read]


def test_answers_may_be_left_out(tmp_path: Path) -> None:
    assert [row["answers"] for row in QuestionReader(jsonl(tmp_path / "pool.jsonl", {"id": "a", "question": "A?"}))] == [None]


@pytest.mark.parametrize("answers", [5, {"a": 1}, ["a", 5], [None], True])
def test_answers_of_another_type_are_refused(tmp_path: Path, answers: Any) -> None:
    path = jsonl(tmp_path / "pool.jsonl", ROWS[0], {"id": "z", "question": "Z?", "answers": answers})
    assert fault(path) == f"{path}:2: 'answers' must be a list of strings"


def test_no_such_file(tmp_path: Path) -> None:
    assert fault(tmp_path / "none.jsonl") == f"{tmp_path}/none.jsonl: no such file; give a .jsonl or .parquet file"


def test_an_unknown_extension(tmp_path: Path) -> None:
    (tmp_path / "pool.csv").write_text("id,question\n")
    assert fault(tmp_path / "pool.csv") == f"{tmp_path}/pool.csv: unknown format '.csv'; give a .jsonl or .parquet file"


@pytest.mark.parametrize("line", ["{", '{"id": "a", "question": "A?"', "id,question", '{"id": "b"} {"id": "c"}'])
def test_a_malformed_line_is_named_by_file_and_line(tmp_path: Path, line: str) -> None:
    path = jsonl(tmp_path / "pool.jsonl", ROWS[0], line)
    assert fault(path).startswith(f"{path}:2: not JSON (")


@pytest.mark.parametrize(
    ("line", "what"),
    [('{"id": "a", "n": ' + "1" * 5000 + "}", "a number of too many digits"), ("[" * 100_000, "brackets nested too deep")],
    ids=["digits", "brackets"],
)
def test_json_that_cannot_be_read_is_named_by_file_and_line(tmp_path: Path, line: str, what: str) -> None:
    path = jsonl(tmp_path / "pool.jsonl", ROWS[0], line)
    assert fault(path) == f"{path}:2: JSON that cannot be read ({what}); fix or remove the line"


@pytest.mark.parametrize(("line", "kind"), [("[1, 2]", "list"), ('"A?"', "str"), ("5", "int"), ("null", "NoneType")])
def test_a_line_that_is_no_object_is_named(tmp_path: Path, line: str, kind: str) -> None:
    path = jsonl(tmp_path / "pool.jsonl", ROWS[0], line)
    assert fault(path) == f"{path}:2: a row must be a JSON object, this is a {kind}"


@pytest.mark.parametrize("question", [None, "", "  ", 5, ["A?"]])
def test_a_row_without_question_is_named(tmp_path: Path, question: Any) -> None:
    path = jsonl(tmp_path / "pool.jsonl", ROWS[0], {"id": "z", "question": question})
    assert fault(path) == f"{path}:2: the row has no 'question'; every row needs a question text"
    assert fault(jsonl(path, {"id": "z"})).startswith(f"{path}:1: the row has no 'question'")


@pytest.mark.parametrize("row_without_id", [{}, {"id": None}, {"id": ""}, {"id": ["a"]}])
def test_a_row_without_id_is_named(tmp_path: Path, row_without_id: dict[str, Any]) -> None:
    path = jsonl(tmp_path / "pool.jsonl", ROWS[0], {**row_without_id, "question": "Z?"})
    assert fault(path) == f"{path}:2: the row has no 'id'; every row needs a unique id"


def test_an_id_that_stands_twice_is_named(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "pool.jsonl", *ROWS, {"id": "b", "question": "Another?"})
    assert fault(path) == f"{path}:4: id 'b' stands in an earlier row; ids must be unique"


@pytest.mark.parametrize("line", [r'{"id": "a", "question": "Who \ud800?"}', r'{"id": "a", "x": [{"\uDFFF": 1}]}'])
def test_half_a_character_is_named_by_file_and_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"id": "0", "question": "Who? \\ud83d\\ude00"}\n' + line)
    with pytest.raises(UserError, match=r"q.jsonl:2: half a character"):
        list(read_rows(path))


def test_faults_of_parquet_rows_name_the_row(tmp_path: Path) -> None:
    path = tmp_path / "pool.parquet"
    pq.write_table(pa.table({"id": ["a", "b", "c"], "question": ["A?", "B?", None]}), path)
    assert fault(path) == f"{path} row 3: the row has no 'question'; every row needs a question text"


def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pool.parquet").write_text("no parquet")
    assert fault(tmp_path / "pool.parquet").startswith(f"{tmp_path}/pool.parquet: not a Parquet file (")


def test_a_directory_without_parquet_is_refused(tmp_path: Path) -> None:
    assert fault(tmp_path) == f"{tmp_path}: no Parquet file in this directory"


def test_a_line_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "pool.jsonl", ROWS[0])
    path.write_bytes(path.read_bytes() + '{"id": "z", "question": "Où?"}\n'.encode("latin-1"))
    assert fault(path).startswith(f"{path}:2:")


def test_the_same_question_twice_is_given_once_counted_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"id": "a", "question": "Where was Fra born?"}, {"id": "b", "question": "where was  fra born"}]
    rows += [{"id": "c", "question": "Who?"}, {"id": "d", "question": "WHERE was Fra born?!"}]
    path = jsonl(tmp_path / "pool.jsonl", *rows)
    reader = QuestionReader(path)
    with caplog.at_level(logging.WARNING, "ka2l_ray"):
        assert [row["question_id"] for row in reader] == ["a", "c"]
    assert reader.repeated == 2
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: 2 rows repeat an earlier question; kept once (first: {path}:2)"
    ]


def test_a_repeated_question_still_needs_an_id_of_its_own(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "pool.jsonl", {"id": "a", "question": "A?"}, {"id": "a", "question": "A?"})
    assert fault(path).startswith(f"{path}:2: id 'a' stands in an earlier row")


def test_questions_without_a_letter_are_not_all_the_same(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "pool.jsonl", {"id": "a", "question": "?"}, {"id": "b", "question": "!"}, {"id": "c", "question": "+?"}
    )
    assert [row["question_id"] for row in QuestionReader(path)] == ["a", "b", "c"]


def test_read_rows_gives_rows_of_any_columns_with_their_places(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "scores.json", {"id": "a", "p_unknown": 0.5}, {"id": "b", "p_unknown": 0.25})
    assert list(read_rows(str(path))) == [
        (f"{path}:1", {"id": "a", "p_unknown": 0.5}),
        (f"{path}:2", {"id": "b", "p_unknown": 0.25}),
    ]


def test_row_id_reads_id_before_question_id() -> None:
    assert row_id("f:1", {"question_id": "a"}) == "a"
    assert row_id("f:1", {"id": "b", "question_id": "a"}) == "b"


SCALES = ["Nominal scale", "Interval/Ratio scale"]


def test_options_are_part_of_the_question_where_they_are_shown_and_of_what_it_is_known_by_anyhow(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "question": "Which is true?", "options": SCALES, "label": "B", "fact": 7},
        {
            "id": "b",
            "question": "Which is true?",
            "choices": ["Fire is warm", "Ice is warm"],
            "label": 0,
            "answers": ["fire is warm"],
        },
        {"id": "c", "question": "which is true", "options": SCALES[::-1], "label": "A"},
        {"id": "d", "question": "Which is true?", "target": "nothing", "label": 4},
    ]
    path = jsonl(tmp_path / "pool.jsonl", *rows)
    shown, hidden = ({row["question_id"]: row for row in QuestionReader(path, shown=how)} for how in ("show", "hide"))
    assert list(shown) == list(hidden) == ["a", "b", "d"]
    assert shown["a"]["question"] == "Which is true?\nA. Nominal scale\nB. Interval/Ratio scale"
    assert {row["question"] for row in hidden.values()} == {"Which is true?"}
    assert shown["a"]["answers"] == ["B", "Interval/Ratio scale", "B. Interval/Ratio scale"]
    assert hidden["a"]["answers"] == ["Interval/Ratio scale"]
    assert [shown["b"][name] for name in ("target", "label", "options", "fact")] == [
        "A",
        "A",
        ["Fire is warm", "Ice is warm"],
        None,
    ]
    assert [hidden["a"][name] for name in ("target", "label", "options", "fact")] == ["Interval/Ratio scale", "B", SCALES, "7"]
    assert shown["d"] == hidden["d"]
    assert [shown["d"][name] for name in ("answers", "target", "options", "label")] == [["nothing"], "nothing", None, None]


def test_an_option_that_stands_twice_is_said_and_counts_as_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = jsonl(tmp_path / "pool.jsonl", {"id": "a", "question": "A?", "options": ["heart", "liver", "heart"], "label": "C"})
    with caplog.at_level(logging.WARNING, "ka2l_ray"):
        assert [row["answers"][:2] for row in QuestionReader(path)] == [["A", "C"]]
    assert f"{path}: 1 rows hold the same option twice, which counts as one (first: {path}:1)" in caplog.text
    assert "one option only" not in caplog.text
    path = jsonl(tmp_path / "pool.jsonl", {"id": "a", "question": "A?", "options": ["heart", "heart"], "label": "B"})
    with caplog.at_level(logging.WARNING, "ka2l_ray"):
        assert [row["answers"][:2] for row in QuestionReader(path)] == [["A", "B"]]
    assert f"{path}: 1 rows hold one option only, and any letter answers them; leave them out (first: {path}:1)" in caplog.text


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answers": ["\u200b"]}, "no answer of the row says anything"),
        ({"answers": None}, "the row has no answers; every row of a test set needs them"),
        ({"options": SCALES}, "the row has no right option; give its 'label'"),
        ({"options": SCALES, "answers": ["Likert scale"]}, "no answer is among the 'options'"),
    ],
)
def test_a_test_set_has_answers_and_right_options(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = jsonl(tmp_path / "test.jsonl", {"id": "z", "question": "Z?", **row})
    with pytest.raises(UserError, match=re.escape(f"{path}:1: {message}")):
        list(QuestionReader(path, answered=True))


@pytest.mark.parametrize(("row", "message"), [({"target": ["x"]}, "'target' must be a text"), ({"fact": [1]}, "'fact' must be")])
def test_a_target_is_a_text_and_a_fact_an_id(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    assert fault(jsonl(tmp_path / "pool.jsonl", {"id": "z", "question": "Z?", **row})).startswith(
        f"{tmp_path}/pool.jsonl:1: {message}"
    )


CHOICE = {"id": "a", "question": "Who?", "options": ["Ann Lee", "Bob"], "label": "A"}


@pytest.mark.parametrize("target", ["nobody", "B. Bob"])
def test_a_target_beside_options_is_the_right_one_or_an_answer(target: str, tmp_path: Path) -> None:
    row = CHOICE | {"target": target}
    assert f"pool.jsonl:1: 'target' is '{target}', neither the right option nor an answer" in fault(
        jsonl(tmp_path / "pool.jsonl", row)
    )
    for right in ("A", "Ann Lee", "ann lee!", "A. Ann Lee", "Ms Lee"):
        path = jsonl(tmp_path / "pool.jsonl", CHOICE | {"target": right, "answers": ["Ann Lee", "Ms Lee"]})
        assert [found["target"] for found in QuestionReader(path)] == [right]


@pytest.mark.parametrize(
    ("answers", "target"),
    [
        (["Sunset Blvd", "West Sunset Boulevard", "Sunset Boulevard", "Sunset Bulevard"], "Sunset Boulevard"),
        (["the city of Quast", "Quast"], "Quast"),
        (["NYC", "New York City", "New York", "city of New York"], "New York City"),
        (["b", "a"], "a"),
        (["only"], "only"),
    ],
)
def test_the_target_of_a_set_of_answers_does_not_depend_on_their_order(answers: list[str], target: str) -> None:
    assert {training_target(list(order)) for order in permutations(answers)} == {target}


@pytest.mark.parametrize("name", ["medmcqa", "openbookqa", "commonsenseqa", "mmlu"])
def test_real_multiple_choice_files_are_read_whole(name: str, shared_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [json.loads(line) for line in (shared_data / f"{name}.jsonl").read_text().splitlines()]
    reader = QuestionReader(shared_data / f"{name}.jsonl", answered=True)
    with caplog.at_level(logging.ERROR):
        read = list(reader)
    by_id = {row["id"]: row for row in rows}
    assert len(read) + reader.repeated == len(rows)
    assert reader.repeated == (name == "medmcqa")  # one casting is asked about twice, with a colon and without
    assert (len({row["question"].split("\n")[0] for row in read}) < len(read)) == (name in ("openbookqa", "mmlu"))
    for row in read:
        given = by_id[row["question_id"]]
        assert row["label"] == given["label"] == row["target"]
        assert row["options"] == [text.strip() for text in given["choices"]]
        assert {given["label"], f"{given['label']}. {row['options'][ord(given['label']) - 65]}"} <= set(row["answers"])
