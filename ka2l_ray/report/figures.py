"""The report's figures: pure functions from the readers' values to matplotlib figures, without pyplot's global state.

Colours are Okabe and Ito's, which tell apart without red and green; every line also has its own marker.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ka2l_ray.report.answers import Forgetting, QuadrantRound
from ka2l_ray.report.data import CurvePoint, DriftRound, EntropyRound, PcaRound, ProbeRound, curve_measure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":", "-.")
BLUE, ORANGE = COLOURS[:2]
GREY = "#8c96a0"
CURVE_TITLES = {"all": "all questions", "known_before": "known before training", "unknown_before": "unknown before training"}
PAPER_DPI, SCREEN_DPI, CSS_DPI = 200, 144, 96
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e9ec",
    "grid.linewidth": 0.6,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "svg.hashsalt": "ka2l",
}


@dataclass(frozen=True)
class Encoded:
    """A figure for the page and, as PNG at 200 dpi, for a paper. ``width`` in CSS pixels."""

    page: bytes
    paper: bytes
    width: int


def encode(draw: Callable[[], Figure | None], screen: str) -> Encoded | None:
    """The figure that ``draw`` makes; None where it has nothing to draw.

    Args:
        screen: format for the page: ``svg``, or ``png`` for figures of many points.
    """
    with mpl.rc_context(STYLE):
        figure = draw()
        if figure is None:
            return None
        # Without a date, the same run gives the same bytes.
        metadata = {"Date": None} if screen == "svg" else None
        page, paper = io.BytesIO(), io.BytesIO()
        figure.savefig(page, format=screen, dpi=SCREEN_DPI, metadata=metadata)
        figure.savefig(paper, format="png", dpi=PAPER_DPI)
        width = round(figure.get_figwidth() * CSS_DPI)
    return Encoded(page.getvalue(), paper.getvalue(), width)


def learning_curves(curves: dict[str, list[CurvePoint]]) -> Figure:
    """The share of right answers with its intervals against labels: one panel a group of questions, one line a run."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels: Sequence[Axes] = figure.subplots(1, 3, sharey=True)
    widest = max(point.labels for points in curves.values() for point in points)
    for i, (name, points) in enumerate(curves.items()):
        # Runs of equal budgets would hide each other's intervals.
        aside = (i - (len(curves) - 1) / 2) * 0.012 * widest
        for axes, group in zip(panels, CURVE_TITLES, strict=True):
            intervals = [point.interval(group, "correct") for point in points]
            mean = np.array([interval.mean for interval in intervals])
            low, high = (np.array([getattr(interval, side) for interval in intervals]) for side in ("low", "high"))
            axes.errorbar(
                np.array([point.labels for point in points]) + aside,
                mean,
                yerr=np.maximum(0, [mean - low, high - mean]),
                label=_plain(name),
                color=COLOURS[i % len(COLOURS)],
                marker=MARKERS[i % len(MARKERS)],
                linestyle=LINES[i // len(COLOURS) % len(LINES)],
                markersize=4,
                capsize=2.5,
                linewidth=1.4,
            )
    for axes, title in zip(panels, CURVE_TITLES.values(), strict=True):
        axes.set_title(title)
        axes.set_xlabel("labels spent")
        axes.set_ylim(-0.03, 1.03)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    panels[0].set_ylabel(f"{curve_measure(curves)} (share)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(curves)))
    return figure


def entropy_histograms(rounds: list[EntropyRound]) -> Figure:
    """One panel a round; rules that agree share one line."""
    figure, panels = _panels(len(rounds), height=3.0)
    highest = max(float(round_.entropies.max(initial=1.0)) for round_ in rounds)
    for axes, round_ in zip(panels, rounds, strict=False):
        axes.hist(round_.entropies, bins=_bins(highest, round_.threshold), color=BLUE, alpha=0.75)
        for i, (at, rules) in enumerate(_by_threshold(round_.thresholds).items()):
            chosen = round_.rule in rules
            axes.axvline(
                at,
                color="black" if chosen else COLOURS[1 + i],
                linestyle="-" if chosen else LINES[1 + i % 3],
                linewidth=1.5,
                label=f"{', '.join(rules)}: {at:.3f}{' (in force)' if chosen else ''}",
            )
        axes.set_title(f"round {round_.round}")
        axes.set_xlabel("semantic entropy (nats)")
        axes.set_ylabel("questions")
        axes.legend(fontsize=8, title="threshold (nats)", title_fontsize=8)
    return figure


def reliability_diagrams(rounds: list[ProbeRound]) -> Figure | None:
    """Share unknown against p(unknown), by bins of equally many questions, with 95 % intervals; a panel a round."""
    figure = Figure(figsize=(3.4 * len(rounds), 3.4), layout="constrained")
    panels = figure.subplots(1, len(rounds), squeeze=False)[0]
    for axes, round_ in zip(panels, rounds, strict=True):
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
        for (part, found), colour, marker in zip(round_.held_out.items(), COLOURS, MARKERS, strict=False):
            points = found["reliability"]
            p, share = [point["p"] for point in points], [point["share"] for point in points]
            errors = [[s - q["low"] for s, q in zip(share, points)], [q["high"] - s for s, q in zip(share, points)]]
            errors = [[max(0.0, error) for error in side] for side in errors]
            axes.errorbar(p, share, yerr=errors, color=colour, marker=marker, markersize=4, linewidth=1, label=part)
        axes.set_title(f"round {round_.round}")
        axes.set_xlabel("p(unknown)")
        axes.set_ylabel("share unknown")
        axes.legend(fontsize=8)
    return figure


def auroc_by_layer(rounds: list[ProbeRound]) -> Figure | None:
    """Validation AUROC of every layer's probe, the chosen layer ringed."""
    fitted = [round_ for round_ in rounds if round_.reason is None]
    if not fitted:
        return None
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes: Axes = figure.subplots()
    for i, round_ in enumerate(fitted):
        colour = COLOURS[i % len(COLOURS)]
        axes.plot(
            round_.layers,
            round_.validation_auroc,
            color=colour,
            marker=MARKERS[i % len(MARKERS)],
            markersize=4,
            label=f"round {round_.round}",
        )
        height = round_.validation_auroc[round_.layers.index(round_.chosen)]
        axes.scatter([round_.chosen], [height], s=140, facecolors="none", edgecolors=colour, linewidths=1.6)
    axes.axhline(0.5, color=GREY, linewidth=1, linestyle="--", label="chance")
    axes.set_xlabel("layer (0: embeddings)")
    axes.set_ylabel("validation AUROC")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.12)
    axes.legend(fontsize=8)
    return figure


def state_maps(rounds: list[PcaRound]) -> Figure:
    """Hidden states on their two principal axes, coloured by semantic entropy on one scale."""
    figure, panels = _panels(len(rounds), height=3.6)
    highest = max(float(round_.entropies.max(initial=0.0)) for round_ in rounds)
    for axes, round_ in zip(panels, rounds, strict=False):
        first, second = round_.points.T
        dots = axes.scatter(
            first, second, c=round_.entropies, cmap="viridis", vmin=0, vmax=highest or 1.0, s=11, alpha=0.8, linewidths=0
        )
        axes.set_title(f"round {round_.round}, layer {round_.layer}")
        axes.set_xlabel(f"first principal axis ({round_.explained[0]:.0%} of variance)")
        axes.set_ylabel(f"second ({round_.explained[1]:.0%})")
        axes.grid(False)
    figure.colorbar(dots, ax=panels, label="semantic entropy (nats)")
    return figure


def quadrants(rounds: list[QuadrantRound]) -> Figure:
    """Entropy of rightly and of wrongly answered questions, stacked, either side of the threshold."""
    figure, panels = _panels(len(rounds), height=3.0)
    for axes, round_ in zip(panels, rounds, strict=False):
        parts = [round_.right_entropies, round_.wrong_entropies]
        highest = max(float(part.max(initial=1.0)) for part in parts)
        names = [f"greedy answer {word} ({len(part):,})" for word, part in zip(("right", "wrong"), parts, strict=True)]
        axes.hist(parts, bins=_bins(highest, round_.threshold), stacked=True, color=[BLUE, ORANGE], label=names)
        axes.axvline(round_.threshold, color="black", linewidth=1.5, label=f"threshold {round_.threshold:.3f}")
        axes.set_title(f"round {round_.round}, {round_.judge}")
        axes.set_xlabel("semantic entropy (nats)")
        axes.set_ylabel("questions")
        axes.legend(fontsize=8)
    return figure


def learned_and_forgotten(by_test_set: dict[str, Forgetting]) -> Figure:
    """Learned upwards, forgotten downwards, by round; one panel a test set."""
    figure, panels = _panels(len(by_test_set), height=3.0)
    for axes, (name, forgetting) in zip(panels, by_test_set.items(), strict=False):
        rounds, points = list(forgetting.points), list(forgetting.points.values())
        ups = axes.bar(rounds, [point.changes.learned for point in points], width=0.6, color=BLUE, label="learned")
        downs = axes.bar(rounds, [-point.changes.forgotten for point in points], width=0.6, color=ORANGE, label="forgotten")
        axes.bar_label(ups, [f"{point.changes.learned:,}" for point in points], padding=2)
        axes.bar_label(downs, [f"{point.changes.forgotten:,}" for point in points], padding=2)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_title(_plain(name))
        axes.set_xticks(rounds)
        axes.set_xlim(min(rounds) - 1, max(rounds) + 1)
        axes.set_xlabel("after round")
        axes.set_ylabel("test questions")
        axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):,.0f}")
        axes.margins(y=0.18)
        axes.legend(fontsize=8)
    return figure


