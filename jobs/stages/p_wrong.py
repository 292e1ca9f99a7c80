"""p(wrong) beside the semantic entropies of a table, calibrated on those of its questions whose answers are known to be right or
wrong."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from ka2l_ray import schema
from ka2l_ray.errors import UserError
from ka2l_ray.store.artefacts import Artefact
from ka2l_ray.store.storage import Storage
from ka2l_ray.uncertainty.p_wrong import calibrate

logger = logging.getLogger(__name__)


def warn_of_one_class(answered: Artefact) -> None:
    """Where all labelled answers of a group are wrong, or all are right, nothing tells one from another."""
    rows = answered.storage.read_table("", columns=["wrong", "group"]).to_pylist()
    for group in sorted({row["group"] for row in rows}):
        said = [row["wrong"] for row in rows if row["group"] == group and row["wrong"] is not None]
        if len(set(said)) == 1:
            logger.warning(
                "%s: all %d labelled answers are %s, and so p(wrong) is %d for every question, whatever its score; label others",
                *(group, len(said), "wrong" if said[0] else "right", said[0]),
            )


def add_p_wrong(entropy: Storage, answered: Artefact) -> list[dict[str, Any]]:
    """Write ``schema.P_WRONG`` into the parts of an entropy table; how well it fits, group by group.

    Raises:
        UserError: semantic entropies are bounds, or a group has too few labelled questions.
    """
    table = entropy.read_table("", columns=["question_id", "question", "semantic_entropy", "bound"])
    check_exact(table["bound"].to_pylist(), entropy.url())
    known = answered.storage.read_table("", columns=["question_id", "wrong", "group"])
    said = dict(zip(known["question_id"].to_pylist(), zip(known["wrong"].to_pylist(), known["group"].to_pylist(), strict=True)))
    rows = table.to_pylist()
    found: dict[str, float] = {}
    fits = []
    for group in sorted(set(known["group"].to_pylist())):
        members = [row for row in rows if said[row["question_id"]][1] == group]
        scores = np.array([row["semantic_entropy"] for row in members])
        fit = calibrate(scores, [said[row["question_id"]][0] for row in members], [row["question"] for row in members])
        found.update(zip((row["question_id"] for row in members), fit.p_wrong.tolist(), strict=True))
        fits.append({"group": group, "questions": len(members), **{k: v for k, v in asdict(fit).items() if k != "p_wrong"}})
    for file in entropy.parquet_files():
        part = entropy.read_table(file)
        column = pa.array([found[question_id] for question_id in part["question_id"].to_pylist()], pa.float64())
        entropy.write_table(file, part.append_column(schema.P_WRONG, column))
    return fits


def check_exact(bounds: list[str], where: str) -> None:
    """Raise a UserError where semantic entropies are bounds: of different tightness, they cannot be compared."""
    if any(bound != "exact" for bound in bounds):
        raise UserError(f"{where}: bounds of semantic entropy cannot be compared; set entropy.label_only=false")
