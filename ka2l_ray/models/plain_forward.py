"""The model's own forward pass, without padding, cache or early end: what the engine is held against.

Shape suffixes: B equal or other rows of one length, T tokens, V vocabulary, D hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ka2l_ray.models.architecture import text_config, text_decoder
from ka2l_ray.models.states import entering_blocks


class NoStates(Exception):
    """The model has no state of each layer that can be read."""


@dataclass(frozen=True)
class Plain:
    """A forward pass, and the states in it: 0 the embeddings as they enter the first block, l the output of block l, the last
    one after the final norm."""

    logits_BTV: Tensor
    states: list[Tensor]
    """(B, T, D) of each layer."""
    by_blocks: bool
    """Seen on their way into the blocks; else in transformers' own record."""
    stream_axis: int | None = None
    """Of the blocks' input, where blocks hand on several streams: the state is their mean."""


@torch.inference_mode()
def plain_forward(causal_lm: Any, ids_BT: Tensor) -> Plain:
    """The forward pass over ``ids_BT``.

    Raises:
        NoStates: the model's states are not to be had.
    """
    inputs: list[Tensor] = []
    order: list[int] = []
    last: list[Tensor] = []

    def see(layer: int, hidden: Tensor) -> None:
        order.append(layer)
        inputs.append(hidden)

    keep_last = text_decoder(causal_lm).register_forward_hook(lambda *args: last.append(args[-1].last_hidden_state))
    try:
        with entering_blocks(causal_lm, see) as n_blocks:
            logits_BTV = causal_lm(input_ids=ids_BT, use_cache=False).logits
    except LookupError:
        return _by_record(causal_lm, ids_BT)
    finally:
        keep_last.remove()
    if order != list(range(n_blocks)):
        return _by_record(causal_lm, ids_BT)
    axis = _stream_axis(inputs[0], ids_BT)
    states = [hidden if axis is None else hidden.mean(axis) for hidden in inputs]
    return Plain(logits_BTV, _checked([*states, *last], causal_lm, ids_BT), True, axis)


def _stream_axis(hidden: Tensor, ids_BT: Tensor) -> int | None:
    """Gemma 3n's streams come before the rows, hyper-connections after the tokens."""
    if hidden.dim() != 4:
        return None
    return 0 if hidden.shape[1:3] == ids_BT.shape else 2


def _by_record(causal_lm: Any, ids_BT: Tensor) -> Plain:
    output = causal_lm(input_ids=ids_BT, use_cache=False, output_hidden_states=True)
    states = _checked(list(output.hidden_states or ()), causal_lm, ids_BT)
    others_BT = torch.cat([ids_BT[:, :-1].flip(1), ids_BT[:, -1:]], dim=1)
    embedded = causal_lm(input_ids=others_BT, use_cache=False, output_hidden_states=True).hidden_states[0]
    if not torch.equal(embedded[:, -1], states[0][:, -1]):
        raise NoStates("the first of its hidden states depends on other tokens: it is not the embeddings")
    return Plain(output.logits, states, False)


def _checked(states: list[Tensor], causal_lm: Any, ids_BT: Tensor) -> list[Tensor]:
    config = text_config(causal_lm.config)
    shapes = sorted({tuple(state.shape) for state in states})
    if len(states) != config.num_hidden_layers + 1 or shapes != [(*ids_BT.shape, config.hidden_size)]:
        raise NoStates(
            f"{len(states)} hidden states of the shapes {shapes}, {config.num_hidden_layers} layers of width {config.hidden_size}"
        )
    return states
