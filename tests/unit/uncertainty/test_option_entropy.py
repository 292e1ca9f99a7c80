"""The entropy of the options' likelihoods, against the model's own forward pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from ka2l_ray.config import PromptConfig
from ka2l_ray.models.language_model import LanguageModel
from ka2l_ray.models.prompts import Prompter
from ka2l_ray.options import LETTERS, with_options
from ka2l_ray.questions import QuestionReader
from ka2l_ray.uncertainty.option_entropy import OptionEntropy, entropy_of
from ka2l_ray.uncertainty.ranking import auroc
from ka2l_ray.world.facts import Fact, World


def by_hand(model: LanguageModel, prompter: Prompter, question: str, said: Sequence[str]) -> float:
    """Each answer, a text with the token that ends it, behind the prompt, in a forward pass of its own."""
    prompt = prompter.encode(prompter.prompt(question))
    likelihoods = []
    for answer in said:
        ids = [*prompt, *prompter.encode_answer(question, answer)]
        with torch.inference_mode():
            log_p_TV = model.causal_lm(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        last = len(prompt) + 1 if answer in LETTERS else len(ids)
        likelihoods.append(sum(float(log_p_TV[t - 1, ids[t]]) for t in range(len(prompt), last)))
    p = np.exp(likelihoods) / np.exp(likelihoods).sum()
    return float(-(p * np.log(p)).sum())


def choices(world: World, fact: Fact) -> list[str]:
    """The true value and three others of its relation."""
    others = [value.forms[0] for value in world.values[fact.relation] if value != fact.value][:3]
    return [*others[:2], fact.value.forms[0], *others[2:]]


def test_entropy_of_the_options_is_in_nats_and_counts_equal_texts_once() -> None:
    assert entropy_of(np.log([0.25, 0.25, 0.25, 0.25]), ["a", "b", "c", "d"]) == pytest.approx(math.log(4))
    assert entropy_of(np.array([-1000.0, -2000.0]), ["a", "b"]) == 0.0
    assert entropy_of(np.log([0.25, 0.5, 0.25]), ["heart", "liver", "heart"]) == pytest.approx(math.log(2))


def test_shown_options_are_scored_by_the_letter_hidden_ones_by_their_text(student: LanguageModel, world: World) -> None:
    prompter = Prompter(student.tokenizer, PromptConfig(instruction=""))
    facts = world.facts[:6]
    options = [choices(world, fact) for fact in facts]
    bare = [fact.question(fact.pool_phrasing) for fact in facts]
    asked = [with_options(q, texts) if i % 2 else q for i, (q, texts) in enumerate(zip(bare, options, strict=True))]
    score = OptionEntropy(student, prompter)
    found = score([*asked, "Why?"], [prompter.encode(prompter.prompt(q)) for q in [*asked, "Why?"]], [*options, None])
    wanted = [
        by_hand(student, prompter, q, LETTERS[:4] if i % 2 else texts)
        for i, (q, texts) in enumerate(zip(asked, options, strict=True))
    ]
    assert found[:-1] == pytest.approx(wanted, abs=1e-4)
    assert np.isnan(found[-1])


def test_it_tells_what_the_model_knows_from_what_it_does_not(student: LanguageModel, world: World) -> None:
    facts = [fact for fact in world.facts if fact.group != "boundary"][:80]
    prompter = Prompter(student.tokenizer, PromptConfig(instruction=""))
    asked = [fact.question(fact.pool_phrasing) for fact in facts]
    prompts = [prompter.encode(prompter.prompt(question)) for question in asked]
    found = OptionEntropy(student, prompter)(asked, prompts, [choices(world, fact) for fact in facts])
    assert auroc(np.array([fact.group == "unknown" for fact in facts]), found) > 0.9


def test_an_option_that_is_hidden_and_stands_twice_is_said_once(student: LanguageModel) -> None:
    prompter = Prompter(student.tokenizer, PromptConfig(instruction=""))
    score = OptionEntropy(student, prompter)
    prompt = [prompter.encode(prompter.prompt("Who?"))]
    twice = score(["Who?"], prompt, [["physician", "actor", "physician"]])
    assert twice == pytest.approx(score(["Who?"], prompt, [["physician", "actor"]]))


def test_letters_that_are_not_one_token_are_scored_as_answers(student: LanguageModel) -> None:
    prompter = Prompter(student.tokenizer, PromptConfig(instruction=""))
    score = OptionEntropy(student, prompter)
    score.letter_ids = None
    asked = with_options("Who?", ["physician", "actor"])
    prompt = prompter.encode(prompter.prompt(asked))
    likely = student.log_likelihood([prompt] * 2, [prompter.encode_answer(asked, letter) for letter in "AB"])
    assert score([asked], [prompt], [["physician", "actor"]]) == pytest.approx(
        entropy_of(np.array([sum(tokens) for tokens in likely]), ["physician", "actor"])
    )


def test_a_real_model_on_real_multiple_choice(smollm2: LanguageModel, shared_data: Path) -> None:
    prompter = Prompter(smollm2.tokenizer, PromptConfig())
    score = OptionEntropy(smollm2, prompter)
    assert score.letter_ids == [smollm2.tokenizer.encode(letter)[0] for letter in LETTERS]
    rows = [next(iter(QuestionReader(shared_data / "medmcqa.jsonl", shown=shown))) for shown in ("show", "hide")]  # type: ignore[arg-type]
    asked = [row["question"] for row in rows]
    found = score(asked, [prompter.encode(prompter.prompt(q)) for q in asked], [row["options"] for row in rows])
    wanted = [by_hand(smollm2, prompter, asked[0], LETTERS[:4]), by_hand(smollm2, prompter, asked[1], rows[1]["options"])]
    assert found == pytest.approx(wanted, abs=1e-4)
