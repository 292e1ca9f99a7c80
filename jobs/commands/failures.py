"""What a command says when it ends badly: one line and exit code 2 for what the user can put right, 1 for the rest."""

from __future__ import annotations

import logging
import re
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from ka2l_ray.errors import UserError

logger = logging.getLogger(__name__)

_IN_TRACEBACK = re.compile(r"^ka2l_ray\.errors\.\w+: (.+)$", re.MULTILINE)


@contextmanager
def reported() -> Iterator[None]:
    """Turns an exception into its line and exit code; the traceback goes to a file that the line names."""
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except (KeyboardInterrupt, SystemExit):  # Ray Train turns Ctrl-C into the latter
        typer.secho("interrupted; the same command goes on where it was", err=True)
        raise typer.Exit(130) from None
    except Exception as error:
        cause = user_error(error)
        if cause is not None:
            typer.secho(f"error: {cause}", err=True, fg=typer.colors.RED)
            raise typer.Exit(2) from None
        with tempfile.NamedTemporaryFile("w", prefix="ka2l-", suffix=".log", delete=False) as log:
            traceback.print_exc(file=log)
        line = (str(error).strip().splitlines() or [""])[-1]
        typer.secho(f"failed: {type(error).__name__}: {line} (traceback: {log.name})", err=True, fg=typer.colors.RED)
        raise typer.Exit(1) from None


def user_error(error: BaseException) -> str | None:
    """The message of the UserError behind an exception, through the wrappers of Ray's workers, or None.

    A path that this process may not write is the user's to put right too.
    """
    if isinstance(error, FileExistsError | NotADirectoryError | PermissionError) and error.filename:
        return f"{error.filename}: {(error.strerror or 'cannot be written').lower()}; give another path"
    waiting: list[BaseException] = [error]
    seen: set[int] = set()
    while waiting:
        at = waiting.pop()
        if id(at) in seen:
            continue
        seen.add(id(at))
        cause = getattr(at, "cause", None)
        if isinstance(at, UserError) and not isinstance(cause, UserError):
            return str(at).strip().splitlines()[-1].removeprefix("ka2l_ray.errors.UserError: ")
        failures = getattr(at, "worker_failures", None)
        waiting += [e for e in (at.__cause__, cause, *(failures or {}).values()) if isinstance(e, BaseException)]
    told = _IN_TRACEBACK.search(str(error))  # of an exception in a worker of Ray Data its text alone comes here
    return told[1] if told else None
