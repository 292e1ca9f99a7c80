"""A run directory as plain values for the report: every reader gives its figures, or says why there are none.

Figures come from the manifest's facts where the stages recorded them, and from the tables otherwise. Readers that hold
single questions against gold answers are in ``answers``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from numpy.typing import NDArray

from ka2l_ray.errors import UserError
from ka2l_ray.evaluation import METRICS, Interval, measure
from ka2l_ray.ledger import Ledger, Spending
from ka2l_ray.near_duplicates import said
from ka2l_ray.store.artefacts import Artefact, RunStore, flatten
from ka2l_ray.store.storage import Storage

GROUPS = ("all", "known_before", "unknown_before")
PCA_ROWS = 2000
NAN = float("nan")


class NotThereError(Exception):
    """The run lacks what a section needs; the message is the section's note."""


@dataclass(frozen=True)
class Run:
    """An opened run directory. ``settings`` is its config.yaml by dotted key, empty where there is none."""

    name: str
    store: RunStore
    settings: dict[str, Any]

    def setting(self, key: str) -> str:
        return str(self.settings.get(key, "not recorded"))

    def rounds(self, stage: str) -> dict[int, Artefact]:
        """The artefacts of one stage, by round; of an evaluation on a named test set the name is part of the stage's."""
        found = {}
        for name, artefact in self.store.manifest.items():
            folder, _, rest = name.partition("/")
            round_, _, of = rest.partition("/")
            if folder == "rounds" and of == stage:
                found[int(round_)] = artefact
        return dict(sorted(found.items()))

    def storage(self, artefact: Artefact) -> Storage:
        """Where the artefact lies: below the run directory as given now, which may have moved since, unless it was reused."""
        return artefact.storage if artefact.reused_from else self.store.storage.at(artefact.name)

    def table(self, artefact: Artefact, file: str = "", columns: list[str] | None = None) -> pa.Table:
        """One file of an artefact, or all of them as one table.

        Raises:
            NotThereError: the files are gone, or their filesystem cannot be reached.
        """
        try:
            return self.storage(artefact).read_table(file, columns)
        except (OSError, ImportError) as error:
            raise NotThereError(f"{artefact.url} cannot be read ({error})") from error


@dataclass(frozen=True)
class Changes:
    """Test questions that the untrained model had right, and what training made of them, by one judge."""

    learned: int
    forgotten: int
    known_before: int


@dataclass(frozen=True)
class CurvePoint:
    """One evaluation. ``round`` is None before any training; ``figures`` by group, then metric; ``correct`` is by ``judge``."""

    round: int | None
    labels: int
    judge: str
    figures: dict[str, dict[str, Interval]]
    corpus_bleu: float
    metric_notes: dict[str, str]
    changes: Changes
    by_exact_match: Changes

    def interval(self, group: str, metric: str) -> Interval:
        return self.figures.get(group, {}).get(metric, Interval(NAN, NAN, NAN, 0))


@dataclass(frozen=True)
class EntropyRound:
    """Semantic entropies of one probing set, nats, and every threshold rule's verdict on them."""

    round: int
    rule: str
    entropies: NDArray[np.float64]
    threshold: float
    thresholds: dict[str, float]
    share_unknown: dict[str, float]
    judge_calls: int
    triples: int
    non_transitive_triples: int
    paragraphs: int = 0
    """Questions of whose answers more than half are paragraphs."""

    @property
    def mostly_paragraphs(self) -> bool:
        return 2 * self.paragraphs > len(self.entropies)

    @property
    def non_transitive_share(self) -> float:
        return self.non_transitive_triples / self.triples if self.triples else NAN


