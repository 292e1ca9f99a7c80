"""The production engine: ``LanguageModel``'s interface on vLLM (paged attention, continuous batching, prefix cache).

vLLM is imported here only, and only when an engine is made. Token ids go in and out, so that both engines see the same prompts.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ka2l_ray.actors.last_words import LastWords
from ka2l_ray.config import EngineConfig, ModelConfig
from ka2l_ray.errors import UserError
from ka2l_ray.models.adapters import check_adapter, check_adapter_for_vllm
from ka2l_ray.models.model_files import (
    block_linears,
    check_is_model,
    check_values,
    end_token_ids,
    final_norm,
    generation_config,
    load_tokenizer,
    model_dtype,
)
from ka2l_ray.models.sampling import Answer, Generation
from ka2l_ray.models.thinking import NO_THINKING, Thinking, split_answer
from ka2l_ray.schema import Position
from ka2l_ray.world import bundled_path

SEED_BITS = 2**63 - 1
VLLM_MOST_SAMPLES = int(os.environ.get("VLLM_MAX_N_SEQUENCES", 16384))
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # those vLLM has kernels for


class EngineLost(RuntimeError):
    """The engine's process is gone or its device is in an error state: only a new engine helps."""


class EngineCrashed(EngineLost):
    """The engine ended with an exception of its own, which is the message: a new engine may well end with the same."""


