"""Named test sets: how they are given, and what each kind may share with the pool."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from ka2l_ray.config_files import dump, load_config
from ka2l_ray.errors import UserError
from ka2l_ray.held_out import HeldOut, check_held_out
from ka2l_ray.jobs.commands.cli import app
from ka2l_ray.world.facts import World

INDUCTIVE = {"path": "other.jsonl", "kind": "inductive"}
TRANSDUCTIVE = {"path": "same.jsonl", "kind": "transductive"}


def given(test: Any) -> Any:
    return load_config(None, values={"model.path": "m", "pool.questions": "pool.jsonl", "pool.test": test})


def refused(path: Path | None, overrides: list[str], test: Any = None) -> str:
    with pytest.raises(UserError) as error:
        load_config(path, overrides) if path else given(test)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_path_is_one_inductive_set_without_a_name() -> None:
    assert {name: (s.path, s.kind) for name, s in given("test.jsonl").pool.test_sets.items()} == {"": ("test.jsonl", "inductive")}
    assert given(None).pool.test_sets == {}


def test_named_sets_keep_their_order_and_survive_a_dump(tmp_path: Path) -> None:
    config = given({"b": TRANSDUCTIVE, "a": INDUCTIVE})
    assert [(name, s.kind) for name, s in config.pool.test_sets.items()] == [("b", "transductive"), ("a", "inductive")]
    (tmp_path / "dumped.yaml").write_text(dump(config))
    assert load_config(tmp_path / "dumped.yaml") == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": no questions in this file"),
        ("\n \n", ": no questions in this file"),
        ('{"id": "t", "question": "Who?", "answers": ["\\u200b"]}\n', ":1: no answer of the row says anything"),
    ],
)
@pytest.mark.parametrize("name", [None, "held"])
def test_a_dry_run_refuses_a_test_set_that_asks_or_answers_nothing(
    tmp_path: Path, name: str | None, text: str, message: str
) -> None:
    pool, test = tmp_path / "pool.jsonl", tmp_path / "test.jsonl"
    pool.write_text('{"id": "p", "question": "Where?", "answers": ["there"]}\n')
    test.write_text(text)
    held = {name: {"path": str(test), "kind": "inductive"}} if name else str(test)
    document = {"model": {"path": "bundled:student"}, "pool": {"questions": str(pool), "test": held}, "engine": {"gpus": 0}}
    document |= {"entropy": {"judge": "exact"}, "selection": {"budget": 1}, "output": str(tmp_path / "run")}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(document))
    result = CliRunner().invoke(app, ["run", str(tmp_path / "run.yaml"), "--dry-run"])
    assert result.exit_code == 2, result.output
    assert next(line for line in result.stderr.splitlines() if line.startswith("error: ")).startswith(f"error: {test}{message}")


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ({"a": {"path": "x", "kind": "seen"}}, "pool.test.a.kind: Input should be 'inductive' or 'transductive'"),
        ({"a": {"path": "x"}}, "'pool.test.a.kind' is missing"),
        ({"a": {"kind": "inductive"}}, "'pool.test.a.path' is missing"),
        ({"a": "x"}, "pool.test.a: "),
        (["x"], "pool.test: give a file, or {NAME: {path: FILE, kind: inductive or transductive}}"),
        ({}, "pool.test: no test set is named"),
        ({"../a": INDUCTIVE}, "pool.test: test set '../a': a name is letters"),
        (
            {"a": INDUCTIVE, "b": {**TRANSDUCTIVE, "path": "./other.jsonl"}},
            "pool.test: test sets 'a' and 'b' are one file, ./other.jsonl",
        ),
    ],
)
def test_a_test_set_that_is_none_is_one_line(test: Any, message: str) -> None:
    assert message in refused(None, [], test)


def test_two_test_sets_of_one_name_are_refused_where_yaml_would_drop_one(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "model: {path: m}\npool:\n  questions: pool.jsonl\n  test:\n"
        "    held: {path: a.jsonl, kind: inductive}\n    held: {path: b.jsonl, kind: transductive}\n"
    )
    assert refused(file, []) == f"{file}:6: 'held' stands twice; give each key once"
    file.write_text(yaml.safe_dump({"model": {"path": "m"}, "pool": {"questions": "pool.jsonl"}}))
    twice = "pool.test={a: {path: x, kind: inductive}, a: {path: y, kind: inductive}}"
    assert refused(file, [twice]) == f"-o {twice}: 'a' stands twice; give each key once"
    file.write_text("model: {path: m}\nmodel: {path: n}\npool: {questions: pool.jsonl}\n")
    assert refused(file, []) == f"{file}:2: 'model' stands twice; give each key once"


def question(question_id: str, text: str, fact: str | None = None, options: list[str] | None = None) -> dict[str, Any]:
    return {"question_id": question_id, "question": text, "fact": fact, "options": options}


POOL = [
    question("p1", "Where was Fra born?", "f1"),
    question("p2", "Who employs Fra?", "f2"),
    question("p3", "When was Fra born?"),
]


def held_against(kind: Any, rows: list[dict[str, Any]], pool: list[dict[str, Any]] = POOL) -> str | None:
    """The line that refuses a test set, if it is refused."""
    try:
        check_held_out([HeldOut.of("t.jsonl", kind, rows, "unicode")], iter(pool), "unicode")
    except UserError as error:
        return str(error)
    return None


def test_an_inductive_set_shares_no_question_and_no_fact() -> None:
    others = [question("t1", "Who is Quast?", "f9"), question("t2", "Where was Fra employed?")]
    assert held_against("inductive", others) is None
    assert "pool question 'p1' is test question 't'" in str(held_against("inductive", [question("t", "where was Fra born")]))
    line = str(held_against("inductive", [*others, question("t", "What is Fra's birthplace?", "f1")]))
    assert line.startswith(
        "pool question 'p1' asks the fact 'f1' of test question 't' of t.jsonl; an inductive test set shares no"
    )


def test_a_transductive_set_asks_the_pools_facts_in_other_words() -> None:
    same = [question("t1", "What is Fra's birthplace?", "f1"), question("t2", "Whose employee is Fra?", "f2")]
    assert held_against("transductive", same) is None
    assert "a test set shares no question" in str(held_against("transductive", [question("t", "Where was Fra born?", "f1")]))
    line = str(held_against("transductive", [*same, question("t3", "Who is Quast?", "f9")]))
    assert line.startswith(
        "t.jsonl: the fact 'f9' of test question 't3' is not in the pool (1 of its 3 facts are not); a transductive"
    )
    unnamed = [question(row["question_id"], row["question"]) for row in POOL]
    assert "(the pool has no column 'fact')" in str(held_against("transductive", same, unnamed))
    assert "test question 't' has no 'fact'" in str(held_against("transductive", [question("t", "Who is Quast?")]))


def test_the_same_text_with_other_options_is_another_question() -> None:
    pool = [question("p", "Which is true?\nA. ice is cold\nB. fire is wet", options=["ice is cold", "fire is wet"])]
    other = question("t", "Which is true?", options=["ice is cold", "fire is cold"])
    assert held_against("inductive", [other], pool) is None
    assert held_against("inductive", [question("t", "which is true", options=["fire is wet", "Ice is cold"])], pool) is not None


def test_the_bundled_worlds_test_questions_are_transductive(world: World) -> None:
    pool, test = (
        [question(str(r["id"]), str(r["question"]), str(r["fact"])) for r in world.rows(split)] for split in ("pool", "test")
    )
    assert held_against("transductive", test, pool) is None
    assert "shares no fact with the pool" in str(held_against("inductive", test, pool))