def drift(rounds: list[DriftRound]) -> Figure:
    """AUROC of the previous round's probe beside this round's own."""
    figure = Figure(figsize=(6.4, 3.0), layout="constrained")
    axes: Axes = figure.subplots()
    at = [round_.round for round_ in rounds]
    own, previous = [round_.own for round_ in rounds], [round_.previous for round_ in rounds]
    axes.plot(at, own, color=BLUE, marker="o", label="this round's probe")
    axes.plot(at, previous, color=ORANGE, marker="s", linestyle="--", label="previous round's probe")
    axes.axhline(0.5, color=GREY, linewidth=1, linestyle=":", label="chance")
    axes.set_xticks(at)
    axes.set_xlabel("round")
    axes.set_ylabel("AUROC against the label")
    axes.margins(y=0.12)
    axes.legend(fontsize=8)
    return figure


def _panels(n: int, height: float) -> tuple[Figure, list[Axes]]:
    """At least ``n`` axes, three a row; those beyond are hidden."""
    columns = min(3, n)
    rows = math.ceil(n / columns)
    figure = Figure(figsize=(6.4 if columns == 1 else 9, height * rows), layout="constrained")
    panels: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in panels[n:]:
        spare.set_visible(False)
    return figure, panels


def _bins(highest: float, threshold: float) -> list[float]:
    """Edges of some 40 equal bins from 0 nats; one edge is the threshold, so that no bin holds both known and unknown."""
    width = highest / 40
    below, above = math.ceil(threshold / width), math.floor((highest - threshold) / width) + 1
    return [threshold + width * i for i in range(-below, max(0, above) + 1)]


def _by_threshold(thresholds: dict[str, float]) -> dict[float, list[str]]:
    """Rules by the threshold they give, lowest first."""
    rules: dict[float, list[str]] = {}
    for rule, at in sorted(thresholds.items(), key=lambda item: item[1]):
        rules.setdefault(at, []).append(rule)
    return rules


def _plain(name: str) -> str:
    """A run's name as matplotlib would show it unchanged: a pair of dollars is mathematics to it."""
    return name.replace("$", r"\$")
