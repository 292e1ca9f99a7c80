"""The training loop: optimiser steps over the rows, the same for a process of its own (``fine_tune``) and for the workers of a
cluster, which bring another engine and share out each step.

The loss is normalised over the whole step, so one worker and several, and any division into micro-batches, give the same adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor, nn

from ka2l_ray.config import FinetuneConfig
from ka2l_ray.errors import UserError
from ka2l_ray.finetuning.lora import add_lora, check_adapter, make_optimizer, trainable
from ka2l_ray.finetuning.loss import AnswerLoss
from ka2l_ray.finetuning.prefix import share_prefix
from ka2l_ray.finetuning.rows import TrainingRow
from ka2l_ray.finetuning.schedule import learning_rate, optimizer_steps
from ka2l_ray.models.language_model import LanguageModel
from ka2l_ray.models.model_files import has_adapter
from ka2l_ray.seeds import derive_seed


class Engine(Protocol):
    """What turns losses into steps of the optimiser."""

    @property
    def device(self) -> torch.device: ...

    def forward(self, *inputs: Tensor) -> Tensor:
        """The output of the loss module."""

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradient, averaged over the workers, to the step's; all workers call it equally often."""

    def step(self, rate: float) -> None:
        """Clip the gradient, move the weights at learning rate ``rate``, and begin the next step's gradient."""

    def total(self, value: Tensor) -> Tensor:
        """Sum over the workers."""


