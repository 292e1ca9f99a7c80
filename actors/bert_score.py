"""The worker that holds BERTScore's encoder: a Ray Data actor that scores batches of answers."""

from __future__ import annotations

from functools import cached_property

import pyarrow as pa
import torch

from ka2l_ray.bert_score import BertScore
from ka2l_ray.reading import Reading


class BertScoreBatch:
    """question_id, prediction, answers in; question_id, bert_score out."""

    def __init__(self, path: str, layer: int | None, reading: Reading) -> None:
        torch.set_num_threads(1)
        self.path, self.layer, self.reading = path, layer, reading

    @cached_property
    def scorer(self) -> BertScore:
        """Loaded with the first batch: what is wrong comes back as that batch's error."""
        return BertScore(self.path, self.layer)

    def __call__(self, batch: pa.Table) -> pa.Table:
        said = [self.reading.answer(text) for text in batch["prediction"].to_pylist()]
        accepted = [self.reading.accepted(answers) for answers in batch["answers"].to_pylist()]
        return pa.table({"question_id": batch["question_id"], "bert_score": self.scorer.f1(said, accepted)})
