"""Stage probe: one classifier a layer under Ray Train, the layer chosen on validation (KA2L section 3.2.3).

Each worker fits its share of the layers one after another and keeps the best probe only; a layer that an earlier attempt
finished is not fitted again.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import ray.train
import torch
from numpy.typing import NDArray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from ka2l_ray import schema
from ka2l_ray.config import ProbeConfig
from ka2l_ray.errors import UserError
from ka2l_ray.jobs.stages import train_loops
from ka2l_ray.probes import (
    DegenerateLabelsError,
    LayerFit,
    Part,
    ProbeCard,
    better,
    check_finite,
    check_labels,
    fit_probe,
    p_unknown,
    probe_from_bytes,
    probe_to_bytes,
    split_indices,
)
from ka2l_ray.seeds import derive_seed
from ka2l_ray.store.artefacts import Artefact, Store
from ka2l_ray.store.storage import Storage
from ka2l_ray.uncertainty.ranking import auroc


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
    """``probe.safetensors`` of the chosen layer, ``layers.parquet`` (``schema.PROBE_LAYERS``) and ``predictions.parquet``.

    Args:
        previous: an earlier round's probe; facts ``drift`` say how well it does on these states, beside this one, both on
            the questions outside the training part.

    Where the labels leave nothing to tell apart, the artefact says so in its facts (``fitted`` false, ``reason``) and holds
    no probe.

    Raises:
        UserError: the tables share no question, or a hidden state is not finite.
    """
    settings = config.model_dump(mode="json", exclude={"workers"})
    inputs = {"stage": "probe", "hidden_states": hidden_states.key, "entropy": entropy.key, "probe": settings, "seed": seed}
    inputs["previous"] = previous.key if previous else None

    def build(work: Storage) -> dict[str, Any]:
        rows = ProbingRows(hidden_states.storage, entropy.storage)
        try:
            check_labels(rows.labels, split_indices(rows.questions))
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
                "config": config.model_dump(mode="json"),
                "seed": seed,
            },
            scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=use_gpu, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(name="probe", storage_path=work.at("_scratch/ray_train").url()),
        )
        trainer.fit()
        facts: dict[str, Any] = json.loads(work.read_bytes("_scratch/facts.json"))
        return {"fitted": True, "rows": len(rows.labels), **facts}

    return store.compute(name, inputs, build)


class ProbingRows:
    """The probing set: ids, questions and labels in the order of the hidden-state table; states by layer, on demand."""

    def __init__(self, hidden_states: Storage, entropy: Storage) -> None:
        self.storage = hidden_states
        head = hidden_states.read_table("", columns=["question_id", "question", "error"])
        labelled = entropy.read_table("", columns=["question_id", "label"])
        label_of = dict(zip(labelled["question_id"].to_pylist(), labelled["label"].to_pylist(), strict=True))
        ids, questions = head["question_id"].to_pylist(), head["question"].to_pylist()
        failed = head["error"].is_valid().to_pylist()
        self.rows = [i for i, question_id in enumerate(ids) if question_id in label_of and not failed[i]]
        if not self.rows:
            raise UserError(f"{hidden_states.url()} and {entropy.url()} share no question; give tables of the same questions")
        self.question_ids = [ids[i] for i in self.rows]
        self.questions = [questions[i] for i in self.rows]
        self.labels: NDArray[np.int8] = np.array([label_of[i] for i in self.question_ids], np.int8)
        first = hidden_states.read_schema(hidden_states.parquet_files()[0])
        self.layers = sorted(int(name.removeprefix("layer_")) for name in first.names if name.startswith("layer_"))

    def states(self, layer: int) -> NDArray[np.floating]:
        """(n, d) states of one layer.

        Raises:
            UserError: a value that is not finite.
        """
        column = self.storage.read_table("", columns=[f"layer_{layer}"]).column(0).combine_chunks()
        dimension = column.type.list_size
        states: NDArray[np.floating] = column.take(pa.array(self.rows)).flatten().to_numpy().reshape(-1, dimension)
        check_finite(states, self.question_ids, layer)
        return states


def fit_layers(job: dict[str, Any]) -> None:
    """Train loop of one worker: its share of the layers."""
    context = ray.train.get_context()
    mine = job["layers"][context.get_world_rank() :: context.get_world_size()]
    config = ProbeConfig(**job["config"])
    rows = ProbingRows(Storage(job["hidden_states"]), Storage(job["entropy"]))
    parts = split_indices(rows.questions)
    work = Storage(job["work"])
    scratch = work.at("_scratch/layers")
    best: LayerFit | None = None
    for layer in mine:
        if scratch.exists(f"{layer}.json"):
            fit = LayerFit(**json.loads(scratch.read_bytes(f"{layer}.json")))
        else:
            states = rows.states(layer)
            model, fit = fit_probe(
                states[parts["train"]],
                rows.labels[parts["train"]],
                layer=layer,
                kind=config.kind,
                hidden_width=config.hidden_width,
                learning_rate=config.learning_rate,
                epochs=config.epochs,
                batch_size=config.batch_size,
                seed=derive_seed(job["seed"], "probe", layer) % 2**63,
                validation=(states[parts["validation"]], rows.labels[parts["validation"]]),
                device="cuda" if torch.cuda.is_available() else "cpu",
            )
            card = ProbeCard(config.kind, layer, states.shape[1], config.hidden_width)
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
        facts = {**_choose(work, len(job["layers"])), **_judge(work, rows, parts)}
        if job["previous"]:
            facts["drift"] = _drift(work, Storage(job["previous"]), rows, parts)
        work.write_bytes("_scratch/facts.json", json.dumps(facts).encode())
    ray.train.report({"done": True})


def _choose(work: Storage, n_layers: int) -> dict[str, Any]:
    """Put the probe of the layer that does best on validation in place, and the table of how every layer did."""
    scratch = work.at("_scratch/layers")
    fits = [LayerFit(**json.loads(scratch.read_bytes(name))) for name in scratch.names() if name.endswith(".json")]
    assert len(fits) == n_layers
    fits.sort(key=lambda fit: fit.layer)
    chosen = fits[0]
    for fit in fits[1:]:
        chosen = fit if better(fit, chosen) else chosen
    work.write_bytes("probe.safetensors", scratch.read_bytes(f"{chosen.layer}.safetensors"))
    work.write_table("layers.parquet", pa.Table.from_pylist([asdict(fit) for fit in fits], schema=schema.PROBE_LAYERS))
    return asdict(chosen)


def _judge(work: Storage, rows: ProbingRows, parts: dict[Part, NDArray[np.int64]]) -> dict[str, float]:
    """The chosen probe on the whole probing set, as ``predictions.parquet``; the one look at its test part."""
    p = _predictions(work, rows)
    part = np.empty(len(p), dtype=object)
    for part_name, indices in parts.items():
        part[indices] = part_name
    columns = {"question_id": rows.question_ids, "part": part.tolist(), "label": rows.labels, "p_unknown": p}
    work.write_table("predictions.parquet", pa.table(columns))
    test = parts["test"]
    return {
        "test_rows": len(test),
        "test_auroc": auroc(rows.labels[test], p[test]),
        "test_accuracy": float(((p[test] >= 0.5) == rows.labels[test]).mean()) if len(test) else float("nan"),
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
    model, card = probe_from_bytes(probe.read_bytes("probe.safetensors"), probe.url())
    p: NDArray[np.float32] = p_unknown(model, torch.from_numpy(np.asarray(rows.states(card.layer), np.float32))).numpy()
    return p
