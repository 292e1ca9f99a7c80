"""Question files as artefacts: validated once, row by row, and kept as Parquet parts that stages can stream."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ka2l_ray import schema
from ka2l_ray.config import TestKind
from ka2l_ray.errors import UserError
from ka2l_ray.held_out import HeldOut, check_held_out
from ka2l_ray.normalization import Form
from ka2l_ray.options import Shown
from ka2l_ray.questions import QuestionReader, labels_of, read_rows, row_id
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


def questions(
    store: Store, name: str, *, path: str, form: Form = "unicode", shown: Shown = "show", answered: bool = False
) -> Artefact:
    """The questions of a file as ``schema.QUESTIONS`` parts; facts say how many stood there twice, and how many have options.

    Args:
        form, shown, answered: as of ``QuestionReader``.

    Raises:
        UserError: as ``QuestionReader``; an empty file.
    """
    inputs = {"stage": "questions", "file": input_key(path), "normalize": form, "options": shown, "answered": answered}

    def build(work: Storage) -> dict[str, Any]:
        reader = QuestionReader(path, form=form, shown=shown, answered=answered)
        part: list[dict[str, Any]] = []
        rows = with_options = 0
        for row in reader:
            part.append(row)
            rows += 1
            with_options += row["options"] is not None
            if len(part) == ROWS_PER_PART:
                work.write_table(f"part-{(rows - 1) // ROWS_PER_PART:05d}.parquet", _table(part))
                part = []
        if part:
            work.write_table(f"part-{(rows - 1) // ROWS_PER_PART:05d}.parquet", _table(part))
        if not rows:
            raise UserError(f"{path}: no questions in this file")
        return {"rows": rows, "repeated": reader.repeated, "with_options": with_options, "source": path}

    return store.compute(name, inputs, build)


def answer_key(store: Store, name: str, *, path: str, form: Form = "unicode", shown: Shown = "show") -> Artefact:
    """id, answers and target of a file, for annotation.

    Raises:
        UserError: a row without id, an id that stands twice, options without a right one, or a file without answers.
    """
    inputs = {"stage": "answers", "file": input_key(path), "normalize": form, "options": shown}

    def build(work: Storage) -> dict[str, Any]:
        rows = list(answer_rows(path, form, shown))
        if not rows:
            raise UserError(f"{path}: no answers in this file")
        columns = pa.schema([schema.QUESTIONS.field(column) for column in ("question_id", "answers", "target")])
        work.write_table("part-00000.parquet", pa.Table.from_pylist(rows, schema=columns))
        return {"rows": len(rows), "source": path}

    return store.compute(name, inputs, build)


def answer_rows(path: str, form: Form, shown: Shown) -> Iterator[dict[str, Any]]:
    """``question_id`` and ``labels_of`` of each row of an answer key that has answers.

    Raises:
        UserError: a row without id, an id that stands twice, or options without a right one.
    """
    seen: set[str] = set()
    for place, row in read_rows(path):
        question_id, found = row_id(place, row), labels_of(place, row, form, shown)
        if question_id in seen:
            raise UserError(f"{place}: id '{question_id}' stands in an earlier row; ids must be unique")
        if found["options"] and found["label"] is None:
            raise UserError(f"{place}: the row has no right option; give 'label', or 'answers' among its options")
        if found["answers"] is not None:
            seen.add(question_id)
            yield {"question_id": question_id, **found}


def count_answered(pool: Artefact, answers: Artefact) -> int:
    """Questions of ``pool`` that have an answer in ``answers``, which may be the pool itself."""
    key = answers.storage.read_table("", columns=["question_id", "answers"])
    having = key.filter(pc.is_valid(key["answers"]))["question_id"]
    asked = (pool.storage.read_table(file, columns=["question_id"])["question_id"] for file in pool.storage.parquet_files())
    return sum(pc.sum(pc.is_in(ids, value_set=having)).as_py() or 0 for ids in asked)


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
                table = source.storage.read_table(file, columns=["question_id", "question", "options"])
                if allowed is not None:
                    table = table.filter(pc.is_in(table["question_id"], value_set=allowed))
                for row in table.to_pylist():
                    if row["question_id"] not in exclude:
                        yield derive_seed(*seed, row["question_id"]), row["question_id"], row

        drawn = heapq.nsmallest(size, rows())
        work.write_table("part-00000.parquet", _table([row for _, _, row in sorted(drawn, key=lambda d: d[1])]))
        return {"rows": len(drawn)}

    return store.compute(name, inputs, build)


def of_test_set(artefact: str, name: str) -> str:
    """Name of an artefact of a test set; that of a plain path has none of its own."""
    return f"{artefact}/{name}" if name else artefact


def check_test_sets(pool: Artefact, tests: Mapping[str, tuple[TestKind, Artefact]], form: Form) -> None:
    """Raise a UserError where a test set shares with the pool what its kind forbids, or does not share what it demands."""
    sets = [HeldOut.of(test.facts["source"], kind, _rows(test), form) for kind, test in tests.values()]
    if sets:
        check_held_out(sets, _rows(pool), form)


def _rows(artefact: Artefact) -> Iterator[dict[str, Any]]:
    for file in artefact.storage.parquet_files():
        yield from artefact.storage.read_table(file, columns=["question_id", "question", "options", "fact"]).to_pylist()


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=schema.QUESTIONS)
