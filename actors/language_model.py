"""The actor that holds one replica of the language model, and what it does with a shard of questions."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
from numpy.typing import NDArray

from ka2l_ray import schema
from ka2l_ray.actors.placement import replicas_a_node
from ka2l_ray.actors.scorer import NOT_FINITE, Scorer, Wanted
from ka2l_ray.actors.threads import set_threads
from ka2l_ray.actors.vllm_engine import VLLM_MOST_SAMPLES, EngineCrashed, VLLMEngine, require_vllm
from ka2l_ray.config import EngineConfig, ModelConfig, PromptConfig, SamplingConfig
from ka2l_ray.errors import UserError
from ka2l_ray.models.adapters import adapter_rank, check_adapter_for_vllm
from ka2l_ray.models.language_model import SPREAD, LanguageModel
from ka2l_ray.models.model_files import check_is_model, model_identity
from ka2l_ray.models.prompts import Prompter, fixed_case
from ka2l_ray.models.sampling import Generation
from ka2l_ray.schema import Position
from ka2l_ray.seeds import derive_seed
from ka2l_ray.store.storage import Storage
from ka2l_ray.uncertainty.p_true import Answered, case, encode

COUNTS = b"counts"  # in a shard's file metadata: what it cost, so that a stage that went on adds up to the same
MEMORY_OF_VLLM = ("gpu_memory_utilization", "kv_cache_memory_bytes", "swap_space", "cpu_offload_gb")
"""Its arguments that say what fits, and no result; as does engine.max_model_len."""
TOO_LONG_FOR = b"too_long_for"  # beside it, where questions are too long for the engine: the engine.max_model_len in force


@dataclass(frozen=True)
class Done:
    """What a replica says of a shard that it wrote."""

    rows: int
    errors: int = 0
    reason: str = ""
    """Of the first error."""
    loading: float | None = None
    """Seconds that the model's loading took, where this shard was the replica's first."""


@dataclass(frozen=True)
class Model:
    """A base model, its prompt, and the adapter on it, if any: what the answers depend on.

    ``adapter_key`` identifies the adapter: its artefact's content key, or the digest of its weights.
    """

    base: ModelConfig
    prompt: PromptConfig
    adapter: str | None = None
    adapter_key: str | None = None

    def identity(self) -> dict[str, Any]:
        """For content keys: digests, not paths; and a fixed case as the model reads it.

        Raises:
            UserError: the prompt does not fit the model.
        """
        return {
            "base": model_identity(self.base),
            "adapter": self.adapter_key,
            "prompt": self.prompt.model_dump(mode="json"),
            "rendering": fixed_case(self.base, self.prompt),
        }


def engine_identity(engine: EngineConfig, backend: str) -> dict[str, Any]:
    """For content keys: what of the engine may change a number."""
    batching = {"shard_size": engine.shard_size, "batch_tokens": engine.batch_tokens}
    device = "gpu" if engine.gpus_each else "cpu"  # decides the dtype where that is left to us
    if backend == "transformers":
        return {"backend": backend, "device": device, **batching}
    decides = {name: value for name, value in engine.vllm.items() if name not in MEMORY_OF_VLLM}
    return {"backend": backend, "device": device, "vllm": decides}


def check_engine(model: ModelConfig, engine: EngineConfig, k: int) -> None:
    """Raise a UserError for what the engine would refuse, or wait for in vain, once it is started."""
    config = check_is_model(model)
    heads = getattr(config, "num_attention_heads", None) or 0  # a model without attention has none
    if heads % engine.tensor_parallel:
        fitting = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        raise UserError(
            f"engine.tensor_parallel is {engine.tensor_parallel}, which does not divide the {heads} attention heads of "
            f"{model.path}; choose one of {fitting}"
        )
    longest = getattr(config, "max_position_embeddings", None)
    if engine.max_model_len and longest and engine.max_model_len > longest:
        raise UserError(f"engine.max_model_len is {engine.max_model_len}, {model.path} takes {longest} tokens; lower it")
    if engine.name == "vllm":
        require_vllm()
        if k > VLLM_MOST_SAMPLES:
            raise UserError(f"sampling.k is {k}, vLLM takes {VLLM_MOST_SAMPLES} a request; lower it")


@dataclass(frozen=True)
class Role:
    """What an engine is started for. Engines of equal roles serve each other's stages; adapters come and go."""

    base: ModelConfig
    prompt: PromptConfig
    backend: Literal["transformers", "vllm"]
    engine: EngineConfig
    lora_rank: int
    layers: tuple[int, ...] | None = None
    """vLLM keeps the states of these layers; None: it generates."""

    @classmethod
    def of(cls, model: Model, method: str, arguments: tuple[Any, ...], engine: EngineConfig, lora_rank: int) -> Self:
        backend = {"hidden_states": engine.hidden_states, "score": "transformers"}.get(method, engine.name)
        if backend == "transformers":
            return cls(model.base, model.prompt, backend, engine, 0)
        rank = lora_rank
        if model.adapter is not None:
            check_adapter_for_vllm(model.base, model.adapter)
            rank = max(rank, adapter_rank(model.adapter))
        layers = None
        if method == "hidden_states":
            layers = tuple(sorted(arguments[0]))
        return cls(model.base, model.prompt, backend, engine, rank, layers)


