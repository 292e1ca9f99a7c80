"""LoRA fine-tuning on (question, answer) rows: what is trained on, in which order, with which loss. Ray- and DeepSpeed-free.

The loss of an optimiser step is the mean cross-entropy over all answer tokens of that step, whichever worker and
micro-batch they fall into, so that the result does not depend on how a step is divided up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn

from ka2l_ray.config import FinetuneConfig
from ka2l_ray.errors import UserError
from ka2l_ray.models.language_model import vocabulary_logits
from ka2l_ray.models.prompts import Prompter
from ka2l_ray.seeds import generator

IGNORED = -100


@dataclass(frozen=True)
class TrainingRow:
    """Token ids of prompt and answer; the loss is on those from ``prompt_length`` on."""

    token_ids: list[int]
    prompt_length: int

    @property
    def answer_tokens(self) -> int:
        return len(self.token_ids) - self.prompt_length


def encode_rows(prompter: Prompter, questions: Sequence[str], targets: Sequence[str], max_length: int) -> list[TrainingRow]:
    """Rows in the given order.

    Raises:
        UserError: a row longer than ``max_length`` tokens.
    """
    rows = []
    for question, target in zip(questions, targets, strict=True):
        prompt_ids = prompter.encode(prompter.prompt(question))
        row = TrainingRow([*prompt_ids, *prompter.encode_answer(question, target)], len(prompt_ids))
        if len(row.token_ids) > max_length:
            raise UserError(
                f"finetune: '{question[:60]}' takes {len(row.token_ids)} tokens with its answer, more than "
                f"finetune.max_length {max_length}; raise it or leave the question out"
            )
        rows.append(row)
    return rows


def optimizer_steps(n_rows: int, batch_size: int, epochs: int, seed: int) -> list[list[int]]:
    """Row indices of every optimiser step: each epoch a fresh order, its last step perhaps smaller."""
    steps = []
    for epoch in range(epochs):
        order = generator(seed, "finetune order", epoch).permutation(n_rows).tolist()
        steps += [order[start : start + batch_size] for start in range(0, n_rows, batch_size)]
    return steps


def collate(rows: Sequence[TrainingRow], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """(input_ids_BT, attention_mask_BT, labels_BT), right-padded. No rows give one row without labels."""
    length = max((len(row.token_ids) for row in rows), default=1)
    ids_BT = torch.full((max(1, len(rows)), length), pad_id)
    mask_BT = torch.zeros_like(ids_BT)
    labels_BT = torch.full_like(ids_BT, IGNORED)
    if not rows:
        mask_BT[:] = 1
    for i, row in enumerate(rows):
        end = len(row.token_ids)
        ids_BT[i, :end] = torch.tensor(row.token_ids)
        mask_BT[i, :end] = 1
        labels_BT[i, row.prompt_length : end] = ids_BT[i, row.prompt_length : end]
    return ids_BT, mask_BT, labels_BT


class AnswerLoss(nn.Module):
    """Summed cross-entropy over the answer tokens; the vocabulary is projected at those positions only."""

    def __init__(self, model: PeftModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids_BT: Tensor, mask_BT: Tensor, labels_BT: Tensor) -> Tensor:
        causal_lm: Any = self.model.get_base_model()
        hidden_BTD = causal_lm.get_decoder()(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).last_hidden_state
        targets_BT = labels_BT[:, 1:]
        kept_BT = targets_BT != IGNORED
        logits_NV = vocabulary_logits(causal_lm, hidden_BTD[:, :-1][kept_BT])
        return nn.functional.cross_entropy(logits_NV.float(), targets_BT[kept_BT], reduction="sum")


def learning_rate(step: int, steps: int, config: FinetuneConfig) -> float:
    """Of optimiser step ``step`` (from 0): linear warm-up, then cosine to zero."""
    warmup = math.ceil(config.warmup_ratio * steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def add_lora(causal_lm: Any, config: FinetuneConfig, *, seed: int, start_adapter: str | None = None) -> PeftModel:
    """LoRA on all linear layers: fresh (A random by ``seed``, B zero), or going on from ``start_adapter``."""
    if config.gradient_checkpointing:
        causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
        causal_lm.enable_input_require_grads()
    if start_adapter is not None:
        return PeftModel.from_pretrained(causal_lm, start_adapter, is_trainable=True)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_rank,
        lora_alpha=int(config.lora_alpha) if config.lora_alpha == int(config.lora_alpha) else config.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=config.lora_dropout,
        target_modules="all-linear",
        bias="none",
    )
    torch.manual_seed(seed)
    model = get_peft_model(causal_lm, lora)
    assert isinstance(model, PeftModel)
    return model


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def make_optimizer(model: nn.Module, config: FinetuneConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        list(trainable(model).values()), lr=config.learning_rate, betas=(0.9, 0.999), weight_decay=config.weight_decay
    )


def check_adapter(directory: Path, start: dict[str, Tensor]) -> dict[str, float]:
    """Figures of a saved adapter, once it is seen to hold weights that training moved.

    Args:
        directory: holds ``adapter_model.safetensors``.
        start: the LoRA tensors before training, under their saved names.

    Raises:
        RuntimeError: the adapter is empty, not finite, or equal to its start.
    """
    weights = load_file(directory / "adapter_model.safetensors")
    if not weights:
        raise RuntimeError(f"{directory}: the adapter holds no tensors")
    if not all(torch.isfinite(w).all() for w in weights.values()):
        raise RuntimeError(f"{directory}: the adapter holds non-finite values; lower finetune.learning_rate")
    moved = math.sqrt(sum(float((w.float() - start[name].float()).square().sum()) for name, w in weights.items()))
    if moved == 0.0:
        raise RuntimeError(f"{directory}: training left the adapter as it was at its start")
    return {"tensors": len(weights), "parameters": sum(w.numel() for w in weights.values()), "moved": moved}
