"""The classifiers: a network on standardised states, and the calibration of what it says.

What a probe needs beside its weights is part of it, and is saved with it: mean and scale of the training states, the curve from
its logit to a probability and, where it reads all tokens, how it weighs them.

Shape suffixes: B rows, T tokens, D hidden width, W inner width.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Kind = Literal["mlp", "linear"]
CONSTANT = 1e-6  # a standard deviation of so small a part of the mean is rounding


class Probe(nn.Module):
    """What both kinds share. States are (B, D), or (B, T, D) of tokens for a probe with ``attention``, padded with NaN."""

    mean: Tensor
    scale: Tensor
    slope: Tensor
    offset: Tensor
    curve: Tensor

    def __init__(self, dimension: int, attention: bool) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(dimension)) if attention else None
        """Tokens are weighed by softmax over t of query . state_t / sqrt(D): all alike where it is zero."""
        self.register_buffer("mean", torch.zeros(dimension))
        self.register_buffer("scale", torch.ones(dimension))
        self.register_buffer("slope", torch.ones(()))
        self.register_buffer("offset", torch.zeros(()))
        self.register_buffer("curve", torch.zeros(2, 0))
        self.calibration = "none"
        self.epochs: int | None = None
        """Of ``mlp``: passes over the training part until the weights were as they are."""

    def forward(self, state: Tensor) -> Tensor:
        """(B, D) or (B, T, D) states to (B, 2) logits: known, unknown; not calibrated."""
        state = (state - self.mean) / self.scale
        return self.logits(state if self.query is None else self.pooled(state, self.query))

    def logits(self, state_BD: Tensor) -> Tensor:
        raise NotImplementedError

    def standardise(self, states: NDArray[np.floating]) -> None:
        """Take mean and scale from training states (n, D), or from their tokens (n, T, D); a dimension that does not vary keeps
        its scale, as other states may vary in it."""
        rows = states.reshape(-1, states.shape[-1])
        rows = rows[~np.isnan(rows[:, 0])] if states.ndim == 3 else rows
        mean, scale = rows.mean(0, dtype=np.float64), rows.std(0, dtype=np.float64)
        self.mean.copy_(torch.from_numpy(mean))
        self.scale.copy_(torch.from_numpy(np.where(scale <= CONSTANT * np.abs(mean), 1.0, scale)))

    def calibrated(self, logit_B: Tensor) -> Tensor:
        """(B,) probability of a logit: by the isotonic curve where there is one, else sigmoid(slope x logit + offset)."""
        if not self.curve.shape[1]:
            return (self.slope * logit_B + self.offset).sigmoid()
        knots, heights = self.curve
        right = torch.searchsorted(knots, logit_B.contiguous()).clamp(1, len(knots) - 1)
        span = (logit_B - knots[right - 1]) / (knots[right] - knots[right - 1])
        risen_B: Tensor = heights[right - 1] + span.clamp(0, 1) * (heights[right] - heights[right - 1])
        return risen_B

    @staticmethod
    def pooled(state_BTD: Tensor, query_D: Tensor) -> Tensor:
        """(B, D) mean of standardised tokens (B, T, D), weighed by a query."""
        there_BT = ~state_BTD[..., 0].isnan()
        state_BTD = state_BTD.nan_to_num(0.0)
        score_BT = (state_BTD @ query_D / state_BTD.shape[-1] ** 0.5).masked_fill(~there_BT, -torch.inf)
        pooled_BD: Tensor = (score_BT.softmax(-1)[..., None] * state_BTD).sum(1)
        return pooled_BD


class MLPProbe(Probe):
    """KA2L's probe, "4 linear layers and 1 SiLU": head(down(silu(gate(x)) * up(x))); 3 d w + 2 d + 2 parameters.

    Of states about zero silu(gate(x)) * up(x) is even to leading order, and blind to a direction, which is what there mostly is
    to read. ``biases`` of gate and up (2 w parameters) mend that: up begins at 1, where the product is a SiLU's hidden layer. The
    paper has none, and its states are not standardised.
    """

    def __init__(self, dimension: int, hidden_width: int, attention: bool = False, biases: bool = False) -> None:
        super().__init__(dimension, attention)
        self.gate = nn.Linear(dimension, hidden_width, bias=biases)
        self.up = nn.Linear(dimension, hidden_width, bias=biases)
        if biases:
            nn.init.ones_(self.up.bias)
        self.down = nn.Linear(hidden_width, dimension, bias=False)
        self.head = nn.Linear(dimension, 2)

    def logits(self, state_BD: Tensor) -> Tensor:
        logits_B2: Tensor = self.head(self.down(nn.functional.silu(self.gate(state_BD)) * self.up(state_BD)))
        return logits_B2


class LinearProbe(Probe):
    """Logistic regression, as in semantic-entropy probes."""

    def __init__(self, dimension: int, attention: bool = False) -> None:
        super().__init__(dimension, attention)
        self.head = nn.Linear(dimension, 2)

    def logits(self, state_BD: Tensor) -> Tensor:
        logits_B2: Tensor = self.head(state_BD)
        return logits_B2


def make_probe(kind: Kind, dimension: int, hidden_width: int, *, attention: bool = False, biases: bool = False) -> Probe:
    """``hidden_width`` and ``biases`` are of ``mlp``."""
    return MLPProbe(dimension, hidden_width, attention, biases) if kind == "mlp" else LinearProbe(dimension, attention)


@torch.inference_mode()
def logit_of(probe: Probe, state: Tensor) -> Tensor:
    """(B,) log odds of unknown before calibration, from states in any float dtype."""
    logits_B2 = probe(state.to(probe.mean.dtype))
    logit_B: Tensor = logits_B2[:, 1] - logits_B2[:, 0]
    return logit_B


@torch.inference_mode()
def p_unknown(probe: Probe, state: Tensor) -> Tensor:
    """(B,) probability that a question is unknown, from states in any float dtype."""
    return probe.calibrated(logit_of(probe, state))
