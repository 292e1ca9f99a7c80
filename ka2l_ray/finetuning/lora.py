"""The LoRA adapter that is trained: put on the model, its optimiser, and the check of what was saved."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn

from ka2l_ray.config import FinetuneConfig
from ka2l_ray.finetuning.targets import coverage, lora_targets
from ka2l_ray.models.adapters import load_adapter

logger = logging.getLogger(__name__)

LITTLE = 0.5  # share of the decoder's weights below which LoRA is worth a warning


def add_lora(causal_lm: Any, config: FinetuneConfig, *, seed: int, start_adapter: str | None = None) -> PeftModel:
    """LoRA on the linear layers of the blocks and on fused experts: fresh (A random by ``seed``, B zero), or going on from
    ``start_adapter``.

    What it covers is logged (``targets.coverage``), with a warning where that is less than half.
    """
    if config.gradient_checkpointing:
        causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
        causal_lm.enable_input_require_grads()
    if start_adapter is not None:
        adapted: PeftModel = load_adapter(causal_lm, start_adapter, "the model that it is trained on", trainable=True)
        _say_coverage(adapted, config)
        return adapted
    modules, parameters = lora_targets(causal_lm, experts=config.lora_experts, dropout=config.lora_dropout > 0)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_rank,
        lora_alpha=int(config.lora_alpha) if config.lora_alpha == int(config.lora_alpha) else config.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=config.lora_dropout,
        target_modules=modules,
        target_parameters=parameters or None,
        bias="none",
    )
    torch.manual_seed(seed)
    model = get_peft_model(causal_lm, lora)
    assert isinstance(model, PeftModel)
    _say_coverage(model, config)
    return model


def _say_coverage(adapted: PeftModel, config: FinetuneConfig) -> None:
    found = coverage(adapted)
    size = sum(parameter.numel() for parameter in trainable(adapted).values())
    left_out = f"; not on {', '.join(found.left_out)}" if found.left_out else ""
    reason = ""
    if config.lora_dropout and any("expert" in name for name in found.left_out):
        reason = " (PEFT has no dropout for experts in one tensor: set finetune.lora_dropout to 0 to train them)"
    level = logging.INFO if found.share >= LITTLE else logging.WARNING
    logger.log(
        level,
        "LoRA is on %.1f %% of the decoder's weights, %d parameters to train%s%s",
        100 * found.share,
        size,
        left_out,
        reason,
    )


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