@dataclass(frozen=True)
class ProbeRound:
    """How the probes of one round did, by layer; ``reason`` is set, and the rest empty, where none was fitted."""

    round: int
    reason: str | None
    layers: list[int]
    validation_auroc: list[float]
    chosen: int
    test_auroc: float
    test_rows: int
    read: str = ""
    """What it reads and was fitted to, in words."""
    calibration: str = "not recorded"
    held_out: dict[str, dict[str, Any]] = field(default_factory=dict)
    """``uncertainty.calibration.summary`` by part."""
    warning: str | None = None


@dataclass(frozen=True)
class PcaRound:
    """The chosen layer's states on their two principal axes. ``points`` (n, 2), ``entropies`` (n,) nats."""

    round: int
    layer: int
    rows: int
    points: NDArray[np.float32]
    explained: tuple[float, float]
    entropies: NDArray[np.float64]


@dataclass(frozen=True)
class DriftRound:
    """AUROC of the last round's probe and of this round's own, on the same held-out questions of this round."""

    round: int
    previous: float
    own: float
    rows: int


@dataclass(frozen=True)
class Costs:
    """The ledger; ``sources`` says from which run a reused artefact came."""

    spendings: list[Spending]
    sources: dict[str, str]
    totals: dict[str, Any]


def read_runs(roots: Sequence[str]) -> list[Run]:
    """The runs, each named by as many last parts of its path as tell it from the others.

    Raises:
        UserError: none is given, or one is not a run directory.
    """
    if not roots:
        raise UserError("report: no run is given; name one run directory or several")
    distinct = list(dict.fromkeys(Storage(root).url() for root in roots))
    parts = [root.split("/") for root in distinct]
    depth = 1
    while len({"/".join(part[-depth:]) for part in parts}) < len(parts):
        depth += 1
    return [_read_run(root, "/".join(part[-depth:])) for root, part in zip(distinct, parts, strict=True)]


def _read_run(root: str, name: str) -> Run:
    store = RunStore(root)
    if not store.manifest:
        raise UserError(f"{root}: no run there (no artefact in manifest.json); give a directory that 'ka2l run' wrote")
    settings: dict[str, Any] = {}
    if store.storage.exists("config.yaml"):
        settings = flatten(yaml.safe_load(store.storage.read_bytes("config.yaml")))
    return Run(name, store, settings)


def header(run: Run) -> dict[str, str]:
    """What the run was, in words, by caption."""
    setting = run.setting
    revision = f" @ {setting('model.revision')}" if run.settings.get("model.revision") else ""
    return {
        "Strategy": _strategy(run),
        "Seed": setting("seed"),
        "Model": setting("model.path") + revision,
        "Pool": _questions(run, "pool"),
        "Test set": _test_sets(run),
        "Near-duplicates": _near_duplicates(run),
        "Probing set": f"{setting('pool.probing_size')} questions a round",
        "Sampling": f"{setting('sampling.k')} answers a question at temperature {setting('sampling.temperature')}",
        "Rounds": str(len(run.rounds("adapter"))),
        "Labels": f"{sum(labels_by_round(run).values()):,}",
        "Why it stopped": _stopped(run) or "it has not ended",
        "Fine-tuning starts from": setting("finetune.start"),
        "Threshold rule": setting("entropy.rule"),
        "Judge of meaning": _judge(run, "entropy"),
        "Right is": _right(run),
        "Equivalence": setting("entropy.equivalence"),
        "Cluster policy": setting("entropy.policy"),
    }


def _judge(run: Run, section: str) -> str:
    """A section's judge, and its model."""
    judge = run.setting(f"{section}.judge")
    key = {"nli": "nli_model", "embedding": "encoder", "cross_encoder": "cross_encoder", "llm": "llm_model"}.get(judge)
    words = {"exact": "normalised string match", "contains": "normalised containment"}
    return words.get(judge, judge) if key is None else f"{judge}, {run.setting(f'{section}.{key}')}"


def _right(run: Run) -> str:
    """Who says that an answer is right, and what of it is read."""
    what = run.settings.get("evaluation.extract")
    return _judge(run, "evaluation") + (f", of the {str(what).replace('_', ' ')} in it" if what else "")


