"""What all training rows begin with (instruction, examples) runs once an optimiser step, not once a row, with its gradient.

Every micro-batch attends to the prefix's keys and values, broadcast over its rows, as if they were given; their gradients add
up, and at the end of the step go back through the prefix in one pass. By the chain rule that is the plain pass's gradient.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ka2l_ray.finetuning.lora import trainable
from ka2l_ray.finetuning.loss import AnswerLoss
from ka2l_ray.finetuning.rows import TrainingRow
from ka2l_ray.models.architecture import text_decoder
from ka2l_ray.models.states import common_prefix

logger = logging.getLogger(__name__)

LEAST_PREFIX = 16  # tokens: a shorter one is not worth a pass of its own
# Of what both ways of computing may differ by, in the weights' precision: far above rounding, far below any real difference;
# and times what the plain way differs from itself where its rows run one by one.
NOISE = 5
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8, torch.bfloat16: 0.05}


class SharedPrefix:
    """Token ids, and during an optimiser step their keys and values in every layer."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = list(ids)

    def run(self, causal_lm: Any) -> None:
        """Begin a step: the keys and values by the weights as they are now."""
        ids_1T = torch.tensor([self.ids], device=causal_lm.get_input_embeddings().weight.device)
        self.cache = DynamicCache(config=causal_lm.config)
        text_decoder(causal_lm)(
            input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T), past_key_values=self.cache, use_cache=True
        )
        self.computed = [t for layer in self._layers() for t in (layer.keys, layer.values)]
        self.given = [t.detach().requires_grad_() for t in self.computed]

    def cache_for(self, rows: int) -> DynamicCache:
        """The cache of a micro-batch: the same keys and values for each of its rows."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        held = [layer for layer in cache.layers if layer.is_initialized]
        for layer, keys_1HTD, values_1HTD in zip(held, self.given[::2], self.given[1::2], strict=True):
            layer.keys, layer.values = keys_1HTD.expand(rows, -1, -1, -1), values_1HTD.expand(rows, -1, -1, -1)
        return cache

    def rest(self) -> Tensor:
        """A scalar whose gradient is what the step's micro-batches left to the prefix; ends the step."""
        parts = [
            (computed * given.grad).sum()
            for computed, given in zip(self.computed, self.given, strict=True)
            if given.grad is not None
        ]
        del self.cache, self.computed, self.given
        return torch.stack(parts).sum()

    def _layers(self) -> list[Any]:
        return [layer for layer in self.cache.layers if layer.is_initialized]


def share_prefix(loss: AnswerLoss, rows: Sequence[TrainingRow], pad_id: int, micro_batch_size: int) -> None:
    """Set ``loss.prefix`` to what all rows begin with, if that gives the plain pass's gradient on the longest and another row."""
    prefix = _candidate(loss.causal_lm, rows)
    if prefix is None:
        return
    by_length = sorted(rows, key=lambda row: len(row.token_ids))
    trial = [by_length[-1], by_length[0]]
    batches = [trial] if micro_batch_size > 1 else [[row] for row in trial]
    plain_N = _gradient(loss, batches, pad_id)
    loss.prefix = prefix
    try:
        difference = _off(_gradient(loss, batches, pad_id), plain_N)
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
        loss.prefix = None
        loss.zero_grad()
        logger.warning("the %d tokens that all rows begin with run in every row: %s", len(prefix.ids), error)
        return
    limit = TOLERANCE[loss.causal_lm.dtype]
    if not difference <= limit:
        loss.prefix = None
        if _off(_gradient(loss, batches, pad_id), plain_N) <= limit:  # it repeats itself: what differs is rounding, not dropout
            limit = max(limit, NOISE * _off(_gradient(loss, [[row] for row in trial], pad_id), plain_N))
        loss.prefix = prefix
    if not difference <= limit:
        loss.prefix = None
        logger.warning(
            "the %d tokens that all rows begin with run in every row: run once, the gradient would differ by %.1e",
            len(prefix.ids),
            difference,
        )


def _off(found_N: Tensor, wanted_N: Tensor) -> float:
    return float((found_N - wanted_N).norm() / wanted_N.norm())


def _gradient(loss: AnswerLoss, batches: Sequence[Sequence[TrainingRow]], pad_id: int) -> Tensor:
    """(N,) of the loss of all ``batches`` with respect to the trained parameters, one after another; leaves none behind."""
    parameters = list(trainable(loss).values())
    loss.begin()
    for rows in batches:
        loss(*(t.to(parameters[0].device) for t in loss.collate(rows, pad_id))).backward()
    if loss.prefix is not None:
        loss().backward()
    gradient_N = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters])
    loss.zero_grad()
    return gradient_N.float()


def _candidate(causal_lm: Any, rows: Sequence[TrainingRow]) -> SharedPrefix | None:
    """What all rows begin with, each keeping a prompt token of its own; None where the model cannot run it apart.

    It can where its cache is keys and values, row by row, and no row draws a dropout of its own over these tokens.
    """
    shared = common_prefix([row.token_ids for row in rows])[: min(row.prompt_length for row in rows) - 1]
    plain = {DynamicLayer, DynamicSlidingWindowLayer}
    if (
        len(shared) < LEAST_PREFIX
        or causal_lm.is_gradient_checkpointing  # keeps no cache
        or causal_lm.dtype not in TOLERANCE  # float16: its scaled losses would scale the prefix's gradient twice
        or any({type(layer) for layer in DynamicCache(config=causal_lm.config).layers} - plain)
        or any(isinstance(module, nn.Dropout) and module.p > 0 for module in text_decoder(causal_lm).modules())
    ):
        return None
    return SharedPrefix(shared)
