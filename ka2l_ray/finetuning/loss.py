"""The loss of an optimiser step: mean cross-entropy over all answer tokens of that step, whichever worker and micro-batch they
fall into, so that the result does not depend on how a step is divided up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from ka2l_ray.finetuning.rows import IGNORED, TrainingRow, collate
from ka2l_ray.models.architecture import text_decoder, vocabulary_logits

if TYPE_CHECKING:
    from ka2l_ray.finetuning.prefix import SharedPrefix


class AnswerLoss(nn.Module):
    """Summed cross-entropy over the answer tokens; the vocabulary is projected at those positions only.

    Where ``prefix`` is set, an optimiser step is ``begin``, a forward pass for each micro-batch, and one without inputs, which
    returns the prefix's part of the gradient as a loss.
    """

    def __init__(self, model: PeftModel) -> None:
        super().__init__()
        self.model = model
        self.prefix: SharedPrefix | None = None

    @property
    def causal_lm(self) -> Any:
        return self.model.get_base_model()

    def begin(self) -> None:
        if self.prefix is not None:
            self.prefix.run(self.causal_lm)

    def collate(self, rows: Sequence[TrainingRow], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
        """A micro-batch as ``forward`` takes it, without the prefix."""
        done = len(self.prefix.ids) if self.prefix is not None else 0
        return collate([TrainingRow(row.token_ids[done:], row.prompt_length - done) for row in rows], pad_id)

    def forward(self, *batch: Tensor) -> Tensor:
        if not batch:
            assert self.prefix is not None
            return self.prefix.rest()
        ids_BT, mask_BT, labels_BT = batch
        seen: dict[str, Any] = {"attention_mask": mask_BT, "use_cache": False}
        if self.prefix is not None:
            mask_BS = torch.cat([mask_BT.new_ones(len(ids_BT), len(self.prefix.ids)), mask_BT], dim=1)
            cache = self.prefix.cache_for(len(ids_BT))
            seen = {"attention_mask": mask_BS, "past_key_values": cache, "use_cache": True}
        hidden_BTD = text_decoder(self.causal_lm)(input_ids=ids_BT, **seen).last_hidden_state
        targets_BT = labels_BT[:, 1:]
        kept_BT = targets_BT != IGNORED
        logits_NV = vocabulary_logits(self.causal_lm, hidden_BTD[:, :-1][kept_BT])
        return nn.functional.cross_entropy(logits_NV.float(), targets_BT[kept_BT], reduction="sum")
