"""Pairs to train a judge on, and the training itself on a tiny encoder."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

from ka2l_ray.errors import UserError
from ka2l_ray.jobs.commands.cli import app
from ka2l_ray.semantics.judge_training import best_threshold, of_the_best, split
from ka2l_ray.semantics.judges.cross_encoder import THRESHOLD_KEY, CrossEncoderJudge
from ka2l_ray.semantics.training_pairs import Held, TrainingPair, held, judged_pairs, other_number, pool, pool_pairs, reworded

COLOURS = ["red", "green", "blue", "white"]
FORMS = {colour: [colour, f"{colour}ish hue"] for colour in COLOURS}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps({"id": str(i), **row}) + "\n" for i, row in enumerate(rows)))
    return str(path)


def test_no_measured_question_stands_in_training_however_it_is_written(tmp_path: Path) -> None:
    measured = write(
        tmp_path / "measured.jsonl", [{"question": "What is the capital of the state of Texas?"}, {"a": "no question"}]
    )
    out = held([measured])
    assert "what is the capital of the state of texas" in out
    assert "In the state of Texas, what is the capital?" in out
    assert "The capital of the state of Texas is what?" in out
    assert "Who wrote Hamlet?" not in out
    assert "" not in Held()
    rows = [
        {"question": "what IS the capital of the state of Texas", "a": "Austin", "b": "Dallas", "label": 0},
        {"question": "Who wrote Hamlet?", "a": "Shakespeare", "b": "W. Shakespeare", "label": 1},
        {"question": None, "a": "A man sleeps.", "b": "A man rests.", "label": "entailment"},
        {"question": None, "a": "A man sleeps.", "b": "A man runs.", "label": "neutral"},
    ]
    found = list(judged_pairs(write(tmp_path / "pairs.jsonl", rows), out))
    assert [(pair.question, pair.same) for pair in found] == [("Who wrote Hamlet?", True), ("", True), ("", False)]
    asked = [{"question": rows[0]["question"], "answers": ["Austin"]}, {"question": "Who wrote Hamlet?", "answers": ["S"]}]
    assert [each.question for each in pool(write(tmp_path / "pool.jsonl", asked), out)] == ["Who wrote Hamlet?"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"question": 3}, "'question' must be a text or null, this is 3"),
        ({"gold": 3}, "'gold' must be a list of texts"),
        ({"gold": "Paris"}, "'gold' must be a list of texts"),
        ({"gold": [1, 2]}, "'gold' must be a list of texts"),
    ],
)
def test_a_malformed_pair_is_refused_by_file_and_line(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    row = {"question": "Where?", "a": "Paris", "b": "Rome", "label": 0}
    with pytest.raises(UserError, match=f"p.jsonl:2: {words}"):
        list(judged_pairs(write(tmp_path / "p.jsonl", [row, row | changes]), Held()))


def test_an_answer_is_held_against_the_accepted_one_most_like_it(tmp_path: Path) -> None:
    row = {
        "question": "Who?",
        "a": "Lackland",
        "b": "King John of England",
        "label": 1,
        "gold": ["Lackland", "John", "King John"],
    }
    assert [pair.a for pair in judged_pairs(write(tmp_path / "p.jsonl", [row]), Held())] == ["John"]


def embed(texts: Any) -> torch.Tensor:
    """By first letters: "which river" is near "which river"."""
    vectors = torch.zeros(len(texts), 26)
    for i, text in enumerate(texts):
        for letter in text.lower()[:12]:
            vectors[i, ord(letter) % 26] += 1
    return torch.nn.functional.normalize(vectors, dim=-1)


def test_a_pool_gives_aliases_as_the_same_and_near_answers_as_not(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"question": f"Which river flows through town {i}?", "answers": [f"Stream {chr(97 + i)}{chr(97 + i)}x", f"Alias of {i}"]}
        for i in range(26)
    ]
    rows += [{"question": f"When was {i} built?", "answers": [str(1900 + 3 * i)]} for i in range(10)]
    rows += [{"question": "Which colour?", "answers": ["red"], "choices": {"A": "red", "B": "green"}}]
    asked = list(pool(write(tmp_path / "pool.jsonl", rows), Held()))
    accepted = {each.question: set(each.answers) for each in asked}
    found = list(pool_pairs(asked, embed, random.Random(0)))
    assert not any(pair.judged for pair in found)
    aliases = [pair for pair in found if pair.same and "river" in pair.question]
    assert len(aliases) == 26
    assert all({pair.a, pair.b} == accepted[pair.question] for pair in aliases)
    different = [pair for pair in found if not pair.same]
    assert len(different) > len(asked)
    for pair in different:
        assert len({pair.a, pair.b} & accepted[pair.question]) == 1
    assert any({pair.a, pair.b} == {"red", "green"} for pair in different)
    years = [pair for pair in different if pair.question.startswith("When")]
    built = {str(1900 + 3 * i) for i in range(10)}
    assert any(
        pair.a.isdigit() and pair.b.isdigit() and not {pair.a, pair.b} <= built for pair in years
    )  # a number near the true one


def test_a_pool_of_one_question_gives_what_it_can(tmp_path: Path) -> None:
    row = {"question": "Which colour?", "answers": ["red", "crimson"], "choices": {"A": "red", "B": "green"}}
    asked = list(pool(write(tmp_path / "pool.jsonl", [row]), Held()))
    found = list(pool_pairs(asked, embed, random.Random(0)))
    assert sorted(({pair.a, pair.b}, pair.same) for pair in found if pair.same) == [({"red", "crimson"}, True)]
    assert [pair for pair in found if not pair.same and "green" in (pair.a, pair.b)]


def test_a_number_changed_is_another_number() -> None:
    rng = random.Random(0)
    for answer in ("1987", "July 4, 1776", "0", "7", "3.5"):
        for _ in range(50):
            changed = other_number(answer, rng)
            assert changed is None or float(changed.split()[-1]) != float(answer.split()[-1])
    assert other_number("Rome", rng) is None
    assert "Nile" in reworded("Nile", "Which river is the longest?", rng)


def test_the_threshold_calls_most_pairs_as_they_are() -> None:
    p = np.array([0.1, 0.2, 0.6, 0.7, 0.8, 0.9])
    assert best_threshold(p, np.array([False, False, False, True, True, True])) == (pytest.approx(0.65), 1.0)
    assert best_threshold(p, np.zeros(6, bool))[0] > 0.9
    assert best_threshold(p, np.ones(6, bool))[0] < 0.1


def test_no_question_is_both_learned_from_and_used_for_the_threshold() -> None:
    pairs = [TrainingPair(f"Question {i % 100}?", f"a{i}", f"b{i}", bool(i % 2), i % 3 > 0) for i in range(600)]
    pairs += [TrainingPair("", f"a{i}", f"b{i}", True, True) for i in range(50)]
    pairs += [TrainingPair("Equal?", "Rome", "rome.", True, True)]
    learned, held_out = split(pairs, 0)
    assert not {pair.question for pair in learned} & {pair.question for pair in held_out}
    assert all(pair.judged and pair.question for pair in held_out)
    assert 30 < len(held_out) < 120
    assert not any(pair.question == "Equal?" for pair in learned + held_out)


@pytest.fixture(scope="module")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "what", "colour", "is", "thing", "hue", "?", ".", "it", "was", "the", "answer"]
    words += [*COLOURS, *(f"{colour}ish" for colour in COLOURS), *map(str, range(200))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", model_max_length=64
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=66, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.2,
    )  # fmt: skip
    directory = tmp_path_factory.mktemp("encoder")
    BertModel(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


def colour_pairs(n: int, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        a = rng.choice(COLOURS)
        b = a if i % 2 else rng.choice([colour for colour in COLOURS if colour != a])
        forms = (rng.choice(FORMS[a]), rng.choice(FORMS[b]))
        if forms[0] != forms[1]:
            rows.append({"question": f"What colour is thing {rng.randrange(200)}?", "a": forms[0], "b": forms[1], "label": i % 2})
    return rows


def test_a_judge_is_trained_by_one_command_and_judges(tiny_encoder: str, tmp_path: Path) -> None:
    pairs = write(tmp_path / "pairs.jsonl", colour_pairs(2500, 0))
    out = str(tmp_path / "judge")
    command = ["judge-train", "--pairs", pairs, "--encoder", tiny_encoder, "--out", out, "--epochs", "8"]
    result = CliRunner().invoke(app, [*command, "--learning-rate", "0.001"])
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "judge/training.json").read_text())
    assert told["validation_accuracy"] > 0.9
    assert json.loads((tmp_path / "judge/config.json").read_text())[THRESHOLD_KEY] == told["threshold"]
    assert f"threshold {told['threshold']:.3f}" in (tmp_path / "judge/README.md").read_text()
    rows = colour_pairs(400, 1)
    judge = CrossEncoderJudge(out)
    verdicts = judge.verdicts([row["question"] for row in rows], [(row["a"], row["b"]) for row in rows])
    assert np.mean([(verdict.label == 2) == (row["label"] == 1) for verdict, row in zip(verdicts, rows, strict=True)]) > 0.9
    measured = write(tmp_path / "measured.jsonl", rows)
    result = CliRunner().invoke(app, ["judge-pairs", measured, "--judge", "cross_encoder", "-o", f"entropy.cross_encoder={out}"])
    assert json.loads(result.stdout)["accuracy"] > 0.9


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"--pairs": "absent.jsonl"}, "absent.jsonl: no such file"),
        ({"--encoder": "absent"}, "no sentence encoder there"),
        ({"--out": "."}, "is there already"),
        ({"--without": "PAIRS"}, "judged pairs to choose the threshold on"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_before_anything_is_paid_for(
    tiny_encoder: str, tmp_path: Path, change: dict[str, str], told: str
) -> None:
    pairs = write(tmp_path / "pairs.jsonl", colour_pairs(200, 0))
    options = {"--pairs": pairs, "--encoder": tiny_encoder, "--out": str(tmp_path / "judge"), **change}
    arguments = [part if part != "PAIRS" else pairs for option in options.items() for part in option]
    result = CliRunner().invoke(app, ["judge-train", *arguments])
    assert result.exit_code == 2, result.output
    assert told in result.stderr
    assert not (tmp_path / "judge").exists()


def test_a_judged_answer_has_the_chance_of_its_best_accepted_one() -> None:
    class Likes:
        def probabilities(self, questions: Any, pairs: Any) -> tuple[list[float], set[int]]:
            return [{"Thames": 0.1, "the Isis": 0.7, "Rome": 0.4}[a] for a, _ in pairs], set()

    judged = [
        TrainingPair("Which river?", "Thames", "Isis", True, True, ("Thames", "the Isis")),
        TrainingPair("Which town?", "Rome", "Bern", False, True),
    ]
    assert of_the_best(Likes(), judged).tolist() == [0.7, 0.4]  # type: ignore[arg-type]
