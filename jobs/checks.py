"""What can be known to be wrong with a run before anything is computed: its inputs, the cluster it asks for, its directory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ka2l_ray.acquisition import strategy, strategy_of_a_run
from ka2l_ray.actors.language_model import check_engine
from ka2l_ray.actors.placement import check_supply, check_worker, possible_nodes
from ka2l_ray.config import NOT_CONTENT, OF_THE_WHOLE_RUN, JudgeSettings, RunConfig
from ka2l_ray.config_files import dump
from ka2l_ray.errors import RunMismatchError, UserError
from ka2l_ray.finetuning.targets import fused_experts
from ka2l_ray.jobs.stages.bert_score import bert_score_identity
from ka2l_ray.jobs.stages.questions import input_key, of_test_set
from ka2l_ray.models.model_files import check_is_model, layers_of, skeleton
from ka2l_ray.models.prompts import load_prompter
from ka2l_ray.questions import read_rows
from ka2l_ray.schema import SCHEMA_VERSION
from ka2l_ray.semantics.judges import judge_gpus, judge_place, verdict_identity
from ka2l_ray.semantics.language import check_language
from ka2l_ray.store.artefacts import RunStore, difference, flatten

logger = logging.getLogger(__name__)

INPUTS = {"pool", "test", "answers", "near_duplicates"}  # artefacts that cost no model; those of named test sets lie below "test"


def check_inputs(config: RunConfig) -> None:
    """Raise a UserError for what can be known to be wrong before Ray starts: no such file, no model, no strategy."""
    check_output(config.output)
    check_is_model(config.model)
    load_prompter(config.model, config.prompt)
    check_engine(config.model, config.engine, config.sampling.k)
    layers_of(config.model, config.probe.layers)
    _check_adapters_to_come(config)
    strategy_of_a_run(config.selection.strategy)
    _check_judges(config)
    bert_score_identity(config.evaluation)
    for path in (config.pool.questions, *(held.path for held in config.pool.test_sets.values()), config.annotation.answers):
        if path is not None:
            input_key(path)


def check_output(output: str) -> None:
    """Raise a UserError where no directory of this name can be: it, or one above it, is a file."""
    if "://" not in output:
        path = Path(output).absolute()
        there = next(place for place in (path, *path.parents) if place.exists())
        if not there.is_dir():
            raise UserError(f"output: {there} is a file, not a directory; give another output")


def _check_judges(config: RunConfig) -> None:
    """Raise a UserError where a judge is not there, or could not read the questions."""
    judged = {"entropy": [config.pool.questions], "evaluation": [held.path for held in config.pool.test_sets.values()]}
    for section, paths in judged.items():
        settings: JudgeSettings = getattr(config, section)
        verdict_identity(settings, config.reading.normalize)
        for path in paths:
            check_language(settings, section, (str(row.get("question") or "") for _, row in read_rows(path)), path)


def _check_adapters_to_come(config: RunConfig) -> None:
    """Raise a UserError where an engine could not take the adapters that this run trains."""
    engine = next((key for key in ("name", "hidden_states") if getattr(config.engine, key) == "vllm"), None)
    if engine is not None and config.finetune.lora_experts and fused_experts(skeleton(config.model)):
        raise UserError(
            f"finetune.lora_experts: vLLM (engine.{engine}) is not given LoRA on the experts of {config.model.path}; "
            f"set finetune.lora_experts=false, or engine.{engine}=transformers"
        )


def check_budget(config: RunConfig, pool: int) -> None:
    """Raise a UserError where a round is to label more than the ``pool`` questions there are."""
    if config.selection.budget > pool:
        raise UserError(
            f"selection.budget is {config.selection.budget} labels a round, {config.pool.questions} has {pool} questions; "
            "lower the budget"
        )


def check_answers(config: RunConfig, pool: int, answered: int) -> None:
    """Raise a UserError where a round's labels cannot all be given; warn where not every question of the pool has an answer."""
    key = config.annotation.answers
    where = f"{answered} of {pool} questions of {config.pool.questions} have an answer" + (f" in {key}" if key else "")
    if answered < config.selection.budget:
        cure = "give more of the pool's ids there" if key else "add 'answers' ('label' of options), set annotation.answers"
        raise UserError(f"selection.budget is {config.selection.budget} labels a round, {where}; {cure}, or lower the budget")
    if answered < pool:
        logger.warning("%s; a round that chooses another ends the run with an error: leave them out of the pool", where)


