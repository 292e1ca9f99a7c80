"""Questions as people hold them: a list, a Series, an array, a DataFrame, an Arrow table, rows as dictionaries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ka2l_ray.api.table import Table
from ka2l_ray.errors import UserError
from ka2l_ray.questions import answers_of

ID_COLUMNS = ("id", "question_id")


@dataclass(frozen=True)
class Given:
    """Questions, by place."""

    question_ids: list[str]
    questions: list[str]
    answers: list[list[str] | None] | None
    """Accepted ones; None where no such column was given."""
    index: Any = None
    """The pandas index they came with."""
    columns: Mapping[str, list[Any]] | None = None
    """All that was given with them."""

    def __len__(self) -> int:
        return len(self.questions)

    def take(self, rows: Iterable[int]) -> Given:
        """Those at ``rows``, without what else was given."""
        rows = list(rows)
        answers = None if self.answers is None else [self.answers[i] for i in rows]
        return Given([self.question_ids[i] for i in rows], [self.questions[i] for i in rows], answers)


def read_questions(data: Any) -> Given:
    """The questions in ``data``: texts, or rows with a ``question`` and, where there are, an ``id`` and accepted ``answers``.

    Without an ``id``, a question's is its label in the pandas index, else its place, from 0.

    Raises:
        UserError: nothing there, a row without a question, or an id that stands there twice.
    """
    columns, index = _columns(data)
    if "question" not in columns:
        raise UserError(f"no column 'question' among {', '.join(map(str, columns)) or 'none'}; name the column of texts so")
    questions = columns["question"]
    if not questions:
        raise UserError("there is no question; give one at least")
    for i, question in enumerate(questions):
        if not isinstance(question, str) or not question.strip():
            raise UserError(f"row {i}: {question!r} is no question; every row needs a text")
    named = next((columns[name] for name in ID_COLUMNS if name in columns), None)
    if named is None:
        unique = index is not None and index.is_unique
        named = list(index) if unique else list(range(len(questions)))
    question_ids = [str(each) for each in named]
    if len(set(question_ids)) < len(question_ids):
        twice = next(each for i, each in enumerate(question_ids) if each in question_ids[:i])
        raise UserError(f"id '{twice}' stands there twice; ids must be unique")
    answers = None
    if "answers" in columns:
        answers = [answers_of(f"row {i}", {"answers": _plain(each)}) for i, each in enumerate(columns["answers"])]
    return Given(question_ids, [question.strip() for question in questions], answers, index, columns)


def _columns(data: Any) -> tuple[dict[str, list[Any]], Any]:
    """(columns by name, pandas index or None)."""
    if isinstance(data, str):
        raise UserError("a single text was given for questions; give a list of them")
    if isinstance(data, Table):
        return data.to_arrow().to_pydict(), data.index
    if isinstance(data, pa.Table | pa.RecordBatch):
        return data.to_pydict(), None
    if isinstance(data, pa.Array | pa.ChunkedArray):
        return {"question": data.to_pylist()}, None
    if hasattr(data, "iloc"):  # pandas, which is not imported for those who do not use it
        if data.ndim == 2:
            return {str(name): data[name].tolist() for name in data.columns}, data.index
        return {"question": data.tolist()}, data.index
    if isinstance(data, Mapping):
        columns = {str(name): list(column) for name, column in data.items()}
        if len({len(column) for column in columns.values()}) > 1:
            raise UserError(f"questions: columns of different lengths ({', '.join(f'{n} {len(c)}' for n, c in columns.items())})")
        return columns, None
    if not isinstance(data, Iterable):
        raise UserError(f"questions: a {type(data).__name__} was given; give a list of texts, or rows with 'question'")
    rows = data.tolist() if isinstance(data, np.ndarray) else list(data)
    if rows and all(isinstance(row, Mapping) for row in rows):
        names = dict.fromkeys(str(name) for row in rows for name in row)
        return {name: [row.get(name) for row in rows] for name in names}, None
    return {"question": rows}, None


def _plain(answers: Any) -> Any:
    """Accepted answers as a list, whatever holds them; a missing value (pandas' NaN) is None."""
    if isinstance(answers, np.ndarray | tuple | set):
        return list(answers)
    return None if isinstance(answers, float) and np.isnan(answers) else answers