def require_vllm() -> None:
    """Raise a UserError that names the extra where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "engine.name is vllm, which is not installed; pip install 'ka2l_ray[vllm]' (GPU), or set engine.name=transformers"
        )


def check_vllm_reads(position: Position) -> None:
    """Raise a UserError where the states of other tokens than the last are wanted."""
    if position in ("mean", "attention"):
        raise UserError(
            f"position {position}: vLLM (engine.hidden_states) hands on the state of a prompt's last token alone; "
            "set engine.hidden_states=transformers"
        )


class VLLMEngine:
    """A model in vLLM. With ``layers`` it gives hidden states, without it text: vLLM keeps states in the KV cache, where they
    would take room from generation.

    Args:
        lora_rank: of the largest adapter to come; 0 for none.
        layers: layers whose states are wanted, as in transformers' ``hidden_states``.
    """

    def __init__(
        self, config: ModelConfig, engine: EngineConfig, *, lora_rank: int = 0, layers: Sequence[int] | None = None
    ) -> None:
        require_vllm()
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
        from vllm import LLM

        self.base, self.config = config, check_is_model(config)
        path = bundled_path(config.path)
        source = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
        self.tokenizer = load_tokenizer(config)
        on_gpu = torch.cuda.is_available()
        self.dtype = model_dtype(config.dtype, torch.device("cuda" if on_gpu else "cpu"))
        self.end_ids = end_token_ids(generation_config(config), self.tokenizer)
        arguments: dict[str, Any] = {
            "model": path,
            **source,
            "dtype": str(self.dtype).removeprefix("torch."),
            "tensor_parallel_size": engine.tensor_parallel,
            "pipeline_parallel_size": engine.pipeline_parallel,
            "max_model_len": engine.max_model_len,
            "enforce_eager": not on_gpu,
            "enable_prefix_caching": True,
        }
        if not on_gpu:  # a generator of a CPU cannot be set back, as vLLM does where a seeded request's prefill is cut
            arguments["enable_chunked_prefill"] = False
        if engine.tensor_parallel * engine.pipeline_parallel > 1:
            arguments["distributed_executor_backend"] = "ray" if on_gpu else "mp"
        if lora_rank:
            rank = next((rank for rank in LORA_RANKS if rank >= lora_rank), lora_rank)
            # Not the output embeddings: with LoRA on them, vLLM fails on prompt log-probabilities.
            arguments |= {
                "enable_lora": True,
                "max_loras": 1,
                "max_lora_rank": rank,
                "lora_target_modules": block_linears(config),
            }
        self.layers = sorted(layers) if layers is not None else None  # the order in which vLLM gives them
        self.folder: str | None = None
        if self.layers is not None:
            self.folder = tempfile.mkdtemp(prefix="ka2l-states-")
            arguments |= _hidden_state_arguments(self.layers, self.folder)
            self.norm = final_norm(config, self.dtype) if self.n_layers in self.layers else None
        check_values(config)
        self.words = LastWords()
        try:
            with self.words.heard():
                self.llm = LLM(**{**arguments, **engine.vllm})
        except Exception as error:
            cause = self.words.exception()
            if cause is None or cause in str(error):
                raise
            raise RuntimeError(f"{cause} ({' '.join(str(error).split())[:200]})") from error
        threading.Thread(target=_wake_when_dead, args=(self.llm.llm_engine.engine_core,), daemon=True).start()
        self.adapter: Any = None
        self.adapters: dict[str, int] = {}
        self.prompt_tokens = self.cached_tokens = 0

    @property
    def n_layers(self) -> int:
        return int(self.config.num_hidden_layers)

    @property
    def hidden_size(self) -> int:
        return int(self.config.hidden_size)

    @property
    def max_length(self) -> int:
        """Tokens of prompt and answer that the engine takes."""
        return int(self.llm.llm_engine.model_config.max_model_len)

    def use_adapter(self, path: str | None, key: str | None) -> None:
        """Answer with the adapter at ``path``, known by ``key``, or with none; each has an id of its own in the prefix cache."""
        if path is None or key is None:
            self.adapter = None
            return
        from vllm.lora.request import LoRARequest

        if key not in self.adapters:  # vLLM passes over what it does not know, and over what is missing
            check_adapter_for_vllm(self.base, path)
            check_adapter(self.base, path)
        number = self.adapters.setdefault(key, len(self.adapters) + 1)
        self.adapter = LoRARequest(key, number, path)

    def generate(
        self,
        prompts_ids: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        temperatures: Sequence[float],
        *,
        max_tokens: int,
        stop: Sequence[str] = (),
        top_ps: Sequence[float] | None = None,
        top_ks: Sequence[int] | None = None,
        thinking: Thinking = NO_THINKING,
        batch_tokens: int = 0,
    ) -> list[list[Generation]]:
        """As ``LanguageModel.generate``; samples drawn in one way with consecutive seeds are one request, so a prompt is
        prefilled once for all of them.

        Seeded as asked, but the numbers are not those that the transformers engine draws. ``batch_tokens`` is vLLM's own affair.
        """
        n = len(temperatures)
        how = list(zip(temperatures, top_ps or [1.0] * n, top_ks or [0] * n, strict=True))
        asked = [(i, group) for i in range(len(prompts_ids)) for group in _requests(how, seeds[i])]
        until = () if thinking.strip else stop  # vLLM would stop inside a think block; the answer is cut when it is there
        requests = [
            (prompts_ids[i], self._sampling(how[group[0]], seeds[i][group[0]], max_tokens, len(group), until))
            for i, group in asked
        ]
        answers: dict[tuple[int, int], Generation] = {}
        empty: list[tuple[int, int, Any]] = []
        for (i, group), output in zip(asked, self._run(requests), strict=True):
            for j, completion in zip(group, output.outputs, strict=True):
                answers[i, j] = self._cut(completion, stop, thinking) if thinking.strip else self._generation(completion)
                if completion.stop_reason in until and not completion.text.strip():
                    seed = seeds[i][group[0]] + j - group[0]
                    empty.append((i, j, self._sampling(how[j], seed, max_tokens, 1, ())))
        # A stop text counts after the answer's first word only; where vLLM stopped before, the same seed goes on past it.
        for (i, j, _), output in zip(empty, self._run([(prompts_ids[i], params) for i, _, params in empty]), strict=True):
            answers[i, j] = self._cut(output.outputs[0], stop, thinking)
        return [[answers[i, j] for j in range(n)] for i in range(len(prompts_ids))]

    def log_likelihood(
        self, prompts_ids: Sequence[Sequence[int]], continuations_ids: Sequence[Sequence[int]], *, batch_tokens: int = 0
    ) -> list[list[float]]:
        """Log-probability in nats of each token of each continuation, given the prompt and the tokens before it."""
        from vllm import SamplingParams

        how = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0, detokenize=False)
        whole = [[*p, *c] for p, c in zip(prompts_ids, continuations_ids, strict=True)]
        found = []
        for ids, continuation, output in zip(whole, continuations_ids, self._run([(p, how) for p in whole]), strict=True):
            begin = len(ids) - len(continuation)
            found.append([output.prompt_logprobs[at][ids[at]].logprob for at in range(begin, len(ids))])
        return found

    def last_token_states(
        self,
        prompts_ids: Sequence[Sequence[int]],
        layers: Sequence[int],
        *,
        position: Position = "last_prompt_token",
        batch_tokens: int = 0,
    ) -> Iterator[tuple[list[int], dict[int, Tensor]]]:
        """As ``LanguageModel.last_token_states``: the last layer is given after the final norm, which vLLM leaves out.

        Raises:
            UserError: other states than the last token's are asked for.
        """
        check_vllm_reads(position)
        from vllm import SamplingParams
        from vllm.distributed.kv_transfer.kv_connector.v1 import example_hidden_states_connector as stock

        if self.layers is None or not set(layers) <= set(self.layers):
            raise ValueError(f"this engine was made for layers {self.layers}, not {list(layers)}")
        how = SamplingParams(max_tokens=1, temperature=0, detokenize=False)
        rows_LD = []
        for output in self._run([(ids, how) for ids in prompts_ids]):
            file = output.kv_transfer_params["hidden_states_path"]
            rows_LD.append(stock.load_hidden_states(file)["hidden_states"])
            stock.cleanup_hidden_states(file)
        state_NLD = torch.stack(rows_LD)
        states = {layer: state_NLD[:, self.layers.index(layer)] for layer in layers}
        if self.norm is not None and self.n_layers in states:
            with torch.inference_mode():
                states[self.n_layers] = self.norm(states[self.n_layers])
        yield list(range(len(rows_LD))), states

    def next_token_entropy(self, state_BD: Tensor) -> Tensor:
        raise UserError("the entropy baseline is computed by the transformers engine")

    def close(self) -> None:
        """End the engine's processes."""
        self.llm.llm_engine.engine_core.shutdown()
        self.words.close()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, requests: Sequence[tuple[Sequence[int], Any]]) -> list[Any]:
        from vllm.v1.engine.exceptions import EngineDeadError

        if not requests:
            return []
        prompts: list[Any] = [{"prompt_token_ids": list(ids)} for ids, _ in requests]
        self.words.forget()
        try:
            outputs = self.llm.generate(prompts, [how for _, how in requests], use_tqdm=False, lora_request=self.adapter)
        except EngineDeadError as error:
            cause = self.words.exception()
            if cause is not None:
                raise EngineCrashed(f"vLLM's engine process died of {cause}") from error
            raise EngineLost("vLLM's engine process died and said nothing, as one that is killed does") from error
        self.prompt_tokens += sum(len(output.prompt_token_ids) for output in outputs)
        self.cached_tokens += sum(output.num_cached_tokens or 0 for output in outputs)
        return list(outputs)

    def _sampling(self, how: tuple[float, float, int], seed: int, max_tokens: int, n: int, stop: Sequence[str]) -> Any:
        from vllm import SamplingParams

        temperature, top_p, top_k = how
        return SamplingParams(
            n=n,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed & SEED_BITS,
            max_tokens=max_tokens,
            stop=list(stop),
            stop_token_ids=sorted(self.end_ids),
            logprobs=0,
        )

    def _generation(self, completion: Any) -> Generation:
        ids = list(completion.token_ids)
        logprobs = [at[token].logprob for at, token in zip(completion.logprobs, ids, strict=True)]
        said, thought = split_answer(ids, self.tokenizer)
        text = completion.text if thought == "none" else said
        return Generation(text.strip(), ids, logprobs, completion.finish_reason, thought)

    def _cut(self, completion: Any, stop: Sequence[str], thinking: Thinking) -> Generation:
        """An answer generated without stop texts, ended where ``LanguageModel`` would have ended it."""
        answer = Answer(stop, self.tokenizer, self.end_ids, thinking)
        generation = self._generation(completion)
        for token, logprob in zip(generation.token_ids, generation.token_logprobs, strict=True):
            if not answer.extend(token, logprob):
                break
        return answer.finish()


