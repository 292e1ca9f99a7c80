"""Judges of meaning and of correctness, by name: one registry, one block of settings (``config.JudgeSettings``).

A judge is a module of this package, and its name is the module's: ``make`` loads it, ``identity`` says what decides its verdicts
(and refuses what is not there, loading no weights), ``holds_model`` whether its worker computes with a model. Its name in
``config.JudgeName`` registers it: configuration and ``--help`` know it from then on. It is imported when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Protocol, cast

from ka2l_ray.config import JudgeName, JudgeSettings
from ka2l_ray.semantics.clustering import Judge


class JudgeModule(Protocol):
    """What a module of this package has."""

    def make(self, settings: JudgeSettings) -> Judge:
        """The judge, loaded."""
        ...

    def identity(self, settings: JudgeSettings) -> dict[str, Any]:
        """What of the settings decides a verdict, for content keys.

        Raises:
            UserError: its model is not there, or is of another kind.
        """
        ...

    def holds_model(self, settings: JudgeSettings) -> bool:
        """Whether a worker of this judge holds a model of its own: it then takes a GPU where there are GPUs."""
        ...


def make_judge(settings: JudgeSettings) -> Judge:
    """The judge of a configuration, loaded."""
    return _module(settings.judge).make(settings)


def verdict_identity(settings: JudgeSettings) -> dict[str, Any]:
    """What of the settings decides a verdict on two texts.

    Raises:
        UserError: the judge's model is not there, or is of another kind.
    """
    return {"judge": settings.judge, **_module(settings.judge).identity(settings)}


def judge_gpus(settings: JudgeSettings, gpus: float) -> float:
    """GPUs of one judge actor, where a model of its own would have ``gpus``."""
    return gpus if _module(settings.judge).holds_model(settings) else 0.0


def _module(name: JudgeName) -> JudgeModule:
    return cast(JudgeModule, import_module(f"{__name__}.{name}"))
