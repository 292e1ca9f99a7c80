"""docs/real_model.md and its plots, from the figures of benchmarks/real_model.py."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import real_model_plots as plots

TRUTHS = {"label": "unknown by semantic entropy", "wrong": "greedy answer wrong"}
POSITIONS = {
    "last_prompt_token": "last prompt token",
    "mean": "mean over the prompt's tokens",
    "attention": "attention pooling of the last 64",
}


def write_page(
    docs: Path, figures: Mapping[str, Any], two: Sequence[str], seconds: Mapping[str, tuple[float, float]], sampling: Any
) -> None:
    """Write ``real_model.md`` and ``figures/real_model_*.svg`` into ``docs``."""
    folder = docs / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    best = two[1]
    layers = {f"{TRUTHS[truth]} ({judge})": kinds for judge in two for truth, kinds in figures["layers"][judge].items()}
    numbers = {correct: figures["entropy"]["numbers"][correct] for correct in two}
    last = figures["matrix"]["last_prompt_token"][best]
    plots.save(folder / "real_model_number.svg", lambda: plots.by_number(numbers))
    plots.save(folder / "real_model_layers.svg", lambda: plots.by_layer(layers))
    plots.save(folder / "real_model_deciles.svg", lambda: plots.deciles(figures["deciles"]))
    plots.save(folder / "real_model_matrix.svg", lambda: plots.matrices({TRUTHS[t]: rows for t, rows in last.items()}))
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"d2": lambda x: _decimal(x, 2), "d3": lambda x: _decimal(x, 3), "share": _share}
    template = environment.from_string((Path(__file__).resolve().parents[1] / "docs/real_model.md.j2").read_text())
    page = template.render(
        figures,
        two=two,
        best=best,
        truths=TRUTHS,
        positions=POSITIONS,
        sampling=sampling,
        steps=_by_step(seconds),
        minutes=[sum(spent) / 60 for spent in zip(*seconds.values(), strict=True)],
        top={j: {t: {k: _top(v) for k, v in kinds.items()} for t, kinds in of.items()} for j, of in figures["layers"].items()},
        out=out_of_domain(figures["matrix"]),
    )
    (docs / "real_model.md").write_text(page)
    print(f"wrote {docs / 'real_model.md'}")


def out_of_domain(matrix: Mapping[str, Any]) -> dict[str, Any]:
    """By position, judge and truth: mean AUROC on the set fitted on, and mean on the other sets, as far as there are figures."""
    found: dict[str, Any] = {}
    for position, judges in matrix.items():
        for judge, of_truths in judges.items():
            for truth, rows in of_truths.items():
                own = [rows[a][b]["mean"] for a in rows for b in rows if a == b]
                other = [rows[a][b]["mean"] for a in rows for b in rows if a != b]
                found.setdefault(position, {}).setdefault(judge, {})[truth] = {"own": _mean(own), "other": _mean(other)}
    return found


def _mean(values: Sequence[float]) -> float:
    kept = [value for value in values if not math.isnan(value)]
    return sum(kept) / len(kept) if kept else float("nan")


def _top(layers: Mapping[str, Any]) -> dict[str, Any]:
    """The best of the layers."""
    layer = max(layers, key=lambda at: layers[at]["mean"])
    return {"layer": layer, **layers[layer]}


def _by_step(seconds: Mapping[str, tuple[float, float]]) -> dict[str, list[float]]:
    """Summed by the first word of a step's name."""
    steps: dict[str, list[float]] = {}
    for name, spent in seconds.items():
        kind = "figures: " + name.partition("/")[2] if name.startswith("figures/") else name.partition("/")[0]
        steps[kind] = [a + b for a, b in zip(steps.get(kind, [0.0, 0.0]), spent, strict=True)]
    return steps


def _decimal(value: float, digits: int) -> str:
    return "n/a" if math.isnan(value) else f"{value:.{digits}f}"


def _share(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{100 * value:.1f} %"
