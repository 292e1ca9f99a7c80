"""Near-duplicates of a test set in the pool, each with its nearest question there; counted for the report, never refused."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from ka2l_ray import schema
from ka2l_ray.near_duplicates import SHARED, NearDuplicates
from ka2l_ray.store.artefacts import Artefact, Store
from ka2l_ray.store.storage import Storage


def near_duplicates(store: Store, name: str, *, pool: Artefact, test: Artefact) -> Artefact:
    """``schema.NEAR_DUPLICATES`` rows; facts say how many test questions have one, of how many. The pool is read part by part."""
    inputs = {"stage": "near_duplicates", "pool": pool.key, "test": test.key, "shared": SHARED}

    def build(work: Storage) -> dict[str, Any]:
        asked = test.storage.read_table("", columns=["question_id", "question"]).to_pylist()
        near = NearDuplicates((row["question_id"], row["question"]) for row in asked)
        for file in pool.storage.parquet_files():
            for row in pool.storage.read_table(file, columns=["question_id", "question"]).to_pylist():
                near.look(row["question_id"], row["question"])
        rows = [
            {**row, "pool_id": twin.question_id, "pool_question": twin.question, "shared": twin.shared}
            for row in asked
            if (twin := near.twins.get(row["question_id"])) is not None
        ]
        work.write_table("part-00000.parquet", pa.Table.from_pylist(rows, schema=schema.NEAR_DUPLICATES))
        return {"rows": len(rows), "of": len(asked)}

    return store.compute(name, inputs, build)
