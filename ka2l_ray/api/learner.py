"""``Learner``: rounds of active learning in this process (KA2L Algorithm 1): query, update, fit."""

from __future__ import annotations

import copy
import logging
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ka2l_ray.acquisition import select, strategy, strategy_of_a_run
from ka2l_ray.api.given import Given, read_questions
from ka2l_ray.api.knowledge_probe import KnowledgeProbe
from ka2l_ray.api.model import PromptedModel
from ka2l_ray.api.table import Table
from ka2l_ray.api.uncertainty import Uncertainty
from ka2l_ray.config import FinetuneConfig
from ka2l_ray.config_files import validate_section
from ka2l_ray.errors import UserError
from ka2l_ray.evaluation import METRICS, score_answer
from ka2l_ray.finetuning.rows import encode_rows
from ka2l_ray.finetuning.training import fine_tune
from ka2l_ray.models.lent import as_it_was
from ka2l_ray.models.model_files import has_adapter
from ka2l_ray.normalization import normalize_question
from ka2l_ray.probes import DegenerateLabelsError
from ka2l_ray.questions import answers_of, training_target
from ka2l_ray.seeds import derive_seed, generator

logger = logging.getLogger(__name__)

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")


class Learner:
    """Chooses the questions of a pool that are worth a label, takes the labels, and trains a LoRA adapter on them.

    The scorer, and a model that was loaded before, stay as they are: the adapter is on the model only while the learner asks it.

    Args:
        scorer: an ``Uncertainty`` with a model; how answers are sampled and labels made.
        pool: unlabelled questions, as in ``Uncertainty.score``. The same question twice is kept once. Accepted ``answers``
            that stand with them are not read.
        strategy: name of a query strategy (``ka2l_ray.acquisition.STRATEGIES``).
        probing_size: questions a round that are sampled to fit the probe.
        probe: arguments of ``KnowledgeProbe``, such as ``kind``.
        finetune: keys of the configuration's ``finetune``, such as ``epochs``, ``learning_rate``, ``lora_rank``.

    Attributes:
        labels: accepted answers by question id; None where a question was given back unanswered.
        probe: of the last query, if its strategy took one.
    """

    def __init__(
        self,
        scorer: Uncertainty,
        pool: Any,
        *,
        strategy: str = "ka2l",
        probing_size: int = 1000,
        probe: Mapping[str, Any] | None = None,
        finetune: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(scorer, Uncertainty) or scorer.model is None:
            raise UserError("a learner takes a scorer with a model; give Uncertainty(model, ...)")
        if has_adapter(scorer.model.language_model.model):
            raise UserError("the model has an adapter on it, beside which none can be trained; give model.merge_and_unload()")
        self.scorer = copy.copy(scorer)
        self.model: PromptedModel = copy.copy(scorer.model)
        self.scorer.model = self.model  # shares the weights with the scorer that was given, not the adapter
        self.pool = _distinct(read_questions(pool))
        self.strategy = _known_strategy(strategy)
        self.probing_size = int(probing_size)
        self.probe_settings = dict(probe or {})
        KnowledgeProbe(**self.probe_settings)
        self.finetune = validate_section(FinetuneConfig, finetune or {}, "finetune")
        self.labels: dict[str, list[str] | None] = {}
        self.probe: KnowledgeProbe | None = None
        self.round = 0
        self._asked: list[str] = []
        self._trained_on: set[str] = set()
        self._sampled: Table | None = None
        self._scores: tuple[list[str], dict[str, NDArray[np.float64]]] | None = None
        self._adapters = tempfile.TemporaryDirectory(prefix="ka2l-")

    def query(self, n: int) -> Table:
        """``n`` questions that are not labelled yet, the most worth a label first.

        The pool is scored once a round; a further query without ``fit`` goes on in the same ranking.

        Returns:
            A table with ``question_id``, ``question`` and ``acquisition`` (the score ranked by; null: drawn at random); its
            pandas index holds the ids.

        Raises:
            UserError: fewer than ``n`` are left.
        """
        if self._scores is None:
            self._scores = self._score()
        ids, columns = self._scores
        rows = [i for i, question_id in enumerate(ids) if question_id not in self.labels]
        if not 0 < n <= len(rows):
            raise UserError(f"{n} questions are wanted, {len(rows)} are scored and not labelled yet; ask for 1 to {len(rows)}")
        left = {name: column[rows] for name, column in columns.items()}
        name = "semantic_entropy" if list(columns) == ["semantic_entropy"] else self.strategy
        chosen, scores = select(name, left, n, generator(self.scorer.seed, "select", self.round, len(self.labels)))
        question_of = dict(zip(self.pool.question_ids, self.pool.questions, strict=True))
        self._asked = [ids[rows[i]] for i in chosen.tolist()]
        table = pa.table(
            {
                "question_id": self._asked,
                "question": [question_of[each] for each in self._asked],
                "acquisition": pa.array(scores, from_pandas=True),
            }
        )
        return Table(table, {"strategy": name, "round": self.round}, _ids_as_index(self._asked))

    def update(self, labels: Any) -> None:
        """Take labels: an answer, or several accepted ones; None: nobody knew.

        Several have no order: trained on is the one that shares the most words with the others, of equals the shortest.

        Args:
            labels: by question id (a dictionary, or a Series whose index holds the ids), a DataFrame with ``question_id`` and
                ``answers``, or a list in the order of the last query.

        Raises:
            UserError: a question that is not in the pool, labelled already, or (of a Series) was not asked.
        """
        given = self._by_id(labels)
        here = set(self.pool.question_ids)
        read: dict[str, list[str] | None] = {}
        for question_id, answers in given.items():
            if question_id not in here:
                raise UserError(f"label of '{question_id}': no question of the pool has this id")
            if question_id in self.labels:
                raise UserError(f"label of '{question_id}': it is labelled already")
            read[question_id] = answers_of(f"label of '{question_id}'", {"answers": answers})
        self.labels |= read

    def fit(self) -> dict[str, Any]:
        """Train an adapter on the labels so far, from the base model; the figures of the training.

        With ``finetune.replay_known`` it also trains on known questions of the last probing set with the model's own answers,
        which costs no label and keeps the model from forgetting.

        Raises:
            UserError: there is no label.
        """
        going_on = self.finetune.start == "last_adapter"
        new = {i: training_target(a) for i, a in self.labels.items() if a and not (going_on and i in self._trained_on)}
        if not new:
            raise UserError("there is no label to train on; give some to update() first")
        targets = {**self._replayed(len(new)), **new}
        question_of = dict(zip(self.pool.question_ids, self.pool.questions, strict=True))
        ids = sorted(targets)
        rows = encode_rows(
            self.model.prompter, [question_of[i] for i in ids], [targets[i] for i in ids], self.finetune.max_length
        )
        directory = Path(self._adapters.name) / str(self.round)
        directory.mkdir()
        language_model = self.model.language_model
        with as_it_was(language_model.model):
            start = self.model.adapter if going_on else None
            figures = fine_tune(language_model, rows, self.finetune, directory, seed=self.scorer.seed, start_adapter=start)
        self._trained_on |= set(new)
        self.model.adapter = str(directory)
        self.round += 1
        self._scores = None
        return {"labels": len(new), "replayed": len(targets) - len(new), **figures}

    def answer(self, questions: Any) -> list[str]:
        """The greedy-like answer to each question, with the adapter once there is one."""
        asked = read_questions(questions).questions
        answers = self.model.sample(asked, self.scorer.sampling, seed=self.scorer.seed, greedy_only=True)
        return [row[0].text for row in answers]

    def evaluate(self, test: Any) -> Table:
        """Greedy-like answers to questions with accepted ``answers``, and how right they are; ``facts`` hold the means.

        Raises:
            UserError: a question has no accepted answers, or stands in the pool.
        """
        given = read_questions(test)
        pool = {normalize_question(question) for question in self.pool.questions}
        for i, question in enumerate(given.questions):
            if given.answers is None or given.answers[i] is None:
                raise UserError(f"test question '{given.question_ids[i]}' has no accepted answers; give a column 'answers'")
            if normalize_question(question) in pool:
                raise UserError(
                    f"test question '{given.question_ids[i]}' stands in the pool; a test set shares no question with it"
                )
        predictions = self.answer(given.questions)
        scores = [score_answer(text, right or []) for text, right in zip(predictions, given.answers or [], strict=True)]
        names = [name for name in METRICS if scores[0].get(name) is not None]
        columns = {
            "question_id": given.question_ids,
            "question": given.questions,
            "prediction": predictions,
            "answers": given.answers,
            **{name: [row[name] for row in scores] for name in names},
        }
        facts: dict[str, Any] = {"questions": len(given), **{name: float(np.mean(columns[name])) for name in names}}  # type: ignore[arg-type]
        return Table(pa.table(columns), facts, given.index)

    def save(self, directory: str | Path) -> Path:
        """Write the adapter as PEFT has it: ``peft.PeftModel.from_pretrained(model, directory)`` loads it."""
        if self.model.adapter is None:
            raise UserError("there is no adapter yet; call fit() first")
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for name in ADAPTER_FILES:
            shutil.copyfile(Path(self.model.adapter) / name, directory / name)
        return directory

    def _score(self) -> tuple[list[str], dict[str, NDArray[np.float64]]]:
        """(ids, columns that the strategy needs) of the unlabelled pool. No label of anything is looked at."""
        needs = strategy(self.strategy).needs
        pool = self.pool.take(i for i, each in enumerate(self.pool.question_ids) if each not in self.labels)
        columns: dict[str, NDArray[np.float64]] = {}
        if "p_unknown" in needs:
            drawn = generator(self.scorer.seed, "probing set", self.round).permutation(len(pool))[: self.probing_size]
            self._sampled = self._sample(pool.take(sorted(drawn.tolist())))
            self.probe = KnowledgeProbe(self.model, seed=self.scorer.seed, **self.probe_settings)
            try:
                self.probe.fit(self._sampled)
            except DegenerateLabelsError as reason:
                logger.warning("%s; questions are ranked by semantic entropy instead, those %d alone", reason, len(drawn))
                self.probe = None
                return _ranked_by_semantic_entropy(self._sampled)
            columns["p_unknown"] = self.probe.predict_proba(pool.questions)[:, 1]
        if "next_token_entropy" in needs:
            columns["next_token_entropy"] = self.model.next_token_entropy(pool.questions).astype(np.float64)
        if "semantic_entropy" in needs:
            self._sampled = self._sample(pool)
            columns["semantic_entropy"] = _ranked_by_semantic_entropy(self._sampled)[1]["semantic_entropy"]
        return pool.question_ids, columns or {"row": np.arange(len(pool), dtype=np.float64)}

    def _sample(self, questions: Given) -> Table:
        """The scorer's table; it is given ids and texts only."""
        return self.scorer.score({"question_id": questions.question_ids, "question": questions.questions})

    def _replayed(self, labels: int) -> dict[str, str]:
        """The model's own majority answer to known, unlabelled questions of the last probing set, by id."""
        if self._sampled is None:
            return {}
        rows = self._sampled.to_arrow().select(["question_id", "majority_answer", "label", "abstains"]).to_pylist()
        known = {r["question_id"]: r["majority_answer"] for r in rows if r["label"] == 0 and not r["abstains"]}
        free = [each for each in known if each not in self.labels]
        order = sorted(free, key=lambda each: derive_seed(self.scorer.seed, "replay", self.round, each))
        return {each: known[each] for each in order[: round(self.finetune.replay_known * labels)]}

    def _by_id(self, labels: Any) -> dict[str, Any]:
        if getattr(labels, "ndim", 0) == 2:  # a DataFrame
            name = next((name for name in ("question_id", "id") if name in labels), None)
            if name is None or "answers" not in labels:
                raise UserError("a table of labels needs the columns 'question_id' and 'answers'")
            labels = dict(zip(labels[name].tolist(), labels["answers"].tolist(), strict=True))
        elif hasattr(labels, "iloc"):
            labels = dict(labels.items())
            for each in labels:
                if str(each) not in self._asked:
                    raise UserError(f"label of '{each}': it was not asked; the Series' index must hold question ids")
        if isinstance(labels, Mapping):
            return {str(question_id): _missing_as_none(answers) for question_id, answers in labels.items()}
        if isinstance(labels, str) or not isinstance(labels, Iterable):
            raise UserError(
                "labels must be a dictionary by question id, a Series, a DataFrame, or a list in the order of the query"
            )
        listed = list(labels)
        if len(listed) != len(self._asked):
            raise UserError(
                f"{len(listed)} labels for the {len(self._asked)} questions of the last query; give None for unanswered"
            )
        return dict(zip(self._asked, map(_missing_as_none, listed), strict=True))


def _known_strategy(name: str) -> str:
    found = strategy_of_a_run(name)
    if "option_entropy" in found.needs:
        raise UserError(f"strategy '{name}' ranks by options, which a learner does not read; choose another, or use ka2l run")
    return found.name


def _ranked_by_semantic_entropy(sampled: Table) -> tuple[list[str], dict[str, NDArray[np.float64]]]:
    arrow = sampled.to_arrow()
    return arrow["question_id"].to_pylist(), {"semantic_entropy": arrow["semantic_entropy"].to_numpy()}


def _distinct(given: Given) -> Given:
    """Each normalised question once, the first time it stands there; ids and texts only."""
    first: dict[str, int] = {}
    for i, question in enumerate(given.questions):
        first.setdefault(normalize_question(question) or question, i)
    if len(first) < len(given):
        logger.warning("%d questions of the pool repeat an earlier one; kept once", len(given) - len(first))
    kept = given.take(first.values())
    return Given(kept.question_ids, kept.questions, None)


def _missing_as_none(answers: Any) -> Any:
    if isinstance(answers, float) and np.isnan(answers):
        return None
    return list(answers) if isinstance(answers, tuple | np.ndarray) else answers


def _ids_as_index(ids: list[str]) -> Any:
    import pandas as pd

    return pd.Index(ids, name="id")
