"""Batches of texts of similar length, cut by tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

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
