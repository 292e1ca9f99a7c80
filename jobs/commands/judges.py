"""The command line about judges: how good one is on one's own answers, on judged pairs, and how to train one."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from ka2l_ray.config_files import load_config
from ka2l_ray.jobs.commands.failures import reported
from ka2l_ray.jobs.commands.stages import Overrides, Seed


def judge_check(
    run: Annotated[str, typer.Argument(help="Run directory.")],
    labels: Annotated[
        str | None, typer.Option("--labels", help="The pairs with 'same' filled in (.csv, .jsonl): id, same (yes or no).")
    ] = None,
    pairs: Annotated[int, typer.Option("--pairs", min=1, help="To draw.")] = 100,
    seed: Seed = 0,
) -> None:
    """How good is the judge on this run's answers? Draws pairs for a person; with --labels, the judge's accuracy."""
    with reported():
        from ka2l_ray.jobs.commands.judge_check import draw, evaluate, say

        if labels is None:
            typer.echo(draw(run, pairs=pairs, seed=seed))
        else:
            say(*evaluate(run, labels))


def judge_pairs(
    file: Annotated[str, typer.Argument(help="Judged pairs: question (may be null), a, b, label (1: the same).")],
    judge: Annotated[str, typer.Option("--judge", help="exact, contains, nli, llm, embedding or cross_encoder.")],
    override: Overrides = None,
) -> None:
    """How often a judge says what people say of pairs of answers: one line of JSON. -o entropy.KEY=VALUE sets the judge up,
    -o evaluation.extract=HOW reads the answers as a run would."""
    with reported():
        from ka2l_ray.semantics.judges import make_judge, verdict_identity
        from ka2l_ray.semantics.pairs import judge_pairs as agreement
        from ka2l_ray.semantics.pairs import read_pairs

        given = {"model.path": "bundled:student", "pool.questions": "", "entropy.judge": judge}
        config = load_config(None, override, given)
        rows = read_pairs(file)
        verdict_identity(config.entropy, config.normalize)  # refuses a model that is not there
        found = agreement(
            make_judge(config.entropy, config.normalize),
            rows,
            strict=config.entropy.equivalence == "strict",
            reading=config.reading,
        )
        typer.echo(json.dumps({"judge": config.entropy.judge, **asdict(found)}))


def judge_train(
    pairs: Annotated[list[str], typer.Option("--pairs", help="Judged pairs: question (may be null), a, b, label.")],
    encoder: Annotated[str, typer.Option("--encoder", help="Sentence encoder to fine-tune: directory or hub name.")],
    out: Annotated[str, typer.Option("--out", help="Directory to write: a model for -o entropy.cross_encoder=DIR.")],
    pool: Annotated[
        list[str] | None, typer.Option("--pool", help="Questions with answers, of which further pairs are made.")
    ] = None,
    pool_questions: Annotated[int, typer.Option("--pool-questions", min=0, help="Drawn from all pools together.")] = 4000,
    without: Annotated[
        list[str] | None, typer.Option("--without", help="Files whose questions must not stand in training.")
    ] = None,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over the pairs.")] = 1,
    learning_rate: Annotated[float, typer.Option("--learning-rate", min=0, help="Of AdamW, at its highest.")] = 1e-4,
    seed: Seed = 0,
) -> None:
    """Fine-tune a sentence encoder into a judge of 'the same answer to this question', for entropy.judge=cross_encoder."""
    with reported():
        from ka2l_ray.semantics.judge_training import train_from_files

        fitted = train_from_files(
            pairs,
            pool or [],
            without or [],
            encoder,
            out,
            pool_questions=pool_questions,
            epochs=epochs,
            learning_rate=learning_rate,
            seed=seed,
        )
        typer.echo(
            f"{out}: " + ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in asdict(fitted).items())
        )
