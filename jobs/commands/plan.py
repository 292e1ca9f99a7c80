"""The plan of a run without running it: stages, rows, estimated bytes, and the first question's prompt."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

from ka2l_ray.actors.placement import with_gpus
from ka2l_ray.config import RunConfig
from ka2l_ray.errors import UserError
from ka2l_ray.held_out import HeldOut, check_held_out
from ka2l_ray.jobs.checks import check_answers, check_budget, check_columns, check_inputs
from ka2l_ray.jobs.session import supply
from ka2l_ray.jobs.stages.questions import answer_rows
from ka2l_ray.models.model_files import check_is_model
from ka2l_ray.models.prompt_view import view_prompt
from ka2l_ray.models.prompts import load_prompter
from ka2l_ray.near_duplicates import NearDuplicates, said
from ka2l_ray.questions import QuestionReader
from ka2l_ray.schema import MOST_TOKENS

BYTES_PER_ANSWER = 120  # text, token ids and log-probabilities of a short answer, compressed
BYTES_PER_SCORE = 80


def with_this_machines_gpus(config: RunConfig) -> RunConfig:
    """``engine.gpus: auto`` as it would be here; on a cluster it is as it finds it, and is not asked beforehand.

    Raises:
        UserError: no model there.
    """
    if config.ray_address is not None or "RAY_ADDRESS" in os.environ:
        return config
    check_is_model(config.model)
    return with_gpus(config, supply(None))


class Plan(NamedTuple):
    """``text`` has one line a stage of one round; ``near_duplicates`` one a test set, which the text holds too."""

    text: str
    near_duplicates: list[str]


def plan(config: RunConfig) -> Plan:
    """What the run would do, by one pass over its questions.

    Raises:
        UserError: what ``ka2l run`` would refuse.
    """
    check_inputs(config)
    tests, near = _test_sets(config)
    key, form, shown = config.annotation.answers, config.normalize, config.prompt.options
    answerable = {row["question_id"] for row in answer_rows(key, form, shown)} if key else None
    first, pool, with_options, answered = "", 0, 0, 0

    def questions() -> Iterator[dict[str, Any]]:
        nonlocal first, pool, with_options, answered
        for question in QuestionReader(config.pool.questions, form=form, shown=shown):
            first = first or question["question"]
            pool += 1
            with_options += question["options"] is not None
            answered += question["answers"] is not None if answerable is None else question["question_id"] in answerable
            for twins in near.values():
                twins.look(question["question_id"], question["question"])
            yield question

    if tests:
        check_held_out(list(tests.values()), questions(), form)
    else:
        deque(questions(), maxlen=0)
    if not pool:
        raise UserError(f"{config.pool.questions}: no questions in this file")
    check_budget(config, pool)
    check_columns(config, pool, with_options)
    check_answers(config, pool, answered)
    test = sum(len(held.questions) for held in tests.values())
    model = check_is_model(config.model)
    probing = min(config.pool.probing_size, pool)
    layers = model.num_hidden_layers + 1 if config.probe.layers == "all" else len(config.probe.layers)
    state_bytes = 4 if config.model.dtype == "float32" or (config.model.dtype == "auto" and not config.engine.gpus_each) else 2
    tokens = MOST_TOKENS if config.probe.position == "attention" else 1  # whose states are kept, at most
    replayed = round(config.finetune.replay_known * config.selection.budget)
    answers = config.sampling.k + 1
    lines = [
        ("sample", probing, probing * answers * BYTES_PER_ANSWER),
        ("hidden_states", probing, probing * layers * tokens * model.hidden_size * state_bytes),
        ("entropy", probing, probing * BYTES_PER_SCORE),
        ("probe", probing, 3 * model.hidden_size * config.probe.hidden_width * 4 if config.probe.kind == "mlp" else 0),
        ("score", pool, pool * BYTES_PER_SCORE),
        ("select", config.selection.budget, config.selection.budget * BYTES_PER_SCORE),
        ("replay", replayed, replayed * answers * BYTES_PER_ANSWER),
        ("finetune", config.selection.budget + replayed, 0),
        ("evaluate", test, test * BYTES_PER_ANSWER),
    ]
    gpus = f"{config.engine.gpus_each:g}" if config.engine.gpus != "auto" else "1 where the cluster has GPUs, else 0"
    text = [f"engine: {config.engine.name}, {config.engine.replicas} x {gpus} GPUs (engine.gpus)"]
    text += [f"plan: up to {config.stopping.max_rounds} rounds of", f"{'stage':<14}{'rows':>12}{'bytes, about':>16}"]
    text += [f"{stage:<14}{rows:>12,}{size:>16,}" for stage, rows, size in lines]
    text += [f"test set {name}: {len(held.questions):,} questions, {held.kind}" for name, held in tests.items() if name]
    counts = [
        f"{f'test set {name}: ' if name else ''}{said(len(twins.twins), len(tests[name].questions))}"
        for name, twins in near.items()
    ]
    text += counts
    if with_options:
        said_so = "shown in the prompt" if shown == "show" else "not shown"
        text.append(f"{with_options:,} of {pool:,} questions of the pool have options, {said_so} (prompt.options)")
    text += ["", str(view_prompt(load_prompter(config.model, config.prompt), first))]
    return Plan("\n".join(text), counts)


def _test_sets(config: RunConfig) -> tuple[dict[str, HeldOut], dict[str, NearDuplicates]]:
    found, near = {}, {}
    for name, held in config.pool.test_sets.items():
        rows = list(QuestionReader(held.path, form=config.normalize, shown=config.prompt.options, answered=True))
        if not rows:
            raise UserError(f"{held.path}: no questions in this file")
        found[name] = HeldOut.of(held.path, held.kind, rows, config.normalize)
        near[name] = NearDuplicates((row["question_id"], row["question"]) for row in rows)
    return found, near
