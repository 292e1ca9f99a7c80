"""What all prompts of a batch begin with is prefilled once, and the next tokens' logits are those of each prompt by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ka2l_ray.config import ModelConfig
from ka2l_ray.models.language_model import LanguageModel
from ka2l_ray.models.states import LEAST_PREFIX


def make_prompts(shared: int, own: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    draw = lambda n: torch.randint(5, 3000, (n,), generator=generator).tolist()  # noqa: E731
    beginning = draw(shared)
    return [beginning + draw(n) for n in own]


def tokens_run(language_model: LanguageModel) -> list[int]:
    seen: list[int] = []
    embeddings = language_model.causal_lm.get_input_embeddings()
    embeddings.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].numel()))
    return seen


@pytest.mark.parametrize("architecture", ["tiny_llama", "tiny_gpt2", "tiny_mistral"])
@pytest.mark.parametrize(("shared", "own"), [(30, [4, 9, 1]), (20, [45, 2])])  # the second: padding as wide as what is shared
def test_logits_are_each_prompts_own(architecture: str, request: pytest.FixtureRequest, shared: int, own: list[int]) -> None:
    language_model = LanguageModel(ModelConfig(path=str(request.getfixturevalue(architecture))), device="cpu")
    prompts = make_prompts(shared, own)
    with torch.inference_mode():
        decoding = language_model.decoding(prompts, 2)
        followed: list[list[int]] = [[] for _ in range(2 * len(prompts))]
        for step in range(3):
            for row, logits_V in enumerate(decoding.logits_RV):
                ids_1T = torch.tensor([[*prompts[row // 2], *followed[row]]])
                expected_V = language_model.causal_lm(ids_1T).logits[0, -1]
                torch.testing.assert_close(logits_V, expected_V, rtol=1e-4, atol=1e-4)
            token_R = torch.tensor([7 + step + row for row in range(len(followed))])
            for row, token in enumerate(token_R.tolist()):
                followed[row].append(token)
            decoding.step(token_R)


def test_shared_tokens_run_once(tiny_llama: Path) -> None:
    language_model = LanguageModel(ModelConfig(path=str(tiny_llama)), device="cpu")
    seen = tokens_run(language_model)
    with torch.inference_mode():
        language_model.decoding(make_prompts(30, [4, 9, 1]), 10)
        assert seen == [30, 3 * 9]
        seen.clear()
        language_model.decoding(make_prompts(LEAST_PREFIX - 1, [4, 9, 1]), 10)
        assert seen == [3 * (LEAST_PREFIX - 1 + 9)]


def test_a_window_wider_than_what_is_shared_keeps_it(tiny_mistral: Path) -> None:
    language_model = LanguageModel(ModelConfig(path=str(tiny_mistral)), device="cpu")
    config = language_model.causal_lm.config
    config.sliding_window = 32
    prompts, seen = make_prompts(30, [9, 4]), tokens_run(language_model)
    with torch.inference_mode():
        found_RV = language_model.decoding(prompts, 1).logits_RV
        assert seen == [30, 2 * 9]
        for row, ids in enumerate(prompts):
            expected_V = language_model.causal_lm(torch.tensor([ids])).logits[0, -1]
            torch.testing.assert_close(found_RV[row], expected_V, rtol=1e-4, atol=1e-4)


def test_a_cache_that_forgets_is_filled_row_by_row(tiny_mistral: Path) -> None:
    """Its window is six tokens wide: what lies before it is not kept, and could not be moved."""
    language_model = LanguageModel(ModelConfig(path=str(tiny_mistral)), device="cpu")
    seen = tokens_run(language_model)
    with torch.inference_mode():
        language_model.decoding(make_prompts(30, [4, 9, 1]), 1)
    assert seen == [3 * 39]
