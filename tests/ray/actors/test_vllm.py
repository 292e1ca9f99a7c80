"""The vLLM engine (its CPU build) in Ray actors, held against transformers and PEFT on a tiny Llama made here."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from ka2l_ray.actors.engines import Engines
from ka2l_ray.actors.feeding import EnginesDieError
from ka2l_ray.actors.language_model import Model
from ka2l_ray.actors.vllm_engine import VLLMEngine
from ka2l_ray.config import EngineConfig, ModelConfig, PromptConfig, SamplingConfig
from ka2l_ray.jobs.commands.inputs import Inputs
from ka2l_ray.models.language_model import LanguageModel
from ka2l_ray.models.thinking import Thinking
from ka2l_ray.store.storage import Storage
from ka2l_ray.world import bundled_path
from ka2l_ray.world.facts import World
from tests.ray.sampling import sampled

pytest.importorskip("vllm", reason="vLLM's CPU build is not installed (make test installs it)")

pytestmark = pytest.mark.timeout(1200)

LAYERS = [0, 1, 2, 3]
ENGINE = EngineConfig(name="vllm", max_model_len=128, shard_size=16)
SAMPLING = SamplingConfig(k=4, max_tokens=6)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Directories of a three-block Llama with random weights and of two LoRA adapters on it."""
    folder = tmp_path_factory.mktemp("vllm")
    tokenizer = AutoTokenizer.from_pretrained(bundled_path("bundled:student"))
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        initializer_range=0.2,
        vocab_size=len(tokenizer),
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for name in ("first", "second"):
        base = AutoModelForCausalLM.from_pretrained(folder / "model")
        adapted = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
        for parameter, value in adapted.named_parameters():
            if "lora_B" in parameter:
                torch.nn.init.normal_(value, std=0.2)
        adapted.save_pretrained(folder / name)
    return {name: str(folder / name) for name in ("model", "first", "second")}


@ray.remote(num_cpus=1)
class Holder:
    """An actor that holds a vLLM engine."""

    def __init__(self, model: str, layers: list[int] | None) -> None:
        self.engine = VLLMEngine(ModelConfig(path=model), ENGINE, lora_rank=4, layers=layers)

    def call(self, method: str, adapter: str | None, *arguments: Any, **named: Any) -> Any:
        self.engine.use_adapter(adapter, adapter)
        return getattr(self.engine, method)(*arguments, **named)

    def states(self, adapter: str | None, prompts: list[list[int]]) -> dict[int, torch.Tensor]:
        self.engine.use_adapter(adapter, adapter)
        ((rows, states),) = self.engine.last_token_states(prompts, LAYERS)
        assert rows == list(range(len(prompts)))
        return states

    def counters(self) -> tuple[int, int]:
        return self.engine.prompt_tokens, self.engine.cached_tokens

    def close(self) -> None:
        self.engine.close()


@pytest.fixture(scope="module")
def prompts(tiny: dict[str, str]) -> list[list[int]]:
    """Nine prompts of 5 to 60 tokens, in no order of length."""
    tokenizer = AutoTokenizer.from_pretrained(tiny["model"])
    world = World()
    texts = [f"<s>{fact.question(0)}\n" for fact in world.facts[:8]]
    texts.insert(3, "<s>" + " ".join(fact.question(1) for fact in world.facts[10:16]) + "\n")
    return [tokenizer.encode(text, add_special_tokens=False) for text in texts]


@pytest.fixture(scope="module")
def generating(tiny: dict[str, str]) -> Iterator[Any]:
    yield from held(tiny["model"], None)


@pytest.fixture(scope="module")
def reading(tiny: dict[str, str]) -> Iterator[Any]:
    yield from held(tiny["model"], LAYERS)


def held(model: str, layers: list[int] | None) -> Iterator[Any]:
    actor = Holder.remote(model, layers)  # type: ignore[attr-defined]
    yield actor
    ray.get(actor.close.remote())
    ray.kill(actor)


