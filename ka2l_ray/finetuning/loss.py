"""The loss of an optimiser step: mean cross-entropy over all answer tokens of that step, whichever worker and micro-batch they
fall into, so that the result does not depend on how a step is divided up.
"""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from torch import Tensor, nn

from ka2l_ray.finetuning.rows import IGNORED
from ka2l_ray.models.architecture import text_decoder, vocabulary_logits


class AnswerLoss(nn.Module):
    """Summed cross-entropy over the answer tokens; the vocabulary is projected at those positions only."""

    def __init__(self, model: PeftModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids_BT: Tensor, mask_BT: Tensor, labels_BT: Tensor) -> Tensor:
        causal_lm: Any = self.model.get_base_model()
        hidden_BTD = text_decoder(causal_lm)(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).last_hidden_state
        targets_BT = labels_BT[:, 1:]
        kept_BT = targets_BT != IGNORED
        logits_NV = vocabulary_logits(causal_lm, hidden_BTD[:, :-1][kept_BT])
        return nn.functional.cross_entropy(logits_NV.float(), targets_BT[kept_BT], reduction="sum")
