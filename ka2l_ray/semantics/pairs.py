"""How well a judge says what people say of pairs of answers (``ka2l judge-pairs``).

A row of the file is {"id", "question" (may be null), "a", "b", "label" (1: they mean the same)}.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ka2l_ray.errors import UserError
from ka2l_ray.questions import read_rows
from ka2l_ray.reading import READING, Reading
from ka2l_ray.semantics.clustering import Judge, cluster_answers


@dataclass(frozen=True)
class Agreement:
    """A judge's equivalences against people's."""

    pairs: int
    equivalent: float
    """Share that people call equivalent."""
    accuracy: float
    precision: float
    recall: float
    f1: float
    calls: int


def judge_pairs(judge: Judge, rows: Iterable[Mapping[str, Any]], *, strict: bool = True, reading: Reading = READING) -> Agreement:
    """Agreement on rows with ``question`` (may be null), ``a``, ``b`` and ``label`` (1: equivalent).

    Args:
        reading: what of ``a`` and ``b`` is compared; where it is the same, the judge is not asked.
    """
    rows = list(rows)
    answers = [[reading.answer(row["a"]), reading.answer(row["b"])] for row in rows]
    found = cluster_answers([row["question"] or "" for row in rows], answers, judge, strict=strict)
    said = [len(set(each.cluster_ids)) == 1 for each in found]
    truth = [row["label"] == 1 for row in rows]
    both = sum(a and b for a, b in zip(said, truth, strict=True))
    precision = both / sum(said) if any(said) else 0.0
    recall = both / sum(truth) if any(truth) else 0.0
    return Agreement(
        pairs=len(rows),
        equivalent=sum(truth) / len(rows),
        accuracy=sum(a == b for a, b in zip(said, truth, strict=True)) / len(rows),
        precision=precision,
        recall=recall,
        f1=2 * precision * recall / (precision + recall) if both else 0.0,
        calls=sum(each.counts.judge_calls for each in found),
    )


def read_pairs(path: str) -> list[dict[str, Any]]:
    """Rows of a file of judged pairs.

    Raises:
        UserError: no such file, or a row that lacks something.
    """
    rows = []
    for place, row in read_rows(path):
        if not all(isinstance(row.get(name), str) for name in ("a", "b")) or row.get("label") not in (0, 1):
            raise UserError(f"{place}: a pair has the texts 'a' and 'b' and a 'label', 1 where they mean the same, else 0")
        if not isinstance(row.get("question"), str | None):
            raise UserError(f"{place}: 'question' must be a text, or null where there is none")
        rows.append({**row, "question": row.get("question")})
    if not rows:
        raise UserError(f"{path}: no rows in this file")
    return rows
