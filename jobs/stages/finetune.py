"""Stage finetune: LoRA on the labels so far under Ray Train and DeepSpeed ZeRO-2 (KA2L section 4.3.3).

The workers share out each optimiser step; the loss is normalised over the whole step, so one worker and several give the
same adapter. Checkpoints inside the stage hold the optimiser's whole fp32 masters and moments as safetensors, so that another
number of workers goes on from them: DeepSpeed's own checkpoints are pickles, which we neither write nor read.
"""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer
from safetensors.torch import load_file, save_file
from torch import Tensor

from ka2l_ray.actors.language_model import Model
from ka2l_ray.actors.placement import workers_now
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

logger = logging.getLogger(__name__)

WORKER_RETRIES = 2
CHECKPOINTS_KEPT = 2
STEPS_BETWEEN_NOTICES = 10
"""Of a node that is about to be taken away: a checkpoint is made then, once."""
STATE_FILE = "optimizer.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")
PLACES = ("replay_known", "checkpoint_every", "cpus", "gradient_checkpointing", "workers", "micro_batch_size")
"""Keys that leave the adapter as it is: what is replayed stands among the annotations, and the loss is normalised over the whole
step. (Dropout, where it is on, draws other masks in another division; they are as good.)"""


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
    settings = config.model_dump(mode="json", exclude={"start", *PLACES})
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
        job = {
            "rows": rows_file,
            "out": work.url(),
            "base": {**model.base.model_dump(mode="json"), "path": _from_anywhere(model.base.path)},
            "prompt": model.prompt.model_dump(mode="json"),
            "start_adapter": _from_anywhere(model.adapter) if model.adapter else None,
            "config": config.model_dump(mode="json"),
            "seed": seed,
        }
        workers = _train(job, config, work.url("_scratch/ray_train"), use_gpu)
        logger.info("model loaded: %s by %d training workers", model.base.path, workers)
        facts: dict[str, Any] = json.loads(work.read_bytes("training.json"))
        return {"rows": len(rows), "sources": _count(rows["source"].to_pylist()), "lora_share": share, **facts}

    return store.compute(name, inputs, build)


def _train(job: dict[str, Any], config: FinetuneConfig, storage: str, use_gpu: bool) -> int:
    """Run the workers until the adapter is there; where some are lost for good, those that are left go on. Their number."""
    each = {"CPU": config.reserved_cpus, "GPU": float(use_gpu)}
    workers = workers_now("finetune", config.workers, each)
    while True:
        trainer = TorchTrainer(
            train_loops.train_adapter,
            train_loop_config=job,
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu=use_gpu, resources_per_worker={"CPU": config.reserved_cpus}
            ),
            run_config=RunConfig(
                name="finetune",
                storage_path=storage,
                failure_config=FailureConfig(max_failures=WORKER_RETRIES),
                checkpoint_config=CheckpointConfig(num_to_keep=CHECKPOINTS_KEPT),
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError:
            left = workers_now("finetune", workers, each)
            if left == workers:
                raise
            logger.warning("finetune: %d of %d workers have no place any more; %d go on", workers - left, workers, left)
            workers = left
        else:
            return workers


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
    language_model = LanguageModel(ModelConfig(**job["base"]), device=str(ray.train.torch.get_device()))
    set_threads(config.cpus, language_model, context.get_local_world_size())
    prompter = Prompter(language_model.tokenizer, PromptConfig(**job["prompt"]))
    table = Storage(job["out"]).read_table(job["rows"])
    rows = encode_rows(prompter, table["question"].to_pylist(), table["target"].to_pylist(), config.max_length)
    loss = loss_of(language_model, rows, config, seed=job["seed"], start_adapter=job["start_adapter"])
    share = Share.of(config, rank, workers)
    engine = DeepSpeedEngine(loss, config, share, language_model.dtype)
    start = adapter_tensors(loss.model)  # in the dtype DeepSpeed gave it
    progress = _restore(engine.optimizer, rank)

    warned = False

    def save(progress: Progress, steps: int) -> None:
        nonlocal warned
        due = progress.step % config.checkpoint_every == 0
        if not warned and progress.step % STEPS_BETWEEN_NOTICES == 0:  # all workers ask together
            warned = ray.train.get_preemption_info() is not None
            due |= warned
        if due and progress.step < steps:
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


def _restore(optimizer: Any, rank: int) -> Progress:
    """Put the last checkpoint's masters and moments back, of which each worker holds its part."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return Progress()
    with checkpoint.as_directory() as directory:
        losses = json.loads(Path(directory, "state.json").read_text())["losses"]
        tensors = load_file(Path(directory, STATE_FILE))
    for i, partition in enumerate(optimizer.single_partition_of_fp32_groups):
        begins = rank * len(partition)
        master, exp_avg, exp_avg_sq = (_part(tensors[f"{i}.{name}"], begins, partition) for name in ("master", *MOMENTS))
        partition.data.copy_(master)
        optimizer.optimizer.state[partition] = {"step": tensors[f"{i}.step"], "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    optimizer.update_lp_params()
    return Progress(losses)


def _part(whole: Tensor, begins: int, partition: Tensor) -> Tensor:
    """What ``partition`` holds of a flat tensor, from ``begins`` on; beyond its end are zeros."""
    mine = whole[begins : begins + len(partition)]
    return torch.nn.functional.pad(mine, (0, len(partition) - len(mine))).to(partition.device)


def _save(optimizer: Any, rank: int, workers: int, progress: Progress) -> None:
    """A checkpoint that any number of workers can go on from: masters and moments whole, in float32."""
    tensors: dict[str, Tensor] = {}
    for i, partition in enumerate(optimizer.single_partition_of_fp32_groups):
        length = sum(parameter.numel() for parameter in optimizer.bit16_groups[i])
        state = optimizer.optimizer.state[partition]
        for name, mine in (("master", partition.detach()), *((name, state[name]) for name in MOMENTS)):
            parts = [torch.empty_like(mine) for _ in range(workers)]
            torch.distributed.all_gather(parts, mine.contiguous())
            tensors[f"{i}.{name}"] = torch.cat(parts)[:length].cpu()
        tensors[f"{i}.step"] = state["step"].detach().cpu().clone()
    if rank != 0:
        ray.train.report({"step": progress.step})
        return
    with tempfile.TemporaryDirectory() as directory:
        save_file(tensors, Path(directory, STATE_FILE))
        Path(directory, "state.json").write_text(json.dumps({"losses": progress.losses}))
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
