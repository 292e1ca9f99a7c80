"""Meaning: who says that two answers are equivalent, how they cluster, how uncertain that makes the model."""

from ka2l_ray.semantics.clustering import cluster, cluster_many
from ka2l_ray.semantics.entropy import (
    bias_corrected_entropy,
    rao_semantic_entropy,
    regular_entropy,
    semantic_entropy,
    threshold,
)

__all__ = [
    "bias_corrected_entropy",
    "cluster",
    "cluster_many",
    "rao_semantic_entropy",
    "regular_entropy",
    "semantic_entropy",
    "threshold",
]
