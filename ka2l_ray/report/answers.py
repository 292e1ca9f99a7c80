"""Single questions in the report: entropy held against the gold answer, examples, and what was forgotten.

Gold answers are read here to evaluate the run after the fact. No acquisition score sees them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ka2l_ray.evaluation import measure
from ka2l_ray.extraction import Extract
from ka2l_ray.reading import Reading
from ka2l_ray.report.data import CurvePoint, NotThereError, Run, curve_name, evaluations, learning_curves
from ka2l_ray.semantics.correctness import judge_answers
from ka2l_ray.uncertainty.ranking import auroc

EXAMPLES_A_LEVEL = 3
SURE_AND_WRONG_EXAMPLES = 5
FORGOTTEN_EXAMPLES = 8


@dataclass(frozen=True)
class Asked:
    """A question of the probing set and what the model said. ``entropy`` in nats; ``gold`` is empty where none is at hand."""

    question_id: str
    question: str
    entropy: float
    unknown: bool
    cluster_ids: list[int]
    generations: list[str]
    greedy: str
    gold: list[str]
    right: bool
    """By the judge of the table that it stands in."""

    @property
    def clusters(self) -> list[list[tuple[str, int]]]:
        """Distinct generations with their counts, cluster by cluster, the largest first."""
        texts: dict[int, Counter[str]] = {}
        for cluster, generation in zip(self.cluster_ids, self.generations, strict=True):
            texts.setdefault(cluster, Counter())[generation.strip()] += 1
        return [counts.most_common() for counts in sorted(texts.values(), key=lambda c: -c.total())]


@dataclass(frozen=True)
class Ranking:
    """How well a score ranks wrong greedy answers above right ones."""

    score: str
    questions: str
    rows: int
    auroc: float


@dataclass(frozen=True)
class QuadrantRound:
    """Counts by (known or unknown, right or wrong); ``unanswered`` questions have no gold answer and are left out."""

    round: int
    judge: str
    """Who says right or wrong, in words."""
    threshold: float
    known_right: int
    known_wrong: int
    unknown_right: int
    unknown_wrong: int
    unanswered: int
    right_entropies: NDArray[np.float64]
    wrong_entropies: NDArray[np.float64]
    rankings: list[Ranking]
    sure_and_wrong: list[Asked]


@dataclass(frozen=True)
class Forgotten:
    """A test question answered rightly before training and wrongly after."""

    question: str
    before: str
    after: str
    gold: list[str]


@dataclass(frozen=True)
class Forgetting:
    """Evaluations after training by round, and examples of the last of them."""

    points: dict[int, CurvePoint]
    examples: list[Forgotten]


def quadrants(run: Run) -> list[QuadrantRound]:
    """Known/unknown by semantic entropy against right/wrong greedy answer, for every round with gold answers.

    By the judge of the run where its verdicts are there, and by exact match beside it.

    Raises:
        NotThereError: no round was sampled, or no probed question has a gold answer.
    """
    found = []
    for round_ in run.rounds("entropy"):
        asked = _asked(run, round_)
        answered = [question for question in asked if question.gold]
        for judge, right in _right(run, round_, answered).items():
            judged = [
                replace(question, right=right[question.question_id]) for question in answered if question.question_id in right
            ]
            found.append(_quadrant_round(run, round_, judge, judged, len(asked) - len(judged)))
    if not found:
        raise NotThereError("the pool has no gold answers for the questions that were sampled")
    return found


def _right(run: Run, round_: int, answered: list[Asked]) -> dict[str, dict[str, bool]]:
    """By what right is called, whether each greedy answer is."""
    if not answered:
        return {}
    verdicts = run.rounds("correctness").get(round_)
    if verdicts is None or not verdicts.facts["rows"]:
        return {measure("exact"): {question.question_id: question.right for question in answered}}
    table = run.table(verdicts)
    ids = table["question_id"].to_pylist()
    columns = {measure(verdicts.facts["judge"]): "correct", measure("exact"): "exact_match"}
    return {judge: dict(zip(ids, table[column].to_pylist(), strict=True)) for judge, column in columns.items()}


def _quadrant_round(run: Run, round_: int, judge: str, answered: list[Asked], unanswered: int) -> QuadrantRound:
    counts = Counter((question.unknown, question.right) for question in answered)
    sure_and_wrong = [question for question in answered if not question.unknown and not question.right]
    sure_and_wrong.sort(key=lambda question: (question.entropy, question.question_id))
    return QuadrantRound(
        round=round_,
        judge=judge,
        threshold=run.rounds("entropy")[round_].facts["threshold"],
        known_right=counts[False, True],
        known_wrong=counts[False, False],
        unknown_right=counts[True, True],
        unknown_wrong=counts[True, False],
        unanswered=unanswered,
        right_entropies=np.array([question.entropy for question in answered if question.right]),
        wrong_entropies=np.array([question.entropy for question in answered if not question.right]),
        rankings=_rankings(run, round_, answered),
        sure_and_wrong=sure_and_wrong[:SURE_AND_WRONG_EXAMPLES],
    )


def _rankings(run: Run, round_: int, answered: list[Asked]) -> list[Ranking]:
    """Semantic entropy on all questions; entropy and probe on the probe's test part, which it was not fitted on."""
    every = {question.question_id: question for question in answered}
    rankings = [_ranking("semantic entropy", "all sampled", answered, {i: q.entropy for i, q in every.items()})]
    probe = run.rounds("probe").get(round_)
    if probe is None or not probe.facts["fitted"]:
        return rankings
    predictions = run.table(probe, "predictions.parquet", ["question_id", "part", "p_unknown"])
    held_out = predictions.filter(pc.equal(predictions["part"], "test"))
    p_unknown = dict(zip(held_out["question_id"].to_pylist(), held_out["p_unknown"].to_pylist(), strict=True))
    rows = [question for question in answered if question.question_id in p_unknown]
    rankings.append(_ranking("semantic entropy", "probe's test part", rows, {q.question_id: q.entropy for q in rows}))
    rankings.append(_ranking("probe, p(unknown)", "probe's test part", rows, p_unknown))
    return rankings


