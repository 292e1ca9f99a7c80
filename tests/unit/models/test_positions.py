"""States at other positions than the last prompt token: transformers' own, whatever the batch and what prompts share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ka2l_ray.actors.vllm_engine import check_vllm_reads
from ka2l_ray.config import ModelConfig
from ka2l_ray.errors import UserError
from ka2l_ray.models.language_model import LanguageModel
from ka2l_ray.schema import MOST_TOKENS, Position

SHARED = list(range(3, 43))  # forty tokens that all prompts begin with: their states are computed once
PROMPTS = [[*SHARED, 50 + i, *range(60, 60 + 3 * i)] for i in range(12)]


@pytest.fixture(scope="module", params=["student", "mistral"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    """With a cache that prompts can share, and with a sliding window, which cannot."""
    if request.param == "mistral":
        path: Path = request.getfixturevalue("tiny_mistral")
        return LanguageModel(ModelConfig(path=str(path)), device="cpu")
    found: LanguageModel = request.getfixturevalue("student")
    return found


def theirs(model: LanguageModel, ids: list[int], layer: int) -> np.ndarray:
    """(T, D) of transformers."""
    with torch.inference_mode():
        states: np.ndarray = model.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0].numpy()
    return states


def ours(model: LanguageModel, position: Position, batch_tokens: int, layers: list[int]) -> dict[int, dict[int, np.ndarray]]:
    found: dict[int, dict[int, np.ndarray]] = {}
    for rows, states in model.last_token_states(PROMPTS, layers, position=position, batch_tokens=batch_tokens):
        for b, row in enumerate(rows):
            found[row] = {layer: states[layer][b].numpy() for layer in layers}
    return found


@pytest.mark.parametrize("batch_tokens", [1, 400, 100000])
def test_mean_is_over_all_tokens_of_the_prompt(model: LanguageModel, batch_tokens: int) -> None:
    layers = [0, 1, model.n_layers]
    found = ours(model, "mean", batch_tokens, layers)
    for row, ids in enumerate(PROMPTS):
        for layer in layers:
            np.testing.assert_allclose(found[row][layer], theirs(model, ids, layer).mean(0), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("batch_tokens", [1, 100000])
def test_attention_is_given_the_last_tokens_whatever_the_batch(model: LanguageModel, batch_tokens: int) -> None:
    found = ours(model, "attention", batch_tokens, [1])
    lengths = [min(len(ids), MOST_TOKENS) for ids in PROMPTS]
    assert min(lengths) < MOST_TOKENS == max(lengths)
    for row, ids in enumerate(PROMPTS):
        state = found[row][1]
        np.testing.assert_allclose(state[: lengths[row]], theirs(model, ids, 1)[-MOST_TOKENS:], rtol=1e-5, atol=1e-4)
        assert np.isnan(state[lengths[row] :]).all()


@pytest.mark.parametrize("position", ["mean", "attention"])
def test_what_vllm_cannot_hand_on_is_refused_by_name(position: Position) -> None:
    check_vllm_reads("last_prompt_token")
    with pytest.raises(UserError, match=rf"position {position}: vLLM .* set engine.hidden_states=transformers"):
        check_vllm_reads(position)
