"""What is looked at when a model is loaded: an engine that is wrong is found out, done in a simpler way, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertLMHeadModel, PreTrainedTokenizerBase

from ka2l_ray.config import ModelConfig
from ka2l_ray.errors import UserError
from ka2l_ray.models import decoding, language_model, states
from ka2l_ray.models.architecture import vocabulary_logits
from ka2l_ray.models.batching import pad
from ka2l_ray.models.language_model import LanguageModel
from ka2l_ray.models.self_check import Ways

DTYPES = ["float32", "bfloat16", "float16"]


def load(path: Path, dtype: str = "float32") -> LanguageModel:
    return LanguageModel(ModelConfig(path=str(path), dtype=dtype), device="cpu")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("architecture", ["tiny_llama", "tiny_gpt2", "tiny_mistral"])
def test_a_right_engine_is_left_as_it_is(architecture: str, dtype: str, request: pytest.FixtureRequest) -> None:
    model = load(request.getfixturevalue(architecture), dtype)
    assert model.ways == Ways()
    assert model.prefill_tokens == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mask_that_shows_the_padding_is_found(tiny_llama: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(rows_ids: Any, side: str, pad_id: int, device: torch.device) -> Any:
        ids_BT, mask_BT = pad(rows_ids, side, pad_id, device)
        return ids_BT, torch.ones_like(mask_BT)

    monkeypatch.setattr(decoding, "pad", shown)
    assert load(tiny_llama, dtype).ways.decoding == "equal lengths"


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_cache_that_gives_rows_to_others_is_found(tiny_llama: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def select(self: Any, rows: torch.Tensor) -> None:
        self.cache.reorder_cache(rows.flip(0))
        self.logits_RV, self.mask_RT, self.position_R = self.logits_RV[rows], self.mask_RT[rows], self.position_R[rows]

    monkeypatch.setattr(decoding.CachedDecoding, "_select", select)
    ways = load(tiny_llama, dtype).ways
    assert ways.decoding == "equal lengths"  # one prompt's rows differ by what is sampled after the fan-out only
    monkeypatch.setattr(decoding.CachedDecoding, "_select", lambda self, rows: None)
    assert load(tiny_llama, dtype).ways.decoding == "repeated rows"


def test_no_cache_is_kept_where_none_is_right(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (decoding.CachedDecoding, decoding.RepeatedDecoding):
        monkeypatch.setattr(kind, "step", lambda self, token_R: None)
    model = load(tiny_llama)
    assert model.ways == Ways(decoding="recomputed")


def test_a_shared_prefix_that_is_lost_is_found(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states.Prefix, "cache_for", lambda self, rows: None)
    assert load(tiny_llama).ways == Ways(shared_prefix=False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_at_another_scale_are_refused(tiny_llama: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_model, "vocabulary_logits", lambda *given: vocabulary_logits(*given) * 1.5)
    with pytest.raises(UserError, match="log-likelihood of given tokens is not what the model's own forward pass gives"):
        load(tiny_llama, dtype)


def test_a_model_that_looks_ahead_is_refused_by_name(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    save_bert(tokenizer, tmp_path)
    with pytest.raises(UserError, match=r"BertLMHeadModel: the state of each layer is not .*; use engine.name=vllm$") as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def save_bert(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """An encoder that transformers would load as a causal language model, though each token sees those after it."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(tokenizer), initializer_range=0.3, max_position_embeddings=128, **sizes)
    BertLMHeadModel(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