def _ranking(score: str, questions: str, rows: list[Asked], scores: dict[str, float]) -> Ranking:
    wrong = np.array([not question.right for question in rows], bool)
    return Ranking(score, questions, len(rows), auroc(wrong, [scores[question.question_id] for question in rows]))


def examples(run: Run) -> dict[str, list[Asked]]:
    """Questions of the first round with low, middle (nearest to half of the highest) and high semantic entropy."""
    rounds = list(run.rounds("entropy"))
    if not rounds:
        raise NotThereError("no round has got as far as semantic entropy")
    asked = sorted(_asked(run, rounds[0]), key=lambda question: (question.entropy, question.question_id))
    n = min(EXAMPLES_A_LEVEL, len(asked) // 3)
    if n == 0:
        raise NotThereError("fewer than three questions were sampled")
    middle = asked[-1].entropy / 2
    between = sorted(asked[n:-n], key=lambda question: abs(question.entropy - middle))[:n]
    return {"low": asked[:n], "middle": sorted(between, key=lambda question: question.entropy), "high": asked[-n:]}


def forgetting(run: Run) -> dict[str, Forgetting]:
    """Learned and forgotten after each round, against the untrained model, by test set.

    Raises:
        NotThereError: no test set, or no round was evaluated.
    """
    found = {}
    for test_set, curve in learning_curves(run).items():
        points = {point.round: point for point in curve if point.round is not None}
        if points:
            found[curve_name(run, test_set)] = Forgetting(points, _forgotten(run, test_set, max(points)))
    if not found:
        raise NotThereError("no round was evaluated yet")
    return found


def _forgotten(run: Run, test_set: str, last_round: int) -> list[Forgotten]:
    by_round = evaluations(run, test_set)
    columns = ["question_id", "question", "prediction", "answers", "correct", "known_before"]
    last = run.table(by_round[last_round], columns=columns)
    lost = last.filter(pc.and_(last["known_before"], pc.less(last["correct"], 1.0))).sort_by("question_id")
    baseline = run.table(by_round[None], columns=["question_id", "prediction"])
    before = dict(zip(baseline["question_id"].to_pylist(), baseline["prediction"].to_pylist(), strict=True))
    rows = lost.slice(0, FORGOTTEN_EXAMPLES).to_pylist()
    return [Forgotten(row["question"], before[row["question_id"]], row["prediction"], row["answers"]) for row in rows]


def _asked(run: Run, round_: int) -> list[Asked]:
    """The probing set of a round: samples, clusters and gold answers brought together."""
    samples = run.rounds("samples").get(round_)
    if samples is None:
        raise NotThereError(f"round {round_} has no samples")
    said = run.table(samples, columns=["question_id", "generations", "greedy"])
    said_of = {row["question_id"]: row for row in said.to_pylist()}
    columns = ["question_id", "question", "semantic_entropy", "label", "cluster_ids"]
    clusters = run.table(run.rounds("entropy")[round_], columns=columns)
    gold = _gold_answers(run, clusters["question_id"])
    reading = _reading(run)
    return [
        _ask(row, said_of[row["question_id"]], gold, reading) for row in clusters.to_pylist() if row["question_id"] in said_of
    ]


def _reading(run: Run) -> Reading:
    """As the run compared answers."""
    how = run.settings.get("evaluation.extract")
    extract = Extract(how, run.settings.get("evaluation.extract_pattern") or "") if how else None
    return Reading(run.settings.get("normalize") or "unicode", extract)


def _ask(row: dict[str, Any], said: dict[str, Any], gold: dict[str, list[str]], reading: Reading) -> Asked:
    accepted = gold.get(row["question_id"], [])
    accepted_exactly = judge_answers([row["question"]], [said["greedy"] or ""], [accepted], None, reading)[0].exact_match
    return Asked(
        question_id=row["question_id"],
        question=row["question"],
        entropy=row["semantic_entropy"],
        unknown=row["label"] == 1,
        cluster_ids=row["cluster_ids"],
        generations=said["generations"],
        greedy=said["greedy"],
        gold=accepted,
        right=accepted_exactly,
    )


def _gold_answers(run: Run, question_ids: pa.ChunkedArray) -> dict[str, list[str]]:
    """Gold answers of these questions, read file by file: the pool may be far larger than the probing set."""
    source = run.store.manifest.get("answers") or run.store.manifest.get("pool")
    if source is None:
        return {}
    wanted = question_ids.combine_chunks()
    answers: dict[str, list[str]] = {}
    for file in run.storage(source).parquet_files():
        table = run.table(source, file, ["question_id", "answers"])
        table = table.filter(pc.and_(pc.is_in(table["question_id"], wanted), pc.is_valid(table["answers"])))
        answers.update(zip(table["question_id"].to_pylist(), table["answers"].to_pylist(), strict=True))
    return answers
