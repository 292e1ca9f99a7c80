"""Composite models: the language model inside is found, sized and adapted; what lies beside it is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, PreTrainedTokenizerBase

from ka2l_ray.config import FinetuneConfig, ModelConfig
from ka2l_ray.finetuning.lora import add_lora, trainable
from ka2l_ray.models.language_model import LanguageModel
from ka2l_ray.models.model_files import block_linears, check_is_model


@pytest.fixture(scope="session")
def tiny_gemma3(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A composite Gemma 3, as those of 4B and more are: three text blocks, and a vision tower of as many."""
    torch.manual_seed(0)
    text = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 6,
        "initializer_range": 0.3,
        "vocab_size": len(tokenizer) + 8,
        "max_position_embeddings": 128,
    }
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 28}
    config = Gemma3Config(text_config=text, vision_config={**vision, "patch_size": 14}, mm_tokens_per_image=1)
    directory = tmp_path_factory.mktemp("gemma3")
    Gemma3ForConditionalGeneration(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def test_sizes_of_a_composite_model_are_those_of_its_language_model(tiny_gemma3: Path) -> None:
    config = ModelConfig(path=str(tiny_gemma3))
    text = check_is_model(config)
    assert (text.num_hidden_layers, text.hidden_size) == (3, 32)
    model = LanguageModel(config, device="cpu")
    assert (model.n_layers, model.hidden_size, model.max_length) == (3, 32, 128)


def test_lora_goes_into_the_blocks_of_the_language_model_only(tiny_gemma3: Path) -> None:
    config = ModelConfig(path=str(tiny_gemma3))
    assert block_linears(config) == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    adapted = add_lora(LanguageModel(config, device="cpu").model, FinetuneConfig(lora_rank=2), seed=0)
    names = sorted(trainable(adapted))
    assert len(names) == 2 * 7 * 3
    assert all(".language_model.layers." in name for name in names)
