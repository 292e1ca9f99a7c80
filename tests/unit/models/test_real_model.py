"""A real model, tokenizer, template and encoder (`make models`): they answer, stop, train and compare as they should."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model_state_dict

from ka2l_ray.config import FinetuneConfig, ModelConfig, PromptConfig
from ka2l_ray.finetuning.rows import encode_rows
from ka2l_ray.finetuning.training import loss_of
from ka2l_ray.models.language_model import LanguageModel
from ka2l_ray.models.prompts import Prompter
from ka2l_ray.semantics.encoder import SentenceEncoder

EXAMPLES = [("What is the largest ocean?", "the Pacific Ocean"), ("Who wrote Faust?", "Goethe")]
PLAIN = PromptConfig(chat_template="never", instruction="", examples=EXAMPLES)
KNOWN = {
    "What is the capital of France?": "Paris",
    "What is the chemical symbol of gold?": "Au",
    "Which planet is known as the red planet?": "Mars",
    "In which year did World War II end?": "1945",
}


def test_a_plain_prompt_is_answered_and_ends_at_the_line(smollm2: LanguageModel) -> None:
    prompter = Prompter(smollm2.tokenizer, PLAIN)
    prompts = [prompter.encode(prompter.prompt(question)) for question in KNOWN]
    answers = smollm2.generate(prompts, [[0]] * len(KNOWN), [0.01], max_tokens=12, stop=["\n"])
    assert [row[0].text for row in answers] == list(KNOWN.values())
    assert {row[0].finish_reason for row in answers} == {"stop"}


def test_its_own_template_is_used_and_its_turns_end_where_it_would_end_them(smollm2: LanguageModel) -> None:
    prompter = Prompter(smollm2.tokenizer, PromptConfig())
    prompter.check()
    question, answer = next(iter(KNOWN.items()))
    assert prompter.prompt(question) == (
        f"<|im_start|>system\n{prompter.config.instruction}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    (row,) = encode_rows(prompter, [question], [answer], max_length=64)
    assert smollm2.tokenizer.decode(row.token_ids[row.prompt_length :]) == "Paris<|im_end|>"
    assert smollm2.end_ids == {row.token_ids[-1]}
    (said,) = smollm2.generate([row.token_ids[: row.prompt_length]], [[0]], [0.01], max_tokens=24)
    assert said[0].text == "The capital of France is Paris."
    assert said[0].token_ids[-1] in smollm2.end_ids


def test_its_tokenizer_keeps_text_and_takes_digits_one_by_one(smollm2: LanguageModel) -> None:
    tokenizer = smollm2.tokenizer
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("in  1945")) == ["in", "ĠĠ", "1", "9", "4", "5"]
    text = "Zürich, 日本\n\tend "
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.check
def test_shared_prompt_tokens_leave_its_gradient_as_it_is(smollm2_path: str) -> None:
    language_model = LanguageModel(ModelConfig(path=smollm2_path), device="cpu")
    rows = encode_rows(Prompter(language_model.tokenizer, PLAIN), list(KNOWN), list(KNOWN.values()), max_length=64)
    found = []
    for share in (False, True):
        loss = loss_of(language_model, rows, FinetuneConfig(), seed=0, start_adapter=None)
        assert loss.prefix is not None
        if not share:
            loss.prefix = None
        loss.begin()
        for first in (0, 2):
            loss(*loss.collate(rows[first : first + 2], 0)).backward()
        if share:
            loss().backward()
        gradients = [p.grad.flatten() for p in loss.parameters() if p.grad is not None]
        assert len(gradients) == len(get_peft_model_state_dict(loss.model))
        found.append(torch.cat(gradients))
        language_model.model = loss.model.unload()
    assert float((found[1] - found[0]).norm() / found[0].norm()) <= 1e-5


def test_the_sentence_encoder_puts_a_paraphrase_nearer_than_another_fact(minilm_path: str) -> None:
    texts = ["Who wrote Faust? Goethe", "Who wrote Faust? Johann Wolfgang von Goethe", "Who wrote Faust? Shakespeare"]
    vectors_ND, truncated = SentenceEncoder(minilm_path).encode(texts)
    same, other = float(vectors_ND[0] @ vectors_ND[1]), float(vectors_ND[0] @ vectors_ND[2])
    assert not truncated
    assert vectors_ND.shape == (3, 384)
    torch.testing.assert_close(vectors_ND.norm(dim=1), torch.ones(3))
    assert same > other + 0.05
