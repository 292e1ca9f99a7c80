"""Stages over pools of growing size: seconds, resident memory of driver and workers, bytes spilled.

    python benchmarks/scale.py [score|entropy] [1000 3000 10000 30000 100000]

score: a tiny Llama made here and a linear probe with random weights. entropy: ten answers a question, judge ``exact``. Questions
are those of ../shared/data/triviaqa.jsonl (the bundled world's where it is not there), repeated with variations; answers are
drawn from theirs and others'. Seconds are fitted by a + b N^p. Any N can be given.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import torch
from ray._private.internal_api import memory_summary
from scipy.optimize import curve_fit
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from ka2l_ray import schema
from ka2l_ray.actors.engines import Engines
from ka2l_ray.actors.language_model import Model
from ka2l_ray.config import EngineConfig, EntropyConfig, ModelConfig, PromptConfig
from ka2l_ray.jobs.commands.inputs import SAMPLED
from ka2l_ray.jobs.session import ray_session
from ka2l_ray.jobs.stages.entropy import entropy
from ka2l_ray.jobs.stages.score import score
from ka2l_ray.probes import ProbeCard, make_probe, probe_to_bytes
from ka2l_ray.store.artefacts import Artefact, StageDirectory
from ka2l_ray.store.storage import Storage
from ka2l_ray.world import bundled_path
from ka2l_ray.world.facts import World

SHARED = Path(__file__).resolve().parents[2] / "shared/data/triviaqa.jsonl"
WIDTH, LAYER = 32, 1
ROWS_PER_FILE = 10_000


class PeakMemory:
    """Most resident bytes of the driver, and of any of its Ray workers that scores or clusters, while it is entered."""

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
                title = " ".join(process.info["cmdline"] or [])
                if ("LanguageModelActor" in title or "ClusterBatch" in title) and process.info["memory_info"]:
                    self.worker = max(self.worker, process.info["memory_info"].rss)


def read_pool() -> list[tuple[str, list[str]]]:
    """(question, its answer and others')."""
    if SHARED.is_file():
        with SHARED.open() as lines:
            rows = [json.loads(line) for line in lines]
        return [(row["question"], [row["answers"][0], *rows[i - 1]["answers"][:2]]) for i, row in enumerate(rows)]
    world = World()
    return [(fact.question(0), [*fact.value.forms, "nobody"]) for fact in world.facts]


def pool_rows(n: int, pool: list[tuple[str, list[str]]]) -> Iterator[tuple[str, str, list[str]]]:
    for i in range(n):
        turn = i // len(pool)
        question, answers = pool[i % len(pool)]
        yield f"q{i}", question if not turn else f"{question} ({turn})", answers


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


def write_pool(n: int, at: Storage, pool: list[tuple[str, list[str]]], stage: str) -> None:
    generator = random.Random(0)
    rows: list[dict[str, object]] = []
    for i, (question_id, question, answers) in enumerate(pool_rows(n, pool), 1):
        row: dict[str, object] = {"question_id": question_id, "question": question}
        rows.append(row | ({"generations": generator.choices(answers, k=10)} if stage == "entropy" else {"answers": None}))
        if len(rows) == ROWS_PER_FILE or i == n:
            kind = SAMPLED if stage == "entropy" else schema.QUESTIONS
            at.write_table(f"part-{i // ROWS_PER_FILE:05d}.parquet", pa.Table.from_pylist(rows, schema=kind))
            rows = []


def measure(n: int, folder: Path, stage: str, model: Model, pool: list[tuple[str, list[str]]]) -> tuple[float, PeakMemory]:
    asked = Artefact("pool", f"pool of {n}", {}, {"rows": n}, 0.0, "", str(folder / f"pool-{n}"))
    write_pool(n, asked.storage, pool, stage)
    probe = Artefact("probe", "probe", {}, {}, 0.0, "", str(folder / "probe"))
    card = ProbeCard("linear", LAYER, WIDTH, 1)
    probe.storage.write_bytes("probe.safetensors", probe_to_bytes(make_probe("linear", WIDTH, 1), card))
    out, engines = StageDirectory(str(folder / f"out-{n}")), Engines(EngineConfig())
    with PeakMemory() as peak:
        start = time.perf_counter()
        if stage == "entropy":
            done = entropy(out, "entropy", samples=asked, config=EntropyConfig(judge="exact"))
        else:
            done = score(
                out,
                "scores",
                questions=asked,
                exclude=frozenset(),
                model=model,
                probe=probe,
                next_token_entropy=False,
                option_entropy=False,
                engine=engines.config,
                engines=engines,
            )
        seconds = time.perf_counter() - start
    engines.release()
    assert done.facts["rows"] == n
    return seconds, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["score", "entropy"], nargs="?", default="score")
    parser.add_argument("sizes", type=int, nargs="*", default=[1000, 3000, 10_000, 30_000, 100_000])
    args = parser.parse_args()
    pool = read_pool()
    measured: list[tuple[int, float]] = []
    print(f"| questions, {args.stage} | seconds | driver, MiB | worker, MiB | spilled |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name, ray_session(None):
        folder = Path(name)
        model = make_model(folder / "model")
        measure(100, folder, args.stage, model, pool)  # imports, first workers
        for n in sorted(args.sizes):
            seconds, peak = measure(n, folder, args.stage, model, pool)
            measured.append((n, seconds))
            print(f"| {n} | {seconds:.1f} | {peak.driver >> 20} | {peak.worker >> 20} | {spilled()} |", flush=True)
    if len(measured) > 3:
        n, t = np.array(measured).T
        (a, b, p), _ = curve_fit(lambda n, a, b, p: a + b * n**p, n, t, (t[0], t[-1] / n[-1], 1.0), bounds=(0, [t[0], 1.0, 3.0]))
        print(f"\nseconds = {a:.1f} + {b:.2g} N^{p:.2f}")


if __name__ == "__main__":
    main()
