"""Verdicts that outlive a run: one judge's, by text, in a directory of sqlite files.

A worker reads ``verdicts.sqlite`` and writes a file of its own, so that none waits for another; ``merge`` adds the files of
workers that have ended to it. Memory is bounded by the page caches of two files.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from ka2l_ray.config import JudgeSettings
from ka2l_ray.errors import UserError
from ka2l_ray.semantics.clustering import Judge, Pair, Verdict

S = TypeVar("S", bound=JudgeSettings)

PAGES_KIB = 65536
AT_ONCE = 500  # keys of one query
MAIN = "verdicts.sqlite"
TABLE = "CREATE TABLE IF NOT EXISTS verdicts (key BLOB PRIMARY KEY, label INT, truncated INT) WITHOUT ROWID"


class CachedJudge:
    """A judge that is asked only what no earlier run has asked it. Verdicts that could not be read are not kept.

    Args:
        directory: on a file system that all workers share; ``claim`` it first.
    """

    def __init__(self, judge: Judge, directory: str) -> None:
        self.judge = judge
        self.symmetric = judge.symmetric
        own = Path(directory) / f"{uuid4().hex}.sqlite"
        self.alive = own.with_suffix(".lock").open("w")  # held until this process ends, however it ends
        fcntl.flock(self.alive, fcntl.LOCK_EX)
        self.files = [_connect(own), _connect(Path(directory) / MAIN)]

    def verdicts(self, questions: Sequence[str], pairs: Sequence[Pair]) -> list[Verdict]:
        keys = [_key(question, pair) for question, pair in zip(questions, pairs, strict=True)]
        known: dict[bytes, Verdict] = {}
        for file in self.files:
            known |= _read(file, [key for key in keys if key not in known])
        new = [i for i, key in enumerate(keys) if key not in known]
        answers = self.judge.verdicts([questions[i] for i in new], [pairs[i] for i in new]) if new else []
        asked = dict(zip(new, answers, strict=True))
        rows = [(keys[i], answer.label, answer.truncated) for i, answer in asked.items() if not answer.unparsable]
        with self.files[0] as own:
            own.executemany("INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?)", rows)
        return [asked[i] if i in asked else known[key] for i, key in enumerate(keys)]


def claim(directory: str, judge: str) -> None:
    """Make the directory a cache of ``judge``, and take in what killed workers left.

    Raises:
        UserError: it is another judge's, or lies where sqlite cannot.
    """
    if "://" in directory:
        raise UserError(f"the judge's cache is {directory}; sqlite needs a path that is mounted on all nodes")
    name = Path(directory) / "judge.json"
    if not name.is_file():
        if Path(directory).exists() and (not Path(directory).is_dir() or any(Path(directory).iterdir())):
            raise UserError(f"{directory}: this is no cache of verdicts; set its cache to a directory of its own")
        Path(directory).mkdir(parents=True, exist_ok=True)
        name.write_text(judge)
    if name.read_text() != judge:
        raise UserError(
            f"{directory}: holds the verdicts of another judge ({name.read_text()}); this one is {judge}; set another cache"
        )
    merge(directory)


@contextmanager
def shared(settings: S, judge: Mapping[str, Any]) -> Iterator[S]:
    """The settings for workers, whose directory is not this one, with ``cache`` claimed; what they found is merged at the end.

    Args:
        judge: what decides its verdicts.

    Raises:
        UserError: as ``claim``.
    """
    if settings.cache is None:
        yield settings
        return
    where = settings.cache if "://" in settings.cache else str(Path(settings.cache).absolute())
    claim(where, json.dumps(judge, sort_keys=True))
    yield settings.model_copy(update={"cache": where})
    merge(where, patience=10)


def merge(directory: str, patience: float = 0.0) -> None:
    """Add the files of workers that have ended to the main one; another's merge, or a living worker, is left alone.

    Args:
        patience: seconds to wait for workers to end.
    """
    until = time.monotonic() + patience
    while _merge(directory) and time.monotonic() < until:
        time.sleep(0.2)


def _merge(directory: str) -> int:
    """Files of workers that are left."""
    left = 0
    with _held(Path(directory) / "merge.lock") as mine:
        if not mine:
            return 0
        main = _connect(Path(directory) / MAIN)
        for file in sorted(Path(directory).glob("*.sqlite")):
            if file.name == MAIN:
                continue
            with _held(file.with_suffix(".lock")) as ended:
                if not ended:
                    left += 1
                    continue
                _connect(file).close()  # undoes what a killed worker had not committed
                main.execute("ATTACH ? AS worker", (str(file),))
                with main:
                    main.execute("INSERT OR IGNORE INTO verdicts SELECT * FROM worker.verdicts")
                main.execute("DETACH worker")
                file.unlink()
                file.with_suffix(".lock").unlink()
        main.close()
    return left


@contextmanager
def _held(path: Path) -> Iterator[bool]:
    """Whether the lock could be had; it is given back at the end."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _connect(file: Path) -> sqlite3.Connection:
    # A judge's actor calls from threads of Ray's, one at a time.
    found = sqlite3.connect(file, timeout=60, check_same_thread=False)
    found.execute(f"PRAGMA cache_size = -{PAGES_KIB}")
    found.execute(TABLE)
    found.commit()
    return found


def _read(file: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, Verdict]:
    found: dict[bytes, Verdict] = {}
    for start in range(0, len(keys), AT_ONCE):
        some = keys[start : start + AT_ONCE]
        query = f"SELECT key, label, truncated FROM verdicts WHERE key IN ({','.join('?' * len(some))})"
        for key, label, truncated in file.execute(query, list(some)):
            found[key] = Verdict(label, bool(truncated), cached=True)
    return found


def _key(question: str, pair: Pair) -> bytes:
    return hashlib.blake2b("\0".join((question, *pair)).encode(), digest_size=16).digest()