def _questions(run: Run, name: str) -> str:
    artefact = run.store.manifest.get(name)
    return f"{artefact.facts['rows']:,} questions" if artefact else "none"


def test_sets(run: Run) -> dict[str, str]:
    """Kind of each test set by its name; one given as a plain path has none and is inductive."""
    named = {key: re.fullmatch(r"pool\.test\.(.+)\.kind", key) for key in run.settings}
    found = {match[1]: str(run.settings[key]) for key, match in named.items() if match}
    return found or ({"": "inductive"} if run.settings.get("pool.test") else {})


def _test_sets(run: Run) -> str:
    sets = test_sets(run)
    said = [f"{name}: {_questions(run, f'test/{name}')}, {kind}" for name, kind in sets.items() if name]
    return "; ".join(said) or _questions(run, "test")


def _near_duplicates(run: Run) -> str:
    """Of each test set in the pool."""
    counted = {name: run.store.manifest.get(f"near_duplicates/{name}" if name else "near_duplicates") for name in test_sets(run)}
    found = {name: said(artefact.facts["rows"], artefact.facts["of"]) for name, artefact in counted.items() if artefact}
    return "; ".join(f"{name}: {words}" if name else words for name, words in found.items()) or "none counted"


def _strategy(run: Run) -> str:
    """The configured strategy, and the rounds that had to use another (no probe could be fitted)."""
    wanted = run.setting("selection.strategy")
    used = {round_: selection.inputs.get("strategy", wanted) for round_, selection in run.rounds("selection").items()}
    others = [f"{other} in round {round_}" for round_, other in used.items() if other != wanted]
    return f"{wanted} ({', '.join(others)})" if others else wanted


def _stopped(run: Run) -> str | None:
    """The last ``stopped`` line of metrics.jsonl: a run that went on after an end has several."""
    reasons = [str(line["value"]) for line in run.store.metrics() if line["name"] == "stopped"]
    return reasons[-1] if reasons else None


def labels_by_round(run: Run) -> dict[int, int]:
    """Labels paid for in each round."""
    return {round_: int(artefact.facts.get("labels", 0)) for round_, artefact in run.rounds("annotations").items()}


def learning_curves(run: Run) -> dict[str, list[CurvePoint]]:
    """The evaluations of each test set, from the untrained model on."""
    sets = test_sets(run)
    labels = labels_by_round(run)
    found = {}
    for name in sets:
        by_round = evaluations(run, name)
        if None in by_round:
            spent = {at: sum(n for r, n in labels.items() if at is not None and r <= at) for at in by_round}
            found[name] = [_point(at, spent[at], artefact) for at, artefact in by_round.items()]
    if not found:
        raise NotThereError("the test set is not evaluated yet" if sets else "the run has no test set (pool.test)")
    return found


def evaluations(run: Run, test_set: str) -> dict[int | None, Artefact]:
    """Of a test set, by round; that of the untrained model comes first, under None."""
    last = f"/{test_set}" if test_set else ""
    found: dict[int | None, Artefact] = {}
    if f"baseline/evaluation{last}" in run.store.manifest:
        found[None] = run.store.manifest[f"baseline/evaluation{last}"]
    found.update(run.rounds(f"evaluation{last}").items())
    return found


def curve_name(run: Run, test_set: str) -> str:
    """Of one run's figures on one test set: which they are."""
    return f"{run.name}, {test_set} ({test_sets(run)[test_set]})" if test_set else run.name


def _point(round_: int | None, labels: int, artefact: Artefact) -> CurvePoint:
    facts = artefact.facts
    shown = ("correct", *METRICS)
    figures = {
        group: {metric: Interval(**values) for metric, values in facts["figures"][group].items() if metric in shown}
        for group in GROUPS
    }
    by_judge, by_exact_match = (
        Changes(**{name: int(counts[name]) for name in ("learned", "forgotten", "known_before")})
        for counts in (facts, facts["by_exact_match"])
    )
    bleu, notes = float(facts["corpus_bleu"]), dict(facts["metric_notes"])
    return CurvePoint(round_, labels, facts["judge"], figures, bleu, notes, by_judge, by_exact_match)


