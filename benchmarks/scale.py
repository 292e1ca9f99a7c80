"""Scoring pools of growing size: seconds, resident memory of driver and workers, bytes spilled.

    python benchmarks/scale.py [1000 10000 100000]

Questions are those of ../shared/data/triviaqa.jsonl (the bundled world's where it is not there), repeated with variations; the
model is a tiny Llama made here, the probe a linear one with random weights. Any N can be given; 1000000 takes a night.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import torch
from ray._private.internal_api import memory_summary
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from ka2l_ray import schema
from ka2l_ray.actors.language_model import Model
from ka2l_ray.config import EngineConfig, ModelConfig, PromptConfig
from ka2l_ray.jobs.score import score
from ka2l_ray.jobs.session import ray_session
from ka2l_ray.probes import ProbeCard, make_probe, probe_to_bytes
from ka2l_ray.store import Artefact, StageDirectory
from ka2l_ray.world import bundled_path
from ka2l_ray.world.facts import World

SHARED = Path(__file__).resolve().parents[2] / "shared/data/triviaqa.jsonl"
WIDTH, LAYER = 32, 1
ROWS_PER_FILE = 10_000


class PeakMemory:
    """Most resident bytes of the driver, and of any of its Ray workers that scores, while it is entered."""

    def __enter__(self) -> PeakMemory:
        self.driver = self.worker = 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self.ended.wait(0.5):
            self.driver = max(self.driver, me.memory_info().rss)
            for process in psutil.process_iter(["cmdline", "memory_info"]):
                if "ScoreBatch" in " ".join(process.info["cmdline"] or []) and process.info["memory_info"]:
                    self.worker = max(self.worker, process.info["memory_info"].rss)


def texts() -> list[str]:
    if SHARED.is_file():
        with SHARED.open() as lines:
            return [json.loads(line)["question"] for line in lines]
    return [fact.question(0) for fact in World().facts]


def pool_rows(n: int, questions: list[str]) -> Iterator[tuple[str, str]]:
    for i in range(n):
        turn = i // len(questions)
        question = questions[i % len(questions)]
        yield f"q{i}", question if not turn else f"{question} ({turn})"


def make_model(folder: Path) -> Model:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(bundled_path("bundled:student"))
    config = LlamaConfig(
        hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=len(tokenizer)
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Model(ModelConfig(path=str(folder)), PromptConfig(instruction=""))


def spilled() -> str:
    lines = [line for line in memory_summary(stats_only=True).splitlines() if "Spilled" in line]
    return "; ".join(lines) or "0"


def measure(n: int, folder: Path, model: Model, questions: list[str]) -> tuple[float, PeakMemory]:
    pool = Artefact("pool", f"pool of {n}", {"rows": n}, {}, 0.0, "", str(folder / f"pool-{n}"))
    ids: list[str] = []
    rows: list[str] = []
    for i, (question_id, question) in enumerate(pool_rows(n, questions), 1):
        ids.append(question_id)
        rows.append(question)
        if len(ids) == ROWS_PER_FILE or i == n:
            table = pa.table({"question_id": ids, "question": rows, "answers": [None] * len(ids)}, schema=schema.QUESTIONS)
            pool.storage.write_table(f"part-{i // ROWS_PER_FILE:05d}.parquet", table)
            ids, rows = [], []
    probe = Artefact("probe", "probe", {}, {}, 0.0, "", str(folder / "probe"))
    card = ProbeCard("linear", LAYER, WIDTH, 1)
    probe.storage.write_bytes("probe.safetensors", probe_to_bytes(make_probe("linear", WIDTH, 1), card))
    with PeakMemory() as peak:
        start = time.perf_counter()
        done = score(
            StageDirectory(str(folder / f"scores-{n}")),
            "scores",
            questions=pool,
            exclude=frozenset(),
            model=model,
            probe=probe,
            next_token_entropy=False,
            engine=EngineConfig(),
        )
        seconds = time.perf_counter() - start
    assert done.facts["rows"] == n
    return seconds, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", type=int, nargs="*", default=[1000, 10_000, 100_000])
    sizes = sorted(parser.parse_args().sizes)
    questions = texts()
    measured: list[tuple[int, float]] = []
    print("| questions | seconds | driver, MiB | worker, MiB | spilled |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name, ray_session(None):
        folder = Path(name)
        model = make_model(folder / "model")
        measure(100, folder, model, questions)  # imports, first workers
        for n in sizes:
            seconds, peak = measure(n, folder, model, questions)
            measured.append((n, seconds))
            print(f"| {n} | {seconds:.1f} | {peak.driver >> 20} | {peak.worker >> 20} | {spilled()} |", flush=True)
    if len(measured) > 2:
        (_, start), (n1, t1), (n2, t2) = measured[0], measured[-2], measured[-1]
        exponent = math.log((t2 - start) / (t1 - start)) / math.log((n2 - measured[0][0]) / (n1 - measured[0][0]))
        print(f"\nexponent of the time beyond the start: {exponent:.2f}")


if __name__ == "__main__":
    main()
