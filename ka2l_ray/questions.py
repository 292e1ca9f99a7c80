"""Reading questions: JSON Lines or Parquet, validated row by row, with the place of every fault named."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ka2l_ray.errors import UserError
from ka2l_ray.normalization import normalize_question
from ka2l_ray.seeds import derive_seed

logger = logging.getLogger(__name__)


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) of each non-empty line; the place is ``file:line``."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}:{number}: not UTF-8 (byte {error.start + 1} of the line); save the file as UTF-8"
                ) from None
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{path}:{number}: not JSON ({error.msg}, column {error.colno}); fix or remove the line"
                ) from None
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number}: a row must be a JSON object, this is a {type(row).__name__}")
            yield f"{path}:{number}", row


def parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) of each row of a Parquet file or a directory of them."""
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path}: no Parquet file in this directory")
    for file in files:
        number = 0
        try:
            table = pq.ParquetFile(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{file}: not a Parquet file ({str(error).splitlines()[0]})") from None
        for batch in table.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{file} row {number}", row


def read_rows(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) of a ``.jsonl``/``.json`` or ``.parquet`` file, or of a directory of Parquet files.

    Raises:
        UserError: no such file, another format, or a malformed line.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file; give a .jsonl or .parquet file")
    if path.is_dir() or path.suffix == ".parquet":
        return parquet_rows(path)
    if path.suffix in (".jsonl", ".json"):
        return json_lines(path)
    raise UserError(f"{path}: unknown format '{path.suffix}'; give a .jsonl or .parquet file")


def row_id(place: str, row: dict[str, Any]) -> str:
    """``id`` or ``question_id`` of a row; numbers become strings."""
    value = row.get("id", row.get("question_id"))
    if not isinstance(value, str | int) or value == "":
        raise UserError(f"{place}: the row has no 'id'; every row needs a unique id")
    return str(value)


class QuestionReader:
    """The rows of a pool or test file in ``schema.QUESTIONS``, one after another; ids and questions are remembered as digests.

    The same normalised question twice is given once; ``repeated`` counts the rest, and the first of them is logged.

    Raises:
        UserError: no such file, malformed line, row without id or question, or duplicate id.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self.repeated = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        ids: set[int] = set()
        seen: set[int] = set()
        first_repeat = ""
        for place, row in read_rows(self.path):
            question_id = row_id(place, row)
            question = row.get("question")
            if not isinstance(question, str) or not question.strip():
                raise UserError(f"{place}: the row has no 'question'; every row needs a question text")
            if derive_seed(question_id) in ids:
                raise UserError(f"{place}: id '{question_id}' stands in an earlier row; ids must be unique")
            ids.add(derive_seed(question_id))
            key = derive_seed(normalize_question(question) or question)
            if key in seen:
                self.repeated += 1
                first_repeat = first_repeat or place
                continue
            seen.add(key)
            yield {"question_id": question_id, "question": question.strip(), "answers": answers_of(place, row)}
        if self.repeated:
            logger.warning(
                "%s: %d rows repeat an earlier question; kept once (first: %s)", self.path, self.repeated, first_repeat
            )


def answers_of(place: str, row: dict[str, Any]) -> list[str] | None:
    """Accepted answers of a row; None where it has none."""
    answers = row.get("answers")
    if answers is None:
        return None
    if isinstance(answers, str):
        answers = [answers]
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise UserError(f"{place}: 'answers' must be a list of strings")
    return [answer for answer in answers if answer.strip()] or None
