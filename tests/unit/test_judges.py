"""Judges of equivalence: the bundled one against the world's truth, label order, strict and lenient from the definition."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer, DebertaV2ForSequenceClassification

from ka2l_ray.errors import UserError
from ka2l_ray.semantics.clustering import cluster
from ka2l_ray.semantics.judges import ExactJudge, NLIJudge, Verdict, label_verdicts, load_nli_config, make_judge
from ka2l_ray.world import bundled_path
from ka2l_ray.world.facts import World
from ka2l_ray.world.train_judge import Example, PairSource

QUESTION = "What is the occupation of Quegrerk?"
VERDICTS: list[Verdict] = ["entailment", "neutral", "contradiction"]


def held_out_pairs(world: World, n: int, seed: int) -> list[Example]:
    source = PairSource(world, random.Random(seed), held_out=True)
    return [source.draw() for _ in range(n)]


def relabelled(names: list[str], rows: list[int], directory: Path) -> str:
    """The bundled judge with its classifier's rows in another order, under the names given."""
    path = bundled_path("bundled:judge")
    model = DebertaV2ForSequenceClassification.from_pretrained(path, dtype=torch.float32)
    model.classifier.weight = nn.Parameter(model.classifier.weight[rows])
    model.classifier.bias = nn.Parameter(model.classifier.bias[rows])
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: i for i, name in enumerate(names)}
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(path).save_pretrained(directory)
    return str(directory)


def test_bundled_judge_agrees_with_the_world_on_held_out_pairs(judge: NLIJudge, world: World) -> None:
    pairs = held_out_pairs(world, 1500, seed=1)
    verdicts = judge.verdicts([p.premise for p in pairs], [p.hypothesis for p in pairs])
    right = sum(verdict == pair.label for verdict, pair in zip(verdicts, pairs, strict=True)) / len(pairs)
    assert right >= 0.98


def test_bundled_judge_on_a_few_answers(judge: NLIJudge) -> None:
    pairs = [("physician", "medical doctor"), ("physician", "lawyer"), ("physician", "a job"), ("attorney", "lawyer")]
    equivalent, calls = judge.equivalent([QUESTION] * 4, pairs)
    assert equivalent == [True, False, False, True]
    assert calls == [2, 1, 2, 2]  # a contradiction forward needs no reverse; "a job" is entailed and entails nothing back


def test_equivalence_holds_in_both_orders(judge: NLIJudge, world: World) -> None:
    forms = [form for value in world.values["occupation"][:6] for form in value.forms]
    pairs = [(a, b) for a, b in product(forms, forms) if a != b]
    forward, _ = judge.equivalent([QUESTION] * len(pairs), pairs)
    backward, _ = judge.equivalent([QUESTION] * len(pairs), [(b, a) for a, b in pairs])
    assert forward == backward
    same = [any({a, b} == set(value.forms) for value in world.values["occupation"]) for a, b in pairs]
    assert sum(x == y for x, y in zip(forward, same, strict=True)) / len(pairs) > 0.95


def test_bundled_judge_clusters_by_meaning(judge: NLIJudge) -> None:
    answers = ["physician", "medical doctor", "lawyer", "attorney", "physician", "baker"]
    (result,) = cluster([QUESTION], [answers], judge, "founder_last")
    assert result.cluster_ids == [0, 0, 1, 1, 0, 2]
    assert result.judge_calls < 2 * 6 * 5


def test_a_verdict_does_not_depend_on_its_batch(judge: NLIJudge, world: World) -> None:
    """Each pair put to the model by hand, alone, as a proper sentence pair."""
    pairs = held_out_pairs(world, 60, seed=3)
    alone = []
    for pair in pairs:
        encoded = judge.tokenizer(pair.premise, pair.hypothesis, return_tensors="pt")
        assert encoded["input_ids"][0].tolist().count(judge.tokenizer.sep_token_id) == 2
        with torch.inference_mode():
            alone.append(judge.model.config.id2label[int(judge.model(**encoded.to(judge.device)).logits.argmax())])
    assert set(alone) == set(VERDICTS)
    assert judge.verdicts([p.premise for p in pairs], [p.hypothesis for p in pairs]) == alone


def test_label_order_is_read_from_the_model(world: World, tmp_path: Path) -> None:
    # The bundled judge's rows are contradiction, neutral, entailment.
    a = NLIJudge(relabelled(["entailment", "contradiction", "neutral"], [2, 0, 1], tmp_path / "a"))
    b = NLIJudge(relabelled(["NEUTRAL", "ENTAILMENT", "CONTRADICTION"], [1, 2, 0], tmp_path / "b"))
    pairs = held_out_pairs(world, 120, seed=5)
    premises, hypotheses = [p.premise for p in pairs], [p.hypothesis for p in pairs]
    verdicts = a.verdicts(premises, hypotheses)
    assert set(verdicts) == set(VERDICTS)
    assert b.verdicts(premises, hypotheses) == verdicts
    assert sum(v == p.label for v, p in zip(verdicts, pairs, strict=True)) > 110


