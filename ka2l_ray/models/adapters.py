"""LoRA adapters of others and of earlier rounds: looked at, and put on a model.

PEFT leaves at its start what an adapter's file lacks, and passes over what it does not know; here both are errors.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from ka2l_ray.config import ModelConfig
from ka2l_ray.errors import UserError
from ka2l_ray.models.model_files import block_linears, skeleton
from ka2l_ray.models.weights import check_finite, some

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
ADAPTER = "default"  # PEFT's name for the one that is on


def load_adapter(model: Any, path: str, model_name: str, *, trainable: bool = False) -> Any:
    """``model`` with the LoRA adapter at ``path`` on it.

    Raises:
        UserError: the adapter is damaged, lacks a tensor, has one that the model has no place for, or is made for another model.
    """
    from peft import PeftModel, set_peft_model_state_dict
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    try:
        tensors = load_file(Path(path) / WEIGHTS)
        check_finite(tensors.items(), path)
        with _unheard():
            adapted = PeftModel.from_pretrained(model, path, is_trainable=trainable)
            found = set_peft_model_state_dict(adapted, tensors)  # once more, for what PEFT finds wrong and does not tell
    except (SafetensorError, ValueError, RuntimeError, KeyError, TypeError, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: this adapter does not load onto {model_name} ({' '.join(str(error).split())[:200]})") from None
    prefix = PEFT_TYPE_TO_PREFIX_MAPPING[adapted.peft_config[ADAPTER].peft_type]
    missing = [key for key in found.missing_keys if prefix in key and f".{ADAPTER}" in key]
    for what, keys in (("are missing from its file", missing), ("have no place in the model", found.unexpected_keys)):
        if keys:
            raise UserError(
                f"{path}: this adapter does not fit {model_name}: {len(keys)} tensors {what} ({some(sorted(keys))}); "
                "give one that was trained on this model, whole"
            )
    return adapted


def check_adapter(config: ModelConfig, path: str) -> None:
    """As ``load_adapter``, on a model without weights: seconds, and no memory but the adapter's."""
    load_adapter(skeleton(config), path, config.path)


def check_adapter_for_vllm(config: ModelConfig, path: str) -> None:
    """Raise a UserError where vLLM would leave out a part of the adapter at ``path``, or fail on it."""
    with safe_open(Path(path) / WEIGHTS, "pt") as weights:
        modules = {key.split(".lora_")[0].rpartition(".")[2] for key in weights.keys()}  # noqa: SIM118
    outside = sorted(modules - set(block_linears(config)))
    if outside:
        raise UserError(
            f"{path}: this adapter holds LoRA on {some(outside)}, where vLLM is not given any, but on the blocks' linear layers; "
            "generate with engine.name=transformers, or train without fused experts (finetune.lora_experts=false)"
        )


def adapter_rank(path: str) -> int:
    """Largest rank in the LoRA adapter at ``path``.

    Raises:
        UserError: there is no adapter.
    """
    settings = _settings(path)
    try:
        return max(int(rank) for rank in (settings["r"], *(settings.get("rank_pattern") or {}).values()))
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: {SETTINGS} names no rank 'r'; give the directory of a PEFT LoRA adapter") from None


def _settings(path: str) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = json.loads((Path(path) / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{path}: no adapter there ({SETTINGS}); give the directory of a PEFT LoRA adapter") from None
    return settings


@contextmanager
def _unheard() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found missing adapter keys")  # which is an error, below
        warnings.filterwarnings("ignore", "for .*: copying from a non-meta parameter")  # on a model without weights: as meant
        yield
