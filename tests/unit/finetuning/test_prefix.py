"""Tokens that all rows share run once an optimiser step, with the plain pass's gradient; where it would not be, they do not."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from ka2l_ray.config import FinetuneConfig
from ka2l_ray.finetuning.lora import add_lora, trainable
from ka2l_ray.finetuning.loss import AnswerLoss
from ka2l_ray.finetuning.prefix import LEAST_PREFIX, share_prefix
from ka2l_ray.finetuning.rows import TrainingRow
from ka2l_ray.finetuning.training import Share, TorchEngine, _step

SHARED = 40
VOCABULARY = 160
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "mistral": {"sliding_window": 6},  # within the shared part, and within the rows' own
    "gemma2": {"sliding_window": 30},
    "gemma3_text": {"sliding_window": 100},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "gpt_oss": {"num_local_experts": 4, "sliding_window": 16},
    "bloom": {"n_head": 4, "n_layer": 2, "hidden_dropout": 0.0, "attention_dropout": 0.0},  # places by the mask
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 16,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 4,
        "first_k_dense_replace": 1,
    },
}


def make_rows(shared: int = SHARED) -> list[TrainingRow]:
    generator = torch.Generator().manual_seed(0)

    def draw(n: int) -> list[int]:
        return torch.randint(5, VOCABULARY, (n,), generator=generator).tolist()

    beginning = draw(shared)
    own = [(9, 3), (14, 2), (6, 4), (11, 1), (8, 5), (2, 1)]  # the last: one token of question, one of answer
    return [TrainingRow(beginning + draw(length), shared + length - answer) for length, answer in own]


def make_loss(family: str, config: FinetuneConfig | None = None, **changes: Any) -> AnswerLoss:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SIZES, **FAMILIES.get(family, {}), **changes}))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, 0, 0.2)
    loss = AnswerLoss(add_lora(model.float(), config or FinetuneConfig(), seed=0))
    for name, parameter in trainable(loss).items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0, 0.2)
    return loss.train()


def step_gradients(loss: AnswerLoss, rows: list[TrainingRow]) -> dict[str, Tensor]:
    """Of an optimiser step as the training loop takes it, in four micro-batches, the last of them empty."""
    _step(loss, TorchEngine(loss, FinetuneConfig()), rows, Share(rank=0, workers=1, micro_batch_size=2, accumulation=4), 0)
    found = {name: p.grad.clone() for name, p in trainable(loss).items() if p.grad is not None}
    loss.zero_grad()
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_is_the_plain_loops(family: str) -> None:
    loss, rows = make_loss(family), make_rows()
    plain = step_gradients(loss, rows)
    share_prefix(loss, rows, 0, micro_batch_size=2)
    assert loss.prefix is not None
    assert len(loss.prefix.ids) == SHARED
    shared = step_gradients(loss, rows)
    assert shared.keys() == plain.keys() == trainable(loss).keys()
    for name, gradient in plain.items():
        assert float((shared[name] - gradient).norm()) <= 1e-5 * float(gradient.norm()), name


def test_the_model_sees_the_shared_tokens_once_a_step() -> None:
    loss, rows = make_loss("llama"), make_rows()
    share_prefix(loss, rows, 0, micro_batch_size=2)
    seen: list[int] = []
    loss.causal_lm.get_input_embeddings().register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].numel()))
    step_gradients(loss, rows)
    padded = [2 * 14, 2 * 11, 2 * 8, 1]
    assert seen == [SHARED, *padded]


def test_the_weights_move_between_steps_and_the_prefix_with_them() -> None:
    rows, losses = make_rows(), []
    for share in (False, True):
        loss = make_loss("llama")
        if share:
            share_prefix(loss, rows, 0, micro_batch_size=2)
        engine = TorchEngine(loss, FinetuneConfig())
        mine = []
        for _ in range(4):
            mine.append(_step(loss, engine, rows, Share(0, 1, 3, 2), 0))
            engine.step(1e-2)
        losses.append(mine)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[0][-1] < 0.9 * losses[0][0]


def test_a_model_whose_cache_gives_other_gradients_runs_the_plain_pass(caplog: pytest.LogCaptureFixture) -> None:
    """RecurrentGemma's cache says keys and values, and the recurrent state is elsewhere: found out by trying."""
    loss = make_loss("recurrent_gemma", lru_width=32, attention_window_size=64, num_hidden_layers=3)
    with caplog.at_level(logging.WARNING):
        share_prefix(loss, make_rows(), 0, micro_batch_size=2)
    assert loss.prefix is None
    assert "run in every row: run once, the gradient would differ by" in caplog.text
    assert all(p.grad is None for p in loss.parameters())


@pytest.mark.parametrize(
    ("family", "config", "shared"),
    [
        ("llama", {"lora_dropout": 0.1}, SHARED),  # each row draws its own
        ("llama", {"gradient_checkpointing": True}, SHARED),  # keeps no cache
        ("gpt2", {}, SHARED),  # dropout of its own
        ("llama", {}, LEAST_PREFIX - 1),
    ],
)
def test_where_it_cannot_be_exact_or_would_not_pay_it_is_left(family: str, config: dict[str, Any], shared: int) -> None:
    loss = make_loss(family, FinetuneConfig(**config))
    share_prefix(loss, make_rows(shared), 0, micro_batch_size=2)
    assert loss.prefix is None


def test_dropout_within_attention_is_found_out_by_trying() -> None:
    loss = make_loss("llama", attention_dropout=0.1)
    share_prefix(loss, make_rows(), 0, micro_batch_size=2)
    assert loss.prefix is None


def test_every_row_keeps_a_prompt_token_of_its_own() -> None:
    """The same question twice: its last token predicts the answer's first, and stays in the row."""
    row = TrainingRow(list(range(5, 35)), 28)
    loss = make_loss("llama")
    share_prefix(loss, [row, row], 0, micro_batch_size=2)
    assert loss.prefix is not None
    assert loss.prefix.ids == row.token_ids[:27]