class TorchEngine:
    """AdamW in this process."""

    def __init__(self, loss: AnswerLoss, config: FinetuneConfig) -> None:
        self.loss, self.max_grad_norm = loss, config.max_grad_norm
        self.optimizer = make_optimizer(loss, config)
        self.device = next(loss.parameters()).device

    def forward(self, *inputs: Tensor) -> Tensor:
        loss: Tensor = self.loss(*inputs)
        return loss

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, rate: float) -> None:
        nn.utils.clip_grad_norm_(trainable(self.loss).values(), self.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()

    def total(self, value: Tensor) -> Tensor:
        return value


@dataclass(frozen=True)
class Share:
    """What one worker does of each optimiser step."""

    rank: int
    workers: int
    micro_batch_size: int
    accumulation: int

    @classmethod
    def of(cls, config: FinetuneConfig, rank: int = 0, workers: int = 1) -> Share:
        per_worker = -(-config.batch_size // workers)
        micro = min(config.micro_batch_size, per_worker)
        return cls(rank, workers, micro, -(-per_worker // micro))

    def micro_batches(self, step_rows: Sequence[TrainingRow]) -> list[Sequence[TrainingRow]]:
        """Always ``accumulation`` of them; the last ones may be short, or empty."""
        mine = step_rows[self.rank :: self.workers]
        return [mine[i * self.micro_batch_size : (i + 1) * self.micro_batch_size] for i in range(self.accumulation)]


@dataclass
class Progress:
    """How far a training is: optimiser steps done, and the mean loss a token of each, nats."""

    losses: list[float] = field(default_factory=list)

    @property
    def step(self) -> int:
        return len(self.losses)


def train(
    loss: AnswerLoss,
    engine: Engine,
    rows: Sequence[TrainingRow],
    config: FinetuneConfig,
    *,
    seed: int,
    share: Share,
    pad_id: int,
    progress: Progress,
    after_step: Callable[[Progress, int], None] = lambda progress, steps: None,
) -> None:
    """All optimiser steps that ``progress`` has not behind it.

    Args:
        after_step: told (progress, steps in all) after each.
    """
    steps = optimizer_steps(len(rows), config.batch_size, config.epochs, seed)
    if float(engine.total(torch.tensor(float(loss.prefix is not None), device=engine.device))) < share.workers:
        loss.prefix = None  # all or none: it costs a backward pass of its own
    for step in range(progress.step, len(steps)):
        torch.manual_seed(derive_seed(seed, "dropout", step, share.rank) % 2**63)
        mean = _step(loss, engine, [rows[i] for i in steps[step]], share, pad_id)
        engine.step(learning_rate(step, len(steps), config))
        progress.losses.append(round(mean, 6))
        after_step(progress, len(steps))


def _step(loss: AnswerLoss, engine: Engine, rows: Sequence[TrainingRow], share: Share, pad_id: int) -> float:
    """The gradient of one optimiser step over all workers; its mean loss a token, nats."""
    tokens = sum(row.answer_tokens for row in rows)
    total = torch.zeros((), device=engine.device)
    loss.begin()
    for micro in share.micro_batches(rows):
        loss_sum = engine.forward(*(t.to(engine.device) for t in loss.collate(micro, pad_id)))
        total += loss_sum.detach()
        engine.backward(loss_sum * (share.workers / tokens))  # a mean over the step's tokens, not over the workers
    if loss.prefix is not None:
        engine.backward(engine.forward())
    return float(engine.total(total)) / tokens


def loss_of(
    language_model: LanguageModel,
    rows: Sequence[TrainingRow],
    config: FinetuneConfig,
    *,
    seed: int,
    start_adapter: str | None,
) -> AnswerLoss:
    """The module that is trained: the model with LoRA on it, in training mode; what ``rows`` share runs once if it can."""
    lora_seed = derive_seed(seed, "finetune") % 2**63
    adapted = add_lora(language_model.model, config, seed=lora_seed, start_adapter=start_adapter)
    loss = AnswerLoss(adapted).to(language_model.device)
    loss.train()
    share_prefix(loss, rows, pad_id(language_model), config.micro_batch_size)
    return loss


def pad_id(language_model: LanguageModel) -> int:
    """A token to pad with; the mask hides it."""
    return next(iter(language_model.end_ids), 0)


def adapter_tensors(adapted: PeftModel) -> dict[str, Tensor]:
    """Copies of the LoRA tensors under their saved names, on the host."""
    return {name: tensor.detach().cpu().clone() for name, tensor in get_peft_model_state_dict(adapted).items()}


def save_adapter(
    loss: AnswerLoss, directory: Path, *, base: str, start: dict[str, Tensor], rows: Sequence[TrainingRow], progress: Progress
) -> dict[str, Any]:
    """Write ``adapter_model.safetensors`` and ``adapter_config.json``, checked; the figures of the training.

    Args:
        base: directory or hub name of the base model, as the adapter is to name it.
        start: ``adapter_tensors`` before training.
    """
    adapted = loss.model
    for peft_config in adapted.peft_config.values():
        peft_config.base_model_name_or_path = base
        peft_config.inference_mode = True
    adapted.save_pretrained(str(directory), safe_serialization=True, save_embedding_layers=False)
    return {
        "steps": progress.step,
        "shared_prefix": len(loss.prefix.ids) if loss.prefix is not None else 0,
        "answer_tokens": sum(row.answer_tokens for row in rows),
        "first_loss": progress.losses[0],
        "last_loss": progress.losses[-1],
        "losses": progress.losses,
        "adapter": check_adapter(directory, start),
    }


def fine_tune(
    language_model: LanguageModel,
    rows: Sequence[TrainingRow],
    config: FinetuneConfig,
    directory: Path,
    *,
    seed: int,
    start_adapter: str | None = None,
) -> dict[str, Any]:
    """Train an adapter in this process and write it to ``directory``; the figures of the training.

    Args:
        language_model: without an adapter on it, and so again afterwards.
        rows: of ``encode_rows``.
        start_adapter: directory of an adapter to go on from.

    Raises:
        UserError: there are no rows.
    """
    if not rows:
        raise UserError("finetune: no row to train on")
    assert not has_adapter(language_model.model)
    had_checkpointing = language_model.model.is_gradient_checkpointing
    loss = loss_of(language_model, rows, config, seed=seed, start_adapter=start_adapter)
    adapted = loss.model
    try:
        start, progress = adapter_tensors(adapted), Progress()
        train(
            loss,
            TorchEngine(loss, config),
            rows,
            config,
            seed=seed,
            share=Share.of(config),
            pad_id=pad_id(language_model),
            progress=progress,
        )
        return save_adapter(loss, directory, base=language_model.name, start=start, rows=rows, progress=progress)
    finally:
        if config.gradient_checkpointing and not had_checkpointing:
            language_model.model.gradient_checkpointing_disable()
            language_model.model.disable_input_require_grads()
        language_model.model = adapted.unload().eval()
