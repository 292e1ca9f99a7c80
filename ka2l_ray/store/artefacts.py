"""The run directory: artefacts under content keys, committed atomically, recorded in a manifest (design: artefacts, resume).

An artefact is built in ``<name>.partial-<key>`` and renamed when whole; then the manifest names it. What the manifest
names is whole, anything else may be deleted. A partial directory of the same key is gone on with, which is how a stage
resumes at its finished shards. Files that start with ``_`` are ours; table readers pass over them.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

from pydantic import TypeAdapter, ValidationError

from ka2l_ray.errors import RunLockedError, RunMismatchError, UserError
from ka2l_ray.schema import SCHEMA_VERSION
from ka2l_ray.store.storage import Storage, digest

logger = logging.getLogger(__name__)

LEASE_SECONDS = 60.0
ARTEFACT_FILE = "_artefact.json"
SUPERSEDED = "superseded"  # directory of what another configuration made
KEY_DIGITS = 16
CURE_OF_A_MANIFEST = "restore it, or delete it: ka2l run takes up again what lies beside it"


@dataclass(frozen=True)
class Artefact:
    """A committed artefact. ``inputs`` are the key's parts, kept so that a difference can be named."""

    name: str
    key: str
    inputs: dict[str, Any]
    facts: dict[str, Any]
    seconds: float
    host: str
    url: str
    schema_version: int = SCHEMA_VERSION
    reused_from: str | None = None

    @property
    def storage(self) -> Storage:
        return Storage(self.url)


_RECORD = TypeAdapter(Artefact)

Build = Callable[[Storage], dict[str, Any]]


class Store(Protocol):
    """Where a stage commits its artefact: a run directory, or one directory for a stage run alone."""

    def compute(self, name: str, inputs: dict[str, Any], build: Build) -> Artefact: ...


@dataclass
class StageDirectory:
    """The output directory of one stage run alone; it is the artefact, whatever name the stage gives it."""

    out: str

    def compute(self, name: str, inputs: dict[str, Any], build: Build) -> Artefact:
        """As ``RunStore.compute``; a directory that ka2l did not write is refused, not overwritten."""
        inputs = {"schema_version": SCHEMA_VERSION, **inputs}
        parent, last = _split_url(self.out)
        storage = Storage(parent)
        found = _committed(storage, last)
        if found is not None:
            return _unchanged(found, inputs)
        if storage.names(last) and not _ours(storage, last):
            raise RunMismatchError(f"{self.out}: the directory is not empty and not written by ka2l; give another --out")
        with _directory_lock(storage, f".{last}.lock", self.out, lasting=False):
            return _build(storage, last, inputs, build)


