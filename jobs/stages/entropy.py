"""Stage entropy: clusters the answers by meaning, semantic entropy, known/unknown (KA2L section 3.2.2)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow.compute as pc

from ka2l_ray.actors.judge import ClusterBatch
from ka2l_ray.actors.placement import workers_now
from ka2l_ray.config import EntropyConfig
from ka2l_ray.errors import UserError
from ka2l_ray.jobs.stages.labels import Decided, EntropyFacts, write_labels
from ka2l_ray.jobs.stages.p_wrong import add_p_wrong
from ka2l_ray.jobs.stages.progress import Update, progress
from ka2l_ray.jobs.stages.streaming import map_rows
from ka2l_ray.reading import READING, Reading
from ka2l_ray.semantics.abstention import expanded
from ka2l_ray.semantics.cache import shared
from ka2l_ray.semantics.entropy import threshold
from ka2l_ray.semantics.judges import judge_gpus, verdict_identity
from ka2l_ray.semantics.paragraphs import MOST_WORDS, SENTENCES
from ka2l_ray.store.artefacts import Artefact, Store
from ka2l_ray.store.storage import Storage

logger = logging.getLogger(__name__)

MUCH_CUT = 0.02  # of all answers
ROWS_PER_BLOCK = 512  # questions that advance together


def entropy(
    store: Store,
    name: str,
    *,
    samples: Artefact,
    config: EntropyConfig,
    reading: Reading = READING,
    decided: Decided | None = None,
    gpus: float = 0.0,
    answered: Artefact | None = None,
) -> Artefact:
    """The entropy table of ``samples``.

    Args:
        reading: of the answers, before they are compared.
        decided: stands in the place of ``config.rule``.
        gpus: of one judge actor.
        answered: ``schema.ANSWERED`` rows of the same questions: adds ``schema.P_WRONG``.
    """
    inputs = {"stage": "entropy", "samples": samples.key, "entropy": judge_identity(config, reading), "decided": decided}
    if answered is not None:
        inputs["answered"] = answered.key
    asked = _answers_asked(samples, config, decided)
    decided_at = _threshold_beforehand(config, decided) if asked is not None or config.label_only else None

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
                reading=reading,
                gpus=gpus,
                failed=failed,
                asked=asked,
                decided_at=decided_at,
                on_file=_counting(clusters, samples.facts["rows"] - failed, update),
            )
        facts = write_labels(clusters, work, config, decided, bounds=decided_at is not None)
        _warn(name, facts)
        return asdict(facts) | ({"p_wrong": add_p_wrong(work, answered)} if answered is not None else {})

    return store.compute(name, inputs, build)


def judge_identity(config: EntropyConfig, reading: Reading) -> dict[str, Any]:
    """For content keys: what of the configuration decides clusters and labels.

    Raises:
        UserError: no such judge's model, or an NLI model without an entailment label.
    """
    rules = ("rule", "quantile", "threshold", "abstentions", "audit", "label_only")
    return {**cluster_identity(config, reading), **{name: getattr(config, name) for name in rules}}


def cluster_identity(config: EntropyConfig, reading: Reading) -> dict[str, Any]:
    """What of the configuration decides clusters."""
    verdicts = verdict_identity(config, reading.normalize) | {"extract": reading.identity()["extract"]}
    declining = {"patterns": expanded(config.abstention_patterns), "prompt": config.abstention_prompt}
    return {**verdicts, "equivalence": config.equivalence, "policy": config.policy, "declining": declining}


def known_threshold(config: EntropyConfig) -> float:
    """Of a rule that needs no semantic entropies to find it."""
    assert config.rule in ("ka2l", "fixed")
    return threshold(np.array([]), config.rule, fixed=config.threshold)


def _threshold_beforehand(config: EntropyConfig, decided: Decided | None) -> float:
    return known_threshold(config) if decided is None else decided.threshold


def cluster_samples(
    samples: Storage,
    clusters: Storage,
    checkpoint: Storage,
    config: EntropyConfig,
    *,
    reading: Reading,
    gpus: float,
    failed: int = 0,
    asked: int | None = None,
    decided_at: float | None = None,
    on_file: Callable[[str], None] | None = None,
) -> None:
    """Write ``schema.CLUSTERS`` rows of all samples that have answers.

    Args:
        reading: what of an answer is compared, and its normal form.
        gpus: of one judge actor, if its judge is a model here.
        failed: rows that have none.
        asked: answers of a question that is not decided; None: all rows are whole.
        decided_at: nats; where rows are not whole, or only labels are wanted, they get a bound at this threshold.
        on_file: told of each file of ``clusters``.
    """
    there = samples.read_schema(samples.parquet_files()[0]).names
    gpus = judge_gpus(config, gpus)
    actors = workers_now("entropy", config.replicas, {"CPU": 1.0, "GPU": gpus})
    with shared(config, verdict_identity(config, reading.normalize)) as settings:
        map_rows(
            samples,
            clusters,
            worker=ClusterBatch,
            arguments=(settings, reading, asked, decided_at),
            columns=[name for name in ("question_id", "question", "generations", "finish_reasons") if name in there],
            actors=actors,
            cpus=1,
            gpus=gpus,
            rows_per_block=ROWS_PER_BLOCK,
            checkpoint=checkpoint,
            excluded=failed,
            on_file=on_file,
        )


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


def _answers_asked(samples: Artefact, config: EntropyConfig, decided: Decided | None) -> int | None:
    """k where the samples were drawn until their labels were decided, else None.

    Raises:
        UserError: they were decided at another threshold.
    """
    decided_at = samples.facts.get("decided_at")
    if decided_at is None:
        return None
    if (
        config.rule not in ("ka2l", "fixed")
        or config.abstentions == "drop"
        or _threshold_beforehand(config, decided) != decided_at
    ):
        raise UserError(
            f"{samples.url}: drawn with sampling.stop_when_decided, for the threshold of {decided_at:g} nats only; "
            "give that threshold (entropy.rule=ka2l or fixed) and no entropy.abstentions=drop, or sample without it"
        )
    return int(samples.facts["asked"])


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
        "answers decline to answer": facts.abstentions,
        "questions go without an answer: silence and abstention outnumber every meaning": facts.abstaining,
        "verdicts are on texts longer than the judge takes, of which it did not see all": facts.truncated,
        "verdicts could not be read and were taken for neutral": facts.unparsable,
    }
    for note, count in notes.items():
        if count:
            logger.warning("%s: %d %s", name, count, note)
    if facts.cut_answers > MUCH_CUT * facts.drawn:
        logger.warning(
            "%s: %d of %d answers (%.1f %%) were cut at sampling.max_tokens, before they had said what they mean; raise it",
            *(name, facts.cut_answers, facts.drawn, 100 * facts.cut_answers / facts.drawn),
        )
    if 2 * facts.paragraphs > facts.rows:
        logger.warning(
            "%s: the median answer is a paragraph (more than %d words, or %d sentences): semantic entropy is of short factual "
            "answers, and paragraphs hardly ever mean the same; ask for brief ones (prompt.instruction, sampling.max_tokens)",
            *(name, MOST_WORDS, SENTENCES),
        )
