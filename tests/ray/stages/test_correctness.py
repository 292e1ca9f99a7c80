"""Correctness by a judge, in the stage evaluate and in ``ka2l entropy --evaluate``: as by hand, in workers of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from ka2l_ray.jobs.commands.cli import app
from ka2l_ray.reading import READING
from ka2l_ray.semantics.correctness import judge_answers
from ka2l_ray.semantics.judges.nli import NLIJudge
from ka2l_ray.world.facts import World
from tests.ray.conftest import write_lines

NLI = ("-o", "evaluation.judge=nli", "-o", "evaluation.nli_model=bundled:judge")


def command(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


def facts(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "_artefact.json").read_text())["facts"]
    return found


@pytest.fixture(scope="module")
def asked_of_the_world(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Forty questions of the bundled world, the accepted answer in words that the student may not choose."""
    rows = [{**row, "answers": [row["answers"][-1]]} for row in World().rows("test")[::40][:40]]  # type: ignore[index]
    return write_lines(tmp_path_factory.mktemp("test") / "test.jsonl", rows)


def test_a_model_judges_in_its_own_worker_and_its_verdicts_are_kept(asked_of_the_world: str, tmp_path: Path) -> None:
    given = ("evaluate", "--model", "bundled:student", "--test", asked_of_the_world, "-o", "preset=bundled-world", *NLI)
    given += ("-o", f"evaluation.cache={tmp_path / 'verdicts'}", "-o", "evaluation.bootstrap=50")
    said = command(*given, "--out", str(tmp_path / "first"))
    rows = pd.read_parquet(tmp_path / "first")
    columns = (rows[name].tolist() for name in ("question", "prediction", "answers"))
    by_hand = judge_answers(*columns, NLIJudge("bundled:judge"), READING)
    assert rows["correct"].tolist() == [float(each.correct) for each in by_hand]
    assert rows["exact_match"].tolist() == [float(each.exact_match) for each in by_hand]
    assert rows["correct"].sum() > rows["exact_match"].sum() > 0, "the judge knows other words for it"
    first = facts(tmp_path / "first")
    assert (first["judge"], first["judge_calls"]) == ("nli", sum(each.judge_calls for each in by_hand))
    assert first["accuracy"] == rows["correct"].mean()
    assert first["by_exact_match"]["accuracy"] == rows["exact_match"].mean()
    assert first["known_before"] == rows["correct"].sum()
    assert "judge nli" in said
    command(*given, "--out", str(tmp_path / "second"), "--seed", "1")
    second = facts(tmp_path / "second")
    assert second["judge_calls"] + second["cached_verdicts"] >= second["cached_verdicts"] > 0
    assert second["judge_calls"] < first["judge_calls"]


def test_scores_are_held_against_the_judge_and_exact_match(tmp_path: Path) -> None:
    rows = [
        {"id": f"q{i}", "question": f"Where is {i}?", "generations": texts, "greedy": greedy, "answers": ["Paris"]}
        for i, (texts, greedy) in enumerate(
            [(["Paris"] * 4, "Paris"), (["Paris, France"] * 4, "Paris, France"), (["a", "b", "c", "d"], "Rome")] * 4
        )
    ]
    samples = write_lines(tmp_path / "samples.jsonl", rows)
    said = command(
        *("entropy", "--samples", samples, "--judge", "exact", "--evaluate", "--out", str(tmp_path / "out")),
        *("-o", "evaluation.judge=contains"),
    )
    assert "33.3% answered wrongly (right by contains)" in said
    assert "66.7% answered wrongly (exact match)" in said
    quality = {(row["truth"], row["score"]): row for row in facts(tmp_path / "out-uncertainty")["quality"]}
    assert quality["right by contains", "semantic entropy"]["auroc"] == 1.0
    assert (
        quality["exact match", "semantic entropy"]["auroc"] == 0.75
    )  # four of the eight wrong ones at 0 nats, as the right ones
    table = pd.read_parquet(tmp_path / "out-uncertainty")
    assert np.mean(table["wrong"]) == pytest.approx(1 / 3)
    assert np.mean(table["no_exact_match"]) == pytest.approx(2 / 3)
