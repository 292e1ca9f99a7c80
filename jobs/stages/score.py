"""Stage score: p(unknown) of every unlabelled question, by the engines, which run to the probe's layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ka2l_ray import schema
from ka2l_ray.actors.engines import Engines
from ka2l_ray.actors.language_model import Model
from ka2l_ray.actors.rows import StoredRows
from ka2l_ray.actors.scorer import Wanted
from ka2l_ray.config import EngineConfig
from ka2l_ray.errors import UserError
from ka2l_ray.jobs.stages.progress import progress
from ka2l_ray.models.model_files import check_is_model
from ka2l_ray.models.prompts import fixed_case
from ka2l_ray.probes import CARD_BYTES, FILE, probe_card
from ka2l_ray.store.artefacts import Artefact, Store
from ka2l_ray.store.storage import Storage, digest

SHARD_SIZE = 2048  # a question takes little, and shards are files


def score(
    store: Store,
    name: str,
    *,
    questions: Artefact,
    exclude: frozenset[str],
    model: Model,
    probe: Artefact | None,
    next_token_entropy: bool,
    option_entropy: bool,
    engine: EngineConfig,
    engines: Engines,
) -> Artefact:
    """The scores table of ``questions`` without those in ``exclude`` (labelled ones).

    Args:
        exclude: ids of ``questions`` to leave out.
        probe: gives ``p_unknown``; None leaves it null.
        next_token_entropy: also computes the entropy baseline, which takes a full forward pass.
        option_entropy: also computes the entropy of the options' likelihoods, null for questions without options.
    """
    inputs = {
        "stage": "score",
        "questions": questions.key,
        "exclude": digest(sorted(exclude)),
        "model": model.identity(),
        "probe": probe.key if probe else None,
        "next_token_entropy": next_token_entropy,
        "option_entropy": option_entropy,
        "device": "gpu" if engine.gpus_each else "cpu",
    }
    if probe is None and not next_token_entropy and not option_entropy:
        raise UserError("score: nothing to compute; give a probe, or ask for the next-token or the option entropy")
    if option_entropy:
        _check_has_options(questions)

    def build(work: Storage) -> dict[str, Any]:
        if probe is not None:
            _check_fits(probe, model)
        wanted = Wanted(probe.url if probe else None, probe.key if probe else None, next_token_entropy, option_entropy)
        columns = ["question_id", "question", *(["options"] if option_entropy else [])]
        rows = StoredRows(questions.storage, columns, exclude)
        with progress(f"score {name}") as update:
            of = len(rows) - len(exclude)
            counts = engines.run_shards(model, "score", work, rows, (wanted,), update, of, shard_size=SHARD_SIZE)
        written = work.read_table("", columns=["p_unknown"])
        probabilities = written["p_unknown"].drop_null().to_numpy()
        facts: dict[str, Any] = {**counts, "rows": len(written), "errors": counts.get("errors", 0)}
        if probe is not None:
            facts["predicted_unknown"] = int((probabilities >= 0.5).sum())
            facts["histogram"] = np.histogram(probabilities, bins=20, range=(0, 1))[0].tolist()
        return facts

    return store.compute(name, inputs, build)


def _check_has_options(questions: Artefact) -> None:
    """Raise a UserError where the questions are not multiple choice."""
    columns = questions.storage.read_schema(questions.storage.parquet_files()[0]).names
    if "options" not in columns or questions.facts.get("with_options") == 0:
        source = questions.facts.get("source", questions.url)
        raise UserError(f"{source}: no question has 'options', whose likelihoods are asked for; give a multiple-choice file")


def _check_fits(probe: Artefact, model: Model) -> None:
    """Raise a UserError where the probe reads other states than this model's prompts have."""
    card = probe_card(probe.storage.read_bytes(FILE, CARD_BYTES), probe.url)
    config = check_is_model(model.base)
    if card.dimension != config.hidden_size or card.layer > config.num_hidden_layers:
        raise UserError(
            f"{probe.url}: a probe of layer {card.layer} for states of width {card.dimension}, but {model.base.path} has "
            f"{config.num_hidden_layers} layers of width {config.hidden_size}; give the model that it was fitted on"
        )
    if card.position == "answer_token":
        raise UserError(
            f"{probe.url}: a probe of answers (position answer_token), and a pool has none; fit one on the states of prompts"
        )
    if card.source is not None:
        card.source.check(probe.url, model.base.path, digest(fixed_case(model.base, model.prompt)), model.adapter_key)


def score_by_semantic_entropy(store: Store, name: str, *, entropy: Artefact) -> Artefact:
    """A scores table without a probe: the sampled questions with their semantic entropy, which a strategy can rank by."""
    inputs = {"stage": "score_by_semantic_entropy", "entropy": entropy.key}

    def build(work: Storage) -> dict[str, Any]:
        rows = entropy.storage.read_table(
            "", columns=["question_id", "question", "semantic_entropy", "abstains", "drawn", "label"]
        )
        rows = rows.filter(pc.is_valid(rows["label"]))
        # A question without an answer is unknown, though its silence is one meaning.
        silent = pc.and_(rows["abstains"], pc.equal(rows["label"], 1))
        ranked = pc.if_else(silent, pc.ln(pc.cast(rows["drawn"], pa.float64())), rows["semantic_entropy"])
        empty = pa.nulls(len(rows), pa.float32())
        columns = {
            "question_id": rows["question_id"],
            "question": rows["question"],
            "p_unknown": empty,
            "next_token_entropy": empty,
            "option_entropy": empty,
        }
        no_error = pa.nulls(len(rows), pa.string())
        table = pa.table({**columns, "semantic_entropy": ranked, "error": no_error}, schema=schema.SCORES)
        work.write_table("part-00000.parquet", table)
        return {"rows": len(table), "ranked_by": "semantic_entropy"}

    return store.compute(name, inputs, build)
