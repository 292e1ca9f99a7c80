"""Files on a local path and on an object store: whole writes, tables, listings."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ka2l_ray.store.storage import Storage, canonical_json, digest, file_digest

memory_roots = (f"memory://storage-{i}/x" for i in itertools.count())


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if request.param == "local":
        yield Storage(tmp_path / "x")
    else:
        yield Storage(next(memory_roots))
        fsspec.filesystem("memory").rm("/", recursive=True)


def test_bytes_are_written_into_directories_that_are_not_there_yet(storage: Storage) -> None:
    storage.write_bytes("a/b/c", b"one")
    storage.write_bytes("a/b/c", b"two")
    assert storage.read_bytes("a/b/c") == b"two"
    assert storage.names("a/b") == ["c"]  # no temporary file is left


def test_a_write_that_fails_leaves_the_old_content(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.write_bytes("manifest.json", b"old")
    with pytest.raises(TypeError):
        storage.write_bytes("manifest.json", "no bytes")  # type: ignore[arg-type]
    assert storage.read_bytes("manifest.json") == b"old"


def test_names_lists_what_lies_directly_in_a_directory(storage: Storage) -> None:
    for name in ("b", "a/x", "a/y/z", "_key"):
        storage.write_bytes(name, b"")
    assert storage.names() == ["_key", "a", "b"]
    assert storage.names("a") == ["x", "y"]
    assert storage.names("nowhere") == []


def test_delete_takes_a_file_or_a_whole_directory_and_does_not_mind_none(storage: Storage) -> None:
    for name in ("a/x", "a/y/z", "b"):
        storage.write_bytes(name, b"")
    storage.delete("a")
    storage.delete("nowhere")
    assert storage.names() == ["b"]
    storage.delete("b")
    assert not storage.exists("b")


def test_a_table_is_one_file_or_all_of_a_directory(storage: Storage) -> None:
    table = pa.table({"question_id": ["a", "b", "c"], "x": [1.0, 2.0, None]})
    storage.write_table("t/part-0.parquet", table.slice(0, 2))
    storage.write_table("t/part-1.parquet", table.slice(2))
    storage.write_bytes("t/_artefact.json", b"{}")
    assert storage.parquet_files("t") == ["t/part-0.parquet", "t/part-1.parquet"]
    assert storage.read_table("t").equals(table)
    assert storage.read_table("t", columns=["x"]).column_names == ["x"]
    assert storage.read_table("t/part-1.parquet")["question_id"].to_pylist() == ["c"]
    assert storage.read_schema("t/part-0.parquet").equals(table.schema)
    with pytest.raises(FileNotFoundError, match="no Parquet file there"):
        storage.read_table("nowhere")


def test_tables_are_compressed_with_zstd_and_keep_their_metadata(tmp_path: Path) -> None:
    schema = pa.schema([("x", pa.int64())], metadata={"schema_version": "1"})
    Storage(tmp_path).write_table("t.parquet", pa.table({"x": [1]}, schema=schema))
    file = pq.ParquetFile(tmp_path / "t.parquet")
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    assert file.schema_arrow.metadata == {b"schema_version": b"1"}


def test_lines_are_appended(storage: Storage) -> None:
    storage.write_bytes("other", b"")
    storage.append_line("metrics.jsonl", "one")
    storage.append_line("metrics.jsonl", "zwei ü")
    assert storage.read_bytes("metrics.jsonl").decode() == "one\nzwei ü\n"


def test_a_line_behind_one_that_was_cut_short_begins_on_its_own(storage: Storage) -> None:
    storage.write_bytes("metrics.jsonl", b"one\ntw")
    storage.append_line("metrics.jsonl", "three")
    storage.append_line("metrics.jsonl", "four")
    assert storage.read_bytes("metrics.jsonl") == b"one\ntw\nthree\nfour\n"


def test_at_and_url_lead_to_the_same_place(storage: Storage) -> None:
    storage.write_bytes("a/b", b"x")
    assert storage.at("a").read_bytes("b") == b"x"
    assert Storage(storage.url("a")).read_bytes("b") == b"x"
    assert Storage(storage.url()).exists("a/b")


def test_a_local_path_may_be_relative_and_a_url_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage = Storage("run")
    assert storage.local
    assert storage.url("a") == os.path.join(os.getcwd(), "run/a")


def test_digests_follow_values() -> None:
    assert canonical_json({"b": [1, 2.5, None], "a": "ü"}) == '{"a":"ü","b":[1,2.5,null]}'
    assert digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1}) != digest({"a": 2, "b": 2})
    assert len(digest({})) == 16


def test_file_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_digest(tmp_path / "empty") == "e3b0c44298fc1c14"  # the known SHA-256 of nothing
    assert file_digest(tmp_path / "abc") == "ba7816bf8f01cfea"
