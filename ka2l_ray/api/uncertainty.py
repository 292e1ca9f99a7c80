"""``Uncertainty``: what a model does not know, by semantic entropy of its sampled answers (KA2L section 3.2.1-2)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ka2l_ray.api.given import Given, read_questions
from ka2l_ray.api.model import PromptedModel
from ka2l_ray.api.table import Table
from ka2l_ray.config import EntropyConfig, SamplingConfig
from ka2l_ray.config_files import validate_section
from ka2l_ray.errors import UserError
from ka2l_ray.models.sampling import Generation
from ka2l_ray.reading import READING
from ka2l_ray.semantics.abstention import abstains, without_answer
from ka2l_ray.semantics.clustering import Clustering, Judge, cluster_answers, majority_answer
from ka2l_ray.semantics.correctness import judge_answers
from ka2l_ray.semantics.entropy import auto_threshold, labels, threshold
from ka2l_ray.semantics.judges import make_judge
from ka2l_ray.semantics.judges.nli import NLIJudge
from ka2l_ray.uncertainty.scores import answer_scores, column_of

NAMED_JUDGES = ("exact", "contains", "nli", "embedding")


class Uncertainty:
    """Samples answers to questions, clusters them by meaning, and says how uncertain that shows the model to be.

    Args:
        model: directory, hub name or ``bundled:student``; a loaded transformers or PEFT model; or the ``model`` of another
            scorer, probe or learner. Left out: only answers that were sampled elsewhere can be scored, by ``of``.
        tokenizer: of a loaded model.
        judge: who says that two answers mean the same: ``exact``, ``contains``, ``nli``, ``embedding`` (default models), a path
            or hub name of an NLI model, ``bundled:judge``, or a judge (``ka2l_ray.semantics.judges``).
        correctness: who says that the greedy answer is right, where accepted answers are given: the same names, or a judge made
            ``directed``. ``exact`` is exact match, which counts whatever the judge.
        k: answers a question.
        temperature: of the k answers.
        top_p: the k answers are drawn from the likeliest tokens with this probability.
        top_k: the k answers are drawn from so many likeliest tokens; None: from all.
        max_tokens: longest answer.
        stop: an answer ends before any of these texts.
        prompt: how a question is put: keys of the configuration's ``prompt``, such as ``instruction`` and ``examples``.
        rule: threshold between known and unknown: ``ka2l`` (0.5 nats), ``two_means``, ``quantile`` (the median), ``fixed``, or
            ``auto``: ``ka2l``, unless it leaves one class less than a twentieth of a table. All but ``ka2l`` and ``fixed`` are
            found anew for each table.
        abstentions: label of a question that goes without an answer, as silence and "I don't know" together outnumber every
            meaning: ``unknown``, or ``known`` where its semantic entropy says so.
        fixed: nats, of the rule of that name.
        seed: of all samples.
        device: for a path: as torch names it; left out: the first GPU, or the CPU where there is none.

    Raises:
        UserError: something of this is not there, or of another kind.
    """

    def __init__(
        self,
        model: Any = None,
        tokenizer: Any = None,
        *,
        judge: str | Judge = "nli",
        correctness: str | Judge = "exact",
        k: int = 10,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int | None = None,
        max_tokens: int = 64,
        stop: str | Sequence[str] = ("\n",),
        prompt: Mapping[str, Any] | None = None,
        rule: Literal["auto", "ka2l", "two_means", "quantile", "fixed"] = "ka2l",
        fixed: float = 0.5,
        abstentions: Literal["unknown", "known"] = "unknown",
        seed: int = 0,
        device: str | None = None,
    ) -> None:
        drawn = {
            "k": k,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "max_tokens": max_tokens,
            "stop": [stop] if isinstance(stop, str) else list(stop),
        }
        self.sampling = validate_section(SamplingConfig, drawn, "Uncertainty")
        self.entropy = validate_section(
            EntropyConfig, {"rule": rule, "threshold": fixed, "abstentions": abstentions}, "Uncertainty"
        )
        self.seed = int(seed)
        self.model = None if model is None else PromptedModel.of(model, tokenizer, prompt, device)
        self.judge = _judge(judge, device)
        self.correctness = None if correctness == "exact" else _judge(correctness, device, directed=True)

    def score(self, questions: Any) -> Table:
        """Answers, meanings, entropy and label of each question.

        A question's answers depend on the seed, the model, the prompt and the settings: not on the questions beside it.

        Args:
            questions: list, Series, array or Arrow column of texts; or rows with a ``question`` and, where there are, ``id`` and
                accepted ``answers`` (DataFrame, Arrow table, list of dictionaries).

        Returns:
            A table with ``question_id``, ``question``; ``generations`` (k texts), ``cluster_ids`` (the meaning of each),
            ``meanings`` (the commonest text of each), ``majority_answer``, ``greedy`` (the greedy-like answer);
            ``semantic_entropy`` (nats) and the other scores of ``uncertainty.scores``, each higher where the model seems to know
            less; ``abstains``, ``label`` (1 unknown, 0 known). With accepted answers also these, ``exact_match`` (the greedy
            answer is among them) and ``correct`` (so says ``correctness``). ``facts`` hold the threshold and the share unknown.
        """
        if self.model is None:
            raise UserError("this scorer has no model to sample from; make one as Uncertainty(model), or score answers with of()")
        given = read_questions(questions)
        sampled = self.model.sample(given.questions, self.sampling, seed=self.seed)
        likelihoods = [[_log_likelihood(each) for each in row] for row in sampled]
        return self._table(
            given,
            [[each.text for each in row[:-1]] for row in sampled],
            [row[:-1] for row in likelihoods],
            greedy=[row[-1].text for row in sampled],
            greedy_likelihoods=[row[-1] for row in likelihoods],
        )

    def of(self, answers: Any, questions: Any = None, *, log_likelihoods: Sequence[Sequence[float]] | None = None) -> Table:
        """Meanings, entropy and label of answers that were sampled elsewhere.

        Args:
            answers: (n,) lists of texts, one or more a question; or one question's list.
            questions: (n,) as in ``score``; an NLI judge reads each answer behind its question. Left out: the answers alone.
            log_likelihoods: (n,) lists of nats, the mean over each answer's tokens; adds the scores that need them.
        """
        rows = _answer_rows(answers)
        nameless = Given(
            [str(i) for i in range(len(rows))], [""] * len(rows), None, answers.index if hasattr(answers, "iloc") else None
        )
        given = nameless if questions is None else read_questions([questions] if isinstance(questions, str) else questions)
        for what, other in (("questions", given), ("lists of log-likelihoods", log_likelihoods)):
            if other is not None and len(other) != len(rows):
                raise UserError(f"{len(rows)} lists of answers for {len(other)} {what}; give as many")
        likelihoods = None
        if log_likelihoods is not None:
            likelihoods = [_finite(each, len(row), i) for i, (each, row) in enumerate(zip(log_likelihoods, rows, strict=True))]
        return self._table(given, rows, likelihoods)

    def _table(
        self,
        given: Given,
        generations: list[list[str]],
        likelihoods: list[list[float]] | None,
        *,
        greedy: list[str] | None = None,
        greedy_likelihoods: list[float] | None = None,
    ) -> Table:
        generations = [[text.strip() for text in row] for row in generations]
        found = cluster_answers(
            given.questions,
            generations,
            self.judge,
            policy=self.entropy.policy,
            strict=self.entropy.equivalence == "strict",
        )
        scores = [
            answer_scores(
                row,
                each.cluster_ids,
                None if likelihoods is None else likelihoods[i],
                None if greedy_likelihoods is None else greedy_likelihoods[i],
            )
            for i, (row, each) in enumerate(zip(generations, found, strict=True))
        ]
        entropies = np.array([row["semantic entropy"] for row in scores])
        abstaining = np.array(
            [
                without_answer(np.array(each.cluster_ids), np.array([not text or abstains(text, question) for text in row]))
                for question, row, each in zip(given.questions, generations, found, strict=True)
            ]
        )
        beside = abstaining & (self.entropy.abstentions == "unknown")
        of = entropies[~beside]
        if self.entropy.rule == "auto" or not len(of):
            rule, at = auto_threshold(of, unknown=int(beside.sum()))
        else:
            rule, at = self.entropy.rule, threshold(of, self.entropy.rule, fixed=self.entropy.threshold)
        label = np.where(beside, np.int8(1), labels(entropies, at))
        columns: dict[str, Any] = {
            "question_id": given.question_ids,
            "question": given.questions,
            "generations": generations,
            "cluster_ids": [each.cluster_ids for each in found],
            "meanings": [_meanings(row, each) for row, each in zip(generations, found, strict=True)],
            "majority_answer": [each.majority_answer for each in found],
            **({} if greedy is None else {"greedy": greedy}),
            **{column_of(name): [row[name] for row in scores] for name in scores[0]},
            "abstains": abstaining,
            "label": label,
        }
        if given.answers is not None:
            columns["answers"] = pa.array(given.answers, pa.list_(pa.string()))
            if greedy is not None:
                accepted = [right or [] for right in given.answers]
                right = judge_answers(given.questions, greedy, accepted, self.correctness, READING)
                columns["exact_match"] = [each.exact_match if of else None for each, of in zip(right, accepted, strict=True)]
                columns["correct"] = [each.correct if of else None for each, of in zip(right, accepted, strict=True)]
        facts = {
            "rule": rule,
            "threshold": at,
            "share_unknown": float(label.mean()),
            "judge_calls": sum(each.counts.judge_calls for each in found),
        }
        return Table(pa.table(columns), facts, given.index)


def _answer_rows(answers: Any) -> list[list[str]]:
    """A list of texts for each question; one list of texts is one question's."""
    table = getattr(answers, "ndim", 1) > 1 and hasattr(answers, "iloc")
    if table or isinstance(answers, str | Mapping) or not isinstance(answers, Iterable):
        raise UserError(f"answers: a {type(answers).__name__} was given; give a list of texts for each question")
    rows: list[Any] = [list(each) if isinstance(each, Iterable) and not isinstance(each, str) else each for each in answers]
    if not rows:
        raise UserError("there are no answers; give a list of texts for each question")
    if all(isinstance(each, str) for each in rows):
        rows = [rows]
    for i, row in enumerate(rows):
        if not isinstance(row, list) or not row or not all(isinstance(text, str) for text in row):
            raise UserError(f"answers of question {i}: {row!r:.80}; give a list of texts, one at least, for each question")
    return rows


