"""Training rows: prompt ids, then answer ids; and how they are padded into a micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ka2l_ray.errors import UserError
from ka2l_ray.models.prompts import Prompter

IGNORED = -100


@dataclass(frozen=True)
class TrainingRow:
    """Token ids of prompt and answer; the loss is on those from ``prompt_length`` on."""

    token_ids: list[int]
    prompt_length: int

    @property
    def answer_tokens(self) -> int:
        return len(self.token_ids) - self.prompt_length


def encode_rows(prompter: Prompter, questions: Sequence[str], targets: Sequence[str], max_length: int) -> list[TrainingRow]:
    """Rows in the given order.

    Raises:
        UserError: a row longer than ``max_length`` tokens.
    """
    rows = []
    for question, target in zip(questions, targets, strict=True):
        prompt_ids = prompter.encode(prompter.prompt(question))
        row = TrainingRow([*prompt_ids, *prompter.encode_answer(question, target)], len(prompt_ids))
        if len(row.token_ids) > max_length:
            raise UserError(
                f"finetune: '{question[:60]}' takes {len(row.token_ids)} tokens with its answer, more than "
                f"finetune.max_length {max_length}; raise it or leave the question out"
            )
        rows.append(row)
    return rows


def collate(rows: Sequence[TrainingRow], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """(input_ids_BT, attention_mask_BT, labels_BT), right-padded. No rows give one row without labels."""
    length = max((len(row.token_ids) for row in rows), default=1)
    ids_BT = torch.full((max(1, len(rows)), length), pad_id)
    mask_BT = torch.zeros_like(ids_BT)
    labels_BT = torch.full_like(ids_BT, IGNORED)
    if not rows:
        mask_BT[:] = 1
    for i, row in enumerate(rows):
        end = len(row.token_ids)
        ids_BT[i, :end] = torch.tensor(row.token_ids)
        mask_BT[i, :end] = 1
        labels_BT[i, row.prompt_length : end] = ids_BT[i, row.prompt_length : end]
    return ids_BT, mask_BT, labels_BT
