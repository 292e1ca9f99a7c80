"""The next token's logits for many rows, step after step: prompts are prefilled once and fanned out to their samples.

Shape suffixes: B prompts, R = B x samples rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ka2l_ray.models.architecture import text_decoder, vocabulary_logits
from ka2l_ray.models.batching import pad
from ka2l_ray.models.states import LEAST_PREFIX, common_prefix


class Decoding(ABC):
    """Rows under way. A prompt's samples are neighbours."""

    logits_RV: Tensor
    """Of each row's next token."""

    @abstractmethod
    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only (indices on the host: a model over several GPUs has no one device)."""

    @abstractmethod
    def step(self, token_R: Tensor) -> None:
        """Append a token to each row."""


class CachedDecoding(Decoding):
    """Prompts are padded on the left; a cache holds what is past, and each step runs one token a row."""

    def __init__(
        self, causal_lm: Any, prompts_ids: Sequence[Sequence[int]], fan_out: int, pad_id: int, device: torch.device
    ) -> None:
        self.causal_lm = causal_lm
        self.cache = DynamicCache(config=causal_lm.config)
        takes = inspect.signature(causal_lm.forward).parameters
        self.cache_argument = "past_key_values" if "past_key_values" in takes else "cache_params"  # Mamba's name
        ids_BT, mask_BT = pad(prompts_ids, "left", pad_id, device)
        self.mask_RT = mask_BT
        self.padded = bool((mask_BT == 0).any())
        positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
        self.position_R = positions_BT[:, -1]
        done = self._fill(prompts_ids, mask_BT)
        self._run(ids_BT[:, done:], positions_BT[:, done:])
        if fan_out > 1:
            self._select(torch.arange(len(ids_BT)).repeat_interleave(fan_out))

    def keep(self, rows: Tensor) -> None:
        if len(rows) < len(self.logits_RV):
            self._select(rows)

    def step(self, token_R: Tensor) -> None:
        self.mask_RT = torch.cat([self.mask_RT, self.mask_RT.new_ones(len(token_R), 1)], dim=1)
        self.position_R = self.position_R + 1
        self._run(token_R[:, None], self.position_R[:, None])

    def _fill(self, prompts_ids: Sequence[Sequence[int]], mask_BT: Tensor) -> int:
        """Fill the cache's first columns ahead of the prompts' own pass; how many columns that are."""
        return 0

    def _run(self, ids_RT: Tensor, position_RT: Tensor) -> None:
        output = self.causal_lm(
            input_ids=ids_RT,
            attention_mask=self.mask_RT if self.padded else None,
            position_ids=position_RT,
            use_cache=True,
            logits_to_keep=1,
            **{self.cache_argument: self.cache},
        )
        self.logits_RV = output.logits[:, -1].to(ids_RT.device)

    def _select(self, rows: Tensor) -> None:
        self.cache.reorder_cache(rows)  # the one selection that every kind of cache has
        self.logits_RV, self.mask_RT, self.position_R = self.logits_RV[rows], self.mask_RT[rows], self.position_R[rows]


class PrefixedDecoding(CachedDecoding):
    """What all prompts begin with is prefilled once, for one row."""

    def _fill(self, prompts_ids: Sequence[Sequence[int]], mask_BT: Tensor) -> int:
        """A row that is padded by n columns holds the first tokens n columns further right, and runs the others again."""
        shared = common_prefix(prompts_ids)[: min(map(len, prompts_ids)) - 1] if len(prompts_ids) > 1 else []
        if len(shared) < LEAST_PREFIX or not all(_keeps(layer, len(shared)) for layer in self.cache.layers):
            return 0
        ids_1T = torch.tensor([shared], device=mask_BT.device)
        text_decoder(self.causal_lm)(input_ids=ids_1T, use_cache=True, **{self.cache_argument: self.cache})
        padding_B1 = (mask_BT == 0).sum(1, keepdim=True)
        token_BT = (torch.arange(len(shared), device=mask_BT.device) - padding_B1).clamp(min=0)  # of padding any: it is masked
        for layer in self.cache.layers:
            if layer.is_initialized:
                of_row_BT = token_BT.to(layer.keys.device)
                layer.keys = layer.keys[0][:, of_row_BT].transpose(0, 1)
                layer.values = layer.values[0][:, of_row_BT].transpose(0, 1)
        return len(shared)


def _keeps(layer: Any, tokens: int) -> bool:
    """Whether a layer's cache is the keys and values of all ``tokens``."""
    return type(layer) is DynamicLayer or (type(layer) is DynamicSlidingWindowLayer and tokens < layer.sliding_window)


