"""Commands in processes of their own, forked off a server that has imported everything: half of a short run is imports."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ka2l_ray.jobs.commands.cli import main
from ka2l_ray.store import artefacts

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["ka2l_ray.jobs.commands.stages", "ka2l_ray.jobs.driver", "ka2l_ray.jobs.commands.inputs", "ka2l_ray.report"]
)


def ka2l(*arguments: str, timeout: float = 1200, first: Callable[[], Any] | None = None) -> subprocess.CompletedProcess[str]:
    """``ka2l ARGUMENTS`` on the tests' Ray. ``first`` (importable by name) is called in the process before."""
    with tempfile.TemporaryDirectory() as folder:
        process = _SERVER.Process(target=_command, args=(arguments, folder, first))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired(["ka2l", *arguments], timeout, (Path(folder) / "2").read_bytes())
        stdout, stderr = ((Path(folder) / name).read_text() for name in ("1", "2"))
    assert process.exitcode is not None
    return subprocess.CompletedProcess(["ka2l", *arguments], process.exitcode, stdout, stderr)


def ka2l_killed_in(target: str, pattern: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As ``ka2l``, but the process kills itself with SIGKILL inside the artefact ``target``: when ``pattern`` matches a file of
    its work directory (something is written, not all), or when it is built but not committed."""
    return ka2l(*arguments, first=partial(_die_inside, target, pattern))


def _command(arguments: tuple[str, ...], folder: str, first: Callable[[], Any] | None) -> None:
    for descriptor in (1, 2):
        os.dup2(os.open(f"{folder}/{descriptor}", os.O_WRONLY | os.O_CREAT), descriptor)
    if first is not None:
        first()
    sys.argv = ["ka2l", *arguments]
    main()


def _die_inside(target: str, pattern: str) -> None:
    build_artefact: Any = artefacts._build

    def build_and_die(storage: Any, name: str, inputs: Any, build: Any) -> Any:
        def dying(work: Any) -> Any:
            def watch() -> None:
                while not list(Path(work.root).glob(pattern)):
                    time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGKILL)

            if pattern:
                threading.Thread(target=watch, daemon=True).start()
            build(work)
            os.kill(os.getpid(), signal.SIGKILL)

        return build_artefact(storage, name, inputs, dying if name == target else build)

    artefacts._build = build_and_die