@dataclass
class RunStore:
    """The run directory ``root``; ``reuse`` names other runs whose artefacts of equal key are taken over.

    Every artefact that this process asked for is in ``computed`` or ``kept``, in order: what a resumed run did again.
    """

    root: str
    reuse: tuple[str, ...] = ()
    computed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    settled_rounds: int | None = None
    """Rounds from the first on that were made under an earlier configuration, and stand as they are (``settle``); None: there was
    no other configuration."""

    def __post_init__(self) -> None:
        self.storage = Storage(self.root)
        self.manifest: dict[str, Artefact] = self._read_manifest()

    def compute(self, name: str, inputs: dict[str, Any], build: Build) -> Artefact:
        """The artefact ``name``: as it is when its key is unchanged, else built by ``build`` and committed.

        Args:
            name: path within the run, such as ``rounds/000/samples``.
            inputs: all that decides the content (stage, config read, keys of inputs, model identity), as JSON values.
            build: writes the artefact into the storage it is given and returns the facts to record (rows, counters).

        Raises:
            RunMismatchError: the artefact is there under another key, and its round is not settled; the message names what
                differs.
        """
        inputs = {"schema_version": SCHEMA_VERSION, **inputs}
        found = self.manifest.get(name)
        if found is not None and Storage(found.url).exists(ARTEFACT_FILE):  # else deleted by hand: made again
            if found.key == content_key(inputs) or self._is_settled(name):
                self.kept.append(name)
                return found
            if self.settled_rounds is None:
                return _unchanged(found, inputs)
            self._set_aside(found, inputs)
        whole = _committed(self.storage, name)
        if whole is not None and whole.key == content_key(inputs):  # killed between the rename and the manifest
            self._record(whole)
            self.kept.append(name)
            return whole
        lent = self._find_elsewhere(name, content_key(inputs))
        if lent is not None:
            self._record(lent)
            self.kept.append(name)
            return lent
        logger.info("%s: started", name)
        artefact = _build(self.storage, name, inputs, build)
        self._record(artefact)
        self.computed.append(name)
        logger.info("%s: done in %.1f s", name, artefact.seconds)
        return artefact

    def settle(self, rounds: int) -> None:
        """From now on another configuration is in force: the first ``rounds`` rounds and the baseline stand as they are, and
        what lies there of later ones under other keys is set aside and made again."""
        self.settled_rounds = rounds
        self._write_manifest()

    def _is_settled(self, name: str) -> bool:
        folder, _, rest = name.partition("/")
        if folder == "rounds":
            return int(rest.partition("/")[0]) < (self.settled_rounds or 0)
        return folder == "baseline" and bool(self.settled_rounds)  # nothing is held against it before a round is whole

    def _set_aside(self, found: Artefact, inputs: dict[str, Any]) -> None:
        aside = f"{SUPERSEDED}/{found.key}/{found.name}"
        logger.warning(
            "%s: made from other inputs (%s); it is set aside in %s and made again",
            found.name,
            difference(found.inputs, inputs),
            aside,
        )
        if found.reused_from is None:
            self.storage.move(found.name, aside)
        del self.manifest[found.name]
        self._write_manifest()

    def forget(self) -> None:
        """Delete every artefact."""
        self.storage.delete("manifest.json")
        for name in self.manifest:
            self.storage.delete(name)
        self.manifest = {}

    def log_metric(self, name: str, value: Any, **where: Any) -> None:
        """One line of ``metrics.jsonl``."""
        line = {"time": round(time.time(), 3), "name": name, "value": value, **where}
        self.storage.append_line("metrics.jsonl", json.dumps(line))

    def metrics(self) -> Iterator[dict[str, Any]]:
        """Lines of ``metrics.jsonl``; what a kill or a full disk cut short is passed over."""
        if self.storage.exists("metrics.jsonl"):
            for line in self.storage.read_bytes("metrics.jsonl").splitlines():
                with suppress(json.JSONDecodeError):
                    yield json.loads(line)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run directory; the lock of a killed process is free at once (a lease of an object store: in a minute).

        Raises:
            RunLockedError: another process holds it.
        """
        with _directory_lock(self.storage, ".lock", self.root):
            self.manifest = self._read_manifest()
            yield

    def _read_manifest(self) -> dict[str, Artefact]:
        if not self.storage.exists("manifest.json"):
            return {}
        document = _read_json(self.storage, "manifest.json")
        self.settled_rounds, entries = document.get("settled_rounds"), document.get("artefacts")
        where = self.storage.url("manifest.json")
        if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
            raise UserError(f"{where}: damaged (no artefacts in it); {CURE_OF_A_MANIFEST}")
        manifest: dict[str, Artefact] = {}
        for name, entry in entries.items():
            if entry.get("reused_from") is None:  # the run directory may have been moved
                entry["url"] = self.storage.url(name)
            manifest[name] = _artefact(entry, where)
        return manifest

    def _record(self, artefact: Artefact) -> None:
        self.manifest[artefact.name] = artefact
        self._write_manifest()
        self.log_metric("stage_seconds", artefact.seconds, artefact=artefact.name, reused=artefact.reused_from is not None)

    def _write_manifest(self) -> None:
        document = {
            "schema_version": SCHEMA_VERSION,
            "settled_rounds": self.settled_rounds,
            "artefacts": {n: asdict(a) for n, a in self.manifest.items()},
        }
        self.storage.write_bytes("manifest.json", json.dumps(document, indent=1).encode() + b"\n")

    def _find_elsewhere(self, name: str, key: str) -> Artefact | None:
        for root in self.reuse:
            other = RunStore(root).manifest.get(name)
            if other is not None and other.key == key:
                return Artefact(**{**asdict(other), "reused_from": root})
        return None


def content_key(inputs: dict[str, Any]) -> str:
    """Hash of all that decides an artefact's content."""
    return digest(inputs)


