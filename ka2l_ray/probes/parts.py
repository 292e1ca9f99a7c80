"""What a probe is fitted on and held against: the parts of a probing set, its labels, and what they must hold."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ka2l_ray.errors import UserError
from ka2l_ray.normalization import normalize_question

Part = Literal["train", "validation", "test"]
Target = Literal["label", "soft", "semantic_entropy"]


class DegenerateLabelsError(UserError):
    """The labels of a part are all the same: there is nothing to tell apart."""


def split_of(question: str) -> Part:
    """Part of a question by hash of its normalised text, 7:2:1; equal questions never part ways."""
    point = int.from_bytes(hashlib.sha256(normalize_question(question).encode()).digest()[:4], "big") / 2**32
    return "train" if point < 0.7 else "validation" if point < 0.9 else "test"


def split_indices(questions: Sequence[str]) -> dict[Part, NDArray[np.int64]]:
    parts = np.array([split_of(question) for question in questions], dtype=object)
    return {part: np.flatnonzero(parts == part) for part in ("train", "validation", "test")}  # type: ignore[misc]


def largest_meaning(cluster_ids: Sequence[int]) -> float:
    """Share of the answers that have the commonest meaning."""
    return float(np.bincount(np.asarray(cluster_ids)).max() / len(cluster_ids))


def soft_target(target: Target, semantic_entropy: float, cluster_ids: Sequence[int], *, unanswered: bool = False) -> float:
    """What a probe is to say of a question, 0 (known) to 1, where it is no label: the share of its answers outside their largest
    meaning (``soft``), or its semantic entropy as a share of the most that so many answers can have (``semantic_entropy``).

    Args:
        unanswered: it abstains, and counts as unknown for that: 1, as its answers have one meaning, and show no knowledge.
    """
    if unanswered:
        return 1.0
    if target == "soft":
        return 1 - largest_meaning(cluster_ids)
    most = np.log(len(cluster_ids)) if len(cluster_ids) > 1 else 1.0
    return float(min(1.0, max(0.0, semantic_entropy / most)))


def check_labels(labels: NDArray[np.int8], parts: dict[Part, NDArray[np.int64]]) -> None:
    """Raise DegenerateLabelsError where training or validation holds one label only."""
    if len(set(labels.tolist())) < 2:
        word = ", ".join("unknown" if label else "known" for label in labels[:1].tolist()) or "neither known nor unknown"
        raise DegenerateLabelsError(f"all {len(labels)} questions of the probing set are labelled {word}: no probe can be fitted")
    for part in ("train", "validation"):
        values = set(labels[parts[part]].tolist())  # type: ignore[index]
        if len(values) < 2:
            size = len(parts[part])  # type: ignore[index]
            raise DegenerateLabelsError(
                f"the probe's {part} part ({size} questions) does not hold both labels: no probe can be fitted; "
                "raise pool.probing_size or choose another entropy.rule, or a probe.target that needs no label"
            )


def check_targets(targets: NDArray[np.float32], parts: dict[Part, NDArray[np.int64]], name: Target) -> None:
    """Raise DegenerateLabelsError where all targets of training or validation are the same."""
    for part in ("train", "validation"):
        values = targets[parts[part]]  # type: ignore[index]
        if len(set(values.tolist())) < 2:
            raise DegenerateLabelsError(
                f"probe.target {name} is the same for all {len(values)} questions of the probe's {part} part: no probe can be "
                "fitted; raise pool.probing_size"
            )


def check_finite(states: NDArray[np.floating], question_ids: Sequence[str], layer: int) -> None:
    """Raise a UserError that names the first question with a NaN or infinite state (tokens that are all NaN are padding), or with
    no token."""
    wrong = ~np.isfinite(states)
    if states.ndim == 3:
        padding = np.isnan(states).all(axis=2)
        empty = np.flatnonzero(padding.all(axis=1))
        if len(empty):
            raise UserError(
                f"hidden states: question '{question_ids[empty[0]]}' has no tokens in layer {layer}, all are padding "
                f"({len(empty)} of {len(states)} questions do); give the states of one token each at least"
            )
        wrong = (wrong & ~padding[..., None]).any(axis=2)
    bad = np.flatnonzero(wrong.any(axis=1))
    if len(bad):
        raise UserError(
            f"hidden states: question '{question_ids[bad[0]]}' has a non-finite value in layer {layer} ({len(bad)} of "
            f"{len(states)} questions do); run the model in float32 (model.dtype)"
        )
