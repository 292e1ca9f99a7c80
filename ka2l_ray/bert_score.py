"""BERTScore of answers (Zhang et al. 2020): the package's cosines, over any encoder on this machine.

The package loads models by the names it knows, and by a ``t5`` anywhere in a path; here it gets one that is loaded as the judges'
are. F1 is the best over the aliases, as it comes: baselines to rescale it by exist for those names only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel

from ka2l_ray.errors import UserError
from ka2l_ray.semantics.texts import EncoderKind, Texts, load_encoder, load_encoder_config
from ka2l_ray.world import bundled_path

BERT_SCORE_ENCODER = EncoderKind("encoder for BERTScore", AutoModel, unused=("pooler",))


def bert_score_layer(path: str, layer: int | None = None) -> int:
    """The layer whose states are compared: ``layer``, else that which the package chose for a model of this name, else two
    thirds of the depth, about where its choices lie.

    Raises:
        UserError: no encoder there, or it has no such layer.
    """
    from bert_score.utils import model2layers  # brings matplotlib, for runs that ask for BERTScore only

    depth: int = load_encoder_config(path, BERT_SCORE_ENCODER).num_hidden_layers
    tuned = {name.rsplit("/", 1)[-1]: chosen for name, chosen in model2layers.items()}
    chosen = layer if layer is not None else tuned.get(Path(path).name, round(depth * 2 / 3))
    if not 0 <= chosen <= depth:
        raise UserError(f"evaluation.bert_score_layer is {chosen}, {path} has layers 0 to {depth}; give one of them")
    return chosen


class BertScore:
    """An encoder's states of one layer (0 is the embeddings), compared word piece by word piece."""

    def __init__(self, path: str, layer: int | None = None, *, batch_size: int = 64) -> None:
        self.layer = bert_score_layer(path, layer)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        texts = Texts(bundled_path(path), load_encoder_config(path, BERT_SCORE_ENCODER))
        self.tokenizer = texts.tokenizer
        self.tokenizer.model_max_length = texts.max_length
        self.model = _Layer(load_encoder(path, BERT_SCORE_ENCODER), self.layer).eval().to(self.device)
        self.batch_size = batch_size

    def f1(self, predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> list[float]:
        """Best F1 of each prediction over its aliases; 0 where it, or all of them, say nothing."""
        from bert_score.utils import bert_cos_score_idf

        pairs = [
            (row, prediction, alias)
            for row, (prediction, aliases) in enumerate(zip(predictions, answers, strict=True))
            for alias in aliases
            if prediction.strip() and alias.strip()
        ]
        best = [0.0] * len(predictions)
        if pairs:
            wanted, said = [alias for _, _, alias in pairs], [prediction for _, prediction, _ in pairs]
            scores: Any = bert_cos_score_idf(
                self.model, wanted, said, self.tokenizer, self._weights(), device=self.device, batch_size=self.batch_size
            )
            for (row, _, _), score in zip(pairs, scores[:, 2].tolist(), strict=True):
                best[row] = max(best[row], score)  # not a number, of a text without a word piece, is no more than 0
        return best

    def _weights(self) -> dict[int, float]:
        """Every word piece weighs the same; those that only frame a text weigh nothing."""
        weights: dict[int, float] = defaultdict(lambda: 1.0)
        for special in (self.tokenizer.sep_token_id, self.tokenizer.cls_token_id):
            if special is not None:
                weights[special] = 0.0
        return weights


class _Layer(nn.Module):
    def __init__(self, model: Any, layer: int) -> None:
        super().__init__()
        self.model, self.layer = model, layer

    def forward(self, ids: Tensor, attention_mask: Tensor, output_hidden_states: bool) -> tuple[Tensor]:
        states: Tensor = self.model(ids, attention_mask=attention_mask, output_hidden_states=True).hidden_states[self.layer]
        return (states,)
