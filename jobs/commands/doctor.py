"""Checks of this machine, and of a configuration against it, before anything is spent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch
import typer

from ka2l_ray.actors.engines import Engines
from ka2l_ray.config import RunConfig
from ka2l_ray.config_files import load_config
from ka2l_ray.errors import UserError
from ka2l_ray.evaluation import meteor_stages
from ka2l_ray.jobs.checks import check_output
from ka2l_ray.jobs.commands.plan import plan, with_this_machines_gpus
from ka2l_ray.models.prompt_view import view_prompt
from ka2l_ray.models.prompts import load_prompter
from ka2l_ray.questions import QuestionReader
from ka2l_ray.world import bundled_path

PACKAGES = ("ray", "torch", "transformers", "peft", "deepspeed", "datasets", "numpy", "pyarrow")


def doctor(config_path: str | None) -> bool:
    """Print one line a check; False where one failed.

    Raises:
        UserError: the configuration cannot be read.
    """
    checks: list[tuple[str, Callable[[], str]]] = [
        ("packages", _packages),
        (
            "memory",
            lambda: f"{psutil.virtual_memory().available / 2**30:.1f} GiB free of {psutil.virtual_memory().total / 2**30:.1f}",
        ),
        ("processors", lambda: f"{os.cpu_count()} CPUs, {torch.cuda.device_count()} GPUs"),
        ("bundled world", _bundled),
        ("METEOR", lambda: f"matches words by {meteor_stages()}"),
    ]
    if config_path is not None:
        config = load_config(config_path)
        checks += [
            ("configuration", lambda: _configuration(config_path, config)),
            ("output", lambda: _output(config)),
            ("prompt", lambda: _prompt(config)),
        ]
    healthy = True
    for name, check in checks:
        try:
            typer.echo(f"ok      {name}: {check()}")
        except (UserError, OSError) as error:
            healthy = False
            typer.secho(f"failed  {name}: {error}", fg=typer.colors.RED)
    return healthy


def _packages() -> str:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            raise UserError(f"{name} is not installed; pip install ka2l_ray") from None
    return ", ".join(found)


def _bundled() -> str:
    sizes = []
    for name in ("student", "judge"):
        weights = Path(bundled_path(f"bundled:{name}")) / "model.safetensors"
        if not weights.is_file():
            raise UserError(f"{weights}: missing; install ka2l_ray again")
        sizes.append(f"{name} {weights.stat().st_size / 2**20:.1f} MiB")
    return ", ".join(sizes)


def _configuration(path: str, config: RunConfig) -> str:
    config = with_this_machines_gpus(config)
    planned = plan(config)
    needed, there = Engines(config.engine).gpus, torch.cuda.device_count()
    if config.ray_address is None and "RAY_ADDRESS" not in os.environ and needed > there:
        raise UserError(f"engine asks for {needed:g} GPUs, this machine has {there}; lower engine.replicas or set ray_address")
    near = "".join(f"; {line}" for line in planned.near_duplicates)
    return f"{path} is valid; model, judge and files are there; engine.gpus is {config.engine.gpus}{near}"


def _prompt(config: RunConfig) -> str:
    first = next(iter(QuestionReader(config.pool.questions, form=config.normalize, shown=config.prompt.options)), None)
    if first is None:
        raise UserError(f"{config.pool.questions}: no questions in this file")
    return str(view_prompt(load_prompter(config.model, config.prompt), first["question"]))


def _output(config: RunConfig) -> str:
    if "://" in config.output:
        return config.output
    check_output(config.output)
    parent = Path(config.output).absolute()
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK):
        raise UserError(f"{config.output}: cannot be written")
    return f"{config.output}, {shutil.disk_usage(parent).free / 2**30:.0f} GiB free"
