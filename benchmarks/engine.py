"""The engine against what one would write with transformers alone: ratios within one process, interleaved, medians.

    python benchmarks/engine.py [--questions 64] [--repeats 5]
    python benchmarks/engine.py --shape 8b --device H200 [--questions 2048] [--engine vllm]      # on a GPU

Weights are random, prompts are random tokens of the lengths of real questions (../shared/data/triviaqa.jsonl where it is there,
else drawn); both sides have the same weights, dtype and threads. With ``--shape 8b`` the model has the shape of Llama-3.1-8B, and
what is printed is a share of the least time that the device can take (roofline.py).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from roofline import DEVICES, LLAMA_8B, Device, decode_seconds, prefill_seconds
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from ka2l_ray.actors.vllm_engine import VLLMEngine
from ka2l_ray.config import EngineConfig, ModelConfig
from ka2l_ray.models.language_model import LanguageModel
from ka2l_ray.probes import make_probe, p_unknown
from ka2l_ray.world import bundled_path

SHARED = Path(__file__).resolve().parents[2] / "shared/data/triviaqa.jsonl"
TOKENS_A_WORD = 1.3
K, ANSWER_TOKENS, LAYER = 10, 8, 5


def question_lengths(n: int) -> list[int]:
    """Tokens of ``n`` prompts: of real questions, else drawn around the same mean."""
    if SHARED.is_file():
        with SHARED.open() as lines:
            words = [len(json.loads(line)["question"].split()) for line, _ in zip(lines, range(n), strict=False)]
    else:
        words = np.random.default_rng(0).poisson(13, n).clip(4).tolist()
    return [max(4, round(TOKENS_A_WORD * w)) for w in words]


def make_model(folder: str, vocabulary: int) -> LanguageModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=8,
        num_attention_heads=8,
        vocab_size=vocabulary,
        max_position_embeddings=2048,
        eos_token_id=1,
        bos_token_id=0,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(bundled_path("bundled:student")).save_pretrained(folder)
    model = LanguageModel(ModelConfig(path=folder))
    model.causal_lm.generation_config.eos_token_id = None  # answers of equal length on both sides
    return model


def save_8b(folder: str) -> None:
    """Random bfloat16 weights in the shape of Llama-3.1-8B, with its vocabulary but the student's tokenizer."""
    shape = LLAMA_8B
    config = LlamaConfig(
        hidden_size=shape.width,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocabulary,
        max_position_embeddings=8192,
        eos_token_id=1,
        bos_token_id=0,
        pad_token_id=2,
    )
    with torch.device("cuda"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(bundled_path("bundled:student")).save_pretrained(folder)


def shares_of_roofline(questions: int, device: Device, backend: str) -> None:
    """Print sampling, all-layer states and half-depth scoring at the 8B shape as rates and shares of the device's roofline."""
    generator, tokens = np.random.default_rng(0), 32
    prompts = [generator.integers(3, 1000, n).tolist() for n in question_lengths(questions)]
    lengths = list(map(len, prompts))
    seeds = [[100 * i + j for j in range(K)] for i in range(len(prompts))]
    with tempfile.TemporaryDirectory() as folder:
        save_8b(folder)
        torch.cuda.empty_cache()
        if backend == "vllm":
            engine: Any = VLLMEngine(ModelConfig(path=folder), EngineConfig(name="vllm", gpus=1, max_model_len=1024))
        else:
            engine = LanguageModel(ModelConfig(path=folder))
        engine.generate(prompts[:64], seeds[:64], [1.0] * K, max_tokens=tokens, batch_tokens=2**18)
        start = time.perf_counter()
        answers = engine.generate(prompts, seeds, [1.0] * K, max_tokens=tokens, batch_tokens=2**18)
        seconds = time.perf_counter() - start
        drawn = sum(len(answer.token_ids) for row in answers for answer in row)
        rows = min(K * questions, 4096)
        mean = float(np.mean(lengths)) + drawn / (2 * K * questions)
        least = prefill_seconds(LLAMA_8B, lengths, device, heads=questions)
        least += decode_seconds(LLAMA_8B, rows, mean, 1, device) * drawn / rows
        print(f"| sampling, {backend} | {drawn / seconds:.0f} tokens/s | {100 * least / seconds:.0f} % |", flush=True)
        if backend == "vllm":
            engine.close()
            return
        for name, layers in (("states of all layers", list(range(33))), ("scoring the pool, layer 16", [16])):
            for _ in range(2):
                torch.cuda.synchronize()
                start = time.perf_counter()
                for _, states in engine.last_token_states(prompts, layers, batch_tokens=2**15):
                    torch.stack([states[layer] for layer in layers]).to("cpu", torch.float16)
                seconds = time.perf_counter() - start
            least = prefill_seconds(LLAMA_8B, lengths, device, layers=max(layers))
            print(f"| {name} | {questions / seconds:.0f} questions/s | {100 * least / seconds:.0f} % |", flush=True)


def left_padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([[2] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


@torch.inference_mode()
def one_call_a_sample(model: LanguageModel, prompts: list[list[int]]) -> None:
    for prompt in prompts:
        for _ in range(K):
            model.model.generate(torch.tensor([prompt]), do_sample=True, max_new_tokens=ANSWER_TOKENS, pad_token_id=2)


@torch.inference_mode()
def return_sequences_then_states(model: LanguageModel, prompts: list[list[int]]) -> None:
    for start in range(0, len(prompts), 16):
        ids, mask = left_padded(prompts[start : start + 16])
        model.model.generate(
            ids, attention_mask=mask, do_sample=True, max_new_tokens=ANSWER_TOKENS, num_return_sequences=K, pad_token_id=2
        )
    all_states(model, prompts)


@torch.inference_mode()
def all_states(model: LanguageModel, prompts: list[list[int]]) -> list[tuple[torch.Tensor, ...]]:
    found = []
    for start in range(0, len(prompts), 16):
        ids, mask = left_padded(prompts[start : start + 16])
        out = model.model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        found.append(tuple(state[:, -1] for state in out.hidden_states))
    return found


def ours_sampling(model: LanguageModel, prompts: list[list[int]]) -> None:
    seeds = [[100 * i + j for j in range(K)] for i in range(len(prompts))]
    model.generate(prompts, seeds, [1.0] * K, max_tokens=ANSWER_TOKENS)


def ours_sampling_and_states(model: LanguageModel, prompts: list[list[int]]) -> None:
    ours_sampling(model, prompts)
    for _ in model.last_token_states(prompts, list(range(model.n_layers + 1))):
        pass


def interleaved(sides: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each side; one warm-up, then the sides in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def pool_scoring(model: LanguageModel, prompts: list[list[int]], repeats: int) -> dict[str, float]:
    probe = make_probe("mlp", model.hidden_size, 512)

    def theirs() -> None:
        for states in all_states(model, prompts):
            p_unknown(probe, states[LAYER])

    def ours() -> None:
        for _, states in model.last_token_states(prompts, [LAYER]):
            p_unknown(probe, states[LAYER])

    return interleaved({"theirs": theirs, "ours": ours}, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shape", choices=["small", "8b"], default="small")
    parser.add_argument("--device", choices=list(DEVICES), default="H100")
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="transformers")
    args = parser.parse_args()
    if args.shape == "8b":
        print(f"| {DEVICES[args.device].name} | rate | share of roofline |\n|---|---|---|")
        shares_of_roofline(args.questions, DEVICES[args.device], args.engine)
        return
    generator = np.random.default_rng(0)
    print("| what | against | ratio |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(folder, 32000)
        prompts = [generator.integers(3, 32000, n).tolist() for n in question_lengths(args.questions)]
        few = prompts[: max(4, args.questions // 8)]
        seconds = interleaved(
            {"theirs": lambda: one_call_a_sample(model, few), "ours": lambda: ours_sampling(model, few)}, args.repeats
        )
        print(f"| sampling, k = {K} | one generate call a sample | {seconds['theirs'] / seconds['ours']:.1f} |")
        seconds = interleaved(
            {
                "theirs": lambda: return_sequences_then_states(model, prompts),
                "ours": lambda: ours_sampling_and_states(model, prompts),
            },
            args.repeats,
        )
        print(
            f"| sampling and all states | num_return_sequences, batches of 16, then a forward pass with all states | "
            f"{seconds['theirs'] / seconds['ours']:.2f} |"
        )
        many = [generator.integers(3, 32000, n).tolist() for n in question_lengths(8 * args.questions)]
        seconds = pool_scoring(model, many, args.repeats)
        print(
            f"| scoring the pool, layer {LAYER} of 8 | batches of 16, output_hidden_states | "
            f"{seconds['theirs'] / seconds['ours']:.1f} |"
        )
        model.prefill_tokens = 0
        for _ in model.last_token_states(many, [LAYER]):
            pass
        padded = sum(16 * max(map(len, many[i : i + 16])) for i in range(0, len(many), 16))
        real = sum(map(len, many))
        print(
            f"| prefill tokens a question, ours / batches of 16 / real | | {model.prefill_tokens / len(many):.1f} / "
            f"{padded / len(many):.1f} / {real / len(many):.1f} |"
        )
        width, depth = model.hidden_size, model.n_layers + 1
        print(
            f"| bytes of states a question (float32, {depth} layers) | all tokens | {real / len(many) * width * depth * 4:.0f} "
            f"against {width * depth * 4} |"
        )
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(folder, 1024)
        many = [[token % 1000 + 3 for token in prompt] for prompt in many]
        seconds = pool_scoring(model, many, args.repeats)
        print(f"| the same, vocabulary of 1024 | | {seconds['theirs'] / seconds['ours']:.1f} |")


if __name__ == "__main__":
    main()
