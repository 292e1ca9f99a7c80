"""Whether an answer is right: by exact match, or by a judge that is asked whether it says what an accepted answer says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ka2l_ray.config import EvaluationConfig
from ka2l_ray.extraction import Extract
from ka2l_ray.normalization import Form
from ka2l_ray.reading import READING, Reading
from ka2l_ray.semantics.cache import CachedJudge, claim, merge
from ka2l_ray.semantics.clustering import DIFFERENT, SAME, Pair, Verdict, cluster_answers
from ka2l_ray.semantics.correctness import judge_answers
from ka2l_ray.semantics.judges import make_judge
from ka2l_ray.semantics.judges.contains import ContainsJudge, holds
from ka2l_ray.semantics.judges.nli import NLIJudge

SHARED = Path(__file__).parents[4] / "shared/data"
QUESTION = "What is the occupation of Quegrerk?"
CONTAINS = ContainsJudge(directed=True)


class Recorder:
    """Says that the pairs given mean the same, and keeps what it was asked."""

    def __init__(self, same: set[Pair], symmetric: bool = False) -> None:
        self.same, self.symmetric = same, symmetric
        self.asked: list[tuple[str, Pair]] = []
        self.waves: list[int] = []

    def verdicts(self, questions: Sequence[str], pairs: Sequence[Pair]) -> list[Verdict]:
        self.asked += zip(questions, pairs, strict=True)
        self.waves.append(len(pairs))
        return [SAME if pair in self.same else DIFFERENT for pair in pairs]


def right(prediction: str, accepted: list[str], judge: Any = CONTAINS, reading: Reading = READING) -> bool:
    return judge_answers([QUESTION], [prediction], [accepted], judge, reading)[0].correct


@pytest.mark.parametrize(
    ("prediction", "accepted", "correct"),
    [
        ("It is Paris, France.", ["Paris"], True),
        ("Barack Obama", ["Obama"], True),
        ("I don't know who sang that song.", ["The Who"], False),
        ("I'm not sure whether it is Paris or Lyon.", ["Paris"], False),
        ("It is the band who sang it.", ["The Who"], False),
        ("The band is The Who.", ["The Who"], True),
        ("No, it is not.", ["no"], True),
        ("A", ["Vitamin A"], False),  # a part of an accepted answer does not say it
        ("Vitamin A", ["A"], True),
        ("", ["A"], False),
        ("", [""], False),
        ("-5", ["5"], False),
        ("1/2", ["2"], False),
        ("350", ["35"], False),
        ("the C++ language", ["C"], False),
        ("the C++ language", ["C++"], True),
        ("巴黎是法国的首都。", ["巴黎"], True),
        ("Parisian", ["Paris"], False),
        ("x", [], False),
    ],
)
def test_containment_is_of_words_and_from_the_answer_to_the_accepted_one(
    prediction: str, accepted: list[str], correct: bool
) -> None:
    assert right(prediction, accepted) is correct


def test_containment_as_a_judge_of_meaning_holds_in_both_directions() -> None:
    (found,) = cluster_answers(
        ["Where?"], [["Paris", "Paris, France", "Lyon", "lyon"]], make_judge(EvaluationConfig(judge="contains"))
    )
    assert found.cluster_ids == [0, 0, 1, 1]


@given(st.text(alphabet="ab 1-.é巴", max_size=8), st.text(alphabet="ab 1-.é巴", max_size=8))
def test_a_text_holds_itself_and_nothing_holds_or_is_held_by_no_text(a: str, b: str) -> None:
    a, b = a.strip(), b.strip()
    assert holds(a, a) is bool(a)
    assert not holds(a, "")
    assert not holds("", b)
    assert not a or not b or holds(f"{a} {b}", a)


def test_the_bundled_judge_is_asked_whether_the_answer_entails_an_accepted_one(judge: NLIJudge) -> None:
    assert right("medical doctor", ["lawyer", "physician"], judge)
    assert not right("lawyer", ["physician"], judge)
    assert right("physician", ["a job"], judge), "a physician has a job"
    assert not right("a job", ["physician"], judge), "not every job is a physician's"


def test_exact_match_is_right_and_nothing_is_wrong_and_the_judge_is_asked_of_neither() -> None:
    judge = Recorder(set())
    found = judge_answers(["q"] * 4, ["The Answer!", "", "  ", "other"], [["answer"]] * 4, judge, READING)
    assert [each.correct for each in found] == [True, False, False, False]
    assert [each.exact_match for each in found] == [True, False, False, False]
    assert [pair for _, pair in judge.asked] == [("other", "answer")]


def test_accepted_answers_are_asked_of_in_waves_until_one_is_met_and_alike_ones_once() -> None:
    accepted = [["a0", "A0", "a1", "a2"], [f"b{i}" for i in range(8)], ["c0"]]
    judge = Recorder({("x", "a1"), ("z", "c0")})
    found = judge_answers(["p", "q", "r"], ["x", "y", "z"], accepted, judge, READING)
    assert [each.correct for each in found] == [True, False, True]
    assert [each.judge_calls for each in found] == [3, 8, 1]
    assert judge.waves == [3, 2 + 4, 3]
    assert len(judge.asked) == len(set(judge.asked)) == 12


def test_the_same_answer_to_the_same_question_is_judged_once() -> None:
    judge = Recorder({("x", "a")})
    found = judge_answers(["q", "q"], ["x", "x"], [["a"], ["a"]], judge, READING)
    assert [each.correct for each in found] == [True, True]
    assert len(judge.asked) == 1


def test_a_symmetric_judge_is_asked_as_in_clustering_so_that_a_cache_serves_both(tmp_path: Path) -> None:
    judge = Recorder({("a", "z")}, symmetric=True)
    claim(str(tmp_path / "cache"), "judge")
    cluster_answers(["q"], [["z", "a"]], CachedJudge(judge, str(tmp_path / "cache")))
    merge(str(tmp_path / "cache"))
    (found,) = judge_answers(["q"], ["z"], [["a"]], CachedJudge(judge, str(tmp_path / "cache")), READING)
    assert (found.correct, found.judge_calls, found.cached) == (True, 0, 1)
    assert len(judge.asked) == 1


def test_answers_are_read_before_they_are_compared() -> None:
    numbers, letters = Reading(extract=Extract("last_number")), Reading(extract=Extract("letter"))
    assert right("She has 3 + 4 = 7 apples.", ["7"], None, numbers)
    assert right("so 18.00 dollars", ["#### 18"], None, numbers)
    assert not right("no number here", ["7"], None, numbers)
    assert right("The answer is (B).", ["B"], None, letters)
    assert not right("Because of it", ["B"], None, letters)


def test_the_judge_sees_what_was_read() -> None:
    judge = Recorder(set())
    judge_answers(["q"], ["It is 3, so 4."], [["about 5"]], judge, Reading(extract=Extract("last_number")))
    assert [pair for _, pair in judge.asked] == [("4", "5")]


# Agreement with a language model's verdict on the greedy answers of four 7B to 12B models (six on SciQ), and what is missed
# of the answers that it calls right. Measured; the files are balanced between right and wrong by their makers.
AGREEMENT = [
    ("gen_triviaqa_10x", "exact", 0.899, 0.197),
    ("gen_triviaqa_10x", "contains", 0.936, 0.117),
    ("gen_sciq_10x", "exact", 0.743, 0.505),
    ("gen_sciq_10x", "contains", 0.774, 0.441),
]


@pytest.mark.parametrize(("name", "judge", "agreement", "missed"), AGREEMENT)
def test_agreement_with_a_language_model_s_verdict(name: str, judge: str, agreement: float, missed: float) -> None:
    if not (SHARED / f"{name}.jsonl").is_file():
        pytest.skip(f"{SHARED / name}.jsonl is not there")
    found = agreements(name, judge)
    assert found == (pytest.approx(agreement, abs=0.005), pytest.approx(missed, abs=0.01))


def test_containment_agrees_more_than_exact_match_and_unicode_no_less_than_squad() -> None:
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there")
    for name in ("gen_triviaqa_10x", "gen_sciq_10x"):
        assert agreements(name, "contains")[0] > agreements(name, "exact")[0] >= agreements(name, "exact", "squad")[0]


def agreements(name: str, judge: str, form: Form = "unicode") -> tuple[float, float]:
    """(agreement with the verdict, share of the right answers that is missed)."""
    rows = [json.loads(line) for line in (SHARED / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["greedy_correct_llm_verdict"] is not None]
    asked = make_judge(EvaluationConfig(judge=judge), form, directed=True)  # type: ignore[arg-type]
    columns = ([row[column] for row in rows] for column in ("question", "greedy", "answers"))
    said = [each.correct for each in judge_answers(*columns, asked, Reading(form))]
    truth = [row["greedy_correct_llm_verdict"] for row in rows]
    agreed = sum(a == b for a, b in zip(said, truth, strict=True)) / len(rows)
    return agreed, sum(b and not a for a, b in zip(said, truth, strict=True)) / sum(truth)
