"""What KA2L's premise is worth on a real model: SmolLM2-135M-Instruct on real questions, as docs/real_model.md with its plots.

    make models
    python benchmarks/real_model.py [--questions 400] [--threads 2] [--work runs/real_model] [--judge DIR]

Every step prints its seconds and is kept under --work: run again, it goes on where it was, and makes anew only what depends on
what has changed (the sampling, most of the time, on the model, the prompt and the questions alone). Reads ../shared/data (sciq,
webquestions, entityquestions, gsm8k). --judge: a cross-encoder of benchmarks/learned_judge.py, used where it is there. What the
page concludes stands in docs/real_model.md.j2; every figure in it is put in here.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import real_model_measures as measures
import torch
import yaml
from real_model_figures import (
    KINDS,
    LAYERS,
    MAIN,
    NUMBERS,
    POSITIONS,
    SEEDS,
    Found,
    decile_figures,
    entropy_figures,
    layer_figures,
    matrix_figures,
    overview,
    score_figures,
)
from real_model_page import write_page
from safetensors.numpy import load, save

from ka2l_ray.api.model import PromptedModel
from ka2l_ray.config import EvaluationConfig, JudgeSettings, ModelConfig, SamplingConfig
from ka2l_ray.config_files import validate_section
from ka2l_ray.extraction import Extract
from ka2l_ray.models.model_files import model_identity
from ka2l_ray.normalization import normalize_question
from ka2l_ray.reading import READING, Reading
from ka2l_ray.schema import SCHEMA_VERSION
from ka2l_ray.semantics.clustering import cluster_answers
from ka2l_ray.semantics.correctness import judge_answers
from ka2l_ray.semantics.judges import make_judge, verdict_identity
from ka2l_ray.semantics.judges.embedding import EmbeddingJudge
from ka2l_ray.store.artefacts import Artefact, RunStore, content_key
from ka2l_ray.store.storage import Storage, digest, file_digest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared/data"
MODEL, ENCODER = ROOT / "models/smollm2-135m-instruct", ROOT / "models/all-minilm-l6-v2"
SETS = {"SciQ": "sciq", "WebQuestions": "webquestions", "EntityQuestions": "entityquestions", "GSM8K": "gsm8k"}
READINGS = {"GSM8K": Reading(extract=Extract("last_number"))}
"""How a set's answers are read where not the whole text is the answer."""
PART = 25  # questions between two looks at the clock
CODE = {
    "judged": ("normalization.py", "extraction.py", "reading.py", "semantics/**/*.py"),
    "figures": ("probes/**/*.py", "uncertainty/*.py", "semantics/entropy.py"),
}


