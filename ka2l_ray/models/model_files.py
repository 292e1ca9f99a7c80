"""What a model's directory holds, looked at without loading its weights; and the model with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import HFValidationError
from safetensors import safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from ka2l_ray.config import ModelConfig
from ka2l_ray.errors import UserError
from ka2l_ray.models.architecture import auto_class, decoder_linears, text_config, text_decoder
from ka2l_ray.models.weights import check_finite_files, check_headers, load_weights, refuse_gguf
from ka2l_ray.store.storage import file_digest
from ka2l_ray.world import bundled_path


def check_is_model(config: ModelConfig) -> PreTrainedConfig:
    """Configuration of the language model; a UserError unless ``config.path`` names a causal one. Loads no weights."""
    path = bundled_path(config.path)
    refuse_gguf(path, config.path)
    try:
        found = AutoConfig.from_pretrained(path, revision=config.revision, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError, HFValidationError, json.JSONDecodeError) as error:
        raise UserError(
            f"{config.path}: no model there ({str(error).splitlines()[0]}); "
            "give a directory with config.json and weights, or a hub name"
        ) from None
    auto = auto_class(found)
    if auto is None and not config.trust_remote_code:
        raise UserError(f"{config.path}: a {found.model_type} model is no causal language model; give one that generates text")
    found = text_config(found)
    if not all(isinstance(getattr(found, size, None), int) for size in ("num_hidden_layers", "hidden_size")):
        raise UserError(
            f"{config.path}: a {found.model_type} model has no one number of layers and width; give one whose blocks are alike"
        )
    check_headers(auto or AutoModelForCausalLM, path, config.path, trust_remote_code=config.trust_remote_code)
    return found


def check_is_loaded_model(model: Any, tokenizer: Any) -> None:
    """Raise a UserError unless ``model`` is a loaded causal language model of transformers or PEFT, given with its tokenizer."""
    kind = type(model).__name__
    if not isinstance(model, nn.Module) or not isinstance(getattr(model, "config", None), PreTrainedConfig):
        raise UserError(f"a {kind} is no language model; give a path, a hub name, or a loaded transformers or PEFT model")
    whole: Any = model
    base = whole.get_base_model() if hasattr(whole, "get_base_model") else whole
    if getattr(getattr(whole, "active_peft_config", None), "is_prompt_learning", False):
        raise UserError(f"{kind}: its adapter adds tokens to the prompt; give a model with LoRA, or without an adapter")
    generates = getattr(base, "can_generate", lambda: False)() and base.get_output_embeddings() is not None
    if not generates or base.config.is_encoder_decoder:
        raise UserError(
            f"{type(base).__name__} is no causal language model; load it with transformers' AutoModelForCausalLM.from_pretrained"
        )
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise UserError(f"{kind}: a loaded model comes with its tokenizer; give it as the second argument, tokenizer=")


def layers_of(config: ModelConfig, layers: Literal["all"] | Sequence[int]) -> list[int]:
    """``layers``, or all of the model's: 0 are the embeddings.

    Raises:
        UserError: there is no such layer.
    """
    depth = int(check_is_model(config).num_hidden_layers)
    wanted = list(range(depth + 1)) if layers == "all" else list(layers)
    if max(wanted) > depth:
        raise UserError(f"layer {max(wanted)} does not exist; this model has layers 0 (embeddings) to {depth}")
    return wanted


def check_values(config: ModelConfig) -> None:
    """Raise a UserError where weights hold NaN or infinity: as ``load_model``, for an engine whose own loader does not look."""
    path, trust = bundled_path(config.path), config.trust_remote_code
    found = AutoConfig.from_pretrained(path, revision=config.revision, trust_remote_code=trust)
    check_finite_files(auto_class(found) or AutoModelForCausalLM, path, config.path, trust)


def has_adapter(model: nn.Module) -> bool:
    """Whether an adapter of PEFT's is on ``model``, whoever put it there."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


