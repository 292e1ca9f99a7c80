"""Workers that hold a judge: Ray Data actors that cluster answers by meaning (entropy), or hold them against accepted ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from ka2l_ray import schema
from ka2l_ray.config import EntropyConfig, JudgeSettings
from ka2l_ray.reading import Reading
from ka2l_ray.seeds import derive_seed
from ka2l_ray.semantics.abstention import abstains, expanded, without_answer
from ka2l_ray.semantics.cache import CachedJudge
from ka2l_ray.semantics.clustering import Judge, cluster_answers, majority_answer
from ka2l_ray.semantics.correctness import Correctness, judge_answers
from ka2l_ray.semantics.entropy import entropy_bounds, semantic_entropy
from ka2l_ray.semantics.judges import make_judge
from ka2l_ray.semantics.judges.llm import LLMJudge
from ka2l_ray.semantics.paragraphs import mostly_paragraphs


class ClusterBatch:
    """Samples in, ``schema.CLUSTERS`` rows out.

    Args:
        reading: what of an answer is compared, and its normal form.
        asked: answers of a question whose label was not decided while sampling; None: all that a row has.
        decided_at: nats; the threshold at which a label counts as decided, where one was given beforehand.
    """

    def __init__(self, config: EntropyConfig, reading: Reading, asked: int | None, decided_at: float | None) -> None:
        torch.set_num_threads(1)
        self.config, self.reading = config, reading
        self.asked, self.decided_at = asked, decided_at
        self.patterns = expanded(config.abstention_patterns)

    @cached_property
    def model(self) -> Judge:
        """Loaded with the first batch: what is wrong comes back as that batch's error."""
        return make_judge(self.config, self.reading.normalize)

    @cached_property
    def judge(self) -> Judge:
        """Asks no model what an earlier run has asked it."""
        return _cached(self.model, self.config.cache)

    def __call__(self, batch: pa.Table) -> pa.Table:
        batch = batch.filter(pc.is_valid(batch["generations"]))  # a question that could not be sampled has none
        questions = batch["question"].to_pylist()
        said = [[text.strip() for text in row] for row in batch["generations"].to_pylist()]
        answers = [[self.reading.answer(text) for text in row] for row in said]
        declined = self._declined(questions, said)
        declines = [
            [not answer or (q, text) in declined for text, answer in zip(texts, row, strict=True)]
            for q, texts, row in zip(questions, said, answers, strict=True)
        ]
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
            declines=None if self.config.abstentions == "known" else declines,
        )
        entropies = [self._entropy(c.cluster_ids, len(row)) for c, row in zip(found, answers, strict=True)]
        cut = _cut(batch, answers)
        silent = [
            bool(without_answer(np.array(c.cluster_ids), np.array(row[: len(c.cluster_ids)], bool)))
            for c, row in zip(found, declines, strict=True)
        ]
        majority = [majority_answer(row[: len(c.cluster_ids)], c.cluster_ids) for c, row in zip(found, said, strict=True)]
        columns = {
            "question_id": batch["question_id"],
            "question": batch["question"],
            "semantic_entropy": [entropy for entropy, _ in entropies],
            "bound": [bound for _, bound in entropies],
            "cluster_ids": [c.cluster_ids for c in found],
            "majority_answer": majority,
            "judge_calls": [c.counts.judge_calls for c in found],
            "cached_verdicts": [c.counts.cached for c in found],
            "reference_calls": [c.counts.reference_calls for c in found],
            "empty_answers": [c.counts.empty_answers for c in found],
            "drawn": [len(row) for row in answers],
            "abstentions": [sum(row) - c.counts.empty_answers for row, c in zip(declines, found, strict=True)],
            "cut_answers": [sum(row) for row in cut],
            "declines": [row[: len(c.cluster_ids)] for row, c in zip(declines, found, strict=True)],
            "abstains": silent,
            "replayable": [
                not without and _whole_answer(most, texts, declining, ended)
                for without, most, texts, declining, ended in zip(silent, majority, said, declines, cut, strict=True)
            ],
            "paragraph": [mostly_paragraphs(row) for row in answers],
            "truncated": [c.counts.truncated for c in found],
            "unparsable": [c.counts.unparsable for c in found],
            "triples": [c.triples for c in found],
            "non_transitive_triples": [c.non_transitive_triples for c in found],
        }
        return pa.table(columns, schema=schema.CLUSTERS)

    def _declined(self, questions: Sequence[str], answers: Sequence[Sequence[str]]) -> set[tuple[str, str]]:
        """The (question, answer) pairs that decline to answer: by the patterns, then in the judge's eyes where it is asked."""
        texts = dict.fromkeys((q, text) for q, row in zip(questions, answers, strict=True) for text in row if text)
        found = {(q, text) for q, text in texts if abstains(text, q, self.patterns)}
        prompt, left = self.config.abstention_prompt, [each for each in texts if each not in found]
        if prompt is not None and left:
            assert isinstance(self.model, LLMJudge)
            said = self.model.abstains([q for q, _ in left], [text for _, text in left], prompt)
            found.update(each for each, declines in zip(left, said, strict=True) if declines)
        return found

    def _entropy(self, cluster_ids: list[int], drawn: int) -> tuple[float, str]:
        """(semantic entropy, ``exact``), or the bound that decides the label where answers were left undrawn or unsettled."""
        answers = self.asked or drawn
        if self.decided_at is None or len(cluster_ids) >= answers:
            return semantic_entropy(cluster_ids), "exact"
        least, greatest = entropy_bounds(cluster_ids, answers)
        return (least, "lower") if least >= self.decided_at else (greatest, "upper")


