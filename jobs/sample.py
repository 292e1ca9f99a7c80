"""Stage sample: k answers a question and one greedy-like answer, by actors that hold the language model (KA2L section 3.2.1)."""

from __future__ import annotations

from typing import Any

from ka2l_ray.actors.language_model import Engines, Model
from ka2l_ray.config import EngineConfig, SamplingConfig
from ka2l_ray.jobs.progress import progress
from ka2l_ray.storage import Storage
from ka2l_ray.store import Artefact, Store


def sample(
    store: Store,
    name: str,
    *,
    questions: Artefact,
    model: Model,
    sampling: SamplingConfig,
    engine: EngineConfig,
    seed: tuple[int, ...],
    engines: Engines,
) -> Artefact:
    """The samples table of ``questions``.

    Args:
        seed: (run seed, round); with the question id and the sample index it decides every random number.
    """
    inputs = {
        "stage": "sample",
        "questions": questions.key,
        "model": model.identity(),
        "sampling": sampling.model_dump(mode="json"),
        "batching": {"shard_size": engine.shard_size, "batch_tokens": engine.batch_tokens},
        "seed": list(seed),
    }

    def build(work: Storage) -> dict[str, Any]:
        with progress(f"sample {name}") as update:
            arguments = (sampling, engine.batch_tokens, seed)
            return engines.run_shards(model, "sample", work, questions.storage.read_table(""), arguments, update)

    return store.compute(name, inputs, build)
