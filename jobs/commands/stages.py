"""The command line of single stages: files in, one artefact directory out. ``--help`` of each names the tables."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.console import Console
from rich.table import Table

from ka2l_ray.acquisition import STRATEGIES
from ka2l_ray.config import JudgeName, RunConfig
from ka2l_ray.config_files import load_config
from ka2l_ray.jobs.commands.failures import reported
from ka2l_ray.schema import Position

Questions = Annotated[
    str, typer.Option("--questions", help="Questions: id, question (.jsonl, .parquet, or a stage's directory).")
]
Out = Annotated[str, typer.Option("--out", help="Directory to write; a finished one of the same inputs is kept as it is.")]
ModelPath = Annotated[str, typer.Option("--model", help="Directory or hub name of a causal LM, or bundled:student.")]
Adapter = Annotated[str | None, typer.Option("--adapter", help="Directory of a PEFT adapter on the model.")]
Overrides = Annotated[list[str] | None, typer.Option("-o", "--override", help="Any configuration key: KEY=VALUE.")]
Seed = Annotated[int, typer.Option("--seed", help="All randomness derives from it.")]


@dataclass
class Stage:
    """What a stage command works with."""

    config: RunConfig
    store: Any
    inputs: Any
    engines: Any


@contextmanager
def stage(out: str, overrides: list[str] | None, values: dict[str, Any], *, on_ray: bool = True) -> Iterator[Stage]:
    """Configuration, output and inputs of one stage, on a Ray cluster if it needs one; errors become a line and an exit code."""
    with reported():
        from ka2l_ray.actors.engines import Engines
        from ka2l_ray.actors.placement import with_gpus
        from ka2l_ray.jobs.commands.inputs import Inputs
        from ka2l_ray.jobs.session import ray_session, supply
        from ka2l_ray.models.model_files import check_is_model
        from ka2l_ray.store.artefacts import StageDirectory

        given = {"model.path": "bundled:student", "pool.questions": "", **values}
        config = load_config(None, overrides, {key: value for key, value in given.items() if value is not None})
        if on_ray and config.engine.gpus == "auto":
            check_is_model(config.model)
            config = with_gpus(config, supply(config.ray_address))
        target = Path(out).absolute()
        directory = target.parent / f".{target.name}.inputs"
        inputs = Inputs(str(directory), config.normalize, config.prompt.options)
        with ray_session(config.ray_address, use_gpu=config.engine.gpus_each > 0) if on_ray else nullcontext():
            engines = Engines(config.engine)
            try:
                yield Stage(config, StageDirectory(str(target)), inputs, engines)
            finally:
                engines.release()
                shutil.rmtree(directory, ignore_errors=True)


def _say(artefact: Any) -> None:
    shown = {k: v for k, v in artefact.facts.items() if not isinstance(v, list | dict)}
    typer.echo(f"{artefact.url}: " + ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items()))


def sample(
    model: ModelPath,
    questions: Questions,
    out: Out,
    k: Annotated[int, typer.Option("--k", help="Answers a question, two at least.")] = 10,
    temperature: Annotated[float, typer.Option("--temperature", help="Of the k answers.")] = 1.0,
    top_p: Annotated[float, typer.Option("--top-p", help="From the likeliest tokens of this probability; 1: from all.")] = 1.0,
    top_k: Annotated[int, typer.Option("--top-k", help="From so many likeliest tokens; 0: from all.")] = 0,
    engine: Annotated[str, typer.Option("--engine", help="Backend: transformers or vllm.")] = "transformers",
    adapter: Adapter = None,
    seed: Seed = 0,
    override: Overrides = None,
) -> None:
    """Sample answers: id, question -> the samples table (generations, token ids and log-probabilities, greedy)."""
    values = {"model.path": model, "sampling.k": k, "sampling.temperature": temperature, "engine.name": engine, "seed": seed}
    values |= {"sampling.top_p": top_p, "sampling.top_k": top_k}
    with stage(out, override, values) as at:
        from ka2l_ray.jobs.commands.inputs import external_model
        from ka2l_ray.jobs.stages.sample import sample as run_stage

        asked = at.inputs.questions(questions)
        lm = external_model(model, adapter, at.config.model, at.config.prompt)
        _say(
            run_stage(
                at.store,
                "samples",
                questions=asked,
                model=lm,
                sampling=at.config.sampling,
                engine=at.config.engine,
                seed=(at.config.seed, 0),
                engines=at.engines,
                until=at.config.entropy,
                reading=at.config.reading,
            )
        )


def hidden_states(
    model: ModelPath,
    questions: Questions,
    out: Out,
    layers: Annotated[str, typer.Option("--layers", help="'all', or layer numbers with commas; 0 is the embeddings.")] = "all",
    position: Annotated[
        str,
        typer.Option(
            "--position",
            help="last_prompt_token; mean, over the prompt's tokens; attention, its last tokens, for a probe that weighs them "
            "(few layers); or answer_token, last but one of the greedy answer in samples.",
        ),
    ] = "last_prompt_token",
    adapter: Adapter = None,
    override: Overrides = None,
) -> None:
    """States of the last prompt token, or of another position: id, question -> one column a layer (layer_0, layer_1, ...)."""
    wanted = "all" if layers == "all" else [int(layer) if layer.strip().isdigit() else layer for layer in layers.split(",")]
    with stage(out, override, {"model.path": model, "probe.layers": wanted}) as at:
        from ka2l_ray.errors import UserError
        from ka2l_ray.jobs.commands.inputs import external_model
        from ka2l_ray.jobs.stages.hidden_states import hidden_states as run_stage

        if position not in get_args(Position):
            raise UserError(f"--position {position}: give one of {', '.join(get_args(Position))}")
        _say(
            run_stage(
                at.store,
                "hidden_states",
                questions=at.inputs.questions(questions),
                model=external_model(model, adapter, at.config.model, at.config.prompt),
                layers=at.config.probe.layers,
                engine=at.config.engine,
                engines=at.engines,
                position=position,  # type: ignore[arg-type]
            )
        )


def entropy(
    samples: Annotated[str, typer.Option("--samples", help="id, question, generations.")],
    out: Out,
    judge: Annotated[
        str, typer.Option("--judge", help=f"Who says that two answers mean the same: {', '.join(get_args(JudgeName))}.")
    ] = "nli",
    nli_model: Annotated[str | None, typer.Option("--nli-model", help="NLI model, or bundled:judge.")] = None,
    policy: Annotated[str, typer.Option("--policy", help="founder_last or founder_first.")] = "founder_last",
    rule: Annotated[str, typer.Option("--rule", help="auto, ka2l, two_means, quantile or fixed.")] = "auto",
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Also hold every uncertainty score against correctness: OUT-uncertainty.")
    ] = False,
    correct: Annotated[
        str | None,
        typer.Option("--correct", help="Column: is the greedy answer right? Else evaluation.judge against the answers."),
    ] = None,
    answers: Annotated[str | None, typer.Option("--answers", help="id, answers; where the samples hold none.")] = None,
    by: Annotated[str | None, typer.Option("--by", help="Column whose values are evaluated apart, such as model.")] = None,
    p_true_model: Annotated[str | None, typer.Option("--p-true-model", help="Causal LM to ask for P(True).")] = None,
    hidden_states: Annotated[
        str | None, typer.Option("--hidden-states", help="Of the same questions: adds the accuracy and the linear SE probe.")
    ] = None,
    scores: Annotated[
        str | None, typer.Option("--scores", help="id, p_unknown, p_true or option_entropy of the same questions: more scores.")
    ] = None,
    p_wrong: Annotated[
        bool,
        typer.Option("--p-wrong", help="Adds p_wrong to OUT: semantic entropy, calibrated on rows with --correct or answers."),
    ] = False,
    combine: Annotated[
        bool,
        typer.Option("--combine", help="Adds the score 'combined' of semantic entropy, p(unknown), P(True) and likelihood."),
    ] = False,
    override: Overrides = None,
) -> None:
    """Semantic entropy: id, question, generations -> id, semantic_entropy (nats), cluster_ids, label (1 unknown)."""
    values = {"entropy.judge": judge, "entropy.nli_model": nli_model, "entropy.policy": policy, "entropy.rule": rule}
    with stage(out, override, values | ({"model.path": p_true_model} if p_true_model else {})) as at:
        from ka2l_ray.errors import UserError
        from ka2l_ray.jobs.stages.entropy import entropy as run_stage
        from ka2l_ray.jobs.stages.p_wrong import warn_of_one_class
        from ka2l_ray.jobs.stages.uncertainty import check_combinable

        evaluate = evaluate or combine
        truth = {"--correct": correct, "--answers": answers, "--by": by}
        further = {"--p-true-model": p_true_model, "--hidden-states": hidden_states, "--scores": scores}
        wanting = {} if evaluate else further if p_wrong else truth | further
        idle = [name for name, value in wanting.items() if value is not None]
        if idle:
            raise UserError(f"{idle[0]} has no effect without --evaluate; add it")
        answered = None
        if evaluate or p_wrong:
            answered = at.inputs.answered(samples, correct=correct, answers=answers, group=by)
            answered = answered if correct else _judged(at, answered)
            warn_of_one_class(answered)
        if combine and answered is not None and not any(further.values()):
            check_combinable(answered)
        states = at.inputs.table(hidden_states) if hidden_states else None
        chances = at.inputs.chances(scores) if scores else None
        gpus = 1.0 if at.config.engine.gpus_each else 0.0
        given = at.inputs.samples(samples)
        _check_reads(at.config.entropy, "entropy", given)
        done = run_stage(
            at.store,
            "entropy",
            samples=given,
            config=at.config.entropy,
            reading=at.config.reading,
            gpus=gpus,
            answered=answered if p_wrong else None,
        )
        _say(done)
        for fit in done.facts.get("p_wrong", []):
            typer.echo(
                f"p_wrong ({fit['group']}): {fit['method']} on {fit['labelled']} labelled of {fit['questions']} questions, "
                f"{fit['wrong']:.1%} wrong, calibration error {fit['calibration_error']:.3f}, Brier {fit['brier']:.3f}"
            )
        if answered is not None and evaluate:
            _evaluate_uncertainty(at, out, answered, done, p_true_model, states, chances, combine)


def _judged(at: Stage, answered: Any) -> Any:
    """With whether each greedy answer is wrong, by ``evaluation.judge``."""
    from ka2l_ray.jobs.stages.correctness import judged
    from ka2l_ray.store.artefacts import StageDirectory

    _check_reads(at.config.evaluation, "evaluation", answered)
    store = StageDirectory(f"{at.inputs.directory}/judged")
    settings = {"config": at.config.evaluation, "reading": at.config.reading, "engines": at.engines}
    return judged(store, "judged", answered=answered, **settings)


def _check_reads(settings: Any, section: str, rows: Any) -> None:
    """Raise a UserError where the judge cannot read these questions."""
    from ka2l_ray.semantics.language import check_language

    file = rows.storage.parquet_files()[0]
    questions = rows.storage.read_table(file, columns=["question"])["question"].to_pylist()
    check_language(settings, section, questions, rows.facts.get("source", rows.url))


def _evaluate_uncertainty(
    at: Stage, out: str, answered: Any, entropy: Any, p_true_model: str | None, states: Any, chances: Any, combined: bool
) -> None:
    """Write OUT-uncertainty and print its table."""
    from ka2l_ray.jobs.commands.inputs import external_model
    from ka2l_ray.jobs.stages.uncertainty import p_true, uncertainty
    from ka2l_ray.store.artefacts import StageDirectory

    asked, out = None, str(Path(out).absolute())
    if p_true_model is not None:
        model = external_model(p_true_model, None, at.config.model, at.config.prompt)
        store = StageDirectory(f"{out}-p_true")
        asked = p_true(store, "p_true", answered=answered, model=model, engine=at.config.engine, engines=at.engines)
    store = StageDirectory(f"{out}-uncertainty")
    parts = {"p_true": asked, "hidden_states": states, "chances": chances}
    done = uncertainty(store, "uncertainty", answered=answered, entropy=entropy, **parts, combined=combined)
    for group, truth in dict.fromkeys((row["group"], row["truth"]) for row in done.facts["quality"]):
        rows = [row for row in done.facts["quality"] if (row["group"], row["truth"]) == (group, truth)]
        table = Table(title=f"{group}: {rows[0]['questions']} questions, {rows[0]['wrong']:.1%} answered wrongly ({truth})")
        for column in ("score", "AUROC", "95 % interval", "AURC", "calibration error", "Brier"):
            table.add_column(column, justify="left" if column == "score" else "right")
        for row in rows:
            figures = [f"{row[name]:.3f}" for name in ("aurc", "calibration_error", "brier")]
            table.add_row(row["score"], f"{row['auroc']:.3f}", f"{row['auroc_low']:.3f} - {row['auroc_high']:.3f}", *figures)
        Console(width=100).print(table)
    typer.echo(f"table of all scores: {done.url}")


def probe(
    hidden_states: Annotated[str, typer.Option("--hidden-states", help="Directory of ka2l hidden-states.")],
    entropy: Annotated[str, typer.Option("--entropy", help="Directory of ka2l entropy.")],
    out: Out,
    kind: Annotated[str, typer.Option("--kind", help="mlp (KA2L's) or linear.")] = "mlp",
    seed: Seed = 0,
    override: Overrides = None,
) -> None:
    """Fit one probe a layer, choose the layer on validation: -> probe.safetensors, layers.parquet, predictions.parquet."""
    with stage(out, override, {"probe.kind": kind, "seed": seed}) as at:
        from ka2l_ray.errors import UserError
        from ka2l_ray.jobs.stages.probe import probe as run_stage

        done = run_stage(
            at.store,
            "probe",
            hidden_states=at.inputs.table(hidden_states),
            entropy=at.inputs.table(entropy),
            config=at.config.probe,
            seed=at.config.seed,
            use_gpu=at.config.engine.gpus_each > 0,
        )
        if not done.facts["fitted"]:
            raise UserError(f"probe: {done.facts['reason']}")
        _say(done)


def score(
    model: ModelPath,
    questions: Questions,
    out: Out,
    probe: Annotated[str | None, typer.Option("--probe", help="Directory of ka2l probe.")] = None,
    next_token_entropy: Annotated[bool, typer.Option("--next-token-entropy", help="Also the entropy baseline.")] = False,
    option_entropy: Annotated[
        bool,
        typer.Option("--option-entropy", help="Also the entropy of the options' likelihoods, of questions that have options."),
    ] = False,
    adapter: Adapter = None,
    override: Overrides = None,
) -> None:
    """Score a pool: id, question [, options] -> id, p_unknown (and next_token_entropy, option_entropy, nats)."""
    with stage(out, override, {"model.path": model}) as at:
        from ka2l_ray.errors import UserError
        from ka2l_ray.jobs.commands.inputs import external_model
        from ka2l_ray.jobs.stages.score import score as run_stage

        fitted = at.inputs.table(probe) if probe else None
        if fitted is not None and not fitted.storage.exists("probe.safetensors"):
            raise UserError(f"{probe}: no probe there (probe.safetensors is missing); give a directory that ka2l probe wrote")
        _say(
            run_stage(
                at.store,
                "scores",
                questions=at.inputs.questions(questions),
                exclude=frozenset(),
                model=external_model(model, adapter, at.config.model, at.config.prompt),
                probe=fitted,
                next_token_entropy=next_token_entropy,
                option_entropy=option_entropy,
                engine=at.config.engine,
                engines=at.engines,
            )
        )


def select(
    scores: Annotated[str, typer.Option("--scores", help="id and the columns a strategy ranks by.")],
    budget: Annotated[int, typer.Option("--budget", help="Labels to spend.")],
    out: Out,
    strategy: Annotated[
        str, typer.Option("--strategy", help="; ".join(f"{s.name}: {s.summary}" for s in STRATEGIES.values()))
    ] = "ka2l",
    labelled: Annotated[str | None, typer.Option("--labelled", help="Questions that are labelled already.")] = None,
    seed: Seed = 0,
    override: Overrides = None,
) -> None:
    """Choose what to label: id, p_unknown, ... -> id, acquisition, rank."""
    values = {"selection.strategy": strategy, "selection.budget": budget, "seed": seed}
    with stage(out, override, values, on_ray=False) as at:
        from ka2l_ray.jobs.stages.select import select as run_stage
        from ka2l_ray.questions import read_rows, row_id

        spent = frozenset(row_id(place, row) for place, row in read_rows(labelled)) if labelled else frozenset()
        _say(
            run_stage(
                at.store,
                "selection",
                scores=at.inputs.scores(scores),
                strategy=at.config.selection.strategy,
                budget=at.config.selection.budget,
                labelled=spent,
                seed=(at.config.seed, 0),
            )
        )


def annotate(
    questions: Questions,
    out: Out,
    source: Annotated[str, typer.Option("--source", help="column: answers from a file's column.")] = "column",
    answers: Annotated[
        str | None, typer.Option("--answers", help="id, answers; the questions' own column when left out.")
    ] = None,
) -> None:
    """Label questions: id, question [, answers] -> id, question, target, answers."""
    with stage(out, None, {"annotation.source": source}, on_ray=False) as at:
        from ka2l_ray.jobs.stages.annotate import annotate as run_stage

        labels = at.inputs.answers(answers) if answers else at.inputs.questions(questions)
        _say(run_stage(at.store, "annotations", selection=at.inputs.questions(questions), answers=labels))


def finetune(
    annotations: Annotated[str, typer.Option("--annotations", help="id, question, target or answers.")],
    out: Out,
    model: ModelPath = "bundled:student",
    adapter: Adapter = None,
    seed: Seed = 0,
    override: Overrides = None,
) -> None:
    """Train a LoRA adapter: id, question, target -> adapter_model.safetensors, adapter_config.json, training.json."""
    with stage(out, override, {"model.path": model, "seed": seed}) as at:
        from ka2l_ray.jobs.commands.inputs import external_model
        from ka2l_ray.jobs.stages.finetune import finetune as run_stage

        _say(
            run_stage(
                at.store,
                "adapter",
                annotations=[at.inputs.annotations(annotations)],
                model=external_model(model, adapter, at.config.model, at.config.prompt),
                config=at.config.finetune,
                seed=at.config.seed,
                use_gpu=at.config.engine.gpus_each > 0,
            )
        )


def evaluate(
    model: ModelPath,
    test: Annotated[str, typer.Option("--test", help="id, question, answers.")],
    out: Out,
    adapter: Adapter = None,
    before: Annotated[str | None, typer.Option("--before", help="Directory of an earlier ka2l evaluate, to split by.")] = None,
    seed: Seed = 0,
    override: Overrides = None,
) -> None:
    """Evaluate: id, question, answers -> prediction, correct (by evaluation.judge), exact_match, token_f1, ..., known_before."""
    with stage(out, override, {"model.path": model, "seed": seed}) as at:
        from ka2l_ray.jobs.commands.inputs import external_model
        from ka2l_ray.jobs.stages.evaluate import evaluate as run_stage

        asked = at.inputs.questions(test, answered=True)
        _check_reads(at.config.evaluation, "evaluation", asked)
        _say(
            run_stage(
                at.store,
                "evaluation",
                test=asked,
                model=external_model(model, adapter, at.config.model, at.config.prompt),
                sampling=at.config.sampling,
                config=at.config.evaluation,
                engine=at.config.engine,
                seed=(at.config.seed,),
                engines=at.engines,
                before=at.inputs.table(before) if before else None,
                reading=at.config.reading,
            )
        )


COMMANDS: dict[str, Callable[..., None]] = {
    "sample": sample,
    "hidden-states": hidden_states,
    "entropy": entropy,
    "probe": probe,
    "score": score,
    "select": select,
    "annotate": annotate,
    "finetune": finetune,
    "evaluate": evaluate,
}