def _finite(likelihoods: Any, n: int, i: int) -> list[float]:
    """The mean log-likelihoods of ``n`` answers to question ``i``."""
    found = list(likelihoods) if isinstance(likelihoods, Iterable) else []
    if len(found) != n or not all(isinstance(x, Real) and math.isfinite(x) for x in found):
        raise UserError(f"log-likelihoods of question {i}: {likelihoods!r:.80}; give a finite number for each of its answers")
    return [float(x) for x in found]


def _judge(judge: str | Judge, device: str | None, *, directed: bool = False) -> Judge:
    """A judge by name, or the one that was given."""
    if isinstance(judge, str):
        if judge == "nli":
            judge = EntropyConfig().nli_model
        if judge in NAMED_JUDGES:
            return make_judge(validate_section(EntropyConfig, {"judge": judge}, "Uncertainty"), directed=directed)
        return NLIJudge(judge, device=device)
    if not hasattr(judge, "verdicts") or not hasattr(judge, "symmetric"):
        raise UserError(
            f"a {type(judge).__name__} is no judge; give {', '.join(NAMED_JUDGES)}, a path, "
            "or an object with verdicts() and symmetric"
        )
    return judge


def _log_likelihood(generation: Generation) -> float:
    """Nats, mean over the answer's tokens."""
    return float(np.mean(generation.token_logprobs))


def _meanings(answers: list[str], clustering: Clustering) -> list[str]:
    """The commonest text of each cluster, by its number."""
    ids = clustering.cluster_ids
    members = [[i for i, each in enumerate(ids) if each == cluster] for cluster in range(max(ids) + 1)]
    return [majority_answer([answers[i] for i in rows], [cluster] * len(rows)) for cluster, rows in enumerate(members)]
