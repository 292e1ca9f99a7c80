"""The scorer: its figures by the definitions, on a model from a directory or from the user's hands, which stays as it was."""

from __future__ import annotations

import ast
from collections import Counter
from math import log
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from ka2l_ray import KnowledgeProbe, Uncertainty
from ka2l_ray.config import PromptConfig
from ka2l_ray.errors import UserError
from ka2l_ray.models.language_model import LanguageModel
from ka2l_ray.models.prompts import Prompter
from ka2l_ray.semantics.judges.exact import ExactJudge
from ka2l_ray.semantics.judges.nli import NLIJudge
from ka2l_ray.world import bundled_path

SHORTEST = """
from ka2l_ray import KnowledgeProbe, Learner, Uncertainty
scorer = Uncertainty("bundled:student", judge="bundled:judge", k=6, max_tokens=12)
table = scorer.score(questions)
probe = KnowledgeProbe(scorer.model).fit(table)
chosen = Learner(scorer, questions, probing_size=30).query(5)
"""


def test_sample_entropy_probe_and_select_on_ones_own_questions_are_five_statements_from_one_module(pool: pd.DataFrame) -> None:
    """They were 25 from nine."""
    statements = ast.parse(SHORTEST).body
    assert len(statements) == 5
    assert [s.module for s in statements if isinstance(s, ast.ImportFrom | ast.Import)] == ["ka2l_ray"]  # type: ignore[union-attr]
    names: dict[str, Any] = {"questions": pool.question.tolist()}
    exec(SHORTEST, names)
    assert len(names["table"]) == 40
    assert names["probe"].predict_proba(pool.question).shape == (40, 2)
    assert len(set(names["chosen"]["question_id"])) == 5


def test_a_row_holds_answers_meanings_entropy_and_label_by_their_definitions(scorer: Uncertainty, pool: pd.DataFrame) -> None:
    table = scorer.score(pool)
    rows = table.to_arrow().to_pylist()
    assert [row["question_id"] for row in rows] == pool.id.tolist()
    for row, gold in zip(rows, pool.answers, strict=True):
        assert len(row["generations"]) == len(row["cluster_ids"]) == 4
        sizes = Counter(row["cluster_ids"]).values()
        assert row["semantic_entropy"] == pytest.approx(-sum(n / 4 * log(n / 4) for n in sizes))
        assert row["number_of_clusters"] == len(row["meanings"]) == len(sizes)
        for text, cluster in zip(row["generations"], row["cluster_ids"], strict=True):
            assert (text in row["meanings"]) <= (row["meanings"][cluster] == text)
        assert row["label"] == (row["semantic_entropy"] >= 0.5)
        assert row["exact_match"] == row["correct"] == (row["greedy"] in gold)
    labels = [row["label"] for row in rows]
    assert 0 < sum(labels) < len(labels)
    assert table.facts["share_unknown"] == sum(labels) / len(labels)
    assert table.facts["threshold"] == 0.5


def test_a_judge_says_which_other_answers_are_right(scorer: Uncertainty, pool: pd.DataFrame) -> None:
    told = scorer.score(pool.head(4)).to_pandas()
    longer = pd.DataFrame({"question": told.question, "answers": [[text.split()[0]] for text in told.greedy]})
    longer.loc[0, "answers"] = ["something else"]
    lenient = Uncertainty(scorer.model, judge="exact", correctness="contains", k=4, max_tokens=12).score(longer).to_pandas()
    assert lenient.greedy.tolist() == told.greedy.tolist()
    assert lenient.correct.tolist() == [False, True, True, True]
    assert lenient.exact_match.tolist() == [text.split() == row for text, row in zip(told.greedy, longer.answers, strict=True)]


def test_an_answer_depends_on_seed_and_question_not_on_the_questions_beside_it(scorer: Uncertainty, pool: pd.DataFrame) -> None:
    whole = scorer.score(pool.question).to_pandas()
    part = scorer.score(pool.question[::-3]).to_pandas()
    pd.testing.assert_frame_equal(part, whole[::-3])  # and the rows bear the labels of the index that was given
    other = Uncertainty(scorer.model, judge="exact", k=4, max_tokens=12, seed=1).score(pool.question[::-3])
    assert other["generations"].tolist() != part["generations"].tolist()


def test_the_sampled_answers_are_the_language_models(scorer: Uncertainty, student: LanguageModel, pool: pd.DataFrame) -> None:
    prompter = Prompter(student.tokenizer, PromptConfig())
    prompts = [prompter.encode(prompter.prompt(question)) for question in pool.question]
    wanted = student.generate(prompts, 0, [1.0] * 4 + [0.1], max_tokens=12, stop=["\n"])
    table = scorer.score(pool.question)
    assert table["generations"].tolist() == [[a.text for a in row[:4]] for row in wanted]
    assert table["greedy"].tolist() == [row[4].text for row in wanted]


