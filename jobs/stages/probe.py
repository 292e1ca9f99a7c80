"""Stage probe: one classifier a layer under Ray Train, the layer chosen on validation (KA2L section 3.2.3).

Each worker fits its share of the layers one after another and keeps the best probe only; a layer that an earlier attempt
finished is not fitted again. The chosen probe is then calibrated and held against the test part, once.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.train
import torch
from numpy.typing import NDArray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from ka2l_ray import schema
from ka2l_ray.actors.placement import workers_now
from ka2l_ray.config import ProbeConfig
from ka2l_ray.errors import UserError
from ka2l_ray.jobs.stages import train_loops
from ka2l_ray.normalization import normalize_question
from ka2l_ray.probes import (
    FILE,
    PAGE,
    DegenerateLabelsError,
    LayerFit,
    Part,
    ProbeCard,
    Source,
    better,
    calibrate,
    card_page,
    check_finite,
    check_labels,
    check_targets,
    fit_probe,
    layer_seed,
    learned_nothing,
    predict,
    probe_from_bytes,
    probe_to_bytes,
    soft_target,
    split_indices,
)
from ka2l_ray.store.artefacts import Artefact, Store
from ka2l_ray.store.storage import Storage
from ka2l_ray.uncertainty.calibration import figures, summary
from ka2l_ray.uncertainty.ranking import auroc

logger = logging.getLogger(__name__)

WORKER_RETRIES = 2


def probe(
    store: Store,
    name: str,
    *,
    hidden_states: Artefact,
    entropy: Artefact,
    config: ProbeConfig,
    seed: int,
    previous: Artefact | None = None,
    use_gpu: bool = False,
) -> Artefact:
    """``probe.safetensors`` of the chosen layer with its card (``README.md``), ``layers.parquet`` (``schema.PROBE_LAYERS``) and
    ``predictions.parquet``.

    The position is that of the hidden states; questions whose label is null are left out.

    Args:
        previous: an earlier round's probe; facts ``drift`` say how well it does on these states, beside this one, both on
            the questions outside the training part.

    Where the labels (or ``config.target``) leave nothing to tell apart, the artefact says so in its facts (``fitted`` false,
    ``reason``) and holds no probe. Facts ``warning`` says where the probe learned nothing.

    Raises:
        UserError: the tables share no question, or a hidden state is not finite.
    """
    settings = config.model_dump(mode="json", exclude={"workers", "position"})
    inputs = {"stage": "probe", "hidden_states": hidden_states.key, "entropy": entropy.key, "probe": settings, "seed": seed}
    inputs["previous"] = previous.key if previous else None

    def build(work: Storage) -> dict[str, Any]:
        rows = ProbingRows(hidden_states.storage, entropy.storage, config)
        try:
            rows.check(split_indices(rows.questions))
        except DegenerateLabelsError as reason:
            return {"fitted": False, "reason": str(reason), "rows": len(rows.labels)}
        layers = rows.layers if config.layers == "all" else config.layers
        missing = sorted(set(layers) - set(rows.layers))
        if missing:
            raise UserError(f"{hidden_states.url}: no states of layer {missing[0]}; it holds {rows.layers}")
        trainer = TorchTrainer(
            train_loops.fit_layers,
            train_loop_config={
                "hidden_states": hidden_states.url,
                "entropy": entropy.url,
                "work": work.url(),
                "previous": previous.url if previous else None,
                "layers": layers,
                "source": hidden_states.facts.get("source"),
                "config": config.model_dump(mode="json"),
                "seed": seed,
            },
            scaling_config=ScalingConfig(
                num_workers=workers_now("probe", config.workers, {"CPU": 1.0, "GPU": float(use_gpu)}),
                use_gpu=use_gpu,
                resources_per_worker={"CPU": 1},
            ),
            run_config=RunConfig(
                name="probe",
                storage_path=work.at("_scratch/ray_train").url(),
                failure_config=FailureConfig(max_failures=WORKER_RETRIES),
            ),
        )
        trainer.fit()
        facts: dict[str, Any] = json.loads(work.read_bytes("_scratch/facts.json"))
        if facts["warning"]:
            logger.warning("%s: %s", name, facts["warning"])
        return {"fitted": True, "rows": len(rows.labels), **facts}

    return store.compute(name, inputs, build)


class ProbingRows:
    """The probing set: ids, questions, labels and what is fitted, in the order of the hidden-state table; states by layer, on
    demand."""

    def __init__(self, hidden_states: Storage, entropy: Storage, config: ProbeConfig) -> None:
        self.storage, self.config = hidden_states, config
        head = hidden_states.read_table("", columns=["question_id", "question", "error"])
        wanted = ["question_id", "label"]
        if config.target != "label":
            wanted += ["semantic_entropy", "cluster_ids", "abstains", "bound"]
            there = entropy.read_schema(entropy.parquet_files()[0]).names
            if missing := [name for name in wanted if name not in there]:
                raise UserError(
                    f"{entropy.url()}: probe.target {config.target} wants a column {missing[0]}; set probe.target=label"
                )
        judged = entropy.read_table("", columns=wanted).to_pylist()
        known = {row["question_id"]: row for row in judged if row["label"] is not None}
        ids, questions = head["question_id"].to_pylist(), head["question"].to_pylist()
        failed = head["error"].is_valid().to_pylist()
        self.rows = [i for i, question_id in enumerate(ids) if question_id in known and not failed[i]]
        if not self.rows:
            raise UserError(f"{hidden_states.url()} and {entropy.url()} share no question; give tables of the same questions")
        self.question_ids = [ids[i] for i in self.rows]
        self.questions = [questions[i] for i in self.rows]
        labelled = [known[question_id] for question_id in self.question_ids]
        self.labels: NDArray[np.int8] = np.array([row["label"] for row in labelled], np.int8)
        self.targets: NDArray[Any] = self.labels
        if config.target != "label":
            if any(row["bound"] != "exact" for row in labelled):
                raise UserError(
                    f"{entropy.url()}: probe.target {config.target} is fitted to all answers, these rows hold bounds; "
                    "leave out sampling.stop_when_decided and entropy.label_only"
                )
            soft = [
                soft_target(
                    config.target, row["semantic_entropy"], row["cluster_ids"], unanswered=row["label"] == 1 and row["abstains"]
                )
                for row in labelled
            ]
            self.targets = np.array(soft, np.float32)
        first = hidden_states.read_schema(hidden_states.parquet_files()[0])
        self.layers = sorted(int(name.removeprefix("layer_")) for name in first.names if name.startswith("layer_"))
        self.position: schema.Position = (first.metadata or {}).get(b"position", b"last_prompt_token").decode()

    def check(self, parts: dict[Part, NDArray[np.int64]]) -> None:
        """Raise DegenerateLabelsError where there is nothing to fit."""
        if self.config.target == "label":
            check_labels(self.labels, parts)
        else:
            check_targets(self.targets, parts, self.config.target)

    def states(self, layer: int) -> NDArray[np.floating]:
        """(n, d) states of one layer; (n, T, d) of tokens, padded with NaN.

        Raises:
            UserError: a value that is not finite.
        """
        column = self.storage.read_table("", columns=[f"layer_{layer}"]).column(0).combine_chunks().take(pa.array(self.rows))
        states: NDArray[np.floating] = _numbers(column)
        if self.position != "attention":
            check_finite(states, self.question_ids, layer)
            return states
        lengths = pc.list_value_length(column).to_numpy()
        check_finite(states, np.repeat(self.question_ids, lengths).tolist(), layer)
        padded = np.full((len(lengths), lengths.max(), states.shape[1]), np.nan, states.dtype)
        padded[np.arange(lengths.max())[None] < lengths[:, None]] = states
        return padded


def _numbers(column: Any) -> NDArray[np.floating]:
    """(rows, d) of a column of fixed-size lists, or of lists of them."""
    column = column.flatten() if pa.types.is_list(column.type) else column
    numbers: NDArray[np.floating] = column.flatten().to_numpy().reshape(-1, column.type.list_size)
    return numbers


def fit_layers(job: dict[str, Any]) -> None:
    """Train loop of one worker: its share of the layers."""
    context = ray.train.get_context()
    mine = job["layers"][context.get_world_rank() :: context.get_world_size()]
    config = ProbeConfig(**job["config"])
    rows = ProbingRows(Storage(job["hidden_states"]), Storage(job["entropy"]), config)
    parts = split_indices(rows.questions)
    work = Storage(job["work"])
    scratch = work.at("_scratch/layers")
    how = _how(config)
    source = Source(**job["source"]) if job["source"] else None
    best: LayerFit | None = None
    for layer in mine:
        if scratch.exists(f"{layer}.json"):
            fit = LayerFit(**json.loads(scratch.read_bytes(f"{layer}.json")))
        else:
            states = rows.states(layer)
            model, fit = fit_probe(
                states[parts["train"]],
                rows.targets[parts["train"]],
                layer=layer,
                seed=layer_seed(job["seed"], layer),
                validation=(states[parts["validation"]], rows.targets[parts["validation"]]),
                **how,
            )
            card = _card(config, rows.position, layer, states.shape[-1], source)
            scratch.write_bytes(f"{layer}.safetensors", probe_to_bytes(model, card))
            scratch.write_bytes(f"{layer}.json", json.dumps(asdict(fit)).encode())
        if best is None or better(fit, best):
            if best is not None:
                scratch.delete(f"{best.layer}.safetensors")
            best = fit
        else:
            scratch.delete(f"{layer}.safetensors")
    ray.train.report({"layers": len(mine)})  # a barrier: every layer is fitted
    if context.get_world_rank() == 0:
        chosen = _choose(work, len(job["layers"]))
        facts = {**asdict(chosen), **_finish(work, rows, parts, chosen, layer_seed(job["seed"], chosen.layer), how)}
        if job["previous"]:
            facts["drift"] = _drift(work, Storage(job["previous"]), rows, parts)
        work.write_bytes("_scratch/facts.json", json.dumps(facts).encode())
    ray.train.report({"done": True})


def _how(config: ProbeConfig) -> dict[str, Any]:
    """Arguments of ``fit_probe`` that the configuration gives."""
    elsewhere = {"target", "position", "calibration", "layers", "workers"}
    return {**config.model_dump(exclude=elsewhere), "device": "cuda" if torch.cuda.is_available() else "cpu"}


def _card(config: ProbeConfig, position: schema.Position, layer: int, dimension: int, source: Source | None) -> ProbeCard:
    return ProbeCard(
        kind=config.kind,
        layer=layer,
        dimension=dimension,
        hidden_width=config.hidden_width,
        position=position,
        target=config.target,
        standardized=config.standardize or config.kind == "linear",
        biases=config.standardize and config.kind == "mlp",
        class_weights=config.class_weights,
        source=source,
    )


def _choose(work: Storage, n_layers: int) -> LayerFit:
    """The layer that does best on validation; the table of how every layer did."""
    scratch = work.at("_scratch/layers")
    fits = [LayerFit(**json.loads(scratch.read_bytes(name))) for name in scratch.names() if name.endswith(".json")]
    assert len(fits) == n_layers
    fits.sort(key=lambda fit: fit.layer)
    chosen = fits[0]
    for fit in fits[1:]:
        chosen = fit if better(fit, chosen) else chosen
    work.write_table("layers.parquet", pa.Table.from_pylist([asdict(fit) for fit in fits], schema=schema.PROBE_LAYERS))
    return chosen


def _finish(
    work: Storage, rows: ProbingRows, parts: dict[Part, NDArray[np.int64]], chosen: LayerFit, seed: int, how: dict[str, Any]
) -> dict[str, Any]:
    """Calibrate the chosen probe, put it in place with its card, and hold it against the probing set, as
    ``predictions.parquet``: the one look at the test part."""
    data = work.read_bytes(f"_scratch/layers/{chosen.layer}.safetensors")
    model, card = probe_from_bytes(data, work.url())
    fitted = np.concatenate([parts["train"], parts["validation"]])
    groups = [normalize_question(rows.questions[row]) for row in fitted]
    validating = np.arange(len(fitted)) >= len(parts["train"])
    states = rows.states(chosen.layer)
    calibrate(
        model,
        states[fitted],
        rows.labels[fitted],
        validating,
        rows.config.calibration,
        targets=rows.targets[fitted],
        groups=groups,
        seed=seed,
        **how,
    )
    p = predict(model, states)
    part = np.empty(len(p), dtype=object)
    for part_name, indices in parts.items():
        part[indices] = part_name
    columns = {"question_id": rows.question_ids, "part": part.tolist(), "label": rows.labels, "p_unknown": p}
    work.write_table("predictions.parquet", pa.table(columns))
    held_out = {name: summary(rows.labels[parts[name]], p[parts[name]]) for name in ("validation", "test")}
    card = replace(card, calibration=model.calibration, figures=held_out)
    work.write_bytes(FILE, probe_to_bytes(model, card))
    work.write_bytes(PAGE, card_page(card).encode())
    test = figures(rows.labels[parts["test"]], p[parts["test"]])
    validated = figures(rows.labels[parts["validation"]], p[parts["validation"]])
    warning = learned_nothing(chosen, rows.targets[parts["train"]], rows.config.class_weights, validated)
    return {
        "calibration": model.calibration,
        "position": rows.position,
        "target": rows.config.target,
        "test_rows": test.rows,
        "test_auroc": test.auroc,
        "test_accuracy": test.accuracy,
        "held_out": held_out,
        "warning": warning,
    }


def _drift(work: Storage, previous: Storage, rows: ProbingRows, parts: dict[Part, NDArray[np.int64]]) -> dict[str, float]:
    held_out = np.concatenate([parts["validation"], parts["test"]])
    truth = rows.labels[held_out]
    return {
        "rows": len(held_out),
        "auroc_previous": auroc(truth, _predictions(previous, rows)[held_out]),
        "auroc_own": auroc(truth, _predictions(work, rows)[held_out]),
    }


def _predictions(probe: Storage, rows: ProbingRows) -> NDArray[np.float32]:
    """(n,) p(unknown) of the probing set by a saved probe, from the layer it was fitted on."""
    model, card = probe_from_bytes(probe.read_bytes(FILE), probe.url())
    return predict(model, rows.states(card.layer))