@cache
def model_identity(config: ModelConfig) -> dict[str, Any]:
    """What decides a base model's outputs: its files' digests (local), or its commit (hub); and the dtype asked for.

    Remembered for the life of the process: the weights are read once.
    """
    path = Path(bundled_path(config.path))
    if path.is_dir():
        suffixes = (".json", ".safetensors", ".model", ".jinja", ".txt", ".bin")
        files = sorted(p for p in (*path.iterdir(), *path.glob("*_Pooling/config.json")) if p.suffix in suffixes)
        return {"files": {str(p.relative_to(path)): file_digest(p) for p in files}, "dtype": config.dtype}
    commit = AutoConfig.from_pretrained(
        config.path, revision=config.revision, trust_remote_code=config.trust_remote_code
    )._commit_hash
    return {"hub": config.path, "commit": commit, "dtype": config.dtype}


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with its chat template: Mistral's own package, where it is installed, would come without one.

    Raises:
        UserError: there is none, or it is not this model's.
    """
    path = bundled_path(config.path)
    source = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    try:
        found = AutoTokenizer.from_pretrained(path, mistral_format=False, **source)
        settings = text_config(AutoConfig.from_pretrained(path, **source))
    except (OSError, ValueError, HFValidationError) as error:
        raise UserError(f"{config.path}: no tokenizer there ({str(error).splitlines()[0]}); give a complete model") from None
    tokenizer: PreTrainedTokenizerBase = found
    check_tokenizer(tokenizer, settings, config.path)
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, shown: str) -> None:
    """Raise a UserError where a tokenizer knows not half of its model's tokens.

    Where its files are missing, transformers makes one up out of a handful of special tokens, to which every text is unknown.
    """
    tokens, wanted = len(tokenizer), getattr(config, "vocab_size", None) or 0
    if 2 * tokens < wanted:
        raise UserError(
            f"{shown}: the tokenizer has {tokens} tokens, the model {wanted}: its files (tokenizer.json, vocab.txt) are missing, "
            "or another model's; give a complete model"
        )


def model_dtype(name: str, device: torch.device) -> torch.dtype:
    """``auto``: float32 on a CPU, bfloat16 on a GPU that has it, else float16."""
    if name != "auto":
        return getattr(torch, name)  # type: ignore[no-any-return]
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def generation_config(config: ModelConfig) -> GenerationConfig:
    """generation_config.json where there is one, else what the model's configuration implies."""
    try:
        return GenerationConfig.from_pretrained(bundled_path(config.path), revision=config.revision)
    except OSError:
        return GenerationConfig.from_model_config(check_is_model(config))


def end_token_ids(generation: GenerationConfig, tokenizer: Any) -> set[int]:
    """Tokens that end an answer."""
    ends = generation.eos_token_id
    listed = ends if isinstance(ends, list) else [ends]
    return {i for i in [*listed, tokenizer.eos_token_id] if i is not None}


def block_linears(config: ModelConfig) -> list[str]:
    """Last names of the linear layers in the text decoder's blocks (``decoder_linears``)."""
    return sorted({name.rpartition(".")[2] for name in decoder_linears(skeleton(config))})


def load_model(config: ModelConfig, **options: Any) -> Any:
    """The transformers model with its weights; ``options`` are those of ``from_pretrained``."""
    source: dict[str, Any] = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    path = bundled_path(config.path)
    auto = auto_class(AutoConfig.from_pretrained(path, **source)) or AutoModelForCausalLM
    return load_weights(auto, path, config.path, use_safetensors=True, **source, **options)


def skeleton(config: ModelConfig) -> Any:
    """The model without its weights."""
    source = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    found = AutoConfig.from_pretrained(bundled_path(config.path), **source)
    with torch.device("meta"):
        return (auto_class(found) or AutoModelForCausalLM).from_config(found, trust_remote_code=config.trust_remote_code)


def model_bytes(config: ModelConfig, device: str = "cpu") -> int:
    """What the weights take there."""
    size = sum(parameter.numel() for parameter in skeleton(config).parameters())
    return int(size * model_dtype(config.dtype, torch.device(device)).itemsize)


def final_norm(config: ModelConfig, dtype: torch.dtype) -> nn.Module:
    """The norm after the last block, alone: what turns another engine's last layer into transformers'.

    Raises:
        UserError: the architecture keeps it elsewhere.
    """
    path = bundled_path(config.path)
    model = skeleton(config)
    names = {id(module): name for name, module in model.named_modules()}
    norm: nn.Module | None = getattr(text_decoder(model), "norm", None)
    if norm is None:
        raise UserError(f"{config.path}: no final norm where Llama-like models have it; read its states with transformers")
    name = names[id(norm)]
    norm = norm.to_empty(device="cpu").to(dtype).eval()
    here = {"revision": config.revision}
    index = cached_file(path, "model.safetensors.index.json", **here, _raise_exceptions_for_missing_entries=False)
    for parameter, tensor in norm.named_parameters():
        file = "model.safetensors"
        if index is not None:
            file = json.loads(Path(index).read_text())["weight_map"][f"{name}.{parameter}"]
        with safe_open(cached_file(path, file, **here), "pt") as weights:
            tensor.data.copy_(weights.get_tensor(f"{name}.{parameter}"))
    return norm
