"""p(wrong) and the combined score on the command line, of answers of which some are known to be right or wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ka2l_ray.uncertainty.p_wrong import calibrate, combine
from ka2l_ray.uncertainty.ranking import auroc
from ka2l_ray.uncertainty.scores import aurc, fold_of
from tests.ray.commands import ka2l
from tests.ray.conftest import write_lines

QUESTIONS = 240


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Of the wrong answers half come with ten different ones, half are said ten times with a low likelihood; every third row is
    not labelled."""
    generator = np.random.default_rng(0)
    made = []
    for i in range(QUESTIONS):
        wrong, sure = generator.random() < 0.5, generator.random() < 0.5
        different = 10 if wrong and not sure else int(generator.integers(1, 8))
        logprob = -float(generator.normal(4 if wrong and sure else 1, 1))
        said = [f"answer {j % different}" for j in range(10)]
        row = {"id": f"q{i}", "question": f"Who was number {i}?", "generations": said, "greedy": said[0]}
        row |= {"greedy_logprob": logprob, "greedy_token_ids": [1, 2]}
        made.append(row | ({"right": not wrong} if i % 3 else {}))
    return made


def test_rows_carry_p_wrong_and_all_scores_combined_are_a_strategys_column(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    samples = write_lines(tmp_path / "samples.jsonl", rows)
    given = [{"id": row["id"], "p_unknown": i / QUESTIONS, "p_true": 0.5} for i, row in enumerate(rows)]
    scores = write_lines(tmp_path / "scores.jsonl", given)
    command = ("entropy", "--samples", samples, "--judge", "exact", "--out", str(tmp_path / "out"), "--correct", "right")
    done = ka2l(*command, "--p-wrong", "--combine", "--scores", scores)
    assert done.returncode == 0, done.stderr
    assert "p_wrong (all): platt on 160 labelled of 240 questions" in done.stdout
    assert "combined" in done.stdout
    entropy = pd.read_parquet(tmp_path / "out").set_index("question_id").loc[[row["id"] for row in rows]]
    said = [not row["right"] if "right" in row else None for row in rows]
    expected = calibrate(entropy["semantic_entropy"].to_numpy(), said, [row["question"] for row in rows])
    np.testing.assert_allclose(entropy["p_wrong"], expected.p_wrong)

    facts = json.loads((tmp_path / "out-uncertainty" / "_artefact.json").read_text())["facts"]
    quality = {row["score"]: row for row in facts["quality"]}
    assert quality["combined"]["questions"] == quality["semantic entropy"]["questions"] == facts["labelled"] == 160
    assert quality["combined"]["auroc"] > quality["semantic entropy"]["auroc"] + 0.1
    assert quality["combined"]["aurc"] < quality["semantic entropy"]["aurc"]
    table = pd.read_parquet(tmp_path / "out-uncertainty")
    np.testing.assert_allclose(table.set_index("question_id")["p_wrong"], entropy["p_wrong"].loc[table["question_id"]])
    wrong = [None if each is None or pd.isna(each) else bool(each) for each in table["wrong"]]
    names = {"semantic_entropy": "semantic entropy", "p_unknown": "p(unknown)", "p_true": "P(True)"}
    parts = {name: table[column].to_numpy() for column, name in (names | {"log_likelihood": "log-likelihood"}).items()}
    np.testing.assert_allclose(table["combined"], combine(parts, wrong, table["question"].tolist()), atol=1e-6)
    known = table[table["wrong"].notna()]
    folds = known.groupby(known["question"].map(fold_of))
    risks = [aurc(fold["wrong"].to_numpy(bool), fold["combined"].to_numpy()) for _, fold in folds]
    assert quality["combined"]["aurc"] == pytest.approx(np.mean(risks))
    assert auroc(known["wrong"].to_numpy(bool), known["combined"].to_numpy()) > 0.8

    command = ("select", "--scores", str(tmp_path / "out-uncertainty"), "--strategy", "combined", "--budget", "20")
    done = ka2l(*command, "--out", str(tmp_path / "chosen"))
    assert done.returncode == 0, done.stderr
    chosen = pd.read_parquet(tmp_path / "chosen").sort_values("rank")
    best = table.sort_values("combined", ascending=False)["combined"][:20]
    np.testing.assert_allclose(chosen["acquisition"], best)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--combine", "--correct", "right"), "--combine: there is nothing beside semantic entropy; give --hidden-states"),
        (("--p-wrong",), "whether an answer is right is not known; give --correct COLUMN"),
        (("--p-wrong", "--correct", "right", "--scores", "x"), "--scores has no effect without --evaluate"),
        (("--evaluate", "--correct", "right", "--scores", "{samples}"), "no row has a 'p_unknown', 'p_true' or 'option_entropy'"),
    ],
)
def test_what_cannot_be_fitted_is_one_line(
    rows: list[dict[str, Any]], arguments: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    bare = [{k: v for k, v in row.items() if k in ("id", "question", "generations", "right")} for row in rows]
    samples = write_lines(tmp_path / "samples.jsonl", bare)
    given = [argument.format(samples=samples) for argument in arguments]
    done = ka2l("entropy", "--samples", samples, "--judge", "exact", "--out", str(tmp_path / "out"), *given)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert words in line
    assert not (tmp_path / "out").exists()


def test_labels_of_one_kind_are_told_of(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    samples = write_lines(tmp_path / "samples.jsonl", [row | {"right": False} for row in rows[:20]])
    command = ("entropy", "--samples", samples, "--judge", "exact", "--out", str(tmp_path / "out"), "--correct", "right")
    done = ka2l(*command, "--p-wrong")
    assert done.returncode == 0, done.stderr
    assert "all 20 labelled answers are wrong, and so p(wrong) is 1 for every question" in done.stderr


def test_paragraphs_are_told_of(tmp_path: Path) -> None:
    said = "He was born in a small town. He then went to the city. There he wrote all of his books."
    rows = [
        {"id": f"q{i}", "question": f"Who was number {i}?", "generations": [f"{said} {j}" for j in range(3)]} for i in range(3)
    ]
    samples = write_lines(tmp_path / "samples.jsonl", rows)
    done = ka2l("entropy", "--samples", samples, "--judge", "exact", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "the median answer is a paragraph" in done.stderr
    assert json.loads((tmp_path / "out" / "_artefact.json").read_text())["facts"]["paragraphs"] == 3
