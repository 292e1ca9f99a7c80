"""States inside the text decoder: at any layer, no block beyond the deepest asked for, and what prompts share computed once.

Layer 0 is the embeddings as they enter the first block, l the output of block l, the last one after the final norm, as in
transformers' ``hidden_states``.

Shape suffixes: B rows, T tokens, D hidden width.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from ka2l_ray.models.architecture import decoder_blocks, text_decoder
from ka2l_ray.models.positions import part_of_prefix
from ka2l_ray.schema import Position

Pick = Callable[[int, Tensor], Tensor]
"""Takes what is wanted of a layer's (B, T, D) states."""
LEAST_PREFIX = 16  # tokens: a shorter shared beginning is not worth a forward pass of its own


class _DeepestLayerReached(Exception):
    """Ends a forward pass whose later blocks are not wanted."""


@dataclass(frozen=True)
class Prefix:
    """Tokens that all prompts of a call begin with, their cache for one row, and what a position wants of their states."""

    ids: list[int]
    cache: DynamicCache | None
    parts: dict[int, Tensor] = field(default_factory=dict)

    def cache_for(self, rows: int) -> DynamicCache | None:
        if self.cache is None:
            return None
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(rows)
        return cache


NO_PREFIX = Prefix([], None)


def states_at(
    causal_lm: Any,
    ids_BT: Tensor,
    layers: Sequence[int],
    pick: Pick,
    prefix: Prefix = NO_PREFIX,
    stream_axis: int | None = None,
) -> dict[int, Tensor]:
    """What ``pick`` takes of the (B, T, D) states at ``layers``; the forward pass ends at the deepest of them.

    Args:
        prefix: its tokens stand before those of every row.
        stream_axis: of the blocks' input, where blocks hand on several streams: the state is their mean.
    """
    return _run_to(causal_lm, ids_BT, layers, pick, prefix.cache_for(len(ids_BT)), len(prefix.ids), stream_axis)


def states_of_all_layers(causal_lm: Any, ids_BT: Tensor, layers: Sequence[int], pick: Pick) -> dict[int, Tensor]:
    """As ``states_at``, by transformers' own record of a whole forward pass."""
    hidden = text_decoder(causal_lm)(input_ids=ids_BT, use_cache=False, output_hidden_states=True).hidden_states
    return {layer: pick(layer, hidden[layer]) for layer in layers}


def _run_to(
    causal_lm: Any,
    ids_BT: Tensor,
    layers: Sequence[int],
    pick: Pick,
    cache: DynamicCache | None,
    done: int,
    stream_axis: int | None = None,
) -> dict[int, Tensor]:
    deepest = max(layers)
    states: dict[int, Tensor] = {}

    def keep(layer: int, hidden: Tensor) -> None:
        if layer in layers:
            states[layer] = pick(layer, hidden if stream_axis is None else hidden.mean(stream_axis))
        if layer == deepest:
            raise _DeepestLayerReached

    positions_1T = torch.arange(done, done + ids_BT.shape[1], device=ids_BT.device)[None]
    with contextlib.suppress(_DeepestLayerReached), entering_blocks(causal_lm, keep) as n_blocks:
        output = text_decoder(causal_lm)(
            input_ids=ids_BT, position_ids=positions_1T, past_key_values=cache, use_cache=cache is not None
        )
        states[n_blocks] = pick(n_blocks, output.last_hidden_state)
    return states


@contextmanager
def entering_blocks(causal_lm: Any, see: Callable[[int, Tensor], None]) -> Iterator[int]:
    """The number of blocks; ``see`` is shown the index and the input of each block before it runs."""
    blocks = decoder_blocks(causal_lm)
    if blocks is None:
        raise LookupError("its blocks are not in one list")
    hooks = [
        block.register_forward_pre_hook(
            lambda _, args, kwargs, i=i: see(i, args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
        for i, block in enumerate(blocks)
    ]
    try:
        yield len(blocks)
    finally:
        for hook in hooks:
            hook.remove()


def shared_prefix(
    causal_lm: Any,
    prompts_ids: Sequence[Sequence[int]],
    layers: Sequence[int],
    position: Position,
    device: torch.device,
    stream_axis: int | None = None,
) -> Prefix:
    """The cache of what all prompts begin with, up to the deepest of ``layers``; empty where that saves little, or where the
    cache is not one of all keys and values (sliding windows, recurrent states)."""
    shared = common_prefix(prompts_ids) if len(prompts_ids) > 1 else []
    shared = shared[: min(map(len, prompts_ids), default=1) - 1]  # every prompt keeps a token of its own
    cache = DynamicCache(config=causal_lm.config)
    if len(shared) < LEAST_PREFIX or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return NO_PREFIX

    def part(layer: int, hidden_1TD: Tensor) -> Tensor:
        return part_of_prefix(position, hidden_1TD)

    parts = _run_to(causal_lm, torch.tensor([shared], device=device), layers, part, cache, 0, stream_axis)
    return Prefix(shared, cache, parts)


def common_prefix(rows_ids: Sequence[Sequence[int]]) -> list[int]:
    """The tokens that all rows begin with: what the first and the last of them in order share."""
    first, last = min(map(list, rows_ids)), max(map(list, rows_ids))
    return [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))]