def curve_measure(points: Mapping[str, Sequence[CurvePoint]]) -> str:
    """What the curves' heights are, in words: the share right by the judge of the runs."""
    judges = sorted({point.judge for curve in points.values() for point in curve})
    return measure(judges[0]) if len(judges) == 1 else f"right by each run's judge ({', '.join(judges)})"


def area_under_curve(points: Sequence[CurvePoint], group: str) -> float:
    """Mean height of the curve of right answers over its range of labels (trapezoids); NaN where it has no width."""
    labels = np.array([point.labels for point in points], float)
    heights = np.array([point.interval(group, "correct").mean for point in points])
    width = np.ptp(labels)
    return float(np.trapezoid(heights, labels) / width) if width else NAN


def prompt(run: Run) -> dict[str, Any]:
    """The first sampled question's prompt, as ``prompt_view`` recorded it."""
    for artefact in run.rounds("samples").values():
        if "prompt" in artefact.facts:
            found: dict[str, Any] = artefact.facts["prompt"]
            return found
    raise NotThereError("no samples were taken yet, or by a version that did not record their prompt")


def entropy_rounds(run: Run) -> list[EntropyRound]:
    found = []
    for round_, artefact in run.rounds("entropy").items():
        entropies = run.table(artefact, columns=["semantic_entropy"])["semantic_entropy"].to_numpy()
        facts = artefact.facts
        found.append(
            EntropyRound(
                round=round_,
                rule=facts["rule"],
                entropies=entropies,
                threshold=facts["threshold"],
                thresholds=facts["thresholds"],
                share_unknown=facts["share_unknown"],
                judge_calls=int(facts["judge_calls"]),
                triples=int(facts["triples"]),
                non_transitive_triples=int(facts["non_transitive_triples"]),
                paragraphs=int(facts["paragraphs"]),
            )
        )
    if not found:
        raise NotThereError("no round has got as far as semantic entropy")
    return found


def probe_rounds(run: Run) -> list[ProbeRound]:
    found = []
    for round_, artefact in run.rounds("probe").items():
        facts = artefact.facts
        if not facts["fitted"]:
            found.append(ProbeRound(round_, str(facts["reason"]), [], [], -1, NAN, 0))
            continue
        layers = run.table(artefact, "layers.parquet", ["layer", "validation_auroc"]).sort_by("layer")
        columns = (layers["layer"].to_pylist(), layers["validation_auroc"].to_pylist())
        told: dict[str, Any] = {name: facts[name] for name in ("calibration", "held_out", "warning") if name in facts}
        if "position" in facts:
            told["read"] = f"{facts['position'].replace('_', ' ')}, fitted to {facts['target'].replace('_', ' ')}"
        figures = (int(facts["layer"]), facts["test_auroc"], int(facts["test_rows"]))
        found.append(ProbeRound(round_, None, *columns, *figures, **told))
    if not found:
        raise NotThereError("no round has got as far as a probe")
    return found


def calibrated_rounds(run: Run) -> list[ProbeRound]:
    """Rounds whose probe was held against questions that it was not fitted on."""
    found = [round_ for round_ in probe_rounds(run) if round_.held_out]
    if not found:
        raise NotThereError("no probe was fitted, or by a version that did not calibrate it")
    return found


def pca_rounds(run: Run) -> list[PcaRound]:
    """Rounds with a fitted probe: its layer is the one shown."""
    states, entropies = run.rounds("hidden_states"), run.rounds("entropy")
    found = [
        _pca_round(run, round_, int(probe.facts["layer"]), states[round_], entropies[round_])
        for round_, probe in run.rounds("probe").items()
        if probe.facts["fitted"]
    ]
    if not found:
        raise NotThereError("no probe was fitted, so no layer was chosen")
    return found


