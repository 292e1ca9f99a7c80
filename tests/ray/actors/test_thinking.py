"""A model that thinks before it answers: refused, or its thoughts left out of what is kept, whatever stage asks it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from ka2l_ray.actors.engines import Engines
from ka2l_ray.actors.language_model import Model
from ka2l_ray.config import EngineConfig, EvaluationConfig, ModelConfig, PromptConfig, SamplingConfig
from ka2l_ray.errors import UserError
from ka2l_ray.jobs.commands.inputs import Inputs
from ka2l_ray.jobs.stages.evaluate import evaluate
from ka2l_ray.store.artefacts import Artefact, StageDirectory
from ka2l_ray.world import bundled_path
from tests.ray.conftest import write_lines
from tests.ray.sampling import sampled
from tests.reciting import save_reciting_model

ANSWER = "the city of Quast"
SAMPLING = SamplingConfig(k=2, max_tokens=24, stop=["."])


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that says a stop text while it thinks."""
    tokenizer = AutoTokenizer.from_pretrained(bundled_path("bundled:student"))
    tokenizer.add_tokens(["<think>", "</think>"])
    return save_reciting_model(tmp_path_factory.mktemp("thinker"), tokenizer, f"<think>Fra.</think>{ANSWER}")


@pytest.fixture
def asked(world_files: dict[str, str], tmp_path: Path) -> Artefact:
    rows = [json.loads(line) for line in Path(world_files["pool"]).read_text().splitlines()[:6]]
    return Inputs(str(tmp_path / "inputs")).questions(write_lines(tmp_path / "asked.jsonl", rows))


@pytest.fixture(scope="module")
def engines() -> Any:
    made = Engines(EngineConfig(shard_size=4))
    yield made
    made.release()


def model_of(path: str, **keys: Any) -> Model:
    return Model(ModelConfig(path=path), PromptConfig(instruction="", **keys))


def test_a_model_that_thinks_unasked_is_refused_with_the_keys_that_help(
    thinker: str, asked: Artefact, engines: Engines, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"12 of 12 answers begin with a think block.*template_arguments.*prefill.*strip"):
        sampled(tmp_path / "samples", asked, SAMPLING, engines, model_of(thinker))


def test_thoughts_are_left_out_of_samples_and_predictions(
    thinker: str, asked: Artefact, engines: Engines, tmp_path: Path
) -> None:
    model = model_of(thinker, thinking="strip")
    done = sampled(tmp_path / "samples", asked, SAMPLING, engines, model)
    tokenizer = AutoTokenizer.from_pretrained(thinker)
    for row in done.storage.read_table("").to_pylist():
        assert [*row["generations"], row["greedy"]] == [ANSWER] * 3
        assert all("<think>Fra.</think>" in tokenizer.decode(ids) for ids in [*row["token_ids"], row["greedy_token_ids"]])
    assert done.facts["thoughts"] == 18
    predicted = evaluate(
        StageDirectory(str(tmp_path / "evaluation")),
        "evaluation",
        test=asked,
        model=model,
        sampling=SAMPLING,
        config=EvaluationConfig(bootstrap=2),
        engine=engines.config,
        seed=(0,),
        engines=engines,
    )
    assert set(predicted.storage.read_table("")["prediction"].to_pylist()) == {ANSWER}


def test_answers_cut_in_their_thoughts_are_refused_where_they_are_most(
    thinker: str, asked: Artefact, engines: Engines, tmp_path: Path
) -> None:
    short = SAMPLING.model_copy(update={"max_tokens": 2})
    with pytest.raises(UserError, match=r"12 of 12 answers end inside their think block; raise sampling\.max_tokens \(2\)"):
        sampled(tmp_path / "samples", asked, short, engines, model_of(thinker, thinking="strip"))


def test_a_prefilled_think_block_is_no_part_of_the_answer(
    thinker: str, asked: Artefact, engines: Engines, tmp_path: Path
) -> None:
    done = sampled(tmp_path / "samples", asked, SAMPLING, engines, model_of(thinker, prefill="<think>Fra.</think>"))
    rows = done.storage.read_table("").to_pylist()
    assert {text for row in rows for text in row["generations"]} == {ANSWER}
    assert all(row["prompt"].endswith("\n<think>Fra.</think>") for row in rows)
    assert "thoughts" not in done.facts
    assert done.facts["prompt"]["text"].endswith("\n<think>Fra.</think>")
    assert done.facts["prompt"]["end_of_turn"] == "</s>"
