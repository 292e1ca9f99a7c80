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
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import real_model_measures as measures
import torch
import yaml
from numpy.typing import NDArray
from real_model_page import write_page
from safetensors.numpy import load, save

from ka2l_ray.api.model import PromptedModel
from ka2l_ray.config import EvaluationConfig, JudgeSettings, ModelConfig, SamplingConfig
from ka2l_ray.config_files import validate_section
from ka2l_ray.models.model_files import model_identity
from ka2l_ray.questions import normalize_question
from ka2l_ray.reading import Reading
from ka2l_ray.schema import SCHEMA_VERSION
from ka2l_ray.semantics.clustering import cluster_answers
from ka2l_ray.semantics.correctness import judge_answers
from ka2l_ray.semantics.entropy import KA2L_THRESHOLD, labels, semantic_entropy, threshold
from ka2l_ray.semantics.judges import make_judge, verdict_identity
from ka2l_ray.store.artefacts import Artefact, RunStore, content_key
from ka2l_ray.store.storage import Storage, digest, file_digest
from ka2l_ray.uncertainty.p_wrong import combine
from ka2l_ray.uncertainty.scores import answer_scores, quality

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared/data"
MODEL, ENCODER = ROOT / "models/smollm2-135m-instruct", ROOT / "models/all-minilm-l6-v2"
SETS = {"SciQ": "sciq", "WebQuestions": "webquestions", "EntityQuestions": "entityquestions", "GSM8K": "gsm8k"}
MAIN = ("SciQ", "WebQuestions")  # whose figures are given one by one; the others are what a probe is taken to
SEEDS = (0, 1, 2)
NUMBERS = tuple(range(2, 11))
LAYERS = tuple(range(0, 31, 3))
FEW = tuple(range(0, 31, 6))
ATTENTION = (18,)  # the states of every token are kept: one layer
POSITIONS = {"last_prompt_token": FEW, "mean": FEW, "attention": ATTENTION}
KINDS: dict[str, dict[str, Any]] = {
    "linear": {"kind": "linear"},
    "mlp": {"kind": "mlp", "hidden_width": 512},  # KA2L's 14336 takes 28 times as long
}
PART = 25  # questions between two looks at the clock
CODE = {
    "judged": ("normalization.py", "extraction.py", "reading.py", "semantics/**/*.py"),
    "probed": ("probes/**/*.py", "uncertainty/*.py"),
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
        self.seconds: dict[str, float] = {}

    @cached_property
    def model(self) -> PromptedModel:
        return PromptedModel(str(MODEL), prompt=self.prompt)

    def step(self, name: str, inputs: dict[str, Any], build: Callable[[Storage], dict[str, Any]]) -> Artefact:
        """The artefact ``name``, made anew where its inputs have changed."""
        found = self.store.manifest.get(name)
        if found is not None and found.key != content_key({"schema_version": SCHEMA_VERSION, **inputs}):
            self.store.storage.delete(name)
        kept = len(self.store.kept)
        artefact = self.store.compute(name, inputs, build)
        self.seconds[name] = artefact.facts.get("seconds", artefact.seconds)
        print(f"{name}: {self.seconds[name]:.0f} s{', kept' if len(self.store.kept) > kept else ''}", flush=True)
        return artefact

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Questions of a set, in an order that depends on their ids alone; no question twice."""
        lines = (SHARED / f"{SETS[name]}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = {normalize_question(row["question"]): row for row in map(json.loads, lines) if row["answers"]}
        return sorted(rows.values(), key=lambda row: digest(row["id"]))[: self.questions]

    def sample(self, name: str) -> Artefact:
        """Ten answers and the greedy-like one to each question."""
        rows = self.rows(name)
        inputs = {
            "model": model_identity(ModelConfig(path=str(MODEL))),
            "prompt": self.prompt,
            "sampling": self.sampling.model_dump(mode="json"),
            "questions": digest([(row["id"], row["question"], row["answers"]) for row in rows]),
        }

        def build(work: Storage) -> dict[str, Any]:
            for first in range(0, len(rows), PART):
                file = f"part-{first:05d}.parquet"
                if work.exists(file):
                    continue
                started = time.perf_counter()
                work.write_table(file, self._sample(rows[first : first + PART], started))
                print(f"  {name}: {min(first + PART, len(rows))} of {len(rows)}", flush=True)
            table = work.read_table("", columns=["seconds"])
            return {"rows": len(table), "seconds": float(sum(table["seconds"].to_pylist()))}

        return self.step(f"samples/{name}", inputs, build)

    def _sample(self, rows: Sequence[Mapping[str, Any]], started: float) -> pa.Table:
        answers = self.model.sample([row["question"] for row in rows], self.sampling, seed=0)
        likelihoods = [[float(np.mean(each.token_logprobs)) for each in row] for row in answers]
        return pa.table(
            {
                "question_id": [row["id"] for row in rows],
                "question": [row["question"] for row in rows],
                "answers": [row["answers"] for row in rows],
                "generations": [[each.text.strip() for each in row[:-1]] for row in answers],
                "greedy": [row[-1].text.strip() for row in answers],
                "log_likelihoods": [row[:-1] for row in likelihoods],
                "greedy_log_likelihood": [row[-1] for row in likelihoods],
                "seconds": [(time.perf_counter() - started) / len(rows)] * len(rows),
            }
        )

    def states(self, name: str, samples: Artefact, position: str) -> Artefact:
        """Hidden states of the prompts, by layer."""
        layers = LAYERS if position == "last_prompt_token" else POSITIONS[position]

        def build(work: Storage) -> dict[str, Any]:
            questions = samples.storage.read_table("", columns=["question"])["question"].to_pylist()
            found = self.model.states(questions, layers, position)
            work.write_bytes("states.safetensors", save({str(layer): values for layer, values in found.items()}))
            return {"rows": len(questions)}

        inputs = {"samples": samples.key, "position": position, "layers": list(layers)}
        return self.step(f"states/{position}/{name}", inputs, build)

    def judged(self, name: str, samples: Artefact, judge: str) -> Artefact:
        """Meanings of the answers, and whether the greedy-like one is right."""
        settings: JudgeSettings = self.judges[judge]
        inputs = {"samples": samples.key, "judge": verdict_identity(settings), "code": code("judged")}

        def build(work: Storage) -> dict[str, Any]:
            rows = samples.storage.read_table("").to_pylist()
            questions = [row["question"] for row in rows]
            found = cluster_answers(questions, [row["generations"] for row in rows], make_judge(settings))
            said, accepted = [row["greedy"] for row in rows], [row["answers"] for row in rows]
            judging = None if judge == "exact" else make_judge(settings, directed=True)
            right = judge_answers(questions, said, accepted, judging, Reading())
            table = {"cluster_ids": [each.cluster_ids for each in found], "correct": [each.correct for each in right]}
            work.write_table("judged.parquet", pa.table(table))
            return {"rows": len(rows)}

        return self.step(f"judged/{judge}/{name}", inputs, build)


class Found:
    """Samples, meanings and correctness of one data set, by judge."""

    def __init__(self, samples: Artefact, judged: Mapping[str, Artefact]) -> None:
        self.samples = samples.storage.read_table("").to_pylist()
        self.questions = [row["question"] for row in self.samples]
        tables = {judge: artefact.storage.read_table("") for judge, artefact in judged.items()}
        self.cluster_ids = {judge: table["cluster_ids"].to_pylist() for judge, table in tables.items()}
        self.wrong = {judge: ~table["correct"].to_numpy() for judge, table in tables.items()}
        self.entropy = {judge: np.array([semantic_entropy(ids) for ids in rows]) for judge, rows in self.cluster_ids.items()}


def code(part: str) -> str:
    """Digest of the sources that decide a step: what they compute may have changed."""
    files = sorted(file for pattern in CODE[part] for file in (ROOT / "ka2l_ray").glob(pattern))
    return digest([*map(file_digest, files), file_digest(Path(measures.__file__))])


def label(found: Mapping[str, Found], names: Sequence[str], judge: str) -> tuple[NDArray[np.bool_], float]:
    """(unknown or not of all questions of some sets, the threshold of ``two_means`` over them)."""
    entropies = np.concatenate([found[name].entropy[judge] for name in names])
    at = threshold(entropies, "two_means")
    return labels(entropies, at).astype(bool), at


def overview(found: Mapping[str, Found], judges: Sequence[str]) -> dict[str, Any]:
    """Of each set: questions, share right, what the rules call unknown, words of an answer."""
    rows = {}
    for name, each in found.items():
        words = [len(text.split()) for row in each.samples for text in row["generations"]]
        rows[name] = {
            "questions": len(each.questions),
            "words": float(np.median(words)),
            "right": {judge: float((~each.wrong[judge]).mean()) for judge in judges},
            "entropy": {judge: float(each.entropy[judge].mean()) for judge in judges},
            "known": {judge: float((each.entropy[judge] < KA2L_THRESHOLD).mean()) for judge in judges},
            "two_means": {judge: label(found, [name], judge)[1] for judge in judges},
            "unknown": {judge: float(label(found, [name], judge)[0].mean()) for judge in judges},
        }
    return rows


def entropy_figures(found: Mapping[str, Found], judges: Sequence[str]) -> dict[str, Any]:
    """AUROC of semantic entropy against a wrong answer by judge of meaning, judge of correctness and number of answers."""
    whole: dict[str, Any] = {}
    numbers: dict[str, Any] = {}
    for correct in judges:
        for meaning in judges:
            for name in MAIN:
                each = found[name]
                if measures.enough(each.wrong[correct]):
                    low, high = measures.interval(each.wrong[correct], each.entropy[meaning])
                    area = measures.auroc(each.wrong[correct], each.entropy[meaning])
                    whole.setdefault(name, {}).setdefault(meaning, {})[correct] = {"auroc": area, "low": low, "high": high}
            numbers.setdefault(correct, {})[meaning] = {
                k: measures.over_seeds(
                    [
                        float(np.mean([measures.by_number(f.cluster_ids[meaning], f.wrong[correct], k, seed) for f in main]))
                        for seed in SEEDS
                    ]
                )
                for k in NUMBERS
                for main in [[found[name] for name in MAIN]]
            }
    return {"whole": whole, "numbers": numbers}


def score_figures(found: Mapping[str, Found], states: Mapping[str, measures.States], two: Sequence[str]) -> dict[str, Any]:
    """Every score's AUROC and AURC against a wrong answer, by set and judge; ``combined`` is fitted on the other folds."""
    rows: dict[str, Any] = {}
    for judge in two:
        for name in MAIN:
            each = found[name]
            unknown, _ = label(found, [name], judge)
            columns: dict[str, list[float]] = {}
            for row, ids in zip(each.samples, each.cluster_ids[judge], strict=True):
                given = row["generations"], ids, row["log_likelihoods"], row["greedy_log_likelihood"]
                for score, value in answer_scores(*given).items():
                    columns.setdefault(score, []).append(value)
            scores = {score: np.array(values) for score, values in columns.items()}
            scores["p(unknown)"] = measures.cross_fitted(states[name], unknown, 0, **KINDS["linear"])[0]
            used = ("semantic entropy", "p(unknown)", "log-likelihood")
            wrong = each.wrong[judge]
            scores["combined"] = combine({score: scores[score] for score in used}, wrong.tolist(), each.questions)
            for score, values in scores.items():
                fitted = score == "combined"
                one = quality(score, values, wrong, each.questions, resamples=300, cross_fitted=fitted)
                rows.setdefault(judge, {}).setdefault(score, {})[name] = {
                    "auroc": one.auroc,
                    "low": one.auroc_low,
                    "high": one.auroc_high,
                    "aurc": one.aurc,
                    "wrong": one.wrong,
                }
    return rows


def truths(found: Mapping[str, Found], names: Sequence[str], judge: str) -> dict[str, NDArray[np.bool_]]:
    wrong = np.concatenate([found[name].wrong[judge] for name in names])
    return {"label": label(found, names, judge)[0], "wrong": wrong}


def layer_figures(found: Mapping[str, Found], states: Mapping[str, measures.States], two: Sequence[str]) -> dict[str, Any]:
    """AUROC of each layer's probe on SciQ and WebQuestions together, by judge, truth, kind and layer."""
    joined = {layer: np.concatenate([states[name][layer] for name in MAIN]) for layer in LAYERS}
    within = np.repeat(np.arange(len(MAIN)), [len(found[name].questions) for name in MAIN])
    figures: dict[str, Any] = {}
    for judge in two:
        for truth, values in truths(found, MAIN, judge).items():
            for kind, how in KINDS.items():
                layers = LAYERS if kind == "linear" else FEW
                some = {layer: joined[layer] for layer in layers}
                seeds = [measures.by_layer(some, values, within, seed, **how) for seed in SEEDS]
                figures.setdefault(judge, {}).setdefault(truth, {})[kind] = {
                    layer: measures.over_seeds([each[layer] for each in seeds]) for layer in layers
                }
                print(f"  probes: {kind} of {truth} by {judge}", flush=True)
    return figures


def decile_figures(found: Mapping[str, Found], states: Mapping[str, measures.States], two: Sequence[str]) -> dict[str, Any]:
    """Share of right greedy answers and mean semantic entropy by decile of p(unknown), mean of three cross-fitted probes."""
    joined = {layer: np.concatenate([states[name][layer] for name in MAIN]) for layer in FEW}
    figures = {}
    for judge in two:
        both = truths(found, MAIN, judge)
        fits = [measures.cross_fitted(joined, both["label"], seed, **KINDS["linear"]) for seed in SEEDS]
        entropy = np.concatenate([found[name].entropy[judge] for name in MAIN])
        columns = {"accuracy": ~both["wrong"], "entropy": entropy, "unknown": both["label"]}
        p = np.mean([p for p, _ in fits], axis=0)
        layers = [layer for _, chosen in fits for layer in chosen]
        accuracy = float((~both["wrong"]).mean())
        figures[judge] = {"rows": measures.deciles(p, columns), "accuracy": accuracy, "layers": sorted(set(layers))}
    return figures


def matrix_figures(
    found: Mapping[str, Found], states: Mapping[str, Mapping[str, measures.States]], two: Sequence[str]
) -> dict[str, Any]:
    """AUROC of linear probes fitted on one set and tested on each, by position, judge and truth."""
    figures: dict[str, Any] = {}
    for position, by_set in states.items():
        some = {name: {layer: by_set[name][layer] for layer in POSITIONS[position]} for name in by_set}
        for judge in two:
            for truth in ("label", "wrong"):
                values = {name: truths(found, [name], judge)[truth] for name in found}
                seeds = [measures.matrix(some, values, seed, **KINDS["linear"]) for seed in SEEDS]
                figures.setdefault(position, {}).setdefault(judge, {})[truth] = {
                    a: {b: measures.over_seeds([each[a][b] for each in seeds]) for b in found} for a in found
                }
        print(f"  matrix: {position}", flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=400)
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
    judged = {name: {judge: study.judged(name, samples[name], judge) for judge in study.judges} for name in SETS}
    found = {name: Found(samples[name], judged[name]) for name in SETS}
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
    inputs = {"judged": of_judges, "states": of_states, "code": code("probed"), "here": file_digest(Path(__file__))}
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "overview": lambda: overview(found, list(study.judges)),
        "entropy": lambda: entropy_figures(found, list(study.judges)),
        "scores": lambda: score_figures(found, last, study.two),
        "layers": lambda: layer_figures(found, last, study.two),
        "deciles": lambda: decile_figures(found, last, study.two),
        "matrix": lambda: matrix_figures(found, hidden, study.two),
    }
    figures = {}
    for name, make in parts.items():
        step = study.step(f"figures/{name}", inputs, lambda work, make=make: {"figures": json.loads(json.dumps(make()))})
        figures[name] = json.loads(json.dumps(step.facts["figures"]))
    print(f"in all: {sum(study.seconds.values()) / 60:.1f} minutes of steps")
    write_page(args.docs, figures, study.two, study.seconds, study.sampling)


if __name__ == "__main__":
    main()
