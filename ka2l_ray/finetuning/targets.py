"""Where LoRA goes: the linear layers of the decoder's blocks and, in a mixture of experts, the tensors that hold all experts of a
block in one.

Left out are routers, as is usual (what an expert knows is to change, not who is asked), embeddings and output embeddings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn

from ka2l_ray.models.architecture import decoder_linears, text_decoder

ROUTER = re.compile(r"router|gate")


@dataclass(frozen=True)
class Coverage:
    """Of the weight matrices below the embeddings, what LoRA is on; in parameters of the base model."""

    covered: int
    parameters: int
    left_out: tuple[str, ...]
    """Names, with ``*`` for the number of the block."""

    @property
    def share(self) -> float:
        return self.covered / max(1, self.parameters)


def fused_experts(causal_lm: Any) -> dict[str, nn.Parameter]:
    """By full name, the tensors (experts, ., .) of the decoder that hold a matrix of every expert."""
    inside = {id(module) for module in text_decoder(causal_lm).modules() if "expert" in type(module).__name__.lower()}
    return {
        f"{name}.{parameter_name}": parameter
        for name, module in causal_lm.named_modules()
        if id(module) in inside
        for parameter_name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3
    }


def lora_targets(causal_lm: Any, *, experts: bool, dropout: bool) -> tuple[list[str], list[str]]:
    """(modules, parameters) for PEFT, by full name.

    Args:
        experts: LoRA on fused experts too.
        dropout: of the inputs of A, which PEFT has for modules only.
    """
    fused = fused_experts(causal_lm)
    numbers = {tensor.shape[0] for tensor in fused.values()} | ({1} if fused else set())
    linears = [name for name in decoder_linears(causal_lm) if not _is_router(causal_lm.get_submodule(name), name, numbers)]
    # PEFT takes some names for those that the experts had before they were fused, wherever they stand (a shared expert's,
    # a dense block's); their weights are named instead.
    mistaken = {last for last in {name.rpartition(".")[2] for name in linears} if _is_mistaken(last, causal_lm)}
    modules = [name for name in linears if name.rpartition(".")[2] not in mistaken]
    parameters = [f"{name}.weight" for name in linears if name.rpartition(".")[2] in mistaken]
    return modules, [] if dropout else [*parameters, *(fused if experts else ())]


def coverage(adapted: Any) -> Coverage:
    """What LoRA is on in ``adapted``, a PEFT model."""
    causal_lm = adapted.get_base_model()
    covered = set()
    for module in causal_lm.modules():
        if isinstance(module, ParamWrapper):
            covered.add(id(module.get_param()))
        elif isinstance(module, LoraLayer):
            covered.add(id(module.get_base_layer().weight))
    matrices = _matrices(text_decoder(causal_lm))
    left_out = {re.sub(r"\.\d+\.", ".*.", name) for name, matrix in matrices.items() if id(matrix) not in covered}
    return Coverage(
        sum(matrix.numel() for matrix in matrices.values() if id(matrix) in covered),
        sum(matrix.numel() for matrix in matrices.values()),
        tuple(sorted(left_out)),
    )


def _matrices(decoder: nn.Module) -> dict[str, nn.Parameter]:
    embeddings = {id(p) for module in decoder.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    return {
        name: parameter
        for name, parameter in decoder.named_parameters()
        if parameter.ndim > 1 and id(parameter) not in embeddings and not name.endswith("bias") and ".lora_" not in name
    }


def _is_router(module: Any, name: str, numbers: set[int]) -> bool:
    """Whether a linear layer gives a score to each expert, or to a shared one."""
    outputs = getattr(module, "out_features", getattr(module, "nf", None))
    return outputs in numbers and any(ROUTER.search(part) for part in name.split(".")[-2:])


def _is_mistaken(name: str, causal_lm: Any) -> bool:
    probe = LoraConfig(target_modules=[name])
    try:
        convert_peft_config_for_transformers(probe, causal_lm, None)
    except ValueError:  # one of two names that were fused into one
        return True
    return set(probe.target_modules or ()) != {name}
