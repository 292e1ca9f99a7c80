"""The run directory: content keys, commits that are whole or not there, resume, locks; on a local path and on an object store."""

from __future__ import annotations

import ast
import fcntl
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import fsspec
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import ka2l_ray
import ka2l_ray.store.artefacts
from ka2l_ray.errors import RunLockedError, RunMismatchError, UserError
from ka2l_ray.schema import SCHEMA_VERSION
from ka2l_ray.store.artefacts import (
    LEASE_SECONDS,
    Artefact,
    Build,
    RunStore,
    StageDirectory,
    committed_artefact,
    content_key,
    difference,
)
from ka2l_ray.store.storage import Storage

NAME = "rounds/000/samples"
INPUTS = {"stage": "sample", "sampling": {"k": 10, "temperature": 1.0}, "model": "abc"}
OTHER = {"stage": "sample", "sampling": {"k": 5, "temperature": 1.0}, "model": "abc"}
TABLE = pa.table({"question_id": ["a", "b"], "x": [1, 2]})

memory_roots = (f"memory://store-{i}/run" for i in itertools.count())


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A place for a run: a local directory that is not there yet, or a URI of an object store."""
    if request.param == "local":
        yield str(tmp_path / "run")
    else:
        yield next(memory_roots)
        fsspec.filesystem("memory").rm("/", recursive=True)


def build_table(work: Storage) -> dict[str, int]:
    work.write_table("part-00000.parquet", TABLE)
    return {"rows": 2}


def never(work: Storage) -> dict[str, int]:
    raise AssertionError("this was committed already")


def dies_half_way(work: Storage) -> dict[str, int]:
    work.write_bytes("shard-0", b"done")
    raise RuntimeError("node lost")


class Counting:
    """A build that counts how often it ran."""

    def __init__(self, build: Build = build_table) -> None:
        self.build, self.times = build, 0

    def __call__(self, work: Storage) -> dict[str, int]:
        self.times += 1
        return self.build(work)


def names_below(root: str) -> list[str]:
    """Every file of a run, by path within it."""
    filesystem, path = fsspec.core.url_to_fs(root)
    return sorted(file.removeprefix(path).lstrip("/") for file in filesystem.find(path))


def test_an_artefact_is_computed_committed_recorded_and_read(root: str) -> None:
    store = RunStore(root)
    artefact = store.compute(NAME, INPUTS, build_table)
    assert artefact.storage.read_table("").equals(TABLE)
    assert artefact.facts == {"rows": 2}
    assert artefact.inputs == {"schema_version": SCHEMA_VERSION, **INPUTS}
    assert artefact.key == content_key(artefact.inputs)
    assert store.computed == [NAME]
    assert f"{NAME}/part-00000.parquet" in names_below(root)
    assert not any("partial" in name for name in names_below(root))


def test_the_same_key_is_not_computed_again(root: str) -> None:
    first, build = RunStore(root), Counting()
    artefact = first.compute(NAME, INPUTS, build)
    assert first.compute(NAME, INPUTS, build) == artefact
    later = RunStore(root)
    assert later.compute(NAME, json.loads(json.dumps(INPUTS)), build) == artefact
    assert build.times == 1
    assert (later.computed, later.kept) == ([], [NAME])


def test_the_manifest_outlives_the_process_and_names_what_is_committed(root: str) -> None:
    store = RunStore(root)
    made = {
        name: store.compute(name, {**INPUTS, "name": name}, build_table) for name in ("questions", "rounds/000/a", "rounds/001/a")
    }
    assert RunStore(root).manifest == made
    document = json.loads(Storage(root).read_bytes("manifest.json"))
    assert list(document["artefacts"]) == list(made)
    assert document["artefacts"]["questions"]["key"] == made["questions"].key
    assert committed_artefact(made["rounds/001/a"].url) == made["rounds/001/a"]


def test_another_key_is_refused_and_what_differs_is_named(root: str) -> None:
    store = RunStore(root)
    store.compute(NAME, INPUTS, build_table)
    with pytest.raises(RunMismatchError, match=r"samples: made from other inputs \(sampling.k: 10 there, 5 now\)"):
        store.compute(NAME, OTHER, never)
    assert store.compute(NAME, INPUTS, never).storage.read_table("").equals(TABLE)


def test_settled_rounds_stand_and_what_is_behind_them_is_set_aside_and_made_again(root: str) -> None:
    """Whatever their keys would be now; what was set aside can be read."""
    store = RunStore(root)
    names = ("baseline/evaluation", "rounds/000/samples", "rounds/001/samples", "rounds/001/states")
    made = {name: store.compute(name, INPUTS, build_table) for name in names}
    store.settle(1)
    later, build = RunStore(root), Counting()
    for name in names[:2]:
        assert later.compute(name, OTHER, never) == made[name]
    assert later.compute("rounds/001/states", INPUTS, never) == made["rounds/001/states"]
    again = later.compute("rounds/001/samples", OTHER, build)
    assert build.times == 1
    assert again.key != made["rounds/001/samples"].key
    aside = committed_artefact(f"{root}/superseded/{made['rounds/001/samples'].key}/rounds/001/samples")
    assert aside is not None
    assert aside.storage.read_table("").equals(TABLE)
    assert RunStore(root).compute("rounds/001/samples", OTHER, never) == again


def test_where_no_round_is_whole_yet_all_is_made_again(root: str) -> None:
    store = RunStore(root)
    names = ("baseline/evaluation", "rounds/000/samples")
    made = {name: store.compute(name, INPUTS, build_table).key for name in names}
    store.settle(0)
    later = RunStore(root)
    assert all(later.compute(name, OTHER, build_table).key != made[name] for name in names)
    assert later.computed == list(names)


def test_another_schema_version_is_named_as_what_differs(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    RunStore(root).compute(NAME, INPUTS, build_table)
    monkeypatch.setattr(ka2l_ray.store.artefacts, "SCHEMA_VERSION", ka2l_ray.store.artefacts.SCHEMA_VERSION + 1)
    with pytest.raises(RunMismatchError, match=r"made from other inputs \(schema_version: "):
        RunStore(root).compute(NAME, INPUTS, never)


def test_difference_names_the_first_few_values_by_dotted_name() -> None:
    before = {"a": 1, "b": {"c": [1, 2], "d": {"e": "x"}}, "f": 0}
    assert difference(before, {**before, "b": {"c": [1], "d": {"e": "x"}}}) == "b.c: [1, 2] there, [1] now"
    assert difference(before, {"a": 1, "b": before["b"]}) == "f: 0 there, None now"
    assert difference({}, dict.fromkeys("abcdef", 1)).endswith("d: None there, 1 now; and 2 more")


def test_content_key_follows_values_not_their_order() -> None:
    assert content_key({"a": 1, "b": {"c": 2, "d": 3}}) == content_key({"b": {"d": 3, "c": 2}, "a": 1})
    assert len({content_key(inputs) for inputs in ({"a": 1}, {"a": 2}, {"a": "1"}, {"a": None}, {}, {"b": 1})}) == 6


def test_a_build_that_fails_commits_nothing(root: str) -> None:
    store = RunStore(root)
    with pytest.raises(RuntimeError, match="node lost"):
        store.compute(NAME, INPUTS, dies_half_way)
    assert store.manifest == RunStore(root).manifest == {}
    assert committed_artefact(Storage(root).url(NAME)) is None
    assert store.computed == []


def refuses(work: Storage) -> dict[str, int]:
    work.filesystem.makedirs(work.path("_scratch/clusters"), exist_ok=True)
    raise UserError("samples.jsonl:1: no generations")


def test_a_build_that_wrote_nothing_leaves_nothing(root: str) -> None:
    with pytest.raises(UserError):
        RunStore(root).compute(NAME, INPUTS, refuses)
    with pytest.raises(UserError):
        StageDirectory(f"{root}/out").compute("samples", INPUTS, refuses)
    assert names_below(root) == []


def test_a_stage_directory_leaves_no_lock(root: str) -> None:
    StageDirectory(f"{root}/out").compute("samples", INPUTS, build_table)
    with pytest.raises(RuntimeError):
        StageDirectory(f"{root}/half").compute("samples", INPUTS, dies_half_way)
    assert not any(name.endswith(".lock") for name in names_below(root))


def test_a_lock_whose_file_its_last_holder_deleted_is_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened before it was deleted and locked after that, it would keep nobody else out."""
    lock, flock = tmp_path / ".out.lock", fcntl.flock

    def late(file: TextIO, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        lock.unlink()
        flock(file, how)

    def second(work: Storage) -> dict[str, int]:
        with pytest.raises(RunLockedError):
            StageDirectory(str(tmp_path / "out")).compute("samples", OTHER, never)
        return build_table(work)

    monkeypatch.setattr(fcntl, "flock", late)
    StageDirectory(str(tmp_path / "out")).compute("samples", INPUTS, second)


def test_what_a_failed_build_finished_is_there_when_the_same_key_goes_on(root: str) -> None:
    with pytest.raises(RuntimeError):
        RunStore(root).compute(NAME, INPUTS, dies_half_way)

    def goes_on(work: Storage) -> dict[str, int]:
        assert work.read_bytes("shard-0") == b"done"
        return build_table(work)

    artefact = RunStore(root).compute(NAME, INPUTS, goes_on)
    assert artefact.storage.read_bytes("shard-0") == b"done"
    assert not any("partial" in name for name in names_below(root))


def test_what_a_failed_build_of_another_key_left_is_deleted(root: str) -> None:
    with pytest.raises(RuntimeError):
        RunStore(root).compute(NAME, INPUTS, dies_half_way)

    def starts_afresh(work: Storage) -> dict[str, int]:
        assert not work.exists("shard-0")
        return build_table(work)

    artefact = RunStore(root).compute(NAME, OTHER, starts_afresh)
    assert not artefact.storage.exists("shard-0")
    assert not any("partial" in name or "shard-0" in name for name in names_below(root))


def test_scratch_files_are_not_committed(root: str) -> None:
    def build(work: Storage) -> dict[str, int]:
        work.write_bytes("_scratch/shards/0", b"x")
        return build_table(work)

    artefact = RunStore(root).compute(NAME, INPUTS, build)
    assert not artefact.storage.exists("_scratch")
    assert artefact.storage.read_table("").equals(TABLE)


@pytest.mark.parametrize(
    "root",
    [
        "local",
        "memory",
    ],
    indirect=True,
)
def test_a_run_killed_between_the_rename_and_the_manifest_goes_on(root: str) -> None:
    """At that moment the artefact is in its place and no manifest names it."""
    RunStore(root).compute(NAME, INPUTS, build_table)
    Storage(root).delete("manifest.json")
    artefact = RunStore(root).compute(NAME, INPUTS, build_table)
    assert artefact.storage.read_table("").equals(TABLE)
    assert RunStore(root).manifest == {NAME: artefact}


def test_a_directory_that_the_manifest_does_not_name_is_deleted_and_made_again(root: str) -> None:
    """A run that was killed, then started with another configuration."""
    build = Counting()
    RunStore(root).compute(NAME, OTHER, build)
    Storage(root).delete("manifest.json")
    artefact = RunStore(root).compute(NAME, INPUTS, build)
    assert build.times == 2
    assert committed_artefact(artefact.url) == artefact


def test_an_artefact_of_equal_key_is_taken_over_from_another_run(root: str) -> None:
    lender, borrower = RunStore(f"{root}/a"), RunStore(f"{root}/b", reuse=(f"{root}/none", f"{root}/a"))
    made = lender.compute(NAME, INPUTS, build_table)
    lent = borrower.compute(NAME, INPUTS, never)
    assert (lent.key, lent.url, lent.reused_from) == (made.key, made.url, f"{root}/a")
    assert lent.storage.read_table("").equals(TABLE)
    assert (borrower.computed, borrower.kept) == ([], [NAME])
    assert RunStore(f"{root}/b").manifest[NAME] == lent  # from now on without reuse


def test_an_artefact_of_another_key_is_not_taken_over(root: str) -> None:
    RunStore(f"{root}/a").compute(NAME, OTHER, build_table)
    build = Counting()
    artefact = RunStore(f"{root}/b", reuse=(f"{root}/a",)).compute(NAME, INPUTS, build)
    assert build.times == 1
    assert artefact.reused_from is None


def test_metrics_are_appended_line_by_line(root: str) -> None:
    store = RunStore(root)
    store.compute(NAME, INPUTS, build_table)
    RunStore(root).log_metric("accuracy", 0.5, round=1)
    first, second = [json.loads(line) for line in Storage(root).read_bytes("metrics.jsonl").decode().splitlines()]
    assert (first["name"], first["artefact"], first["reused"]) == ("stage_seconds", NAME, False)
    assert first["value"] == store.manifest[NAME].seconds
    assert (second["name"], second["value"], second["round"]) == ("accuracy", 0.5, 1)
    assert first["time"] <= second["time"]


def test_a_line_of_metrics_that_was_cut_short_is_passed_over(root: str) -> None:
    store = RunStore(root)
    assert list(store.metrics()) == []
    store.storage.write_bytes("metrics.jsonl", b"")
    store.log_metric("first", 1)
    whole = store.storage.read_bytes("metrics.jsonl")
    for cut in (1, 20, len(whole) - 2):
        store.storage.write_bytes("metrics.jsonl", whole + whole[:cut])
        assert [line["name"] for line in store.metrics()] == ["first"]
        store.log_metric("second", 2)
        assert [line["name"] for line in store.metrics()] == ["first", "second"]


def test_an_artefact_can_be_opened_where_its_url_says(root: str) -> None:
    artefact = RunStore(root).compute(NAME, INPUTS, build_table)
    assert Storage(artefact.url).read_table("").equals(TABLE)
    assert Artefact(**json.loads(Storage(artefact.url).read_bytes("_artefact.json"))) == artefact


def test_an_artefact_moved_elsewhere_is_found_there(tmp_path: Path) -> None:
    RunStore(str(tmp_path / "run")).compute(NAME, INPUTS, build_table)
    (tmp_path / "run").rename(tmp_path / "moved")
    found = committed_artefact(str(tmp_path / "moved" / NAME))
    assert found is not None
    assert found.storage.read_table("").equals(TABLE)


def test_a_stage_directory_is_the_artefact(root: str) -> None:
    artefact = StageDirectory(f"{root}/out").compute("samples", INPUTS, build_table)
    assert Storage(f"{root}/out").read_table("").equals(TABLE)
    assert committed_artefact(f"{root}/out") == artefact
    assert StageDirectory(f"{root}/out").compute("samples", INPUTS, never).key == artefact.key
    with pytest.raises(RunMismatchError, match=r"out: made from other inputs \(sampling.k: 10 there, 5 now\)"):
        StageDirectory(f"{root}/out").compute("samples", OTHER, never)


def test_a_stage_directory_goes_on_where_a_failed_build_ended(root: str) -> None:
    with pytest.raises(RuntimeError):
        StageDirectory(f"{root}/out").compute("samples", INPUTS, dies_half_way)
    assert committed_artefact(f"{root}/out") is None
    artefact = StageDirectory(f"{root}/out").compute("samples", INPUTS, build_table)
    assert artefact.storage.read_bytes("shard-0") == b"done"


def test_a_stage_directory_with_foreign_files_is_refused_and_left_alone(root: str) -> None:
    Storage(f"{root}/out").write_bytes("thesis.tex", b"years of work")
    with pytest.raises(RunMismatchError, match=r"out: the directory is not empty and not written by ka2l; give another --out"):
        StageDirectory(f"{root}/out").compute("samples", INPUTS, never)
    assert names_below(f"{root}/out") == ["thesis.tex"]


@pytest.mark.parametrize("key", [b"my notes", b"0123456789abcdef", b""])
def test_a_directory_with_a_key_that_is_not_ours_is_refused_and_left_alone(key: bytes, tmp_path: Path) -> None:
    for name in ("out", "out.partial-mine", f"{NAME}.partial-mine"):
        Storage(tmp_path / "theirs").write_bytes(f"{name}/_key", key)
        Storage(tmp_path / "theirs").write_bytes(f"{name}/thesis.tex", b"years of work")
    before = names_below(str(tmp_path / "theirs"))
    with pytest.raises(RunMismatchError, match=r"out: the directory is not empty and not written by ka2l"):
        StageDirectory(str(tmp_path / "theirs" / "out")).compute("samples", INPUTS, never)
    Path(tmp_path / "theirs" / "out").rename(tmp_path / "theirs" / "in")
    with pytest.raises(RunMismatchError, match=r"out.partial-mine: not made by ka2l"):
        StageDirectory(str(tmp_path / "theirs" / "out")).compute("samples", INPUTS, never)
    with pytest.raises(RunMismatchError, match=r"samples.partial-mine: not made by ka2l"):
        RunStore(str(tmp_path / "theirs")).compute(NAME, INPUTS, never)
    Path(tmp_path / "theirs" / "in").rename(tmp_path / "theirs" / "out")
    assert names_below(str(tmp_path / "theirs")) == before


def test_an_empty_directory_serves_as_a_stage_directory(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    StageDirectory(str(tmp_path / "out")).compute("samples", INPUTS, build_table)
    assert Storage(tmp_path / "out").read_table("").equals(TABLE)


def test_a_stage_directory_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    StageDirectory("out").compute("samples", INPUTS, build_table)
    assert Storage(tmp_path / "out").read_table("").equals(TABLE)


def test_a_stage_directory_may_lie_at_the_top_of_an_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    StageDirectory("memory://top-out").compute("samples", INPUTS, build_table)
    assert list(tmp_path.iterdir()) == []
    assert Storage("memory://top-out").read_table("").equals(TABLE)


HOLD = """
import sys, time
from ka2l_ray.store.artefacts import RunStore
with RunStore(sys.argv[1]).locked():
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def holder_of(root: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of ``root``."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, root], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_second_process_is_refused_and_told_who_holds_the_run(tmp_path: Path) -> None:
    root = str(tmp_path / "run")
    with (
        holder_of(root) as process,
        pytest.raises(RunLockedError, match=rf"another driver works on this run \(process {process.pid} on "),
        RunStore(root).locked(),
    ):
        pass


def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    root = str(tmp_path / "run")
    with holder_of(root) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        with RunStore(root).locked():
            holder = Path(root, ".lock").read_text()
        assert holder.startswith(f"process {os.getpid()} on ")


def test_a_lock_is_held_to_its_end_and_no_longer(tmp_path: Path) -> None:
    first, second = RunStore(str(tmp_path)), RunStore(str(tmp_path))
    with first.locked(), pytest.raises(RunLockedError, match=f"process {os.getpid()} "), second.locked():
        pass
    with second.locked():
        pass
    with pytest.raises(RuntimeError), first.locked():
        raise RuntimeError
    with second.locked():
        pass


def test_two_stages_may_work_side_by_side_but_not_on_one_directory(tmp_path: Path) -> None:
    def nested(work: Storage) -> dict[str, int]:
        StageDirectory(str(tmp_path / "b")).compute("samples", INPUTS, build_table)
        with pytest.raises(RunLockedError):
            StageDirectory(str(tmp_path / "a")).compute("samples", OTHER, never)
        return build_table(work)

    StageDirectory(str(tmp_path / "a")).compute("samples", INPUTS, nested)


def test_whoever_gets_the_lock_sees_what_the_last_holder_committed(root: str) -> None:
    waiting = RunStore(root)
    artefact = RunStore(root).compute(NAME, INPUTS, build_table)
    with waiting.locked():
        assert waiting.compute(NAME, INPUTS, never) == artefact


def write_lease(root: str, age: float) -> None:
    lease = {"holder": "process 1 on another-host", "time": time.time() - age}
    Storage(root).write_bytes(".lock", json.dumps(lease).encode())


@pytest.fixture
def store_root() -> Iterator[str]:
    yield next(memory_roots)
    fsspec.filesystem("memory").rm("/", recursive=True)


def test_a_lease_of_another_driver_is_respected_while_it_is_fresh(store_root: str) -> None:
    write_lease(store_root, age=LEASE_SECONDS - 5)
    with (
        pytest.raises(RunLockedError, match=r"another driver works on this run \(process 1 on another-host\)"),
        RunStore(store_root).locked(),
    ):
        pass
    assert Storage(store_root).exists(".lock")  # it is not ours to delete


def test_a_lease_that_was_not_renewed_is_taken_over_and_given_back(store_root: str) -> None:
    write_lease(store_root, age=LEASE_SECONDS + 5)
    with RunStore(store_root).locked():
        pass
    assert not Storage(store_root).exists(".lock")


class SlowObjectStore(MemoryFileSystem):
    """Writes take a while, as over a network."""

    protocol = "slowmemory"

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        time.sleep(0.2)
        super().pipe_file(path, value, mode=mode, **kwargs)


def test_a_lease_is_written_before_the_work_starts() -> None:
    fsspec.register_implementation("slowmemory", SlowObjectStore, clobber=True)
    with RunStore("slowmemory://lease/run").locked():
        there = Storage("slowmemory://lease/run").exists(".lock")
    assert there


def test_nothing_is_pickled() -> None:
    """No module of the core reads or writes pickles, and none lets another library unpickle."""
    root = Path(ka2l_ray.__file__).parent
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not {"pickle", "cloudpickle", "dill", "joblib", "shelve"} & {m.split(".")[0] for m in modules}, path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("torch.load", "torch.save"), path
                assert not any(keyword.arg == "allow_pickle" for keyword in node.keywords), path


def test_a_run_holds_only_json_and_parquet(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path / "run"))
    with store.locked():
        store.compute(NAME, INPUTS, build_table)
    contents = {name: (tmp_path / "run" / name).read_bytes() for name in names_below(str(tmp_path / "run"))}
    assert set(contents) == {
        ".lock", "manifest.json", "metrics.jsonl", f"{NAME}/_artefact.json", f"{NAME}/_key", f"{NAME}/part-00000.parquet"
    }  # fmt: skip
    assert contents[f"{NAME}/part-00000.parquet"][:4] == b"PAR1"
    json.loads(contents["manifest.json"])
