"""Judges of meaning and of correctness, by name: one registry, one block of settings (``config.JudgeSettings``).

A judge is a module of this package, and its name is the module's: ``make`` loads it, ``identity`` says what decides its verdicts
(and refuses what is not there, loading no weights), ``place`` where it works. Its name in ``config.JudgeName`` registers it:
configuration and ``--help`` know it from then on. It is imported when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Protocol, cast

from ka2l_ray.config import JudgeName, JudgePlace, JudgeSettings
from ka2l_ray.normalization import Form
from ka2l_ray.semantics.clustering import Judge


class JudgeModule(Protocol):
    """What a module of this package has."""

    MODEL_KEY: str | None
    """The setting that names an encoder, which reads the languages it was trained on; None: any language is read."""

    def make(self, settings: JudgeSettings, normalize: Form, directed: bool) -> Judge:
        """The judge, loaded.

        Args:
            directed: it is to say whether a first answer says what a second, accepted one says; else whether two mean the same.
        """
        ...

    def identity(self, settings: JudgeSettings, normalize: Form) -> dict[str, Any]:
        """What of the settings decides a verdict, for content keys.

        Raises:
            UserError: its model is not there, or is of another kind.
        """
        ...

    def place(self, settings: JudgeSettings) -> JudgePlace:
        """Where it works."""
        ...


def make_judge(settings: JudgeSettings, normalize: Form = "unicode", *, directed: bool = False) -> Judge:
    """The judge of a configuration, loaded."""
    return _module(settings.judge).make(settings, normalize, directed)


def verdict_identity(settings: JudgeSettings, normalize: Form = "unicode") -> dict[str, Any]:
    """What of the settings decides a verdict on two texts.

    Raises:
        UserError: the judge's model is not there, or is of another kind.
    """
    return {"judge": settings.judge, **_module(settings.judge).identity(settings, normalize)}


def encoder_key(settings: JudgeSettings) -> str | None:
    """The setting that names the judge's encoder model, if it has one."""
    return _module(settings.judge).MODEL_KEY


def judge_place(settings: JudgeSettings) -> JudgePlace:
    """Where the judge works."""
    return _module(settings.judge).place(settings)


def judge_gpus(settings: JudgeSettings, gpus: float) -> float:
    """GPUs of one judge actor, where a model of its own would have ``gpus``."""
    return gpus if judge_place(settings) == "gpu" else 0.0


def _module(name: JudgeName) -> JudgeModule:
    return cast(JudgeModule, import_module(f"{__name__}.{name}"))
