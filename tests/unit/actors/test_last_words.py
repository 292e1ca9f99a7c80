"""What a dead engine's processes wrote, and which exception of it ended them."""

from __future__ import annotations

import subprocess
import sys

from ka2l_ray.actors.last_words import LastWords, first_exception

LOG = """\
(EngineCore pid=23235) WARNING 11-21 18:16:30 [cpu.py:224] Triton is not installed.
Loading safetensors checkpoint shards: 100% Completed
(Worker pid=23563) ERROR 11-21 18:16:54 [multiproc_executor.py:1063] WorkerProc hit an exception.
(Worker pid=23563) ERROR 11-21 18:16:54 [multiproc_executor.py:1063] Traceback (most recent call last):
(Worker pid=23563) ERROR 11-21 18:16:54 [multiproc_executor.py:1063]   File "executor.py", line 1055, in _execute_worker_rpc
(Worker pid=23563) ERROR 11-21 18:16:54 [multiproc_executor.py:1063]     gen.set_offset(gen.get_offset() - 4)
(Worker pid=23563) ERROR 11-21 18:16:54 [multiproc_executor.py:1063]                    ^^^^^^^^^^^^^^^^
(Worker pid=23563) ERROR 11-21 18:16:54 [multiproc_executor.py:1063] RuntimeError: CPU Generator does not use offset
(EngineCore pid=23235) ERROR 11-21 18:16:54 [core.py:1512] EngineCore encountered a fatal error.
(EngineCore pid=23235) ERROR 11-21 18:16:54 [core.py:1512] Traceback (most recent call last):
(EngineCore pid=23235) ERROR 11-21 18:16:54 [core.py:1512]     raise RuntimeError(
(EngineCore pid=23235) ERROR 11-21 18:16:54 [core.py:1512] RuntimeError: Worker failed with error, see above
"""


def test_the_first_exception_is_the_one_that_others_waited_for() -> None:
    assert first_exception(LOG) == "RuntimeError: CPU Generator does not use offset"
    assert first_exception(LOG.splitlines()[0]) is None
    assert first_exception("Traceback (most recent call last):\n  File \"a.py\"\nKeyError: 'x'\n") == "KeyError: 'x'"
    handled = "Traceback (most recent call last):\n  File \"b.py\"\nModuleNotFoundError: No module named 'flashinfer'\n"
    assert first_exception(handled + LOG) == "RuntimeError: CPU Generator does not use offset"


def test_processes_are_heard_as_long_as_they_live() -> None:
    words = LastWords()
    code = "import sys; input(); print('ready', flush=True); input(); raise ValueError('at the end')"
    with words.heard():
        process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert words.exception() is None
    process.stdin.write(b"\n")
    process.stdin.flush()
    words.forget()
    process.stdin.write(b"\n")
    process.stdin.close()
    process.wait()
    assert words.exception() == "ValueError: at the end"
    words.forget()
    assert words.exception() is None
    words.close()
