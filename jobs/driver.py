"""The driver: KA2L's Algorithm 1, round after round, until a stopping rule holds.

Everything it does is a stage that commits an artefact, so going on after any end is doing the same again: what is
committed is kept.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ka2l_ray.acquisition import strategy
from ka2l_ray.actors.engines import Engines
from ka2l_ray.actors.language_model import Model
from ka2l_ray.actors.placement import cluster_nodes, with_gpus
from ka2l_ray.config import RunConfig
from ka2l_ray.evaluation import headline, measure
from ka2l_ray.jobs.checks import check_answers, check_budget, check_columns, check_resources, hold_config
from ka2l_ray.jobs.stages.annotate import annotate, known_rows, replay
from ka2l_ray.jobs.stages.correctness import greedy_correctness
from ka2l_ray.jobs.stages.entropy import entropy
from ka2l_ray.jobs.stages.evaluate import evaluate
from ka2l_ray.jobs.stages.finetune import finetune
from ka2l_ray.jobs.stages.hidden_states import hidden_states
from ka2l_ray.jobs.stages.labels import Decided
from ka2l_ray.jobs.stages.near_duplicates import near_duplicates
from ka2l_ray.jobs.stages.probe import probe
from ka2l_ray.jobs.stages.questions import answer_key, check_test_sets, count_answered, draw, of_test_set, questions
from ka2l_ray.jobs.stages.sample import sample
from ka2l_ray.jobs.stages.score import score, score_by_semantic_entropy
from ka2l_ray.jobs.stages.select import select
from ka2l_ray.ledger import Ledger
from ka2l_ray.models.model_files import model_bytes
from ka2l_ray.semantics.judges import judge_gpus
from ka2l_ray.store.artefacts import Artefact, RunStore

logger = logging.getLogger(__name__)

# Below this share of what is wanted, missing replay rows are not worth a pass of the model and the judge.
REPLAY_SHORTFALL = 0.1


@dataclass
class RunResult:
    """How a run ended."""

    rounds: int
    labels: int
    stopped: str
    evaluations: dict[str, list[Artefact]] = field(default_factory=dict)
    """Of each test set, from the untrained model on."""


def run(config: RunConfig, store: RunStore) -> RunResult:
    """The whole loop (KA2L Algorithm 1, repeated). The store must be locked, Ray connected.

    Raises:
        UserError: wrong input, or a run directory of another configuration.
    """
    config = with_gpus(config, cluster_nodes())
    check_resources(config)
    hold_config(config, store)
    engines = Engines(config.engine, lora_rank=config.finetune.lora_rank)
    try:
        return _Loop(config, store, engines).run()
    finally:
        engines.release()


class _Loop:
    """State of the loop: labels so far, the model of this round."""

    def __init__(self, config: RunConfig, store: RunStore, engines: Engines) -> None:
        self.config, self.store, self.engines = config, store, engines
        self.base = Model(config.model, config.prompt)
        self.ledger = Ledger(store)
        self.use_gpu = config.engine.gpus_each > 0
        self.annotations: list[Artefact] = []
        self.replays: list[Artefact] = []
        self.labelled: frozenset[str] = frozenset()
        self.tests: dict[str, Artefact] = {}
        self.evaluations: dict[str, list[Artefact]] = {}
        self.previous_probe: Artefact | None = None
        self.decided: Decided | None = None

    def run(self) -> RunResult:
        pool, answers = self._read_questions()
        self._evaluate("baseline/evaluation", self.base)

        model, stopped, round_ = self.base, None, 0
        while stopped is None:
            at = f"rounds/{round_:03d}"
            probing = self._draw_probing_set(at, round_, pool)
            samples = self._sample(f"{at}/samples", probing, model, round_)
            states = self._hidden_states(f"{at}/hidden_states", probing, model)
            uncertainty = self._entropy(f"{at}/entropy", samples, self.decided)
            self._keep_rule(uncertainty)
            self._judge_greedy_answers(f"{at}/correctness", samples, answers)
            classifier = self._probe(at, states, uncertainty)
            scores = self._score(f"{at}/scores", pool, model, classifier, uncertainty)
            stopped = self._nothing_to_spend_on(scores, uncertainty)
            if stopped is not None:
                break
            chosen = self._select(f"{at}/selection", scores, round_)
            self.annotations.append(annotate(self.store, f"{at}/annotations", selection=chosen, answers=answers))
            self.labelled |= frozenset(_ids(chosen))
            self._replay(at, pool, scores, uncertainty, model, round_)
            model = self._finetune(f"{at}/adapter", model)
            self._evaluate(f"{at}/evaluation", model)
            round_ += 1
            self.ledger.round_done(round_, len(self.labelled))
            stopped = self._stopping_rule(round_, pool, scores)
        logger.info("stopped after %d rounds and %d labels: %s", round_, len(self.labelled), stopped)
        self.store.log_metric("stopped", stopped, round=round_, labels=len(self.labelled))
        return RunResult(round_, len(self.labelled), stopped, self.evaluations)

    def _read_questions(self) -> tuple[Artefact, Artefact]:
        """(pool, where its labels come from); the test sets besides, held against the pool."""
        config, form, shown = self.config, self.config.normalize, self.config.prompt.options
        pool = questions(self.store, "pool", path=config.pool.questions, form=form, shown=shown)
        check_budget(config, pool.facts["rows"])
        check_columns(config, pool.facts["rows"], pool.facts["with_options"])
        answers = pool
        if config.annotation.answers:
            answers = answer_key(self.store, "answers", path=config.annotation.answers, form=form, shown=shown)
        check_answers(config, pool.facts["rows"], count_answered(pool, answers))
        for name, held in config.pool.test_sets.items():
            at = of_test_set("test", name)
            self.tests[name] = questions(self.store, at, path=held.path, form=form, shown=shown, answered=True)
        kinds = {name: (held.kind, self.tests[name]) for name, held in config.pool.test_sets.items()}
        check_test_sets(pool, kinds, form)
        for name, test in self.tests.items():
            near_duplicates(self.store, of_test_set("near_duplicates", name), pool=pool, test=test)
        return pool, answers

    def _make_room(self, workers: int, *, gpus: float, cpus: float = 1, memory: float = 0) -> None:
        """Before a stage of other workers than the language model's; ``gpus``, ``cpus`` and ``memory`` (bytes) are of each."""
        self.engines.make_room(workers * cpus, workers * gpus, workers * memory)

    def _draw_probing_set(self, at: str, round_: int, pool: Artefact) -> Artefact:
        return draw(
            self.store,
            f"{at}/probing_set",
            source=pool,
            size=self.config.pool.probing_size,
            allowed=None,
            exclude=self.labelled,
            seed=(self.config.seed, "probing set", round_),
        )

    def _sample(self, name: str, asked: Artefact, model: Model, round_: int) -> Artefact:
        return sample(
            self.store,
            name,
            questions=asked,
            model=model,
            sampling=self.config.sampling,
            engine=self.config.engine,
            seed=(self.config.seed, round_),
            engines=self.engines,
            until=self.config.entropy,
            reading=self.config.reading,
        )

    def _entropy(self, name: str, samples: Artefact, decided: Decided | None) -> Artefact:
        share = 1.0 if self.use_gpu else 0.0
        self._make_room(self.config.entropy.replicas, gpus=judge_gpus(self.config.entropy, share))
        return entropy(
            self.store,
            name,
            samples=samples,
            config=self.config.entropy,
            reading=self.config.reading,
            decided=decided,
            gpus=share,
        )

    def _judge_greedy_answers(self, name: str, samples: Artefact, answers: Artefact) -> None:
        """For the report, which holds exact match against answers itself: entropy against correctness by another judge."""
        if self.config.evaluation.judge != "exact":
            greedy_correctness(
                self.store,
                name,
                samples=samples,
                answers=answers,
                config=self.config.evaluation,
                reading=self.config.reading,
                engines=self.engines,
            )

    def _keep_rule(self, uncertainty: Artefact) -> None:
        """Rule ``auto`` is decided once: round 0's rule and threshold stand for the run, and "unknown" means one thing in it."""
        if self.config.entropy.rule != "auto" or self.decided is not None:
            return
        self.decided = Decided.by(uncertainty)
        rule, at = self.decided
        why = "Eq. 3's constant" if rule == "ka2l" else "Eq. 3's constant leaves one class less than a twentieth of the questions"
        logger.info("entropy.rule auto takes %s for this run, known below %.3f nats: %s", rule, at, why)
        self.store.log_metric("entropy_rule", rule, threshold=at)

    def _hidden_states(self, name: str, asked: Artefact, model: Model) -> Artefact:
        return hidden_states(
            self.store,
            name,
            questions=asked,
            model=model,
            layers=self.config.probe.layers,
            engine=self.config.engine,
            engines=self.engines,
            position=self.config.probe.position,
        )

    def _probe(self, at: str, states: Artefact, uncertainty: Artefact) -> Artefact | None:
        """This round's probe, or None where its labels leave nothing to tell apart."""
        self._make_room(self.config.probe.workers, gpus=self.use_gpu)
        fitted = probe(
            self.store,
            f"{at}/probe",
            hidden_states=states,
            entropy=uncertainty,
            config=self.config.probe,
            seed=self.config.seed,
            previous=self.previous_probe,
            use_gpu=self.use_gpu,
        )
        if not fitted.facts["fitted"]:
            logger.warning("%s; questions are ranked by semantic entropy instead", fitted.facts["reason"])
            return None
        self.previous_probe = fitted
        return fitted

    def _score(self, name: str, pool: Artefact, model: Model, classifier: Artefact | None, uncertainty: Artefact) -> Artefact:
        needs = strategy(self.config.selection.strategy).needs
        # Without a probe a strategy that needs no score still wants the whole pool, and the model's entropy costs no probe.
        wants_entropy = "next_token_entropy" in needs or (classifier is None and not needs)
        if "semantic_entropy" in needs or (classifier is None and not wants_entropy and "option_entropy" not in needs):
            return score_by_semantic_entropy(self.store, name, entropy=uncertainty)
        return score(
            self.store,
            name,
            questions=pool,
            exclude=self.labelled,
            model=model,
            probe=classifier,
            next_token_entropy=wants_entropy,
            option_entropy="option_entropy" in needs,
            engine=self.config.engine,
            engines=self.engines,
        )

    def _nothing_to_spend_on(self, scores: Artefact, uncertainty: Artefact) -> str | None:
        """Why no label can be spent this round, if so."""
        needs = strategy(self._strategy(scores)).needs
        if "semantic_entropy" in needs:
            bounds = uncertainty.storage.read_table("", columns=["bound"])["bound"].to_pylist()
            entropies = scores.storage.read_table("", columns=["semantic_entropy"])["semantic_entropy"].to_numpy()
            if set(bounds) != {"exact"}:
                return (
                    "nothing can be ranked: no probe could be fitted, and semantic entropies are bounds; "
                    "leave out sampling.stop_when_decided and entropy.label_only"
                )
            if not len(entropies):
                return "nothing can be ranked: no probe could be fitted, and every sampled question abstains and was dropped"
            if np.ptp(entropies) == 0:
                return (
                    f"nothing can be ranked: no probe could be fitted, and all {len(entropies)} sampled questions have the "
                    f"same semantic entropy, {entropies[0]:.3f} nats"
                )
        return None

    def _strategy(self, scores: Artefact) -> str:
        """The configured strategy, or ``semantic_entropy`` where it needs a probe and there is none."""
        wanted = self.config.selection.strategy
        if scores.facts.get("ranked_by") == "semantic_entropy" and strategy(wanted).needs:
            return "semantic_entropy"
        return wanted

    def _select(self, name: str, scores: Artefact, round_: int) -> Artefact:
        if name in self.store.manifest:  # chosen before; a limit changed since does not undo it
            budget = self.store.manifest[name].facts["rows"]
            return self._selection(name, scores, round_, budget)
        budget = min(self.config.selection.budget, scores.facts["rows"] - scores.facts.get("errors", 0))
        if self.config.stopping.max_labels is not None:
            budget = min(budget, self.config.stopping.max_labels - len(self.labelled))
        if budget < self.config.selection.budget:
            logger.warning("%s: only %d questions can be chosen from, not %d", name, budget, self.config.selection.budget)
        return self._selection(name, scores, round_, budget)

    def _selection(self, name: str, scores: Artefact, round_: int, budget: int) -> Artefact:
        return select(
            self.store,
            name,
            scores=scores,
            strategy=self._strategy(scores),
            budget=budget,
            labelled=self.labelled,
            seed=(self.config.seed, round_),
        )

    def _replay(self, at: str, pool: Artefact, scores: Artefact, uncertainty: Artefact, model: Model, round_: int) -> None:
        """Known, unlabelled questions with the model's own majority answer as target: no label is spent.

        Those of the probing set are there already, answers and all; where they are clearly too few, predicted-known
        questions of the pool are sampled besides.
        """
        wanted = round(self.config.finetune.replay_known * self.annotations[-1].facts["rows"])
        if not wanted:
            return
        spent = self.labelled.union(*(_ids(artefact) for artefact in self.replays))
        entropies = [uncertainty]
        lacking = wanted - len(known_rows(uncertainty, spent))
        if lacking > REPLAY_SHORTFALL * wanted and "predicted_unknown" in scores.facts:
            asked = draw(
                self.store,
                f"{at}/replay_questions",
                source=pool,
                size=lacking,
                allowed=_predicted_known(scores),
                exclude=spent.union(_ids(uncertainty)),
                seed=(self.config.seed, "replay questions", round_),
            )
            if asked.facts["rows"]:
                entropies.append(self._replay_entropy(at, asked, uncertainty, model, round_))
        drawn = replay(
            self.store, f"{at}/replay", entropies=entropies, exclude=spent, size=wanted, seed=(self.config.seed, "replay", round_)
        )
        if drawn.facts["rows"]:
            self.replays.append(drawn)

    def _replay_entropy(self, at: str, asked: Artefact, uncertainty: Artefact, model: Model, round_: int) -> Artefact:
        samples = self._sample(f"{at}/replay_samples", asked, model, round_)
        return self._entropy(f"{at}/replay_entropy", samples, Decided.by(uncertainty))

    def _finetune(self, name: str, model: Model) -> Model:
        """M_{r+1}: from the base on all labels so far, or from the last adapter on the new ones."""
        config = self.config.finetune
        memory = 0 if self.use_gpu else model_bytes(self.config.model)
        self._make_room(config.workers, gpus=self.use_gpu, cpus=config.reserved_cpus, memory=memory)
        whole = config.start == "base"
        rows = [*self.annotations, *self.replays] if whole else [self.annotations[-1], *self.replays[-1:]]
        adapter = finetune(
            self.store,
            name,
            annotations=rows,
            model=self.base if whole else model,
            config=config,
            seed=self.config.seed,
            use_gpu=self.use_gpu,
        )
        return Model(self.config.model, self.config.prompt, adapter.url, adapter.key)

    def _evaluate(self, name: str, model: Model) -> None:
        """Evaluate ``model`` on every test set, each against the untrained model's evaluation of it."""
        for test_set, test in self.tests.items():
            done = self.evaluations.setdefault(test_set, [])
            done.append(
                evaluate(
                    self.store,
                    of_test_set(name, test_set),
                    test=test,
                    model=model,
                    sampling=self.config.sampling,
                    config=self.config.evaluation,
                    engine=self.config.engine,
                    seed=(self.config.seed,),
                    engines=self.engines,
                    before=done[0] if done else None,
                    reading=self.config.reading,
                )
            )
            logger.info("%s: %s", of_test_set(name, test_set), headline(done[-1].facts))

    def _stopping_rule(self, round_: int, pool: Artefact, scores: Artefact) -> str | None:
        """The first rule that holds after ``round_`` rounds, in words."""
        stopping = self.config.stopping
        if stopping.max_labels is not None and len(self.labelled) >= stopping.max_labels:
            return f"the budget of {stopping.max_labels} labels is spent"
        if round_ >= stopping.max_rounds:
            return f"the number of rounds, {stopping.max_rounds}, is reached"
        if len(self.labelled) >= pool.facts["rows"]:
            return "every question of the pool is labelled"
        if "predicted_unknown" in scores.facts:
            share = scores.facts["predicted_unknown"] / max(1, scores.facts["rows"])
            if share < stopping.min_unknown_share:
                return f"the share predicted unknown, {share:.3f}, is below {stopping.min_unknown_share}"
        watched, evaluations = self._watched()
        if stopping.plateau_rounds is not None and len(evaluations) > stopping.plateau_rounds:
            curve = [e.facts["accuracy"] for e in evaluations]
            best_before = max(curve[: -stopping.plateau_rounds])
            if max(curve[-stopping.plateau_rounds :]) < best_before + stopping.plateau_gain:
                what = measure(self.config.evaluation.judge)
                return f"{what} on {watched} has not risen by {stopping.plateau_gain} in {stopping.plateau_rounds} rounds"
        return None

    def _watched(self) -> tuple[str, list[Artefact]]:
        """(in words, evaluations) of the test set that a plateau is looked for on: the first transductive one, on which labels
        pay, else the first."""
        sets = self.config.pool.test_sets
        name = next((name for name, held in sets.items() if held.kind == "transductive"), next(iter(sets), ""))
        said = f"the test set '{name}' ({sets[name].kind})" if name else "the test set"
        return said, self.evaluations.get(name, [])


def _predicted_known(scores: Artefact) -> pa.Array:
    """Ids with p(unknown) < 0.5."""
    table = scores.storage.read_table("", columns=["question_id", "p_unknown"])
    return table.filter(pc.less(table["p_unknown"], 0.5))["question_id"].combine_chunks()


def _ids(artefact: Artefact) -> list[str]:
    ids: list[str] = artefact.storage.read_table("", columns=["question_id"])["question_id"].to_pylist()
    return ids
