"""Rows of questions that shards are ranges of: a table in memory, or files that are read a shard at a time."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from ka2l_ray.store.storage import Storage


class Rows(Protocol):
    """What shards are cut from; ``pa.Table`` is one."""

    def __len__(self) -> int: ...

    def slice(self, offset: int, length: int, /) -> pa.Table: ...


class StoredRows:
    """Rows of a directory's Parquet files, in the order of their names; the last file read stays in memory.

    Args:
        exclude: ids of rows that no shard holds, though it counts them.
    """

    def __init__(self, source: Storage, columns: list[str], exclude: frozenset[str] = frozenset()) -> None:
        self.source, self.columns = source, columns
        self.exclude = pa.array(sorted(exclude), pa.string())
        self.files = source.parquet_files()
        self.ends = list(accumulate(source.count_rows(file) for file in self.files))
        self.read: tuple[str, pa.Table] | None = None

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def slice(self, offset: int, length: int, /) -> pa.Table:
        """Rows ``offset`` to ``offset + length - 1`` but those excluded."""
        end, parts = min(offset + length, len(self)), []
        while offset < end:
            at = bisect_right(self.ends, offset)
            begins = self.ends[at - 1] if at else 0
            parts.append(self._file(self.files[at]).slice(offset - begins, end - offset))
            offset += len(parts[-1])
        rows = pa.concat_tables(parts)
        return rows.filter(pc.invert(pc.is_in(rows["question_id"], value_set=self.exclude)))

    def _file(self, name: str) -> pa.Table:
        if self.read is None or self.read[0] != name:
            self.read = name, self.source.read_table(name, columns=self.columns)
        return self.read[1]
