"""Stage hidden-states: the last prompt token's state at every layer, written by the workers that compute it."""

from __future__ import annotations

from typing import Any, Literal

from ka2l_ray.actors.language_model import Engines, Model
from ka2l_ray.config import EngineConfig
from ka2l_ray.jobs.progress import progress
from ka2l_ray.storage import Storage
from ka2l_ray.store import Artefact, Store


def hidden_states(
    store: Store,
    name: str,
    *,
    questions: Artefact,
    model: Model,
    layers: Literal["all"] | list[int],
    engine: EngineConfig,
    engines: Engines,
) -> Artefact:
    """The hidden-state table of ``questions``; it depends on no temperature and no seed."""
    inputs = {
        "stage": "hidden_states",
        "questions": questions.key,
        "model": model.identity(),
        "layers": layers,
        "batching": {"shard_size": engine.shard_size, "batch_tokens": engine.batch_tokens},
    }

    def build(work: Storage) -> dict[str, Any]:
        with progress(f"hidden states {name}") as update:
            arguments = (None if layers == "all" else layers, engine.batch_tokens)
            return engines.run_shards(model, "hidden_states", work, questions.storage.read_table(""), arguments, update)

    return store.compute(name, inputs, build)