def committed_artefact(url: str) -> Artefact | None:
    """The artefact whose directory ``url`` is, or None where ka2l committed nothing there."""
    return _committed(*_split_storage(url))


def _build(storage: Storage, name: str, inputs: dict[str, Any], build: Build) -> Artefact:
    key = content_key(inputs)
    work = _work_directory(storage, name, key)
    started = time.perf_counter()
    try:
        facts = build(work)
    except BaseException:
        if work.files() == ["_key"]:  # nothing to go on with
            work.delete("")
        raise
    seconds = round(time.perf_counter() - started, 3)
    artefact = Artefact(name, key, inputs, facts, seconds, socket.gethostname(), storage.url(name))
    work.delete("_scratch")
    work.write_bytes(ARTEFACT_FILE, json.dumps(asdict(artefact), indent=1).encode() + b"\n")
    if storage.local:
        storage.rename_into(work, name)
    return artefact


def _unchanged(found: Artefact, inputs: dict[str, Any]) -> Artefact:
    if found.key != content_key(inputs):
        raise RunMismatchError(
            f"{found.url}: made from other inputs ({difference(found.inputs, inputs)}); "
            "give another output directory, or delete this one"
        )
    return found


def _committed(storage: Storage, name: str) -> Artefact | None:
    marker = f"{name}/{ARTEFACT_FILE}" if name else ARTEFACT_FILE
    if not storage.exists(marker):
        return None
    return _artefact({**_read_json(storage, marker), "url": storage.url(name)}, storage.url(marker))


def _read_json(storage: Storage, name: str) -> dict[str, Any]:
    """A JSON object that ka2l_ray wrote.

    Raises:
        UserError: it is none.
    """
    cure = CURE_OF_A_MANIFEST if name == "manifest.json" else "delete its directory, and it is made again"
    try:
        found = json.loads(storage.read_bytes(name))
    except ValueError as error:  # not JSON, or not UTF-8
        raise UserError(f"{storage.url(name)}: damaged ({error}); {cure}") from None
    if not isinstance(found, dict):
        raise UserError(f"{storage.url(name)}: damaged (not a JSON object); {cure}")
    return found


def _artefact(entry: dict[str, Any], where: str) -> Artefact:
    try:
        Artefact(**entry)
        return _RECORD.validate_python(entry)
    except TypeError:
        raise RunMismatchError(
            f"{where}: recorded by another version of ka2l_ray, in other words than this one's; "
            "read it with that version, or give another directory"
        ) from None
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"])
        raise UserError(f"{where}: damaged ({place}: {fault['msg']}); restore it, or delete it and what it names") from None


def _ours(storage: Storage, name: str) -> bool:
    """Whether ka2l made the directory: it holds a key, and is whole, or named by that key; an object store names none."""
    if not storage.exists(f"{name}/_key"):
        return False
    key = storage.read_bytes(f"{name}/_key", end=KEY_DIGITS + 1).decode(errors="replace")
    named = not storage.local or name.endswith(f".partial-{key}") or storage.exists(f"{name}/{ARTEFACT_FILE}")
    return named and re.fullmatch(f"[0-9a-f]{{{KEY_DIGITS}}}", key) is not None


