"""Models given as objects, seeds given as one number, devices given by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForConditionalGeneration,
)

from ka2l_ray.config import ModelConfig
from ka2l_ray.errors import UserError
from ka2l_ray.models.language_model import LanguageModel, place
from ka2l_ray.models.lent import as_it_was
from ka2l_ray.models.sampling import Generation
from ka2l_ray.semantics.judges.nli import NLIJudge
from ka2l_ray.world.facts import World


@pytest.fixture(scope="module")
def prompts(world: World, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Eight prompts of several lengths."""
    texts = [f"<s>{fact.question(i % 4)}\n" for i, fact in enumerate(world.facts[:8])]
    return [tokenizer.encode(text, add_special_tokens=False) for text in texts]


def text_and_tokens(rows: list[list[Generation]]) -> list[list[tuple[str, list[int]]]]:
    return [[(g.text, g.token_ids) for g in row] for row in rows]


def saved_adapter(path: Path, directory: Path) -> str:
    """A LoRA adapter for the model at ``path`` that changes its answers."""
    torch.manual_seed(1)
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(path), lora)
    adapted.save_pretrained(directory)
    return str(directory)


def test_one_seed_gives_every_prompt_and_sample_its_own(student: LanguageModel, prompts: list[list[int]]) -> None:
    """Whatever the batch and the order; another seed draws other answers."""
    how = {"temperatures": [1.0] * 3, "max_tokens": 8}
    together = text_and_tokens(student.generate(prompts, 7, **how))
    assert len({tuple(tokens) for row in together for _, tokens in row}) > len(prompts)
    backwards = text_and_tokens(student.generate(prompts[::-1], 7, **how, batch_tokens=1))
    assert backwards[::-1] == together
    assert text_and_tokens(student.generate(prompts, 8, **how)) != together


@pytest.mark.parametrize(
    ("device", "gpus", "at", "spread"),
    [
        ("cuda:3", 4, "cuda:3", False),
        ("cpu", 4, "cpu", False),
        (None, 4, "cuda", False),
        (None, 0, "cpu", False),
        ("spread", 4, "cuda", True),
        ("spread", 1, "cuda", False),
        ("spread", 0, "cpu", False),
    ],
)
def test_a_given_device_is_the_device_however_many_gpus_there_are(device: str | None, gpus: int, at: str, spread: bool) -> None:
    """Only a replica that is told to spread is put on all of them."""
    assert place(device, gpus) == (torch.device(at), spread)


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "tpu9"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(UserError, match=f"device {device}: "):
        place(device, 1 if device == "cuda:1" else 0)


def test_a_loaded_model_answers_as_the_same_model_from_its_directory(tiny_llama: Path, prompts: list[list[int]]) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    ours, theirs = LanguageModel.of(loaded, tokenizer), LanguageModel(ModelConfig(path=str(tiny_llama)), device="cpu")
    assert ours.generate(prompts, 0, [1.0], max_tokens=6) == theirs.generate(prompts, 0, [1.0], max_tokens=6)
    assert ours.causal_lm is loaded


def test_the_active_adapter_of_a_loaded_peft_model_is_part_of_it(
    tiny_llama: Path, tmp_path: Path, prompts: list[list[int]]
) -> None:
    adapter = saved_adapter(tiny_llama, tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, adapter).eval()
    ours = LanguageModel.of(loaded, AutoTokenizer.from_pretrained(tiny_llama))
    theirs = LanguageModel(ModelConfig(path=str(tiny_llama)), adapter=adapter, device="cpu")
    bare = LanguageModel(ModelConfig(path=str(tiny_llama)), device="cpu")
    for layer in (0, 1, 2):
        states = [next(m.last_token_states(prompts, [layer]))[1][layer] for m in (ours, theirs, bare)]
        assert torch.equal(states[0], states[1])
        assert torch.equal(states[0], states[2]) is (layer == 0)
    assert ours.generate(prompts, 0, [1.0], max_tokens=6) == theirs.generate(prompts, 0, [1.0], max_tokens=6)


def test_what_is_no_loaded_causal_language_model_is_refused_in_one_line(tiny_llama: Path, judge: NLIJudge) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(tiny_llama)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tiny = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 16}
    prompted = get_peft_model(loaded, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    refused: list[tuple[Any, Any, str]] = [
        (loaded, None, "LlamaForCausalLM: a loaded model comes with its tokenizer"),
        (loaded.model, tokenizer, "LlamaModel is no causal language model"),
        (judge.model, tokenizer, f"{type(judge.model).__name__} is no causal language model"),
        (T5ForConditionalGeneration(T5Config(**tiny)), tokenizer, "T5ForConditionalGeneration is no causal language model"),
        (nn.Linear(2, 2), tokenizer, "a Linear is no language model"),
        (prompted, tokenizer, "its adapter adds tokens to the prompt"),
    ]
    for model, given, message in refused:
        with pytest.raises(UserError, match=message) as error:
            LanguageModel.of(model, given)
        assert "\n" not in str(error.value)


def test_a_lent_model_comes_back_as_it_was(tiny_llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).train()
    model.model.layers[1].eval()
    model.lm_head.weight.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    trained = [p.requires_grad for p in model.parameters()]
    state = torch.random.get_rng_state()

    def borrow() -> None:
        with as_it_was(model):
            assert not any(module.training for module in model.modules())
            get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")).unload()
            torch.manual_seed(5)
            raise KeyError

    with pytest.raises(KeyError):
        borrow()
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == trained
    assert torch.equal(torch.random.get_rng_state(), state)
