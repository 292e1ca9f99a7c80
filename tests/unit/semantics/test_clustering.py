"""Clustering by meaning under verdicts that are neither symmetric nor transitive, held against the literal algorithms."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ka2l_ray.semantics.clustering import (
    Counts,
    Pair,
    Policy,
    Verdict,
    cluster,
    cluster_answers,
    cluster_many,
    majority_answer,
    transitivity,
)
from ka2l_ray.semantics.entropy import semantic_entropy
from ka2l_ray.semantics.judges.exact import ExactJudge

TEXTS = "ABCDEFG"
POLICIES: list[Policy] = ["founder_last", "founder_first"]


class Relation:
    """An explicit relation of (premise, hypothesis) as ``entails``; it remembers what it was asked."""

    def __init__(self, label: dict[Pair, int]) -> None:
        self.label = label
        self.asked: list[Pair] = []
        self.batches: list[int] = []

    @classmethod
    def drawn(cls, generator: random.Random, texts: str = TEXTS) -> Relation:
        """Any label for any pair, a text with itself included."""
        weights = [generator.random() for _ in range(3)]
        return cls({pair: generator.choices([0, 1, 2], weights)[0] for pair in product(texts, texts)})

    @classmethod
    def same(cls, *pairs: str) -> Relation:
        """Entailment both ways for these pairs and for equal texts, contradiction for all others."""
        equivalent = {frozenset(pair) for pair in pairs}
        return cls({(a, b): 2 if a == b or frozenset((a, b)) in equivalent else 0 for a, b in product(TEXTS, TEXTS)})

    def __call__(self, pairs: list[Pair]) -> list[int]:
        self.asked += pairs
        self.batches.append(len(pairs))
        return [self.label[pair] for pair in pairs]

    def equivalent(self, a: str, b: str, strict: bool) -> bool:
        both = [self.label[a, b], self.label[b, a]]
        return both == [2, 2] if strict else 0 not in both and both != [1, 1]


class RelationJudge:
    """A relation as a judge, which sees questions apart."""

    symmetric = False

    def __init__(self, relation: Relation) -> None:
        self.relation = relation

    def verdicts(self, questions: Sequence[str], pairs: Sequence[Pair]) -> list[Verdict]:
        return [Verdict(label) for label in self.relation(list(pairs))]


def literal_founder_last(answers: Sequence[str], relation: Relation, strict: bool) -> list[int]:
    """The published implementation: an answer without an id founds a meaning and claims every later equivalent answer."""
    ids = [-1] * len(answers)
    founded = 0
    for i, answer in enumerate(answers):
        if ids[i] != -1:
            continue
        ids[i] = founded
        for j in range(i + 1, len(answers)):
            if relation.equivalent(answer, answers[j], strict):
                ids[j] = founded
        founded += 1
    return ids


def literal_founder_first(answers: Sequence[str], relation: Relation, strict: bool) -> list[int]:
    """An answer joins the first founder that it matches, else it founds a meaning."""
    founders: list[str] = []
    ids = []
    for answer in answers:
        matching = [i for i, founder in enumerate(founders) if relation.equivalent(founder, answer, strict)]
        ids.append(matching[0] if matching else len(founders))
        if not matching:
            founders.append(answer)
    return ids


LITERAL = {"founder_last": literal_founder_last, "founder_first": literal_founder_first}


@pytest.mark.parametrize(("policy", "strict"), list(product(POLICIES, [True, False])))
def test_ten_thousand_random_relations_cluster_as_the_literal_algorithm_says(policy: Policy, strict: bool) -> None:
    generator = random.Random(f"{policy} {strict}")
    for _ in range(2500):
        relation = Relation.drawn(generator)
        lists = [generator.choices(TEXTS, k=generator.randint(1, 12)) for _ in range(3)]
        expected = [LITERAL[policy](answers, relation, strict) for answers in lists]
        assert [cluster(answers, relation, policy=policy, strict=strict) for answers in lists] == expected
        asked = len(relation.asked)
        counts = Counts()
        assert cluster_many([""] * 3, lists, relation, policy=policy, strict=strict, counts=counts) == expected
        together = relation.asked[asked:]
        assert len(together) == len(set(together)) == counts.judge_calls, "nothing is asked twice, nor uncounted"
        for at in (0.5, 0.9):
            decided = cluster_many([""] * 3, lists, relation, policy=policy, strict=strict, label_only=True, at=at)
            for ids, whole in zip(decided, expected, strict=True):
                assert ids == whole[: len(ids)]
                assert (semantic_entropy(ids) >= at) == (semantic_entropy(whole) >= at)


@pytest.mark.parametrize(("policy", "strict"), list(product(POLICIES, [True, False])))
def test_equal_texts_need_no_verdict_where_each_entails_itself(policy: Policy, strict: bool) -> None:
    generator = random.Random(1)
    for _ in range(300):
        relation = Relation.drawn(generator)
        relation.label |= {(text, text): 2 for text in TEXTS}
        answers = generator.choices(TEXTS, k=10)
        counts = Counts()
        ids = cluster_many([""], [answers], relation, policy=policy, strict=strict, equal_texts_equivalent=True, counts=counts)[0]
        assert ids == LITERAL[policy](answers, relation, strict)
        assert all(a != b for a, b in relation.asked)


def test_label_only_spares_most_verdicts() -> None:
    different = Relation.same()
    counts = Counts()
    assert cluster_many([""], [list(TEXTS)], different, label_only=True, counts=counts) == [[0, 1, 2]]
    assert (counts.judge_calls, counts.answers_spared) == (3, 4)  # three meanings among seven answers are unknown already
    alike = Relation.same(*("".join(pair) for pair in combinations(TEXTS, 2)))
    assert cluster_many([""], [[*TEXTS, "A", "B", "C"]], alike, label_only=True)[0] == [0] * 9  # the tenth decides nothing


@pytest.mark.parametrize(
    ("order", "last", "first"),
    [
        ("ACB", [0, 1, 1], [0, 1, 0]),  # B matches both founders: the later one has it under founder_last
        ("CAB", [0, 1, 1], [0, 1, 0]),
        ("ABC", [0, 0, 1], [0, 0, 1]),  # B is no founder, so it cannot claim C
        ("BAC", [0, 0, 0], [0, 0, 0]),  # B founds and matches both
    ],
)
def test_policies_on_a_like_b_like_c_but_a_not_like_c(order: str, last: list[int], first: list[int]) -> None:
    relation = Relation.same("AB", "BC")
    assert cluster(list(order), relation, policy="founder_last") == last
    assert cluster(list(order), relation, policy="founder_first") == first


answer_lists = st.lists(st.sampled_from(TEXTS), min_size=1, max_size=12)


@given(answer_lists)
def test_policies_agree_where_verdicts_are_transitive(answers: list[str]) -> None:
    relation = Relation.same("AB", "BC", "AC", "DE")
    last, first = (cluster(answers, relation, policy=policy) for policy in POLICIES)
    meanings = [{"A": 0, "B": 0, "C": 0, "D": 1, "E": 1, "F": 2, "G": 3}[answer] for answer in answers]
    assert last == first == [list(dict.fromkeys(meanings)).index(m) for m in meanings]


@pytest.mark.parametrize(("forward", "backward", "strict"), list(product([0, 1, 2], [0, 1, 2], [True, False])))
def test_strict_and_lenient_by_definition_and_no_reverse_that_decides_nothing(forward: int, backward: int, strict: bool) -> None:
    relation = Relation({("A", "B"): forward, ("B", "A"): backward})
    equivalent = (forward, backward) == (2, 2) if strict else 0 not in (forward, backward) and (forward, backward) != (1, 1)
    counts = Counts()
    (ids,) = cluster_many([""], [["A", "B"]], relation, strict=strict, counts=counts)
    assert ids == ([0, 0] if equivalent else [0, 1])
    open_ = forward == 2 if strict else forward != 0
    assert relation.asked == ([("A", "B"), ("B", "A")] if open_ else [("A", "B")])
    assert counts.reverses_spared == (not open_)


def test_each_economy_has_its_counter() -> None:
    relation = Relation.same("AB", "CD")
    counts = Counts()
    lists = [["A", "B", "C", "D", "A"]]
    assert cluster_many([""], lists, relation, equal_texts_equivalent=True, counts=counts) == [[0, 0, 1, 1, 0]]
    # A-B both ways; C with A forward only; D with C, the newer founder, both ways, so never with A; A with C, A with A.
    assert relation.asked == [("A", "B"), ("B", "A"), ("A", "C"), ("C", "D"), ("D", "C"), ("C", "A")]
    assert counts == Counts(judge_calls=6, reference_calls=2 * (4 + 2), equal_texts=1, reverses_spared=2, founders_spared=1)
    again = Counts()
    cluster_many(["", ""], lists * 2, relation, equal_texts_equivalent=True, counts=again)
    assert (again.judge_calls, again.remembered) == (6, 6), "what two questions of one text ask is asked once"


def test_reference_calls_are_those_of_the_literal_algorithm() -> None:
    generator = random.Random(2)
    for _ in range(300):
        relation = Relation.drawn(generator)
        answers = generator.choices(TEXTS, k=10)
        calls = 0
        taken: set[int] = set()
        for i, answer in enumerate(answers):
            if i in taken:
                continue
            for j in range(i + 1, len(answers)):
                calls += 2
                if relation.equivalent(answer, answers[j], True):
                    taken.add(j)
        counts = Counts()
        cluster_many([""], [answers], relation, counts=counts)
        assert counts.reference_calls == calls
        assert counts.judge_calls <= calls


def test_questions_advance_together_with_the_question_before_both_answers() -> None:
    seen: list[list[Pair]] = []

    def entails(pairs: list[Pair]) -> list[int]:
        seen.append(pairs)
        return [2 if premise.startswith("same?") else 0 for premise, _ in pairs]

    assert cluster_many(["same?", "other?"], [list("ABC")] * 2, entails) == [[0, 0, 0], [0, 1, 2]]
    assert seen[0] == [("same? A", "same? B"), ("other? A", "other? B")]
    assert [len(batch) for batch in seen] == [2, 2, 2, 1]


def test_a_symmetric_judge_is_asked_once_for_both_directions() -> None:
    judge = RelationJudge(Relation.same("AB"))
    judge.symmetric = True
    (found,) = cluster_answers(["Q?"], [["A", "B", "C"]], judge)
    assert found.cluster_ids == [0, 0, 1]
    assert judge.relation.asked == [("A", "B"), ("A", "C")]


def test_empty_answers_are_one_meaning_that_no_judge_sees() -> None:
    relation = Relation.same("AB")
    counts = Counts()
    assert cluster_many(["Q?"], [["", "A", " ", "\n"]], lambda pairs: relation([("A", "A")]), counts=counts) == [[0, 1, 0, 0]]
    assert (counts.empty_answers, counts.judge_calls) == (3, 0)


def test_no_questions_no_clusters_and_one_answer_one() -> None:
    relation = Relation.same()
    assert cluster_many([], [], relation) == []
    assert cluster(["A"], relation) == [0]
    assert semantic_entropy([0]) == 0
    assert relation.asked == []


def test_majority_answer_is_the_commonest_text_of_the_largest_cluster() -> None:
    answers = ["Paris", "Lyon", "paris", "Paris", "Lyon", "Lyon", "Nice"]
    assert majority_answer(answers, [0, 1, 0, 0, 1, 1, 2]) == "Paris"  # both clusters hold three: the one seen first
    assert majority_answer(answers, [0, 1, 0, 0, 1, 1, 1]) == "Lyon"
    assert majority_answer(["city of Paris", "Paris", "Paris", "Rome", "Rome"], [0, 0, 0, 1, 1]) == "Paris"
    assert majority_answer(["Bern", "Basel"], [0, 0]) == "Bern"  # a tie within the cluster


def test_transitivity_counts_triples_with_just_two_equivalences() -> None:
    verdicts = {("A", "B"): True, ("C", "B"): True, ("A", "C"): False}
    assert transitivity(verdicts) == (1, 1)
    assert transitivity({**verdicts, ("A", "C"): True}) == (1, 0)
    assert transitivity({**verdicts, ("C", "B"): False}) == (1, 0)
    assert transitivity({("A", "B"): True, ("B", "C"): True}) == (0, 0)  # one verdict is not known
    assert transitivity({}) == (0, 0)


@pytest.mark.parametrize(("policy", "strict"), list(product(POLICIES, [True, False])))
def test_an_audit_judges_every_pair_and_changes_no_cluster(policy: Policy, strict: bool) -> None:
    generator = random.Random(3)
    for _ in range(100):
        relation = Relation.drawn(generator)
        answers = generator.choices(TEXTS, k=8)
        (plain,) = cluster_answers(["Q?"], [answers], RelationJudge(relation), policy=policy, strict=strict)
        (audited,) = cluster_answers(["Q?"], [answers], RelationJudge(relation), policy=policy, strict=strict, audited=[0])
        assert audited.cluster_ids == plain.cluster_ids
        triples = list(combinations(sorted(set(answers)), 3))
        sides = [[relation.equivalent(a, b, strict) for a, b in combinations(triple, 2)] for triple in triples]
        assert (audited.triples, audited.non_transitive_triples) == (len(triples), sum(sum(side) == 2 for side in sides))
        assert (plain.triples, plain.non_transitive_triples) == (0, 0)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_judge_that_is_not_transitive_is_found_out(policy: Policy) -> None:
    """Design section 4: report the share of non-transitive triples seen."""
    orders = ["ABC", "ACB", "BAC", "BCA", "CAB", "CBA"]
    judge = RelationJudge(Relation.same("AB", "BC"))
    results = cluster_answers(["Q?"] * 6, [list(order) for order in orders], judge, policy=policy, audited=range(6))
    assert sum(result.non_transitive_triples for result in results) == 6


def test_a_filtered_series_is_read_by_place_whatever_its_index() -> None:
    frame = pd.DataFrame({"question": ["a?", "b?", "c?"], "answers": [["x"], ["y", "y", "z"], ["u", "v"]]}, index=[7, 8, 9])
    kept = frame[frame.question != "a?"]
    found = cluster_answers(kept.question, kept.answers, ExactJudge())
    assert [each.cluster_ids for each in found] == [[0, 0, 1], [0, 1]]
    array = cluster_answers(np.array(["b?"]), np.array([["y", "y", "z"]]), ExactJudge())
    assert array[0].cluster_ids == [0, 0, 1]