def test_labels_without_names_are_refused(tmp_path: Path) -> None:
    path = relabelled(["LABEL_0", "LABEL_1", "LABEL_2"], [0, 1, 2], tmp_path)
    with pytest.raises(UserError, match=r"LABEL_0.*needs entailment, neutral, contradiction"):
        NLIJudge(path)


def test_two_labels_are_too_few(tmp_path: Path) -> None:
    path = relabelled(["entailment", "not_entailment"], [2, 0], tmp_path)
    with pytest.raises(UserError, match="not_entailment"):
        label_verdicts(load_nli_config(path), path)


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no NLI model there"):
        NLIJudge(str(tmp_path))
    with pytest.raises(UserError, match="no NLI model there"):
        NLIJudge(str(tmp_path / "nowhere"))


class TableJudge(NLIJudge):
    """Verdicts from a table in place of a model."""

    def __init__(self, equivalence, table: dict[tuple[str, str], Verdict]) -> None:
        self.equivalence, self.table = equivalence, table
        self.asked: list[tuple[str, str]] = []

    def verdicts(self, premises: Sequence[str], hypotheses: Sequence[str]) -> list[Verdict]:
        self.asked += zip(premises, hypotheses, strict=True)
        return [self.table[pair] for pair in zip(premises, hypotheses, strict=True)]


@pytest.mark.parametrize(("forward", "backward"), product(VERDICTS, VERDICTS))
def test_strict_and_lenient_by_definition(forward: Verdict, backward: Verdict) -> None:
    table = {("q? a", "q? b"): forward, ("q? b", "q? a"): backward}
    strict = forward == backward == "entailment"
    lenient = "contradiction" not in (forward, backward) and (forward, backward) != ("neutral", "neutral")
    for equivalence, expected in (("strict", strict), ("lenient", lenient)):
        judge = TableJudge(equivalence, table)
        equivalent, calls = judge.equivalent(["q?"], [("a", "b")])
        assert equivalent == [expected]
        assert calls == [len(judge.asked)]
        assert judge.asked[0] == ("q? a", "q? b")


def test_the_reverse_direction_is_asked_only_where_the_forward_one_leaves_it_open() -> None:
    table: dict[tuple[str, str], Verdict] = {
        ("q? a", "q? b"): "neutral",
        ("q? b", "q? a"): "entailment",
        ("q? a", "q? c"): "contradiction",
        ("q? c", "q? a"): "entailment",
        ("q? a", "q? d"): "entailment",
        ("q? d", "q? a"): "entailment",
    }
    pairs = [("a", "b"), ("a", "c"), ("a", "d")]
    assert TableJudge("strict", table).equivalent(["q?"] * 3, pairs) == ([False, False, True], [1, 1, 2])
    assert TableJudge("lenient", table).equivalent(["q?"] * 3, pairs) == ([True, False, True], [2, 1, 2])


def test_exact_judge_compares_after_squad_normalisation() -> None:
    pairs = [("The Eiffel Tower!", "eiffel  tower"), ("U.S.A.", "USA"), ("physician", "medical doctor"), ("1931", "1932")]
    assert ExactJudge().equivalent(["q?"] * 4, pairs) == ([True, True, False, False], [0, 0, 0, 0])


def test_make_judge_by_name() -> None:
    assert isinstance(make_judge("exact", "", "strict", 8), ExactJudge)
    lenient = make_judge("nli", bundled_path("bundled:judge"), "lenient", 8)
    assert isinstance(lenient, NLIJudge)
    assert (lenient.equivalence, lenient.batch_size) == ("lenient", 8)
    with pytest.raises(UserError, match="no judge 'llm'; there are: nli, exact"):
        make_judge("llm", "", "strict", 8)


def test_both_answers_reach_the_model_however_long_the_question(judge: NLIJudge, world: World) -> None:
    passage = " ".join(fact.question(fact.test_phrasing) for fact in world.facts[:60])
    seen = []
    hook = judge.model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True)
    try:
        judge.equivalent([f"{passage} {QUESTION}"], [("physician", "lawyer")])
    finally:
        hook.remove()
    text = judge.tokenizer.decode(seen[0][0])
    assert "physician" in text
    assert "lawyer" in text
