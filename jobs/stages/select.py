"""Stage select: the budget's worth of questions, by a named strategy over the scores' columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ka2l_ray import acquisition, schema
from ka2l_ray.seeds import generator
from ka2l_ray.store.artefacts import Artefact, Store
from ka2l_ray.store.storage import Storage, digest

COLUMNS = ("p_unknown", "next_token_entropy", "option_entropy", "semantic_entropy", "combined")


def select(
    store: Store, name: str, *, scores: Artefact, strategy: str, budget: int, labelled: frozenset[str], seed: tuple[int, ...]
) -> Artefact:
    """The selection table.

    Args:
        labelled: questions that are not to be chosen again.
        seed: (run seed, round), for draws and ties.
    """
    inputs = {
        "stage": "select",
        "scores": scores.key,
        "strategy": strategy,
        "budget": budget,
        "labelled": digest(sorted(labelled)),
        "seed": list(seed),
    }
    acquisition.strategy(strategy)

    def build(work: Storage) -> dict[str, Any]:
        table = scores.storage.read_table("").sort_by("question_id")
        spent = pc.is_in(table["question_id"], value_set=pa.array(sorted(labelled), pa.string()))
        table = table.filter(pc.invert(spent))
        if "error" in table.column_names:
            table = table.filter(pc.is_null(table["error"]))
        there = [c for c in COLUMNS if c in table.column_names]
        columns = {"row": np.arange(len(table)), **{c: table[c].to_numpy().astype(np.float64) for c in there}}
        indices, values = acquisition.select(strategy, columns, budget, generator(*seed, "select", strategy))
        rows = table.select(["question_id", "question"]).take(indices)
        chosen = pa.table(
            {
                "question_id": rows["question_id"],
                "question": rows["question"],
                "acquisition": pa.array(values, from_pandas=True),
                "rank": np.arange(budget, dtype=np.int32),
            },
            schema=schema.SELECTION,
        )
        work.write_table("selection.parquet", chosen)
        return {"rows": budget, "of": len(table)}

    return store.compute(name, inputs, build)