def _work_directory(storage: Storage, name: str, key: str) -> Storage:
    """Where the artefact is built: what an earlier attempt of the same key finished stays, any other is deleted.

    A local directory gets its name when it is whole; an object store has no rename, so there the manifest decides.
    """
    parent, _, last = name.rpartition("/")
    prefix = f"{parent}/" if parent else ""
    wanted = f"{last}.partial-{key}" if storage.local else last
    for other in storage.names(parent):
        if other == last or other.startswith(f"{last}.partial-"):
            ours = _ours(storage, prefix + other)
            if not ours and storage.names(prefix + other):
                raise RunMismatchError(
                    f"{storage.url(prefix + other)}: not made by ka2l; give another output directory, or move it"
                )
            if not ours or storage.read_bytes(f"{prefix}{other}/_key") != key.encode():
                storage.delete(prefix + other)
    work = storage.at(prefix + wanted)
    work.write_bytes("_key", key.encode())
    return work


def _split_url(url: str) -> tuple[str, str]:
    parent, _, last = url.rstrip("/").rpartition("/")
    if parent.endswith(":/"):  # memory://name: the root of its filesystem
        return f"{parent}/", last
    return (parent or ("/" if url.startswith("/") else ".")), last


def _split_storage(url: str) -> tuple[Storage, str]:
    parent, last = _split_url(Storage(url).url(""))
    return Storage(parent), last


@contextmanager
def _directory_lock(storage: Storage, name: str, shown: str, *, lasting: bool = True) -> Iterator[None]:
    """Args: lasting: a local lock's file stays when the lock is given back."""
    me = f"process {os.getpid()} on {socket.gethostname()}"
    with _file_lock(storage, name, shown, me, lasting) if storage.local else _lease(storage, name, shown, me):
        yield


@contextmanager
def _file_lock(storage: Storage, name: str, shown: str, me: str, lasting: bool) -> Iterator[None]:
    path = Path(storage.path(name))
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked_file(path, shown) as file:
        file.truncate(0)
        file.write(me)
        file.flush()
        try:
            yield
        finally:
            if not lasting:
                path.unlink(missing_ok=True)  # held to the end: whoever opened it meanwhile sees that it is gone


def _locked_file(path: Path, shown: str) -> TextIO:
    """``path``, locked, and still the file of that name: its last holder may have deleted it in between."""
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                file.seek(0)
                raise _locked(shown, file.read()) from None
        with suppress(FileNotFoundError):
            if os.path.samefile(path, file.fileno()):
                return file
        file.close()


@contextmanager
def _lease(storage: Storage, name: str, shown: str, me: str) -> Iterator[None]:
    if storage.exists(name):
        lease = json.loads(storage.read_bytes(name))
        if lease["holder"] != me and time.time() - lease["time"] < LEASE_SECONDS:
            raise _locked(shown, lease["holder"])
    done = threading.Event()

    def renew() -> None:
        storage.write_bytes(name, json.dumps({"holder": me, "time": time.time()}).encode())

    def keep_renewing() -> None:
        while not done.wait(LEASE_SECONDS / 4):
            renew()

    renew()
    thread = threading.Thread(target=keep_renewing, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        storage.delete(name)


def _locked(shown: str, holder: str) -> RunLockedError:
    return RunLockedError(
        f"{shown}: another driver works on this run ({holder}); wait for it to end, or use another run directory"
    )


def difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The first few values that differ, by dotted name."""
    old, new = flatten(before), flatten(now)
    names = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    shown = [f"{name}: {old.get(name)!r} there, {new.get(name)!r} now" for name in names[:4]]
    return "; ".join(shown) + (f"; and {len(names) - 4} more" if len(names) > 4 else "")


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names."""
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        flat.update(flatten(inner, f"{prefix}.{name}" if prefix else str(name)))
    return flat
