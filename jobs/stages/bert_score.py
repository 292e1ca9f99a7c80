"""BERTScore of a test set's answers, in a worker of its own, where the configuration names an encoder."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from ka2l_ray.actors.bert_score import BertScoreBatch
from ka2l_ray.actors.engines import Engines
from ka2l_ray.bert_score import bert_score_layer
from ka2l_ray.config import EvaluationConfig, ModelConfig
from ka2l_ray.jobs.stages.streaming import map_rows
from ka2l_ray.models.model_files import model_identity
from ka2l_ray.reading import Reading
from ka2l_ray.store.storage import Storage

ROWS_PER_BLOCK = 512  # answers that are scored together


def bert_score_identity(config: EvaluationConfig) -> dict[str, Any] | None:
    """For content keys: the encoder and its layer; None where there is none.

    Raises:
        UserError: no encoder there, or no such layer.
    """
    if config.bert_score is None:
        return None
    layer = bert_score_layer(config.bert_score, config.bert_score_layer)
    return {"encoder": model_identity(ModelConfig(path=config.bert_score)), "layer": layer}


def bert_score_note(config: EvaluationConfig) -> str:
    """What a reader of the figures should know."""
    if config.bert_score is None:
        return "left out: evaluation.bert_score names no encoder"
    return f"F1 over layer {bert_score_layer(config.bert_score, config.bert_score_layer)} of {config.bert_score}, not rescaled"


def bert_scores(
    answered: pa.Table, work: Storage, *, config: EvaluationConfig, reading: Reading, engines: Engines
) -> dict[str, float]:
    """Score of each question id; empty where no encoder is named.

    Args:
        answered: question_id, prediction, answers.
        work: for what the worker reads and writes; an earlier attempt's rows there are taken up.
        engines: they make room for it.
    """
    if config.bert_score is None:
        return {}
    work.write_table("answered.parquet", answered.select(["question_id", "prediction", "answers"]))
    gpus = 1.0 if engines.gpus else 0.0
    engines.make_room(1, gpus)
    map_rows(
        work,
        work.at("scores"),
        worker=BertScoreBatch,
        arguments=(config.bert_score, config.bert_score_layer, reading),
        columns=["question_id", "prediction", "answers"],
        actors=1,
        cpus=1,
        gpus=gpus,
        rows_per_block=ROWS_PER_BLOCK,
        checkpoint=work.at("checkpoint"),
    )
    found = work.at("scores").read_table("")
    return dict(zip(found["question_id"].to_pylist(), found["bert_score"].to_pylist(), strict=True))
