"""Stage annotate: answers for the selected questions, and the free targets of replayed known ones."""

from __future__ import annotations

import logging
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ka2l_ray import schema
from ka2l_ray.errors import UserError
from ka2l_ray.questions import training_target
from ka2l_ray.seeds import derive_seed
from ka2l_ray.store.artefacts import Artefact, Store
from ka2l_ray.store.storage import Storage, digest

logger = logging.getLogger(__name__)


def annotate(store: Store, name: str, *, selection: Artefact, answers: Artefact) -> Artefact:
    """The annotations table of ``selection``, from the ``answers`` and ``target`` columns of a questions table.

    ``targets_picked`` counts the targets that no column gave (``questions.training_target``).

    Raises:
        UserError: a selected question has no answer there.
    """
    inputs = {"stage": "annotate", "selection": selection.key, "answers": answers.key}

    def build(work: Storage) -> dict[str, Any]:
        chosen = selection.storage.read_table("", columns=["question_id", "question"])
        found: dict[str, dict[str, Any]] = {}
        wanted = chosen["question_id"].combine_chunks()
        for file in answers.storage.parquet_files():
            there = answers.storage.read_schema(file).names
            if "answers" not in there:
                continue
            columns = [column for column in ("question_id", "answers", "target") if column in there]
            part = answers.storage.read_table(file, columns=columns)
            rows = part.filter(pc.and_(pc.is_in(part["question_id"], value_set=wanted), pc.is_valid(part["answers"])))
            found.update({row["question_id"]: row for row in rows.to_pylist()})
        missing = [question_id for question_id in wanted.to_pylist() if question_id not in found]
        source = answers.facts.get("source", answers.url)
        if missing:
            raise UserError(
                f"annotate: question '{missing[0]}' has no answers in {source} "
                f"({len(missing)} of {len(wanted)} have none); add an 'answers' column, or set annotation.answers"
            )
        rows = [
            {
                "question_id": i,
                "question": q,
                "target": found[i].get("target") or training_target(found[i]["answers"]),
                "answers": found[i]["answers"],
                "source": "column",
            }
            for i, q in zip(wanted.to_pylist(), chosen["question"].to_pylist(), strict=True)
        ]
        work.write_table("annotations.parquet", pa.Table.from_pylist(rows, schema=schema.ANNOTATIONS))
        picked = sum(not row.get("target") and len(set(row["answers"])) > 1 for row in found.values())
        if picked:
            logger.warning(
                "%s: %d of %d labels are several answers without a 'target'; each is trained on the one that shares the most "
                "words with the others (of equals the shortest)",
                source,
                picked,
                len(rows),
            )
        return {"rows": len(rows), "labels": len(rows), "targets_picked": picked}

    return store.compute(name, inputs, build)


def replay(
    store: Store, name: str, *, entropies: list[Artefact], exclude: frozenset[str], size: int, seed: tuple[Any, ...]
) -> Artefact:
    """Training rows that cost no label: questions that the model answers consistently, with its own majority answer.

    Args:
        entropies: entropy tables of this round's model; their questions labelled known are drawn from.
        exclude: labelled and already replayed questions.
        size: rows at most.
        seed: decides the draw, whatever the order of the rows.
    """
    inputs = {
        "stage": "replay",
        "entropies": [e.key for e in entropies],
        "exclude": digest(sorted(exclude)),
        "size": size,
        "seed": list(seed),
    }

    def build(work: Storage) -> dict[str, Any]:
        known = [row for entropy in entropies for row in known_rows(entropy, exclude)]
        drawn = sorted(known, key=lambda row: derive_seed(*seed, row["question_id"]))[:size]
        rows = [
            {
                "question_id": row["question_id"],
                "question": row["question"],
                "target": row["majority_answer"],
                "answers": [row["majority_answer"]],
                "source": "replay",
            }
            for row in drawn
        ]
        work.write_table("annotations.parquet", pa.Table.from_pylist(rows, schema=schema.ANNOTATIONS))
        return {"rows": len(rows), "labels": 0, "of": len(known)}

    return store.compute(name, inputs, build)


def known_rows(entropy: Artefact, exclude: frozenset[str]) -> list[dict[str, Any]]:
    """Rows labelled known whose majority answer is one: not silence, not an abstention, not cut."""
    table = entropy.storage.read_table("", columns=["question_id", "question", "majority_answer", "replayable", "label"])
    known = table.filter(pc.and_(pc.equal(table["label"], 0), table["replayable"])).to_pylist()
    return [row for row in known if row["question_id"] not in exclude]
