"""Stage entropy: clusters the answers by meaning, semantic entropy, known/unknown (KA2L section 3.2.2)."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ka2l_ray import schema
from ka2l_ray.actors.judge import ClusterBatch
from ka2l_ray.config import EntropyConfig
from ka2l_ray.errors import UserError
from ka2l_ray.jobs.stages.progress import Update, progress
from ka2l_ray.jobs.stages.streaming import map_rows
from ka2l_ray.semantics.cache import claim, merge
from ka2l_ray.semantics.entropy import labels, threshold
from ka2l_ray.semantics.judges import judge_gpus, verdict_identity
from ka2l_ray.store.artefacts import Artefact, Store
from ka2l_ray.store.storage import Storage

logger = logging.getLogger(__name__)

RULES = ("ka2l", "two_means", "quantile")
ROWS_PER_BLOCK = 512  # questions that advance together
SUMMED = (
    "judge_calls",
    "cached_verdicts",
    "reference_calls",
    "empty_answers",
    "truncated",
    "unparsable",
    "triples",
    "non_transitive_triples",
)


@dataclass
class EntropyFacts:
    """What the stage records. ``thresholds`` and ``share_unknown`` hold every rule, for the report."""

    rows: int
    threshold: float
    unknown: int
    thresholds: dict[str, float]
    share_unknown: dict[str, float]
    judge_calls: int
    cached_verdicts: int
    reference_calls: int | None
    """None where not all answers were settled."""
    empty_answers: int
    single_answers: int
    truncated: int
    unparsable: int
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
    decided_at = _threshold_beforehand(config, threshold_at) if asked is not None or config.label_only else None

    def build(work: Storage) -> dict[str, Any]:
        clusters = work.at("_scratch/clusters")
        failed = samples.facts.get("errors", 0)
        checkpoint = work.at("_scratch/checkpoint")
        with progress(f"entropy {name}") as update:
            cluster_samples(
                samples.storage,
                clusters,
                checkpoint,
                config,
                gpus=gpus,
                failed=failed,
                asked=asked,
                decided_at=decided_at,
                on_file=_counting(clusters, samples.facts["rows"] - failed, update),
            )
        facts = _label(clusters, work, config, threshold_at, bounds=decided_at is not None)
        _warn(name, facts)
        return asdict(facts)

    return store.compute(name, inputs, build)


def judge_identity(config: EntropyConfig) -> dict[str, Any]:
    """For content keys: what of the configuration decides clusters and labels.

    Raises:
        UserError: no such judge's model, or an NLI model without an entailment label.
    """
    rules = ("rule", "quantile", "threshold", "audit", "label_only")
    return {**cluster_identity(config), **{name: getattr(config, name) for name in rules}}


def cluster_identity(config: EntropyConfig) -> dict[str, Any]:
    """What of the configuration decides clusters."""
    return {**verdict_identity(config), "equivalence": config.equivalence, "policy": config.policy}


def known_threshold(config: EntropyConfig) -> float:
    """Of a rule that needs no semantic entropies to find it."""
    assert config.rule in ("ka2l", "fixed")
    return threshold(np.array([]), config.rule, fixed=config.threshold)


def _threshold_beforehand(config: EntropyConfig, threshold_at: float | None) -> float:
    return known_threshold(config) if threshold_at is None else threshold_at


def cluster_samples(
    samples: Storage,
    clusters: Storage,
    checkpoint: Storage,
    config: EntropyConfig,
    *,
    gpus: float,
    failed: int = 0,
    asked: int | None = None,
    decided_at: float | None = None,
    on_file: Callable[[str], None] | None = None,
) -> None:
    """Write ``schema.CLUSTERS`` rows of all samples that have answers.

    Args:
        gpus: of one judge actor, if its judge is a model here.
        failed: rows that have none.
        asked: answers of a question that is not decided; None: all rows are whole.
        decided_at: nats; where rows are not whole, or only labels are wanted, they get a bound at this threshold.
        on_file: told of each file of ``clusters``.
    """
    if config.cache is not None:  # a worker's directory is not this one
        where = config.cache if "://" in config.cache else str(Path(config.cache).absolute())
        config = config.model_copy(update={"cache": where})
        claim(where, json.dumps(verdict_identity(config), sort_keys=True))
    map_rows(
        samples,
        clusters,
        worker=ClusterBatch,
        arguments=(config, asked, decided_at),
        columns=["question_id", "question", "generations"],
        actors=config.replicas,
        cpus=1,
        gpus=judge_gpus(config, gpus),
        rows_per_block=ROWS_PER_BLOCK,
        checkpoint=checkpoint,
        excluded=failed,
        on_file=on_file,
    )
    if config.cache is not None:
        merge(config.cache, patience=10)


def _counting(clusters: Storage, questions: int, update: Update) -> Callable[[str], None]:
    """Progress by questions and judge calls, file by file."""
    rows = calls = 0

    def on_file(file: str) -> None:
        nonlocal rows, calls
        column = clusters.read_table(file, columns=["judge_calls"])["judge_calls"]
        rows += len(column)
        calls += pc.sum(column).as_py() or 0
        update(rows, questions, f"{calls} judge calls")

    return on_file


def _answers_asked(samples: Artefact, config: EntropyConfig, threshold_at: float | None) -> int | None:
    """k where the samples were drawn until their labels were decided, else None.

    Raises:
        UserError: they were decided at another threshold.
    """
    decided_at = samples.facts.get("decided_at")
    if decided_at is None:
        return None
    if config.rule not in ("ka2l", "fixed") or _threshold_beforehand(config, threshold_at) != decided_at:
        raise UserError(
            f"{samples.url}: drawn with sampling.stop_when_decided, for the threshold of {decided_at:g} nats only; "
            "give that threshold (entropy.rule=ka2l or fixed), or sample without it"
        )
    return int(samples.facts["asked"])


def _label(clusters: Storage, work: Storage, config: EntropyConfig, threshold_at: float | None, *, bounds: bool) -> EntropyFacts:
    """Thresholds over all semantic entropies, then the label column file by file: one float a question is held at once.

    Of bounds, no other rule's threshold can be found.
    """
    entropies = clusters.read_table("", columns=["semantic_entropy"])["semantic_entropy"].to_numpy()
    at = threshold_at
    if at is None:
        at = threshold(entropies, config.rule, quantile=config.quantile, fixed=config.threshold)
    sums: dict[str, Any] = dict.fromkeys(SUMMED, 0)
    single = 0
    for i, file in enumerate(clusters.parquet_files()):
        table = clusters.read_table(file)
        column = pa.array(labels(table["semantic_entropy"].to_numpy(), at))
        work.write_table(f"part-{i:05d}.parquet", table.append_column(schema.ENTROPY.field("label"), column).cast(schema.ENTROPY))
        for name in SUMMED:
            sums[name] += pc.sum(table[name]).as_py() or 0
        one = pc.equal(pc.list_value_length(table["cluster_ids"]), 1)
        single += pc.sum(pc.and_(one, pc.equal(table["bound"], "exact"))).as_py() or 0
    thresholds: dict[str, float] = {config.rule: at}
    if not bounds:
        thresholds = {rule: threshold(entropies, rule, quantile=config.quantile) for rule in RULES} | {"fixed": config.threshold}
    if bounds:
        sums["reference_calls"] = None
    return EntropyFacts(
        rows=len(entropies),
        threshold=at,
        unknown=int(labels(entropies, at).sum()),
        thresholds=thresholds,
        share_unknown={rule: float(np.mean(entropies >= value)) for rule, value in thresholds.items()},
        single_answers=single,
        **sums,
    )


def _warn(name: str, facts: EntropyFacts) -> None:
    """What a reader of the figures should know.

    Raises:
        UserError: half of a language model's verdicts could not be read.
    """
    if facts.unparsable > 0.5 * max(1, facts.judge_calls):
        raise UserError(
            f"{name}: {facts.unparsable} of {facts.judge_calls} verdicts could not be read: the judge said neither yes nor no; "
            "change entropy.llm_prompt, or give another entropy.llm_model"
        )
    notes = {
        "questions have one answer, whose semantic entropy is 0 whatever the model knows": facts.single_answers,
        "answers are empty; they count as one meaning of their own": facts.empty_answers,
        "verdicts are on texts longer than the judge takes, of which it did not see all": facts.truncated,
        "verdicts could not be read and were taken for neutral": facts.unparsable,
    }
    for note, count in notes.items():
        if count:
            logger.warning("%s: %d %s", name, count, note)
