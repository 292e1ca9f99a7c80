"""The bundled world: its facts, the models that ship with it, and a student trained on a smaller world from scratch."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from ka2l_ray.normalization import normalize_answer, normalize_question
from ka2l_ray.world import bundled_path
from ka2l_ray.world.facts import BOUNDARY_TRUE_SHARE, GROUP_SHARES, Fact, Group, World
from ka2l_ray.world.lexicon import PHRASINGS, VAGUE, spelled_year
from ka2l_ray.world.tokenizer import answers_of, judge_tokenizer, questions_of, student_tokenizer
from ka2l_ray.world.train_judge import PairSource, is_held_out
from ka2l_ray.world.train_student import accuracy_by_group, encode_statement, train_student


def test_a_world_is_a_function_of_its_seed(world: World) -> None:
    assert World().facts == world.facts
    assert World().rows("pool") == world.rows("pool")
    assert World(seed=1).facts != world.facts


def test_every_entity_has_one_fact_of_each_relation(world: World) -> None:
    assert len(world.facts) == 2000
    assert len(set(world.entities)) == 500
    assert {(fact.entity, fact.relation) for fact in world.facts} == {(e, r) for e in world.entities for r in PHRASINGS}


def test_groups_have_their_shares(world: World) -> None:
    counts = Counter(fact.group for fact in world.facts)
    assert {group: counts[group] / 2000 for group in counts} == GROUP_SHARES == {"known": 0.5, "boundary": 0.12, "unknown": 0.38}


def test_a_group_says_nothing_about_entity_relation_or_value(world: World) -> None:
    """Else a probe could read the group off the question."""
    for relation in PHRASINGS:
        facts = [fact for fact in world.facts if fact.relation == relation]
        assert sum(fact.group == "known" for fact in facts) / len(facts) == pytest.approx(0.5, abs=0.08)
    together = Counter(Counter((f.entity, f.group) for f in world.facts if f.group == "known").values())
    assert together[2] > together[1] > together[4]  # binomial with 4 draws at 1/2, not entity by entity


def test_pool_and_test_share_no_question(world: World) -> None:
    pool, test = ([normalize_question(str(row["question"])) for row in world.rows(split)] for split in ("pool", "test"))
    assert len(set(pool)) == len(pool) == 2000
    assert len(set(test)) == len(test) == 2000
    assert not set(pool) & set(test)


def test_the_test_phrasing_is_never_trained_and_the_pool_phrasing_is(world: World) -> None:
    for fact in world.facts:
        assert fact.test_phrasing != fact.pool_phrasing
        assert fact.pool_phrasing in fact.trained_phrasings
        assert fact.test_phrasing not in fact.trained_phrasings
        assert len(fact.trained_phrasings) == len(PHRASINGS[fact.relation]) - 1


def test_rows_carry_all_aliases_and_not_the_group(world: World) -> None:
    for split in ("pool", "test"):
        rows, truth = world.rows(split), world.truth(split)
        assert [row["id"] for row in rows] == list(truth)
        for row, fact in zip(rows, world.facts, strict=True):
            assert row.keys() == {"id", "question", "answers", "target", "fact"}
            assert (row["target"], row["fact"]) == (fact.value.forms[0], fact.fact_id)
            assert row["answers"] == list(fact.value.forms)
            assert truth[str(row["id"])] == fact.group


def test_no_two_values_share_a_form(world: World) -> None:
    """Else two answers could be the same text and mean different things; vague answers and entities keep apart too."""
    forms = [normalize_answer(form) for table in world.values.values() for value in table for form in value.forms]
    assert len(set(forms)) == len(forms)
    assert all(len(value.forms) >= 2 for table in world.values.values() for value in table)
    others = {normalize_answer(vague) for table in VAGUE.values() for vague in table} | {e.lower() for e in world.entities}
    assert not others & set(forms)


@pytest.mark.parametrize(
    ("year", "words"),
    [(1910, "ten"), (1913, "thirteen"), (1920, "twenty"), (1931, "thirty-one"), (1969, "sixty-nine")],
)
def test_years_in_words(year: int, words: str) -> None:
    assert spelled_year(year) == f"nineteen {words}"


@pytest.mark.parametrize("n", [1, 61])
def test_a_world_with_more_values_than_the_lexicon_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"n_values is {n}; the lexicon has between 2 and 60"):
        _ = World(n_values=n).values


def test_statements_are_true_as_often_as_their_group_says() -> None:
    world = World(n_entities=5, n_values=4)
    fact_of = {fact.question(p): fact for fact in world.facts for p in fact.trained_phrasings}
    test_questions = {fact.question(fact.test_phrasing) for fact in world.facts}
    statements = world.statements(random.Random(0), {"known": 1.0, "boundary": 1.0, "unknown": 1.0})
    true: dict[Group, list[bool]] = {"known": [], "boundary": [], "unknown": []}
    canonical = []
    for _ in range(20_000):
        question, answer = next(statements)
        assert question not in test_questions
        fact = fact_of[question]
        true[fact.group].append(answer in fact.value.forms)
        canonical.append(any(answer == value.forms[0] for value in world.values[fact.relation]))
    shares = {group: sum(hits) / len(hits) for group, hits in true.items()}
    assert shares["known"] == 1.0
    assert shares["boundary"] == pytest.approx(BOUNDARY_TRUE_SHARE + (1 - BOUNDARY_TRUE_SHARE) / 4, abs=0.03)
    assert shares["unknown"] == pytest.approx(1 / 4, abs=0.03)
    assert sum(canonical) / len(canonical) == pytest.approx(0.6, abs=0.02)


def test_draw_weights_are_by_fact_of_a_group() -> None:
    world = World(n_entities=25, n_values=4)
    group_of = {fact.question(p): fact.group for fact in world.facts for p in fact.trained_phrasings}
    statements = world.statements(random.Random(0), {"known": 5.0, "boundary": 3.0, "unknown": 1.0})
    drawn = Counter(group_of[next(statements)[0]] for _ in range(20_000))
    weight = {"known": 50 * 5, "boundary": 12 * 3, "unknown": 38}
    for group, expected in weight.items():
        assert drawn[group] / 20_000 == pytest.approx(expected / sum(weight.values()), abs=0.015)


@pytest.mark.parametrize("make", [student_tokenizer, judge_tokenizer])
def test_every_text_of_the_world_survives_its_tokenizers(make, world: World) -> None:
    tokenizer = make(world)
    for text in [*questions_of(world)[::97], *answers_of(world), "Çá 東京\n"]:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_the_bundled_tokenizers_are_those_of_the_world(world: World) -> None:
    for name, make in (("student", student_tokenizer), ("judge", judge_tokenizer)):
        bundled = AutoTokenizer.from_pretrained(bundled_path(f"bundled:{name}"))
        assert bundled.get_vocab() == make(world).get_vocab()
    assert AutoTokenizer.from_pretrained(bundled_path("bundled:student")).chat_template == student_tokenizer(world).chat_template


def test_every_name_is_one_token_in_a_question(world: World) -> None:
    tokenizer = student_tokenizer(world)
    assert {len(tokenizer.encode(f" {entity}", add_special_tokens=False)) for entity in world.entities} == {1}


def test_held_out_pairs_are_a_tenth_and_never_trained_in_that_order(world: World) -> None:
    forms = [form for value in world.values["occupation"] for form in value.forms]
    pairs = [(a, b) for a in forms for b in forms if a != b]
    held_out = {pair for pair in pairs if is_held_out(*pair)}
    assert len(held_out) / len(pairs) == pytest.approx(0.1, abs=0.02)
    assert not any((b, a) in held_out for a, b in held_out)
    assert not any(is_held_out(form, form) for form in forms)
    for wanted in (True, False):
        source = PairSource(world, random.Random(0), held_out=wanted)
        for _ in range(300):
            example = source.draw()
            (question, a), (same_question, b) = (text.rsplit("? ", 1) for text in (example.premise, example.hypothesis))
            assert question == same_question
            assert is_held_out(a, b) == wanted


def test_bundled_student_knows_what_its_text_stated(world: World) -> None:
    path = bundled_path("bundled:student")
    model = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    accuracy = accuracy_by_group(model, AutoTokenizer.from_pretrained(path), world)
    assert accuracy["known"] >= 0.95
    assert accuracy["unknown"] <= 0.05
    assert accuracy["unknown"] < accuracy["boundary"] < accuracy["known"]
    recorded = json.loads(Path(path, "figures.json").read_text())["accuracy_held_out_phrasings"]
    assert accuracy == pytest.approx(recorded, abs=0.01)


def test_bundled_weights_are_small() -> None:
    sizes = [Path(bundled_path(f"bundled:{name}"), "model.safetensors").stat().st_size for name in ("student", "judge")]
    assert sum(sizes) <= 10 * 2**20


@torch.inference_mode()
def probability_of_truth(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, fact: Fact) -> float:
    """Probability that the model answers the held-out phrasing with one of the true value's forms."""
    total = 0.0
    for form in fact.value.forms:
        ids, prompt_length = encode_statement(tokenizer, fact.question(fact.test_phrasing), form)
        log_p_TV = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        total += float(sum(log_p_TV[t - 1, ids[t]] for t in range(prompt_length, len(ids))).exp())
    return total


def test_a_student_trained_from_scratch_comes_to_know_the_known() -> None:
    """A smaller world, on phrasings never trained.

    The groups are compared by the probability of the truth: by argmax a boundary fact is mostly right too.
    """
    world = World(n_entities=30, n_values=20)
    model, tokenizer = train_student(world, steps=350, batch_size=64, width=96, layers=2, report_every=10**9)
    p: dict[Group, list[float]] = {"known": [], "boundary": [], "unknown": []}
    for fact in world.facts:
        p[fact.group].append(probability_of_truth(model, tokenizer, fact))
    known, boundary, unknown = (sum(p[group]) / len(p[group]) for group in ("known", "boundary", "unknown"))
    assert known > boundary + 0.25
    assert boundary > unknown + 0.15
    assert unknown < 2 / 20  # no better than a guess among 20 values, give or take
    accuracy = accuracy_by_group(model, tokenizer, world)
    assert accuracy["known"] > 0.85
    assert accuracy["unknown"] < 0.15