def _pca_round(run: Run, round_: int, layer: int, states: Artefact, entropy: Artefact) -> PcaRound:
    uncertain = run.table(entropy, columns=["question_id", "semantic_entropy"])
    entropy_of = dict(zip(uncertain["question_id"].to_pylist(), uncertain["semantic_entropy"].to_pylist(), strict=True))
    table = run.table(states, columns=["question_id", f"layer_{layer}"])
    column = table[f"layer_{layer}"].combine_chunks()
    if not pa.types.is_fixed_size_list(column.type):
        raise NotThereError("the probe reads a state of every token (probe.position attention): a question has no one state")
    hidden: NDArray[np.floating] = column.flatten().to_numpy().reshape(-1, column.type.list_size)
    ids = table["question_id"].to_pylist()
    kept = np.array([i for i, question_id in enumerate(ids) if question_id in entropy_of], int)
    if len(kept) > PCA_ROWS:
        kept = np.sort(np.random.default_rng(0).choice(kept, PCA_ROWS, replace=False))
    if len(kept) < 2:
        raise NotThereError(f"round {round_} has hidden states and entropies of fewer than two of the same questions")
    points, explained = principal_components(hidden[kept].astype(np.float32))
    return PcaRound(round_, layer, len(ids), points, explained, np.array([entropy_of[ids[i]] for i in kept]))


def principal_components(hidden_ND: NDArray[np.float32]) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """(n, 2) coordinates on the two principal axes, and the share of the variance along each; n >= 2."""
    centred = hidden_ND - hidden_ND.mean(axis=0)
    left, strengths, _ = np.linalg.svd(centred, full_matrices=False)
    points = np.zeros((len(centred), 2), np.float32)
    kept = min(2, len(strengths))
    points[:, :kept] = left[:, :kept] * strengths[:kept]
    shares = np.zeros(2)
    shares[:kept] = strengths[:kept] ** 2 / max(float((strengths**2).sum()), np.finfo(np.float32).tiny)
    return points, (float(shares[0]), float(shares[1]))


def drift_rounds(run: Run) -> list[DriftRound]:
    found = []
    for round_, artefact in run.rounds("probe").items():
        drift = artefact.facts.get("drift")
        if drift is not None:
            found.append(DriftRound(round_, drift["auroc_previous"], drift["auroc_own"], int(drift["rows"])))
    if not found:
        one = len(run.rounds("probe")) < 2
        raise NotThereError("drift is measured from the second round on" if one else "no probe has an earlier one beside it")
    return found


def costs(run: Run) -> Costs:
    ledger = Ledger(run.store)
    sources = {name: entry.reused_from for name, entry in run.store.manifest.items() if entry.reused_from}
    return Costs(ledger.spendings(), sources, ledger.totals())


@dataclass(frozen=True)
class Summary:
    """``summary.json`` as a table: one row a figure, one column an arm; a plain value spans them all.

    ``by_arm`` is row, then arm; figures of an arm that are nested have rows of their own.
    """

    arms: list[str]
    values: dict[str, Any]
    by_arm: dict[str, dict[str, Any]]


def summary(out: Storage) -> Summary | None:
    """The demo's summary beside the report, if there is one."""
    if not out.exists("summary.json"):
        return None
    values: dict[str, Any] = {}
    by_arm: dict[str, dict[str, Any]] = {}
    for name, value in json.loads(out.read_bytes("summary.json")).items():
        if not isinstance(value, dict):
            values[name] = value
            continue
        for arm, inner in value.items():
            for row, leaf in flatten(inner, name).items():
                by_arm.setdefault(row, {})[arm] = leaf
    return Summary(list(dict.fromkeys(arm for row in by_arm.values() for arm in row)), values, by_arm)
