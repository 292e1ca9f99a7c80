"""Stage finetune: LoRA on the labels so far under Ray Train and DeepSpeed ZeRO-2 (KA2L section 4.3.3).

The workers share out each optimiser step; the loss is normalised over the whole step, so one worker and several give the
same adapter. Checkpoints inside the stage hold the optimiser's fp32 partitions as safetensors, a file a worker: DeepSpeed's
own checkpoints are pickles, which we neither write nor read.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
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
from ka2l_ray.config import FinetuneConfig, ModelConfig, PromptConfig
from ka2l_ray.errors import UserError
from ka2l_ray.finetuning.lora import add_lora, check_adapter, make_optimizer
from ka2l_ray.finetuning.loss import AnswerLoss
from ka2l_ray.finetuning.rows import TrainingRow, collate, encode_rows
from ka2l_ray.finetuning.schedule import learning_rate, optimizer_steps
from ka2l_ray.jobs.stages import train_loops
from ka2l_ray.models.language_model import LanguageModel
from ka2l_ray.models.prompts import Prompter
from ka2l_ray.seeds import derive_seed
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
    settings = config.model_dump(mode="json", exclude={"replay_known", "checkpoint_every", "start"})
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
        trainer = TorchTrainer(
            train_loops.train_adapter,
            train_loop_config={
                "rows": rows_file,
                "out": work.url(),
                "base": model.base.model_dump(mode="json"),
                "prompt": model.prompt.model_dump(mode="json"),
                "start_adapter": model.adapter,
                "config": config.model_dump(mode="json"),
                "seed": seed,
            },
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
            scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=use_gpu, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(
                name="finetune",
                storage_path=work.url("_scratch/ray_train"),
                failure_config=FailureConfig(max_failures=WORKER_RETRIES),
            ),
        )
        trainer.fit()
        facts: dict[str, Any] = json.loads(work.read_bytes("training.json"))
        return {"rows": len(rows), "sources": _count(rows["source"].to_pylist()), **facts}

    return store.compute(name, inputs, build)


def _training_rows(annotations: list[Artefact]) -> pa.Table:
    """All rows by id; a replayed question that was labelled later is trained on with its label only."""
    rows = pa.concat_tables([a.storage.read_table("") for a in annotations])
    replayed = pc.equal(rows["source"], "replay")
    labelled = pc.is_in(rows["question_id"], value_set=rows.filter(pc.invert(replayed))["question_id"].combine_chunks())
    return rows.filter(pc.invert(pc.and_(replayed, labelled))).sort_by("question_id")


@dataclass
class Share:
    """What one worker does of each optimiser step."""

    rank: int
    workers: int
    micro_batch_size: int
    accumulation: int

    @classmethod
    def of(cls, config: FinetuneConfig, rank: int, workers: int) -> Share:
        per_worker = config.batch_size // workers
        micro = min(config.micro_batch_size, per_worker)
        return cls(rank, workers, micro, per_worker // micro)

    def micro_batches(self, step_rows: list[int]) -> list[list[int]]:
        """Always ``accumulation`` of them; the last ones of a small step may be empty."""
        mine = step_rows[self.rank :: self.workers]
        return [mine[i * self.micro_batch_size : (i + 1) * self.micro_batch_size] for i in range(self.accumulation)]


def train_adapter(job: dict[str, Any]) -> None:
    """Train loop of one worker."""
    import deepspeed

    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    config = FinetuneConfig(**job["config"])
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
        # Gloo reduces. DeepSpeed would compile an all-reduce of its own at first use: a minute, a compiler, and a lock file
        # that a killed compilation leaves behind, on which every later run waits for ever.
        deepspeed.ops.__compatible_ops__ = {}
    language_model = LanguageModel(ModelConfig(**job["base"]))
    prompter = Prompter(language_model.tokenizer, PromptConfig(**job["prompt"]))
    table = Storage(job["out"]).read_table(job["rows"])
    rows = encode_rows(prompter, table["question"].to_pylist(), table["target"].to_pylist(), config.max_length)
    seed = derive_seed(job["seed"], "finetune") % 2**63
    adapted = add_lora(language_model.model, config, seed=seed, start_adapter=job["start_adapter"])
    loss_module = AnswerLoss(adapted).to(language_model.device)
    loss_module.train()
    share = Share.of(config, rank, workers)
    engine, optimizer, _, _ = deepspeed.initialize(
        model=loss_module,
        optimizer=make_optimizer(loss_module, config),
        config=deepspeed_config(config, share, language_model.dtype),
    )
    start = {k: v.detach().cpu().clone() for k, v in _adapter_tensors(adapted).items()}  # in the dtype DeepSpeed gave it
    steps = optimizer_steps(len(rows), config.batch_size, config.epochs, job["seed"])
    state = _restore(optimizer, rank, workers)
    pad_id = next(iter(language_model.end_ids), 0)
    for step in range(state["step"], len(steps)):
        torch.manual_seed(derive_seed(job["seed"], "dropout", step, rank) % 2**63)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, len(steps), config)
        loss = _optimizer_step(engine, rows, steps[step], share, pad_id)
        state = {"step": step + 1, "workers": workers, "losses": [*state["losses"], round(loss, 6)]}
        if (step + 1) % config.checkpoint_every == 0 and step + 1 < len(steps):
            _save(optimizer, rank, state)
    if rank == 0:
        _write_adapter(adapted, start, Storage(job["out"]), ModelConfig(**job["base"]).path, state, rows)
    ray.train.report({"steps": len(steps)})


def deepspeed_config(config: FinetuneConfig, share: Share, dtype: torch.dtype) -> dict[str, Any]:
    """ZeRO-2: optimiser states and gradients are partitioned over the workers."""
    return {
        "train_micro_batch_size_per_gpu": share.micro_batch_size,
        "gradient_accumulation_steps": share.accumulation,
        "gradient_clipping": config.max_grad_norm,
        "zero_optimization": {"stage": 2, "overlap_comm": False},
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16},
    }


def _optimizer_step(engine: Any, rows: list[TrainingRow], step_rows: list[int], share: Share, pad_id: int) -> float:
    """One step over all workers; returns the step's mean loss a token, nats."""
    tokens = sum(rows[i].answer_tokens for i in step_rows)
    total = torch.zeros((), device=engine.device)
    for micro in share.micro_batches(step_rows):
        loss_sum = engine(*(t.to(engine.device) for t in collate([rows[i] for i in micro], pad_id)))
        total += loss_sum.detach()
        # DeepSpeed averages over workers and micro-batches; the step's loss is a mean over its tokens.
        engine.backward(loss_sum * (share.workers * share.accumulation / tokens))
        engine.step()
    torch.distributed.all_reduce(total)
    return float(total) / tokens