def _requests(how: Sequence[tuple[float, float, int]], seeds: Sequence[int]) -> list[list[int]]:
    """Samples in groups that one request can draw: vLLM gives a request's sample j its seed + j."""
    groups: list[list[int]] = []
    for j, (drawn, seed) in enumerate(zip(how, seeds, strict=True)):
        if groups and how[groups[-1][0]] == drawn and seeds[groups[-1][-1]] + 1 == seed:
            groups[-1].append(j)
        else:
            groups.append([j])
    return groups


def _wake_when_dead(client: Any) -> None:
    """Let whoever waits for the engine's process know that it is gone; vLLM's synchronous client would wait for ever."""
    from vllm.v1.engine.exceptions import EngineDeadError

    client.output_queue_thread.join()
    client.outputs_queue.put_nowait(EngineDeadError())


def _hidden_state_arguments(layers: list[int], folder: str) -> dict[str, Any]:
    return {
        "speculative_config": {
            "method": "extract_hidden_states",
            "num_speculative_tokens": 1,
            "draft_model_config": {"hf_config": {"eagle_aux_hidden_state_layer_ids": layers}},
        },
        "kv_transfer_config": {
            "kv_connector": "LastTokenConnector",
            "kv_connector_module_path": "ka2l_ray.actors.last_token_connector",
            "kv_role": "kv_producer",
            "kv_connector_extra_config": {"shared_storage_path": folder},
        },
    }
