"""Where things are in a model of transformers: its text decoder, the blocks of it, their linear layers, and the way from the last
state to the logits.

A composite model (text and vision, say) holds its language model somewhere below; nothing here looks beside it. What is found
here is held against the model's own forward pass when a model is loaded (``self_check``).
"""

from __future__ import annotations

from collections import deque
from typing import Any

from torch import nn
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

    Vision and audio towers, projectors and output embeddings are not among them.
    """
    decoder, blocks = _decoder_and_blocks(causal_lm)
    root: nn.Module = decoder if blocks is None else blocks
    head = causal_lm.get_output_embeddings()
    inside = {id(module) for module in root.modules() if isinstance(module, (nn.Linear, Conv1D)) and module is not head}
    return [name for name, module in causal_lm.named_modules() if id(module) in inside]


def _decoder_and_blocks(causal_lm: Any) -> tuple[Any, nn.ModuleList | None]:
    """The blocks are the list of as many modules as there are layers that lies nearest; the decoder is the model around it.

    ``get_decoder`` says where to look first: a vision tower may have as many blocks. It is not always right (Llama 4's gives the
    whole model, ModernBERT's a linear layer).
    """
    n_layers = text_config(causal_lm.config).num_hidden_layers
    for root in (causal_lm.get_decoder(), causal_lm):
        queue = deque([(root, root)])
        while queue:
            module, around = queue.popleft()
            for child in module.children():
                if isinstance(child, nn.ModuleList):
                    if len(child) == n_layers:
                        return around, child
                else:
                    queue.append((child, child if isinstance(child, PreTrainedModel) else around))
    return causal_lm.get_decoder(), None
