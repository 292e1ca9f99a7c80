"""Which rows are still to be done, and what becomes of a shard that fails. Pure bookkeeping: no Ray, no clock, no files.

A shard is a range of rows, written as one file that bears the range in its name; so what is written says what is missing,
whatever was split, retried or resumed.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

_NAME = re.compile(r"part-(\d{9})-(\d{9})\.parquet")


@dataclass(frozen=True)
class Shard:
    """Rows ``start`` to ``stop`` - 1; ``attempts`` that failed so far.

    ``origin``: first row of the shard that it is a part of, if it is.
    """

    start: int
    stop: int
    attempts: int = 0
    origin: int | None = None

    @property
    def family(self) -> int:
        """Same for a shard and all that it is halved into."""
        return self.start if self.origin is None else self.origin

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def file(self) -> str:
        return f"part-{self.start:09d}-{self.stop:09d}.parquet"


def shard_of(file: str) -> Shard | None:
    """The shard that a file holds, or None where its name is not a shard's."""
    match = _NAME.fullmatch(file)
    return Shard(int(match[1]), int(match[2])) if match else None


def missing(written: Iterable[Shard], rows: int, size: int) -> list[Shard]:
    """Shards of at most ``size`` rows that together are what ``written`` leaves out of ``rows``."""
    gaps, reached = [], 0
    for shard in sorted(written, key=lambda s: (s.start, -s.stop)):
        if shard.start > reached:
            gaps.append((reached, shard.start))
        reached = max(reached, shard.stop)
    if reached < rows:
        gaps.append((reached, rows))
    return [Shard(i, min(i + size, stop)) for start, stop in gaps for i in range(start, stop, size)]


def redundant(written: Iterable[Shard]) -> list[Shard]:
    """Shards that lie within another one: left by an engine that was given up for dead and yet wrote."""
    inside, reached = [], 0
    for shard in sorted(written, key=lambda s: (s.start, -s.stop)):
        if shard.stop <= reached:
            inside.append(shard)
        reached = max(reached, shard.stop)
    return inside


class ShardQueue:
    """Shards to be done, next first. A failed one is halved until the question at fault stands alone.

    An engine that dies may take innocent questions with it: its shard is tried once more whole before it is halved. An
    exception comes from the questions, so that shard is halved at once.

    Args:
        attempts: of a single question before it is given up.
    """

    def __init__(self, shards: Iterable[Shard], *, attempts: int = 3) -> None:
        self.waiting = deque(shards)
        self.attempts = attempts

    def __bool__(self) -> bool:
        return bool(self.waiting)

    def take(self) -> Shard:
        return self.waiting.popleft()

    def put_back(self, shard: Shard) -> None:
        """A shard that its engine had not begun."""
        self.waiting.appendleft(shard)

    def _after_another(self, shard: Shard) -> None:
        """Another shard goes first, if there is one: whether its engine dies too tells the engine's faults from a question's."""
        others = [i for i, waiting in enumerate(self.waiting) if waiting.family != shard.family]
        self.waiting.insert(others[0] + 1 if others else 0, shard)

    def failed(self, shard: Shard, *, engine_died: bool) -> bool:
        """Note a failed attempt; whether ``shard`` is a single question that is now given up."""
        tried = replace(shard, attempts=shard.attempts + 1)
        if len(shard) == 1:
            if tried.attempts >= self.attempts:
                return True
            self.waiting.appendleft(tried)
        elif engine_died and tried.attempts == 1:
            self._after_another(tried)
        else:
            middle = (shard.start + shard.stop) // 2
            self.waiting.appendleft(Shard(middle, shard.stop, 1, shard.family))
            self.waiting.appendleft(Shard(shard.start, middle, 1, shard.family))
        return False
