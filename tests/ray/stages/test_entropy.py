"""The entropy stage from the command line: labels only, cached verdicts, what is warned of, resume, every uncertainty score."""

from __future__ import annotations

import json
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from ka2l_ray.semantics.clustering import Counts, cluster_answers
from ka2l_ray.semantics.judges.nli import NLIJudge
from ka2l_ray.uncertainty.ranking import auroc
from ka2l_ray.uncertainty.scores import column_of
from ka2l_ray.world import bundled_path
from ka2l_ray.world.facts import World
from tests.ray.commands import ka2l, ka2l_killed_in
from tests.ray.conftest import write_lines

BUNDLED = ("--judge", "nli", "--nli-model", "bundled:judge")


def answers_of_the_world(n: int) -> list[dict[str, Any]]:
    """Questions with six answers each: forms of the true value and of one or two others of the same kind."""
    world, generator = World(), random.Random(0)
    rows = []
    for i in range(n):
        fact = world.facts[i * len(world.facts) // n]
        others = generator.sample(world.values[fact.relation], generator.choice([0, 0, 1, 2, 4]))
        forms = [form for value in (fact.value, *others) for form in value.forms]
        generations = [generator.choice(forms) for _ in range(6)]
        rows.append({"id": f"q{i}", "question": fact.question(0), "generations": generations})
    return rows


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return answers_of_the_world(60)


@pytest.fixture(scope="module")
def samples(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_lines(tmp_path_factory.mktemp("samples") / "samples.jsonl", rows)


def entropy(samples: str, out: Path, *arguments: str) -> tuple[pd.DataFrame, dict[str, Any], str]:
    """The stage's table by id, what it recorded, and its log."""
    done = ka2l("entropy", "--samples", samples, "--out", str(out), *arguments)
    assert done.returncode == 0, done.stderr
    facts = json.loads((out / "_artefact.json").read_text())["facts"]
    return pd.read_parquet(out).set_index("question_id").sort_index(), facts, done.stderr


def test_label_only_gives_the_labels_of_all_answers_for_fewer_verdicts_and_a_cache_takes_up_the_rest(
    samples: str, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    cache = ("-o", f"entropy.cache={tmp_path / 'cache'}", "-o", "entropy.audit=0")
    decided, cheap, _ = entropy(
        samples, tmp_path / "decided", *BUNDLED, *cache, "--rule", "ka2l", "-o", "entropy.label_only=true"
    )
    whole, full, _ = entropy(samples, tmp_path / "whole", *BUNDLED, *cache)
    again, none, _ = entropy(samples, tmp_path / "again", *BUNDLED, *cache, "-o", "entropy.policy=founder_first")
    assert decided["label"].equals(whole["label"])
    assert 0 < whole["label"].sum() < len(whole)
    lower, upper = decided["bound"] == "lower", decided["bound"] == "upper"
    assert (decided["semantic_entropy"] <= whole["semantic_entropy"] + 1e-9)[lower].all()
    assert (decided["semantic_entropy"] >= whole["semantic_entropy"] - 1e-9)[upper].all()
    assert lower.sum() + upper.sum() > 10

    judge, counts = NLIJudge(bundled_path("bundled:judge")), Counts()
    alone = cluster_answers([row["question"] for row in rows], [row["generations"] for row in rows], judge)
    for each in alone:
        counts += each.counts
    assert [list(ids) for ids in whole.loc[[row["id"] for row in rows], "cluster_ids"]] == [c.cluster_ids for c in alone]
    assert full["judge_calls"] + full["cached_verdicts"] == counts.judge_calls
    assert full["reference_calls"] == counts.reference_calls
    assert full["cached_verdicts"] == cheap["judge_calls"] < counts.judge_calls, "what the label took is not asked again"
    assert none["judge_calls"] < counts.judge_calls / 10
    assert "judge_calls" in again.columns

    other = ka2l("entropy", "--samples", samples, "--out", str(tmp_path / "other"), "--judge", "exact", *cache)
    assert other.returncode == 2
    assert "holds the verdicts of another judge" in other.stderr
    assert not (tmp_path / "other").exists()


def test_empty_single_and_overlong_answers_are_counted_and_said(tmp_path: Path) -> None:
    question = "What is the occupation of Quegrerk?"
    rows = [
        {"id": "single", "question": question, "generations": ["physician"]},
        {"id": "empty", "question": question, "generations": ["", "physician", " ", "lawyer"]},
        {"id": "long", "question": question, "generations": ["physician " * 800, "lawyer"]},
        {"id": "cut", "question": question, "generations": ["phys", "I don't know"], "finish_reasons": ["length", "stop"]},
    ]
    table, facts, log = entropy(write_lines(tmp_path / "samples.jsonl", rows), tmp_path / "out", *BUNDLED)
    assert table.loc["single", "semantic_entropy"] == 0
    assert list(table.loc["empty", "cluster_ids"]) == [0, 1, 0, 2]
    assert (facts["single_answers"], facts["empty_answers"]) == (1, 2)
    assert facts["truncated"] >= 1
    assert "1 questions have one answer, whose semantic entropy is 0 whatever the model knows" in log
    assert "2 answers are empty; they count as one meaning of their own" in log
    assert "verdicts are on texts longer than the judge takes" in log
    assert (facts["cut_answers"], facts["drawn"], facts["abstentions"], facts["rule"]) == (1, 9, 1, "ka2l")
    assert "1 of 9 answers (11.1 %) were cut at sampling.max_tokens" in log
    assert "1 answers decline to answer" in log
    assert table["abstains"].to_dict() == {"single": False, "empty": True, "long": False, "cut": True}


def test_blocks_written_before_the_kill_are_not_clustered_again(tmp_path: Path) -> None:
    samples = write_lines(tmp_path / "samples.jsonl", answers_of_the_world(2000))
    out = tmp_path / "out"
    command = ("entropy", "--samples", samples, "--out", str(out), *BUNDLED)
    committed = "_scratch/checkpoint/*[0-9a-f].parquet"  # .pending.parquet until the rows are written
    assert ka2l_killed_in("out", committed, *command).returncode == -signal.SIGKILL
    (work,) = tmp_path.glob("out.partial-*")
    written = {}
    for file in (work / "_scratch" / "clusters").glob("*.parquet"):
        try:
            written[file.name] = set(pq.read_table(file, columns=["question_id"])["question_id"].to_pylist())
        except (OSError, pa.ArrowException):  # this one was being written
            continue
    assert 0 < sum(map(len, written.values())) < 2000
    assert ka2l(*command).returncode == 0
    assert len(pd.read_parquet(out)) == pd.read_parquet(out)["question_id"].nunique() == 2000
    kept = [ids for file in out.glob("*.parquet") for ids in [set(pd.read_parquet(file)["question_id"])]]
    still = sum(any(ids <= whole for whole in kept) for ids in written.values())
    assert still >= max(1, len(written) - 1), "a block that was whole is a block still; one may not have been checkpointed"


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Samples, hidden states and answers of the bundled student."""
    at = tmp_path_factory.mktemp("asked")
    pool = write_lines(at / "pool.jsonl", World().rows("pool")[::8])
    for stage in ("sample", "hidden-states"):
        arguments = ("--model", "bundled:student", "--questions", pool, "--out", str(at / stage), "-o", "preset=bundled-world")
        done = ka2l(stage, *arguments, *(("--k", "5") if stage == "sample" else ()))
        assert done.returncode == 0, done.stderr
    return {"pool": pool, "samples": str(at / "sample"), "states": str(at / "hidden-states")}


def long_context_model(folder: Path) -> str:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(bundled_path("bundled:student"))
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=4096,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_every_score_is_held_against_correctness(asked: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    model = long_context_model(tmp_path / "model")
    extra = ("--answers", asked["pool"], "--hidden-states", asked["states"], "--p-true-model", model)
    done = ka2l("entropy", "--samples", asked["samples"], "--out", str(out), *BUNDLED, "--evaluate", *extra)
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "out-uncertainty" / "_artefact.json").read_text())["facts"]
    quality = {row["score"]: row for row in facts["quality"]}
    assert set(quality) == {
        "semantic entropy",
        "semantic entropy, bias-corrected",
        "semantic entropy, by likelihood",
        "regular entropy",
        "log-likelihood",
        "number of clusters",
        "lexical similarity",
        "P(True)",
        "accuracy probe",
        "semantic-entropy probe, linear",
    }
    table = pd.read_parquet(tmp_path / "out-uncertainty")
    assert {"p_true", "semantic_entropy_bias_corrected"} < set(table.columns)
    for name, row in quality.items():
        assert row["score"] in done.stdout
        column = table[["wrong", column_of(name)]].dropna()
        assert row["questions"] == len(column) == (len(table) - 8 if name == "P(True)" else len(table))
        if "probe" not in name:
            assert row["auroc"] == pytest.approx(auroc(column["wrong"].to_numpy(), column.iloc[:, 1].to_numpy()))
        assert row["auroc_low"] <= row["auroc"] <= row["auroc_high"]
    for name in ("semantic entropy", "regular entropy", "log-likelihood", "accuracy probe", "semantic-entropy probe, linear"):
        assert quality[name]["auroc"] > 0.9, name
    assert abs(quality["P(True)"]["auroc"] - 0.5) < 0.2, "random weights know nothing"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--correct", "right"), "--correct has no effect without --evaluate"),
        (("--evaluate",), "whether an answer is right is not known; give --correct COLUMN"),
        (("--evaluate", "--correct", "right"), "no row has 'right', true or false; give --correct COLUMN"),
        (("-o", "entropy.label_only=true"), "known beforehand, and entropy.rule is auto; set entropy.rule=ka2l"),
        (("-o", "entropy.judge=llm"), "judge llm needs llm_model"),
        (("--judge", "llm", "-o", "entropy.llm_model=m", "-o", "entropy.llm_prompt='{a}?'"), "must hold {question}, {a} and {b}"),
        (("--judge", "embedding", "-o", "entropy.encoder=/nowhere"), "/nowhere: no sentence encoder there"),
    ],
)
def test_bad_input_is_one_line(samples: str, arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    done = ka2l("entropy", "--samples", samples, "--out", str(tmp_path / "out"), *arguments)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert words in line
    assert not (tmp_path / "out").exists()


def test_correctness_by_another_column_is_another_evaluation(tmp_path: Path) -> None:
    rows = [
        {"id": f"q{i}", "question": f"Who was number {i}?", "generations": ["x", "x", "y"], "greedy": "x", "answers": "X."}
        for i in range(8)
    ]
    samples = write_lines(tmp_path / "samples.jsonl", [row | {"right": i < 2, "half": i < 4} for i, row in enumerate(rows)])

    def evaluate(*arguments: str) -> tuple[int, str]:
        command = ("entropy", "--samples", samples, "--judge", "exact", "--evaluate", "--out", str(tmp_path / "out"))
        done = ka2l(*command, *arguments)
        return done.returncode, done.stdout + done.stderr

    code, said = evaluate("--correct", "right")
    assert (code, "75.0% answered wrongly" in said) == (0, True), said
    code, said = evaluate("--correct", "half")
    assert code == 2, said
    assert "out-uncertainty" in said
    code, said = evaluate("--out", str(tmp_path / "other"))
    assert (code, "0.0% answered wrongly" in said) == (0, True), said


def test_a_language_model_whose_words_cannot_be_read_is_no_judge(samples: str, tmp_path: Path) -> None:
    arguments = ("--judge", "llm", "-o", "entropy.llm_model=bundled:student")
    done = ka2l("entropy", "--samples", samples, "--out", str(tmp_path / "out"), *arguments)
    assert done.returncode == 2, done.stderr
    assert "verdicts could not be read: the judge said neither yes nor no; change entropy.llm_prompt" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.check
def test_a_judge_with_weights_that_are_not_finite_is_one_line(samples: str, tmp_path: Path) -> None:
    shutil.copytree(bundled_path("bundled:judge"), tmp_path / "judge")
    weights = tmp_path / "judge" / "model.safetensors"
    tensors = load_file(weights)
    tensors[sorted(tensors)[5]].view(-1)[0] = torch.nan
    save_file(tensors, weights, metadata={"format": "pt"})
    done = ka2l("entropy", "--samples", samples, "--nli-model", str(tmp_path / "judge"), "--out", str(tmp_path / "out"))
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert f"{tmp_path}/judge: tensor " in line
    assert "holds values that are not finite" in line
