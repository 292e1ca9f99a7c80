"""The loop's own decisions: when it stops, what it takes in, what it says beforehand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ka2l_ray.actors.engines import Engines
from ka2l_ray.jobs.driver import _Loop
from ka2l_ray.store.artefacts import Artefact, RunStore
from tests.ray.commands import ka2l
from tests.ray.conftest import resolved, write_config, write_lines


def artefact(**facts: Any) -> Artefact:
    return Artefact("a", "k", {}, facts, 0.0, "here", "/nowhere")


def stopped(
    small_run: dict[str, Any], tmp_path: Path, *, rounds: int, curve: list[float], labels: int = 24, **rules: Any
) -> str | None:
    small_run["stopping"] = {"max_rounds": 10, **rules}
    loop = _Loop(resolved(small_run, tmp_path), RunStore(str(tmp_path / "run")), Engines(resolved(small_run, tmp_path).engine))
    loop.labelled = frozenset(str(i) for i in range(labels))
    loop.evaluations = {"": [artefact(accuracy=value) for value in curve]}
    return loop._stopping_rule(rounds, artefact(rows=160), artefact(rows=100, predicted_unknown=20))


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ({"rounds": 1, "curve": [0.1, 0.2]}, None),
        ({"rounds": 10, "curve": [0.1, 0.2]}, "the number of rounds, 10, is reached"),
        ({"rounds": 1, "curve": [0.1], "labels": 50, "max_labels": 50}, "the budget of 50 labels is spent"),
        ({"rounds": 1, "curve": [0.1], "labels": 160}, "every question of the pool is labelled"),
        ({"rounds": 1, "curve": [0.1], "min_unknown_share": 0.3}, "the share predicted unknown, 0.200, is below 0.3"),
        ({"rounds": 1, "curve": [0.1], "min_unknown_share": 0.1}, None),
        ({"rounds": 3, "curve": [0.1, 0.3, 0.301, 0.302], "plateau_rounds": 2}, "exact match on the test set has not risen"),
        ({"rounds": 3, "curve": [0.1, 0.3, 0.301, 0.32], "plateau_rounds": 2}, None),
        ({"rounds": 1, "curve": [0.3, 0.1], "plateau_rounds": 2}, None),
    ],
)
def test_stopping_rules(case: dict[str, Any], words: str | None, small_run: dict[str, Any], tmp_path: Path) -> None:
    reason = stopped(small_run, tmp_path, **case)
    assert reason is None if words is None else reason is not None and words in reason


def test_the_plateau_is_of_the_chosen_judge_s_figure_and_says_so(small_run: dict[str, Any], tmp_path: Path) -> None:
    small_run["evaluation"]["judge"] = "contains"
    reason = stopped(small_run, tmp_path, rounds=3, curve=[0.1, 0.3, 0.301, 0.302], plateau_rounds=2)
    assert reason == "right by contains on the test set has not risen by 0.005 in 2 rounds"


def test_auto_is_decided_once_and_its_threshold_kept_for_the_run(small_run: dict[str, Any], tmp_path: Path) -> None:
    config = resolved(small_run, tmp_path)
    (tmp_path / "run").mkdir()
    store = RunStore(str(tmp_path / "run"))
    loop = _Loop(config, store, Engines(config.engine))
    loop._keep_rule(artefact(rule="two_means", threshold=1.25))
    loop._keep_rule(artefact(rule="two_means", threshold=0.75))
    assert loop.decided == ("two_means", 1.25)
    (line,) = map(json.loads, store.storage.read_bytes("metrics.jsonl").splitlines())
    assert (line["name"], line["value"], line["threshold"]) == ("entropy_rule", "two_means", 1.25)
    again = _Loop(config, RunStore(str(tmp_path / "run")), Engines(config.engine))  # goes on where that one was
    again._keep_rule(artefact(rule="two_means", threshold=1.25))
    assert again.decided == loop.decided
    by_name = config.model_copy(update={"entropy": config.entropy.model_copy(update={"rule": "two_means"})})
    each_round = _Loop(by_name, store, Engines(config.engine))
    each_round._keep_rule(artefact(rule="two_means", threshold=1.25))
    assert each_round.decided is None, "a rule that is given by name finds its threshold in each round"


def test_a_question_that_stands_twice_is_kept_once_and_said(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "question": "Who employs Quegrerk?", "answers": ["x"]},
        {"id": "b", "question": "who employs  Quegrerk", "answers": ["x"]},
    ]
    path = write_lines(tmp_path / "pool.jsonl", rows)
    done = ka2l("annotate", "--questions", path, "--out", str(tmp_path / "out"))
    assert done.returncode == 0
    assert "pool.jsonl: 1 rows repeat an earlier question; kept once (first:" in done.stderr
    assert len(pd.read_parquet(tmp_path / "out")) == 1


def test_doctor_and_dry_run_say_what_is_there_and_spend_nothing(small_run: dict[str, Any], tmp_path: Path) -> None:
    pool, asked = (Path(small_run["pool"][name]).read_text().splitlines() for name in ("questions", "test"))
    twin = {"id": "twin", "question": json.loads(asked[0])["question"].replace("?", ", please?")}
    small_run["pool"]["questions"] = write_lines(tmp_path / "pool.jsonl", [*map(json.loads, pool), twin])
    config = write_config(small_run, tmp_path)
    examined = ka2l("doctor", config)
    assert examined.returncode == 0, examined.stdout
    assert "configuration" in examined.stdout
    near = "1 of 60 test questions share at least 80% of their words with a question of the pool"
    assert near in examined.stdout
    first = json.loads(Path(small_run["pool"]["questions"]).read_text().splitlines()[0])["question"]
    assert f"| <s>{first}\n" in examined.stdout
    planned = ka2l("run", config, "--dry-run", "-o", "probe.epochs=5")
    assert planned.returncode == 0, planned.stderr
    assert "epochs: 5" in planned.stdout
    assert near in planned.stdout
    assert "hidden_states" in planned.stdout
    assert f"| <s>{first}\n" in planned.stdout
    assert "a training row ends its answer with '</s>', token ids [" in planned.stdout
    assert not Path(small_run["output"]).exists()
