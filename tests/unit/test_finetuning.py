"""LoRA fine-tuning: the loss against transformers' own, what it is taken over, and how a step may be divided."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from ka2l_ray.config import FinetuneConfig, PromptConfig
from ka2l_ray.errors import UserError
from ka2l_ray.finetuning.lora import add_lora, check_adapter, make_optimizer, trainable
from ka2l_ray.finetuning.loss import AnswerLoss
from ka2l_ray.finetuning.rows import IGNORED, TrainingRow, collate, encode_rows
from ka2l_ray.finetuning.schedule import learning_rate, optimizer_steps
from ka2l_ray.models.prompts import Prompter
from ka2l_ray.world.facts import World

CONFIG = FinetuneConfig(lora_rank=4, lora_alpha=8)


@pytest.fixture
def rows(tokenizer: PreTrainedTokenizerBase, world: World) -> list[TrainingRow]:
    """Seven questions of several lengths with answers of one to five tokens."""
    facts = world.facts[:7]
    prompter = Prompter(tokenizer, PromptConfig(instruction=""))
    questions = [fact.question(fact.pool_phrasing) for fact in facts]
    return encode_rows(prompter, questions, [fact.value.forms[-1] for fact in facts], max_length=64)


def adapted(path: Path, config: FinetuneConfig = CONFIG, *, moved: bool = True) -> PeftModel:
    """The model at ``path`` with LoRA; ``moved``: B away from zero, so that the adapter has an effect."""
    model = add_lora(AutoModelForCausalLM.from_pretrained(path), config, seed=0)
    if moved:
        torch.manual_seed(1)
        with torch.no_grad():
            for name, parameter in trainable(model).items():
                if "lora_B" in name:
                    parameter.normal_(0, 0.2)
    return model


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in trainable(model).items() if p.grad is not None}


@pytest.mark.parametrize("architecture", ["tiny_llama", "tiny_gpt2", "tiny_mistral"])
def test_loss_and_gradient_are_transformers_own(
    architecture: str, request: pytest.FixtureRequest, rows: list[TrainingRow]
) -> None:
    model = adapted(request.getfixturevalue(architecture))
    ids_BT, mask_BT, labels_BT = collate(rows, pad_id=0)
    tokens = sum(row.answer_tokens for row in rows)
    assert tokens == int((labels_BT != IGNORED).sum())

    ours = AnswerLoss(model)(ids_BT, mask_BT, labels_BT) / tokens
    ours.backward()
    our_gradients = gradients(model)
    model.zero_grad()
    theirs = model(input_ids=ids_BT, attention_mask=mask_BT, labels=labels_BT).loss
    theirs.backward()

    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert our_gradients.keys() == trainable(model).keys()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(our_gradients[name], gradient, rtol=1e-3, atol=1e-6)


def test_loss_is_the_sum_of_each_rows_own(tiny_llama: Path, rows: list[TrainingRow]) -> None:
    """Neither padding nor neighbours count: each answer token's negative log-probability, row by row by hand."""
    model = adapted(tiny_llama)
    by_hand = 0.0
    with torch.no_grad():
        for row in rows:
            log_p_TV = model(input_ids=torch.tensor([row.token_ids])).logits[0].log_softmax(-1)
            for position in range(row.prompt_length, len(row.token_ids)):
                by_hand -= float(log_p_TV[position - 1, row.token_ids[position]])
        assert float(AnswerLoss(model)(*collate(rows, pad_id=0))) == pytest.approx(by_hand, rel=1e-5)


def test_labels_are_the_answer_and_nothing_else(rows: list[TrainingRow]) -> None:
    ids_BT, mask_BT, labels_BT = collate(rows, pad_id=7)
    for i, row in enumerate(rows):
        n, pads = len(row.token_ids), ids_BT.shape[1] - len(row.token_ids)
        assert ids_BT[i].tolist() == row.token_ids + [7] * pads
        assert mask_BT[i].tolist() == [1] * n + [0] * pads
        answer = row.token_ids[row.prompt_length :]
        assert labels_BT[i].tolist() == [IGNORED] * row.prompt_length + answer + [IGNORED] * pads


def test_the_pad_token_changes_nothing_even_where_it_is_an_answers_token(tiny_llama: Path, rows: list[TrainingRow]) -> None:
    loss = AnswerLoss(adapted(tiny_llama))
    end = rows[0].token_ids[-1]
    with torch.no_grad():
        assert float(loss(*collate(rows, pad_id=end))) == pytest.approx(float(loss(*collate(rows, pad_id=0))), rel=1e-6)


def test_rows_are_prompt_and_answer_in_the_prompters_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    prompter = Prompter(tokenizer, PromptConfig(instruction=""))
    (row,) = encode_rows(prompter, ["Where was Fra born?"], ["the city of Quast"], max_length=64)
    assert tokenizer.decode(row.token_ids[: row.prompt_length]) == "<s>Where was Fra born?\n"
    assert tokenizer.decode(row.token_ids[row.prompt_length :]) == "the city of Quast</s>"
    assert row.answer_tokens == len(row.token_ids) - row.prompt_length


