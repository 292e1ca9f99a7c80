"""Fine-tuning under Ray Train and DeepSpeed is the plain PEFT loop, however many workers share it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray.train
import torch
from peft import PeftModel
from safetensors.numpy import load_file

from ka2l_ray.actors.language_model import Model
from ka2l_ray.config import FinetuneConfig, ModelConfig, PromptConfig
from ka2l_ray.finetuning.lora import add_lora
from ka2l_ray.finetuning.prefix import LEAST_PREFIX
from ka2l_ray.finetuning.rows import collate, encode_rows
from ka2l_ray.finetuning.schedule import learning_rate, optimizer_steps
from ka2l_ray.finetuning.training import Progress
from ka2l_ray.jobs.commands.inputs import Inputs
from ka2l_ray.jobs.stages import finetune as stage
from ka2l_ray.jobs.stages import train_loops
from ka2l_ray.jobs.stages.finetune import finetune
from ka2l_ray.models.language_model import LanguageModel
from ka2l_ray.models.prompts import Prompter
from ka2l_ray.seeds import derive_seed
from ka2l_ray.store.artefacts import Artefact, StageDirectory
from ka2l_ray.world import bundled_path
from ka2l_ray.world.facts import World
from tests.ray.conftest import write_lines
from tests.unit.models.architectures import tiny

BASE = ModelConfig(path="bundled:student")
# Long enough that what all rows begin with runs once a step; the loops that it is held to know nothing of that.
PROMPT = PromptConfig(instruction="", examples=[("Who employs Quegrerk?", "Quast"), ("Where was Fra born?", "the city of Quast")])
SETTINGS = {
    "learning_rate": 5e-4,  # at 2e-3 these rows make rounding differences grow to 3e-3 within 20 steps, in plain loops too
    "lora_rank": 8,
    "epochs": 4,
    "batch_size": 8,
    "micro_batch_size": 2,
    "weight_decay": 0.01,
    "checkpoint_every": 1000,
}
N_ROWS = 37  # the last step of an epoch is smaller than the others
SEED = 5


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    folder = tmp_path_factory.mktemp("annotations")
    path = write_lines(folder / "rows.jsonl", World().rows("pool")[:N_ROWS])
    return Inputs(str(folder / "inputs")).annotations(path)


def train(annotations: Artefact, out: Path, **settings: object) -> Artefact:
    config = FinetuneConfig(**{**SETTINGS, **settings})  # type: ignore[arg-type]
    store = StageDirectory(str(out))
    return finetune(store, "adapter", annotations=[annotations], model=Model(BASE, PROMPT), config=config, seed=SEED)


@pytest.mark.check
def test_fused_experts_are_trained_under_deepspeed(annotations: Artefact, tmp_path: Path) -> None:
    base = ModelConfig(path=str(tiny("mixtral", LanguageModel(BASE, device="cpu").tokenizer, tmp_path / "model")))
    config = FinetuneConfig(**{**SETTINGS, "epochs": 1})  # type: ignore[arg-type]
    store = StageDirectory(str(tmp_path / "adapter"))
    done = finetune(store, "adapter", annotations=[annotations], model=Model(base, PROMPT), config=config, seed=SEED)
    assert done.facts["lora_share"] > 0.97
    tensors = load_file(Path(done.url) / "adapter_model.safetensors")
    experts = [name for name in tensors if ".experts." in name and "lora_B" in name]
    assert len(experts) == 4
    assert all(np.abs(tensors[name]).max() > 0 for name in experts)
    LanguageModel(base, adapter=done.url, device="cpu")


@pytest.fixture(scope="module")
def one_worker(annotations: Artefact, tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return train(annotations, tmp_path_factory.mktemp("adapters") / "one")


def test_one_worker_equals_a_plain_peft_loop(annotations: Artefact, one_worker: Artefact) -> None:
    config = FinetuneConfig(**SETTINGS)  # type: ignore[arg-type]
    language_model = LanguageModel(BASE)
    prompter = Prompter(language_model.tokenizer, PROMPT)
    table = annotations.storage.read_table("").sort_by("question_id")
    model = add_lora(language_model.model, config, seed=derive_seed(SEED, "finetune") % 2**63)
    model.train()
    rows = encode_rows(prompter, table["question"].to_pylist(), table["target"].to_pylist(), config.max_length)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], weight_decay=config.weight_decay)
    steps = optimizer_steps(len(rows), config.batch_size, config.epochs, SEED)
    losses = []
    for step, indices in enumerate(steps):
        ids, mask, labels = collate([rows[i] for i in indices], pad_id=0)
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss  # transformers' own mean over answer tokens
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, len(steps), config)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert len(losses) == 20
    assert one_worker.facts["shared_prefix"] >= LEAST_PREFIX
    np.testing.assert_allclose(one_worker.facts["losses"], losses, atol=1e-4)
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_two_workers_give_the_adapter_of_one(annotations: Artefact, one_worker: Artefact, tmp_path: Path) -> None:
    two = train(annotations, tmp_path / "two", workers=2)
    a, b = (load_file(Path(artefact.url, "adapter_model.safetensors")) for artefact in (one_worker, two))
    assert a.keys() == b.keys()
    assert max(float(np.abs(a[name] - b[name]).max()) for name in a) <= 1e-3
    np.testing.assert_allclose(one_worker.facts["losses"], two.facts["losses"], atol=1e-3)


def until_step(job: dict[str, Any]) -> None:
    """The train loop, ended by force at a step that stands in a file; it notes where it began."""
    folder = Path(job["out"]).parent
    original, last = stage.train, int((folder / "until").read_text())

    def some_steps(*given: Any, progress: Progress, after_step: Any, **named: Any) -> None:
        with (folder / f"begun-{ray.train.get_context().get_world_rank()}").open("a") as file:
            file.write(f"{progress.step} ")

        def then(now: Progress, steps: int) -> None:
            after_step(now, steps)
            if now.step == last:
                raise EOFError

        with contextlib.suppress(EOFError):
            original(*given, progress=progress, after_step=then, **named)

    stage.train, stage._write_adapter = some_steps, lambda *_: None  # type: ignore[assignment]
    stage.train_adapter(job)


@pytest.mark.check
def test_another_number_of_workers_goes_on_from_a_checkpoint(
    annotations: Artefact, one_worker: Artefact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers, then one, then three, among whom a step's rows do not come out even."""
    out = tmp_path / "moved"
    for workers, last in ((2, 7), (1, 13)):
        (tmp_path / "until").write_text(str(last))
        with monkeypatch.context() as patch:
            patch.setattr(train_loops, "train_adapter", until_step)
            with pytest.raises(FileNotFoundError, match=r"training\.json"):
                train(annotations, out, workers=workers, checkpoint_every=3)
    moved = train(annotations, out, workers=3, checkpoint_every=3)
    assert (tmp_path / "begun-0").read_text() == "0 6 "
    a, b = (load_file(Path(artefact.url, "adapter_model.safetensors")) for artefact in (one_worker, moved))
    assert max(float(np.abs(a[name] - b[name]).max()) for name in a) <= 1e-3
    np.testing.assert_allclose(one_worker.facts["losses"], moved.facts["losses"], atol=1e-3)


