"""Stage finetune: LoRA on the labels so far under Ray Train and DeepSpeed ZeRO-2 (KA2L section 4.3.3).

The workers share out each optimiser step; the loss is normalised over the whole step, so one worker and several give the
same adapter. Checkpoints inside the stage hold the optimiser's fp32 partitions as safetensors, a file a worker: DeepSpeed's
own checkpoints are pickles, which we neither write nor read.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray.train
import torch
from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from safetensors.torch import load_file, save_file
from torch import Tensor

from ka2l_ray.actors.language_model import Model
from ka2l_ray.actors.threads import set_threads
from ka2l_ray.config import FinetuneConfig, ModelConfig, PromptConfig
from ka2l_ray.errors import UserError
from ka2l_ray.finetuning.lora import add_lora, make_optimizer
from ka2l_ray.finetuning.loss import AnswerLoss
from ka2l_ray.finetuning.rows import TrainingRow, encode_rows
from ka2l_ray.finetuning.targets import coverage
from ka2l_ray.finetuning.training import Progress, Share, adapter_tensors, loss_of, pad_id, save_adapter, train
from ka2l_ray.jobs.stages import train_loops
from ka2l_ray.models.language_model import LanguageModel
from ka2l_ray.models.model_files import skeleton
from ka2l_ray.models.prompts import Prompter
from ka2l_ray.store.artefacts import Artefact, Store
from ka2l_ray.store.storage import Storage

WORKER_RETRIES = 2


def finetune(
    store: Store,
    name: str,
    *,
    annotations: list[Artefact],
    model: Model,
    config: FinetuneConfig,
    seed: int,
    use_gpu: bool = False,
) -> Artefact:
    """A PEFT adapter (``adapter_model.safetensors``, ``adapter_config.json``), checked to be non-empty and moved by training.

    Args:
        annotations: tables whose rows are trained on together.
        model: the base model; its adapter, if any, is gone on from.
    """
    settings = config.model_dump(mode="json", exclude={"replay_known", "checkpoint_every", "start", "cpus"})
    inputs = {
        "stage": "finetune",
        "annotations": [a.key for a in annotations],
        "model": model.identity(),
        "finetune": settings,
        "seed": seed,
    }

    def build(work: Storage) -> dict[str, Any]:
        rows = _training_rows(annotations)
        if not len(rows):
            raise UserError("finetune: no annotated question to train on")
        rows_file = "_scratch/rows.parquet"
        work.write_table(rows_file, rows)
        share = _lora_share(model.base, config)
        trainer = TorchTrainer(
            train_loops.train_adapter,
            train_loop_config={
                "rows": rows_file,
                "out": work.url(),
                "base": {**model.base.model_dump(mode="json"), "path": _from_anywhere(model.base.path)},
                "prompt": model.prompt.model_dump(mode="json"),
                "start_adapter": _from_anywhere(model.adapter) if model.adapter else None,
                "config": config.model_dump(mode="json"),
                "seed": seed,
            },
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=config.workers, use_gpu=use_gpu, resources_per_worker={"CPU": config.reserved_cpus}
            ),
            run_config=RunConfig(
                name="finetune",
                storage_path=work.url("_scratch/ray_train"),
                failure_config=FailureConfig(max_failures=WORKER_RETRIES),
            ),
        )
        trainer.fit()
        facts: dict[str, Any] = json.loads(work.read_bytes("training.json"))
        return {"rows": len(rows), "sources": _count(rows["source"].to_pylist()), "lora_share": share, **facts}

    return store.compute(name, inputs, build)


def _lora_share(base: ModelConfig, config: FinetuneConfig) -> float:
    """Share of the decoder's weights that LoRA is to be on: logged here, as what the workers log is not seen."""
    with torch.device("meta"):
        return round(coverage(add_lora(skeleton(base), config, seed=0)).share, 4)


def _from_anywhere(path: str) -> str:
    """A local path as it is found from any working directory; Ray Train gives its workers one of their own."""
    return str(Path(path).resolve()) if Path(path).is_dir() else path


def _training_rows(annotations: list[Artefact]) -> pa.Table:
    """All rows by id; a replayed question that was labelled later is trained on with its label only."""
    rows = pa.concat_tables([a.storage.read_table("") for a in annotations])
    replayed = pc.equal(rows["source"], "replay")
    labelled = pc.is_in(rows["question_id"], value_set=rows.filter(pc.invert(replayed))["question_id"].combine_chunks())
    return rows.filter(pc.invert(pc.and_(replayed, labelled))).sort_by("question_id")


