"""Multiple choice and named test sets, through the loop and the single stages, on the bundled world's facts with options."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest

from ka2l_ray.actors.engines import Engines
from ka2l_ray.config_files import load_config
from ka2l_ray.errors import UserError
from ka2l_ray.jobs.commands.plan import plan
from ka2l_ray.jobs.driver import _Loop
from ka2l_ray.store.artefacts import RunStore
from ka2l_ray.uncertainty.ranking import auroc
from ka2l_ray.world.facts import World
from tests.ray.commands import ka2l
from tests.ray.conftest import write_config, write_lines


def questions(split: Literal["pool", "test"], facts: slice) -> list[dict[str, Any]]:
    """The facts' questions, each with three values of the same relation and the true one among them, second."""
    world = World()
    rows = []
    for row, fact in list(zip(world.rows(split), world.facts, strict=True))[facts]:
        wrong = [value.forms[0] for value in world.values[fact.relation] if value != fact.value][:3]
        rows.append({**row, "choices": [wrong[0], fact.value.forms[0], *wrong[1:]], "label": "B"})
    return rows


@pytest.fixture
def choosing(small_run: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A round that labels where the options' likelihoods are the most even, and is evaluated on two test sets."""
    own = write_lines(tmp_path / "own.jsonl", questions("test", slice(0, 12)))
    others = write_lines(tmp_path / "others.jsonl", questions("test", slice(60, 72)))
    small_run["pool"] = {
        "questions": write_lines(tmp_path / "pool.jsonl", questions("pool", slice(0, 48))),
        "test": {"own": {"path": own, "kind": "transductive"}, "others": {"path": others, "kind": "inductive"}},
        "probing_size": 24,
    }
    small_run["prompt"] = {"instruction": "", "options": "hide"}
    small_run["sampling"] = {"k": 2}
    small_run["selection"] = {"strategy": "option_entropy", "budget": 8}
    small_run["finetune"] |= {"epochs": 1, "replay_known": 0}
    return small_run


def test_labels_go_where_the_options_are_even_and_each_test_set_is_evaluated(choosing: dict[str, Any], tmp_path: Path) -> None:
    done = ka2l("run", write_config(choosing, tmp_path))
    assert done.returncode == 0, done.stderr
    out = Path(choosing["output"])
    names = json.loads((out / "manifest.json").read_text())["artefacts"]
    for at in ("test", "baseline/evaluation", "rounds/000/evaluation"):
        assert {name for name in names if name.startswith(at)} == {f"{at}/own", f"{at}/others"}
    scores = pd.read_parquet(out / "rounds/000/scores").set_index("question_id")
    chosen = pd.read_parquet(out / "rounds/000/selection")
    assert scores["option_entropy"].between(0, np.log(4)).all()
    assert set(chosen["question_id"]) == set(scores["option_entropy"].nlargest(8).index)
    truth = World().truth("pool")
    assert auroc(np.array([truth[i] != "known" for i in scores.index]), scores["option_entropy"].to_numpy()) > 0.85
    forms = {row["id"]: row["target"] for row in World().rows("pool")}
    labels = pd.read_parquet(out / "rounds/000/annotations")
    assert labels["target"].tolist() == [forms[i] for i in labels["question_id"]]
    page = (out / "report.html").read_text()
    assert "run, own (transductive)" in page
    assert "run, others (inductive)" in page
    assert "others: 12 questions, inductive; own: 12 questions, transductive" in page


def test_shown_options_stand_in_the_prompt_and_are_a_score_of_the_evaluation(tmp_path: Path) -> None:
    asked = write_lines(tmp_path / "asked.jsonl", questions("pool", slice(0, 30)))
    scores = str(tmp_path / "scores")
    done = ka2l("score", "--model", "bundled:student", "--option-entropy", "--questions", asked, "--out", scores)
    assert done.returncode == 0, done.stderr
    table = pd.read_parquet(scores)
    assert table["question"].str.contains("\nB. ").all()
    assert table["option_entropy"].between(0, np.log(4)).all()
    rows = [
        {"id": f"pool-{fact.fact_id}", "question": "?", "generations": ["a", "b"], "right": fact.group == "known"}
        for fact in World().facts[:30]
    ]
    answered = write_lines(tmp_path / "samples.jsonl", rows)
    command = ("entropy", "--samples", answered, "--judge", "exact", "--evaluate", "--correct", "right", "--scores", scores)
    done = ka2l(*command, "--out", str(tmp_path / "entropy"))
    assert done.returncode == 0, done.stderr
    quality = json.loads((tmp_path / "entropy-uncertainty/_artefact.json").read_text())["facts"]["quality"]
    wrong = {row["id"]: not row["right"] for row in rows}
    expected = auroc(np.array([wrong[i] for i in table["question_id"]]), table["option_entropy"].to_numpy())
    assert next(row["auroc"] for row in quality if row["score"] == "option entropy") == pytest.approx(expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("pool.test={own: {path: others.jsonl, kind: transductive}}",), "is not in the pool (12 of its 12 facts are not)"),
        (("pool.test=own.jsonl",), "an inductive test set shares no fact with the pool"),
        (("pool.questions=bare.jsonl", "pool.test=null"), "30 of 30 questions of bare.jsonl have no 'options'"),
        (("pool.test=wrong.jsonl",), "wrong.jsonl:2: no answer is among the 'choices'"),
    ],
)
def test_what_is_wrong_with_them_is_said_before_anything_is_computed(
    change: tuple[str, ...], message: str, choosing: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines("bare.jsonl", [{"id": row["id"], "question": row["question"]} for row in questions("pool", slice(0, 30))])
    first, second = questions("test", slice(60, 62))
    wrong = {**second, "label": None, "target": None, "answers": ["none of these"]}
    write_lines("wrong.jsonl", [first, wrong])
    config = load_config(write_config(choosing, tmp_path), list(change))
    with pytest.raises(UserError, match=re.escape(message)):
        plan(config)
    loop = _Loop(config, RunStore(config.output), Engines(config.engine))
    with pytest.raises(UserError, match=re.escape(message)):
        loop.run()
    assert not [name for name in loop.store.manifest if name not in ("pool", "test", "test/own")]


def test_a_transductive_set_of_other_facts_is_one_line_and_exit_code_2(choosing: dict[str, Any], tmp_path: Path) -> None:
    choosing["pool"]["test"]["others"]["kind"] = "transductive"
    done = ka2l("run", write_config(choosing, tmp_path))
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert f"{tmp_path}/others.jsonl: the fact 'w00060' of test question 'test-w00060' is not in the pool" in line
