"""Where things are in a model of transformers: its text decoder, the blocks of it, their linear layers, and the way from the last
state to the logits.

A composite model (text and vision, say) holds its language model somewhere below; nothing here looks beside it. What is found
here is held against the model's own forward pass when a model is loaded (``self_check``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Of the language model, whatever else the model holds."""
    found: PreTrainedConfig = config.get_text_config(decoder=True)
    return found


def auto_class(config: PreTrainedConfig) -> Any:
    """The transformers class that loads a model which generates text; None where there is none.

    A composite model is loaded as its language model alone where transformers knows how to.
    """
    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText):
        if type(config) in auto._model_mapping:
            return auto
    return None


def text_decoder(causal_lm: Any) -> Any:
    """The model below the output embeddings: token ids to the states after the final norm."""
    return _decoder_and_blocks(causal_lm)[0]


def decoder_blocks(causal_lm: Any) -> nn.ModuleList | None:
    """The blocks of the text decoder in their order; None where they are not in one list."""
    return _decoder_and_blocks(causal_lm)[1]


def decoder_linears(causal_lm: Any) -> list[str]:
    """Full names of the linear layers in the text decoder's blocks: where LoRA goes.

    Vision and audio towers, projectors and output embeddings are not among them; nor is what Mamba's fused kernels read the
    weights of, past any LoRA: all linear layers of a mixer but its first.
    """
    decoder, blocks = _decoder_and_blocks(causal_lm)
    root: nn.Module = decoder if blocks is None else blocks
    left_out = {id(causal_lm.get_output_embeddings())}
    for module in root.modules():
        if hasattr(module, "A_log") and hasattr(module, "D"):
            left_out |= {id(child) for name, child in module.named_children() if name != "in_proj"}
    inside = {id(module) for module in root.modules() if _is_linear(module)} - left_out
    return [name for name, module in causal_lm.named_modules() if id(module) in inside]


def _is_linear(module: nn.Module) -> bool:
    """Not a layer that a model computes in groups, say, or a router: PEFT would compute it as any other."""
    if not isinstance(module, (nn.Linear, Conv1D)):
        return False
    if not type(module).__module__.startswith("transformers.models."):
        return True
    row_1D = module.weight.new_zeros(1, module.weight.shape[1])
    try:
        with torch.no_grad():
            found = module(row_1D)
            return isinstance(found, Tensor) and found.shape == (1, module.weight.shape[0])
    except (RuntimeError, ValueError, IndexError):
        return False


def vocabulary_logits(causal_lm: Any, state_ND: Tensor) -> Tensor:
    """(N, V) logits of final-norm states (N, D), by the model's own code: scaled, multiplied or capped as it does that.

    It runs with its text decoder left out, which hands it the states.
    """
    head = causal_lm.get_output_embeddings()
    given = _Given(state_ND.to(head.weight.device)[None])
    token_11 = torch.zeros(1, 1, dtype=torch.long, device=causal_lm.get_input_embeddings().weight.device)
    with _instead_of_decoder(causal_lm, given) as around:
        logits_NV: Tensor = around(input_ids=token_11, use_cache=False).logits[0]
    return logits_NV


class _Given:
    """A decoder's output that is there already: its last states; all else that it may hold is None."""

    def __init__(self, hidden_1ND: Tensor) -> None:
        self.last_hidden_state = hidden_1ND

    def __getitem__(self, index: Any) -> Any:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@contextmanager
def _instead_of_decoder(causal_lm: Any, given: Any) -> Iterator[Any]:
    """The innermost model that has the output embeddings, whose decoder (and what lies between them) gives ``given``."""
    path, _ = _path_to_blocks(causal_lm)
    head = causal_lm.get_output_embeddings()
    inside: list[Any] = []  # from the decoder outwards
    around = causal_lm
    for module in reversed(path):
        others = [child for child in module.children() if not inside or child is not inside[-1]]
        if any(below is head for other in others for below in other.modules()):
            around = module
            break
        inside.append(module)
    before = [module.__dict__.get("forward") for module in inside]
    try:
        for module in inside:
            module.forward = lambda *_, **__: given
        yield around
    finally:
        for module, forward in zip(inside, before, strict=True):
            del module.forward
            if forward is not None:  # accelerate puts one there
                module.forward = forward


def _decoder_and_blocks(causal_lm: Any) -> tuple[Any, nn.ModuleList | None]:
    """The decoder is the innermost transformers model around the blocks."""
    path, blocks = _path_to_blocks(causal_lm)
    return next(module for module in reversed(path) if isinstance(module, PreTrainedModel)), blocks


def _path_to_blocks(causal_lm: Any) -> tuple[list[Any], nn.ModuleList | None]:
    """The modules from ``causal_lm`` down to that which holds the blocks, and these: the nearest list as long as the model has
    layers. Without such a list, the way to ``get_decoder``.

    ``get_decoder`` says where to look first: a vision tower may have as many blocks. It is not always right (Llama 4's gives the
    whole model, ModernBERT's a linear layer).
    """
    n_layers = text_config(causal_lm.config).num_hidden_layers
    paths = _paths(causal_lm)
    decoder = causal_lm.get_decoder()
    for root in (decoder, causal_lm):
        for path in paths:
            if any(module is root for module in path):
                for child in path[-1].children():
                    if isinstance(child, nn.ModuleList) and len(child) == n_layers:
                        return path, child
    return next((path for path in paths if path[-1] is decoder), [causal_lm]), None


def _paths(causal_lm: Any) -> list[list[Any]]:
    """To all modules above any list of modules, nearest first."""
    paths = [[causal_lm]]
    for path in paths:  # which grows meanwhile
        paths += [[*path, child] for child in path[-1].children() if not isinstance(child, nn.ModuleList)]
    return paths
