"""The report: what one run or several found out, as one HTML file that opens without a network, and figures for papers.

``data`` and ``answers`` read run directories into plain values, ``figures`` draws them, ``report.html.j2`` is the page.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jinja2
from matplotlib.figure import Figure

from ka2l_ray.evaluation import METRICS
from ka2l_ray.report import answers, data, figures, labels
from ka2l_ray.store.storage import Storage

MIME = {"svg": "image/svg+xml", "png": "image/png"}


@dataclass(frozen=True)
class Part:
    """A section of one run: its reader, its figure if it has one, and how the page embeds that."""

    read: Callable[[data.Run], Any]
    draw: Callable[[Any], Figure | None] | None = None
    screen: str = "svg"


@dataclass(frozen=True)
class Image:
    """A figure within the page: ``source`` is a data URI, ``width`` in CSS pixels."""

    source: str
    width: int


@dataclass(frozen=True)
class Section:
    """What the page shows: values and figure, or a note that says why there are none."""

    data: Any = None
    image: Image | None = None
    note: str | None = None


PARTS = {
    "prompt": Part(data.prompt),
    "entropy": Part(data.entropy_rounds, figures.entropy_histograms),
    "labels": Part(labels.label_rounds),
    "layers": Part(data.probe_rounds, figures.auroc_by_layer),
    "calibration": Part(data.calibrated_rounds, figures.reliability_diagrams),
    "states": Part(data.pca_rounds, figures.state_maps, "png"),
    "quadrants": Part(answers.quadrants, figures.quadrants),
    "examples": Part(answers.examples),
    "forgetting": Part(answers.forgetting, figures.learned_and_forgotten),
    "drift": Part(data.drift_rounds, figures.drift),
    "costs": Part(data.costs),
}


def write_report(out: str, runs: list[str]) -> str:
    """Write ``report.html`` and ``figures/*.png`` into ``out``.

    Args:
        out: a directory or filesystem URI; a run directory may hold its own report.
        runs: run directories; several are drawn beside each other in one learning curve.

    Returns:
        The path of the page.

    Raises:
        UserError: no run is given, or one is not a run directory.
    """
    target = Storage(out)
    opened = data.read_runs(runs)
    curves = {run.name: _section(target, run, "learning_curve", Part(data.learning_curves)) for run in opened}
    points = {
        data.curve_name(run, test_set): curve
        for run in opened
        if curves[run.name].note is None
        for test_set, curve in curves[run.name].data.items()
    }
    page = _environment().get_template("report.html.j2")
    html = page.render(
        runs=opened,
        headers={run.name: {**data.header(run), "Threshold rule": labels.rule_in_force(run)} for run in opened},
        curves=curves,
        kinds=sorted({kind for run in opened for kind in data.test_sets(run).values()}),
        points=points,
        curve_image=_image(target, "learning_curve", lambda: figures.learning_curves(points), "svg") if points else None,
        areas={name: {group: data.area_under_curve(curve, group) for group in data.GROUPS} for name, curve in points.items()},
        sections={run.name: {name: _section(target, run, name, part) for name, part in PARTS.items()} for run in opened},
        summary=data.summary(target),
        metrics=METRICS,
        measure=data.curve_measure(points) if points else "",
    )
    target.write_bytes("report.html", html.encode())
    return target.url("report.html")


def _section(target: Storage, run: data.Run, name: str, part: Part) -> Section:
    try:
        values = part.read(run)
    except data.NotThereError as missing:
        return Section(note=str(missing))
    draw = part.draw
    if draw is None:
        return Section(values)
    file = f"{re.sub(r'[^A-Za-z0-9._-]+', '-', run.name)}_{name}"
    return Section(values, _image(target, file, lambda: draw(values), part.screen))


def _image(target: Storage, file: str, draw: Callable[[], Figure | None], screen: str) -> Image | None:
    """The figure for the page; its PNG for papers goes to ``figures/``."""
    encoded = figures.encode(draw, screen)
    if encoded is None:
        return None
    target.write_bytes(f"figures/{file}.png", encoded.paper)
    return Image(f"data:{MIME[screen]};base64,{base64.b64encode(encoded.page).decode()}", encoded.width)


def _environment() -> jinja2.Environment:
    """Everything that comes from data is escaped, and a name that the page does not know fails."""
    loader = jinja2.PackageLoader("ka2l_ray.report", ".")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"decimal": _decimal, "share": _share, "count": _count, "cell": _cell}
    return environment


def _decimal(value: float, digits: int = 3) -> str:
    return "n/a" if math.isnan(value) else f"{value:.{digits}f}"


def _share(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.1%}"


def _count(value: int) -> str:
    return f"{value:,}"


def _cell(value: Any) -> str:
    """A value of unknown kind."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