@ray.remote
class LanguageModelActor:
    """One replica of the language model. It loads with its first shard: what is wrong comes back as that shard's error."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.engine: LanguageModel | VLLMEngine | None = None
        self.scorer: Scorer | None = None

    def run(
        self,
        method: str,
        out: str,
        file: str,
        questions: pa.Table,
        adapter: str | None,
        adapter_key: str | None,
        arguments: tuple[Any, ...],
    ) -> Done:
        """One of the methods below on a shard, written as ``file``. Questions too long for the engine are written with an error.

        Raises:
            UserError: wrong input.
            EngineLost: this engine can do no more; EngineCrashed where that is known to be an exception of its own.
        """
        begun, new = time.monotonic(), self.engine is None
        try:
            engine = self._loaded()
            loading = time.monotonic() - begun if new else None
            engine.use_adapter(adapter, adapter_key)
            encoded = self._encode(questions)
            too_long = self._too_long(encoded, arguments[0].max_tokens if method in ("sample", "answer") else 0)
            fits = [row for row in range(len(encoded)) if row not in too_long]
            encoded = [encoded[row] for row in fits]
            if fits:
                table, counts = getattr(self, method)(_taken(questions, fits), encoded, *arguments)
            else:
                table, counts = self._failed(method, questions.slice(0, 0), [], arguments), {}
        except torch.AcceleratorError as error:  # a CUDA error stays for the life of the process
            raise EngineCrashed((str(error).splitlines() or [""])[0]) from error
        counts = {"prompt_tokens": sum(map(len, encoded)), **counts}
        if too_long:
            failed = self._failed(method, _taken(questions, list(too_long)), list(too_long.values()), arguments)
            table = pa.concat_tables([table, failed])
            table = table.replace_schema_metadata(
                {**(table.schema.metadata or {}), TOO_LONG_FOR: str(self.role.engine.max_model_len)}
            )
            counts["errors"] = counts.get("errors", 0) + len(failed)
        Storage(out).write_table(file, with_counts(table, counts))
        errors = table.filter(pc.is_valid(table["error"]))
        reason = f"question '{errors['question_id'][0]}': {errors['error'][0]}" if len(errors) else ""
        return Done(len(table), len(errors), reason, loading)

    def give_up(self, method: str, out: str, file: str, questions: pa.Table, reason: str, arguments: tuple[Any, ...]) -> Done:
        """Write questions that cannot be done: nulls and an error, in the method's schema."""
        table = self._failed(method, questions, [reason] * len(questions), arguments)
        Storage(out).write_table(file, with_counts(table, {"errors": len(table)}))
        return Done(len(table), len(table), reason)

    def _failed(self, method: str, questions: pa.Table, reasons: list[str], arguments: tuple[Any, ...]) -> pa.Table:
        """Rows of nulls and an error each, in the method's schema."""
        table_schema = self._schema(method, arguments)
        given = {"question_id": questions["question_id"], "question": questions["question"]}
        given["error"] = pa.array(reasons, pa.string())
        columns = [given.get(field.name, pa.nulls(len(questions), field.type)) for field in table_schema]
        return pa.Table.from_arrays(columns, schema=table_schema)

    def sample(
        self,
        questions: pa.Table,
        encoded: list[list[int]],
        sampling: SamplingConfig,
        seed: tuple[int, ...],
        first: int,
        last: int,
    ) -> tuple[pa.Table, dict[str, int]]:
        """Samples ``first`` to ``last`` - 1 of each question, with the greedy-like answer to the first of them; rows of
        ``schema.SAMPLES``."""
        question_ids = questions["question_id"].to_pylist()
        samples = list(range(first, last))
        temperatures, top_ps = [sampling.temperature] * len(samples), [sampling.top_p] * len(samples)
        top_ks = [sampling.top_k or 0] * len(samples)
        if first == 0:
            samples.append(sampling.k)
            temperatures.append(sampling.greedy_temperature)
            top_ps.append(1.0)
            top_ks.append(0)
        seeds = [self._seeds(seed, question_id, samples) for question_id in question_ids]
        answers = self._generate(encoded, seeds, sampling, temperatures, top_ps, top_ks)
        columns = {
            "question_id": question_ids,
            "question": questions["question"].to_pylist(),
            "prompt": [self.prompter.prompt(question) for question in questions["question"].to_pylist()],
            **_answer_columns([row[: last - first] for row in answers]),
            **_greedy_columns([row[-1] if first == 0 else None for row in answers]),
            "error": [None] * len(question_ids),
        }
        return pa.table(columns, schema=schema.SAMPLES), _answer_counts(answers)

    def answer(
        self, questions: pa.Table, encoded: list[list[int]], sampling: SamplingConfig, seed: tuple[int, ...]
    ) -> tuple[pa.Table, dict[str, int]]:
        """One greedy-like answer a question; rows of ``schema.PREDICTIONS``."""
        question_ids = questions["question_id"].to_pylist()
        seeds = [[derive_seed(*seed, question_id)] for question_id in question_ids]
        answers = self._generate(encoded, seeds, sampling, [sampling.greedy_temperature])
        columns = {
            "question_id": question_ids,
            "question": questions["question"].to_pylist(),
            "prediction": [row[0].text for row in answers],
            "error": [None] * len(question_ids),
        }
        return pa.table(columns, schema=schema.PREDICTIONS), _answer_counts(answers)

    def p_true(self, questions: pa.Table, encoded: list[list[int]], examples: str) -> tuple[pa.Table, dict[str, int]]:
        """P(True) of each greedy-like answer; rows of ``schema.P_TRUE``. ``examples`` are the solved cases before each."""
        prompts, words, asked = [], [], 0
        for row in questions.to_pylist():
            text = case(Answered(row["question"], row["generations"], row["greedy"]))
            prompt, *both = encode(self.prompter, f"{examples}{text}")
            if len(prompt) + max(map(len, both)) > self._engine().max_length:
                raise ValueError(
                    f"question '{row['question_id']}': P(True) takes a prompt of {len(prompt)} tokens, "
                    f"the engine takes {self._engine().max_length}"
                )
            prompts += [prompt] * 2
            words += both
            asked += 2 * len(prompt)
        found = self._engine().log_likelihood(prompts, words, batch_tokens=self.role.engine.batch_tokens)
        true, false = (np.array([sum(tokens) for tokens in found[side::2]]) for side in (0, 1))
        columns = {
            "question_id": questions["question_id"],
            "question": questions["question"],
            "p_true": pa.array(1 / (1 + np.exp(false - true)), pa.float64()),
            "error": pa.nulls(len(questions), pa.string()),
        }
        return pa.table(columns, schema=schema.P_TRUE), {"prompt_tokens": asked}

    def hidden_states(
        self, questions: pa.Table, encoded: list[list[int]], layers: list[int], position: Position
    ) -> tuple[pa.Table, dict[str, int]]:
        """States at ``layers``; rows of ``schema.hidden_states``. ``answer_token`` reads the answers from the samples table."""
        engine = self._engine()
        table_schema = self._schema("hidden_states", (layers, position))
        if position == "answer_token":
            answers = questions["greedy_token_ids"].to_pylist()
            encoded = [[*prompt, *answer[:-1]] for prompt, answer in zip(encoded, answers, strict=True)]
        stored = stored_dtype(engine.dtype)
        gathered: dict[int, list[Any]] = {layer: [None] * len(encoded) for layer in layers}
        how: dict[str, Any] = {"position": position, "batch_tokens": self.role.engine.batch_tokens}
        for rows, states in engine.last_token_states(encoded, layers, **how):
            for layer in layers:
                for row, state in zip(rows, states[layer].to("cpu", stored).numpy(), strict=True):
                    gathered[layer][row] = state[: len(encoded[row])] if position == "attention" else state
        finite = [row for row in range(len(encoded)) if all(np.isfinite(gathered[layer][row]).all() for layer in layers)]
        failed = sorted(set(range(len(encoded))).difference(finite))
        unfit = self._failed("hidden_states", _taken(questions, failed), [NOT_FINITE] * len(failed), (layers, position))
        if not finite:
            return unfit, {"errors": len(failed)}
        columns = [_state_column([gathered[layer][row] for row in finite], engine.hidden_size) for layer in layers]
        whole = _taken(questions, finite)
        arrays = [whole["question_id"], whole["question"], pa.nulls(len(whole), pa.string()), *columns]
        table = pa.Table.from_arrays(arrays, schema=table_schema)
        return pa.concat_tables([table, unfit]), {"errors": len(failed)} if failed else {}

    def score(self, questions: pa.Table, encoded: list[list[int]], wanted: Wanted) -> tuple[pa.Table, dict[str, int]]:
        """Scores by a probe, or by the model alone; rows of ``schema.SCORES``."""
        if self.scorer is None or self.scorer.wanted != wanted:
            engine = self._engine()
            assert isinstance(engine, LanguageModel)
            self.scorer = Scorer(engine, self.prompter, wanted, batch_tokens=self.role.engine.batch_tokens)
        table = self.scorer(questions, encoded)
        errors = len(table) - table["error"].null_count
        return table, {"errors": errors} if errors else {}

    def close(self) -> None:
        """End what the engine started besides this process."""
        if isinstance(self.engine, VLLMEngine):
            self.engine.close()

    def _loaded(self) -> LanguageModel | VLLMEngine:
        """The engine; that it cannot be started is no fault of the questions, and not to be tried shard by shard."""
        try:
            return self._engine()
        except (UserError, torch.AcceleratorError):
            raise
        except Exception as error:
            last = (str(error).strip().splitlines() or [""])[-1][:300]
            name = self.role.base.path
            raise UserError(f"{name}: the {self.role.backend} engine does not start ({type(error).__name__}: {last})") from error

    def _engine(self) -> LanguageModel | VLLMEngine:
        if self.engine is None:
            role = self.role
            if role.backend == "vllm":
                self.engine = VLLMEngine(role.base, role.engine, lora_rank=role.lora_rank, layers=role.layers)
            else:
                self.engine = LanguageModel(role.base, device=SPREAD)
                set_threads(role.engine.cpus, self.engine, replicas_a_node(role.engine))
            self.prompter = Prompter(self.engine.tokenizer, role.prompt)
            if self.prompter.end_of_turn is not None:  # an answer ends where a training row does
                self.engine.end_ids.add(self.prompter.end_of_turn)
        return self.engine

    def _encode(self, questions: pa.Table) -> list[list[int]]:
        """Token ids of the prompts."""
        return [self.prompter.encode(self.prompter.prompt(question)) for question in questions["question"].to_pylist()]

    def _too_long(self, encoded: Sequence[Sequence[int]], answer_tokens: int) -> dict[int, str]:
        """Rows whose prompt and answer are longer than the engine takes, and what to do about each."""
        room = min(self._engine().max_length, self.role.engine.max_model_len or sys.maxsize)
        return {
            row: f"its prompt has {len(ids)} tokens, its answer up to {answer_tokens}, the engine takes {room}; raise "
            "engine.max_model_len where the model allows it, lower sampling.max_tokens, or leave the question out"
            for row, ids in enumerate(encoded)
            if len(ids) + answer_tokens > room
        }

    def _generate(
        self,
        encoded: list[list[int]],
        seeds: list[list[int]],
        sampling: SamplingConfig,
        temperatures: list[float],
        top_ps: list[float] | None = None,
        top_ks: list[int] | None = None,
    ) -> list[list[Generation]]:
        """Answers to the prompts.

        Raises:
            UserError: the model thinks where it should not, or longer than it may.
        """
        answers = self._engine().generate(
            encoded,
            seeds,
            temperatures,
            max_tokens=sampling.max_tokens,
            stop=sampling.stop,
            top_ps=top_ps,
            top_ks=top_ks,
            thinking=self.prompter.thinking,
            batch_tokens=self.role.engine.batch_tokens,
        )
        self.prompter.check_answers(answers, sampling.max_tokens)
        return answers

    def _seeds(self, seed: tuple[int, ...], question_id: str, samples: Sequence[int]) -> list[int]:
        """Of a question's samples. vLLM derives those of one request itself, from its first seed on."""
        if self.role.backend == "vllm":
            first = derive_seed(*seed, question_id, 0)
            return [first + j for j in samples]
        return [derive_seed(*seed, question_id, j) for j in samples]

    def _schema(self, method: str, arguments: tuple[Any, ...]) -> pa.Schema:
        if method == "hidden_states":
            engine = self._engine()
            kind = pa.float32() if stored_dtype(engine.dtype) == torch.float32 else pa.float16()
            dtype = str(engine.dtype).removeprefix("torch.")
            return schema.hidden_states(engine.hidden_size, arguments[0], kind, dtype, arguments[1])
        return {"sample": schema.SAMPLES, "answer": schema.PREDICTIONS, "p_true": schema.P_TRUE, "score": schema.SCORES}[method]


