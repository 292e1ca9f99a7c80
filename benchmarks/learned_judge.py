"""A judge of "the same answer to this question", fine-tuned from a sentence encoder, beside the judges that are not.

    make models
    python benchmarks/learned_judge.py train       # a quarter of an hour on two cores
    python benchmarks/learned_judge.py measure     # as long again; goes on where it was, and prints the tables

Both write to outputs/learned_judge (``--out``). ``train`` writes what it learns from as files and calls ``ka2l judge-train`` on
them. No question of a measured file stands in training, nor one of nearly its words, whatever the file it comes from
(gen_evouna_tq and gen_triviaqa_10x are of TriviaQA, as the pool is); of the judged pairs a tenth of the questions is kept for
measuring. Reads ../shared/data.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ka2l_ray.normalization import normalize_question
from ka2l_ray.reading import READING
from ka2l_ray.seeds import derive_seed
from ka2l_ray.semantics.clustering import Judge, cluster_answers
from ka2l_ray.semantics.correctness import judge_answers
from ka2l_ray.semantics.entropy import semantic_entropy
from ka2l_ray.semantics.judge_training import best_threshold
from ka2l_ray.semantics.judges.contains import ContainsJudge
from ka2l_ray.semantics.judges.cross_encoder import CrossEncoderJudge
from ka2l_ray.semantics.judges.embedding import EmbeddingJudge
from ka2l_ray.semantics.judges.exact import ExactJudge
from ka2l_ray.semantics.judges.nli import NLIJudge
from ka2l_ray.semantics.pairs import judge_pairs
from ka2l_ray.uncertainty.ranking import auroc

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared/data"
ENCODER = ROOT / "models/all-minilm-l6-v2"
MEASURED = ("gen_triviaqa_10x", "gen_sciq_10x", "gen_evouna_tq", "gen_evouna_nq", "pairs_bamboogle_llm_equivalence")
SENTENCES = {"pairs_snli": 400, "pairs_sick": 400, "pairs_paws_qqp": 200}
POOLS = {"triviaqa": 1000, "squad_open": 200, "sciq": 300, "popqa": 150, "nq_open": 100, "openbookqa": 50}
"""Questions of each, those with several answers first: they hold the same in other words, where a pool of single answers teaches
that what is not contained is not the same. (Of TriviaQA and SciQ those that are measured drop out.)"""
GRADED = 700
"""Wrong answers of gen_simpleqa_15models; of right ones there are 690."""
JUDGED_TIMES = 2
"""How often judged answers stand in training: they are what the judge will meet."""
TUNED_ON = 600
"""Pairs of its training that the embedding judge's cosine is chosen on: its own default is for paraphrases."""
CORRECTNESS = {"gen_triviaqa_10x": 600, "gen_sciq_10x": 1200, "gen_evouna_tq": 30, "gen_evouna_nq": 30}
"""Rows of each file, of which the verdict of an LLM (of people, on five answers a row: evouna) is known."""
MEANING = {"gen_triviaqa_10x": 300, "gen_sciq_10x": 300}
"""Rows of which semantic entropy is computed."""

Row = dict[str, Any]


def read(name: str) -> list[Row]:
    with (SHARED / f"{name}.jsonl").open() as lines:
        return [json.loads(line) for line in lines]


def write(path: Path, rows: Iterable[Row]) -> str:
    path.write_text("".join(json.dumps({"id": str(i), **row}, ensure_ascii=False) + "\n" for i, row in enumerate(rows)))
    return str(path)


def kept_for_measuring(row: Row) -> bool:
    """A tenth of the judged pairs, by question (by the pair where there is none)."""
    about = normalize_question(row["question"] or f"{row['a']} {row['b']}")
    return derive_seed("learned judge", about) < 2**64 // 10


def judged_answers() -> Iterator[tuple[str, list[Row]]]:
    """Answers of models that somebody judged, as pairs with an accepted answer."""
    multihop = [row for row in read("gen_multihop_7x") if row.get("direct_correct_llm_verdict") is not None]
    yield "multihop", [pair(row, row["direct_answer"], row["direct_correct_llm_verdict"]) for row in multihop]
    graded = [
        pair(row, text, grade == "correct")
        for row in read("gen_simpleqa_15models")
        for text, grade in zip(row["generations"], row["grade"], strict=True)
        if grade != "not_attempted"
    ]
    wrong = [row for row in graded if not row["label"]]
    yield "simpleqa", [row for row in graded if row["label"]] + random.Random(0).sample(wrong, GRADED)


