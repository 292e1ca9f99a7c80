"""From semantic entropies to labels: the threshold in force, abstention, and how far the labels would repeat themselves."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ka2l_ray import schema
from ka2l_ray.config import EntropyConfig
from ka2l_ray.semantics.entropy import KA2L_THRESHOLD, agreeing_answers, auto_threshold, constrained_two_means, labels, threshold
from ka2l_ray.semantics.reliability import half_entropies, reliability
from ka2l_ray.store.artefacts import Artefact
from ka2l_ray.store.storage import Storage

RULES = ("ka2l", "two_means", "quantile")
SUMMED = (
    "judge_calls",
    "cached_verdicts",
    "drawn",
    "empty_answers",
    "abstentions",
    "cut_answers",
    "truncated",
    "unparsable",
    "triples",
    "non_transitive_triples",
)


TALLIED = ("unknown", "abstaining", "silent", "paragraphs", "single_answers")


@dataclass
class EntropyFacts:
    """What the stage records. ``thresholds`` and ``share_unknown`` hold every rule, for the report."""

    rows: int
    rule: str
    """In force: where the configuration says ``auto``, the one that it took."""
    threshold: float
    agreeing: dict[str, int]
    """By the number of answers: how many of them must mean the same, at least, for a known question."""
    unknown: int
    abstaining: int
    """Questions that go without an answer, whatever their label."""
    silent: int
    """Of these, the ones whose commonest answer is empty."""
    dropped: int
    """Of these, the ones without a label."""
    reliability: dict[str, Any] | None
    """``semantics.reliability.Reliability``; None where the answers are not all settled, or fewer than four."""
    thresholds: dict[str, float]
    share_unknown: dict[str, float]
    judge_calls: int
    cached_verdicts: int
    reference_calls: int | None
    """None where not all answers were settled."""
    drawn: int
    """Answers."""
    empty_answers: int
    abstentions: int
    cut_answers: int
    paragraphs: int
    """Questions of whose answers more than half are paragraphs."""
    single_answers: int
    truncated: int
    unparsable: int
    triples: int
    non_transitive_triples: int


class Decided(NamedTuple):
    """A rule and its threshold as found on another set."""

    rule: str
    threshold: float

    @classmethod
    def by(cls, entropy: Artefact) -> Decided:
        return cls(entropy.facts["rule"], entropy.facts["threshold"])


def write_labels(
    clusters: Storage, work: Storage, config: EntropyConfig, decided: Decided | None, *, bounds: bool
) -> EntropyFacts:
    """Thresholds over all semantic entropies, then the label column file by file: a few numbers a question are held at once.

    Of bounds, no other rule's threshold can be found, and no halves.
    """
    found = clusters.read_table("", columns=["semantic_entropy", "abstains"])
    entropies, abstaining = found["semantic_entropy"].to_numpy(), found["abstains"].to_numpy()
    beside = abstaining & (config.abstentions != "known")  # questions that no threshold labels
    of = entropies[~beside]
    rule, at = decided or decide(of, config, unknown=int(beside.sum()) * (config.abstentions == "unknown"))
    sums: Counter[str] = Counter()
    halves, settled = Halves(), set[int]()
    for i, file in enumerate(clusters.parquet_files()):
        table = clusters.read_table(file)
        label = label_column(table, at, config.abstentions)
        work.write_table(f"part-{i:05d}.parquet", table.append_column(schema.ENTROPY.field("label"), label).cast(schema.ENTROPY))
        sums.update(_tally(table, label))
        settled.update(pc.list_value_length(table["cluster_ids"]).to_pylist())
        if not bounds:
            halves.add(table.filter(pc.is_valid(label)))
    thresholds: dict[str, float] = {}
    if not bounds:
        thresholds = {each: threshold(of, each, quantile=config.quantile) for each in RULES} if len(of) else {}
        thresholds["fixed"] = config.threshold
    thresholds[rule] = at
    dropped = int(beside.sum()) if config.abstentions == "drop" else 0
    labelled = max(1, len(entropies) - dropped)
    unknown_beside = int(beside.sum()) - dropped
    return EntropyFacts(
        rows=len(entropies),
        rule=rule,
        threshold=at,
        agreeing={} if bounds else {str(k): agreeing_answers(k, at) for k in sorted(settled)},
        dropped=dropped,
        reliability=halves.reliability(rule, config, sums["unknown"] / labelled),
        thresholds=thresholds,
        share_unknown={each: float((of >= value).sum() + unknown_beside) / labelled for each, value in thresholds.items()},
        reference_calls=None if bounds else sums["reference_calls"],
        **{name: sums[name] for name in (*SUMMED, *TALLIED)},
    )


def _tally(table: pa.Table, label: pa.Array) -> dict[str, int]:
    """What is counted of one file."""
    one = pc.equal(pc.list_value_length(table["cluster_ids"]), 1)
    counted = {
        "unknown": label,
        "abstaining": table["abstains"],
        "silent": pc.and_(table["abstains"], pc.equal(table["majority_answer"], "")),
        "paragraphs": table["paragraph"],
        "single_answers": pc.and_(one, pc.equal(table["bound"], "exact")),
        **{name: table[name] for name in (*SUMMED, "reference_calls")},
    }
    return {name: pc.sum(column).as_py() or 0 for name, column in counted.items()}


def decide(entropies: NDArray[np.float64], config: EntropyConfig, *, unknown: int) -> Decided:
    """The rule in force and its threshold, by the questions that it labels; where there are none, Eq. 3's."""
    if config.rule == "auto" or not len(entropies):
        return Decided(*auto_threshold(entropies, unknown))
    return Decided(config.rule, threshold(entropies, config.rule, quantile=config.quantile, fixed=config.threshold))


def label_column(table: pa.Table, at: float, abstentions: str) -> pa.Array:
    """1 unknown, 0 known, null: dropped."""
    label = labels(table["semantic_entropy"].to_numpy(), at)
    abstaining = table["abstains"].to_numpy()
    if abstentions == "unknown":
        label = np.where(abstaining, np.int8(1), label)
    return pa.array(label, mask=abstaining if abstentions == "drop" else None)


class Halves:
    """Semantic entropies of two random halves of each question's answers."""

    def __init__(self) -> None:
        self.entropies: list[NDArray[np.float64]] = []
        self.without: list[NDArray[np.bool_]] = []
        self.answers = 0

    def add(self, table: pa.Table) -> None:
        for row in table.select(["question_id", "cluster_ids", "declines"]).to_pylist():
            found = half_entropies(row["question_id"], row["cluster_ids"], row["declines"])
            if found is not None:
                self.entropies.append(found[0])
                self.without.append(found[1])
                self.answers += len(row["cluster_ids"]) // 2

    def reliability(self, rule: str, config: EntropyConfig, share_unknown: float) -> dict[str, Any] | None:
        if not self.entropies:
            return None
        entropies, beside = np.array(self.entropies), np.array(self.without) & (config.abstentions != "known")
        if beside.all():
            return None
        of = entropies[~beside]
        if config.rule == "auto" and rule == "two_means":
            split = constrained_two_means(of, unknown=int(beside.sum()))
            at = KA2L_THRESHOLD if split is None else split
        else:
            at = threshold(of, rule, quantile=config.quantile, fixed=config.threshold)
        half = self.answers / len(entropies)
        return asdict(reliability(entropies, beside, at, share_unknown=share_unknown, half=half))
