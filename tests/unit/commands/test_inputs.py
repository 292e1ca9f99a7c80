"""Rows that a user gives to a stage: what is read of them, and which are refused, with file and line."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from ka2l_ray.errors import UserError
from ka2l_ray.jobs.commands.inputs import Inputs
from ka2l_ray.jobs.stages.p_wrong import warn_of_one_class

ROW = {"id": "a", "question": "Who?", "generations": ["Ann", "Bob"], "greedy": "Ann", "right": True}


def file_of(rows: list[Any], tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_an_answer_that_was_cut_is_known_by_any_servers_word_for_it(tmp_path: Path) -> None:
    said = ["length", "LENGTH", "max_tokens", "MAX_TOKENS", "max_length", "stop", "end_turn", "EOS", "tool_calls", None]
    row = ROW | {"generations": ["x"] * len(said), "finish_reasons": said}
    found = Inputs(str(tmp_path / "inputs")).samples(file_of([row], tmp_path)).storage.read_table("").to_pylist()
    assert found[0]["finish_reasons"] == [*["length"] * 5, "stop", "end_turn", "eos", "tool_calls", None]


@pytest.mark.parametrize("ended", [[1, 2], ["stop"], ["stop", ["length"]], "stop", 3, ["stop", True]])
def test_finish_reasons_that_are_no_texts_are_refused_by_file_and_line(ended: Any, tmp_path: Path) -> None:
    rows = [ROW | {"id": "good", "finish_reasons": None}, ROW | {"finish_reasons": ended}]
    with pytest.raises(UserError, match=r"rows.jsonl:2: 'finish_reasons' must be a list with a text"):
        Inputs(str(tmp_path / "inputs")).samples(file_of(rows, tmp_path))


@pytest.mark.parametrize(
    ("correct", "changes", "words"),
    [
        ("right", {"right": None}, "0 of the rows with 'model' small, 3 in all, have 'right'; p(wrong) is fitted on two"),
        (None, {"answers": None}, "0 of the rows with 'model' small, 3 in all, have 'greedy' with 'answers'"),
        (None, {"greedy": None}, "0 of the rows with 'model' small, 3 in all, have 'greedy' with 'answers'"),
    ],
)
def test_a_group_without_labels_is_named_when_it_is_read(
    correct: str | None, changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    whole = ROW | {"answers": ["Ann"], "model": "large"}
    rows = [whole | {"id": f"l{i}"} for i in range(3)] + [whole | changes | {"id": f"s{i}", "model": "small"} for i in range(3)]
    with pytest.raises(UserError, match=re.escape(words)):
        Inputs(str(tmp_path / "inputs")).answered(file_of(rows, tmp_path), correct=correct, answers=None, group="model")


def test_labels_of_one_kind_are_told_of_by_group(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    of = {"large": [True, False, None], "small": [False, False, None]}
    rows = [ROW | {"id": f"{g}{i}", "model": g, "right": r} for g, said in of.items() for i, r in enumerate(said)]
    found = Inputs(str(tmp_path / "inputs")).answered(file_of(rows, tmp_path), correct="right", answers=None, group="model")
    warn_of_one_class(found)
    assert caplog.messages == [
        "small: all 2 labelled answers are wrong, and so p(wrong) is 1 for every question, whatever its score; label others"
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"greedy": 5}, "'greedy' must be a text, this is 5"),
        ({"token_logprobs": [-0.1, -0.2]}, "'token_logprobs' must hold finite numbers"),
        ({"token_logprobs": 3}, "'token_logprobs' must hold finite numbers"),
        ({"token_logprobs": [[-0.1], [None]]}, "'token_logprobs' must hold finite numbers"),
        ({"token_logprobs": [[-0.1], ["x"]]}, "'token_logprobs' must hold finite numbers"),
        ({"greedy_logprob": "x"}, "'greedy_logprob' must be a finite number, this is 'x'"),
        ({"greedy_logprob": math.nan, "greedy_token_ids": [1]}, "'greedy_logprob' must be a finite number, this is nan"),
        ({"greedy_logprob": 10**400}, "'greedy_logprob' must be a finite number"),
        ({"greedy_token_ids": 7}, "'greedy_token_ids' must be a list of token ids, this is 7"),
    ],
)
def test_rows_to_be_evaluated_are_refused_by_file_and_line(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = file_of([ROW | {"id": "good"}, ROW | changes], tmp_path)
    with pytest.raises(UserError, match=re.escape(f"rows.jsonl:2: {words}")):
        Inputs(str(tmp_path / "inputs")).answered(path, correct="right", answers=None, group=None)


@pytest.mark.parametrize(
    ("kind", "row", "words"),
    [
        ("scores", {"error": 5}, "'error' must be a text, this is 5"),
        ("scores", {"p_unknown": 1.5}, "'p_unknown' must be a probability, this is 1.5"),
        ("scores", {"p_unknown": math.nan}, "'p_unknown' must be a finite number, this is nan"),
        ("scores", {"next_token_entropy": math.inf}, "'next_token_entropy' must be a finite number, this is inf"),
        ("chances", {"option_entropy": math.nan}, "'option_entropy' must be a finite number, this is nan"),
        ("annotations", {"question": "Who?", "target": "Ann", "source": 5}, "'source' must be a text, this is 5"),
    ],
)
def test_rows_to_be_chosen_from_and_trained_on_are_refused_by_file_and_line(
    kind: str, row: dict[str, Any], words: str, tmp_path: Path
) -> None:
    path = file_of([{"id": "good", "question": "Who?", "answers": ["Ann"], "p_unknown": 0.5}, {"id": "a"} | row], tmp_path)
    with pytest.raises(UserError, match=re.escape(f"rows.jsonl:2: {words}")):
        getattr(Inputs(str(tmp_path / "inputs")), kind)(path)
