"""The plots of docs/real_model.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from ka2l_ray.report.figures import COLOURS, LINES, MARKERS, STYLE

Row = Mapping[str, Any]


def save(path: Path, draw: Callable[[], Figure]) -> None:
    with mpl.rc_context(STYLE):
        draw().savefig(path, metadata={"Date": None})


def by_number(figures: Mapping[str, Mapping[str, Mapping[str, Row]]]) -> Figure:
    """AUROC of semantic entropy by the number of answers: a panel a judge of correctness, a line a judge of meaning."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    shared = np.atleast_1d(figure.subplots(1, len(figures), sharey=True))
    for axes, (correct, lines) in zip(shared, figures.items(), strict=True):
        for i, (meaning, points) in enumerate(lines.items()):
            at = [int(k) for k in points]
            mean = np.array([each["mean"] for each in points.values()])
            spread = np.array([each["spread"] for each in points.values()])
            axes.plot(at, mean, marker=MARKERS[i], color=COLOURS[i], linestyle=LINES[i % len(LINES)], label=meaning, markersize=4)
            axes.fill_between(at, mean - spread, mean + spread, color=COLOURS[i], alpha=0.15, linewidth=0)
        axes.set(title=f"correct by {correct}", xlabel="answers a question")
    shared[0].set_ylabel("AUROC against a wrong answer")
    shared[-1].legend(title="meaning by", fontsize=7)
    return figure


def by_layer(figures: Mapping[str, Mapping[str, Mapping[str, Row]]]) -> Figure:
    """AUROC of the probes by layer: a panel a truth, a line a kind."""
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    shared = np.atleast_1d(figure.subplots(1, len(figures), sharey=True))
    for axes, (truth, kinds) in zip(shared, figures.items(), strict=True):
        for i, (kind, layers) in enumerate(kinds.items()):
            at, mean = [int(layer) for layer in layers], [each["mean"] for each in layers.values()]
            error = [each["spread"] for each in layers.values()]
            axes.errorbar(at, mean, error, marker=MARKERS[i], color=COLOURS[i], linestyle=LINES[i], label=kind, markersize=4)
        axes.axhline(0.5, color="black", linewidth=0.6)
        axes.set(title=truth, xlabel="layer")
    shared[0].set_ylabel("AUROC")
    shared[0].legend(fontsize=7)
    return figure


def deciles(figures: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Accuracy by decile of p(unknown): a panel a judge."""
    figure = Figure(figsize=(6, 2.8), layout="constrained")
    shared = np.atleast_1d(figure.subplots(1, len(figures), sharey=True))
    for axes, (judge, found) in zip(shared, figures.items(), strict=True):
        rows = found["rows"]
        axes.bar(range(1, len(rows) + 1), [row["accuracy"] for row in rows], color=COLOURS[0])
        axes.axhline(found["accuracy"], color="black", linewidth=0.8, linestyle="--")
        axes.set(title=f"judged by {judge}", xlabel="decile of p(unknown)")
    shared[0].set_ylabel("greedy answers right")
    return figure


def matrices(figures: Mapping[str, Mapping[str, Mapping[str, Row]]]) -> Figure:
    """AUROC of the probe fitted on one data set (rows) on another (columns): a panel a truth."""
    figure = Figure(figsize=(9, 3.0), layout="constrained")
    for axes, (title, rows) in zip(np.atleast_1d(figure.subplots(1, len(figures))), figures.items(), strict=True):
        names = list(rows)
        values = np.array([[rows[source][target]["mean"] for target in names] for source in names])
        axes.imshow(values, vmin=0.3, vmax=1.0, cmap="cividis")
        for i, j in np.ndindex(values.shape):
            shown = "n/a" if np.isnan(values[i, j]) else f"{values[i, j]:.2f}"
            axes.text(j, i, shown, ha="center", va="center", fontsize=7, color="white" if values[i, j] < 0.7 else "black")
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=7)
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.set_title(title, fontsize=8)
        axes.grid(False)
    figure.axes[0].set_ylabel("fitted on")
    return figure