def _restore(optimizer: Any, rank: int, workers: int) -> dict[str, Any]:
    """Put the last checkpoint's partitions back; a checkpoint of another number of workers is not used."""
    fresh: dict[str, Any] = {"step": 0, "workers": workers, "losses": []}
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return fresh
    with checkpoint.as_directory() as directory:
        state: dict[str, Any] = json.loads(Path(directory, "state.json").read_text())
        if state["workers"] != workers:
            return fresh
        tensors = load_file(Path(directory, f"rank{rank}.safetensors"))
    for i, partition in enumerate(optimizer.single_partition_of_fp32_groups):
        partition.data.copy_(tensors[f"{i}.master"])
        optimizer.optimizer.state[partition] = {
            name: tensors[f"{i}.{name}"].to(partition.device if name != "step" else "cpu")
            for name in ("step", "exp_avg", "exp_avg_sq")
        }
    optimizer.update_lp_params()
    return state


def _save(optimizer: Any, rank: int, state: dict[str, Any]) -> None:
    tensors: dict[str, Tensor] = {}
    for i, partition in enumerate(optimizer.single_partition_of_fp32_groups):
        moments = optimizer.optimizer.state[partition]
        tensors[f"{i}.master"] = partition.detach().cpu().contiguous().clone()
        for name in ("step", "exp_avg", "exp_avg_sq"):
            tensors[f"{i}.{name}"] = moments[name].detach().cpu().contiguous().clone()
    with tempfile.TemporaryDirectory() as directory:
        save_file(tensors, Path(directory, f"rank{rank}.safetensors"))
        if rank == 0:
            Path(directory, "state.json").write_text(json.dumps(state))
        ray.train.report({"step": state["step"]}, checkpoint=Checkpoint.from_directory(directory))


def _adapter_tensors(adapted: Any) -> dict[str, Tensor]:
    from peft import get_peft_model_state_dict

    tensors: dict[str, Tensor] = get_peft_model_state_dict(adapted)
    return tensors


def _write_adapter(
    adapted: Any, start: dict[str, Tensor], out: Storage, base: str, state: dict[str, Any], rows: list[TrainingRow]
) -> None:
    for peft_config in adapted.peft_config.values():
        peft_config.base_model_name_or_path = base
        peft_config.inference_mode = True
    with tempfile.TemporaryDirectory() as directory:
        adapted.save_pretrained(directory, safe_serialization=True)
        figures = check_adapter(Path(directory), start)
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            out.write_bytes(name, Path(directory, name).read_bytes())
    facts = {
        "steps": state["step"],
        "answer_tokens": sum(row.answer_tokens for row in rows),
        "first_loss": state["losses"][0],
        "last_loss": state["losses"][-1],
        "losses": state["losses"],
        "adapter": figures,
    }
    out.write_bytes("training.json", json.dumps(facts).encode())


def _count(values: list[str]) -> dict[str, int]:
    return {value: values.count(value) for value in sorted(set(values))}
