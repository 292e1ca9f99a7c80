"""Judge ``cross_encoder``: any classifier of pairs with one label or two; and what every judge of the registry has."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from ka2l_ray.config import EntropyConfig, EvaluationConfig, JudgeName
from ka2l_ray.config_files import load_config
from ka2l_ray.errors import UserError
from ka2l_ray.semantics.clustering import DIFFERENT, SAME, cluster_answers
from ka2l_ray.semantics.judges import judge_gpus, judge_place, make_judge, verdict_identity
from ka2l_ray.semantics.judges.cross_encoder import CrossEncoderJudge
from ka2l_ray.world import bundled_path

QUESTIONS = ["Who was it?", "", "What is the occupation of Quegrerk?"]
PAIRS = [("physician", "medical doctor"), ("baker", "lawyer"), ("a much longer answer of a baker", "b")]


def tiny_cross_encoder(folder: Path, labels: int = 1, **config: Any) -> str:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(bundled_path("bundled:judge"))
    made = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, num_labels=labels, initializer_range=0.5, **config,
    )  # fmt: skip
    BertForSequenceClassification(made).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def by_hand(path: str, same: int | None) -> list[float]:
    """P(the same) of every pair, put to the model alone in both orders."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = BertForSequenceClassification.from_pretrained(path).eval()
    found = []
    for question, (a, b) in zip(QUESTIONS, PAIRS, strict=True):
        both = []
        for first, second in ((a, b), (b, a)):
            encoded = tokenizer(f"{question} {first}".strip(), f"{question} {second}".strip(), return_tensors="pt")
            with torch.inference_mode():
                logits = model(**encoded).logits[0]
            both.append(float(logits[0].sigmoid() if same is None else logits.softmax(-1)[same]))
        found.append(sum(both) / 2)
    return found


@pytest.mark.parametrize(
    ("labels", "names", "same"),
    [(1, {}, None), (2, {}, 1), (2, {0: "equivalent", 1: "not_equivalent"}, 0), (2, {0: "DIFFERENT", 1: "SAME"}, 1)],
)
def test_the_probability_is_the_mean_of_both_orders(labels: int, names: dict[int, str], same: int | None, tmp_path: Path) -> None:
    path = tiny_cross_encoder(tmp_path, labels, **({"id2label": names} if names else {}))
    wanted = by_hand(path, same)
    judge = CrossEncoderJudge(path, batch_tokens=32)
    found, truncated = judge.probabilities(QUESTIONS, PAIRS)
    assert found == pytest.approx(wanted, abs=1e-5)
    assert judge.probabilities(QUESTIONS, [(b, a) for a, b in PAIRS])[0] == pytest.approx(found, abs=1e-5)
    assert not truncated
    assert max(found) - min(found) > 0.01
    between = (sorted(found)[0] + sorted(found)[1]) / 2
    verdicts = CrossEncoderJudge(path, threshold=between).verdicts(QUESTIONS, PAIRS)
    assert [verdict == SAME for verdict in verdicts] == [p >= between for p in found]


def test_the_threshold_of_the_settings_goes_before_the_model_s_own(tmp_path: Path) -> None:
    path = tiny_cross_encoder(tmp_path / "told", same_answer_threshold=0.73)
    assert CrossEncoderJudge(path).threshold == 0.73
    settings = EntropyConfig(judge="cross_encoder", cross_encoder=path)
    assert verdict_identity(settings)["cross_encoder_threshold"] == 0.73
    given = settings.model_copy(update={"cross_encoder_threshold": 0.2})
    assert verdict_identity(given)["cross_encoder_threshold"] == 0.2
    assert make_judge(given).threshold == 0.2  # type: ignore[attr-defined]
    assert CrossEncoderJudge(tiny_cross_encoder(tmp_path / "untold")).threshold == 0.5


def test_equal_answers_are_the_same_for_no_call_and_long_texts_lose_their_beginning(tmp_path: Path) -> None:
    judge = CrossEncoderJudge(tiny_cross_encoder(tmp_path), threshold=0.999)
    assert judge.verdicts(["q?"], [("The Baker!", "baker")]) == [SAME]
    assert judge.verdicts(["q?"], [("baker", "lawyer")]) == [DIFFERENT]
    (cut,) = judge.verdicts(["q? " * 100], [("baker", "lawyer")])
    assert cut.truncated
    (found,) = cluster_answers(["q?"], [["baker", "Baker.", "lawyer"]], judge)
    assert found.cluster_ids == [0, 0, 1]


@pytest.mark.parametrize(
    ("labels", "names", "said"),
    [
        (3, {0: "contradiction", 1: "neutral", 2: "entailment"}, "an NLI model is the judge nli"),
        (2, {0: "good", 1: "bad"}, "of which one is 'same' or 'equivalent'"),
        (2, {0: "same", 1: "same_but_other"}, "of which one is 'same' or 'equivalent'"),
    ],
)
def test_labels_that_do_not_tell_are_refused(labels: int, names: dict[int, str], said: str, tmp_path: Path) -> None:
    path = tiny_cross_encoder(tmp_path, labels, id2label=names)
    with pytest.raises(UserError, match=said):
        verdict_identity(EntropyConfig(judge="cross_encoder", cross_encoder=path))


@pytest.mark.parametrize("section", ["entropy", "evaluation"])
def test_one_registry_and_one_block_of_settings_for_meaning_and_correctness(section: str, tmp_path: Path) -> None:
    paths = {
        "nli_model": "bundled:judge",
        "encoder": str(tmp_path),
        "llm_model": "bundled:student",
        "cross_encoder": tiny_cross_encoder(tmp_path),
    }
    given = {"model.path": "bundled:student", "pool.questions": "", **{f"{section}.{key}": path for key, path in paths.items()}}
    places = {}
    for name in get_args(JudgeName):
        settings = getattr(load_config(None, [f"{section}.judge={name}"], given), section)
        if name != "embedding":  # a classifier has no pooling
            assert verdict_identity(settings)["judge"] == name
            judge = make_judge(settings, directed=section == "evaluation")
            assert len(judge.verdicts(["q?"], [("baker", "lawyer")])) == 1
        places[name] = (judge_place(settings), judge_gpus(settings, 1.0))
    assert places["exact"] == places["contains"] == ("here", 0.0)
    assert {places[name] for name in ("nli", "embedding", "cross_encoder", "llm")} == {("gpu", 1.0)}
    served = EvaluationConfig(judge="llm", llm_model="m", endpoint="http://127.0.0.1:1/v1")
    assert (judge_place(served), judge_gpus(served, 1.0)) == ("worker", 0.0)


@pytest.mark.parametrize("section", ["entropy", "evaluation"])
def test_a_judge_that_is_not_whole_or_not_known_is_refused(section: str) -> None:
    given = {"model.path": "bundled:student", "pool.questions": ""}
    for override, said in {
        "judge=cross_encoder": f"{section}: judge cross_encoder needs cross_encoder, the model that judges",
        "judge=llm": f"{section}: judge llm needs llm_model",
        "judge=human": f"{section}.judge: Input should be 'exact', 'contains', 'nli', 'llm', 'embedding' or 'cross_encoder'",
    }.items():
        with pytest.raises(UserError, match=said):
            load_config(None, [f"{section}.{override}"], given)


def test_exact_match_stays_what_is_right_by_default() -> None:
    assert EvaluationConfig().judge == "exact"
    assert EntropyConfig().judge == "nli"
