"""Finds what a language model does not know, and spends the label budget there. The core's face; see docs/python.md."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ka2l_ray.api.knowledge_probe import KnowledgeProbe
    from ka2l_ray.api.learner import Learner
    from ka2l_ray.api.uncertainty import Uncertainty

__all__ = ["KnowledgeProbe", "Learner", "Uncertainty"]

_HOMES = {"KnowledgeProbe": "knowledge_probe", "Learner": "learner", "Uncertainty": "uncertainty"}


def __getattr__(name: str) -> Any:
    """A class when it is asked for: the package itself imports no torch, and ``ka2l --help`` does not wait for it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ka2l_ray' has no attribute '{name}'")
    return getattr(import_module(f"ka2l_ray.api.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
