"""Stage sample: k answers a question and one greedy-like answer, by actors that hold the language model (KA2L section 3.2.1)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ka2l_ray.actors.engines import Engines
from ka2l_ray.actors.language_model import Model, check_engine, engine_identity
from ka2l_ray.config import EngineConfig, EntropyConfig, SamplingConfig
from ka2l_ray.jobs.stages.entropy import cluster_identity, known_threshold
from ka2l_ray.jobs.stages.memo import Memo
from ka2l_ray.jobs.stages.progress import progress
from ka2l_ray.jobs.stages.waves import sample_until_decided
from ka2l_ray.models.prompt_view import view_prompt
from ka2l_ray.models.prompts import load_prompter
from ka2l_ray.reading import READING, Reading
from ka2l_ray.schema import SCHEMA_VERSION
from ka2l_ray.store.artefacts import Artefact, Store
from ka2l_ray.store.storage import Storage, digest


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
    until: EntropyConfig | None = None,
    reading: Reading = READING,
) -> Artefact:
    """The samples table of ``questions``.

    Args:
        seed: (run seed, round); with the question id and the sample index it decides every random number.
        until: how labels are made; with ``sampling.stop_when_decided`` a question draws no more than its label takes.
        reading: of the answers, where they are held against each other.
    """
    check_engine(model.base, engine, sampling.k)
    how: dict[str, Any] = {
        "stage": "sample",
        "model": model.identity(),
        "sampling": sampling.model_dump(mode="json", exclude={"memo", "stop_when_decided"}),
        "engine": engine_identity(engine, engine.name),
        "seed": list(seed),
    }
    decided_at = None
    if sampling.stop_when_decided:
        assert until is not None
        decided_at = known_threshold(until)
        how["until"] = {**cluster_identity(until, reading), "abstentions": until.abstentions}
    memo = Memo(sampling.memo, digest({"schema_version": SCHEMA_VERSION, **how})) if sampling.memo else None

    def build(work: Storage) -> dict[str, Any]:
        asked = questions.storage.read_table("")
        of = len(asked)
        first = asked["question"][0].as_py()
        prompter = load_prompter(model.base, model.prompt)
        facts: dict[str, Any] = {"asked": sampling.k, "decided_at": decided_at, "prompt": asdict(view_prompt(prompter, first))}
        if memo is not None:
            found, asked = memo.take_up(work, asked)
            facts["memoised"] = len(found)
        counts: dict[str, int] = {}
        if len(asked):
            with progress(f"sample {name}") as update:
                if decided_at is None or until is None:
                    counts = engines.run_shards(model, "sample", work, asked, (sampling, seed, 0, sampling.k), update, of)
                else:
                    counts = sample_until_decided(engines, model, work, asked, sampling, seed, until, reading, update, of)
            if memo is not None:
                memo.keep(digest(questions.key), work.read_table(""))
        if memo is not None and len(found):
            work.write_table("memoised.parquet", found)
        return {**counts, **facts, "rows": work.count_rows()}

    return store.compute(name, {**how, "questions": questions.key}, build)
