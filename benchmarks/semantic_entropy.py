"""Semantic entropy against the literal reference algorithm: calls of the judge, then seconds, on real models' answers.

    python benchmarks/semantic_entropy.py [--questions 16] [--repeats 3]

Answers are those of ../shared/data/gen_*_10x.jsonl. Calls are counted under a fixed relation of answers (``oracle``): one entails
another where it holds three fifths of its words after normalisation, is neutral where it holds any, else contradicts. Seconds are
of one process: every way runs a DeBERTa-v2 of the shape of deberta-v3-small with random weights on what it asks, and goes by the
oracle's verdicts, so that clusters are realistic.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    PreTrainedTokenizerFast,
)

from ka2l_ray.normalization import normalize_answer
from ka2l_ray.semantics.clustering import Counts, Pair, Verdict, cluster_answers, joined
from ka2l_ray.semantics.entropy import labels, semantic_entropy
from ka2l_ray.semantics.judges.nli import NLIJudge

SHARED = Path(__file__).resolve().parents[2] / "shared/data"
FILES = ("gen_triviaqa_10x", "gen_sciq_10x", "gen_math_10x")


@lru_cache(maxsize=100_000)
def words(answer: str) -> frozenset[str]:
    return frozenset(normalize_answer(answer).split())


def oracle(premise: str, hypothesis: str) -> int:
    """2 entailment, 1 neutral, 0 contradiction: neither symmetric nor transitive."""
    a, b = words(premise), words(hypothesis)
    if a == b:
        return 2
    held = len(a & b) / max(1, len(b))
    return 2 if held >= 0.6 else 1 if held else 0


class OracleJudge:
    """The oracle, asked for answers apart from their question."""

    symmetric = False

    def verdicts(self, questions: Sequence[str], pairs: Sequence[Pair]) -> list[Verdict]:
        return [Verdict(oracle(a, b)) for a, b in pairs]


def reference(answers: Sequence[str], ask: Callable[[list[Pair]], None], *, at_once: bool) -> list[int]:
    """The published algorithm, strict: every founder against all later answers, both directions, a later founder overwrites.

    Args:
        ask: told what is put to the model, a pair at a time or (``at_once``) all of a founder's.
    """
    ids = [-1] * len(answers)
    founded = 0
    for i, answer in enumerate(answers):
        if ids[i] != -1:
            continue
        ids[i] = founded
        pairs = [pair for later in answers[i + 1 :] for pair in ((answer, later), (later, answer))]
        for batch in [pairs] if at_once else [[pair] for pair in pairs]:
            if batch:
                ask(batch)
        for j in range(i + 1, len(answers)):
            if oracle(answer, answers[j]) == oracle(answers[j], answer) == 2:
                ids[j] = founded
        founded += 1
    return ids


def read(name: str) -> tuple[list[str], list[list[str]]]:
    with (SHARED / f"{name}.jsonl").open() as lines:
        rows = [json.loads(line) for line in lines]
    return [row["question"] for row in rows], [[text.strip() for text in row["generations"]] for row in rows]


def count_calls() -> None:
    print("| answers | questions | reference, calls a question | clusters | label only | equal texts asked too | labels differ |")
    print("|---|---|---|---|---|---|---|")
    for name in FILES:
        questions, answers = read(name)
        asked = [0]

        def ask(batch: list[Pair], asked: list[int] = asked) -> None:
            asked[0] += len(batch)

        literal = [reference(row, ask, at_once=True) for row in answers]
        costs, differ = [], 0
        for how in ({}, {"decided_at": 0.5}, {"equal_texts_equivalent": False}):
            counts = Counts()
            found = cluster_answers(questions, answers, OracleJudge(), **how)  # type: ignore[arg-type]
            for each in found:
                counts += each.counts
            costs.append(counts.judge_calls / asked[0])
            if "decided_at" not in how:
                assert [each.cluster_ids for each in found] == literal
            else:
                decided = labels(np.array([semantic_entropy(each.cluster_ids) for each in found]), 0.5)
                differ = int((decided != labels(np.array([semantic_entropy(ids) for ids in literal]), 0.5)).sum())
            assert how or counts.reference_calls == asked[0]
        print(
            f"| {name} | {len(questions)} | {asked[0] / len(questions):.1f} | {costs[0]:.3f} | {costs[1]:.3f} | {costs[2]:.3f} "
            f"| {differ} |",
            flush=True,
        )


def make_model(folder: str, texts: list[str]) -> None:
    """Random weights in the shape of deberta-v3-small; its tokenizer is trained on the texts, for realistic lengths."""
    raw = Tokenizer(models.BPE(unk_token="[UNK]"))
    raw.normalizer = normalizers.NFKC()
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=16000, special_tokens=["[PAD]", "[CLS]", "[SEP]", "[UNK]"]))
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=512, **special).save_pretrained(folder)
    torch.manual_seed(0)
    config = DebertaV2Config(
        vocab_size=raw.get_vocab_size(),
        hidden_size=768,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=3072,
        relative_attention=True,
        position_buckets=256,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        type_vocab_size=0,
        pad_token_id=0,
        id2label={0: "contradiction", 1: "neutral", 2: "entailment"},
        label2id={"contradiction": 0, "neutral": 1, "entailment": 2},
    )
    DebertaV2ForSequenceClassification(config).save_pretrained(folder)


class Overruled(NLIJudge):
    """The model runs on every pair; the verdicts are the oracle's."""

    def verdicts(self, questions: Sequence[str], pairs: Sequence[Pair]) -> list[Verdict]:
        self.entailments(joined(questions, pairs))
        return [Verdict(oracle(a, b)) for a, b in pairs]


