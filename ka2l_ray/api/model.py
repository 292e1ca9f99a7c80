"""A language model and the prompt that questions are put in: what scorer, probe and learner ask."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from ka2l_ray.config import EngineConfig, ModelConfig, PromptConfig, SamplingConfig
from ka2l_ray.config_files import validate_section
from ka2l_ray.errors import UserError
from ka2l_ray.models.language_model import LanguageModel
from ka2l_ray.models.lent import as_it_was
from ka2l_ray.models.prompts import Prompter, fixed_case_of
from ka2l_ray.models.sampling import Generation
from ka2l_ray.probes import Source
from ka2l_ray.schema import MOST_TOKENS, Position
from ka2l_ray.store.storage import digest

BATCH_TOKENS = int(EngineConfig().batch_tokens)


class PromptedModel:
    """Questions in; answers and hidden states out.

    Args:
        model: directory, hub name or ``bundled:student``; or a transformers or PEFT model that is loaded, whose active adapter
            is part of it. It stays where it is, and is left as it was after every call.
        tokenizer: of a loaded model.
        prompt: keys of the configuration's ``prompt``, such as ``instruction``, ``examples``, ``chat_template``.
        device: for a path: as torch names it; left out: the first GPU, or the CPU where there is none.

    Raises:
        UserError: there is no causal language model, its tokenizer is missing, or its chat template refuses the prompt.
    """

    def __init__(
        self, model: Any, tokenizer: Any = None, *, prompt: Mapping[str, Any] | None = None, device: str | None = None
    ) -> None:
        settings = validate_section(PromptConfig, prompt or {}, "prompt")  # before minutes of loading
        if isinstance(model, str | os.PathLike):
            model = os.fspath(model)
            if tokenizer is not None:
                raise UserError(f"{model}: a model that is loaded from a path brings its own tokenizer; leave tokenizer out")
            self.language_model = LanguageModel(ModelConfig(path=model), device=device)
        else:
            if device is not None:
                raise UserError(f"device is {device}, but a loaded model stays where it is; leave device out, or move the model")
            self.language_model = LanguageModel.of(model, tokenizer)
        self.prompter = Prompter(self.language_model.tokenizer, settings)
        self.prompter.check()
        if self.prompter.end_of_turn is not None:
            self.language_model.end_ids.add(self.prompter.end_of_turn)
        self.adapter: str | None = None
        """Directory of the LoRA adapter to answer with."""

    @classmethod
    def of(cls, model: Any, tokenizer: Any, prompt: Mapping[str, Any] | None, device: str | None) -> Self:
        """``model`` itself where it is one already, as of another scorer or probe: its weights are then held once."""
        if not isinstance(model, cls):
            return cls(model, tokenizer, prompt=prompt, device=device)
        if tokenizer is not None or prompt is not None or device is not None:
            raise UserError("a model that another scorer holds has its tokenizer, prompt and device; leave them out")
        return model

    @contextmanager
    def lent(self) -> Iterator[LanguageModel]:
        """The language model in evaluation mode, with the adapter; afterwards all is as it was."""
        with as_it_was(self.language_model.model):
            self.language_model.use_adapter(self.adapter, self.adapter)
            try:
                yield self.language_model
            finally:
                self.language_model.use_adapter(None, None)

    @property
    def layers(self) -> list[int]:
        """All layers that have states: 0 are the embeddings."""
        return list(range(self.language_model.n_layers + 1))

    def sample(
        self, questions: Sequence[str], sampling: SamplingConfig, *, seed: int, greedy_only: bool = False
    ) -> list[list[Generation]]:
        """k answers and then the greedy-like one to each question; or that one alone.

        An answer depends on the seed, the question and the settings, not on the questions beside it.
        """
        sampled = 0 if greedy_only else sampling.k
        prompts_ids = self._encode(questions, sampling.max_tokens)
        with self.lent() as model:
            answers = model.generate(
                prompts_ids,
                seed,
                [sampling.temperature] * sampled + [sampling.greedy_temperature],
                max_tokens=sampling.max_tokens,
                stop=sampling.stop,
                top_ps=[sampling.top_p] * sampled + [1.0],
                top_ks=[sampling.top_k or 0] * sampled + [0],
                thinking=self.prompter.thinking,
                batch_tokens=BATCH_TOKENS,
            )
        self.prompter.check_answers(answers, sampling.max_tokens)
        return answers

    def states(
        self, questions: Sequence[str], layers: Sequence[int], position: Position = "last_prompt_token"
    ) -> dict[int, NDArray[np.float32]]:
        """(n, d) hidden states of each prompt's last token, by layer; no block beyond the deepest runs.

        At another ``position`` the mean over the prompt's tokens, or (n, T, d) of its last ones, padded with NaN.
        """
        prompts_ids = self._encode(questions, 0)
        tokens = (min(MOST_TOKENS, max(map(len, prompts_ids))),) if position == "attention" else ()
        with self.lent() as model:
            shape = (len(prompts_ids), *tokens, model.hidden_size)
            gathered = {layer: np.full(shape, np.nan, np.float32) for layer in layers}
            how: dict[str, Any] = {"position": position, "batch_tokens": BATCH_TOKENS}
            for rows, states in model.last_token_states(prompts_ids, layers, **how):
                for layer in layers:
                    found = states[layer].float().cpu().numpy()
                    place: Any = (rows, slice(found.shape[1])) if tokens else rows
                    gathered[layer][place] = found
        return gathered

    def source(self) -> Source:
        """What a probe on this model's states says of it."""
        model, adapter = self.language_model, self.adapter
        if adapter is None and hasattr(model.model, "peft_config"):
            adapter = str(getattr(model.model, "active_adapter", "loaded"))
        return Source(
            model=model.name,
            revision=getattr(model.causal_lm.config, "_commit_hash", None),
            layers=model.n_layers,
            adapter=adapter,
            prompt=self.prompter.config.model_dump(mode="json"),
            rendering=digest(fixed_case_of(self.prompter)),
        )

    def next_token_entropy(self, questions: Sequence[str]) -> NDArray[np.float32]:
        """(n,) nats at the last prompt token, T = 1."""
        prompts_ids = self._encode(questions, 0)
        found = np.empty(len(prompts_ids), np.float32)
        with self.lent() as model, torch.inference_mode():
            for rows, states in model.last_token_states(prompts_ids, [model.n_layers], batch_tokens=BATCH_TOKENS):
                found[rows] = model.next_token_entropy(states[model.n_layers]).cpu().numpy()
        return found

    def _encode(self, questions: Sequence[str], answer_tokens: int) -> list[list[int]]:
        """Token ids of the prompts.

        Raises:
            UserError: a prompt and its answer are longer than the model takes.
        """
        room = self.language_model.max_length
        encoded = []
        for question in questions:
            ids = self.prompter.encode(self.prompter.prompt(question))
            if len(ids) + answer_tokens > room:
                raise UserError(
                    f"'{question[:60]}': its prompt has {len(ids)} tokens, its answer up to {answer_tokens}, the model takes "
                    f"{room}; lower max_tokens or leave the question out"
                )
            encoded.append(ids)
        return encoded