def loaded_llama(tiny_llama: Path) -> Any:
    """As a trainer left it: in training mode, half of it frozen."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).train()
    model.lm_head.weight.requires_grad_(False)
    return model


def test_a_loaded_model_gives_what_its_directory_gives_and_comes_back_as_it_was(
    tiny_llama: Path, tokenizer: PreTrainedTokenizerBase, pool: pd.DataFrame
) -> None:
    how: dict[str, Any] = {"judge": "exact", "k": 3, "max_tokens": 4}
    loaded = loaded_llama(tiny_llama)
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    random = torch.random.get_rng_state()
    table = Uncertainty(loaded, tokenizer, **how).score(pool.question[:6])
    wanted = Uncertainty(str(tiny_llama), **how, device="cpu").score(pool.question[:6])
    pd.testing.assert_frame_equal(table.to_pandas(), wanted.to_pandas())
    assert loaded.training
    assert all(module.training for module in loaded.modules())
    assert [name for name, p in loaded.named_parameters() if not p.requires_grad] == ["lm_head.weight"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random)


def test_a_peft_models_active_adapter_answers(tiny_llama: Path, tokenizer: PreTrainedTokenizerBase, pool: pd.DataFrame) -> None:
    torch.manual_seed(0)
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False)
    adapted = get_peft_model(loaded_llama(tiny_llama), lora)
    how: dict[str, Any] = {"judge": "exact", "k": 3, "max_tokens": 4}
    with_it = Uncertainty(adapted, tokenizer, **how).score(pool.question[:6])
    merged = Uncertainty(adapted.merge_and_unload(), tokenizer, **how).score(pool.question[:6])
    bare = Uncertainty(str(tiny_llama), **how, device="cpu").score(pool.question[:6])
    assert with_it["generations"].tolist() == merged["generations"].tolist() != bare["generations"].tolist()


def test_strings_in_entropy_out_without_a_model() -> None:
    answers = [["Goethe", "Goethe", "goethe", "Schiller"], ["a", "b", "c", "d"]]
    table = Uncertainty(judge="exact").of(answers, ["Who wrote Faust?", "Which letter?"])
    assert table["semantic_entropy"].tolist() == pytest.approx([0.5623, log(4)], abs=1e-4)
    assert table["cluster_ids"].tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
    assert table["meanings"][0] == ["Goethe", "Schiller"]
    assert table["label"].tolist() == [1, 1]
    alone = Uncertainty(judge="exact").of(answers[0])
    assert alone["semantic_entropy"].tolist() == table["semantic_entropy"].tolist()[:1]
    series = pd.Series(answers, index=["p", "q"])
    assert Uncertainty(judge="exact").of(series).to_pandas().index.tolist() == ["p", "q"]
    likely = Uncertainty(judge="exact").of(answers, log_likelihoods=[[-1.0] * 4, [-2.0, -2.0, -2.0, -4.0]])
    assert likely["regular_entropy"].tolist() == [1.0, 2.5]


@pytest.mark.parametrize("judge", ["bundled:judge", "instance"])
def test_a_judge_that_reads_joins_what_strings_part(judge: str) -> None:
    """Both in the words of the bundled world, whose judge knows its other forms."""
    reads = Uncertainty(judge=NLIJudge("bundled:judge") if judge == "instance" else judge)
    answers = ["physician", "medical doctor", "lawyer", "attorney", "physician", "baker"]
    table = reads.of([answers], ["What is the occupation of Wosish?"])
    assert table["cluster_ids"][0] == [0, 0, 1, 1, 0, 2]
    assert table["meanings"][0] == ["physician", "lawyer", "baker"]
    assert Uncertainty(judge=ExactJudge()).of(["a", "a"])["semantic_entropy"].tolist() == [0.0]


def test_the_rule_decides_the_label() -> None:
    answers = [["a"] * 4, ["a", "a", "a", "b"], ["a", "b", "c", "c"], ["a", "b", "c", "d"]]
    unknown = {
        rule: Uncertainty(judge="exact", rule=rule).of(answers)["label"].sum()  # type: ignore[arg-type]
        for rule in ("ka2l", "two_means", "quantile")
    }
    assert unknown == {"ka2l": 3, "two_means": 2, "quantile": 2}
    assert Uncertainty(judge="exact", rule="fixed", fixed=1.2).of(answers)["label"].tolist() == [0, 0, 0, 1]


def test_wrong_use_is_one_line(tiny_llama: Path, tokenizer: PreTrainedTokenizerBase, scorer: Uncertainty) -> None:
    loaded = loaded_llama(tiny_llama)
    refused: list[tuple[Any, str]] = [
        (lambda: Uncertainty(loaded), "a loaded model comes with its tokenizer"),
        (lambda: Uncertainty(loaded, tokenizer, device="cpu", judge="exact"), "a loaded model stays where it is"),
        (lambda: Uncertainty("bundled:student", tokenizer, judge="exact"), "brings its own tokenizer"),
        (lambda: Uncertainty(scorer.model, prompt={}, judge="exact"), "a model that another scorer holds"),
        (lambda: Uncertainty("no/such/model", judge="exact"), "no/such/model: no model there"),
        (lambda: Uncertainty("bundled:student", judge="no/such/judge"), "no/such/judge: no NLI model there"),
        (lambda: Uncertainty(judge=3), "a int is no judge"),  # type: ignore[arg-type]
        (lambda: Uncertainty(judge="exact", k=1), "Uncertainty: k: Input should be greater than or equal to 2"),
        (lambda: Uncertainty("bundled:student", judge="exact", prompt={"instructon": ""}), "nearest: 'instruction'"),
        (lambda: Uncertainty(judge="exact").score(["Who?"]), "this scorer has no model"),
        (lambda: scorer.score("Who?"), "a single text was given"),
        (lambda: scorer.score(["Who? " * 400]), "the model takes"),
        (lambda: scorer.of([["a"], []]), "answers of question 1"),
        (lambda: scorer.of([["a"], "b"]), "answers of question 1"),
        (lambda: scorer.of([["a"], None]), "answers of question 1"),
        (lambda: scorer.of([]), "there are no answers"),
        (lambda: scorer.of(None), "answers: a NoneType was given"),
        (lambda: scorer.of({"q": ["a", "b"]}), "answers: a dict was given"),
        (lambda: scorer.of(pd.DataFrame({"g": [["a"]]})), "answers: a DataFrame was given"),
        (lambda: scorer.of([["a", "b"]], log_likelihoods=[[-1.0]]), "log-likelihoods of question 0"),
        (lambda: scorer.of([["a", "b"]], log_likelihoods=[[-1.0, float("nan")]]), "log-likelihoods of question 0"),
        (lambda: scorer.of([["a", "b"]], log_likelihoods=[-1.0]), "log-likelihoods of question 0"),
        (lambda: scorer.score(None), "questions: a NoneType was given"),
        (lambda: scorer.score({"question": ["a?", "b?"], "id": [1]}), "columns of different lengths"),
        (lambda: Uncertainty(loaded, "bundled:student", judge="exact"), "a loaded model comes with its tokenizer"),
        (lambda: Uncertainty("bundled:student", judge="exact", prompt="x"), "prompt: a mapping of keys is wanted"),
        (lambda: Uncertainty("bundled:student", judge="exact", device="tpu9"), "device tpu9: torch knows none"),
        (lambda: Uncertainty("bundled:studnt", judge="exact"), "bundled:studnt: no model there; bundled are"),
        (lambda: KnowledgeProbe(scorer.model, layers=[99]).fit(["Who?"] * 4, [0, 1, 0, 1]), "layer 99 does not exist"),
        (lambda: scorer.of([["a"], ["b"]], ["Who?"]), "2 lists of answers for 1 questions"),
    ]
    for use, message in refused:
        with pytest.raises(UserError, match=message) as error:
            use()
        assert "\n" not in str(error.value)


def test_a_stop_text_is_one_text_and_a_path_may_be_a_path() -> None:
    scorer = Uncertainty(Path(bundled_path("bundled:student")), judge="exact", stop="END")
    assert scorer.sampling.stop == ["END"]


def test_what_abstains_is_unknown_and_said() -> None:
    answers = [["I don't know"] * 4, ["The Who"] * 4, ["Queen"] * 3 + [""]]
    table = Uncertainty(judge="exact").of(answers)
    assert table["abstains"].tolist() == [True, False, False]
    assert table["label"].tolist() == [1, 0, 1]
    assert Uncertainty(judge="exact", abstentions="known").of(answers)["label"].tolist() == [0, 0, 1]
    auto = Uncertainty(judge="exact", rule="auto").of([["a", "b", "c", "d"], ["a", "a", "b", "c"]])
    assert (auto.facts["rule"], auto["label"].tolist()) == ("two_means", [1, 0])
