"""Answers that were drawn before, kept by content key: a question is not sampled twice by the same model in the same way."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from ka2l_ray import schema
from ka2l_ray.store.storage import Storage

MEMOISED = "_scratch/memoised.parquet"


class Memo:
    """Rows of ``schema.SAMPLES``, one directory a content key, in which each artefact that drew something new leaves a file."""

    def __init__(self, directory: str, key: str) -> None:
        self.storage = Storage(directory).at(key)

    def take_up(self, work: Storage, questions: pa.Table) -> tuple[pa.Table, pa.Table]:
        """(rows drawn before, questions still to be sampled).

        What is found is fixed in ``work`` at the first attempt, so that going on later finds the same questions missing.
        """
        if not work.exists(MEMOISED):
            work.write_table(MEMOISED, self._find(questions))
        found = work.read_table(MEMOISED)
        there = pc.is_in(questions["question_id"], value_set=found["question_id"].combine_chunks())
        return found, questions.filter(pc.invert(there))

    def keep(self, name: str, rows: pa.Table) -> None:
        """Add what was drawn, but for questions that failed."""
        rows = rows.filter(pc.is_null(rows["error"]))
        if len(rows):
            self.storage.write_table(f"{name}.parquet", rows)

    def _find(self, questions: pa.Table) -> pa.Table:
        """Rows kept of these very questions, each once."""
        wanted = set(zip(questions["question_id"].to_pylist(), questions["question"].to_pylist(), strict=True))
        found = [schema.SAMPLES.empty_table()]
        for file in self.storage.parquet_files():
            rows = self.storage.read_table(file).cast(schema.SAMPLES)
            asked = list(zip(rows["question_id"].to_pylist(), rows["question"].to_pylist(), strict=True))
            found.append(rows.filter(pa.array([pair in wanted for pair in asked])))
            wanted -= set(asked)
        return pa.concat_tables(found)
