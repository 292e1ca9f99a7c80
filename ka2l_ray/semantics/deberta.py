"""DeBERTa-v2 and -v3 with their position projections computed once.

transformers projects the whole table of relative positions (512 rows in the large models) anew in every layer of every call, and
multiplies all of it with every token, though texts of n tokens use 2n - 1 of its rows. Without training the projections are
constants, and the rows that no pair of tokens is apart by can be left out; the scores are the same.

Legend: B batch, H heads, N tokens, D width of a head, S rows of the position table, W rows of it that N tokens use.
"""

from __future__ import annotations

import math
from functools import lru_cache
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention, build_relative_position


def precompute_positions(model: Any) -> int:
    """Let a frozen DeBERTa-v2/v3 model compute its position projections now and never again.

    Any other model is left as it is: DeBERTa (v1) projects only the rows that it needs, and others have none.

    Returns:
        Attention layers that were changed.
    """
    changed = 0
    for encoder in (module for module in model.modules() if hasattr(module, "get_rel_embedding")):
        attentions = [m for m in encoder.modules() if isinstance(m, DisentangledSelfAttention) and m.relative_attention]
        if not attentions:
            continue
        rows = _Rows(attentions[0])
        with torch.inference_mode():
            table_SE = encoder.get_rel_embedding()[: 2 * rows.span]
            for attention in attentions:
                shared = attention.share_att_key
                for kind, own, content in (("c2p", "pos_key_proj", "key_proj"), ("p2c", "pos_query_proj", "query_proj")):
                    if kind in attention.pos_att_type:
                        project = getattr(attention, content if shared else own)
                        projected_HSD = project(table_SE).unflatten(-1, (attention.num_attention_heads, -1)).transpose(0, 1)
                        attention.register_buffer(f"_{kind}_HSD", projected_HSD.contiguous(), persistent=False)
                attention.disentangled_attention_bias = MethodType(_bias(rows), attention)
                changed += 1
    return changed


class _Rows:
    """Which rows of the position table the tokens of a text meet; the same in all layers."""

    def __init__(self, attention: Any) -> None:
        self.span = int(attention.pos_ebd_size)
        self.buckets, self.longest = attention.position_buckets, attention.max_relative_positions
        self.of = lru_cache(maxsize=64)(self._of)

    def _of(self, n: int, device: torch.device) -> tuple[slice, Tensor]:
        """(rows that n tokens meet, index (N, N) into them of query i and key j)."""
        tokens = torch.empty(1, n, 1)
        apart_NN = build_relative_position(tokens, tokens, bucket_size=self.buckets, max_position=self.longest)[0]
        index_NN = torch.clamp(apart_NN + self.span, 0, 2 * self.span - 1)
        first, last = int(index_NN.min()), int(index_NN.max())
        return slice(first, last + 1), (index_NN - first).to(device)


def _bias(rows: _Rows) -> Any:
    """In place of ``DisentangledSelfAttention.disentangled_attention_bias``."""

    def bias(
        self: Any, query_layer: Tensor, key_layer: Tensor, relative_pos: Tensor, rel_embeddings: Tensor, scale_factor: int
    ) -> Tensor:
        n = query_layer.size(-2)
        heads = self.num_attention_heads
        scale = math.sqrt(query_layer.size(-1) * scale_factor)
        used, index_NN = rows.of(n, query_layer.device)
        score = torch.zeros((), dtype=query_layer.dtype, device=query_layer.device)
        if "c2p" in self.pos_att_type:
            query_BHND = query_layer.unflatten(0, (-1, heads))
            c2p_BHNW = query_BHND @ self._c2p_HSD[:, used].transpose(-1, -2)
            score = score + c2p_BHNW.gather(-1, index_NN.expand(*query_BHND.shape[:2], n, n)) / scale
        if "p2c" in self.pos_att_type:
            key_BHND = key_layer.unflatten(0, (-1, heads))
            p2c_BHNW = key_BHND @ self._p2c_HSD[:, used].transpose(-1, -2)
            # Key j meets query i at the position that i has from j; the table is read mirrored, j's row then turned.
            found = p2c_BHNW.gather(-1, index_NN.T.expand(*key_BHND.shape[:2], n, n))
            score = score + found.transpose(-1, -2) / scale
        return score.flatten(0, 1)

    return bias
