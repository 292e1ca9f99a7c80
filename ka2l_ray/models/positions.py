"""Which of a prompt's states are read: its last token's, their mean, or those of its last tokens.

Every position is a function of the prompt alone: where a batch computes what its prompts share once, the shared tokens' part is
kept and joined to each row's.

Shape suffixes: B rows, T tokens, D hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ka2l_ray.schema import MOST_TOKENS, Position


def part_of_prefix(position: Position, hidden_1TD: Tensor) -> Tensor:
    """What ``read`` will want of the states of the tokens that all rows begin with."""
    if position == "mean":
        return hidden_1TD.float().sum(1)
    return hidden_1TD[:, -MOST_TOKENS:] if position == "attention" else hidden_1TD[:, :0]


def read(
    position: Position, hidden_BTD: Tensor, lengths: Sequence[int], prefix: tuple[int, Tensor | None], device: torch.device
) -> Tensor:
    """(B, D) on ``device``; of ``attention`` (B, at most ``MOST_TOKENS``, D), shorter rows padded with NaN behind.

    Args:
        hidden_BTD: states of right-padded rows.
        lengths: (B,) their own tokens.
        prefix: how many tokens stood before those of every row, and ``part_of_prefix`` of them.
    """
    before, part = prefix
    rows = torch.arange(len(lengths))
    if position in ("last_prompt_token", "answer_token"):
        return hidden_BTD[rows, torch.tensor(lengths) - 1].to(device)
    if position == "mean":
        own_B = torch.tensor(lengths, device=hidden_BTD.device)
        there_BT = torch.arange(hidden_BTD.shape[1], device=hidden_BTD.device)[None] < own_B[:, None]
        total_BD = hidden_BTD.float().masked_fill(~there_BT[..., None], 0.0).sum(1)
        total_BD = total_BD if part is None else total_BD + part.to(total_BD.device)
        return (total_BD / (own_B + before)[:, None]).to(device)
    shared = hidden_BTD[:1, :0] if part is None else part.to(hidden_BTD.device)
    tokens = [torch.cat([shared[0], hidden_BTD[b, : lengths[b]]])[-MOST_TOKENS:] for b in rows.tolist()]
    return torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=float("nan")).to(device)
