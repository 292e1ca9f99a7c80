"""The demo over several seeds: does it hold what it promises?

    python benchmarks/demo_seeds.py [--seeds 0 1 2]

Prints one Markdown row a seed. Every figure is of that seed's own two runs; seconds are of this machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

COLUMNS = ("se_auroc_truth", "probe_auroc_truth", "accuracy_before", "accuracy_after", "unknown_learned", "known_forgotten")


def demo(out: Path, *arguments: str) -> dict[str, Any]:
    """The summary of ``ka2l demo``; a finished one is not run again."""
    subprocess.run([sys.executable, "-m", "ka2l_ray", "demo", "--out", str(out), *arguments], check=True)
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


def row(name: str, summary: dict[str, Any]) -> str:
    """ka2l / random where a figure has both; then the ratio of facts learned, and seconds."""
    cells = [
        f"{value['ka2l']:.3f} / {value['random']:.3f}" if isinstance(value := summary[column], dict) else f"{value:.4f}"
        for column in COLUMNS
    ]
    ratio = summary["unknown_learned"]["ka2l"] / summary["unknown_learned"]["random"]
    return " | ".join(["", name, *cells, f"{ratio:.2f}", f"{summary['seconds']:.0f}", ""]).strip()


def heading(first: str) -> str:
    names = ["", first, *COLUMNS, "learned, ka2l over random", "seconds", ""]
    return " | ".join(names).strip() + "\n" + "|".join(["", *["---"] * (len(names) - 2), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    args = parser.parse_args()
    rows = [row(str(seed), demo(args.out / f"seed-{seed}", "--seed", str(seed))) for seed in args.seeds]
    print("\n".join([heading("seed"), *rows]))


if __name__ == "__main__":
    main()