def test_a_row_that_is_too_long_is_named(tokenizer: PreTrainedTokenizerBase) -> None:
    prompter = Prompter(tokenizer, PromptConfig(instruction=""))
    (row,) = encode_rows(prompter, ["Where was Fra born?"], ["Quast"], max_length=64)
    n = len(row.token_ids)
    assert encode_rows(prompter, ["Where was Fra born?"], ["Quast"], max_length=n) == [row]
    with pytest.raises(UserError, match=rf"'Where was Fra born\?' takes {n} tokens.*finetune.max_length {n - 1}; raise it"):
        encode_rows(prompter, ["Where was Fra born?"], ["Quast"], max_length=n - 1)


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 4), st.integers(0, 5))
def test_an_epoch_takes_each_row_once_in_full_steps(n_rows: int, batch_size: int, epochs: int, seed: int) -> None:
    steps = optimizer_steps(n_rows, batch_size, epochs, seed)
    per_epoch = math.ceil(n_rows / batch_size)
    assert len(steps) == epochs * per_epoch
    for epoch in range(epochs):
        mine = steps[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(row for step in mine for row in step) == list(range(n_rows))
        assert all(len(step) == batch_size for step in mine[:-1])
    assert steps == optimizer_steps(n_rows, batch_size, epochs, seed)


def test_every_epoch_and_every_seed_has_an_order_of_its_own() -> None:
    orders = [tuple(step) for seed in range(3) for step in optimizer_steps(50, 50, 3, seed)]
    assert len(set(orders)) == 9
    # A row is first as often as any other: no row keeps its place.
    first = Counter(optimizer_steps(5, 1, 1, seed)[0][0] for seed in range(500))
    assert min(first.values()) > 60  # expected 100, standard deviation 9


@pytest.mark.parametrize("sizes", [[1] * 7, [4, 3], [2, 2, 2, 1, 0]])
def test_dividing_a_step_leaves_its_gradient_as_it_is(tiny_llama: Path, rows: list[TrainingRow], sizes: list[int]) -> None:
    model = adapted(tiny_llama)
    loss, tokens = AnswerLoss(model), sum(row.answer_tokens for row in rows)
    (loss(*collate(rows, pad_id=0)) / tokens).backward()
    whole = gradients(model)
    model.zero_grad()
    start = 0
    for size in sizes:
        (loss(*collate(rows[start : start + size], pad_id=0)) / tokens).backward()
        start += size
    assert start == len(rows)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-4, atol=1e-6)
    assert sum(float(g.abs().sum()) for g in whole.values()) > 0


def test_a_share_without_rows_has_no_loss_and_a_gradient_of_zero(tiny_llama: Path) -> None:
    """The last step's micro-batches may be empty, and every worker must still go backward."""
    model = adapted(tiny_llama)
    loss = AnswerLoss(model)(*collate([], pad_id=0))
    loss.backward()
    assert loss.item() == 0.0
    assert all(float(gradient.abs().sum()) == 0.0 for gradient in gradients(model).values())