class RepeatedDecoding(Decoding):
    """Each row is prefilled for itself and stays to the end, in a cache of the model's own making; prompts are of one length.

    For models whose past cannot be fanned out: caches of their own kind, or states kept inside their modules.
    """

    def __init__(
        self, causal_lm: Any, prompts_ids: Sequence[Sequence[int]], fan_out: int, pad_id: int, device: torch.device
    ) -> None:
        self.causal_lm = causal_lm
        takes = inspect.signature(causal_lm.forward).parameters
        self.past: dict[str, Any] = {name: None for name in ("past_key_values", "cache_params", "state") if name in takes}
        ids_RT = torch.tensor([list(ids) for ids in prompts_ids for _ in range(fan_out)], device=device)
        self.done = 0
        self.live = torch.arange(len(ids_RT))
        self._run(ids_RT)

    def keep(self, rows: Tensor) -> None:
        self.live, self.logits_RV = self.live[rows], self.logits_RV[rows]

    def step(self, token_R: Tensor) -> None:
        token_of_all_R = token_R.new_zeros(self.rows)  # rows that have ended go on with whatever token
        token_of_all_R[self.live] = token_R
        self._run(token_of_all_R[:, None])

    def _run(self, ids_RT: Tensor) -> None:
        self.rows = len(ids_RT)
        position_RT = torch.arange(self.done, self.done + ids_RT.shape[1], device=ids_RT.device).expand_as(ids_RT)
        output = self.causal_lm(input_ids=ids_RT, position_ids=position_RT, use_cache=True, **self.past)
        self.past = {name: output.get(name) for name in self.past}
        self.done += ids_RT.shape[1]
        self.logits_RV = output.logits[:, -1].to(ids_RT.device)[self.live]


class RecomputedDecoding(Decoding):
    """Without a cache: each step runs all tokens of each row again. For models whose past no cache of ours can hold."""

    def __init__(
        self, causal_lm: Any, prompts_ids: Sequence[Sequence[int]], fan_out: int, pad_id: int, device: torch.device
    ) -> None:
        self.causal_lm, self.pad_id, self.device = causal_lm, pad_id, device
        self.rows_ids = [list(ids) for ids in prompts_ids]
        self._run()
        self.rows_ids = [list(ids) for ids in prompts_ids for _ in range(fan_out)]
        self.logits_RV = self.logits_RV.repeat_interleave(fan_out, 0)

    def keep(self, rows: Tensor) -> None:
        self.rows_ids = [self.rows_ids[row] for row in rows.tolist()]
        self.logits_RV = self.logits_RV[rows]

    def step(self, token_R: Tensor) -> None:
        self.rows_ids = [[*ids, token] for ids, token in zip(self.rows_ids, token_R.tolist(), strict=True)]
        self._run()

    def _run(self) -> None:
        ids_RT, _ = pad(self.rows_ids, "right", self.pad_id, self.device)
        hidden_RTD = text_decoder(self.causal_lm)(input_ids=ids_RT, use_cache=False).last_hidden_state
        ends = torch.tensor([len(ids) - 1 for ids in self.rows_ids])
        self.logits_RV = vocabulary_logits(self.causal_lm, hidden_RTD[torch.arange(len(ends)), ends]).to(self.device)
