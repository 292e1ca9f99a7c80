"""Stage entropy: clusters the answers by meaning, semantic entropy, known/unknown (KA2L section 3.2.2)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ka2l_ray import schema
from ka2l_ray.actors.judge import ClusterBatch
from ka2l_ray.config import EntropyConfig, ModelConfig
from ka2l_ray.jobs.streaming import map_rows
from ka2l_ray.language_model import model_identity
from ka2l_ray.semantics.entropy import labels, threshold
from ka2l_ray.semantics.judges import label_verdicts, load_nli_config
from ka2l_ray.storage import Storage
from ka2l_ray.store import Artefact, Store
from ka2l_ray.world import bundled_path

RULES = ("ka2l", "two_means", "quantile")
ROWS_PER_BLOCK = 128  # a question takes many pairs of the judge


@dataclass
class EntropyFacts:
    """What the stage records. ``thresholds`` and ``share_unknown`` hold every rule, for the report."""

    rows: int
    threshold: float
    unknown: int
    thresholds: dict[str, float]
    share_unknown: dict[str, float]
    judge_calls: int
    triples: int
    non_transitive_triples: int


def entropy(
    store: Store, name: str, *, samples: Artefact, config: EntropyConfig, threshold_at: float | None = None, gpus: float = 0.0
) -> Artefact:
    """The entropy table of ``samples``.

    Args:
        threshold_at: nats; a threshold found on another set, in place of ``config.rule``.
        gpus: of one judge actor.
    """
    judged = config.model_dump(mode="json", exclude={"replicas", "batch_size"})
    if config.judge == "exact":
        judged.pop("nli_model")
    else:
        label_verdicts(load_nli_config(bundled_path(config.nli_model)), config.nli_model)
        judged["nli_model"] = model_identity(ModelConfig(path=config.nli_model))
    inputs = {"stage": "entropy", "samples": samples.key, "entropy": judged, "threshold_at": threshold_at}

    def build(work: Storage) -> dict[str, Any]:
        clusters = work.at("_scratch/clusters")
        map_rows(
            samples.storage,
            clusters,
            worker=ClusterBatch,
            arguments=(config,),
            columns=["question_id", "question", "generations"],
            actors=config.replicas,
            cpus=1,
            gpus=gpus,
            rows_per_block=ROWS_PER_BLOCK,
            checkpoint=work.at("_scratch/checkpoint"),
        )
        return asdict(_label(clusters, work, config, threshold_at))

    return store.compute(name, inputs, build)


def _label(clusters: Storage, work: Storage, config: EntropyConfig, threshold_at: float | None) -> EntropyFacts:
    """Thresholds over all semantic entropies, then the label column file by file: one float a question is held at once."""
    figures = clusters.read_table("", columns=["semantic_entropy", "judge_calls", "triples", "non_transitive_triples"])
    entropies = figures["semantic_entropy"].to_numpy()
    at = threshold_at
    if at is None:
        at = threshold(entropies, config.rule, quantile=config.quantile, fixed=config.threshold)
    for i, file in enumerate(clusters.parquet_files()):
        table = clusters.read_table(file)
        column = pa.array(labels(table["semantic_entropy"].to_numpy(), at))
        work.write_table(f"part-{i:05d}.parquet", table.append_column(schema.ENTROPY.field("label"), column).cast(schema.ENTROPY))
    thresholds = {rule: threshold(entropies, rule, quantile=config.quantile) for rule in RULES}
    thresholds["fixed"] = config.threshold
    return EntropyFacts(
        rows=len(entropies),
        threshold=at,
        unknown=int(labels(entropies, at).sum()),
        thresholds=thresholds,
        share_unknown={rule: float(np.mean(entropies >= value)) for rule, value in thresholds.items()},
        **{name: int(figures[name].to_numpy().sum()) for name in ("judge_calls", "triples", "non_transitive_triples")},
    )
