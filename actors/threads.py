"""CPU threads of a worker that holds a model: torch's own default would be one, as Ray says one to every worker."""

from __future__ import annotations

import os
from typing import Literal

import ray
import torch

from ka2l_ray.models.language_model import LanguageModel

NARROW = 512
"""Of hidden states: below it a second thread costs more than it does (measured: half the speed at 192, 1.2 to 2 times at 512)."""


def set_threads(cpus: float | Literal["auto"], language_model: LanguageModel, copies: int) -> None:
    """As many as ``cpus``; ``auto``: this node's cores shared out over the ``copies`` of the model that compute on it at once."""
    if cpus == "auto":
        alone = language_model.device.type != "cpu" or language_model.hidden_size < NARROW
        cpus = 1 if alone else node_cores() // copies
    torch.set_num_threads(max(1, int(cpus)))


def node_cores() -> int:
    """Cores of this node that are ours: of those that this process may use, no more than Ray may give out."""
    here = ray.get_runtime_context().get_node_id()
    given = next(node["Resources"].get("CPU", 1.0) for node in ray.nodes() if node["NodeID"] == here)
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(mine, int(given))
