"""The command line about judges: how good one is on one's own answers, and on judged pairs."""

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
    """How often a judge says what people say of pairs of answers: one line of JSON. -o entropy.KEY=VALUE sets the judge up."""
    with reported():
        from ka2l_ray.semantics.judges import make_judge, verdict_identity
        from ka2l_ray.semantics.pairs import judge_pairs as agreement
        from ka2l_ray.semantics.pairs import read_pairs

        given = {"model.path": "bundled:student", "pool.questions": "", "entropy.judge": judge}
        config = load_config(None, override, given).entropy
        rows = read_pairs(file)
        verdict_identity(config)  # refuses a model that is not there
        found = agreement(make_judge(config), rows, strict=config.equivalence == "strict")
        typer.echo(json.dumps({"judge": config.judge, **asdict(found)}))
