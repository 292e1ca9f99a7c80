"""Damaged checkpoints and adapters of real architectures: refused by name, before they are loaded where headers show it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerBase,
)

from ka2l_ray.config import ModelConfig
from ka2l_ray.errors import UserError
from ka2l_ray.models.adapters import adapter_rank, check_adapter, check_adapter_for_vllm
from ka2l_ray.models.language_model import LanguageModel
from ka2l_ray.models.model_files import check_is_model, check_values
from ka2l_ray.semantics.encoder import SENTENCE_ENCODER, SentenceEncoder
from ka2l_ray.semantics.judges.nli import NLI_MODEL, NLIJudge
from ka2l_ray.semantics.texts import load_encoder_config
from tests.unit.models.architectures import EXPERTS, tiny

Tensors = dict[str, Tensor]


def damaged(whole: Path, to: Path, damage: Callable[[Tensors], Any], file: str = "model.safetensors") -> str:
    """A copy of a model or adapter whose tensors ``damage`` has had its way with."""
    shutil.copytree(whole, to)
    tensors = load_file(to / file)
    damage(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, to / file, metadata={"format": "pt"})
    return str(to)


def nan(name: str) -> Callable[[Tensors], Any]:
    def put(tensors: Tensors) -> None:
        tensors[name].view(-1)[3] = torch.nan

    return put


def reshape(name: str) -> Callable[[Tensors], Any]:
    return lambda tensors: tensors.update({name: torch.zeros(7, 5)})


Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda tensors: tensors.pop(Q), f"1 tensors are missing from its weights \\({Q}\\)"),
        (lambda tensors: [tensors.pop(name) for name in list(tensors) if "layers.1" in name], "9 tensors are missing .*, ...\\)"),
        (reshape(Q), f"tensor {Q} has shape \\[7, 5\\], config.json asks for \\[32, 32\\]"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused_by_its_headers(
    damage: Callable[[Tensors], Any], said: str, tiny_llama: Path, tmp_path: Path
) -> None:
    path = damaged(tiny_llama, tmp_path / "model", damage)
    for refuses in (check_is_model, LanguageModel):
        with pytest.raises(UserError, match=f"{path}: {said}; copy or download it again") as caught:
            refuses(ModelConfig(path=path))
        assert "\n" not in str(caught.value)


def test_values_that_are_not_finite_are_refused_when_they_are_loaded(tiny_llama: Path, tmp_path: Path) -> None:
    path = damaged(tiny_llama, tmp_path / "model", nan(Q))
    check_is_model(ModelConfig(path=path))
    with pytest.raises(UserError, match=f"{path}: tensor {Q} holds values that are not finite in float32"):
        LanguageModel(ModelConfig(path=path), device="cpu")
    with pytest.raises(UserError, match=f"tensor {Q} holds values that are not finite"):
        check_values(ModelConfig(path=path))
    too_large = damaged(tiny_llama, tmp_path / "large", lambda tensors: tensors[Q].view(-1)[:1].fill_(1e6))
    LanguageModel(ModelConfig(path=too_large), device="cpu")
    with pytest.raises(UserError, match="not finite in float16"):
        LanguageModel(ModelConfig(path=too_large, dtype="float16"), device="cpu")


def test_old_buffers_that_no_model_loads_may_be_infinite(tiny_llama: Path, tmp_path: Path) -> None:
    """Such as the masks that earlier versions of transformers saved."""

    def old(tensors: Tensors) -> None:
        tensors["model.layers.0.self_attn.masked_bias"] = torch.tensor(-torch.inf)

    path = damaged(tiny_llama, tmp_path / "model", old)
    check_values(ModelConfig(path=path))
    assert LanguageModel(ModelConfig(path=path), device="cpu").n_layers == 2


def test_files_that_are_cut_or_not_there_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_llama, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"model.safetensors is cut short or damaged \(.*\); copy or download it again"):
        check_is_model(ModelConfig(path=str(tmp_path / "cut")))
    shutil.copytree(tiny_llama, tmp_path / "sharded")
    AutoModelForCausalLM.from_pretrained(tiny_llama).save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    (tmp_path / "sharded" / "model.safetensors").unlink(missing_ok=True)
    check_is_model(ModelConfig(path=str(tmp_path / "sharded")))
    next((tmp_path / "sharded").glob("model-00002-*.safetensors")).unlink()
    with pytest.raises(UserError, match=r"model.safetensors.index.json names model-00002-of-.*, not there"):
        check_is_model(ModelConfig(path=str(tmp_path / "sharded")))


def test_a_gguf_file_is_not_a_model_directory(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "model-q4.gguf").write_bytes(b"GGUF cut")
    for path in (tmp_path, tmp_path / "model-q4.gguf"):
        with pytest.raises(UserError, match=r"its weights are a GGUF file \(model-q4.gguf\), .* convert it first"):
            check_is_model(ModelConfig(path=str(path)))
    shutil.copytree(tiny_llama, tmp_path / "both")
    (tmp_path / "both" / "model-q4.gguf").write_bytes(b"GGUF")
    check_is_model(ModelConfig(path=str(tmp_path / "both")))


@pytest.mark.parametrize("name", EXPERTS)
def test_whole_checkpoints_with_fused_experts_pass_and_a_lost_expert_is_missed(
    name: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    whole = tiny(name, tokenizer, tmp_path / "whole")
    check_is_model(ModelConfig(path=str(whole)))
    expert = next(
        key for key in sorted(load_file(whole / "model.safetensors"), reverse=True) if "expert" in key or "output_linear" in key
    )
    path = damaged(whole, tmp_path / "lost", lambda tensors: tensors.pop(expert))
    with pytest.raises(UserError, match=f"{path}: "):
        check_is_model(ModelConfig(path=path))


def test_what_a_checkpoint_need_not_hold_is_not_missed(tiny_gpt2: Path, tmp_path: Path) -> None:
    """The output embeddings of a model that ties them are those of the input."""
    assert "lm_head.weight" not in load_file(tiny_gpt2 / "model.safetensors")
    LanguageModel(ModelConfig(path=str(tiny_gpt2)), device="cpu")


@pytest.fixture(scope="module")
def tiny_bert(tokenizer: PreTrainedTokenizerBase) -> BertConfig:
    labels = {0: "contradiction", 1: "neutral", 2: "entailment"}
    return BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        id2label=labels,
    )


def test_a_judge_without_its_head_or_with_nan_is_refused(
    tiny_bert: BertConfig, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    BertForSequenceClassification(tiny_bert).save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    NLIJudge(str(tmp_path / "judge"))
    headless = damaged(tmp_path / "judge", tmp_path / "headless", lambda tensors: tensors.pop("classifier.weight"))
    for refuses in (lambda: load_encoder_config(headless, NLI_MODEL), lambda: NLIJudge(headless)):
        with pytest.raises(UserError, match=f"{headless}: 1 tensors are missing from its weights \\(classifier.weight\\)"):
            refuses()
    broken = damaged(tmp_path / "judge", tmp_path / "broken", nan("classifier.weight"))
    with pytest.raises(UserError, match=f"{broken}: tensor classifier.weight holds values that are not finite"):
        NLIJudge(broken)


def test_a_sentence_encoder_may_lack_the_pooler_that_nobody_asks(
    tiny_bert: BertConfig, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    BertModel(tiny_bert).save_pretrained(tmp_path / "whole")
    tokenizer.save_pretrained(tmp_path / "whole")
    poolerless = damaged(
        tmp_path / "whole", tmp_path / "poolerless", lambda tensors: [tensors.pop(k) for k in list(tensors) if "pooler" in k]
    )
    wanted, _ = SentenceEncoder(str(tmp_path / "whole")).encode(["a word"])
    found, _ = SentenceEncoder(poolerless).encode(["a word"])
    assert torch.equal(found, wanted)
    query = "encoder.layer.1.attention.self.query.weight"
    lacking = damaged(tmp_path / "whole", tmp_path / "lacking", lambda tensors: tensors.pop(query))
    with pytest.raises(UserError, match=f"{lacking}: 1 tensors are missing from its weights \\({query}\\)"):
        load_encoder_config(lacking, SENTENCE_ENCODER)


@pytest.fixture(scope="module")
def adapter(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("adapter")
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "up_proj"])).save_pretrained(directory)
    return directory


A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda tensors: [tensors.pop(name) for name in list(tensors) if "layers.1" in name],
            "4 tensors are missing from its file",
        ),
        (lambda tensors: tensors.update({A.replace("q_proj", "wq"): tensors.pop(A)}), "1 tensors are missing from its file"),
        (
            lambda tensors: tensors.update({A.replace("q_proj", "k_proj"): tensors[A].clone()}),
            "1 tensors have no place in the model",
        ),
        (reshape(A), "does not load onto"),
        (nan(A), f"tensor {A} holds values that are not finite"),
    ],
)
def test_a_damaged_adapter_is_refused_before_and_when_it_is_put_on(
    damage: Callable[[Tensors], Any], said: str, adapter: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    path = damaged(adapter, tmp_path / "adapter", damage, "adapter_model.safetensors")
    config = ModelConfig(path=str(tiny_llama))
    check_adapter(config, str(adapter))
    with pytest.raises(UserError, match=f"{path}: .*{said}"):
        check_adapter(config, path)
    running = LanguageModel(config, device="cpu")
    with pytest.raises(UserError, match=f"{path}: .*{said}"):
        running.use_adapter(path, "key")


def test_vllm_is_given_only_adapters_that_it_takes_whole(adapter: Path, tiny_llama: Path, tmp_path: Path) -> None:
    config = ModelConfig(path=str(tiny_llama))
    check_adapter_for_vllm(config, str(adapter))
    on_head = tmp_path / "head"
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    lora = LoraConfig(r=2, target_modules=["q_proj", "lm_head"], rank_pattern={"q_proj": 6})
    get_peft_model(base, lora).save_pretrained(on_head, save_embedding_layers=False)
    assert adapter_rank(str(on_head)) == 6
    with pytest.raises(UserError, match="LoRA on lm_head, where vLLM is not given any"):
        check_adapter_for_vllm(config, str(on_head))


def test_a_quantised_checkpoint_is_left_to_its_loader(tiny_llama: Path, tmp_path: Path) -> None:
    """Its tensors have other names and shapes; its files are looked at all the same."""
    path = damaged(tiny_llama, tmp_path / "model", reshape(Q))
    settings = json.loads((Path(path) / "config.json").read_text())
    (Path(path) / "config.json").write_text(json.dumps({**settings, "quantization_config": {"quant_method": "gptq", "bits": 4}}))
    assert AutoConfig.from_pretrained(path).quantization_config["bits"] == 4
    check_is_model(ModelConfig(path=path))
    (Path(path) / "model.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="cut short or damaged"):
        check_is_model(ModelConfig(path=path))
