"""What replaying known questions does to learning and forgetting: 0, 1 and 2 a labelled question.

    python benchmarks/replay.py

Prints one Markdown row a setting; everything else is the demo's.
"""

from __future__ import annotations

from pathlib import Path

from demo_seeds import demo, heading, row

SHARES = (0, 1, 2)


def main() -> None:
    rows = []
    for share in SHARES:
        out = Path("runs/bench/seed-0" if share == 1 else f"runs/bench/replay-{share}")
        rows.append(row(str(share), demo(out, "-o", f"finetune.replay_known={float(share)}")))
    print("\n".join([heading("replay_known"), *rows]))


if __name__ == "__main__":
    main()
