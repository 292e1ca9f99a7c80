"""The demo: ka2l against random on the bundled world, held against the world's truth.

Both runs are ordinary runs (``ka2l run``), side by side on one local Ray; the second takes over what both have in common.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
import typer
from rich.console import Console
from rich.table import Table

from ka2l_ray.config import RunConfig
from ka2l_ray.config_files import dump, load_config
from ka2l_ray.errors import UserError
from ka2l_ray.jobs.session import ray_session
from ka2l_ray.ledger import Ledger
from ka2l_ray.report import write_report
from ka2l_ray.store.artefacts import RunStore
from ka2l_ray.uncertainty.ranking import auroc
from ka2l_ray.world.facts import World

STRATEGIES = {"ka2l": "ka2l_draw", "random": "random"}
"""By arm. The unknown are drawn among, as KA2L does: the likeliest of them are of few relations, whose labels push out more."""
ARMS = tuple(STRATEGIES)
TEST_SET = "other_words"  # the pool's own facts, each in a phrasing that no text and no label uses


def demo(out: str, seed: int, overrides: list[str]) -> None:
    """Run both arms, write ``summary.json`` and ``report.html`` in ``out``, print the table.

    Raises:
        UserError: ``out`` holds other files, or a run was refused.
    """
    target = Path(out)
    world = World()
    configs = {arm: _config(target, arm, seed, overrides) for arm in ARMS}
    files = {f"{split}.jsonl": "".join(json.dumps(row) + "\n" for row in world.rows(split)) for split in ("pool", "test")}
    check_directory(target, files)
    target.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (target / name).write_text(text)
    started = time.perf_counter()
    with ray_session(None, drivers=len(ARMS)):
        run_side_by_side(configs, ray.get_runtime_context().gcs_address)
    summary = summarise(configs, world)
    summary["seconds"] = round(time.perf_counter() - started, 1)
    (target / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    report = write_report(str(target), [configs[arm].output for arm in ARMS])
    Console().print(_table(summary))
    typer.echo(f"summary: {target / 'summary.json'}")
    typer.echo(f"report: {report}")


def check_directory(target: Path, files: dict[str, str]) -> None:
    """Raise a UserError where the directory holds no demo, but something else than the ``files`` that one begins with."""
    if not target.is_dir() or any((target / f"{arm}.yaml").is_file() for arm in ARMS):
        return
    for path in sorted(target.iterdir()):
        if not path.is_file() or path.name not in files or path.read_bytes() != files[path.name].encode():
            raise UserError(f"{target}: the directory holds no demo, but {path.name}; give another --out")


def _config(target: Path, arm: str, seed: int, overrides: list[str]) -> RunConfig:
    values: dict[str, Any] = {
        "preset": "bundled-world",
        "output": str(target / arm),
        "seed": seed,
        "pool.questions": str(target / "pool.jsonl"),
        "pool.test": {TEST_SET: {"path": str(target / "test.jsonl"), "kind": "transductive"}},
        "selection.strategy": STRATEGIES[arm],
        "reuse": [str(target / other) for other in ARMS if other != arm],
    }
    return load_config(None, overrides, values)


def run_side_by_side(configs: dict[str, RunConfig], address: str) -> None:
    """Every configuration in a process of its own; the others start when the first has scored the pool they share.

    Raises:
        RuntimeError: one of them failed.
    """
    first, *others = configs.values()
    running = [_start(first, address)]
    try:
        while running[0].poll() is None and "rounds/000/scores" not in RunStore(first.output).manifest:
            time.sleep(0.5)
        if running[0].poll() in (None, 0):
            running += [_start(config, address) for config in others]
        codes = [process.wait() for process in running]
    finally:
        for process in running:
            if process.poll() is None:
                process.terminate()
    if 2 in codes:
        raise UserError("demo: a run was refused (see its error line above); give another --out, or delete the directory")
    if any(codes):
        raise RuntimeError(f"{first.output} and its siblings ended with exit codes {codes}")


def _start(config: RunConfig, address: str) -> subprocess.Popen[bytes]:
    file = Path(f"{config.output}.yaml")
    file.write_text(dump(config.model_copy(update={"ray_address": address})))
    return subprocess.Popen([sys.executable, "-m", "ka2l_ray", "run", str(file)], stdout=subprocess.DEVNULL)


def summarise(configs: dict[str, RunConfig], world: World) -> dict[str, Any]:
    """The demo's figures, from the runs' artefacts and the world's truth.

    A fact counts as not known where the training text does not state it consistently (boundary and unknown);
    ``*_strict`` leaves the boundary out. ``unknown_learned``: share of the world's unknown facts wrong before and right
    after; ``known_forgotten``: share of its known facts right before and wrong after; both on held-out phrasings.
    """
    stores = {arm: RunStore(config.output) for arm, config in configs.items()}
    start = stores[ARMS[0]]
    truth = world.truth("pool")
    uncertainty = start.manifest["rounds/000/entropy"].storage.read_table("", columns=["question_id", "semantic_entropy"])
    scores = start.manifest["rounds/000/scores"].storage.read_table("", columns=["question_id", "p_unknown"])
    fitted = set(uncertainty["question_id"].to_pylist())
    se = dict(zip(*(uncertainty[c].to_pylist() for c in uncertainty.column_names), strict=True))
    p = {i: v for i, v in zip(*(scores[c].to_pylist() for c in scores.column_names), strict=True) if i not in fitted}
    before = _correct(start, f"baseline/evaluation/{TEST_SET}")
    last = {
        arm: max(n for n in store.manifest if n.startswith("rounds/") and n.endswith(f"/evaluation/{TEST_SET}"))
        for arm, store in stores.items()
    }
    after = {arm: _correct(store, last[arm]) for arm, store in stores.items()}
    test_truth = world.truth("test")
    unknown = [i for i, group in test_truth.items() if group == "unknown"]
    known = [i for i, group in test_truth.items() if group == "known"]
    return {
        "se_auroc_truth": _against_truth(se, truth),
        "se_auroc_truth_strict": _against_truth(se, truth, strict=True),
        "probe_auroc_truth": _against_truth(p, truth),
        "probe_auroc_truth_strict": _against_truth(p, truth, strict=True),
        "accuracy_before": _mean(before.values()),
        "accuracy_after": {arm: _mean(now.values()) for arm, now in after.items()},
        "unknown_learned": {arm: _mean(now[i] and not before[i] for i in unknown) for arm, now in after.items()},
        "known_forgotten": {arm: _mean(before[i] and not now[i] for i in known) for arm, now in after.items()},
        "labels": {arm: Ledger(store).totals()["labels"] for arm, store in stores.items()},
        "seconds_by_stage": {arm: Ledger(store).seconds_by_stage() for arm, store in stores.items()},
    }


def _against_truth(score: dict[str, float], truth: dict[str, Any], strict: bool = False) -> float:
    ids = [i for i in score if not (strict and truth[i] == "boundary")]
    return round(auroc(np.array([truth[i] != "known" for i in ids], int), np.array([score[i] for i in ids])), 4)


def _correct(store: RunStore, artefact: str) -> dict[str, bool]:
    table = store.manifest[artefact].storage.read_table("", columns=["question_id", "exact_match"])
    return {i: em == 1.0 for i, em in zip(table["question_id"].to_pylist(), table["exact_match"].to_pylist(), strict=True)}


def _mean(values: Any) -> float:
    return round(float(np.mean(list(values))), 4)


def _table(summary: dict[str, Any]) -> Table:
    table = Table("figure", *ARMS, title="KA2L demo: the bundled world")
    for name, value in summary.items():
        if name == "seconds_by_stage":
            for stage in sorted({stage for seconds in value.values() for stage in seconds}):
                table.add_row(f"seconds: {stage}", *(f"{value[arm].get(stage, 0.0):.1f}" for arm in ARMS))
        elif isinstance(value, dict):
            table.add_row(name, *(str(value[arm]) for arm in ARMS))
        else:
            table.add_row(name, str(value), "")
    return table