def check_columns(config: RunConfig, pool: int, with_options: int) -> None:
    """Raise a UserError where the strategy ranks by a column that the pool's questions cannot have."""
    if "option_entropy" in strategy(config.selection.strategy).needs and with_options < pool:
        raise UserError(
            f"selection.strategy {config.selection.strategy} ranks by the likelihoods of options; {pool - with_options} of "
            f"{pool} questions of {config.pool.questions} have no 'options'; choose another strategy, or leave them out"
        )


def check_resources(config: RunConfig) -> None:
    """Raise a UserError where a stage asks for what no node, there or to come, could ever take, instead of waiting for ever."""
    nodes = possible_nodes()
    check_supply(config.engine, nodes)
    if config.engine.gpus_each:
        check_supply(config.engine, nodes, "transformers")
    gpu = 1.0 if config.engine.gpus_each else 0.0
    check_worker("entropy", {"CPU": 1.0, "GPU": judge_gpus(config.entropy, gpu)}, nodes)
    if judge_place(config.evaluation) != "here":
        check_worker("evaluation", {"CPU": 1.0, "GPU": judge_gpus(config.evaluation, gpu)}, nodes)
    check_worker("probe", {"CPU": 1.0, "GPU": gpu}, nodes)
    check_worker("finetune", {"CPU": config.finetune.reserved_cpus, "GPU": gpu}, nodes)


def hold_config(config: RunConfig, store: RunStore) -> None:
    """Write the resolved configuration; where another one is there, say from which round on this one holds.

    Raises:
        RunMismatchError: another run is there, or one that this configuration cannot go on with.
    """
    if store.storage.exists("config.yaml"):
        if not store.storage.exists("metrics.jsonl"):
            raise RunMismatchError(f"{config.output}: a config.yaml is there that no run wrote; set another output directory")
        made = {name: artefact.schema_version for name, artefact in store.manifest.items()}
        costly = {name for name in made if name.partition("/")[0] not in INPUTS}
        older = {made[name] for name in costly if made[name] != SCHEMA_VERSION}
        if older:
            raise RunMismatchError(
                f"{config.output}: this run was made by another version of ka2l_ray (schema version {min(older)}, this one's is "
                f"{SCHEMA_VERSION}), whose results differ; set another output, or delete the directory"
            )
        there = content_part(yaml.safe_load(store.storage.read_bytes("config.yaml")))
        now = content_part(config.model_dump(mode="json"))
        if there != now and costly:
            _go_on_with(there, now, config, store)
        elif there != now or set(made.values()) - {SCHEMA_VERSION}:  # nothing that costs was computed; it is begun anew
            store.forget()
    store.log_metric("started", config.output)
    store.storage.write_bytes("config.yaml", dump(config).encode())


def _go_on_with(there: dict[str, Any], now: dict[str, Any], config: RunConfig, store: RunStore) -> None:
    """Settle the rounds that are whole; the changed configuration holds from the next one on.

    Raises:
        RunMismatchError: what changed is what makes rounds comparable.
    """
    whole = [{name: keys[name] for name in keys if _is_of(name, OF_THE_WHOLE_RUN)} for keys in (there, now)]
    if whole[0] != whole[1]:
        raise RunMismatchError(
            f"{config.output}: this run was begun with another configuration ({difference(*whole)}), which holds for all of its "
            "rounds; set another output, or delete the directory"
        )
    rounds = 0
    while all(f"rounds/{rounds:03d}/{at}" in store.manifest for at in _evaluations(config)):
        rounds += 1
    changed = difference(there, now)
    logger.warning("%s: another configuration holds from round %d on (%s); what is before stays", config.output, rounds, changed)
    store.log_metric("configuration_changed", changed, round=rounds)
    store.settle(rounds)


def _evaluations(config: RunConfig) -> list[str]:
    """What a whole round has committed last, below its directory."""
    return [of_test_set("evaluation", name) for name in config.pool.test_sets] or ["adapter"]


def _is_of(name: str, keys: Sequence[str]) -> bool:
    return any(name == key or name.startswith(f"{key}.") for key in keys)


def content_part(document: dict[str, Any]) -> dict[str, Any]:
    """The keys of a configuration that decide results, by dotted name."""
    return {name: value for name, value in flatten(document).items() if not _is_of(name, NOT_CONTENT)}
