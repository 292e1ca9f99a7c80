"""A causal language model with optional LoRA adapter, on transformers: the reference engine, without Ray.

``generate`` prefills each prompt once and fans its cache out to all its samples; ``last_token_states`` runs no block beyond
the deepest layer asked for.

Shape suffixes: B prompts of a batch, R = B x samples rows, T tokens, V vocabulary, D hidden width, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ka2l_ray.config import ModelConfig
from ka2l_ray.errors import UserError
from ka2l_ray.models.adapters import load_adapter
from ka2l_ray.models.architecture import text_config, text_decoder, vocabulary_logits
from ka2l_ray.models.batching import batches_by_length, enough_tokens, pad
from ka2l_ray.models.decoding import CachedDecoding, Decoding, PrefixedDecoding, RecomputedDecoding, RepeatedDecoding
from ka2l_ray.models.model_files import (
    check_is_loaded_model,
    check_is_model,
    end_token_ids,
    load_model,
    load_tokenizer,
    model_dtype,
)
from ka2l_ray.models.positions import read
from ka2l_ray.models.sampling import Answer, Generation, Sampling, sample_tokens
from ka2l_ray.models.self_check import Decode, Ways, find_ways
from ka2l_ray.models.states import NO_PREFIX, shared_prefix, states_at, states_of_all_layers
from ka2l_ray.models.thinking import NO_THINKING, Thinking
from ka2l_ray.schema import Position
from ka2l_ray.seeds import prompt_seeds

SPREAD = "spread"  # the device of a model over several GPUs


def place(device: str | None, gpus: int) -> tuple[torch.device, bool]:
    """(where a model goes, whether its blocks are put on all GPUs in turn) of a process that sees so many ``gpus``.

    Raises:
        UserError: there is no such device.
    """
    if device is not None and device != SPREAD:
        try:
            at = torch.device(device)
        except RuntimeError:
            raise UserError(f"device {device}: torch knows none of this name; give cpu, cuda or cuda:0") from None
        if at.type == "cuda" and (at.index or 0) >= gpus:
            raise UserError(f"device {device}: this process sees {gpus} GPUs; give another, or cpu")
        return at, False
    return torch.device("cuda" if gpus else "cpu"), device == SPREAD and gpus > 1


class LanguageModel:
    """Model, tokenizer and adapter on one device."""

    def __init__(self, config: ModelConfig, *, adapter: str | None = None, device: str | None = None) -> None:
        """Load a model.

        Args:
            adapter: directory of a LoRA adapter.
            device: as torch names it; ``spread``: its blocks are put on all GPUs that this process sees, in turn; left out: the
                first GPU, or the CPU where there is none.
        """
        check_is_model(config)
        at, spread = place(device, torch.cuda.device_count())
        model = load_model(config, dtype=model_dtype(config.dtype, at), **({"device_map": "auto"} if spread else {}))
        self._hold(model if spread else model.to(at), load_tokenizer(config), config.path, at)
        self.model.eval()
        if adapter is not None:
            self.use_adapter(adapter, adapter)

    @classmethod
    def of(cls, model: Any, tokenizer: PreTrainedTokenizerBase | None) -> Self:
        """A transformers or PEFT model that is loaded already, where it is and as it is, its active adapter included.

        Nothing about it is changed: put it in evaluation mode around what is asked of it (``models.lent.as_it_was``).

        Raises:
            UserError: it is no causal language model, or its tokenizer is missing.
        """
        check_is_loaded_model(model, tokenizer)
        found = cls.__new__(cls)
        found._hold(model, tokenizer, model.config.name_or_path or type(model).__name__, model.device)
        return found

    def _hold(self, model: Any, tokenizer: Any, name: str, device: torch.device) -> None:
        self.model, self.tokenizer, self.name, self.device = model, tokenizer, name, device
        self.dtype: torch.dtype = model.dtype
        self.end_ids = end_token_ids(self.causal_lm.generation_config, tokenizer)  # tokens that end an answer
        self.prefill_tokens = 0
        self.adapter_key: str | None = None
        self.ways = find_ways(self)
        self.prefill_tokens = 0

    def use_adapter(self, path: str | None, key: str | None) -> None:
        """Answer with the adapter at ``path``, known by ``key``, or with none; the base model stays where it is.

        Raises:
            UserError: the adapter is damaged, or made for another model.
        """
        if key == self.adapter_key:
            return
        if self.adapter_key is not None:
            self.model, self.adapter_key = self.model.unload(), None
        if path is not None:
            self.model = load_adapter(self.model, path, self.name).eval()
            self.adapter_key = key

    @property
    def causal_lm(self) -> Any:
        """The transformers model; LoRA layers, if any, are inside it."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def n_layers(self) -> int:
        return int(text_config(self.causal_lm.config).num_hidden_layers)

    @property
    def hidden_size(self) -> int:
        return int(text_config(self.causal_lm.config).hidden_size)

    @property
    def max_length(self) -> int:
        """Tokens of prompt and answer that the model takes."""
        return int(getattr(text_config(self.causal_lm.config), "max_position_embeddings", 2**31))

    @torch.inference_mode()
    def generate(
        self,
        prompts_ids: Sequence[Sequence[int]],
        seeds: int | Sequence[Sequence[int]],
        temperatures: Sequence[float],
        *,
        max_tokens: int,
        stop: Sequence[str] = (),
        top_ps: Sequence[float] | None = None,
        top_ks: Sequence[int] | None = None,
        thinking: Thinking = NO_THINKING,
        batch_tokens: int = 65536,
    ) -> list[list[Generation]]:
        """Samples ``len(temperatures)`` answers a prompt, in batches of similar length.

        Args:
            prompts_ids: token ids of each prompt.
            seeds: (prompts, samples) 64-bit seeds; a sample's random numbers depend on its own seed alone. One number: each
                sample's derives from it, the prompt's tokens and the sample's place among that prompt's.
            temperatures: (samples,) of each sample.
            max_tokens: longest answer.
            stop: an answer ends before any of these texts.
            top_ps: (samples,) probability of the likeliest tokens that each sample is drawn from; None: 1, of all.
            top_ks: (samples,) number of the likeliest tokens that each sample is drawn from; None: 0, of all.
            thinking: where answers may begin with a think block.
            batch_tokens: cache entries of one batch.
        """
        results: dict[int, list[Generation]] = {}
        fan_out = len(temperatures)
        how = Sampling.of_samples(temperatures, top_ps, top_ks, self.device)
        if isinstance(seeds, int | np.integer):
            seeds = [prompt_seeds(seeds, ids, fan_out) for ids in prompts_ids]
        for group in self._decodable([len(ids) for ids in prompts_ids]):
            lengths = [len(prompts_ids[i]) for i in group]
            for batch in batches_by_length(lengths, batch_tokens, fan_out, max_tokens, enough=None):
                rows = [group[b] for b in batch]
                answers = [Answer(stop, self.tokenizer, self.end_ids, thinking) for _ in range(len(rows) * fan_out)]
                done = self._sample_batch([prompts_ids[i] for i in rows], [seeds[i] for i in rows], how, max_tokens, answers)
                results.update(zip(rows, done, strict=True))
        return [results[i] for i in range(len(prompts_ids))]

    def decoding(self, prompts_ids: Sequence[Sequence[int]], fan_out: int, ways: Ways | None = None) -> Decoding:
        """Samples under way: ``fan_out`` rows a prompt."""
        ways = ways or self.ways
        kinds: dict[Decode, type[Decoding]] = {
            "padded": PrefixedDecoding if ways.shared_prefix else CachedDecoding,
            "equal lengths": CachedDecoding,
            "repeated rows": RepeatedDecoding,
            "recomputed": RecomputedDecoding,
        }
        kind: Any = kinds[ways.decoding]
        decoding: Decoding = kind(self.causal_lm, prompts_ids, fan_out, self._pad_id, self.device)
        return decoding

    def _decodable(self, lengths: list[int]) -> list[list[int]]:
        """Indices of prompts that may be decoded in one batch."""
        if self.ways.decoding not in ("equal lengths", "repeated rows"):
            return [list(range(len(lengths)))]
        return [[i for i, n in enumerate(lengths) if n == length] for length in sorted(set(lengths))]

    def _sample_batch(
        self,
        prompts_ids: list[Sequence[int]],
        seeds: list[Sequence[int]],
        how: Sampling,
        max_tokens: int,
        answers: list[Answer],
    ) -> list[list[Generation]]:
        fan_out = len(how.temperature_S)
        decoding = self.decoding(prompts_ids, fan_out)
        uniform_RT = torch.from_numpy(
            np.stack([np.random.Generator(np.random.Philox(key=s)).random(max_tokens) for row in seeds for s in row])
        ).to(self.device)
        live = torch.arange(len(answers))  # indices stay on the host: a model over several GPUs has no one device
        for step in range(max_tokens):
            token_R, logprob_R = sample_tokens(decoding.logits_RV, uniform_RT[live, step], how.of(live % fan_out))
            going = [
                answers[i].extend(token, logprob)
                for i, token, logprob in zip(live.tolist(), token_R.tolist(), logprob_R.tolist(), strict=True)
            ]
            if not any(going) or step == max_tokens - 1:
                break
            kept = torch.tensor(going).nonzero().squeeze(1)
            decoding.keep(kept)
            decoding.step(token_R[kept])
            live = live[kept]
        finished = [answer.finish() for answer in answers]
        return [finished[i : i + fan_out] for i in range(0, len(finished), fan_out)]

    @torch.inference_mode()
    def last_token_states(
        self,
        prompts_ids: Sequence[Sequence[int]],
        layers: Sequence[int],
        *,
        position: Position = "last_prompt_token",
        batch_tokens: int = 65536,
        ways: Ways | None = None,
    ) -> Iterator[tuple[list[int], dict[int, Tensor]]]:
        """Hidden state of the last token at ``layers``, batch by batch: (rows, {layer: (B, D) on the device}).

        At another ``position`` the mean over the tokens, or (B, T, D) of the last of them (``models.positions``).

        Layer 0 is the embeddings, l the output of block l, the last one after the final norm, as in transformers'
        ``hidden_states``. No block beyond the deepest layer runs, nor the vocabulary projection; what all prompts begin with
        runs once (as far as ``ways`` allow; left out: those found when the model was loaded).
        """
        ways = ways or self.ways
        prefix = NO_PREFIX
        if ways.shared_prefix:
            prefix = shared_prefix(self.causal_lm, prompts_ids, layers, position, self.device, ways.stream_axis)
        done = len(prefix.ids)
        self.prefill_tokens += done
        lengths = [len(p) - done for p in prompts_ids]
        for rows in batches_by_length(lengths, batch_tokens, room=done, enough=enough_tokens(self.device)):
            # Right-padded rows of a causal model need no mask: no real token looks at what follows it.
            ids_BT, _ = pad([prompts_ids[i][done:] for i in rows], "right", self._pad_id, self.device)
            own = [lengths[i] for i in rows]

            def pick(layer: int, hidden_BTD: Tensor, own: list[int] = own) -> Tensor:
                return read(position, hidden_BTD, own, (done, prefix.parts.get(layer)), self.device)

            self.prefill_tokens += ids_BT.numel()
            if ways.early_exit:
                yield rows, states_at(self.causal_lm, ids_BT, layers, pick, prefix, ways.stream_axis)
            else:
                yield rows, states_of_all_layers(self.causal_lm, ids_BT, layers, pick)

    @torch.inference_mode()
    def log_likelihood(
        self,
        prompts_ids: Sequence[Sequence[int]],
        continuations_ids: Sequence[Sequence[int]],
        *,
        batch_tokens: int = 65536,
    ) -> list[list[float]]:
        """Log-probability in nats of each token of each continuation, given the prompt and the tokens before it."""
        whole = [[*p, *c] for p, c in zip(prompts_ids, continuations_ids, strict=True)]
        found: dict[int, list[float]] = {}
        for rows in batches_by_length([len(ids) for ids in whole], batch_tokens, enough=enough_tokens(self.device)):
            ids_BT, _ = pad([whole[i] for i in rows], "right", self._pad_id, self.device)
            hidden_BTD = text_decoder(self.causal_lm)(input_ids=ids_BT, use_cache=False).last_hidden_state
            for b, i in enumerate(rows):
                begin, end = len(prompts_ids[i]), len(whole[i])
                log_p_TV = vocabulary_logits(self.causal_lm, hidden_BTD[b, begin - 1 : end - 1]).float().log_softmax(-1)
                found[i] = log_p_TV.gather(1, ids_BT[b, begin:end, None].to(log_p_TV.device)).squeeze(1).tolist()
        return [found[i] for i in range(len(whole))]

    @torch.inference_mode()
    def next_token_entropy(self, state_BD: Tensor) -> Tensor:
        """(B,) entropy in nats of the next-token distribution at T=1, from last-layer states (B, D)."""
        log_p_BV = vocabulary_logits(self.causal_lm, state_BD).float().log_softmax(-1)
        entropy_B: Tensor = -(log_p_BV.exp() * log_p_BV).sum(-1)
        return entropy_B

    @property
    def _pad_id(self) -> int:
        return next(iter(self.end_ids), 0)
