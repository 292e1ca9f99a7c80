"""How a token is drawn from logits, and how an answer grows out of tokens and ends.

Shape suffixes: S samples of a prompt, R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from ka2l_ray.models.thinking import CLOSING, NO_THINKING, Thinking, Thought, split_answer

MARK_TOKENS = 64  # hold the longest closing mark, spelled out


@dataclass(frozen=True)
class Generation:
    """One sampled answer. Log-probabilities are those of the model before temperature, nats.

    ``text`` is without a think block, the tokens are all that was sampled.
    """

    text: str
    token_ids: list[int]
    token_logprobs: list[float]
    finish_reason: str
    thought: Thought = "none"


class Answer:
    """One answer as it grows."""

    def __init__(self, stop: Sequence[str], tokenizer: Any, end_ids: set[int], thinking: Thinking = NO_THINKING) -> None:
        self.stop, self.tokenizer, self.end_ids, self.thinking = stop, tokenizer, end_ids, thinking
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.stopped_at: str | None = None
        self.finish_reason = "length"
        self.open_until = 0  # tokens that were found to leave a think block open

    def extend(self, token: int, logprob: float) -> bool:
        """Add a token; False when the answer has ended."""
        self.token_ids.append(token)
        self.logprobs.append(logprob)
        if token in self.end_ids:
            self.finish_reason = "stop"
            return False
        if self.stop and any(text in self._tail() for text in self.stop):
            whole = self._said()
            cuts = [whole.find(text) for text in self.stop if text in whole]
            if cuts:
                self.stopped_at, self.finish_reason = whole[: min(cuts)], "stop"
                return False
        return True

    def finish(self) -> Generation:
        text, thought = split_answer(self.token_ids, self.tokenizer, self.thinking.opened)
        if self.stopped_at is not None and (self.thinking.strip or thought == "none"):
            text = self.stopped_at
        return Generation(text.strip(), self.token_ids, self.logprobs, self.finish_reason, thought)

    def _said(self) -> str:
        """What stop texts are sought in, from its first word on: nothing while a model that may think does so."""
        if not self.thinking.strip:
            return self._decode(self.token_ids).lstrip()
        since = max(0, self.open_until - MARK_TOKENS)
        if self.open_until and not CLOSING.search(self.tokenizer.decode(self.token_ids[since:])):
            self.open_until = len(self.token_ids)
            return ""
        text, thought = split_answer(self.token_ids, self.tokenizer, self.thinking.opened)
        self.open_until = len(self.token_ids) if thought == "open" else 0
        return text.lstrip()

    def _tail(self) -> str:
        """The last few tokens' text: enough to hold the longest stop text."""
        bytes_at_most = 4 * max(map(len, self.stop))  # a token is a byte at least, a character four at most
        return self._decode(self.token_ids[-bytes_at_most - 1 :])

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


@dataclass(frozen=True)
class Sampling:
    """How each of S samples is drawn: temperature, then the ``top_k`` likeliest tokens (0: all), then the likeliest of these
    that have ``top_p`` of their probability; the order of transformers and vLLM."""

    temperature_S: Tensor
    top_p_S: Tensor
    top_k_S: Tensor

    @classmethod
    def of_samples(
        cls, temperatures: Sequence[float], top_ps: Sequence[float] | None, top_ks: Sequence[int] | None, device: torch.device
    ) -> Self:
        return cls(
            torch.tensor(temperatures, device=device),
            torch.tensor(top_ps or [1.0] * len(temperatures), dtype=torch.float64, device=device),
            torch.tensor(top_ks or [0] * len(temperatures), device=device),
        )

    def of(self, samples: Tensor) -> Self:
        """That of some of the samples, or of one several times."""
        return type(self)(self.temperature_S[samples], self.top_p_S[samples], self.top_k_S[samples])


def sample_tokens(logits_RV: Tensor, uniform_R: Tensor, how: Sampling) -> tuple[Tensor, Tensor]:
    """(token_R, logprob_R): inverse-CDF samples, and their log-probabilities before temperature and filters.

    One given uniform number a row makes a row's token independent of its batch.
    """
    log_p_RV = logits_RV.float().log_softmax(-1)
    scaled_RV = keep_likeliest(log_p_RV / how.temperature_S[:, None], how)
    cdf_RV = scaled_RV.softmax(-1).double().cumsum(-1)
    target_R1 = (uniform_R * cdf_RV[:, -1])[:, None]
    token_R = torch.searchsorted(cdf_RV, target_R1, right=True).squeeze(1).clamp(max=logits_RV.shape[1] - 1)
    return token_R, log_p_RV.gather(1, token_R[:, None]).squeeze(1)


def keep_likeliest(scaled_RV: Tensor, how: Sampling) -> Tensor:
    """Logits after temperature, with -inf for what ``how`` does not draw from; the likeliest token always stays."""
    vocabulary = scaled_RV.shape[1]
    top_k_R = torch.where(how.top_k_S > 0, how.top_k_S, vocabulary).clamp(max=vocabulary)
    if (how.top_p_S >= 1).all() and (top_k_R == vocabulary).all():
        return scaled_RV
    ordered_RV, order_RV = scaled_RV.sort(dim=-1, descending=True, stable=True)
    least_R1 = ordered_RV.gather(1, top_k_R[:, None] - 1)
    ordered_RV = ordered_RV.masked_fill(ordered_RV < least_R1, -torch.inf)
    p_RV = ordered_RV.softmax(-1).double()
    likelier_RV = p_RV.cumsum(-1) - p_RV  # probability of the tokens before
    # From all at 1: rounded sums of a large vocabulary may reach it before its end.
    out_RV = (likelier_RV >= how.top_p_S[:, None]) & (how.top_p_S < 1)[:, None]
    out_RV[:, 0] = False
    ordered_RV = ordered_RV.masked_fill(out_RV, -torch.inf)
    return torch.empty_like(scaled_RV).scatter_(1, order_RV, ordered_RV)
