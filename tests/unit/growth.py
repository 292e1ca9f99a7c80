"""How the time of some work grows with its size: processor time, of which the least of a few tries is the work's own."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

TRIES = 5


def grows_as_its_size(work: Callable[[int], None], small: int, large: int) -> bool:
    """Whether ``work(large)`` takes nearer to ``large / small`` times as long as ``work(small)`` than to the square of that.

    The garbage collector, which would walk through all that the process holds, is off; one quick try of ``TRIES`` is enough.
    """
    bound = (large / small) ** 1.5
    was_on = gc.isenabled()
    gc.disable()
    try:
        return any(_seconds(work, large) < bound * (_seconds(work, small) + 1e-4) for _ in range(TRIES))
    finally:
        if was_on:
            gc.enable()


def _seconds(work: Callable[[int], None], size: int) -> float:
    begun = time.process_time()
    work(size)
    return time.process_time() - begun
