"""Our shard queue against Ray Data, feeding the same engine the same questions: why `ka2l sample` has a queue of its own.

    python benchmarks/feeding.py [--questions 2048]

Each way answers all questions once (the bundled student, one replica), warm (processes that outlive a pass are there); seconds
are medians of three passes in turn. Then one pass in which the engine is killed (SIGKILL) once, half-way: answers that had to be
generated again, and whether the pass ended by itself.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from ka2l_ray import schema
from ka2l_ray.actors.engines import Engines
from ka2l_ray.actors.language_model import Model
from ka2l_ray.config import EngineConfig, ModelConfig, PromptConfig, SamplingConfig
from ka2l_ray.jobs.session import ray_session
from ka2l_ray.jobs.stages.streaming import map_rows
from ka2l_ray.models.language_model import LanguageModel
from ka2l_ray.models.prompts import Prompter
from ka2l_ray.seeds import derive_seed
from ka2l_ray.store.storage import Storage
from ka2l_ray.world.facts import World

MODEL = Model(ModelConfig(path="bundled:student"), PromptConfig(instruction=""))
SAMPLING = SamplingConfig(max_tokens=12)
SHARD = 128


class AnswerBatch:
    """What ``LanguageModelActor.answer`` does, as a Ray Data worker."""

    def __init__(self) -> None:
        self.model = LanguageModel(MODEL.base)
        self.prompter = Prompter(self.model.tokenizer, MODEL.prompt)

    def __call__(self, batch: pa.Table) -> pa.Table:
        ids = batch["question_id"].to_pylist()
        prompts = [self.prompter.encode(self.prompter.prompt(question)) for question in batch["question"].to_pylist()]
        answers = self.model.generate(
            prompts, [[derive_seed(0, i)] for i in ids], [SAMPLING.greedy_temperature], max_tokens=SAMPLING.max_tokens
        )
        texts = [row[0].text for row in answers]
        columns = {"question_id": ids, "question": batch["question"], "prediction": texts, "error": [None] * len(ids)}
        return pa.table(columns, schema=schema.PREDICTIONS)


def by_queue(engines: Engines, questions: Storage, out: Storage) -> None:
    engines.run_shards(MODEL, "answer", out, questions.read_table(""), (SAMPLING, (0,)), lambda *_: None)


def by_ray_data(questions: Storage, out: Storage) -> None:
    map_rows(
        questions,
        out.at("rows"),
        worker=AnswerBatch,
        arguments=(),
        columns=["question_id", "question"],
        actors=1,
        cpus=1,
        gpus=0,
        rows_per_block=SHARD,
        checkpoint=out.at("checkpoint"),
    )


def rows_written(folder: Path) -> int:
    """Of files that are whole; one that is being written has no footer yet."""
    rows = 0
    for file in folder.rglob("*.parquet"):
        try:
            rows += pq.ParquetFile(file).metadata.num_rows
        except (pa.ArrowException, OSError):
            continue
    return rows


def killed_half_way(way: Callable[[Storage], None], out: Storage, title: str, rows: int) -> str:
    """Run ``way`` and kill the worker of that title when half of the rows are written; how it ended, in words."""
    killed: list[str] = []

    def kill() -> None:
        while not killed:
            if rows_written(Path(out.root)) >= rows / 2:
                for process in psutil.Process().children(recursive=True):
                    if process.is_running() and (process.cmdline() or [""])[0].startswith(title):
                        process.kill()
                        killed.append(title)
                        return
            time.sleep(0.01)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    try:
        start = time.perf_counter()
        way(out)
        seconds = time.perf_counter() - start
        return f"ended by itself after {seconds:.1f} s" if killed else "no engine was killed"
    except Exception as error:  # the benchmark reports whatever happens
        return f"failed: {type(error).__name__}"
    finally:
        killed.append("nothing")
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=2048)
    n = parser.parse_args().questions
    facts = World().facts
    rows = [{"question_id": f"q{i}", "question": facts[i % len(facts)].question(0), "answers": None} for i in range(n)]
    with tempfile.TemporaryDirectory() as folder, ray_session(None):
        questions = Storage(f"{folder}/questions")
        questions.write_table("questions.parquet", pa.Table.from_pylist(rows, schema=schema.QUESTIONS))
        engines = Engines(EngineConfig(shard_size=SHARD))
        ways: dict[str, tuple[Callable[[Storage], None], str]] = {
            "shard queue": (lambda out: by_queue(engines, questions, out), "ray::LanguageModelActor"),
            "Ray Data": (lambda out: by_ray_data(questions, out), "ray::MapWorker"),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(4):
            for name, (way, _) in ways.items():
                start = time.perf_counter()
                way(Storage(f"{folder}/{turn} {name}"))
                if turn:
                    seconds[name].append(time.perf_counter() - start)
        print("| fed by | seconds, median of three | engine killed half-way |\n|---|---|---|")
        for name, (way, title) in ways.items():
            ended = killed_half_way(way, Storage(f"{folder}/killed {name}"), title, n)
            print(f"| {name} | {statistics.median(seconds[name]):.1f} | {ended} |", flush=True)
        engines.release()
        ray.shutdown()


if __name__ == "__main__":
    main()
