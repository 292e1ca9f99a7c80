"""The train loops as Ray Train imports them: by name, in its controller too, which shall not load a model's libraries for it."""

from __future__ import annotations

from typing import Any


def fit_layers(job: dict[str, Any]) -> None:
    """Of stage probe."""
    from ka2l_ray.jobs.stages.probe import fit_layers

    fit_layers(job)


def train_adapter(job: dict[str, Any]) -> None:
    """Of stage finetune."""
    from ka2l_ray.jobs.stages.finetune import train_adapter

    train_adapter(job)
