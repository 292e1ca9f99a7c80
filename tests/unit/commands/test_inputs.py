"""Rows that a user gives to a stage: what is read of them, and which are refused, with file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ka2l_ray.errors import UserError
from ka2l_ray.jobs.commands.inputs import Inputs

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
