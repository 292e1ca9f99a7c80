"""The demo, on less: it ends with its figures, and the estimates hold against the world's truth."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def test_the_demo_writes_its_summary_and_report(tmp_path: Path) -> None:
    smaller = [
        "pool.probing_size=300",
        "selection.budget=60",
        "finetune.epochs=4",
        "stopping.max_rounds=1",
        "finetune.replay_known=0.5",
    ]
    overrides = [word for override in smaller for word in ("-o", override)]
    command = [sys.executable, "-m", "ka2l_ray", "demo", "--out", str(tmp_path / "demo"), *overrides]
    alone = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}  # the demo starts its own Ray
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False, env=alone)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert summary["se_auroc_truth"] >= 0.9
    assert summary["probe_auroc_truth"] >= 0.9
    assert summary["labels"] == {"ka2l": 60, "random": 60}
    assert summary["unknown_learned"]["ka2l"] > 0
    assert set(summary["known_forgotten"]) == {"ka2l", "random"}
    assert "unknown_learned" in done.stdout
    assert f"report: {tmp_path / 'demo' / 'report.html'}" in done.stdout.replace("\n", "")
    manifests = [json.loads((tmp_path / "demo" / arm / "manifest.json").read_text())["artefacts"] for arm in ("ka2l", "random")]
    shared = [name for name, entry in manifests[1].items() if entry["reused_from"]]
    assert "rounds/000/scores" in shared
    assert all(manifests[0][name]["key"] == manifests[1][name]["key"] for name in shared)
