"""How well a judge says what people say of pairs of answers: accuracy and F1, in both directions of meaning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

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


def judge_pairs(judge: Judge, rows: Iterable[Mapping[str, Any]], *, strict: bool = True) -> Agreement:
    """Agreement on rows with ``question`` (may be null), ``a``, ``b`` and ``label`` (1: equivalent)."""
    rows = list(rows)
    found = cluster_answers(
        [row["question"] or "" for row in rows], [[row["a"].strip(), row["b"].strip()] for row in rows], judge, strict=strict
    )
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