def reference(tiny: dict[str, str], adapter: str | None) -> LanguageModel:
    return LanguageModel(ModelConfig(path=tiny["model"]), adapter=adapter, device="cpu")


def test_greedy_tokens_are_those_of_transformers_and_peft_whatever_adapter_came_before(
    tiny: dict[str, str], generating: Any, prompts: list[list[int]]
) -> None:
    answers = {}
    for name in ("model", "first", "second", "first", "model"):
        adapter = None if name == "model" else tiny[name]
        found = ray.get(generating.call.remote("generate", adapter, prompts, [[7]] * len(prompts), [0.0], max_tokens=12))
        model = reference(tiny, adapter)
        for prompt, (generation,) in zip(prompts, found, strict=True):
            wanted = model.model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :].tolist()
            assert generation.token_ids == wanted
        answers[name] = [row[0].token_ids for row in found]
    assert answers["model"] != answers["first"] != answers["second"]


def test_ten_samples_are_one_request_seeded_and_with_the_models_own_log_probabilities(
    tiny: dict[str, str], generating: Any, prompts: list[list[int]]
) -> None:
    seeds = [[1000 * i + j for j in range(11)] for i in range(len(prompts))]
    temperatures = [1.0] * 10 + [0.1]
    asked: dict[str, Any] = {"prompts_ids": prompts, "temperatures": temperatures, "max_tokens": 8, "stop": ["\n"]}
    before = ray.get(generating.counters.remote())
    once = ray.get(generating.call.remote("generate", tiny["first"], seeds=seeds, **asked))
    after = ray.get(generating.counters.remote())
    assert after[0] - before[0] == 2 * sum(map(len, prompts)), "one request for the ten, one for the greedy-like"
    again = ray.get(generating.call.remote("generate", tiny["first"], seeds=seeds, **asked))
    assert once == again
    thoughtful = ray.get(generating.call.remote("generate", tiny["first"], seeds=seeds, **asked, thinking=Thinking(strip=True)))
    assert [[(g.token_ids, g.finish_reason) for g in row] for row in thoughtful] == [
        [(g.token_ids, g.finish_reason) for g in row] for row in once
    ], "where there is no think block, stop texts count as ever"
    other = ray.get(generating.call.remote("generate", tiny["first"], seeds=[[s + 500 for s in row] for row in seeds], **asked))
    assert [[g.token_ids for g in row] for row in other] != [[g.token_ids for g in row] for row in once]
    assert all(len({tuple(g.token_ids) for g in row[:10]}) > 1 for row in once)
    model = reference(tiny, tiny["first"])
    for prompt, row in zip(prompts, once, strict=True):
        wanted = model.log_likelihood([prompt] * 11, [g.token_ids for g in row])
        for generation, logprobs in zip(row, wanted, strict=True):
            assert generation.token_logprobs == pytest.approx(logprobs, abs=1e-3)
    flat = [g for row in once for g in row]
    scored = ray.get(generating.call.remote("log_likelihood", tiny["first"], prompts, [row[0].token_ids for row in once]))
    assert [len(row) for row in scored] == [len(row[0].token_ids) for row in once]
    for logprobs, row in zip(scored, once, strict=True):
        assert logprobs == pytest.approx(row[0].token_logprobs, abs=1e-3)
    assert {g.finish_reason for g in flat} <= {"stop", "length"}


def test_top_k_and_top_p_are_vllms_and_of_each_sample(tiny: dict[str, str], generating: Any, prompts: list[list[int]]) -> None:
    n = len(prompts)
    (greedy, drawn) = (
        ray.get(generating.call.remote("generate", None, prompts, seeds, temperatures, max_tokens=6, **filters))
        for seeds, temperatures, filters in (
            ([[7]] * n, [0.0], {}),
            ([[1, 2, 3]] * n, [1.0] * 3, {"top_ks": [1, 0, 0], "top_ps": [1.0, 1e-6, 1.0]}),
        )
    )
    assert [[row[0].token_ids] * 2 for row in greedy] == [[g.token_ids for g in row[:2]] for row in drawn]
    assert [row[2].token_ids for row in drawn] != [row[0].token_ids for row in greedy]