def with_counts(table: pa.Table, counts: dict[str, int]) -> pa.Table:
    return table.replace_schema_metadata({**(table.schema.metadata or {}), COUNTS: json.dumps(counts).encode()})


def stored_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of hidden states in Parquet, which has no bfloat16; float16 would overflow where bfloat16 does not."""
    return torch.float16 if dtype == torch.float16 else torch.float32


def _taken(questions: pa.Table, rows: Sequence[int]) -> pa.Table:
    return questions.take(pa.array(rows, pa.int64()))


def _state_column(states: list[NDArray[np.floating]], dimension: int) -> pa.Array:
    """One state (D,) a question; or those of its tokens (T, D), as a list."""
    flat = pa.FixedSizeListArray.from_arrays(np.concatenate(states, axis=None), dimension)
    if states[0].ndim == 1:
        return flat
    return pa.ListArray.from_arrays(np.cumsum([0, *map(len, states)]).astype(np.int32), flat)


def _answer_columns(answers: Sequence[Sequence[Generation]]) -> dict[str, list[Any]]:
    """Columns of the samples."""
    return {
        "generations": [[a.text for a in row] for row in answers],
        "token_ids": [[a.token_ids for a in row] for row in answers],
        "token_logprobs": [[a.token_logprobs for a in row] for row in answers],
        "finish_reasons": [[a.finish_reason for a in row] for row in answers],
    }


def _answer_counts(answers: Sequence[Sequence[Generation]]) -> dict[str, int]:
    """What the answers cost, and how many of them thought; ``cut_in_thought`` are empty."""
    drawn = [answer for row in answers for answer in row]
    counts = {
        "thoughts": sum(answer.thought != "none" for answer in drawn),
        "cut_in_thought": sum(answer.thought == "open" for answer in drawn),
    }
    return {"generated_tokens": sum(len(answer.token_ids) for answer in drawn), **{k: n for k, n in counts.items() if n}}


def _greedy_columns(answers: Sequence[Generation | None]) -> dict[str, list[Any]]:
    return {
        "greedy": [a and a.text for a in answers],
        "greedy_token_ids": [a and a.token_ids for a in answers],
        "greedy_logprob": [a and sum(a.token_logprobs) for a in answers],
    }
