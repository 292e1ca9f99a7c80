"""What replaying known questions does to learning and forgetting: 0, 1 and 2 a labelled question, one round each.

    python benchmarks/demo_seeds.py --seeds 0 && python benchmarks/replay.py

Each setting selects from the very scores of the demo with seed 0, whose artefacts are taken over; what differs is the
fine-tuning. Prints one Markdown row a setting.
"""

from __future__ import annotations

from pathlib import Path

from demo_seeds import demo, heading, row

START = Path("runs/bench/seed-0/ka2l")
SHARES = (0.0, 1.0, 2.0)


def main() -> None:
    rows = []
    for share in SHARES:
        changes = {"finetune.replay_known": share, "stopping.max_rounds": 1, "reuse": f"[{START}]"}
        overrides = [word for key, value in changes.items() for word in ("-o", f"{key}={value}")]
        rows.append(row(f"{share:g}", demo(Path(f"runs/bench/replay-{share:g}"), *overrides)))
    print("\n".join([heading("replay_known"), *rows]))


if __name__ == "__main__":
    main()
