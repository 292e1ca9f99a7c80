"""The worker of the entropy stage: a Ray Data actor that holds a judge and clusters batches of questions."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import torch

from ka2l_ray import schema
from ka2l_ray.config import EntropyConfig
from ka2l_ray.seeds import derive_seed
from ka2l_ray.semantics.clustering import Clustering, cluster
from ka2l_ray.semantics.entropy import entropy_bounds
from ka2l_ray.semantics.judges import make_judge
from ka2l_ray.world import bundled_path


class ClusterBatch:
    """Samples in, ``schema.CLUSTERS`` rows out."""

    def __init__(self, config: EntropyConfig, asked: int | None, decided_at: float | None) -> None:
        """``asked``: answers a whole row has; one with fewer was decided at ``decided_at`` nats. None: all are whole."""
        torch.set_num_threads(1)
        self.asked, self.decided_at = asked, decided_at
        self.judge = make_judge(config.judge, bundled_path(config.nli_model), config.equivalence, config.batch_size)
        self.policy = config.policy
        self.audit = config.audit

    def __call__(self, batch: pa.Table) -> pa.Table:
        batch = batch.filter(pc.is_valid(batch["generations"]))  # a question that could not be sampled has none
        questions = batch["question"].to_pylist()
        generations = batch["generations"].to_pylist()
        point = [derive_seed("audit", question_id) / 2**64 for question_id in batch["question_id"].to_pylist()]
        audited = [i for i, p in enumerate(point) if p < self.audit]
        clusterings = cluster(questions, generations, self.judge, self.policy, audited)
        entropies = [self._entropy(c) for c in clusterings]
        columns = {
            "question_id": batch["question_id"],
            "question": batch["question"],
            "semantic_entropy": [entropy for entropy, _ in entropies],
            "bound": [bound for _, bound in entropies],
            "cluster_ids": [c.cluster_ids for c in clusterings],
            "majority_answer": [c.majority_answer for c in clusterings],
            "judge_calls": [c.judge_calls for c in clusterings],
            "triples": [c.triples for c in clusterings],
            "non_transitive_triples": [c.non_transitive_triples for c in clusterings],
        }
        return pa.table(columns, schema=schema.CLUSTERS)

    def _entropy(self, clustering: Clustering) -> tuple[float, str]:
        """(semantic entropy, ``exact``), or the bound that decides the label where answers were left undrawn."""
        if self.asked is None or self.decided_at is None or len(clustering.cluster_ids) >= self.asked:
            return clustering.semantic_entropy, "exact"
        least, greatest = entropy_bounds(clustering.cluster_ids, self.asked)
        return (least, "lower") if least >= self.decided_at else (greatest, "upper")
