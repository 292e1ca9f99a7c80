"""Sentence embeddings by any transformers encoder, pooled as its sentence-transformers files say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel
from transformers.utils import cached_file

from ka2l_ray.errors import UserError
from ka2l_ray.models.batching import enough_tokens
from ka2l_ray.semantics.texts import EncoderKind, Texts, load_encoder, load_encoder_config
from ka2l_ray.world import bundled_path

SENTENCE_ENCODER = EncoderKind("sentence encoder", AutoModel, unused=("pooler",))  # pooled here, from the last states


class SentenceEncoder:
    """Texts to unit vectors. (The sentence-transformers package would bring scikit-learn, which every worker then imports.)

    Raises:
        UserError: no model there, or a pooling other than mean or first token.
    """

    def __init__(self, path: str, *, batch_tokens: int = 8192, trust_remote_code: bool = False) -> None:
        config = load_encoder_config(path, SENTENCE_ENCODER, trust_remote_code)
        self.texts = Texts(path, config, trust_remote_code)
        self.model = load_encoder(path, SENTENCE_ENCODER, trust_remote_code)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model.eval().to(self.device)
        self.first_token = _pools_first_token(bundled_path(path))
        self.batch_tokens = batch_tokens

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> tuple[Tensor, set[int]]:
        """((n, d) unit vectors in float32 on the CPU, indices of texts whose beginning was cut off: the answer is at the end)."""
        encoded, truncated = self.texts.encode(texts)
        found = torch.empty(len(texts), self.model.config.hidden_size)
        for rows, batch in self.texts.batches(encoded, self.batch_tokens, enough_tokens(self.device)):
            batch = batch.to(self.device)
            states_BND = self.model(**batch).last_hidden_state
            if self.first_token:
                pooled_BD = states_BND[:, 0]
            else:
                mask_BN1 = batch["attention_mask"].unsqueeze(-1).to(states_BND.dtype)
                pooled_BD = (states_BND * mask_BN1).sum(1) / mask_BN1.sum(1)
            found[rows] = nn.functional.normalize(pooled_BD.float(), dim=-1).cpu()
        return found, truncated


def _pools_first_token(path: str) -> bool:
    modules = _read_json(path, "modules.json") or []
    further = [m["path"] for m in modules if m["type"].rsplit(".", 1)[-1] not in ("Transformer", "Pooling", "Normalize")]
    if further:
        raise UserError(f"{path}: has a module {further[0]} behind its pooling, which is not computed here; give another encoder")
    pooling = _read_json(path, "1_Pooling/config.json")
    if pooling is None:
        return False
    chosen = [name.removeprefix("pooling_mode_").split("_")[0] for name, on in pooling.items() if on is True and "pool" in name]
    chosen = chosen or [str(pooling.get("pooling_mode", "mean"))]
    if chosen not in (["mean"], ["cls"]):
        raise UserError(f"{path}: pools by {', '.join(chosen)}; a sentence encoder here pools by mean or first token")
    return chosen == ["cls"]


def _read_json(path: str, name: str) -> Any:
    file = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
    return None if file is None else json.loads(Path(file).read_text())
