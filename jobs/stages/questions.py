"""Question files as artefacts: validated once, row by row, and kept as Parquet parts that stages can stream."""

from __future__ import annotations

import heapq
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ka2l_ray import schema
from ka2l_ray.errors import UserError
from ka2l_ray.normalization import normalize_question
from ka2l_ray.questions import QuestionReader, answers_of, read_rows, row_id
from ka2l_ray.seeds import derive_seed
from ka2l_ray.store.artefacts import Artefact, Store, committed_artefact
from ka2l_ray.store.storage import Storage, file_digest

ROWS_PER_PART = 8192


def input_key(path: str) -> str:
    """Identity of an input file, or of a directory that a stage committed.

    Raises:
        UserError: nothing there.
    """
    committed = committed_artefact(path) if Path(path).is_dir() else None
    if committed is not None:
        return committed.key
    if Path(path).is_file():
        return file_digest(Path(path))
    if Path(path).is_dir():
        return "-".join(file_digest(file) for file in sorted(Path(path).glob("*.parquet")))
    raise UserError(f"{path}: no such file; give a .jsonl or .parquet file")


def questions(store: Store, name: str, *, path: str) -> Artefact:
    """The questions of a file as ``schema.QUESTIONS`` parts; facts say how many stood there twice.

    Raises:
        UserError: as ``QuestionReader``; an empty file.
    """
    inputs = {"stage": "questions", "file": input_key(path)}

    def build(work: Storage) -> dict[str, Any]:
        reader = QuestionReader(path)
        part: list[dict[str, Any]] = []
        rows = 0
        for row in reader:
            part.append(row)
            rows += 1
            if len(part) == ROWS_PER_PART:
                work.write_table(f"part-{(rows - 1) // ROWS_PER_PART:05d}.parquet", _table(part))
                part = []
        if part:
            work.write_table(f"part-{(rows - 1) // ROWS_PER_PART:05d}.parquet", _table(part))
        if not rows:
            raise UserError(f"{path}: no questions in this file")
        return {"rows": rows, "repeated": reader.repeated, "source": path}

    return store.compute(name, inputs, build)


def answer_key(store: Store, name: str, *, path: str) -> Artefact:
    """id and answers of a file, for annotation.

    Raises:
        UserError: a row without id, an id that stands twice, or a file without answers.
    """
    inputs = {"stage": "answers", "file": input_key(path)}

    def build(work: Storage) -> dict[str, Any]:
        rows: dict[str, list[str]] = {}
        for place, row in read_rows(path):
            question_id, answers = row_id(place, row), answers_of(place, row)
            if question_id in rows:
                raise UserError(f"{place}: id '{question_id}' stands in an earlier row; ids must be unique")
            if answers is not None:
                rows[question_id] = answers
        if not rows:
            raise UserError(f"{path}: no answers in this file")
        work.write_table("part-00000.parquet", pa.table({"question_id": list(rows), "answers": list(rows.values())}))
        return {"rows": len(rows), "source": path}

    return store.compute(name, inputs, build)


def draw(
    store: Store,
    name: str,
    *,
    source: Artefact,
    size: int,
    allowed: pa.Array | None,
    exclude: frozenset[str],
    seed: tuple[Any, ...],
) -> Artefact:
    """``size`` questions of ``source`` at random (all, where there are fewer), as a questions table without answers.

    Args:
        allowed: draw among these ids only.
        exclude: and among none of these.
        seed: decides the draw, whatever the order of the rows.
    """
    inputs = {
        "stage": "draw",
        "source": source.key,
        "size": size,
        "allowed": None if allowed is None else derive_seed(*sorted(allowed.to_pylist())),
        "exclude": derive_seed(*sorted(exclude)),
        "seed": list(seed),
    }

    def build(work: Storage) -> dict[str, Any]:
        def rows() -> Any:
            for file in source.storage.parquet_files():
                table = source.storage.read_table(file, columns=["question_id", "question"])
                if allowed is not None:
                    table = table.filter(pc.is_in(table["question_id"], value_set=allowed))
                for question_id, question in zip(table["question_id"].to_pylist(), table["question"].to_pylist(), strict=True):
                    if question_id not in exclude:
                        yield derive_seed(*seed, question_id), question_id, question

        drawn = heapq.nsmallest(size, rows())
        work.write_table(
            "part-00000.parquet",
            _table([{"question_id": i, "question": q, "answers": None} for _, i, q in sorted(drawn, key=lambda d: d[1])]),
        )
        return {"rows": len(drawn)}

    return store.compute(name, inputs, build)


def check_disjoint(pool: Artefact, test: Artefact) -> None:
    """Raise a UserError where a test question stands in the pool."""
    wanted = {}
    for row in test.storage.read_table("", columns=["question_id", "question"]).to_pylist():
        wanted[normalize_question(row["question"])] = row["question_id"]
    for file in pool.storage.parquet_files():
        for row in pool.storage.read_table(file, columns=["question_id", "question"]).to_pylist():
            twin = wanted.get(normalize_question(row["question"]))
            if twin is not None:
                raise UserError(
                    f"pool question '{row['question_id']}' is test question '{twin}'; a test set shares no question with the pool"
                )


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=schema.QUESTIONS)
