"""Batches of texts of similar length, cut by tokens, and padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

PADDING = 0.1
"""Share of a batch that padding may take once the batch has enough."""


def enough_tokens(device: torch.device) -> int:
    """Of a batch, from which on a larger one is no faster: the device is then bound by arithmetic, not by reading weights."""
    return 256 if device.type == "cpu" else 2048


def batches_by_length(
    lengths: Sequence[int], batch_tokens: int, fan_out: int = 1, room: int = 0, *, enough: int | None
) -> Iterator[list[int]]:
    """Indices in batches of similar length, each of at most ``batch_tokens`` = rows x fan_out x (longest + room).

    Args:
        enough: tokens from which on a batch ends rather than be padded by more than a tenth; None: it is filled whatever the
            padding, as where each batch costs many steps besides.
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    batch: list[int] = []
    real = 0
    for i in order:
        padded = (len(batch) + 1) * lengths[i]
        full = padded * fan_out + (len(batch) + 1) * fan_out * room > batch_tokens
        wasteful = enough is not None and real >= enough and padded - real - lengths[i] > PADDING * padded
        if batch and (full or wasteful):
            yield batch
            batch, real = [], 0
        batch.append(i)
        real += lengths[i]
    if batch:
        yield batch


def pad(rows_ids: Sequence[Sequence[int]], side: str, pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(input_ids_BT, attention_mask_BT); padded positions hold a real token that the mask hides."""
    length = max(len(ids) for ids in rows_ids)
    ids_BT = torch.full((len(rows_ids), length), pad_id)
    mask_BT = torch.zeros_like(ids_BT)
    for i, ids in enumerate(rows_ids):
        span = slice(length - len(ids), None) if side == "left" else slice(0, len(ids))
        ids_BT[i, span] = torch.tensor(ids)
        mask_BT[i, span] = 1
    return ids_BT.to(device), mask_BT.to(device)
