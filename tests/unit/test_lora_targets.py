"""LoRA on mixtures of experts of real architectures: it covers the experts, trains them, and comes back as it was saved."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from ka2l_ray.config import FinetuneConfig, ModelConfig
from ka2l_ray.errors import UserError
from ka2l_ray.finetuning.lora import add_lora, make_optimizer, trainable
from ka2l_ray.finetuning.loss import AnswerLoss
from ka2l_ray.finetuning.rows import TrainingRow, collate
from ka2l_ray.finetuning.targets import coverage, fused_experts
from ka2l_ray.models.adapters import check_adapter, check_adapter_for_vllm
from ka2l_ray.models.language_model import LanguageModel
from ka2l_ray.models.model_files import skeleton
from tests.unit.models.architectures import EXPERTS, tiny

CONFIG = FinetuneConfig(lora_rank=2, lora_alpha=4, learning_rate=0.1)
ROWS = [TrainingRow(list(range(40, 40 + n)), n - 3) for n in (12, 9, 16, 14)]
IDS = torch.tensor([list(range(50, 61)), list(range(150, 161))])


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_are_trained_saved_and_put_on_again(
    name: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tiny(name, tokenizer, tmp_path / "model")
    before = AutoModelForCausalLM.from_pretrained(path)(IDS).logits
    with caplog.at_level(logging.INFO, logger="ka2l_ray"), torch.device("meta"):
        announced = coverage(add_lora(skeleton(ModelConfig(path=str(path))), CONFIG, seed=0))
    adapted = add_lora(AutoModelForCausalLM.from_pretrained(path), CONFIG, seed=0)
    found = coverage(adapted)
    assert found == announced
    assert found.share > 0.97
    assert all("gate" in left.split(".")[-2] or "router" in left for left in found.left_out), found.left_out
    assert f"LoRA is on {100 * found.share:.1f} % of the decoder's weights" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING and record.name.startswith("ka2l_ray")]

    loss = AnswerLoss(adapted)
    loss(*collate(ROWS, pad_id=0)).backward()
    still = [name for name, p in trainable(adapted).items() if "lora_B" in name and (p.grad is None or not p.grad.abs().sum())]
    assert not still
    make_optimizer(adapted, CONFIG).step()
    after = adapted(IDS).logits.detach()
    assert (after - before).abs().max() > 0.01
    adapted.save_pretrained(tmp_path / "adapter")

    config, adapter = ModelConfig(path=str(path)), str(tmp_path / "adapter")
    check_adapter(config, adapter)
    by_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(path), adapter)
    torch.testing.assert_close(by_peft(IDS).logits, after, atol=1e-5, rtol=1e-5)
    ours = LanguageModel(config, device="cpu")
    for _ in range(2):
        ours.use_adapter(adapter, adapter)
        torch.testing.assert_close(ours.model(IDS).logits, after, atol=1e-5, rtol=1e-5)
        ours.use_adapter(None, None)
        torch.testing.assert_close(ours.model(IDS).logits, before, atol=1e-5, rtol=1e-5)
    again = add_lora(AutoModelForCausalLM.from_pretrained(path), CONFIG, seed=0, start_adapter=adapter)
    assert trainable(again).keys() == trainable(adapted).keys()
    torch.testing.assert_close(again(IDS).logits, after, atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match=r"LoRA on .*, where vLLM is not given any"):
        check_adapter_for_vllm(config, adapter)


def test_what_lora_cannot_cover_is_said(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tiny("qwen2_moe", tokenizer, tmp_path / "model")
    assert len(fused_experts(skeleton(ModelConfig(path=str(path))))) == 4
    config = FinetuneConfig(lora_rank=2, lora_dropout=0.1)
    adapted = add_lora(AutoModelForCausalLM.from_pretrained(path), config, seed=0)
    assert coverage(adapted).share < 0.5
    (record,) = [record for record in caplog.records if record.name.startswith("ka2l_ray")]
    assert record.levelno == logging.WARNING
    assert "model.layers.*.mlp.experts.gate_up_proj" in record.message.replace("layers.*", "model.layers.*")
    assert "set finetune.lora_dropout to 0" in record.message


def test_adapters_without_fused_experts_are_for_vllm(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """A shared expert and a dense block have LoRA all the same."""
    path = tiny("deepseek_v3", tokenizer, tmp_path / "model")
    config = CONFIG.model_copy(update={"lora_experts": False})
    adapted = add_lora(AutoModelForCausalLM.from_pretrained(path), config, seed=0)
    names = list(trainable(adapted))
    assert any("shared_experts.gate_proj" in name for name in names)
    assert any("layers.0.mlp.up_proj" in name for name in names)
    assert not any(".experts." in name for name in names)
    adapted.save_pretrained(tmp_path / "adapter")
    check_adapter(ModelConfig(path=str(path)), str(tmp_path / "adapter"))
    check_adapter_for_vllm(ModelConfig(path=str(path)), str(tmp_path / "adapter"))
