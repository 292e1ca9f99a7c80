"""What spares samples: labels that are decided early, and answers that are there already."""

from __future__ import annotations

from pathlib import Path

import pytest

from ka2l_ray.config import EngineConfig, EntropyConfig, SamplingConfig
from ka2l_ray.errors import UserError
from ka2l_ray.jobs.commands.inputs import Inputs
from ka2l_ray.jobs.stages.entropy import entropy
from ka2l_ray.store.artefacts import StageDirectory
from tests.ray.sampling import sampled

ENGINE = EngineConfig(shard_size=64)
BY_MEANING = EntropyConfig(nli_model="bundled:judge", rule="ka2l")


def test_labels_of_questions_that_stop_when_decided_are_those_of_all_answers(world_files: dict[str, str], tmp_path: Path) -> None:
    asked = Inputs(str(tmp_path / "inputs")).questions(world_files["pool"])
    whole = sampled(tmp_path / "whole", asked, SamplingConfig(max_tokens=12), ENGINE)
    short = sampled(tmp_path / "short", asked, SamplingConfig(max_tokens=12, stop_when_decided=True), ENGINE, until=BY_MEANING)
    exact, bounded = (
        {row["question_id"]: row for row in artefact.storage.read_table("").to_pylist()}
        for artefact in (
            entropy(StageDirectory(str(tmp_path / f"entropy-{i}")), "entropy", samples=samples, config=BY_MEANING)
            for i, samples in enumerate((whole, short))
        )
    )
    assert {i: row["label"] for i, row in bounded.items()} == {i: row["label"] for i, row in exact.items()}
    assert len(bounded) == 160
    all_answers = {row["question_id"]: row for row in whole.storage.read_table("").to_pylist()}
    for row in short.storage.read_table("").to_pylist():
        whole_row = all_answers[row["question_id"]]
        drawn = len(row["generations"])
        assert row["greedy"] == whole_row["greedy"]
        assert row["generations"] == whole_row["generations"][:drawn]
        assert list(map(len, row["token_ids"])) == list(map(len, row["token_logprobs"]))
        se, bound = (bounded[row["question_id"]][name] for name in ("semantic_entropy", "bound"))
        truth = exact[row["question_id"]]["semantic_entropy"]
        assert {"exact": se == truth, "lower": se <= truth + 1e-9, "upper": se >= truth - 1e-9}[bound]
        assert (bound == "exact") == (drawn == 10)
    assert {row["bound"] for row in bounded.values()} == {"exact", "lower", "upper"}
    assert short.facts["answers"] < 1600
    assert short.facts["generated_tokens"] < whole.facts["generated_tokens"]
    two_means = BY_MEANING.model_copy(update={"rule": "two_means"})
    with pytest.raises(UserError, match=r"drawn with sampling.stop_when_decided, for the threshold of 0.5 nats only"):
        entropy(StageDirectory(str(tmp_path / "other")), "entropy", samples=short, config=two_means)


def test_answers_that_were_kept_are_not_drawn_again(world_files: dict[str, str], tmp_path: Path) -> None:
    lines = Path(world_files["pool"]).read_text().splitlines()
    files = {}
    for name, part in (("some", lines[:40]), ("more", lines[20:60])):
        files[name] = tmp_path / f"{name}.jsonl"
        files[name].write_text("\n".join(part) + "\n")
    asked = {name: Inputs(str(tmp_path / name)).questions(str(file)) for name, file in files.items()}
    sampling = SamplingConfig(k=2, max_tokens=12, memo=str(tmp_path / "memo"))
    sampled(tmp_path / "a", asked["some"], sampling, ENGINE)
    more = sampled(tmp_path / "b", asked["more"], sampling, ENGINE)
    assert more.facts["memoised"] == 20
    alone = sampled(tmp_path / "c", asked["more"], sampling.model_copy(update={"memo": None}), ENGINE)
    tables = [artefact.storage.read_table("").sort_by("question_id") for artefact in (more, alone)]
    assert len(tables[0]) == 40
    assert (
        tables[0]
        .select(["question_id", "generations", "greedy"])
        .equals(tables[1].select(["question_id", "generations", "greedy"]))
    )
    again = sampled(tmp_path / "d", asked["more"], sampling, ENGINE)
    assert again.facts["memoised"] == 40
    assert "generated_tokens" not in again.facts
    hotter = sampled(tmp_path / "e", asked["more"], sampling.model_copy(update={"temperature": 1.5}), ENGINE)
    assert hotter.facts["memoised"] == 0
