"""A causal language model with optional LoRA adapter, on transformers: the reference engine, without Ray.

``generate`` prefills each prompt once and fans its cache out to all its samples; ``last_token_states`` runs no block beyond
the deepest layer asked for.

Shape suffixes: B prompts of a batch, R = B x samples rows, T tokens, V vocabulary, D hidden width, L layers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import HFValidationError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache, PretrainedConfig

from ka2l_ray.config import ModelConfig
from ka2l_ray.errors import UserError
from ka2l_ray.storage import file_digest
from ka2l_ray.world import bundled_path


@dataclass(frozen=True)
class Generation:
    """One sampled answer. Log-probabilities are those of the model before temperature, nats."""

    text: str
    token_ids: list[int]
    token_logprobs: list[float]
    finish_reason: str


class _DeepestLayerReached(Exception):
    """Ends a forward pass whose later blocks are not wanted."""


class LanguageModel:
    """Model, tokenizer and adapter on one device."""

    def __init__(self, config: ModelConfig, *, adapter: str | None = None, device: str | None = None) -> None:
        path = bundled_path(config.path)
        check_is_model(config)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        source = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
        self.tokenizer = AutoTokenizer.from_pretrained(path, **source)
        dtype = model_dtype(config.dtype, self.device)
        self.model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, use_safetensors=True, **source)
        if adapter is not None:
            from peft import PeftModel

            self.model = PeftModel.from_pretrained(self.model, adapter)
        self.model.eval().to(self.device)
        self.dtype = dtype

    @property
    def causal_lm(self) -> Any:
        """The transformers model; LoRA layers, if any, are inside it."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def n_layers(self) -> int:
        return int(self.causal_lm.config.num_hidden_layers)

    @property
    def hidden_size(self) -> int:
        return int(self.causal_lm.config.hidden_size)

    @property
    def end_ids(self) -> set[int]:
        """Tokens that end an answer."""
        ends = self.causal_lm.generation_config.eos_token_id
        listed = ends if isinstance(ends, list) else [ends]
        return {i for i in [*listed, self.tokenizer.eos_token_id] if i is not None}

    @torch.inference_mode()
    def generate(
        self,
        prompts_ids: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        temperatures: Sequence[float],
        *,
        max_tokens: int,
        stop: Sequence[str] = (),
        batch_tokens: int = 65536,
    ) -> list[list[Generation]]:
        """Samples ``len(temperatures)`` answers a prompt, in batches of similar length.

        Args:
            prompts_ids: token ids of each prompt.
            seeds: (prompts, samples) 64-bit seeds; a sample's random numbers depend on its own seed alone.
            temperatures: (samples,) of each sample.
            max_tokens: longest answer.
            stop: an answer ends before any of these texts.
            batch_tokens: cache entries of one batch.
        """
        results: dict[int, list[Generation]] = {}
        fan_out = len(temperatures)
        for rows in batches_by_length([len(p) for p in prompts_ids], batch_tokens, fan_out, max_tokens):
            batch = self._sample_batch([prompts_ids[i] for i in rows], [seeds[i] for i in rows], temperatures, max_tokens, stop)
            results.update(zip(rows, batch, strict=True))
        return [results[i] for i in range(len(prompts_ids))]

    def _sample_batch(
        self,
        prompts_ids: list[Sequence[int]],
        seeds: list[Sequence[int]],
        temperatures: Sequence[float],
        max_tokens: int,
        stop: Sequence[str],
    ) -> list[list[Generation]]:
        fan_out = len(temperatures)
        input_ids_BT, mask_BT = self._pad(prompts_ids, side="left")
        positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.causal_lm.config)
        logits_RV = self.model(
            input_ids=input_ids_BT,
            attention_mask=mask_BT,
            position_ids=positions_BT,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        cache.batch_repeat_interleave(fan_out)
        logits_RV = logits_RV.repeat_interleave(fan_out, 0)
        mask_RT = mask_BT.repeat_interleave(fan_out, 0)
        position_R = positions_BT[:, -1].repeat_interleave(fan_out, 0)
        temperature_R = torch.tensor(list(temperatures) * len(prompts_ids), device=self.device)
        uniform_RT = torch.from_numpy(
            np.stack([np.random.Generator(np.random.Philox(key=s)).random(max_tokens) for row in seeds for s in row])
        ).to(self.device)
        answers = [_Answer(stop, self.tokenizer, self.end_ids) for _ in range(len(prompts_ids) * fan_out)]
        live = torch.arange(len(answers), device=self.device)
        for step in range(max_tokens):
            token_R, logprob_R = sample_tokens(logits_RV, temperature_R[live], uniform_RT[live, step])
            going = [
                answers[i].extend(token, logprob)
                for i, token, logprob in zip(live.tolist(), token_R.tolist(), logprob_R.tolist(), strict=True)
            ]
            if not any(going) or step == max_tokens - 1:
                break
            kept = torch.tensor(going, device=self.device).nonzero().squeeze(1)
            if len(kept) < len(live):
                cache.batch_select_indices(kept)
                token_R, mask_RT, position_R, live = token_R[kept], mask_RT[kept], position_R[kept], live[kept]
            mask_RT = torch.cat([mask_RT, mask_RT.new_ones(len(live), 1)], dim=1)
            position_R = position_R + 1
            logits_RV = self.model(
                input_ids=token_R[:, None],
                attention_mask=mask_RT,
                position_ids=position_R[:, None],
                past_key_values=cache,
                use_cache=True,
            ).logits[:, -1]
        finished = [answer.finish() for answer in answers]
        return [finished[i : i + fan_out] for i in range(0, len(finished), fan_out)]

    @torch.inference_mode()
    def last_token_states(
        self, prompts_ids: Sequence[Sequence[int]], layers: Sequence[int], *, batch_tokens: int = 65536
    ) -> Iterator[tuple[list[int], dict[int, Tensor]]]:
        """Hidden state of the last prompt token at ``layers``, batch by batch: (rows, {layer: (B, D) on the device}).

        Layer 0 is the embeddings, l the output of block l, the last one after the final norm, as in transformers'
        ``hidden_states``. No block beyond the deepest layer runs, nor the vocabulary projection.
        """
        decoder, blocks = self.causal_lm.get_decoder(), self._blocks()
        deepest = max(layers)
        for rows in batches_by_length([len(p) for p in prompts_ids], batch_tokens):
            ids_BT, mask_BT = self._pad([prompts_ids[i] for i in rows], side="right")
            last_B = mask_BT.sum(-1) - 1
            arange_B = torch.arange(len(rows), device=self.device)
            states: dict[int, Tensor] = {}

            def keep(hidden_BTD: Tensor, layer: int, at: tuple[Tensor, Tensor] = (arange_B, last_B), into: Any = states) -> None:
                into[layer] = hidden_BTD[at]
                if layer == deepest:
                    raise _DeepestLayerReached

            hooks = [
                blocks[layer].register_forward_pre_hook(
                    lambda _, args, kwargs, layer=layer, keep=keep: keep(args[0] if args else kwargs["hidden_states"], layer),
                    with_kwargs=True,
                )
                for layer in layers
                if layer < len(blocks)
            ]
            try:
                output = decoder(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)
                states[len(blocks)] = output.last_hidden_state[arange_B, last_B]
            except _DeepestLayerReached:
                pass
            finally:
                for hook in hooks:
                    hook.remove()
            yield rows, states

    @torch.inference_mode()
    def next_token_entropy(self, state_BD: Tensor) -> Tensor:
        """(B,) entropy in nats of the next-token distribution at T=1, from last-layer states (B, D)."""
        log_p_BV = vocabulary_logits(self.causal_lm, state_BD).float().log_softmax(-1)
        entropy_B: Tensor = -(log_p_BV.exp() * log_p_BV).sum(-1)
        return entropy_B

    def check_layers(self, layers: Sequence[int]) -> None:
        wrong = [layer for layer in layers if not 0 <= layer <= self.n_layers]
        if wrong:
            raise UserError(f"layer {wrong[0]} does not exist; this model has layers 0 (embeddings) to {self.n_layers}")

    def _blocks(self) -> nn.ModuleList:
        decoder = self.causal_lm.get_decoder()
        for child in decoder.children():
            if isinstance(child, nn.ModuleList) and len(child) == self.n_layers:
                return child
        raise UserError(f"{type(self.causal_lm).__name__}: its blocks are not in one list; this architecture is not supported")

    def _pad(self, rows_ids: Sequence[Sequence[int]], side: str) -> tuple[Tensor, Tensor]:
        """(input_ids_BT, attention_mask_BT); padded positions hold a real token that the mask hides."""
        length = max(len(ids) for ids in rows_ids)
        ids_BT = torch.full((len(rows_ids), length), next(iter(self.end_ids), 0))
        mask_BT = torch.zeros_like(ids_BT)
        for i, ids in enumerate(rows_ids):
            span = slice(length - len(ids), None) if side == "left" else slice(0, len(ids))
            ids_BT[i, span] = torch.tensor(ids)
            mask_BT[i, span] = 1
        return ids_BT.to(self.device), mask_BT.to(self.device)


def vocabulary_logits(causal_lm: Any, state_ND: Tensor) -> Tensor:
    """(N, V) logits of final-norm states (N, D), as the model's own forward pass makes them.

    Some architectures scale them (Granite divides, Cohere multiplies) or cap them softly (Gemma 2).
    """
    config = causal_lm.config.get_text_config()
    logits_NV: Tensor = causal_lm.get_output_embeddings()(state_ND)
    if scaling := getattr(config, "logits_scaling", None):
        logits_NV = logits_NV / scaling
    if scale := getattr(config, "logit_scale", None):
        logits_NV = logits_NV * scale
    if cap := getattr(config, "final_logit_softcapping", None):
        logits_NV = torch.tanh(logits_NV / cap) * cap
    return logits_NV


class _Answer:
    """One answer as it grows."""

    def __init__(self, stop: Sequence[str], tokenizer: Any, end_ids: set[int]) -> None:
        self.stop, self.tokenizer, self.end_ids = stop, tokenizer, end_ids
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.stopped_at: str | None = None
        self.finish_reason = "length"

    def extend(self, token: int, logprob: float) -> bool:
        """Add a token; False when the answer has ended."""
        self.token_ids.append(token)
        self.logprobs.append(logprob)
        if token in self.end_ids:
            self.finish_reason = "stop"
            return False
        if self.stop and any(text in self._tail() for text in self.stop):
            whole = self._decode(self.token_ids).lstrip()
            cuts = [whole.find(text) for text in self.stop if text in whole]
            if cuts:
                self.stopped_at, self.finish_reason = whole[: min(cuts)], "stop"
                return False
        return True

    def finish(self) -> Generation:
        text = self.stopped_at if self.stopped_at is not None else self._decode(self.token_ids)
        return Generation(text.strip(), self.token_ids, self.logprobs, self.finish_reason)

    def _tail(self) -> str:
        """The last few tokens' text: enough to hold the longest stop text."""
        bytes_at_most = 4 * max(map(len, self.stop))  # a token is a byte at least, a character four at most
        return self._decode(self.token_ids[-bytes_at_most - 1 :])

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


def sample_tokens(logits_RV: Tensor, temperature_R: Tensor, uniform_R: Tensor) -> tuple[Tensor, Tensor]:
    """(token_R, logprob_R): inverse-CDF samples, and their log-probabilities before temperature.

    One given uniform number a row makes a row's token independent of its batch.
    """
    log_p_RV = logits_RV.float().log_softmax(-1)
    cdf_RV = (log_p_RV / temperature_R[:, None]).softmax(-1).double().cumsum(-1)
    target_R1 = (uniform_R * cdf_RV[:, -1])[:, None]
    token_R = torch.searchsorted(cdf_RV, target_R1, right=True).squeeze(1).clamp(max=logits_RV.shape[1] - 1)
    return token_R, log_p_RV.gather(1, token_R[:, None]).squeeze(1)


def batches_by_length(lengths: Sequence[int], batch_tokens: int, fan_out: int = 1, room: int = 0) -> Iterator[list[int]]:
    """Indices in batches of similar length, each of at most ``batch_tokens`` = rows x fan_out x (longest + room)."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) + 1) * fan_out * (lengths[i] + room) > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def model_dtype(name: str, device: torch.device) -> torch.dtype:
    """``auto``: float32 on a CPU, bfloat16 on a GPU that has it, else float16."""
    if name != "auto":
        return getattr(torch, name)  # type: ignore[no-any-return]
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def check_is_model(config: ModelConfig) -> PretrainedConfig:
    """The model's own configuration; a UserError unless ``config.path`` names a causal language model. Loads no weights."""
    path = bundled_path(config.path)
    try:
        found = AutoConfig.from_pretrained(path, revision=config.revision, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError, HFValidationError, json.JSONDecodeError) as error:
        raise UserError(
            f"{config.path}: no model there ({str(error).splitlines()[0]}); "
            "give a directory with config.json and weights, or a hub name"
        ) from None
    if type(found) not in AutoModelForCausalLM._model_mapping and not config.trust_remote_code:
        raise UserError(f"{config.path}: a {found.model_type} model is no causal language model; give one that generates text")
    if Path(path).is_dir() and not list(Path(path).glob("*.safetensors")):
        raise UserError(f"{config.path}: config.json is there, but no weights (*.safetensors); give a complete model directory")
    text_config: PretrainedConfig = found.get_text_config()
    return text_config


@cache
def model_identity(config: ModelConfig) -> dict[str, Any]:
    """What decides a base model's outputs: its files' digests (local), or its commit (hub); and the dtype asked for.

    Remembered for the life of the process: the weights are read once.
    """
    path = Path(bundled_path(config.path))
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in (".json", ".safetensors", ".model", ".jinja", ".txt"))
        return {"files": {p.name: file_digest(p) for p in files}, "dtype": config.dtype}
    commit = AutoConfig.from_pretrained(
        config.path, revision=config.revision, trust_remote_code=config.trust_remote_code
    )._commit_hash
    return {"hub": config.path, "commit": commit, "dtype": config.dtype}
