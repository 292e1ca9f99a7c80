"""Runs the code of docs/python.md, block by block, and prints each block's output behind a marker.

    python tests/pages/page.py docs/python.md MODEL

MODEL stands in for the directory that the page names. Needs what the page needs, and nothing of the checkout.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MARKER = "--- block"
NAMED = "models/smollm2-135m-instruct"


def blocks(page: str) -> list[tuple[str, str | None]]:
    """(code, the output printed below it or None) in order."""
    fenced = re.findall(r"^```(python|text)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    found = []
    for i, (kind, text) in enumerate(fenced):
        if kind == "python":
            below = fenced[i + 1] if i + 1 < len(fenced) else ("", "")
            found.append((text, below[1] if below[0] == "text" else None))
    return found


def run(page: str, model: str) -> Iterator[str]:
    """What each block prints, one after another; they share their names. Another model than the page's may be silent."""
    if not model.endswith(NAMED):
        page = page.replace('rule="two_means"', 'rule="two_means", abstentions="known"')
    names: dict[str, Any] = {"__name__": "page"}
    for code, _ in blocks(page):
        with contextlib.redirect_stdout(io.StringIO()) as said:
            exec(compile(code.replace(NAMED, model), "docs/python.md", "exec"), names)
        yield said.getvalue()


if __name__ == "__main__":
    for output in run(Path(sys.argv[1]).read_text(encoding="utf-8"), sys.argv[2]):
        print(MARKER)
        print(output, end="", flush=True)
    loaded = sorted({name.split(".")[0] for name in sys.modules} & {"ray", "vllm", "deepspeed"})
    print(MARKER, "loaded:", ", ".join(loaded) or "neither ray nor vllm nor deepspeed")
