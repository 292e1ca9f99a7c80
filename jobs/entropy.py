"""Stage entropy: clusters the answers by meaning, semantic entropy, known/unknown (KA2L section 3.2.2)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ka2l_ray import schema
from ka2l_ray.actors.judge import ClusterBatch
from ka2l_ray.config import EntropyConfig, ModelConfig
from ka2l_ray.errors import UserError
from ka2l_ray.jobs.streaming import map_rows
from ka2l_ray.model_files import model_identity
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
    inputs = {"stage": "entropy", "samples": samples.key, "entropy": judge_identity(config), "threshold_at": threshold_at}
    asked = _answers_asked(samples, config, threshold_at)

    def build(work: Storage) -> dict[str, Any]:
        clusters = work.at("_scratch/clusters")
        failed = samples.facts.get("errors", 0)
        checkpoint = work.at("_scratch/checkpoint")
        cluster_answers(samples.storage, clusters, checkpoint, config, gpus=gpus, failed=failed, asked=asked)
        return asdict(_label(clusters, work, config, threshold_at, bounds=asked is not None))

    return store.compute(name, inputs, build)


def judge_identity(config: EntropyConfig) -> dict[str, Any]:
    """For content keys: what of the configuration decides clusters and labels.

    Raises:
        UserError: the NLI model has no entailment label.
    """
    judged = config.model_dump(mode="json", exclude={"replicas", "batch_size"})
    if config.judge == "exact":
        judged.pop("nli_model")
    else:
        label_verdicts(load_nli_config(bundled_path(config.nli_model)), config.nli_model)
        judged["nli_model"] = model_identity(ModelConfig(path=config.nli_model))
    return judged


def known_threshold(config: EntropyConfig) -> float:
    """Of a rule that needs no semantic entropies to find it."""
    assert config.rule in ("ka2l", "fixed")
    return threshold(np.array([]), config.rule, fixed=config.threshold)


def cluster_answers(
    samples: Storage,
    clusters: Storage,
    checkpoint: Storage,
    config: EntropyConfig,
    *,
    gpus: float,
    failed: int = 0,
    asked: int | None = None,
) -> None:
    """Write ``schema.CLUSTERS`` rows of all samples that have answers.

    Args:
        failed: rows that have none.
        asked: answers of a question that is not decided; a row with fewer gets a bound. None: all rows are whole.
    """
    map_rows(
        samples,
        clusters,
        worker=ClusterBatch,
        arguments=(config, asked, known_threshold(config) if asked else None),
        columns=["question_id", "question", "generations"],
        actors=config.replicas,
        cpus=1,
        gpus=gpus,
        rows_per_block=ROWS_PER_BLOCK,
        checkpoint=checkpoint,
        excluded=failed,
    )


def _answers_asked(samples: Artefact, config: EntropyConfig, threshold_at: float | None) -> int | None:
    """k where the samples were drawn until their labels were decided, else None.

    Raises:
        UserError: they were decided at another threshold.
    """
    decided_at = samples.facts.get("decided_at")
    if decided_at is None:
        return None
    if config.rule not in ("ka2l", "fixed") or (threshold_at or known_threshold(config)) != decided_at:
        raise UserError(
            f"{samples.url}: drawn with sampling.stop_when_decided, for the threshold of {decided_at:g} nats only; "
            "give that threshold (entropy.rule=ka2l or fixed), or sample without it"
        )
    return int(samples.facts["asked"])


def _label(clusters: Storage, work: Storage, config: EntropyConfig, threshold_at: float | None, *, bounds: bool) -> EntropyFacts:
    """Thresholds over all semantic entropies, then the label column file by file: one float a question is held at once.

    Of bounds, no other rule's threshold can be found.
    """
    figures = clusters.read_table("", columns=["semantic_entropy", "judge_calls", "triples", "non_transitive_triples"])
    entropies = figures["semantic_entropy"].to_numpy()
    at = threshold_at
    if at is None:
        at = threshold(entropies, config.rule, quantile=config.quantile, fixed=config.threshold)
    for i, file in enumerate(clusters.parquet_files()):
        table = clusters.read_table(file)
        column = pa.array(labels(table["semantic_entropy"].to_numpy(), at))
        work.write_table(f"part-{i:05d}.parquet", table.append_column(schema.ENTROPY.field("label"), column).cast(schema.ENTROPY))
    thresholds: dict[str, float] = {config.rule: at}
    if not bounds:
        thresholds = {rule: threshold(entropies, rule, quantile=config.quantile) for rule in RULES} | {"fixed": config.threshold}
    return EntropyFacts(
        rows=len(entropies),
        threshold=at,
        unknown=int(labels(entropies, at).sum()),
        thresholds=thresholds,
        share_unknown={rule: float(np.mean(entropies >= value)) for rule, value in thresholds.items()},
        **{name: int(figures[name].to_numpy().sum()) for name in ("judge_calls", "triples", "non_transitive_triples")},
    )
