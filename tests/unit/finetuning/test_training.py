"""The training loop in one process: the plain PEFT loop, however a step is divided, and a base model left as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ka2l_ray.config import FinetuneConfig, ModelConfig, PromptConfig
from ka2l_ray.errors import UserError
from ka2l_ray.finetuning.lora import add_lora
from ka2l_ray.finetuning.rows import TrainingRow, collate, encode_rows
from ka2l_ray.finetuning.schedule import learning_rate, optimizer_steps
from ka2l_ray.finetuning.training import Progress, Share, TorchEngine, fine_tune, loss_of, train
from ka2l_ray.models.language_model import LanguageModel
from ka2l_ray.models.prompts import Prompter
from ka2l_ray.seeds import derive_seed
from ka2l_ray.world.facts import World

SEED = 3
CONFIG = FinetuneConfig(learning_rate=2e-3, epochs=2, batch_size=4, micro_batch_size=4, weight_decay=0.01, max_grad_norm=0.5)


@pytest.fixture
def language_model(tiny_llama: Path) -> LanguageModel:
    return LanguageModel(ModelConfig(path=str(tiny_llama)), device="cpu")


@pytest.fixture
def rows(language_model: LanguageModel, world: World) -> list[TrainingRow]:
    """Ten: the last step of an epoch is smaller than the others."""
    prompter = Prompter(language_model.tokenizer, PromptConfig(instruction=""))
    facts = world.facts[:10]
    questions = [fact.question(fact.pool_phrasing) for fact in facts]
    return encode_rows(prompter, questions, [fact.value.forms[-1] for fact in facts], max_length=64)


def by_hand(path: Path, rows: list[TrainingRow]) -> tuple[list[float], dict[str, Tensor]]:
    """Losses and weights of the loop as PEFT's documentation writes it, on transformers' own loss."""
    model = add_lora(
        LanguageModel(ModelConfig(path=str(path)), device="cpu").model, CONFIG, seed=derive_seed(SEED, "finetune") % 2**63
    )
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, weight_decay=CONFIG.weight_decay)
    steps, losses = optimizer_steps(len(rows), CONFIG.batch_size, CONFIG.epochs, SEED), []
    for step, indices in enumerate(steps):
        ids_BT, mask_BT, labels_BT = collate([rows[i] for i in indices], pad_id=0)
        loss = model(input_ids=ids_BT, attention_mask=mask_BT, labels=labels_BT).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CONFIG.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, len(steps), CONFIG)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, {n.replace(".default", ""): p.detach() for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("micro_batch_size", [4, 2, 1])
def test_the_loop_is_the_plain_peft_loop(
    tiny_llama: Path, language_model: LanguageModel, rows: list[TrainingRow], tmp_path: Path, micro_batch_size: int
) -> None:
    config = CONFIG.model_copy(update={"micro_batch_size": micro_batch_size})
    losses, weights = by_hand(tiny_llama, rows)
    figures = fine_tune(language_model, rows, config, tmp_path, seed=SEED)
    assert figures["losses"] == pytest.approx(losses, abs=1e-4)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert saved.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(saved[name], weight, rtol=1e-3, atol=1e-5)


def test_the_model_is_itself_again_and_takes_the_adapter(
    tiny_llama: Path, language_model: LanguageModel, rows: list[TrainingRow], tmp_path: Path
) -> None:
    ids_BT = torch.tensor([rows[0].token_ids])
    with torch.no_grad():
        before_BTV = language_model.model(ids_BT).logits
    config = CONFIG.model_copy(update={"gradient_checkpointing": True})
    figures = fine_tune(language_model, rows, config, tmp_path, seed=SEED)
    assert (figures["steps"], figures["answer_tokens"]) == (6, sum(row.answer_tokens for row in rows))
    assert not language_model.model.training
    assert not language_model.model.is_gradient_checkpointing
    with torch.no_grad():
        assert torch.equal(language_model.model(ids_BT).logits, before_BTV)
        language_model.use_adapter(str(tmp_path), "trained")
        assert float((language_model.model(ids_BT).logits - before_BTV).abs().max()) > 1e-3


def test_going_on_from_an_adapter_begins_at_its_loss(
    language_model: LanguageModel, rows: list[TrainingRow], tmp_path: Path
) -> None:
    first = fine_tune(language_model, rows, CONFIG, tmp_path / "first", seed=SEED)
    step = optimizer_steps(len(rows), CONFIG.batch_size, CONFIG.epochs, SEED)[0]
    ids_BT, mask_BT, labels_BT = collate([rows[i] for i in step], pad_id=0)
    on = fine_tune(language_model, rows, CONFIG, tmp_path / "on", seed=SEED, start_adapter=str(tmp_path / "first"))
    language_model.use_adapter(str(tmp_path / "first"), "first")
    with torch.no_grad():
        expected = language_model.model(input_ids=ids_BT, attention_mask=mask_BT, labels=labels_BT).loss.item()
    assert on["first_loss"] == pytest.approx(expected, abs=1e-5)
    assert on["first_loss"] < first["first_loss"]


def test_what_workers_add_up_lies_on_their_device(language_model: LanguageModel, rows: list[TrainingRow]) -> None:
    """NCCL adds up nothing else."""
    devices = []

    class Elsewhere(TorchEngine):
        def total(self, value: Tensor) -> Tensor:
            devices.append(value.device.type)
            raise StopIteration

    loss = loss_of(language_model, rows, CONFIG, seed=SEED, start_adapter=None)
    engine = Elsewhere(loss, CONFIG)
    engine.device = torch.device("meta")
    with pytest.raises(StopIteration):
        train(loss, engine, rows, CONFIG, seed=SEED, share=Share.of(CONFIG), pad_id=0, progress=Progress())
    assert devices == ["meta"]


def test_no_rows_are_refused(language_model: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="finetune: no row to train on"):
        fine_tune(language_model, [], CONFIG, tmp_path, seed=SEED)
