"""Which rows each optimiser step sees, and at which learning rate."""

from __future__ import annotations

import math

from ka2l_ray.config import FinetuneConfig
from ka2l_ray.seeds import generator


def optimizer_steps(n_rows: int, batch_size: int, epochs: int, seed: int) -> list[list[int]]:
    """Row indices of every optimiser step: each epoch a fresh order, its last step perhaps smaller."""
    steps = []
    for epoch in range(epochs):
        order = generator(seed, "finetune order", epoch).permutation(n_rows).tolist()
        steps += [order[start : start + batch_size] for start in range(0, n_rows, batch_size)]
    return steps


def learning_rate(step: int, steps: int, config: FinetuneConfig) -> float:
    """Of optimiser step ``step`` (from 0): linear warm-up, then cosine to zero."""
    warmup = math.ceil(config.warmup_ratio * steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