def test_the_adapter_loads_with_peft_and_changes_the_model(one_worker: Artefact) -> None:
    plain = LanguageModel(BASE)
    ids = torch.tensor([plain.tokenizer.encode("Who employs Quegrerk?\n")])
    with torch.inference_mode():
        before = plain.model(ids).logits
        adapted = PeftModel.from_pretrained(plain.model, one_worker.url)
        after = adapted(ids).logits
    assert float((after - before).abs().max()) > 0.1
    assert one_worker.facts["adapter"]["tensors"] == 4 * 7 * 2  # layers x linear modules x (A, B)


def test_going_on_from_an_adapter_starts_where_it_ended(
    annotations: Artefact, one_worker: Artefact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Model and adapter are named as a user names them, from here; the workers have a working directory of their own."""
    monkeypatch.chdir(tmp_path)
    Path("student").symlink_to(bundled_path(BASE.path))
    Path("adapter").symlink_to(one_worker.url)
    model = Model(ModelConfig(path="student"), PROMPT, "adapter", one_worker.key)
    config = FinetuneConfig(**{**SETTINGS, "epochs": 1})  # type: ignore[arg-type]
    on = finetune(StageDirectory(str(tmp_path / "on")), "", annotations=[annotations], model=model, config=config, seed=SEED)
    adapted = LanguageModel(BASE, adapter=one_worker.url)
    table = annotations.storage.read_table("").sort_by("question_id")
    prompter = Prompter(adapted.tokenizer, PROMPT)
    rows = encode_rows(prompter, table["question"].to_pylist(), table["target"].to_pylist(), config.max_length)
    first = optimizer_steps(len(rows), config.batch_size, 1, SEED)[0]
    ids, mask, labels = collate([rows[i] for i in first], pad_id=0)
    with torch.inference_mode():
        loss = adapted.model(input_ids=ids, attention_mask=mask, labels=labels).loss.item()
    assert on.facts["first_loss"] == pytest.approx(loss, abs=1e-4)
    assert on.facts["first_loss"] != pytest.approx(one_worker.facts["first_loss"], abs=1e-3)
