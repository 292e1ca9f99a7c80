"""Actors that hold the language model, and the pool that shares shards of questions out among them.

An actor writes what it computes; the driver sees only counts. Ray restarts an actor that dies and runs its shard again; as a
shard is a fixed list of questions with seeds of their own, the second attempt writes the same rows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import torch
from ray.util import ActorPool

from ka2l_ray import schema
from ka2l_ray.config import EngineConfig, ModelConfig, PromptConfig, SamplingConfig
from ka2l_ray.errors import UserError
from ka2l_ray.language_model import Generation, LanguageModel, model_identity
from ka2l_ray.prompts import Prompter
from ka2l_ray.seeds import derive_seed
from ka2l_ray.storage import Storage

logger = logging.getLogger(__name__)

MAX_RESTARTS = 3


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
        """For content keys: digests, not paths."""
        return {"base": model_identity(self.base), "adapter": self.adapter_key, "prompt": self.prompt.model_dump(mode="json")}


@ray.remote
class LanguageModelActor:
    """One replica of the language model."""

    def __init__(self, model: Model, threads: int) -> None:
        torch.set_num_threads(threads)
        self.language_model = LanguageModel(model.base, adapter=model.adapter)
        self.prompter = Prompter(self.language_model.tokenizer, model.prompt)

    def sample(
        self, out: str, name: str, questions: pa.Table, sampling: SamplingConfig, batch_tokens: int, seed: tuple[int, ...]
    ) -> dict[str, int]:
        """Samples a shard and writes it as ``name``; rows of ``schema.SAMPLES``."""
        question_ids = questions["question_id"].to_pylist()
        prompts = [self.prompter.prompt(question) for question in questions["question"].to_pylist()]
        encoded = [self.prompter.encode(prompt) for prompt in prompts]
        answers = self.language_model.generate(
            encoded,
            [[derive_seed(*seed, question_id, j) for j in range(sampling.k + 1)] for question_id in question_ids],
            [sampling.temperature] * sampling.k + [sampling.greedy_temperature],
            max_tokens=sampling.max_tokens,
            stop=sampling.stop,
            batch_tokens=batch_tokens,
        )
        columns = {"question_id": question_ids, "question": questions["question"].to_pylist(), "prompt": prompts}
        table = pa.table({**columns, **_answer_columns(answers)}, schema=schema.SAMPLES)
        Storage(out).write_table(name, table)
        generated = sum(len(a.token_ids) for row in answers for a in row)
        return {"rows": len(table), "prompt_tokens": sum(map(len, encoded)), "generated_tokens": generated}

    def answer(
        self, out: str, name: str, questions: pa.Table, sampling: SamplingConfig, batch_tokens: int, seed: tuple[int, ...]
    ) -> dict[str, int]:
        """One greedy-like answer a question, written as ``name``: question_id, prediction."""
        question_ids = questions["question_id"].to_pylist()
        encoded = [self.prompter.encode(self.prompter.prompt(question)) for question in questions["question"].to_pylist()]
        answers = self.language_model.generate(
            encoded,
            [[derive_seed(*seed, question_id)] for question_id in question_ids],
            [sampling.greedy_temperature],
            max_tokens=sampling.max_tokens,
            stop=sampling.stop,
            batch_tokens=batch_tokens,
        )
        table = pa.table({"question_id": question_ids, "prediction": [row[0].text for row in answers]})
        Storage(out).write_table(name, table)
        generated = sum(len(row[0].token_ids) for row in answers)
        return {"rows": len(table), "prompt_tokens": sum(map(len, encoded)), "generated_tokens": generated}

    def hidden_states(
        self, out: str, name: str, questions: pa.Table, layers: list[int] | None, batch_tokens: int
    ) -> dict[str, int]:
        """Last-prompt-token states of a shard at ``layers`` (None: all), written as ``name``; ``schema.hidden_states``."""
        language_model = self.language_model
        wanted = list(range(language_model.n_layers + 1)) if layers is None else layers
        language_model.check_layers(wanted)
        encoded = [self.prompter.encode(self.prompter.prompt(question)) for question in questions["question"].to_pylist()]
        stored = torch.float32 if language_model.dtype == torch.float32 else torch.float16  # Parquet has no bfloat16
        gathered = {layer: torch.empty(len(encoded), language_model.hidden_size, dtype=stored) for layer in wanted}
        for rows, states in language_model.last_token_states(encoded, wanted, batch_tokens=batch_tokens):
            for layer in wanted:
                gathered[layer][rows] = states[layer].to("cpu", stored)
        kind = pa.float32() if stored == torch.float32 else pa.float16()
        table_schema = schema.hidden_states(
            language_model.hidden_size, wanted, kind, str(language_model.dtype).removeprefix("torch.")
        )
        columns = [
            pa.FixedSizeListArray.from_arrays(gathered[layer].numpy().ravel(), language_model.hidden_size) for layer in wanted
        ]
        table = pa.Table.from_arrays([questions["question_id"], questions["question"], *columns], schema=table_schema)
        Storage(out).write_table(name, table)
        return {"rows": len(table), "prompt_tokens": sum(map(len, encoded))}


def _answer_columns(answers: Sequence[Sequence[Generation]]) -> dict[str, list[Any]]:
    """Columns of the k samples; the last of each row is the greedy-like answer."""
    return {
        "generations": [[a.text for a in row[:-1]] for row in answers],
        "token_ids": [[a.token_ids for a in row[:-1]] for row in answers],
        "token_logprobs": [[a.token_logprobs for a in row[:-1]] for row in answers],
        "finish_reasons": [[a.finish_reason for a in row[:-1]] for row in answers],
        "greedy": [row[-1].text for row in answers],
        "greedy_logprob": [sum(row[-1].token_logprobs) for row in answers],
    }


class Engines:
    """The actors of one model at a time; they stay while stages ask for the same model."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.model: Model | None = None
        self.actors: list[Any] = []

    def run_shards(
        self,
        model: Model,
        method: str,
        work: Storage,
        questions: pa.Table,
        arguments: tuple[Any, ...],
        on_shard: Callable[[int, int], None],
    ) -> dict[str, int]:
        """Run an actor method over all shards of ``questions`` that are not yet written, and add up its counts.

        Args:
            method: of ``LanguageModelActor``; called as method(out, name, shard, *arguments).
            work: where the shards are written, as ``part-00000.parquet`` and so on.
            on_shard: told (questions done, questions in all) after each shard.
        """
        size = self.config.shard_size
        shards = [(f"part-{i // size:05d}.parquet", questions.slice(i, size)) for i in range(0, len(questions), size)]
        written = set(work.parquet_files())
        missing = [shard for shard in shards if shard[0] not in written]
        done = sum(len(rows) for name, rows in shards if name in written)
        on_shard(done, len(questions))
        totals: dict[str, int] = {"resumed_rows": done}
        if missing:
            pool = ActorPool(self._actors_of(model))
            submit: Any = lambda actor, shard: getattr(actor, method).remote(work.url(), *shard, *arguments)  # noqa: E731
            for counts in pool.map_unordered(submit, missing):
                done += counts["rows"]
                for name, value in counts.items():
                    totals[name] = totals.get(name, 0) + value
                on_shard(done, len(questions))
        totals["rows"] = len(questions)
        lost = sorted({name for name, _ in shards} - set(work.parquet_files()))
        if lost:
            raise UserError(
                f"{work.url()}: {lost[0]} was written but is not here; the output must lie on storage that all nodes share"
            )
        return totals

    def _actors_of(self, model: Model) -> list[Any]:
        if self.model != model:
            self.release()
            actor: Any = LanguageModelActor
            options = actor.options(
                num_cpus=self.config.cpus,
                num_gpus=self.config.gpus,
                max_restarts=MAX_RESTARTS,
                max_task_retries=MAX_RESTARTS,
            )
            self.actors = [options.remote(model, max(1, int(self.config.cpus))) for _ in range(self.config.replicas)]
            self.model = model
        return self.actors

    def release(self) -> None:
        """End the actors and free what they hold."""
        for actor in self.actors:
            ray.kill(actor)
        self.actors, self.model = [], None

    def make_room(self, cpus: float, gpus: float) -> None:
        """End the actors if a stage that wants ``cpus`` and ``gpus`` could not start, or not read, beside them."""
        free = ray.available_resources()
        if self.actors and (free.get("CPU", 0) < cpus + 1 or free.get("GPU", 0) < gpus):
            self.release()
