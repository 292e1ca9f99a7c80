"""Real public questions and real sampled answers (../shared/data, where it is beside the checkout)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ka2l_ray.store.artefacts import RunStore
from ka2l_ray.uncertainty.ranking import auroc
from tests.ray.commands import ka2l
from tests.ray.conftest import write_config

pytestmark = pytest.mark.shared


def test_semantic_entropy_of_real_answers_predicts_the_llm_verdict(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "gen_triviaqa_10x.jsonl"
    done = ka2l("entropy", "--samples", str(source), "--judge", "exact", "--out", str(tmp_path / "entropy"))
    assert done.returncode == 0, done.stderr
    entropy = pd.read_parquet(tmp_path / "entropy").set_index("question_id")
    rows = (
        pd.DataFrame([json.loads(line) for line in source.read_text().splitlines()]).set_index("id").join(entropy, rsuffix="_out")
    )
    assert len(rows) == 3147
    for model, answers in rows.groupby("model"):
        value = auroc(~answers["greedy_correct_llm_verdict"].astype(bool), answers["semantic_entropy"])
        assert 0.665 <= value < 0.725, model  # published: 0.67 to 0.72


@pytest.fixture
def trivia_run(shared_data: Path, tmp_path: Path) -> dict[str, Any]:
    """300 questions of which the bundled student knows none."""
    pool = tmp_path / "pool.jsonl"
    pool.write_text("".join(f"{line}\n" for line in (shared_data / "triviaqa.jsonl").read_text().splitlines()[:300]))
    return {
        "preset": "bundled-world",
        "output": str(tmp_path / "run"),
        "pool": {"questions": str(pool), "probing_size": 60},
        "entropy": {"judge": "exact"},
        "selection": {"budget": 40},
        "finetune": {"epochs": 1},
        "stopping": {"max_rounds": 1},
    }


def test_a_pool_of_which_nothing_is_known_is_ranked_by_semantic_entropy(trivia_run: dict[str, Any], tmp_path: Path) -> None:
    trivia_run["entropy"]["rule"] = "ka2l"
    done = ka2l("run", write_config(trivia_run, tmp_path))
    assert done.returncode == 0, done.stderr
    assert "all 60 questions of the probing set are labelled unknown: no probe can be fitted" in done.stderr
    assert "ranked by semantic entropy" in done.stderr
    manifest = RunStore(trivia_run["output"]).manifest
    assert manifest["rounds/000/probe"].facts["fitted"] is False
    entropy = pd.read_parquet(manifest["rounds/000/entropy"].url).set_index("question_id")["semantic_entropy"]
    chosen = pd.read_parquet(manifest["rounds/000/selection"].url)["question_id"]
    assert entropy[chosen].min() >= entropy.drop(chosen).max()
    assert manifest["rounds/000/adapter"].facts["sources"] == {"column": 40}


def test_where_nothing_can_be_ranked_the_run_stops_and_says_so(trivia_run: dict[str, Any], tmp_path: Path) -> None:
    trivia_run["sampling"] = {"k": 2, "temperature": 20.0}  # two answers, never the same
    done = ka2l("run", write_config(trivia_run, tmp_path))
    assert done.returncode == 0, done.stderr
    assert "stopped: nothing can be ranked" in done.stdout
    assert "rounds/000/selection" not in RunStore(trivia_run["output"]).manifest
