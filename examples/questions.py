"""The questions of examples/smollm2.yaml: a pool of 1500 and a test set of 300, drawn from real ones by a hash of their ids.

    python examples/questions.py [--data ../shared/data] [--out examples/data]

SciQ and WebQuestions where both lie in the data directory, half of each; else the WebQuestions that ship here (README.md beside
this file says whose they are).
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ka2l_ray.normalization import normalize_question

HERE = Path(__file__).resolve().parent
FILES = ("sciq.jsonl", "webquestions.jsonl")
SIZES = {"pool": 1500, "test": 300}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared/data")
    parser.add_argument("--out", type=Path, default=HERE / "data")
    arguments = parser.parse_args()
    files = [arguments.data / name for name in FILES]
    if not all(file.is_file() for file in files):
        files = [HERE / "webquestions.jsonl"]
    arguments.out.mkdir(parents=True, exist_ok=True)
    drawn = [draw(file, sum(SIZES.values()) // len(files)) for file in files]
    first = 0
    for split, size in SIZES.items():
        end = first + size // len(files)
        rows = [row for source in drawn for row in source[first:end]]
        (arguments.out / f"{split}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        print(f"{arguments.out / split}.jsonl: {len(rows)} questions of {', '.join(file.stem for file in files)}")
        first = end


def draw(file: Path, size: int) -> list[dict[str, Any]]:
    """``size`` rows in an order that depends on their ids alone; no question twice."""
    rows = {normalize_question(row["question"]): row for row in read(file) if row["answers"]}
    return sorted(rows.values(), key=lambda row: hashlib.sha256(row["id"].encode()).digest())[:size]


def read(file: Path) -> Iterator[dict[str, Any]]:
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield {"id": row["id"], "question": row["question"], "answers": row["answers"]}


if __name__ == "__main__":
    main()
