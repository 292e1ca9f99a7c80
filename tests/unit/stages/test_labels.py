"""Labels of clustered answers: abstention, rule auto and what it keeps, halves; what is replayed and what is ranked first."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ka2l_ray import schema
from ka2l_ray.actors.judge import ClusterBatch
from ka2l_ray.config import EntropyConfig
from ka2l_ray.jobs.stages.annotate import known_rows, replay
from ka2l_ray.jobs.stages.labels import Decided, EntropyFacts, write_labels
from ka2l_ray.jobs.stages.score import score_by_semantic_entropy
from ka2l_ray.reading import READING
from ka2l_ray.store.artefacts import Artefact, StageDirectory
from ka2l_ray.store.storage import Storage

IDK = "I don't know"
DIFFERENT = [f"Band {i}" for i in range(10)]


def labelled(
    root: Path, answers: dict[str, list[str]], *, decided: Decided | None = None, cut: tuple[str, ...] = (), **settings: Any
) -> tuple[Artefact, EntropyFacts]:
    """The entropy artefact of these answers, clustered by exact match, and its facts."""
    config = EntropyConfig(judge="exact", **settings)
    asked = {"question_id": list(answers), "question": [f"Which band is {name}?" for name in answers]}
    reasons = [["length" if name in cut else "stop"] * len(row) for name, row in answers.items()]
    batch = pa.table({**asked, "generations": list(answers.values()), "finish_reasons": reasons})
    clusters = Storage(str(root / "clusters"))
    clusters.write_table("part.parquet", ClusterBatch(config, READING, None, None)(batch))
    found: list[EntropyFacts] = []

    def build(work: Storage) -> dict[str, Any]:
        found.append(write_labels(clusters, work, config, decided, bounds=False))
        return asdict(found[0])

    return StageDirectory(str(root / "entropy")).compute("entropy", {"stage": "entropy"}, build), found[0]


def rows(artefact: Artefact) -> dict[str, dict[str, Any]]:
    return {row["question_id"]: row for row in artefact.storage.read_table("").to_pylist()}


POOL = {
    **{"idk": [IDK] * 10, "silence": [""] * 10, "who": ["The Who"] * 10, "cut": ["Guns N'"] * 10},
    **{"nine": ["Queen"] * 9 + [IDK], "mixed": ["Queen"] * 5 + [IDK] * 5, "all": DIFFERENT},
}


@pytest.mark.parametrize(
    ("abstentions", "labels"),
    [
        ("unknown", {"idk": 1, "silence": 1, "who": 0, "cut": 0, "nine": 0, "mixed": 1, "all": 1}),
        ("known", {"idk": 0, "silence": 0, "who": 0, "cut": 0, "nine": 0, "mixed": 1, "all": 1}),
        ("drop", {"idk": None, "silence": None, "who": 0, "cut": 0, "nine": 0, "mixed": None, "all": 1}),
    ],
)
def test_what_abstains_is_unknown_or_known_or_dropped_and_never_replayed(
    abstentions: str, labels: dict[str, int | None], tmp_path: Path
) -> None:
    entropy, facts = labelled(tmp_path, POOL, cut=("cut",), rule="ka2l", abstentions=abstentions)
    assert {name: row["label"] for name, row in rows(entropy).items()} == labels
    assert (facts.abstaining, facts.silent, facts.abstentions, facts.empty_answers) == (3, 1, 16, 10)
    assert facts.dropped == (3 if abstentions == "drop" else 0)
    assert facts.unknown == sum(label == 1 for label in labels.values())
    assert facts.share_unknown["ka2l"] == facts.unknown / (7 - facts.dropped)
    assert (facts.cut_answers, facts.drawn) == (10, 70)
    assert sorted(row["question_id"] for row in known_rows(entropy, frozenset())) == ["nine", "who"]
    drawn = replay(
        StageDirectory(str(tmp_path / "replay")), "replay", entropies=[entropy], exclude=frozenset(), size=9, seed=(0,)
    )
    targets = drawn.storage.read_table("", columns=["target"])["target"].to_pylist()
    assert sorted(targets) == ["Queen", "The Who"]


def test_without_a_probe_what_abstains_is_ranked_with_the_most_uncertain(tmp_path: Path) -> None:
    entropy, _ = labelled(tmp_path, POOL, rule="ka2l")
    scores = rows(score_by_semantic_entropy(StageDirectory(str(tmp_path / "scores")), "scores", entropy=entropy))
    assert {name for name, row in scores.items() if row["semantic_entropy"] == pytest.approx(math.log(10))} == {
        *("idk", "silence", "mixed", "all")
    }
    assert scores["who"]["semantic_entropy"] == 0
    kept, _ = labelled(tmp_path / "dropped", POOL, rule="ka2l", abstentions="drop")
    left = rows(score_by_semantic_entropy(StageDirectory(str(tmp_path / "left")), "scores", entropy=kept))
    assert set(left) == {"who", "cut", "nine", "all"}


def little_known(known: int, middling: int, unknown: int) -> dict[str, list[str]]:
    kinds = {"known": ["Queen"] * 10, "middling": ["Queen"] * 5 + DIFFERENT[:5], "unknown": DIFFERENT}
    counts = {"known": known, "middling": middling, "unknown": unknown}
    return {f"{kind}-{i}": answers for kind, answers in kinds.items() for i in range(counts[kind])}


def test_auto_takes_two_means_where_eq_3_leaves_a_class_nearly_empty(tmp_path: Path) -> None:
    _, facts = labelled(tmp_path / "enough", little_known(5, 35, 60))
    assert (facts.rule, facts.threshold, facts.unknown) == ("ka2l", 0.5, 95)
    assert facts.agreeing == {"10": 9}
    entropy, facts = labelled(tmp_path / "few", little_known(1, 39, 60))
    assert facts.rule == "two_means"
    assert 0.5 < facts.threshold < math.log(10)
    assert facts.unknown == 60
    assert facts.thresholds["two_means"] == facts.threshold
    assert facts.share_unknown == pytest.approx({**facts.share_unknown, "ka2l": 0.99, "two_means": 0.6})
    kept = Decided.by(entropy)
    _, later = labelled(tmp_path / "later", little_known(60, 20, 20), decided=kept)
    assert (later.rule, later.threshold) == kept, "whatever this round's answers are"
    assert later.unknown == 20


def test_abstentions_count_as_the_unknown_class_in_what_auto_takes(tmp_path: Path) -> None:
    pool = {**{f"known-{i}": ["Queen"] * 10 for i in range(38)}, **{f"idk-{i}": [IDK] * 10 for i in range(62)}}
    _, facts = labelled(tmp_path, pool)
    assert (facts.rule, facts.unknown) == ("ka2l", 62)
    _, facts = labelled(tmp_path / "silent", {f"idk-{i}": [IDK] * 10 for i in range(5)})
    assert (facts.rule, facts.threshold, facts.unknown, facts.reliability) == ("ka2l", 0.5, 5, None)


def test_the_reliability_of_the_labels_is_recorded(tmp_path: Path) -> None:
    _, facts = labelled(tmp_path, little_known(50, 0, 50), rule="ka2l")
    assert facts.reliability is not None
    assert (facts.reliability["kappa"], facts.reliability["accuracy_ceiling"]) == (1, 1)
    assert (facts.reliability["half"], facts.reliability["questions"]) == (5, 100)
    split = {f"q{i}": ["Queen"] * 9 + ["Abba"] for i in range(100)}
    _, facts = labelled(tmp_path / "split", {**split, **little_known(0, 0, 100)}, rule="ka2l")
    assert facts.reliability is not None
    assert facts.unknown == 100, "nine of ten agree"
    assert facts.reliability["agreement"] == pytest.approx(0.5), "one of two halves of five holds the tenth"


def test_halves_are_labelled_by_the_split_that_auto_took(tmp_path: Path) -> None:
    """Four sure questions among many that are not: two_means alone would part them from the rest, and call that repeatable."""
    pool = {f"sure-{i}": ["Queen"] * 10 for i in range(4)}
    pool |= {f"pair-{i}": [*DIFFERENT[:9], "Band 0"] for i in range(60)} | {f"all-{i}": DIFFERENT for i in range(36)}
    _, facts = labelled(tmp_path / "auto", pool)
    assert facts.rule == "two_means"
    assert facts.threshold > 1.5
    assert facts.reliability is not None
    assert facts.reliability["threshold"] > 1.3, "not between the sure and the rest"
    assert facts.reliability["kappa"] < 0.5
    _, plain = labelled(tmp_path / "plain", pool, rule="two_means")
    assert plain.reliability is not None
    assert plain.reliability["kappa"] == 1


def test_the_schema_allows_a_label_that_was_dropped() -> None:
    assert schema.ENTROPY.field("label").nullable