class Plain:
    """The same weights by transformers alone; what it is asked is padded to the longest."""

    def __init__(self, judge: NLIJudge, folder: str) -> None:
        self.tokenizer = judge.texts.tokenizer
        self.model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        self.calls = self.real = self.padded = 0

    @torch.inference_mode()
    def ask(self, question: str, batch: list[Pair]) -> None:
        texts = joined([question] * len(batch), batch)
        encoded = self.tokenizer([a for a, _ in texts], [b for _, b in texts], padding=True, truncation=True, return_tensors="pt")
        self.model(**encoded)
        self.calls += len(batch)
        self.real += int(encoded["attention_mask"].sum())
        self.padded += encoded["input_ids"].numel()


def measure_speed(n: int, repeats: int) -> None:
    questions, answers = read(FILES[0])
    texts = [f"{q} {a}" for q, row in zip(questions, answers, strict=True) for a in set(row)]
    with tempfile.TemporaryDirectory() as folder:
        make_model(folder, texts)
        judge = Overruled(folder, batch_tokens=2048)
        plain = Plain(judge, folder)
        step = len(questions) // n
        questions, answers = questions[::step][:n], answers[::step][:n]

        def literal(at_once: bool) -> list[list[int]]:
            return [
                reference(row, lambda batch, q=question: plain.ask(q, batch), at_once=at_once)  # type: ignore[misc]
                for question, row in zip(questions, answers, strict=True)
            ]

        def ours(**how: Any) -> list[list[int]]:
            return [each.cluster_ids for each in cluster_answers(questions, answers, judge, **how)]

        ways: dict[str, Callable[[], list[list[int]]]] = {
            "reference, a pair at a time": lambda: literal(False),
            "reference, a founder's pairs at once": lambda: literal(True),
            "ours": ours,
            "ours, label only": lambda: ours(decided_at=0.5),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        tokens: dict[str, tuple[int, int]] = {}
        found = {}
        for _ in range(repeats):
            for name, way in ways.items():
                plain.real = plain.padded = judge.real_tokens = judge.padded_tokens = 0
                start = time.perf_counter()
                found[name] = way()
                seconds[name].append(time.perf_counter() - start)
                tokens[name] = (plain.real + judge.real_tokens, plain.padded + judge.padded_tokens)
        assert found["ours"] == found["reference, a pair at a time"] == found["reference, a founder's pairs at once"]
    print(f"\n{n} questions of {FILES[0]}, one process, {torch.get_num_threads()} threads, medians of {repeats}:\n")
    print("| way | seconds a question | ours is faster by | real tokens a question | padded / real |\n|---|---|---|---|---|")
    base = statistics.median(seconds["ours"])
    for name in ways:
        mine = statistics.median(seconds[name])
        real, padded = tokens[name]
        print(f"| {name} | {mine / n:.3f} | {mine / base:.2f} | {real / n:.0f} | {padded / real:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    if not SHARED.is_dir():
        raise SystemExit(f"the public answers are not there ({SHARED})")
    count_calls()
    measure_speed(args.questions, args.repeats)


if __name__ == "__main__":
    main()
