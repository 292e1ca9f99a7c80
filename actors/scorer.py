"""The worker of the score stage: a Ray Data actor that runs the language model to the probe's layer and the probe on top."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from ka2l_ray import schema
from ka2l_ray.actors.language_model import Model
from ka2l_ray.actors.placement import replicas_a_node
from ka2l_ray.actors.threads import set_threads
from ka2l_ray.config import EngineConfig
from ka2l_ray.errors import UserError
from ka2l_ray.models.language_model import SPREAD, LanguageModel
from ka2l_ray.models.prompts import Prompter
from ka2l_ray.probes import p_unknown, probe_from_bytes
from ka2l_ray.schema import Position
from ka2l_ray.store.storage import Storage
from ka2l_ray.uncertainty.option_entropy import OptionEntropy

logger = logging.getLogger(__name__)

LAST: Position = "last_prompt_token"
ERRORS_ALLOWED = 1000  # of one worker: more is no matter of single questions


class ScoreBatch:
    """Questions in, ``schema.SCORES`` rows out: one or two floats a question, no states kept."""

    def __init__(
        self,
        model: Model,
        probe: str | None,
        next_token_entropy: bool,
        option_entropy: bool,
        exclude: frozenset[str],
        engine: EngineConfig,
    ) -> None:
        self.model, self.probe_url, self.engine = model, probe, engine
        self.next_token_entropy, self.wants_option_entropy = next_token_entropy, option_entropy
        self.exclude = pa.array(sorted(exclude), pa.string())
        self.batch_tokens = engine.batch_tokens
        self.errors = 0
        self.loaded = False

    def __call__(self, batch: pa.Table) -> pa.Table:
        if not self.loaded:  # with the first batch: what is wrong comes back as that batch's error
            self._load()
        return self._apart(batch.filter(pc.invert(pc.is_in(batch["question_id"], value_set=self.exclude))))

    def _load(self) -> None:
        self.language_model = LanguageModel(self.model.base, adapter=self.model.adapter, device=SPREAD)
        set_threads(self.engine.cpus, self.language_model, replicas_a_node(self.engine))
        self.prompter = Prompter(self.language_model.tokenizer, self.model.prompt)
        self.option_entropy = OptionEntropy(self.language_model, self.prompter) if self.wants_option_entropy else None
        self.probe, self.layer, self.position = None, None, LAST
        if self.probe_url is not None:
            self.probe, card = probe_from_bytes(Storage(self.probe_url).read_bytes("probe.safetensors"), self.probe_url)
            self.probe.to(self.language_model.device)
            self.layer, self.position = card.layer, card.position
        self.loaded = True

    def _apart(self, batch: pa.Table) -> pa.Table:
        """Scores of a batch; where it fails, of its halves, until the question at fault stands alone with its error."""
        try:
            return self._score(batch)
        except UserError:
            raise
        except torch.AcceleratorError:  # stays for the life of the process; Ray Data starts another and asks it again
            logger.exception("the device is in an error state; this worker ends")
            os._exit(1)
        except Exception as error:
            logger.warning("%d questions failed: %s", len(batch), error)
            if len(batch) > 1:
                middle = len(batch) // 2
                return pa.concat_tables([self._apart(batch.slice(0, middle)), self._apart(batch.slice(middle))])
            self.errors += 1
            if self.errors > ERRORS_ALLOWED:
                raise
            nothing = {name: pa.nulls(1, schema.SCORES.field(name).type) for name in schema.SCORES.names[2:-1]}
            reason = pa.array([f"{type(error).__name__}: {error}"[:300]])
            return pa.table(
                {"question_id": batch["question_id"], "question": batch["question"], **nothing, "error": reason},
                schema=schema.SCORES,
            )

    def _score(self, batch: pa.Table) -> pa.Table:
        asked = batch["question"].to_pylist()
        encoded = [self.prompter.encode(self.prompter.prompt(question)) for question in asked]
        too_long = max(map(len, encoded), default=0)
        if too_long > self.language_model.max_length:
            raise ValueError(f"a prompt of {too_long} tokens; the model takes {self.language_model.max_length}")
        last = self.language_model.n_layers
        probabilities, entropies, of_options = (np.full(len(encoded), np.nan, np.float32) for _ in range(3))
        for position, rows, states in self._states(encoded, last):
            if self.probe is not None and self.layer is not None and position == self.position:
                probabilities[rows] = p_unknown(self.probe, states[self.layer]).float().cpu().numpy()
            if self.next_token_entropy and position == LAST:
                entropies[rows] = self.language_model.next_token_entropy(states[last]).cpu().numpy()
        if self.option_entropy is not None:
            of_options[:] = self.option_entropy(asked, encoded, batch["options"].to_pylist(), batch_tokens=self.batch_tokens)
        return pa.table(
            {
                "question_id": batch["question_id"],
                "question": batch["question"],
                "p_unknown": pa.array(probabilities, from_pandas=True),
                "next_token_entropy": pa.array(entropies, from_pandas=True),
                "option_entropy": pa.array(of_options, from_pandas=True),
                "semantic_entropy": pa.nulls(len(encoded), pa.float64()),
                "error": pa.nulls(len(encoded), pa.string()),
            },
            schema=schema.SCORES,
        )

    def _states(self, encoded: list[list[int]], last: int) -> Iterator[tuple[Position, list[int], dict[int, torch.Tensor]]]:
        """States that the probe reads, and those of the last layer for the entropy: one pass where both are of one position."""
        wanted: dict[Position, set[int]] = {} if self.layer is None else {self.position: {self.layer}}
        if self.next_token_entropy:
            wanted.setdefault(LAST, set()).add(last)
        for position, layers in wanted.items():
            how: dict[str, Any] = {"position": position, "batch_tokens": self.batch_tokens}
            for rows, states in self.language_model.last_token_states(encoded, sorted(layers), **how):
                yield position, rows, states