def pair(row: Row, answer: str, right: bool) -> Row:
    return {"question": row["question"], "a": row["answers"][0], "b": answer, "label": int(right), "gold": row["answers"]}


def train(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "ka2l_ray", "judge-train", *training_files(out)], check=True)
    print(f"{time.monotonic() - started:.0f} s")


def training_files(out: Path) -> list[str]:
    """Writes them; the arguments of ``ka2l judge-train``."""
    rng = random.Random(0)
    arguments: list[str] = []
    kept: list[Row] = []
    for name in ("pairs_qa_equivalence", *SENTENCES):
        rows = read(name)
        kept += [{**row, "file": row.get("source", name)} for row in rows if kept_for_measuring(row)]
        learned = [row for row in rows if not kept_for_measuring(row)]
        wanted, times = (SENTENCES[name], 1) if name in SENTENCES else (len(learned), JUDGED_TIMES)
        arguments += ["--pairs", write(out / f"{name}.jsonl", rng.sample(learned, min(wanted, len(learned))))] * times
    for name, rows in judged_answers():
        arguments += ["--pairs", write(out / f"{name}.jsonl", rows)] * JUDGED_TIMES
    for name, questions in POOLS.items():
        several_first = sorted(read(name), key=lambda row: (len(row["answers"]) == 1, rng.random()))
        arguments += ["--pool", write(out / f"pool_{name}.jsonl", several_first[:questions])]
    for name in MEASURED:
        arguments += ["--without", str(SHARED / f"{name}.jsonl")]
    arguments += ["--without", write(out / "kept.jsonl", kept), "--pool-questions", str(sum(POOLS.values()))]
    return [*arguments, "--encoder", str(ENCODER), "--out", str(out / "judge")]


def judges(out: Path) -> dict[str, Callable[[bool], Judge]]:
    """By name: made directed (of correctness) or not (of meaning)."""

    def tuned(directed: bool) -> Judge:
        rows = [json.loads(line) for line in (out / "pairs_qa_equivalence.jsonl").read_text().splitlines()[:TUNED_ON]]
        encoder = EmbeddingJudge(str(ENCODER), threshold=0.0)
        sides = [encoder.encoder.encode([f"{row['question']} {row[side]}" for row in rows])[0] for side in ("a", "b")]
        cosines = (sides[0] * sides[1]).sum(-1).numpy()
        encoder.threshold = best_threshold(cosines, np.array([row["label"] == 1 for row in rows]))[0]
        return encoder

    return {
        "exact": lambda directed: ExactJudge(),
        "contains": lambda directed: ContainsJudge(directed=directed),
        "embedding, cosine 0.95": lambda directed: EmbeddingJudge(str(ENCODER), threshold=0.95),
        "embedding, cosine tuned": tuned,
        "bundled": lambda directed: NLIJudge("bundled:judge"),
        "learned": lambda directed: CrossEncoderJudge(str(out / "judge")),
    }


def correctness(name: str, judge: Judge) -> Row:
    """Share of answers on which the judge says what the file does, and what it said of each."""
    rows = read(name)[: CORRECTNESS[name]]
    if name.startswith("gen_evouna"):
        asked = [(row, text, right) for row in rows for text, right in zip(row["generations"], row["correct"], strict=True)]
    else:
        asked = [(row, row["greedy"], row["greedy_correct_llm_verdict"]) for row in rows]
    found = judge_answers(
        [row["question"] for row, _, _ in asked],
        [text for _, text, _ in asked],
        [row["answers"] for row, _, _ in asked],
        judge,
        READING,
    )
    said = [each.correct for each in found]
    truth = [bool(right) for _, _, right in asked]
    return {"agreement": float(np.mean(np.array(said) == truth)), "answers": len(said), "said": said, "truth": truth}


def meaning(name: str, judge: Judge) -> Row:
    """AUROC of semantic entropy against a wrong greedy answer, mean over models."""
    rows = read(name)[: MEANING[name]]
    answers = [[text.strip() for text in row["generations"]] for row in rows]
    found = cluster_answers([row["question"] for row in rows], answers, judge)
    entropies = np.array([semantic_entropy(each.cluster_ids) for each in found])
    wrong = np.array([not row["greedy_correct_llm_verdict"] for row in rows])
    models = np.array([row["model"] for row in rows])
    each = [auroc(wrong[models == model], entropies[models == model]) for model in sorted(set(models))]
    return {
        "auroc": float(np.mean(each)),
        "questions": len(rows),
        "clusters": float(np.mean([max(x.cluster_ids) + 1 for x in found])),
    }