def _cut(batch: pa.Table, answers: Sequence[Sequence[str]]) -> list[list[bool]]:
    """Whether each answer was cut at the greatest length; not where nothing is known of it."""
    reasons = batch["finish_reasons"].to_pylist() if "finish_reasons" in batch.column_names else [None] * len(answers)
    return [[each == "length" for each in row or [None] * len(texts)] for row, texts in zip(reasons, answers, strict=True)]


def _whole_answer(majority: str, answers: Sequence[str], declines: Sequence[bool], cut: Sequence[bool]) -> bool:
    """Whether the majority answer answers, and ended by itself once at least."""
    said = [i for i, text in enumerate(answers) if text == majority]
    return not declines[said[0]] and not all(cut[i] for i in said)


class CorrectBatch:
    """Predictions with accepted answers in, ``schema.CORRECTNESS`` rows out."""

    def __init__(self, settings: JudgeSettings, reading: Reading) -> None:
        torch.set_num_threads(1)
        self.settings, self.reading = settings, reading

    @cached_property
    def judge(self) -> Judge:
        """Loaded with the first batch: what is wrong comes back as that batch's error."""
        return _cached(make_judge(self.settings, self.reading.normalize, directed=True), self.settings.cache)

    def __call__(self, batch: pa.Table) -> pa.Table:
        questions, predictions, accepted = (batch[name].to_pylist() for name in ("question", "prediction", "answers"))
        found = judge_answers(questions, predictions, accepted, self.judge, self.reading)
        return correctness_table(batch["question_id"].to_pylist(), found)


def correctness_table(question_ids: list[str], found: list[Correctness]) -> pa.Table:
    """``schema.CORRECTNESS`` rows."""
    columns = {
        "question_id": question_ids,
        "correct": [each.correct for each in found],
        "exact_match": [each.exact_match for each in found],
        "judge_calls": [each.judge_calls for each in found],
        "cached_verdicts": [each.cached for each in found],
        "truncated": [each.truncated for each in found],
        "unparsable": [each.unparsable for each in found],
    }
    return pa.table(columns, schema=schema.CORRECTNESS)


def _cached(judge: Judge, cache: str | None) -> Judge:
    return CachedJudge(judge, cache) if cache is not None else judge
