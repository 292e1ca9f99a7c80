"""p(wrong) and the combined score, held against the definitions and against real answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ka2l_ray.errors import UserError
from ka2l_ray.semantics.clustering import cluster_answers
from ka2l_ray.semantics.entropy import semantic_entropy
from ka2l_ray.semantics.judges.exact import ExactJudge
from ka2l_ray.uncertainty.calibration import isotonic_regression, platt_scaling
from ka2l_ray.uncertainty.p_wrong import calibrate, combine
from ka2l_ray.uncertainty.ranking import auroc
from ka2l_ray.uncertainty.scores import aurc, fold_of, regress


def asked(n: int) -> list[str]:
    return [f"Where was person {i} born?" for i in range(n)]


def world(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A score, the chance of a wrong answer that it stands for, and whether the answer is wrong."""
    generator = np.random.default_rng(seed)
    score = generator.uniform(0, np.log(10), n)
    chance = np.where(score < 1, 0.2, 0.35 + 0.2 * score)
    return score, chance, generator.random(n) < chance


@pytest.mark.parametrize(("n", "method"), [(999, "platt"), (1000, "isotonic")])
def test_labelled_rows_are_cross_fitted_and_the_others_get_the_fit_on_all_labelled(n: int, method: str) -> None:
    score, _, wrong = world(n + 50)
    known = [bool(each) if i < n else None for i, each in enumerate(wrong)]
    questions = asked(n + 50)
    found = calibrate(score, known, questions)
    assert (found.method, found.labelled) == (method, n)
    assert found.wrong == pytest.approx(wrong[:n].mean())
    here = np.arange(len(score)) < n
    out = np.array([fold_of(question) == 2 for question in questions])
    for fitting, judged in ((here & ~out, here & out), (here, ~here)):
        if method == "platt":
            slope, offset = platt_scaling(score[fitting], wrong[fitting])
            expected = 1 / (1 + np.exp(-slope * score[judged] - offset))
        else:
            expected = np.interp(score[judged], *isotonic_regression(score[fitting], wrong[fitting]))
        np.testing.assert_allclose(found.p_wrong[judged], expected)
    flipped = [not known[0], *known[1:]]
    assert calibrate(score, flipped, questions).p_wrong[0] == found.p_wrong[0], "a row's own label says nothing of it"


def test_p_wrong_is_the_chance_of_being_wrong() -> None:
    score, chance, wrong = world(4000)
    found = calibrate(score, wrong.tolist(), asked(4000))
    assert abs(found.p_wrong - chance).mean() < 0.03
    assert found.calibration_error < 0.03
    assert found.brier < np.mean((wrong - wrong.mean()) ** 2) - 0.02


def test_where_nothing_is_known_to_be_right_or_wrong_there_is_no_p_wrong() -> None:
    with pytest.raises(UserError, match="1 of 3 are; give --correct COLUMN, or --answers FILE"):
        calibrate(np.arange(3.0), [True, None, None], asked(3))
    assert calibrate(np.arange(9.0), [True] * 9, asked(9)).p_wrong.tolist() == [1.0] * 9


def test_the_combined_score_finds_the_sure_and_wrong_that_entropy_misses() -> None:
    """Of the wrong answers half are uncertain and half are sure; a second score sees the sure ones."""
    generator = np.random.default_rng(0)
    wrong = generator.random(800) < 0.5
    sure = generator.random(800) < 0.5
    entropy = generator.normal(size=800) + 2.0 * (wrong & ~sure)
    likelihood = generator.normal(size=800) + 2.0 * (wrong & sure)
    likelihood[::10] = np.nan
    known = [bool(each) if i % 4 else None for i, each in enumerate(wrong)]
    found = combine({"semantic entropy": entropy, "log-likelihood": likelihood}, known, asked(800))
    labelled, rest = (np.array([(each is None) == unknown for each in known]) for unknown in (False, True))
    for rows in (labelled, rest):
        assert auroc(wrong[rows], found[rows]) > max(auroc(wrong[rows], entropy[rows]) + 0.08, 0.77)
        assert aurc(wrong[rows], found[rows]) < aurc(wrong[rows], entropy[rows]) - 0.03
    filled = np.where(np.isnan(likelihood), np.nanmean(likelihood[labelled]), likelihood)
    np.testing.assert_allclose(found[rest], regress(np.stack([entropy, filled], 1), wrong, labelled, rest))
    flipped = [known[0], not known[1], *known[2:]]
    assert combine({"semantic entropy": entropy, "log-likelihood": likelihood}, flipped, asked(800))[1] == found[1]


@pytest.mark.shared
def test_p_wrong_of_real_answers_is_calibrated(shared_data: Path) -> None:
    rows = [json.loads(line) for line in (shared_data / "gen_triviaqa_10x.jsonl").read_text().splitlines()]
    questions = [row["question"] for row in rows]
    clusters = cluster_answers(questions, [[text.strip() for text in row["generations"]] for row in rows], ExactJudge())
    entropies = np.array([semantic_entropy(each.cluster_ids) for each in clusters])
    wrong = [not row["greedy_correct_llm_verdict"] for row in rows]
    known = [each if i % 3 else None for i, each in enumerate(wrong)]
    found = calibrate(entropies, known, questions)
    assert (found.method, found.labelled) == ("isotonic", 2098)
    held_out = [i for i, each in enumerate(known) if each is None]
    p, truth = found.p_wrong[held_out], np.array(wrong)[held_out]
    assert abs(p.mean() - truth.mean()) < 0.03
    parts = np.array_split(np.argsort(p, kind="stable"), 3)
    assert max(abs(p[part].mean() - truth[part].mean()) for part in parts) < 0.07
    assert np.mean((p - truth) ** 2) < truth.mean() * (1 - truth.mean()) - 0.02