class Study:
    """The steps, each an artefact of ``store`` under all that decides it."""

    def __init__(self, work: str, questions: int, judge: Path) -> None:
        self.store = RunStore(work)
        self.questions = questions
        settings = yaml.safe_load((ROOT / "examples/smollm2.yaml").read_text())
        self.prompt, self.sampling = settings["prompt"], SamplingConfig(**settings["sampling"])
        judges: dict[str, dict[str, Any]] = {"exact": {}, "contains": {}, "embedding": {"encoder": str(ENCODER)}}
        if judge.is_dir():
            judges["cross_encoder"] = {"cross_encoder": str(judge)}
        self.judges = {
            name: validate_section(EvaluationConfig, {"judge": name, **keys}, "judge") for name, keys in judges.items()
        }
        self.two = ("exact", "cross_encoder" if "cross_encoder" in judges else "contains")
        self.seconds: dict[str, tuple[float, float]] = {}
        """By step: of the clock, and of the processors."""

    @cached_property
    def model(self) -> PromptedModel:
        return PromptedModel(str(MODEL), prompt=self.prompt)

    def step(self, name: str, inputs: dict[str, Any], build: Callable[[Storage], dict[str, Any]]) -> Artefact:
        """The artefact ``name``, made anew where its inputs have changed."""
        found = self.store.manifest.get(name)
        if found is not None and found.key != content_key({"schema_version": SCHEMA_VERSION, **inputs}):
            self.store.storage.delete(name)
        kept = len(self.store.kept)

        def timed(work: Storage) -> dict[str, Any]:
            started = time.perf_counter(), time.process_time()
            facts = build(work)
            return {"seconds": time.perf_counter() - started[0], "processor": time.process_time() - started[1], **facts}

        artefact = self.store.compute(name, inputs, timed)
        self.seconds[name] = artefact.facts["seconds"], artefact.facts["processor"]
        spent = "{:.0f} s, {:.0f} s of processors".format(*self.seconds[name])
        print(f"{name}: {spent}{', kept' if len(self.store.kept) > kept else ''}", flush=True)
        return artefact

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Questions of a set, in an order that depends on their ids alone; no question twice."""
        with (SHARED / f"{SETS[name]}.jsonl").open(encoding="utf-8") as lines:
            rows = {normalize_question(row["question"]): row for row in map(json.loads, lines) if row["answers"]}
        return sorted(rows.values(), key=lambda row: digest(row["id"]))[: self.questions // (1 if name in MAIN else 2)]

    def sample(self, name: str) -> list[Artefact]:
        """Ten answers and the greedy-like one to each question, in parts that stay whatever the number of questions."""
        rows = self.rows(name)
        how = {
            "model": model_identity(ModelConfig(path=str(MODEL))),
            "prompt": self.prompt,
            "sampling": self.sampling.model_dump(mode="json"),
        }
        parts = []
        for first in range(0, len(rows), PART):
            part = rows[first : first + PART]
            inputs = {**how, "questions": digest([(row["id"], row["question"], row["answers"]) for row in part])}
            parts.append(self.step(f"samples/{name}/{first:05d}", inputs, partial(self._sample, part)))
        return parts

    def _sample(self, rows: Sequence[Mapping[str, Any]], work: Storage) -> dict[str, Any]:
        answers = self.model.sample([row["question"] for row in rows], self.sampling, seed=0)
        likelihoods = [[float(np.mean(each.token_logprobs)) for each in row] for row in answers]
        table = pa.table(
            {
                "question_id": [row["id"] for row in rows],
                "question": [row["question"] for row in rows],
                "answers": [row["answers"] for row in rows],
                "generations": [[each.text.strip() for each in row[:-1]] for row in answers],
                "greedy": [row[-1].text.strip() for row in answers],
                "log_likelihoods": [row[:-1] for row in likelihoods],
                "greedy_log_likelihood": [row[-1] for row in likelihoods],
            }
        )
        work.write_table("samples.parquet", table)
        return {"rows": len(table)}

    def states(self, name: str, samples: Sequence[Artefact], position: str) -> Artefact:
        """Hidden states of the prompts, by layer."""
        layers = LAYERS if position == "last_prompt_token" else POSITIONS[position]

        def build(work: Storage) -> dict[str, Any]:
            questions = [row["question"] for row in read(samples)]
            found = self.model.states(questions, layers, position)
            work.write_bytes("states.safetensors", save({str(layer): values for layer, values in found.items()}))
            return {"rows": len(questions)}

        inputs = {"samples": keys(samples), "position": position, "layers": list(layers)}
        return self.step(f"states/{position}/{name}", inputs, build)

    def judged(self, name: str, samples: Sequence[Artefact], judge: str) -> Artefact:
        """Meanings of the answers, and whether the greedy-like one is right."""
        settings: JudgeSettings = self.judges[judge]
        reading = READINGS.get(name, READING)
        how = {"judge": verdict_identity(settings), "reading": reading.identity(), "code": code("judged")}
        inputs = {"samples": keys(samples), **how}

        def build(work: Storage) -> dict[str, Any]:
            rows = read(samples)
            questions = [row["question"] for row in rows]
            meaning = make_judge(settings)
            if isinstance(meaning, EmbeddingJudge):
                meaning.encoder = Remembered(meaning.encoder)  # clustering asks of an answer several times
            answers = [[reading.answer(text) for text in row["generations"]] for row in rows]
            found = cluster_answers(questions, answers, meaning)
            said, accepted = [row["greedy"] for row in rows], [row["answers"] for row in rows]
            judging = None if judge == "exact" else make_judge(settings, directed=True)
            right = judge_answers(questions, said, accepted, judging, reading)
            table = {"cluster_ids": [each.cluster_ids for each in found], "correct": [each.correct for each in right]}
            work.write_table("judged.parquet", pa.table(table))
            return {"rows": len(rows)}

        return self.step(f"judged/{judge}/{name}", inputs, build)


def read(samples: Sequence[Artefact]) -> list[dict[str, Any]]:
    return [row for part in samples for row in part.storage.read_table("").to_pylist()]


def keys(samples: Sequence[Artefact]) -> list[str]:
    return [part.key for part in samples]


class Remembered:
    """A sentence encoder that reads no text twice."""

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder
        self.found: dict[str, torch.Tensor] = {}

    def encode(self, texts: Sequence[str]) -> tuple[torch.Tensor, set[int]]:
        new = [text for text in dict.fromkeys(texts) if text not in self.found]
        if new:
            self.found.update(zip(new, self.encoder.encode(new)[0], strict=True))
        return torch.stack([self.found[text] for text in texts]), set()


def code(part: str, *files: str) -> str:
    """Digest of the sources that decide a step, ``files`` of this folder among them: what they compute may have changed."""
    found = sorted(file for pattern in CODE[part] for file in (ROOT / "ka2l_ray").glob(pattern))
    return digest([file_digest(file) for file in (*found, *map(Path, files))])


def as_facts(make: Callable[..., dict[str, Any]], given: tuple[Any, ...], work: Storage) -> dict[str, Any]:
    return {"figures": make(*given)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=400, help="Of SciQ and of WebQuestions; half as many of the others.")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--work", default="runs/real_model")
    parser.add_argument("--judge", type=Path, default=Path("outputs/learned_judge/judge"))
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    args = parser.parse_args()
    if not SHARED.is_dir() or not MODEL.is_dir():
        raise SystemExit(f"the public questions ({SHARED}) or the models ({MODEL}; make models) are not there")
    torch.set_num_threads(args.threads)
    study = Study(args.work, args.questions, args.judge)
    samples = {name: study.sample(name) for name in SETS}
    states = {position: {name: study.states(name, samples[name], position) for name in SETS} for position in POSITIONS}
    judged = {
        name: {judge: study.judged(name, samples[name], judge) for judge in (study.judges if name in MAIN else study.two)}
        for name in SETS
    }
    found = {name: Found(read(samples[name]), judged[name]) for name in SETS}
    hidden = {
        position: {
            name: {int(k): v for k, v in load(artefact.storage.read_bytes("states.safetensors")).items()}
            for name, artefact in of.items()
        }
        for position, of in states.items()
    }
    last = hidden["last_prompt_token"]
    of_judges = [artefact.key for each in judged.values() for artefact in each.values()]
    of_states = [artefact.key for each in states.values() for artefact in each.values()]
    inputs = {
        "judged": of_judges,
        "states": of_states,
        "settings": repr((MAIN, SEEDS, NUMBERS, LAYERS, POSITIONS, KINDS)),
        "code": code("figures", measures.__file__),
    }
    parts: dict[str, tuple[Callable[..., dict[str, Any]], tuple[Any, ...]]] = {
        "overview": (overview, (found,)),
        "entropy": (entropy_figures, (found, list(study.judges))),
        "scores": (score_figures, (found, last, study.two)),
        "layers": (layer_figures, (found, last, study.two)),
        "deciles": (decile_figures, (found, last, study.two)),
        "matrix": (matrix_figures, (found, hidden, study.two)),
    }
    figures = {}
    for name, (make, given) in parts.items():
        source = {"source": inspect.getsource(make)}
        step = study.step(f"figures/{name}", inputs | source, partial(as_facts, make, given))
        figures[name] = json.loads(json.dumps(step.facts["figures"]))  # keys are texts, now made or kept
    clock, processor = (sum(spent) / 60 for spent in zip(*study.seconds.values(), strict=True))
    print(f"in all: {clock:.1f} minutes of steps, {processor:.1f} of processors")
    write_page(args.docs, figures, study.two, study.seconds, study.sampling)


if __name__ == "__main__":
    main()
