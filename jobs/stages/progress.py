"""Progress of long work: a bar with rate and time left on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 15.0


class Update(Protocol):
    def __call__(self, done: int, total: int, note: str = "") -> None: ...


@contextmanager
def progress(what: str, unit: str = "questions") -> Iterator[Update]:
    """Yields ``update(done, total)``, which takes a note on what else was done."""
    started = time.monotonic()
    if sys.stderr.isatty():
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=None, rate="", note="")

            def draw(done: int, total: int, note: str = "") -> None:
                bar.update(task, completed=done, total=total, rate=f"{_rate(done, started):.1f} {unit}/s", note=note)

            yield draw
        return
    last = started

    def line(done: int, total: int, note: str = "") -> None:
        nonlocal last
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            rate = _rate(done, started)
            left = f", {(total - done) / rate:.0f} s left" if rate else ""
            logger.info("%s: %d of %d %s, %.1f/s%s%s", what, done, total, unit, rate, left, note and f", {note}")

    yield line


def _rate(done: int, started: float) -> float:
    return done / max(time.monotonic() - started, 1e-9)
