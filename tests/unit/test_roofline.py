"""The arithmetic of benchmarks/roofline.py, against a model's own parameters and by hand."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.roofline import LLAMA_8B, Device, Shape, decode_seconds, prefill_seconds

UNIT = Device("one operation and one byte a second", 1.0, 1.0)


@pytest.mark.parametrize("shape", [LLAMA_8B, Shape(3, 64, 96, 4, 2, 100)])
def test_weights_are_the_models(shape: Shape) -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=shape.width,
                intermediate_size=shape.intermediate,
                num_hidden_layers=shape.layers,
                num_attention_heads=shape.heads,
                num_key_value_heads=shape.kv_heads,
                vocab_size=shape.vocabulary,
            )
        )
    matrices = [p for name, p in model.model.layers.named_parameters() if p.dim() == 2]
    assert sum(p.numel() for p in matrices) == shape.layers * shape.block_weights
    assert model.lm_head.weight.numel() == shape.vocabulary_weights


def test_a_token_of_cache_is_keys_and_values_of_every_layer() -> None:
    assert LLAMA_8B.cache_bytes_a_token == 2 * 32 * 8 * 128 * 2  # 128 KiB


def test_prefill_by_hand() -> None:
    shape = Shape(layers=2, width=4, intermediate=6, heads=2, kv_heads=1, vocabulary=10)
    assert shape.block_weights == 2 * 16 + 2 * 8 + 3 * 24
    linear, attention = 2 * shape.block_weights * 5, 4 * 4 * (3 * 4 / 2 + 2 * 3 / 2)
    assert prefill_seconds(shape, [3, 2], UNIT) == 2 * (linear + attention)
    assert prefill_seconds(shape, [3, 2], UNIT, layers=1) == linear + attention
    assert prefill_seconds(shape, [3, 2], UNIT, heads=2) - prefill_seconds(shape, [3, 2], UNIT) == 2 * 40 * 2


def test_decoding_is_bound_by_whichever_is_slower() -> None:
    shape = Shape(layers=2, width=4, intermediate=6, heads=2, kv_heads=1, vocabulary=10)
    weights = 2 * shape.block_weights + 40
    slow_memory = Device("", flops=1e30, bandwidth=1.0)
    slow_arithmetic = Device("", flops=1.0, bandwidth=1e30)
    assert decode_seconds(shape, 3, 7, 5, slow_memory) == 5 * (2 * weights + 3 * 7 * shape.cache_bytes_a_token)
    assert decode_seconds(shape, 3, 7, 5, slow_arithmetic) == 5 * 3 * (2 * weights + 4 * 4 * 2 * 7)


def test_a_batch_shares_the_weights_until_arithmetic_is_the_limit() -> None:
    a100 = Device("A100", 312e12, 2.039e12)
    one, many = decode_seconds(LLAMA_8B, 1, 64, 1, a100), decode_seconds(LLAMA_8B, 64, 64, 1, a100)
    assert many < 1.1 * one
