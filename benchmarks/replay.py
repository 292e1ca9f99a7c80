"""What replaying known questions does to learning and forgetting: 0, 1 and 2 a labelled question, one round each.

    python benchmarks/replay.py

Each setting takes over the artefacts of the first up to the selection; what differs is the fine-tuning. Prints one Markdown
row a setting.
"""

from __future__ import annotations

from pathlib import Path

from demo_seeds import demo, heading, row

SHARES = (0.0, 1.0, 2.0)
FIRST = Path("runs/bench/replay-0/ka2l")


def main() -> None:
    rows = []
    for share in SHARES:
        changes = {"finetune.replay_known": share, "stopping.max_rounds": 1, "reuse": f"[{FIRST}]"}
        overrides = [word for key, value in changes.items() for word in ("-o", f"{key}={value}")]
        rows.append(row(f"{share:g}", demo(Path(f"runs/bench/replay-{share:g}"), *overrides)))
    print("\n".join([heading("replay_known"), *rows]))


if __name__ == "__main__":
    main()
