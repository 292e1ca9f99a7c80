"""Files on a local path or on any filesystem URI that pyarrow or fsspec knows, with atomic writes where the system has them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from ka2l_ray.errors import UserError


class Storage:
    """One directory. Paths given to its methods are relative to it and use ``/``."""

    def __init__(self, root: str | Path) -> None:
        self.filesystem, self.root = fsspec.core.url_to_fs(str(root))
        self.local = isinstance(self.filesystem, LocalFileSystem)

    def path(self, name: str = "") -> str:
        return f"{self.root}/{name}" if name else self.root

    def url(self, name: str = "") -> str:
        """Path that another process can open: plain for local files, with its protocol otherwise."""
        return self.path(name) if self.local else self.filesystem.unstrip_protocol(self.path(name))

    def at(self, name: str) -> Storage:
        """The storage of a sub-directory."""
        return Storage(self.url(name))

    def exists(self, name: str = "") -> bool:
        return bool(self.filesystem.exists(self.path(name)))

    def names(self, name: str = "") -> list[str]:
        """Names of what lies directly in a directory, sorted; empty where there is none."""
        if not self.local:
            self.filesystem.invalidate_cache(self.path(name))  # others write here too
        if not self.exists(name):
            return []
        return sorted(str(p).rstrip("/").rsplit("/", 1)[-1] for p in self.filesystem.ls(self.path(name), detail=False))

    def files(self) -> list[str]:
        """Paths of all files below, sorted."""
        return sorted(path.removeprefix(self.root).lstrip("/") for path in self.filesystem.find(self.root))

    def read_bytes(self, name: str, end: int | None = None) -> bytes:
        """The file, or its first ``end`` bytes."""
        return bytes(self.filesystem.cat_file(self.path(name), end=end))

    def write_bytes(self, name: str, data: bytes) -> None:
        """Whole or not at all: temporary name, fsync, rename (object stores put a whole object at once)."""
        if not self.local:
            self.filesystem.makedirs(self.path(name).rsplit("/", 1)[0], exist_ok=True)
            self.filesystem.pipe_file(self.path(name), data)
            return
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
        _fsync_directory(target.parent)

    def append_line(self, name: str, line: str) -> None:
        """Behind a line that was cut short, by a kill or a full disk, it begins on its own."""
        torn = self.exists(name) and self.filesystem.cat_file(self.path(name), start=-1) not in (b"", b"\n")
        with self.filesystem.open(self.path(name), "ab") as file:
            file.write(b"\n" * torn + line.encode() + b"\n")

    def write_table(self, name: str, table: pa.Table) -> None:
        """Parquet with zstd, written atomically."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self.write_bytes(name, sink.getvalue().to_pybytes())

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """One Parquet file, or all those of a directory."""
        return pa.concat_tables(self._iter_tables(name, columns))

    def _iter_tables(self, name: str, columns: list[str] | None) -> list[pa.Table]:
        files = [name] if name.endswith(".parquet") else self.parquet_files(name)
        if not files:
            raise FileNotFoundError(f"{self.url(name)}: no Parquet file there")
        tables = []
        for file in files:
            with self.filesystem.open(self.path(file), "rb") as source:
                try:
                    tables.append(pq.read_table(source, columns=columns))
                except (pa.ArrowInvalid, OSError) as error:
                    reason = str(error).splitlines()[0]
                    raise UserError(
                        f"{self.url(file)}: not a whole Parquet file ({reason}); restore it, or make it again"
                    ) from None
        return tables

    def read_schema(self, name: str) -> pa.Schema:
        with self.filesystem.open(self.path(name), "rb") as source:
            return pq.read_schema(source)

    def count_rows(self, name: str = "") -> int:
        """Rows of one Parquet file, or of all those of a directory, from their footers."""
        rows = 0
        for file in [name] if name.endswith(".parquet") else self.parquet_files(name):
            with self.filesystem.open(self.path(file), "rb") as source:
                rows += pq.ParquetFile(source).metadata.num_rows
        return rows

    def parquet_files(self, name: str = "") -> list[str]:
        prefix = f"{name}/" if name else ""
        return [prefix + file for file in self.names(name) if file.endswith(".parquet")]

    def rename_into(self, source: Storage, name: str) -> None:
        """Local only: move the directory ``source`` to ``name``, durably."""
        assert self.local
        target = Path(self.path(name))
        Path(source.root).replace(target)
        _fsync_directory(target.parent)

    def move(self, name: str, to: str) -> None:
        """A directory, to where nothing is."""
        self.delete(to)
        if self.local:
            Path(self.path(to)).parent.mkdir(parents=True, exist_ok=True)
            Path(self.path(name)).replace(self.path(to))
        else:
            self.filesystem.mv(self.path(name), self.path(to), recursive=True)

    def delete(self, name: str) -> None:
        if self.exists(name):
            if self.local and Path(self.path(name)).is_dir():
                shutil.rmtree(self.path(name))
            else:
                self.filesystem.rm(self.path(name), recursive=True)


def canonical_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, 16 hex digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, 16 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
