"""Clustering by meaning under verdicts that need not be transitive, held against straightforward implementations."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ka2l_ray.semantics.clustering import Pair, cluster, majority_answer, transitivity
from ka2l_ray.semantics.entropy import semantic_entropy

TEXTS = "ABCDEFG"


class RelationJudge:
    """Equivalent are the pairs of an explicit symmetric relation; remembers what it was asked."""

    def __init__(self, *equivalent: str) -> None:
        self.relation = {frozenset(pair) for pair in equivalent}
        self.asked: list[tuple[str, Pair]] = []
        self.waves: list[int] = []

    def says(self, a: str, b: str) -> bool:
        return a == b or frozenset((a, b)) in self.relation

    def equivalent(self, questions: Sequence[str], pairs: Sequence[Pair]) -> tuple[list[bool], list[int]]:
        self.asked += zip(questions, pairs, strict=True)
        self.waves.append(len(pairs))
        return [self.says(a, b) for a, b in pairs], [1] * len(pairs)


def reference_founder_last(answers: Sequence[str], judge: RelationJudge) -> list[int]:
    """The published implementation: an answer without an id founds a meaning and claims every later equivalent answer."""
    ids = [-1] * len(answers)
    founded = 0
    for i, answer in enumerate(answers):
        if ids[i] != -1:
            continue
        ids[i] = founded
        for j in range(i + 1, len(answers)):
            if judge.says(answer, answers[j]):
                ids[j] = founded
        founded += 1
    return ids


def reference_founder_first(answers: Sequence[str], judge: RelationJudge) -> list[int]:
    """An answer joins the first founder that it matches, else it founds a meaning."""
    founders: list[str] = []
    ids = []
    for answer in answers:
        matching = [i for i, founder in enumerate(founders) if judge.says(founder, answer)]
        ids.append(matching[0] if matching else len(founders))
        if not matching:
            founders.append(answer)
    return ids


relations = st.sets(st.sampled_from(["".join(pair) for pair in combinations(TEXTS, 2)])).map(sorted)
answer_lists = st.lists(st.sampled_from(TEXTS), min_size=1, max_size=12)


@given(st.lists(answer_lists, min_size=1, max_size=5), relations)
def test_founder_last_is_the_published_reference(generations: list[list[str]], relation: list[str]) -> None:
    judge = RelationJudge(*relation)
    results = cluster(["Q?"] * len(generations), generations, judge, "founder_last")
    assert [r.cluster_ids for r in results] == [reference_founder_last(answers, judge) for answers in generations]


@given(st.lists(answer_lists, min_size=1, max_size=5), relations)
def test_founder_first_joins_the_first_founder_that_matches(generations: list[list[str]], relation: list[str]) -> None:
    judge = RelationJudge(*relation)
    results = cluster(["Q?"] * len(generations), generations, judge, "founder_first")
    assert [r.cluster_ids for r in results] == [reference_founder_first(answers, judge) for answers in generations]


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
    judge = RelationJudge("AB", "BC")
    assert cluster(["Q?"], [list(order)], judge, "founder_last")[0].cluster_ids == last
    assert cluster(["Q?"], [list(order)], judge, "founder_first")[0].cluster_ids == first


@given(answer_lists)
def test_policies_agree_where_verdicts_are_transitive(answers: list[str]) -> None:
    judge = RelationJudge("AB", "BC", "AC", "DE")
    last, first = (cluster(["Q?"], [answers], judge, policy)[0] for policy in ("founder_last", "founder_first"))
    meanings = [{"A": 0, "B": 0, "C": 0, "D": 1, "E": 1, "F": 2, "G": 3}[answer] for answer in answers]
    assert last.cluster_ids == first.cluster_ids == [list(dict.fromkeys(meanings)).index(m) for m in meanings]


@given(answer_lists, relations)
def test_semantic_entropy_and_majority_are_those_of_the_clusters(answers: list[str], relation: list[str]) -> None:
    (result,) = cluster(["Q?"], [answers], RelationJudge(*relation), "founder_last")
    assert result.semantic_entropy == semantic_entropy(result.cluster_ids)
    assert result.majority_answer == majority_answer(answers, result.cluster_ids)


@given(st.lists(answer_lists, min_size=1, max_size=4), relations, st.sampled_from(["founder_last", "founder_first"]))
def test_equal_texts_are_never_put_to_the_judge_and_no_pair_twice(
    generations: list[list[str]], relation: list[str], policy
) -> None:
    judge = RelationJudge(*relation)
    questions = [f"Q{i}?" for i in range(len(generations))]
    results = cluster(questions, generations, judge, policy)
    assert all(a != b for _, (a, b) in judge.asked)
    assert len(set(judge.asked)) == len(judge.asked)
    assert [r.judge_calls for r in results] == [sum(q == question for q, _ in judge.asked) for question in questions]


@given(answer_lists, relations, st.sampled_from(["founder_last", "founder_first"]))
def test_a_pair_is_put_to_the_judge_in_one_order_only(answers: list[str], relation: list[str], policy) -> None:
    judge = RelationJudge(*relation)
    cluster(["Q?"], [answers], judge, policy)
    unordered = [frozenset(pair) for _, pair in judge.asked]
    assert len(set(unordered)) == len(unordered)


def test_answers_are_stripped_before_they_are_compared() -> None:
    judge = RelationJudge()
    (result,) = cluster(["Q?"], [[" A", "A\n", "A"]], judge, "founder_last")
    assert (result.cluster_ids, result.majority_answer, judge.asked) == ([0, 0, 0], "A", [])


def test_verdicts_asked_for_are_fewer_than_all_pairs() -> None:
    answers = list("ABCDEFG")
    # All alike: each answer is compared with the one founder. All different: every unordered pair, once.
    alike = RelationJudge(*("".join(pair) for pair in combinations(answers, 2)))
    cluster(["Q?"], [answers], alike, "founder_last")
    assert len(alike.asked) == 6
    different = RelationJudge()
    cluster(["Q?"], [answers], different, "founder_last")
    assert len(different.asked) == 21  # of 42 ordered pairs


@given(answer_lists, relations)
def test_founder_last_asks_no_more_than_the_reference_does(answers: list[str], relation: list[str]) -> None:
    judge = RelationJudge(*relation)
    ids = reference_founder_last(answers, judge)
    asked_by_reference = sum(len(answers) - 1 - ids.index(meaning) for meaning in set(ids))
    (result,) = cluster(["Q?"], [answers], judge, "founder_last")
    assert result.judge_calls <= asked_by_reference


def test_questions_are_judged_together_and_apart() -> None:
    """A wave holds one pair a question, so that they batch; each question's verdicts are its own."""

    class ByQuestion(RelationJudge):
        def equivalent(self, questions: Sequence[str], pairs: Sequence[Pair]) -> tuple[list[bool], list[int]]:
            super().equivalent(questions, pairs)
            return [question == "same?" for question in questions], [2] * len(pairs)

    judge = ByQuestion()
    same, other = cluster(["same?", "other?"], [["A", "B", "C"], ["A", "B", "C"]], judge, "founder_last")
    assert (same.cluster_ids, same.judge_calls) == ([0, 0, 0], 4)
    assert (other.cluster_ids, other.judge_calls) == ([0, 1, 2], 6)
    assert [size for size in judge.waves if size] == [2, 2, 1]