def test_seeded_prompts_of_more_tokens_than_a_step_takes_are_answered(generating: Any) -> None:
    """Cut by chunked prefill, they would kill an engine on a CPU."""
    prompts = [[20 + i, *range(100, 219)] for i in range(80)]
    found = ray.get(generating.call.remote("generate", None, prompts, [[i, i + 1] for i in range(80)], [1.0] * 2, max_tokens=3))
    assert len(found) == 80
    assert all(len(generation.token_ids) <= 3 for row in found for generation in row)


@pytest.mark.check
def test_what_engines_die_of_is_said_and_ends_the_stage(
    tiny: dict[str, str], world_files: dict[str, str], tmp_path: Path
) -> None:
    asked = Inputs(str(tmp_path / "inputs")).questions(world_files["pool"])
    chunked = {"enable_chunked_prefill": True, "max_num_batched_tokens": 16, "max_num_seqs": 8, "enable_prefix_caching": False}
    engines = Engines(ENGINE.model_copy(update={"shard_size": 80, "vllm": chunked}))
    model = Model(ModelConfig(path=tiny["model"]), PromptConfig(instruction=""))
    try:
        with pytest.raises(EnginesDieError, match=r"on different shards.*RuntimeError: CPU Generator does not use offset"):
            sampled(tmp_path / "samples", asked, SAMPLING, engines, model)
    finally:
        engines.release()


@pytest.mark.parametrize("adapter", [None, "first"])
def test_hidden_states_are_those_of_transformers_at_every_layer(
    adapter: str | None, tiny: dict[str, str], reading: Any, prompts: list[list[int]]
) -> None:
    path = tiny[adapter] if adapter else None
    model = reference(tiny, path)
    wanted = {layer: torch.empty(len(prompts), 64) for layer in LAYERS}
    for rows, states in model.last_token_states(prompts, LAYERS):
        for layer in LAYERS:
            wanted[layer][rows] = states[layer]
    for order in (list(range(len(prompts))), list(reversed(range(len(prompts))))):
        found = ray.get(reading.states.remote(path, [prompts[i] for i in order]))
        for layer in LAYERS:
            torch.testing.assert_close(found[layer], wanted[layer][order], atol=1e-3, rtol=0)


def test_an_engine_process_that_is_killed_under_a_living_actor_is_replaced(
    tiny: dict[str, str], world_files: dict[str, str], tmp_path: Path
) -> None:
    asked = Inputs(str(tmp_path / "inputs")).questions(world_files["pool"])
    killed: list[int] = []

    def kill_engine() -> None:
        deadline, found = time.monotonic() + 600, []
        while time.monotonic() < deadline and not found:
            found = engine_processes()  # which takes longer than a shard: it is there before the first is written
        while time.monotonic() < deadline and not list(tmp_path.glob("disturbed.partial-*/part-*.parquet")):
            time.sleep(0.005)
        for process in found:
            process.kill()
            killed.append(process.pid)

    killer = threading.Thread(target=kill_engine)
    killer.start()
    model = Model(ModelConfig(path=tiny["model"]), PromptConfig(instruction=""))
    engines = Engines(ENGINE)
    try:
        disturbed = sampled(tmp_path / "disturbed", asked, SAMPLING, engines, model)
        killer.join()
        assert killed, "no engine process was killed while it worked"
        alone = sampled(tmp_path / "alone", asked, SAMPLING, engines, model)
    finally:
        engines.release()
    a, b = (Storage(artefact.url).read_table("").sort_by("question_id") for artefact in (alone, disturbed))
    assert len(a) == 160
    assert a.select(["question_id", "generations", "greedy"]).equals(b.select(["question_id", "generations", "greedy"]))
    assert not engine_processes()


def engine_processes() -> list[psutil.Process]:
    """vLLM's engine processes under language-model actors of this test's Ray."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::LanguageModelActor"):
                found += [child for child in process.children(recursive=True) if "EngineCore" in " ".join(child.cmdline())]
    return found
