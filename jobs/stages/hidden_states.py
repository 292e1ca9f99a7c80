"""Stage hidden-states: a state of the prompt at every layer, its last token's unless said otherwise, written by the workers that
compute it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

import pyarrow.compute as pc

from ka2l_ray.actors.engines import Engines
from ka2l_ray.actors.language_model import Model, engine_identity
from ka2l_ray.actors.vllm_engine import check_vllm_reads
from ka2l_ray.config import MOST_TOKEN_LAYERS, EngineConfig
from ka2l_ray.errors import UserError
from ka2l_ray.jobs.stages.progress import progress
from ka2l_ray.models.model_files import check_is_model, layers_of
from ka2l_ray.models.prompts import fixed_case
from ka2l_ray.probes import Source
from ka2l_ray.schema import Position
from ka2l_ray.store.artefacts import Artefact, Store
from ka2l_ray.store.storage import Storage, digest


def hidden_states(
    store: Store,
    name: str,
    *,
    questions: Artefact,
    model: Model,
    layers: Literal["all"] | list[int],
    engine: EngineConfig,
    engines: Engines,
    position: Position = "last_prompt_token",
) -> Artefact:
    """The hidden-state table of ``questions``; that of the prompt depends on no temperature and no seed.

    Args:
        position: ``answer_token`` wants a samples table as ``questions``.

    Raises:
        UserError: no such layer, or no answers to read states from.
    """
    wanted = layers_of(model.base, layers)
    if engine.hidden_states == "vllm":
        check_vllm_reads(position)
    if position == "attention" and len(wanted) > MOST_TOKEN_LAYERS:
        raise UserError(f"position attention keeps the states of every token: name {MOST_TOKEN_LAYERS} layers at most")
    inputs = {
        "stage": "hidden_states",
        "questions": questions.key,
        "model": model.identity(),
        "layers": wanted,
        "position": position,
        "engine": engine_identity(engine, engine.hidden_states),
    }

    def build(work: Storage) -> dict[str, Any]:
        with progress(f"hidden states {name}") as update:
            rows = questions.storage.read_table("")
            if position == "answer_token":
                if "greedy_token_ids" not in rows.column_names:
                    raise UserError(f"{questions.url}: no greedy_token_ids; states of answers are read from a samples table")
                rows = rows.filter(pc.is_valid(rows["greedy_token_ids"]))
            counts = engines.run_shards(model, "hidden_states", work, rows, (wanted, position), update)
            return {**counts, "source": asdict(source_of(model))}

    return store.compute(name, inputs, build)


def source_of(model: Model) -> Source:
    """What a probe on this model's states says of it."""
    return Source(
        model=model.base.path,
        revision=model.base.revision,
        layers=int(check_is_model(model.base).num_hidden_layers),
        adapter=model.adapter_key,
        prompt=model.prompt.model_dump(mode="json"),
        rendering=digest(fixed_case(model.base, model.prompt)),
    )
