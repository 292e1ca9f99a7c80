"""Verdicts that outlive a run: one judge's, by text, in sqlite files of one directory.

Each worker writes a file of its own and reads them all, so that none waits for another; ``merge`` makes one of them afterwards.
Memory is bounded by sqlite's page cache.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

from ka2l_ray.errors import UserError
from ka2l_ray.semantics.clustering import Judge, Pair, Verdict

PAGES_KIB = 65536
AT_ONCE = 500  # keys of one query
TABLE = "CREATE TABLE IF NOT EXISTS verdicts (key BLOB PRIMARY KEY, label INT, truncated INT, unparsable INT) WITHOUT ROWID"


class CachedJudge:
    """A judge that is asked only what no earlier run has asked it.

    Args:
        directory: on a file system that all workers share; ``claim`` it first.
    """

    def __init__(self, judge: Judge, directory: str) -> None:
        self.judge = judge
        self.symmetric = judge.symmetric
        self.earlier = [_connect(file, read_only=True) for file in sorted(Path(directory).glob("*.sqlite"))]
        self.own = _connect(Path(directory) / f"{uuid4().hex}.sqlite")
        self.own.execute(TABLE)

    def verdicts(self, questions: Sequence[str], pairs: Sequence[Pair]) -> list[Verdict]:
        keys = [_key(question, pair) for question, pair in zip(questions, pairs, strict=True)]
        known: dict[bytes, Verdict] = {}
        for file in [self.own, *self.earlier]:
            known |= _read(file, [key for key in keys if key not in known])
        new = [i for i, key in enumerate(keys) if key not in known]
        answers = self.judge.verdicts([questions[i] for i in new], [pairs[i] for i in new]) if new else []
        asked = dict(zip(new, answers, strict=True))
        rows = [(keys[i], *answer[:3]) for i, answer in asked.items()]
        with self.own:
            self.own.executemany("INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?, ?)", rows)
        return [asked[i] if i in asked else known[key] for i, key in enumerate(keys)]


def claim(directory: str, judge: str) -> None:
    """Make the directory a cache of ``judge``.

    Raises:
        UserError: it is another judge's, or lies where sqlite cannot.
    """
    if "://" in directory:
        raise UserError(f"entropy.cache is {directory}; sqlite needs a path that is mounted on all nodes")
    name = Path(directory) / "judge.json"
    if not name.is_file():
        if Path(directory).exists() and (not Path(directory).is_dir() or any(Path(directory).iterdir())):
            raise UserError(f"{directory}: this is no cache of verdicts; set entropy.cache to a directory of its own")
        Path(directory).mkdir(parents=True, exist_ok=True)
        name.write_text(judge)
    if name.read_text() != judge:
        raise UserError(
            f"{directory}: holds the verdicts of another judge ({name.read_text()}); this one is {judge}; "
            "set another entropy.cache"
        )


def merge(directory: str) -> None:
    """One file out of the workers' files, once none of them writes any more."""
    main = _connect(Path(directory) / "verdicts.sqlite")
    main.execute(TABLE)
    for file in sorted(Path(directory).glob("*.sqlite")):
        if file.name == "verdicts.sqlite":
            continue
        main.execute("ATTACH ? AS worker", (str(file),))
        with main:
            if main.execute("SELECT 1 FROM worker.sqlite_master WHERE name = 'verdicts'").fetchone():
                main.execute("INSERT OR IGNORE INTO verdicts SELECT * FROM worker.verdicts")
        main.execute("DETACH worker")
        file.unlink()
    main.close()


def _connect(file: Path, *, read_only: bool = False) -> sqlite3.Connection:
    # A judge's actor calls from threads of Ray's, one at a time.
    found = sqlite3.connect(
        f"file:{file}?mode=ro" if read_only else str(file), uri=read_only, timeout=60, check_same_thread=False
    )
    found.execute(f"PRAGMA cache_size = -{PAGES_KIB}")
    return found


def _read(file: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, Verdict]:
    found: dict[bytes, Verdict] = {}
    for start in range(0, len(keys), AT_ONCE):
        some = keys[start : start + AT_ONCE]
        marks = ",".join("?" * len(some))
        query = f"SELECT key, label, truncated, unparsable FROM verdicts WHERE key IN ({marks})"
        for key, label, truncated, unparsable in file.execute(query, list(some)):
            found[key] = Verdict(label, bool(truncated), bool(unparsable), cached=True)
    return found


def _key(question: str, pair: Pair) -> bytes:
    return hashlib.blake2b("\0".join((question, *pair)).encode(), digest_size=16).digest()
