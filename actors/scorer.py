"""Scores of a pool's questions by a language model that is loaded: to the probe's layer, and the probe on top."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ka2l_ray import schema
from ka2l_ray.models.language_model import LanguageModel
from ka2l_ray.models.prompts import Prompter
from ka2l_ray.probes import FILE, p_unknown, probe_from_bytes
from ka2l_ray.schema import Position
from ka2l_ray.store.storage import Storage
from ka2l_ray.uncertainty.option_entropy import OptionEntropy

NOT_FINITE = "its hidden states are not finite; another model.dtype may hold them"
LAST: Position = "last_prompt_token"


@dataclass(frozen=True)
class Wanted:
    """Which scores: ``probe`` is the directory that holds it, of content key ``probe_key``, or None; the others take no probe."""

    probe: str | None = None
    probe_key: str | None = None
    next_token_entropy: bool = False
    option_entropy: bool = False


class Scorer:
    """Questions in, ``schema.SCORES`` rows out: one or two floats a question, no states kept."""

    def __init__(self, language_model: LanguageModel, prompter: Prompter, wanted: Wanted, *, batch_tokens: int) -> None:
        self.language_model, self.wanted, self.batch_tokens = language_model, wanted, batch_tokens
        self.option_entropy = OptionEntropy(language_model, prompter) if wanted.option_entropy else None
        self.probe, self.layer, self.position = None, None, LAST
        if wanted.probe is not None:
            self.probe, card = probe_from_bytes(Storage(wanted.probe).read_bytes(FILE), wanted.probe)
            self.probe.to(language_model.device)
            self.layer, self.position = card.layer, card.position

    def __call__(self, questions: pa.Table, encoded: Sequence[Sequence[int]]) -> pa.Table:
        """Rows of ``schema.SCORES``.

        Args:
            questions: question_id, question, and ``options`` where their entropy is wanted.
            encoded: token ids of the prompts.
        """
        last = self.language_model.n_layers
        probabilities, entropies, of_options = (np.full(len(encoded), np.nan, np.float32) for _ in range(3))
        for position, rows, states in self._states(encoded, last):
            if self.probe is not None and self.layer is not None and position == self.position:
                probabilities[rows] = p_unknown(self.probe, states[self.layer]).float().cpu().numpy()
            if self.wanted.next_token_entropy and position == LAST:
                entropies[rows] = self.language_model.next_token_entropy(states[last]).cpu().numpy()
        if self.option_entropy is not None:
            options = questions["options"].to_pylist()
            asked = questions["question"].to_pylist()
            of_options[:] = self.option_entropy(asked, encoded, options, batch_tokens=self.batch_tokens)
        wanting = np.isnan(probabilities) if self.probe is not None else np.zeros(len(encoded), bool)
        return pa.table(
            {
                "question_id": questions["question_id"],
                "question": questions["question"],
                "p_unknown": pa.array(probabilities, from_pandas=True),
                "next_token_entropy": pa.array(entropies, from_pandas=True),
                "option_entropy": pa.array(of_options, from_pandas=True),
                "semantic_entropy": pa.nulls(len(encoded), pa.float64()),
                "error": pa.array([NOT_FINITE if each else None for each in wanting], pa.string()),
            },
            schema=schema.SCORES,
        )

    def _states(
        self, encoded: Sequence[Sequence[int]], last: int
    ) -> Iterator[tuple[Position, list[int], dict[int, torch.Tensor]]]:
        """States that the probe reads, and those of the last layer for the entropy: one pass where both are of one position."""
        wanted: dict[Position, set[int]] = {} if self.layer is None else {self.position: {self.layer}}
        if self.wanted.next_token_entropy:
            wanted.setdefault(LAST, set()).add(last)
        for position, layers in wanted.items():
            how: dict[str, Any] = {"position": position, "batch_tokens": self.batch_tokens}
            for rows, states in self.language_model.last_token_states(encoded, sorted(layers), **how):
                yield position, rows, states
