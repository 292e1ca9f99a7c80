"""The sample stage as a library call, for tests of what happens to its engines."""

from __future__ import annotations

from pathlib import Path

from ka2l_ray.actors.engines import Engines
from ka2l_ray.actors.language_model import Model
from ka2l_ray.config import EngineConfig, EntropyConfig, ModelConfig, PromptConfig, SamplingConfig
from ka2l_ray.jobs.stages.sample import sample
from ka2l_ray.store.artefacts import Artefact, StageDirectory

STUDENT = Model(ModelConfig(path="bundled:student"), PromptConfig(instruction=""))


def sampled(
    out: Path,
    asked: Artefact,
    sampling: SamplingConfig,
    engine: EngineConfig | Engines,
    model: Model = STUDENT,
    until: EntropyConfig | None = None,
) -> Artefact:
    """The samples of ``asked`` in ``out``, by engines of their own unless some are given."""
    engines = engine if isinstance(engine, Engines) else Engines(engine)
    try:
        return sample(
            StageDirectory(str(out)),
            "samples",
            questions=asked,
            model=model,
            sampling=sampling,
            engine=engines.config,
            seed=(0, 0),
            engines=engines,
            until=until,
        )
    finally:
        if engines is not engine:
            engines.release()