@pytest.mark.parametrize("architecture", ["tiny_llama", "tiny_gpt2", "tiny_mistral"])
def test_lora_is_on_every_linear_layer_but_the_head(architecture: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(architecture)
    plain = AutoModelForCausalLM.from_pretrained(path)
    linear = {
        name for name, module in plain.named_modules() if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    }
    assert "lm_head" in linear
    model = adapted(path)
    with_lora = {name.removeprefix("base_model.model.") for name, module in model.named_modules() if hasattr(module, "lora_A")}
    assert with_lora == linear - {"lm_head"}
    assert all("lora_A" in name or "lora_B" in name for name in trainable(model))
    assert len(trainable(model)) == 2 * len(with_lora)


def test_lora_has_the_rank_and_scale_asked_for(tiny_llama: Path) -> None:
    model = adapted(tiny_llama, FinetuneConfig(lora_rank=3, lora_alpha=12, lora_dropout=0.25))
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.lora_A["default"].weight.shape == (3, 32)
    assert layer.scaling["default"] == 4.0
    assert layer.lora_dropout["default"].p == 0.25


def test_a_fresh_adapter_changes_no_output_and_is_drawn_by_its_seed(tiny_llama: Path) -> None:
    ids = torch.arange(3, 20)[None]
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    with torch.no_grad():
        expected = base(ids).logits
        fresh = adapted(tiny_llama, moved=False)
        torch.testing.assert_close(fresh(ids).logits, expected)

    def a_matrices(seed: int) -> Tensor:
        torch.manual_seed(99)
        model = add_lora(AutoModelForCausalLM.from_pretrained(tiny_llama), CONFIG, seed=seed)
        return torch.cat([p.detach().flatten() for name, p in trainable(model).items() if "lora_A" in name])

    assert torch.equal(a_matrices(3), a_matrices(3))
    assert not torch.equal(a_matrices(3), a_matrices(4))


def test_going_on_from_an_adapter_starts_at_its_weights_and_trains_them(tiny_llama: Path, tmp_path: Path) -> None:
    first = adapted(tiny_llama)
    first.save_pretrained(tmp_path)
    again = add_lora(AutoModelForCausalLM.from_pretrained(tiny_llama), CONFIG, seed=5, start_adapter=str(tmp_path))
    assert trainable(again).keys() == trainable(first).keys()
    for name, parameter in trainable(again).items():
        assert torch.equal(parameter, trainable(first)[name])


@pytest.mark.parametrize(
    "start",
    [
        "base",
        "last_adapter",
    ],
)
def test_gradient_checkpointing_is_on_where_asked_for(tiny_llama: Path, tmp_path: Path, start: str) -> None:
    adapted(tiny_llama).save_pretrained(tmp_path)
    config = CONFIG.model_copy(update={"gradient_checkpointing": True})
    start_adapter = str(tmp_path) if start == "last_adapter" else None
    model = add_lora(AutoModelForCausalLM.from_pretrained(tiny_llama), config, seed=0, start_adapter=start_adapter)
    assert model.get_base_model().is_gradient_checkpointing


def test_gradient_checkpointing_leaves_the_gradient_as_it_is(tiny_llama: Path, rows: list[TrainingRow]) -> None:
    found = []
    for checkpointing in (False, True):
        model = adapted(tiny_llama, CONFIG.model_copy(update={"gradient_checkpointing": checkpointing})).train()
        AnswerLoss(model)(*collate(rows, pad_id=0)).backward()
        found.append(gradients(model))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-5)


def test_training_lowers_the_loss_and_moves_the_adapter_alone(tiny_llama: Path, rows: list[TrainingRow], tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"learning_rate": 1e-2, "weight_decay": 0.1})
    model = adapted(tiny_llama, config, moved=False)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    start = {k: v.clone() for k, v in get_peft_model_state_dict(model).items()}
    loss, optimizer, batch = AnswerLoss(model), make_optimizer(model, config), collate(rows, pad_id=0)
    assert optimizer.defaults["weight_decay"] == 0.1
    losses = []
    for step in range(30):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, 30, config)
        value = loss(*batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
    model.save_pretrained(tmp_path)
    figures = check_adapter(tmp_path, start)
    assert figures["tensors"] == len(trainable(model))
    assert figures["parameters"] == sum(p.numel() for p in trainable(model).values())
    moved = math.sqrt(sum(float((v - start[k]).square().sum()) for k, v in get_peft_model_state_dict(model).items()))
    assert figures["moved"] == pytest.approx(moved, rel=1e-5)


def test_learning_rate_warms_up_linearly_then_falls_by_a_cosine() -> None:
    config = FinetuneConfig(learning_rate=1.0, warmup_ratio=0.1)
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)  # half of the 90 steps of the cosine
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert 0 < rates[99] < 0.001


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.1), (1, 0.0), (2, 0.9), (7, 0.1), (3, 0.0)])
def test_learning_rate_of_short_runs_stays_within_bounds_and_reaches_its_top(steps: int, warmup: float) -> None:
    rates = [learning_rate(step, steps, FinetuneConfig(learning_rate=2e-3, warmup_ratio=warmup)) for step in range(steps)]
    assert all(0 < rate <= 2e-3 for rate in rates)
    assert max(rates) == pytest.approx(2e-3)


def adapter_file(directory: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory


def test_an_adapter_that_training_left_alone_is_refused(tmp_path: Path) -> None:
    start = {"a": torch.ones(2, 3), "b": torch.zeros(3)}
    with pytest.raises(RuntimeError, match="training left the adapter as it was at its start"):
        check_adapter(adapter_file(tmp_path, start), start)


def test_an_empty_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the adapter holds no tensors"):
        check_adapter(adapter_file(tmp_path, {}), {"a": torch.ones(2)})


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_adapter_that_is_not_finite_is_refused(tmp_path: Path, bad: float) -> None:
    with pytest.raises(RuntimeError, match=r"non-finite values; lower finetune.learning_rate"):
        check_adapter(adapter_file(tmp_path, {"a": torch.tensor([1.0, bad])}), {"a": torch.ones(2)})


def test_figures_of_a_good_adapter(tmp_path: Path) -> None:
    start = {"a": torch.ones(2, 3), "b": torch.zeros(4)}
    saved = {"a": torch.ones(2, 3), "b": torch.tensor([3.0, 4.0, 0, 0])}
    assert check_adapter(adapter_file(tmp_path, saved), start) == {"tensors": 2, "parameters": 10, "moved": 5.0}
