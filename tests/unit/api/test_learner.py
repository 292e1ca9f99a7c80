"""The learner: what it asks for, what it takes, what it trains, and that it leaves the user's model alone."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from ka2l_ray import Learner, Uncertainty
from ka2l_ray.acquisition import STRATEGIES
from ka2l_ray.config import FinetuneConfig, ModelConfig
from ka2l_ray.errors import UserError
from ka2l_ray.finetuning.rows import encode_rows
from ka2l_ray.finetuning.training import fine_tune
from ka2l_ray.models.language_model import LanguageModel
from ka2l_ray.questions import training_target
from ka2l_ray.world import bundled_path
from ka2l_ray.world.facts import World

QUICK = {"epochs": 12, "learning_rate": 3e-3, "batch_size": 4}


def answers_of(pool: pd.DataFrame) -> dict[str, list[str]]:
    return dict(zip(pool.id, pool.answers, strict=True))


def test_rounds_of_query_update_fit_learn_what_was_labelled(scorer: Uncertainty, pool: pd.DataFrame, tmp_path: Path) -> None:
    learner = Learner(scorer, pool, probing_size=40, finetune=QUICK)
    asked = learner.query(4)
    assert asked["acquisition"].tolist() == sorted(asked["acquisition"], reverse=True)
    before = scorer.score(pool.question[:4])["generations"].tolist()
    labels = {question_id: answers_of(pool)[question_id] for question_id in asked["question_id"]}
    learner.update(labels)
    figures = learner.fit()
    assert (figures["labels"], figures["last_loss"] < figures["first_loss"]) == (4, True)
    assert 0 <= figures["replayed"] <= 4
    answers = learner.answer(asked)
    assert sum(text in right for text, right in zip(answers, labels.values(), strict=True)) >= 3
    assert scorer.score(pool.question[:4])["generations"].tolist() == before  # the scorer that was given has no adapter
    again = learner.query(4)
    assert not set(again["question_id"]) & set(labels)
    assert again.facts["round"] == 1

    learner.save(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(bundled_path("bundled:student"))
    with_it = Uncertainty(
        PeftModel.from_pretrained(base, tmp_path), learner.model.prompter.tokenizer, judge="exact", max_tokens=12
    )
    assert with_it.score(asked)["greedy"].tolist() == learner.scorer.score(asked)["greedy"].tolist()


def test_fitting_is_the_workers_training_on_the_labels(scorer: Uncertainty, pool: pd.DataFrame, tmp_path: Path) -> None:
    learner = Learner(scorer, pool, strategy="random", finetune={**QUICK, "epochs": 2})
    asked = learner.query(4).to_pandas()
    learner.update(asked.question_id.map(answers_of(pool)).tolist())
    learner.fit()
    learner.save(tmp_path / "ours")
    model = LanguageModel(ModelConfig(path="bundled:student"), device="cpu")
    rows = asked.sort_values("question_id")
    targets = [training_target(answers_of(pool)[i]) for i in rows.question_id]
    encoded = encode_rows(learner.model.prompter, rows.question.tolist(), targets, max_length=1024)
    (tmp_path / "theirs").mkdir()
    fine_tune(model, encoded, FinetuneConfig(**{**QUICK, "epochs": 2}), tmp_path / "theirs", seed=0)
    ours, theirs = (load_file(tmp_path / each / "adapter_model.safetensors") for each in ("ours", "theirs"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in ("combined", "option_entropy")])
def test_every_strategy_asks_without_looking_at_an_answer(name: str, scorer: Uncertainty, pool: pd.DataFrame) -> None:
    """The pool with its answers, with wrong ones and with none gives the same questions."""
    asked = []
    for answers in (pool.answers, pool.answers[::-1].tolist(), None):
        frame = pool.assign(answers=answers) if answers is not None else pool.drop(columns="answers")
        asked.append(Learner(scorer, frame[:24], strategy=name, probing_size=24).query(3).to_pandas())
    assert asked[0].question_id.nunique() == 3
    for other in asked[1:]:
        pd.testing.assert_frame_equal(other, asked[0])


def test_a_strategy_whose_column_a_run_does_not_make_is_refused(scorer: Uncertainty, pool: pd.DataFrame) -> None:
    with pytest.raises(UserError, match="strategy 'combined' needs the column 'combined', which a run does not score its pool"):
        Learner(scorer, pool, strategy="combined")
    with pytest.raises(UserError, match="strategy 'option_entropy' ranks by options, which a learner does not read"):
        Learner(scorer, pool, strategy="option_entropy")


def test_labels_may_be_a_dictionary_a_list_a_series_or_a_frame(scorer: Uncertainty, pool: pd.DataFrame) -> None:
    wanted: dict[str, Any] = {}
    for form in ("dict", "list", "Series", "frame"):
        learner = Learner(scorer, pool, strategy="random")
        asked = learner.query(3).to_pandas()
        answers = asked.question_id.map(answers_of(pool))
        answers.iloc[1] = None
        given = {"dict": dict(zip(asked.question_id, answers, strict=True)), "list": answers.tolist(), "Series": answers}
        learner.update(given.get(form, asked.assign(answers=answers)))
        wanted = wanted or learner.labels
        assert learner.labels == wanted
        assert list(wanted.values())[1] is None
        assert not set(learner.query(30)["question_id"]) & set(wanted)  # nobody knew one of them: it is not asked again either


def test_a_loaded_model_comes_back_as_it_was(tiny_llama: Path, tokenizer: PreTrainedTokenizerBase, pool: pd.DataFrame) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).train()
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    learner = Learner(Uncertainty(loaded, tokenizer, judge="exact", k=3, max_tokens=4), pool, strategy="random", finetune=QUICK)
    learner.query(2)
    learner.update(["yes", "no"])
    learner.fit()
    learner.answer(["Who?"])
    assert list(loaded.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.state_dict().items())
    assert all(p.requires_grad for p in loaded.parameters())
    assert all(module.training for module in loaded.modules())
    assert not hasattr(loaded, "peft_config")


def test_a_model_that_has_an_adapter_is_refused_and_keeps_it(
    tiny_llama: Path, tokenizer: PreTrainedTokenizerBase, pool: pd.DataFrame
) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    loaded.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    scorer = Uncertainty(loaded, tokenizer, judge="exact", k=2, max_tokens=2)
    with pytest.raises(UserError, match="the model has an adapter on it"):
        Learner(scorer, pool, strategy="random", finetune=QUICK)
    assert sum("lora_" in name for name, _ in loaded.named_parameters()) == 4


def test_a_model_that_saves_memory_goes_on_doing_so(
    tiny_llama: Path, tokenizer: PreTrainedTokenizerBase, pool: pd.DataFrame
) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    loaded.gradient_checkpointing_enable()
    scorer = Uncertainty(loaded, tokenizer, judge="exact", k=2, max_tokens=2)
    learner = Learner(scorer, pool, strategy="random", finetune={**QUICK, "gradient_checkpointing": True})
    learner.query(2)
    learner.update(["yes", "no"])
    learner.fit()
    assert loaded.is_gradient_checkpointing


def test_evaluation_holds_answers_against_the_accepted_ones(scorer: Uncertainty, pool: pd.DataFrame, world: World) -> None:
    test = pd.DataFrame(world.rows("test")[:10])
    table = Learner(scorer, pool).evaluate(test)
    right = [text in gold for text, gold in zip(table["prediction"], test.answers, strict=True)]
    assert table["exact_match"].tolist() == right
    assert table.facts["exact_match"] == np.mean(right)
    assert 0 < np.mean(right) < 1


def test_where_all_is_unknown_the_sampled_are_ranked_by_semantic_entropy(
    scorer: Uncertainty, pool: pd.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    strict = Uncertainty(scorer.model, judge="exact", k=4, max_tokens=12, rule="fixed", fixed=0.0)
    learner = Learner(strict, pool, probing_size=10)
    with caplog.at_level(logging.WARNING):
        asked = learner.query(3)
    assert "0 of 10 questions are known" in caplog.text
    assert asked.facts["strategy"] == "semantic_entropy"
    with pytest.raises(UserError, match="20 questions are wanted, 10 are scored"):
        learner.query(20)


def test_the_same_question_is_in_the_pool_once(scorer: Uncertainty, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        learner = Learner(scorer, ["Who wrote Faust?", "who wrote faust", "Where is Oslo?"], strategy="random")
    assert learner.pool.question_ids == ["0", "2"]
    assert "1 questions of the pool repeat an earlier one" in caplog.text


def test_wrong_use_is_one_line(
    scorer: Uncertainty, pool: pd.DataFrame, tiny_llama: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    learner = Learner(scorer, pool, strategy="random")
    asked = learner.query(2)["question_id"].tolist()
    learner.update({asked[0]: "x"})
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), LoraConfig(task_type="CAUSAL_LM"))
    peft = Uncertainty(adapted, tokenizer, judge="exact")
    unfit = Learner(scorer, pool)
    refused: list[tuple[Any, str]] = [
        (lambda: Learner(Uncertainty(judge="exact"), pool), "a scorer with a model"),
        (lambda: Learner("bundled:student", pool), "a scorer with a model"),  # type: ignore[arg-type]
        (lambda: Learner(peft, pool), "the model has an adapter on it"),
        (lambda: Learner(scorer, pool, strategy="kal2"), "no strategy 'kal2'"),
        (lambda: Learner(scorer, pool, finetune={"epoch": 1}), "nearest: 'epochs'"),
        (lambda: Learner(scorer, pool, probe={"kind": "forest"}), "KnowledgeProbe: kind"),
        (lambda: learner.query(0), "0 questions are wanted, 39 are scored"),
        (lambda: learner.query(40), "40 questions are wanted, 39 are scored"),
        (lambda: learner.update({"nowhere": "x"}), "no question of the pool has this id"),
        (lambda: learner.update({asked[0]: "x"}), "it is labelled already"),
        (lambda: learner.update({asked[1]: 5}), "must be a list of strings"),
        (lambda: learner.update(["x"]), "1 labels for the 2 questions of the last query"),
        (lambda: learner.update("x"), "labels must be a dictionary"),
        (lambda: learner.update(pd.Series(["x", "y"])), "the Series' index must hold question ids"),
        (lambda: learner.update(pd.DataFrame({"answers": ["x"]})), "a table of labels needs the columns"),
        (lambda: unfit.fit(), "no label to train on"),
        (lambda: unfit.save(tmp_path), "there is no adapter yet"),
        (lambda: learner.evaluate(["Who?"]), "has no accepted answers"),
        (lambda: learner.evaluate(pool), "stands in the pool"),
    ]
    for use, message in refused:
        with pytest.raises(UserError, match=message) as error:
            use()
        assert "\n" not in str(error.value)
    assert list(learner.labels) == asked[:1]
