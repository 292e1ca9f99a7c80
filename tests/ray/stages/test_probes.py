"""Probes on other positions and targets, through the stages' commands; and their use outside a run."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from ka2l_ray import KnowledgeProbe
from ka2l_ray.errors import UserError
from ka2l_ray.jobs.commands.cli import app
from ka2l_ray.probes import predict, probe_from_bytes
from ka2l_ray.world.facts import World
from tests.ray.conftest import write_lines
from tests.ray.stages.test_stages import PRESET, STUDENT, command

pytestmark = pytest.mark.check
QUESTIONS = World().rows("pool")[:1600:8]


@pytest.fixture(scope="module")
def entropy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions, and their semantic entropy with a few labels taken out, as of those whose answers abstain."""
    at = tmp_path_factory.mktemp("probes")
    pool = write_lines(at / "pool.jsonl", QUESTIONS)
    command("sample", *STUDENT, "--questions", pool, "--out", str(at / "samples"), "--k", "6", *PRESET)
    command("entropy", "--samples", str(at / "samples"), "--out", str(at / "entropy"), "--judge", "exact", *PRESET)
    table = pd.read_parquet(at / "entropy").astype({"label": "Int8"})
    table.loc[table.index[:7], "label"] = None
    (at / "labels").mkdir()
    table.to_parquet(at / "labels" / "part.parquet")
    return at


@pytest.mark.parametrize("position", ["last_prompt_token", "mean", "attention"])
def test_scores_are_the_probe_on_the_states_of_its_position(entropy: Path, position: str) -> None:
    at = entropy / position
    pool, layers = str(entropy / "pool.jsonl"), ("--layers", "2,3")
    command("hidden-states", *STUDENT, "--questions", pool, "--out", f"{at}/states", "--position", position, *layers, *PRESET)
    told = ("--hidden-states", f"{at}/states", "--entropy", str(entropy / "labels"), "--out", f"{at}/probe")
    command("probe", *told, "--kind", "linear", *PRESET)
    command(
        "score", *STUDENT, "--probe", f"{at}/probe", "--questions", pool, "--next-token-entropy", "--out", f"{at}/scores", *PRESET
    )
    facts = json.loads((at / "probe" / "_artefact.json").read_text())["facts"]
    assert (facts["rows"], facts["position"], facts["calibration"]) == (len(QUESTIONS) - 7, position, "platt")
    probe, card = probe_from_bytes((at / "probe" / "probe.safetensors").read_bytes(), "probe")
    assert (card.position, card.source.model, card.calibration) == (position, "bundled:student", "platt")  # type: ignore[union-attr]
    states = pq.read_table(at / "states").to_pandas().set_index("question_id")[f"layer_{card.layer}"]
    scores = pd.read_parquet(at / "scores").set_index("question_id").loc[states.index]
    if position == "attention":
        longest = max(map(len, states))
        rows = [np.pad(np.stack(list(s)), ((0, longest - len(s)), (0, 0)), constant_values=np.nan) for s in states]
    else:
        rows = states.to_list()
    np.testing.assert_allclose(scores["p_unknown"], predict(probe, np.stack(rows).astype(np.float32)), atol=1e-4)
    assert scores["next_token_entropy"].between(0, np.log(3134)).all()
    outside = KnowledgeProbe.load(f"{at}/probe", "bundled:student")
    asked = [row["question"] for row in QUESTIONS[:20]]
    ids = [row["id"] for row in QUESTIONS[:20]]
    np.testing.assert_allclose(outside.predict_proba(asked)[:, 1], scores.loc[ids, "p_unknown"], atol=1e-4)


def test_a_probe_in_a_run_is_used_outside_it_and_refused_where_it_does_not_fit(
    entropy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = entropy / "last_prompt_token" / "probe"
    page = (folder / "README.md").read_text()
    assert "bundled:student" in page
    assert "Brier score" in page
    with pytest.raises(UserError, match=r"rendered otherwise .* its card \(README.md\)"):
        KnowledgeProbe.load(folder, "bundled:student", prompt={"instruction": "Be brief."})
    pool = str(entropy / "pool.jsonl")
    result = CliRunner().invoke(
        app,
        [
            "score",
            *STUDENT,
            "--probe",
            str(folder),
            "--questions",
            pool,
            "--out",
            str(entropy / "wrong"),
            *PRESET,
            "-o",
            "prompt.instruction=Be brief.",
        ],
    )
    assert result.exit_code == 2
    assert "rendered otherwise" in result.stderr
    with caplog.at_level(logging.WARNING):
        card = KnowledgeProbe.load(folder).card
        assert card.source is not None
        card.source.check("here", "models/other", card.source.rendering, "abc")
    assert "fitted on states of bundled:student, and is asked about those of models/other" in caplog.text
    assert "with no adapter, this has adapter abc" in caplog.text


@pytest.mark.parametrize("target", ["soft", "semantic_entropy"])
def test_a_target_without_a_threshold_is_fitted_where_labels_part_nothing(entropy: Path, target: str) -> None:
    table = pd.read_parquet(entropy / "entropy").assign(label=np.int8(1))
    folder = entropy / f"all_unknown_{target}"
    folder.mkdir()
    table.to_parquet(folder / "part.parquet")
    told = ("--hidden-states", str(entropy / "last_prompt_token/states"), "--entropy", str(folder), "--kind", "linear")
    refused = CliRunner().invoke(app, ["probe", *told, "--out", str(entropy / f"no_{target}"), *PRESET])
    assert refused.exit_code == 2
    assert "are labelled unknown: no probe can be fitted" in refused.stderr
    command("probe", *told, "--out", str(entropy / f"probe_{target}"), *PRESET, "-o", f"probe.target={target}")
    facts = json.loads((entropy / f"probe_{target}" / "_artefact.json").read_text())["facts"]
    assert facts["validation_auroc"] > 0.8  # of the order of the targets
    assert facts["calibration"] == "none"
