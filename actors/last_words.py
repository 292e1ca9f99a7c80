"""What processes that were started here wrote before they died: the exception that ended them.

vLLM's engine dies with its traceback on its own standard streams and tells its client only that it is dead.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

TRACEBACK = "Traceback (most recent call last):"
_LOG_PREFIX = re.compile(r"^\([^()]*pid=\d+\)\s(?:[A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\]\s?)?")

_ERROR = re.compile(r"^\([^()]*pid=\d+\)\sERROR")


class LastWords:
    """Standard output and error of the processes that start within ``heard``, for as long as they live."""

    def __init__(self) -> None:
        self.file = tempfile.NamedTemporaryFile("rb", prefix="ka2l-engine-", suffix=".log")  # noqa: SIM115
        self.read_until = 0

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Processes that start here inherit the streams; what this process writes meanwhile is passed on when it ends."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        saved = [os.dup(fd) for fd in (1, 2)]
        into = os.open(self.file.name, os.O_WRONLY | os.O_APPEND)
        for fd in (1, 2):
            os.dup2(into, fd)
        try:
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            for fd, before in zip((1, 2), saved, strict=True):
                os.dup2(before, fd)
                os.close(before)
            os.close(into)
            sys.stderr.write(self._text())

    def forget(self) -> None:
        """What was written until now is of no account."""
        self.read_until = os.fstat(self.file.fileno()).st_size

    def exception(self) -> str | None:
        """The first exception written since ``forget``: later ones are those of processes that waited for the one that failed."""
        return first_exception(self._text())

    def close(self) -> None:
        self.file.close()

    def _text(self) -> str:
        with open(self.file.name, "rb") as file:
            file.seek(self.read_until)
            return file.read().decode(errors="replace")


def first_exception(text: str) -> str | None:
    """``Type: message`` of the first traceback in a log, whatever each line begins with; None where there is none.

    What vLLM's processes log as an error comes before what else was printed: that may have been handled.
    """
    found: list[tuple[bool, str]] = []  # (logged as an error, what it says)
    inside = False
    for line in text.splitlines():
        bare = _LOG_PREFIX.sub("", line)
        if bare.startswith(TRACEBACK):
            inside = True
        elif inside and bare.strip() and not bare.startswith(" "):
            found.append((_ERROR.match(line) is not None, bare.strip()[:300]))
            inside = False
    return next((said for is_error, said in found if is_error), found[0][1] if found else None)
