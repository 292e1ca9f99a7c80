"""Who says that an answer is right: judges of correctness against a language model's verdict on real models' answers.

    python benchmarks/correctness.py [-o KEY=VALUE]...      # exact and contains, and the evaluation.judge of the overrides

Reads ../shared/data/gen_triviaqa_10x.jsonl and gen_sciq_10x.jsonl; prints a row a file, model and judge.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from ka2l_ray.config import EvaluationConfig
from ka2l_ray.config_files import load_config
from ka2l_ray.reading import Reading
from ka2l_ray.semantics.correctness import judge_answers
from ka2l_ray.semantics.judges import make_judge

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
FILES = ("gen_triviaqa_10x", "gen_sciq_10x")


def read(name: str) -> list[dict[str, Any]]:
    lines = (SHARED / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["greedy_correct_llm_verdict"] is not None]


def row(name: str, group: str, settings: EvaluationConfig, reading: Reading, rows: list[dict[str, Any]]) -> str:
    """One line of the table."""
    judge = make_judge(settings, reading.normalize, directed=True)
    started = time.perf_counter()
    found = judge_answers(
        [r["question"] for r in rows], [r["greedy"] for r in rows], [r["answers"] for r in rows], judge, reading
    )
    seconds = time.perf_counter() - started
    truth = [r["greedy_correct_llm_verdict"] for r in rows]
    said = [each.correct for each in found]
    agreed = sum(a == b for a, b in zip(said, truth, strict=True)) / len(rows)
    missed = sum(b and not a for a, b in zip(said, truth, strict=True)) / max(1, sum(truth))
    false = sum(a and not b for a, b in zip(said, truth, strict=True)) / max(1, len(rows) - sum(truth))
    calls = sum(each.judge_calls for each in found)
    cells = (name, group, settings.judge, len(rows), f"{agreed:.3f}", f"{missed:.3f}", f"{false:.3f}", calls, f"{seconds:.1f}")
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--override", action="append", default=[], help="KEY=VALUE, such as evaluation.judge=nli")
    config = load_config(None, parser.parse_args().override, {"model.path": "bundled:student", "pool.questions": ""})
    judges = {each.judge: each for each in (EvaluationConfig(), EvaluationConfig(judge="contains"), config.evaluation)}
    print("| file | model | judge | answers | agreement | right ones missed | wrong ones passed | judge calls | seconds |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in FILES:
        rows = read(name)
        for settings in judges.values():
            print(row(name, "all", settings, config.reading, rows))
        for model in sorted({r["model"] for r in rows}):
            for settings in judges.values():
                print(row(name, model, settings, config.reading, [r for r in rows if r["model"] == model]))


if __name__ == "__main__":
    main()