def train_adapter(job: dict[str, Any]) -> None:
    """Train loop of one worker."""
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    config = FinetuneConfig(**job["config"])
    language_model = LanguageModel(ModelConfig(**job["base"]))
    set_threads(config.cpus, language_model, context.get_local_world_size())
    prompter = Prompter(language_model.tokenizer, PromptConfig(**job["prompt"]))
    table = Storage(job["out"]).read_table(job["rows"])
    rows = encode_rows(prompter, table["question"].to_pylist(), table["target"].to_pylist(), config.max_length)
    loss = loss_of(language_model, rows, config, seed=job["seed"], start_adapter=job["start_adapter"])
    share = Share.of(config, rank, workers)
    engine = DeepSpeedEngine(loss, config, share, language_model.dtype)
    start = adapter_tensors(loss.model)  # in the dtype DeepSpeed gave it
    progress = _restore(engine.optimizer, rank, workers)

    def save(progress: Progress, steps: int) -> None:
        if progress.step % config.checkpoint_every == 0 and progress.step < steps:
            _save(engine.optimizer, rank, workers, progress)

    train(
        loss,
        engine,
        rows,
        config,
        seed=job["seed"],
        share=share,
        pad_id=pad_id(language_model),
        progress=progress,
        after_step=save,
    )
    if rank == 0:
        _write_adapter(loss, start, Storage(job["out"]), ModelConfig(**job["base"]).path, progress, rows)
    ray.train.report({"steps": progress.step})


class DeepSpeedEngine:
    """ZeRO-2 behind ``training.Engine``: optimiser states and gradients are partitioned over the workers."""

    def __init__(self, loss: AnswerLoss, config: FinetuneConfig, share: Share, dtype: torch.dtype) -> None:
        import deepspeed

        if not torch.cuda.is_available():
            # Gloo reduces. DeepSpeed would compile an all-reduce of its own at first use: a minute, a compiler, and a lock file
            # that a killed compilation leaves behind, on which every later run waits for ever.
            deepspeed.ops.__compatible_ops__ = {}
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=loss, optimizer=make_optimizer(loss, config), config=deepspeed_config(config, share, dtype)
        )
        self.device: torch.device = self.engine.device

    def forward(self, *inputs: Tensor) -> Tensor:
        loss: Tensor = self.engine(*inputs)
        return loss

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss)

    def step(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.engine.step()

    def total(self, value: Tensor) -> Tensor:
        torch.distributed.all_reduce(value)
        return value


def deepspeed_config(config: FinetuneConfig, share: Share, dtype: torch.dtype) -> dict[str, Any]:
    """ZeRO-2, which adds up the gradients of all ``backward`` between two ``step``."""
    return {
        "train_micro_batch_size_per_gpu": share.micro_batch_size,
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.max_grad_norm,
        "zero_optimization": {"stage": 2, "overlap_comm": False},
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16},
    }


def _restore(optimizer: Any, rank: int, workers: int) -> Progress:
    """Put the last checkpoint's partitions back; a checkpoint of another number of workers is not used."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return Progress()
    with checkpoint.as_directory() as directory:
        state: dict[str, Any] = json.loads(Path(directory, "state.json").read_text())
        if state["workers"] != workers:
            return Progress()
        tensors = load_file(Path(directory, f"rank{rank}.safetensors"))
    for i, partition in enumerate(optimizer.single_partition_of_fp32_groups):
        partition.data.copy_(tensors[f"{i}.master"])
        optimizer.optimizer.state[partition] = {
            name: tensors[f"{i}.{name}"].to(partition.device if name != "step" else "cpu")
            for name in ("step", "exp_avg", "exp_avg_sq")
        }
    optimizer.update_lp_params()
    return Progress(state["losses"])


def _save(optimizer: Any, rank: int, workers: int, progress: Progress) -> None:
    tensors: dict[str, Tensor] = {}
    for i, partition in enumerate(optimizer.single_partition_of_fp32_groups):
        moments = optimizer.optimizer.state[partition]
        tensors[f"{i}.master"] = partition.detach().cpu().contiguous().clone()
        for name in ("step", "exp_avg", "exp_avg_sq"):
            tensors[f"{i}.{name}"] = moments[name].detach().cpu().contiguous().clone()
    with tempfile.TemporaryDirectory() as directory:
        save_file(tensors, Path(directory, f"rank{rank}.safetensors"))
        if rank == 0:
            Path(directory, "state.json").write_text(json.dumps({"workers": workers, "losses": progress.losses}))
        ray.train.report({"step": progress.step}, checkpoint=Checkpoint.from_directory(directory))


def _write_adapter(
    loss: AnswerLoss, start: dict[str, Tensor], out: Storage, base: str, progress: Progress, rows: list[TrainingRow]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        figures = save_adapter(loss, Path(directory), base=base, start=start, rows=rows, progress=progress)
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            out.write_bytes(name, Path(directory, name).read_bytes())
    out.write_bytes("training.json", json.dumps(figures).encode())


def _count(values: list[str]) -> dict[str, int]:
    return {value: values.count(value) for value in sorted(set(values))}