def test_no_questions_no_clusters() -> None:
    assert cluster([], [], RelationJudge(), "founder_last") == []


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


@given(relations)
def test_transitivity_over_all_pairs_is_that_of_the_relation(relation: list[str]) -> None:
    judge = RelationJudge(*relation)
    triples = list(combinations(TEXTS, 3))
    broken = sum(sum(judge.says(a, b) for a, b in combinations(triple, 2)) == 2 for triple in triples)
    assert transitivity({(b, a): judge.says(a, b) for a, b in combinations(TEXTS, 2)}) == (len(triples), broken)


@given(st.lists(answer_lists, min_size=1, max_size=4), relations, st.sampled_from(["founder_last", "founder_first"]))
def test_an_audit_judges_every_pair_once_and_changes_no_cluster(
    generations: list[list[str]], relation: list[str], policy
) -> None:
    questions = [f"Q{i}?" for i in range(len(generations))]
    plain = cluster(questions, generations, RelationJudge(*relation), policy)
    judge = RelationJudge(*relation)
    audited = cluster(questions, generations, judge, policy, audited=range(len(generations)))
    assert [r.cluster_ids for r in audited] == [r.cluster_ids for r in plain]
    for question, answers, result in zip(questions, generations, audited, strict=True):
        texts = sorted(set(answers))
        asked = [frozenset(pair) for q, pair in judge.asked if q == question]
        assert len(asked) == result.judge_calls == len(texts) * (len(texts) - 1) // 2
        assert set(asked) == {frozenset(pair) for pair in combinations(texts, 2)}
        triples = list(combinations(texts, 3))
        broken = sum(sum(judge.says(a, b) for a, b in combinations(triple, 2)) == 2 for triple in triples)
        assert (result.triples, result.non_transitive_triples) == (len(triples), broken)


def test_only_audited_questions_count_triples() -> None:
    """The walk sees a whole triple only where all three differ; counted, such triples water the share down."""
    audited, other = cluster(["Q?"] * 2, [list("ABCD")] * 2, RelationJudge("AB", "BC"), "founder_last", audited=[0])
    assert (audited.triples, audited.non_transitive_triples) == (4, 1)
    assert (other.triples, other.non_transitive_triples) == (0, 0)


@pytest.mark.parametrize("policy", ["founder_last", "founder_first"])
def test_a_judge_that_is_not_transitive_is_found_out(policy) -> None:
    """Design section 4: report the share of non-transitive triples seen."""
    orders = ["ABC", "ACB", "BAC", "BCA", "CAB", "CBA"]
    results = cluster(["Q?"] * 6, [list(order) for order in orders], RelationJudge("AB", "BC"), policy, audited=range(6))
    assert sum(result.non_transitive_triples for result in results) > 0
