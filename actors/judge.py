"""The worker of the entropy stage: a Ray Data actor that holds a judge and clusters batches of questions."""

from __future__ import annotations

from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc
import torch

from ka2l_ray import schema
from ka2l_ray.config import EntropyConfig
from ka2l_ray.seeds import derive_seed
from ka2l_ray.semantics.cache import CachedJudge
from ka2l_ray.semantics.clustering import Judge, cluster_answers
from ka2l_ray.semantics.entropy import entropy_bounds, semantic_entropy
from ka2l_ray.semantics.judges import make_judge


class ClusterBatch:
    """Samples in, ``schema.CLUSTERS`` rows out.

    Args:
        asked: answers of a question whose label was not decided while sampling; None: all that a row has.
        decided_at: nats; the threshold at which a label counts as decided, where one was given beforehand.
    """

    def __init__(self, config: EntropyConfig, asked: int | None, decided_at: float | None) -> None:
        torch.set_num_threads(1)
        self.config = config
        self.asked, self.decided_at = asked, decided_at

    @cached_property
    def judge(self) -> Judge:
        """Loaded with the first batch: what is wrong comes back as that batch's error."""
        judge = make_judge(self.config)
        return CachedJudge(judge, self.config.cache) if self.config.cache is not None else judge

    def __call__(self, batch: pa.Table) -> pa.Table:
        batch = batch.filter(pc.is_valid(batch["generations"]))  # a question that could not be sampled has none
        questions = batch["question"].to_pylist()
        answers = [[text.strip() for text in row] for row in batch["generations"].to_pylist()]
        point = [derive_seed("audit", question_id) / 2**64 for question_id in batch["question_id"].to_pylist()]
        found = cluster_answers(
            questions,
            answers,
            self.judge,
            policy=self.config.policy,
            strict=self.config.equivalence == "strict",
            decided_at=self.decided_at if self.config.label_only else None,
            asked=self.asked,
            audited=[i for i, p in enumerate(point) if p < self.config.audit],
        )
        entropies = [self._entropy(c.cluster_ids, len(row)) for c, row in zip(found, answers, strict=True)]
        columns = {
            "question_id": batch["question_id"],
            "question": batch["question"],
            "semantic_entropy": [entropy for entropy, _ in entropies],
            "bound": [bound for _, bound in entropies],
            "cluster_ids": [c.cluster_ids for c in found],
            "majority_answer": [c.majority_answer for c in found],
            "judge_calls": [c.counts.judge_calls for c in found],
            "cached_verdicts": [c.counts.cached for c in found],
            "reference_calls": [c.counts.reference_calls for c in found],
            "empty_answers": [c.counts.empty_answers for c in found],
            "truncated": [c.counts.truncated for c in found],
            "unparsable": [c.counts.unparsable for c in found],
            "triples": [c.triples for c in found],
            "non_transitive_triples": [c.non_transitive_triples for c in found],
        }
        return pa.table(columns, schema=schema.CLUSTERS)

    def _entropy(self, cluster_ids: list[int], drawn: int) -> tuple[float, str]:
        """(semantic entropy, ``exact``), or the bound that decides the label where answers were left undrawn or unsettled."""
        answers = self.asked or drawn
        if self.decided_at is None or len(cluster_ids) >= answers:
            return semantic_entropy(cluster_ids), "exact"
        least, greatest = entropy_bounds(cluster_ids, answers)
        return (least, "lower") if least >= self.decided_at else (greatest, "upper")
