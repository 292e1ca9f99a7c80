"""The command line.

ka2l demo                                  the whole loop on the bundled world, on a CPU
ka2l run CONFIG [-o KEY=VALUE]... [--dry-run]
ka2l status RUN | ka2l report RUN | ka2l doctor [CONFIG]
ka2l judge-check RUN | ka2l judge-pairs FILE --judge J | ka2l judge-train
ka2l sample | hidden-states | entropy | probe | score | select | annotate | finetune | evaluate
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer

# Before torch, tokenizers or ray are imported anywhere.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

from ka2l_ray.config import RunConfig
from ka2l_ray.config_files import dump, load_config
from ka2l_ray.jobs.commands.failures import reported
from ka2l_ray.jobs.commands.judges import judge_check, judge_pairs, judge_train
from ka2l_ray.jobs.commands.stages import COMMANDS, Overrides

app = typer.Typer(
    name="ka2l",
    help="Active learning for large language models: find what a model does not know, and spend the labels there.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for name, command in COMMANDS.items():
    app.command(name)(command)
app.command("judge-check")(judge_check)
app.command("judge-pairs")(judge_pairs)
app.command("judge-train")(judge_train)

Config = Annotated[str, typer.Argument(help="YAML configuration.")]
Run = Annotated[str, typer.Argument(help="Run directory.")]


@app.callback()
def _logging(verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False) -> None:
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr
    )
    for noisy in ("httpx", "filelock", "urllib3", "fsspec", "matplotlib", "absl", "asyncio", "PIL", "huggingface_hub", "ray"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


@app.command()
def run(
    config: Config,
    override: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved configuration and the plan; run nothing.")
    ] = False,
) -> None:
    """Run the loop; an existing run goes on where it was."""
    with reported():
        resolved = load_config(config, override)
        if dry_run:
            from ka2l_ray.jobs.commands.plan import plan, with_this_machines_gpus

            resolved = with_this_machines_gpus(resolved)
            planned = plan(resolved)
            typer.echo(dump(resolved))
            typer.echo(planned.text)
            return
        execute(resolved)


def execute(config: RunConfig) -> None:
    """Run ``config`` under its lock, on its Ray cluster, and write the report."""
    from ka2l_ray.actors.placement import with_gpus
    from ka2l_ray.jobs.checks import check_inputs
    from ka2l_ray.jobs.driver import run as run_loop
    from ka2l_ray.jobs.session import ray_session, supply
    from ka2l_ray.report import write_report
    from ka2l_ray.store.artefacts import RunStore

    check_inputs(config)
    if config.engine.gpus == "auto":
        config = with_gpus(config, supply(config.ray_address))
    store = RunStore(config.output, tuple(config.reuse))
    with store.locked():
        with ray_session(config.ray_address, use_gpu=config.engine.gpus_each > 0):
            result = run_loop(config, store)
        report = write_report(config.output, [config.output])
    typer.echo(f"stopped: {result.stopped}")
    typer.echo(f"{result.rounds} rounds, {result.labels} labels; {len(store.computed)} artefacts made, {len(store.kept)} kept")
    typer.echo(f"report: {report}")


@app.command()
def demo(
    out: Annotated[str, typer.Option("--out", help="Directory of both runs, the summary and the report.")] = "runs/demo",
    seed: Annotated[int, typer.Option("--seed", help="All randomness derives from it.")] = 0,
    override: Overrides = None,
) -> None:
    """Two rounds of ka2l and of random on the bundled world, at the same budget from the same start."""
    with reported():
        from ka2l_ray.jobs.demo import demo as run_demo

        run_demo(out, seed, override or [])


@app.command()
def status(run: Run) -> None:
    """What a run has committed, and what it spent."""
    with reported():
        from ka2l_ray.jobs.commands.status import status_table

        status_table(run)


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(help="Run directories; several are drawn beside each other.")],
    out: Annotated[str | None, typer.Option("--out", help="Directory to write to; the first run's when left out.")] = None,
) -> None:
    """Write report.html (one file, no network) and the same figures as PNG."""
    with reported():
        from ka2l_ray.report import write_report

        typer.echo(f"report: {write_report(out or runs[0], runs)}")


@app.command()
def doctor(config: Annotated[str | None, typer.Argument(help="YAML configuration to check too.")] = None) -> None:
    """Check this machine, and a configuration against it, without running anything."""
    with reported():
        from ka2l_ray.jobs.commands.doctor import doctor as examine

        if not examine(config):
            raise typer.Exit(1)


def main() -> None:
    app()