def held_out_pairs(out: Path, file: str, judge: Judge) -> Row:
    rows = [json.loads(line) for line in (out / "kept.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["file"] == file]
    if file.startswith("pairs_bamboogle"):
        rows = read(file)
    found = judge_pairs(judge, [{**row, "label": int(row["label"] in (1, "entailment"))} for row in rows])
    return {"agreement": found.accuracy, "pairs": found.pairs, "same": found.equivalent}


def measure(out: Path, only: list[str]) -> None:
    """Each figure once, kept in measured.json."""
    kept = out / "measured.json"
    figures: dict[str, Row] = json.loads(kept.read_text()) if kept.is_file() else {}
    files = [*dict.fromkeys(json.loads(line)["file"] for line in (out / "kept.jsonl").read_text().splitlines()), MEASURED[-1]]
    for judge_name, make in judges(out).items():
        if only and judge_name not in only:
            continue
        wanted: dict[str, Callable[[Judge], Row]] = {}
        wanted |= {f"correctness {name}": lambda judge, name=name: correctness(name, judge) for name in CORRECTNESS}  # type: ignore[misc]
        wanted |= {f"meaning {name}": lambda judge, name=name: meaning(name, judge) for name in MEANING}  # type: ignore[misc]
        wanted |= {f"pairs {file}": lambda judge, file=file: held_out_pairs(out, file, judge) for file in files}  # type: ignore[misc]
        loaded: dict[bool, Judge] = {}
        for what, compute in wanted.items():
            if f"{what}: {judge_name}" in figures:
                continue
            directed = what.startswith("correctness")
            if directed not in loaded:
                loaded[directed] = make(directed)
            started = time.monotonic()
            figures[f"{what}: {judge_name}"] = {**compute(loaded[directed]), "seconds": time.monotonic() - started}
            kept.write_text(json.dumps(figures))
            print(
                what,
                judge_name,
                {k: v for k, v in figures[f"{what}: {judge_name}"].items() if not isinstance(v, list)},
                flush=True,
            )
    print(tables(figures))


def tables(figures: dict[str, Row]) -> str:
    """As they stand in RESULTS.md."""
    for name in CORRECTNESS:  # either of the two says so
        both = [figures.get(f"correctness {name}: {judge}") for judge in ("contains", "learned")]
        if both[0] and both[1]:
            said = np.array(both[0]["said"]) | np.array(both[1]["said"])
            row = {"agreement": float(np.mean(said == np.array(both[0]["truth"]))), "answers": len(said)}
            figures[f"correctness {name}: contains or learned"] = row
    text = []
    for kind, shown in (("correctness", "agreement"), ("meaning", "auroc"), ("pairs", "agreement")):
        columns = list(dict.fromkeys(key.split(": ")[0] for key in figures if key.startswith(kind)))
        rows = list(dict.fromkeys(key.split(": ")[1] for key in figures if key.startswith(kind)))
        sizes = [next(v for k, v in figures.items() if k.startswith(f"{column}: ")) for column in columns]
        heads = [
            f"{column.split(' ', 1)[1]} ({size.get('answers') or size.get('questions') or size.get('pairs')})"
            for column, size in zip(columns, sizes, strict=True)
        ]
        text += ["", f"| {kind} | " + " | ".join(heads) + " |", "|---" * (len(columns) + 1) + "|"]
        for row in rows:
            cells = [figures.get(f"{column}: {row}") for column in columns]
            text.append(f"| {row} | " + " | ".join(f"{cell[shown]:.3f}" if cell else "" for cell in cells) + " |")
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "measure"])
    parser.add_argument("--out", type=Path, default=ROOT / "outputs/learned_judge")
    parser.add_argument("--judges", nargs="*", default=[], help="measure these only")
    arguments = parser.parse_args()
    if not SHARED.is_dir():
        raise SystemExit(f"the public answers are not there ({SHARED})")
    if arguments.what == "train":
        train(arguments.out)
    else:
        measure(arguments.out, arguments.judges)


if __name__ == "__main__":
    main()
