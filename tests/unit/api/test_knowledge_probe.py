"""The probe with scikit-learn's manners: from arrays, or from a model and questions; the layer is chosen inside."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from ka2l_ray import KnowledgeProbe, Uncertainty
from ka2l_ray.api.knowledge_probe import _validation_rows, _wanted
from ka2l_ray.errors import UserError
from ka2l_ray.models.language_model import LanguageModel
from ka2l_ray.probes import (
    DegenerateLabelsError,
    ProbeCard,
    Source,
    card_page,
    make_probe,
    probe_from_bytes,
    probe_to_bytes,
)
from ka2l_ray.uncertainty.calibration import figures
from ka2l_ray.world.facts import World


def layered(n: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(n, 3, 8) states of which layer 1 alone says the label."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    states = rng.normal(size=(n, 3, 8)).astype(np.float32)
    states[:, 1, 0] += 6 * (labels - 0.5)
    return states, labels


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_it_chooses_the_layer_that_says_the_label(kind: Any) -> None:
    states, labels = layered(300)
    probe = KnowledgeProbe(kind=kind, hidden_width=32, learning_rate=1e-2).fit(states, labels)
    unseen, truth = layered(200, seed=1)
    p = probe.predict_proba(unseen)
    assert (probe.layer_, [fit.layer for fit in probe.fits_]) == (1, [0, 1, 2])
    assert p.shape == (200, 2)
    np.testing.assert_allclose(p.sum(1), 1)
    assert (probe.predict(unseen) == truth).mean() > 0.97
    np.testing.assert_array_equal(probe.predict(unseen), probe.classes_[p.argmax(1)])


def test_states_may_be_given_by_layer_as_tensors_or_of_one_layer() -> None:
    states, labels = layered(120)
    wanted = KnowledgeProbe().fit(states, labels).predict_proba(states)
    by_layer = {layer: torch.from_numpy(states[:, layer]) for layer in range(3)}
    probe = KnowledgeProbe().fit(by_layer, labels.tolist())
    np.testing.assert_array_equal(probe.predict_proba(torch.from_numpy(states)), wanted)
    np.testing.assert_array_equal(probe.predict_proba(states[:, 1]), wanted)  # one array is the layer that is meant
    one = KnowledgeProbe().fit(pd.DataFrame(states[:, 1]), pd.Series(labels, index=range(5, 125)))
    np.testing.assert_array_equal(one.predict_proba(states[:, 1]), wanted)
    assert KnowledgeProbe(layers=[0, 2]).fit(states, labels).layer_ in (0, 2)


def test_a_saved_probe_is_safetensors_and_predicts_the_same(tmp_path: Path) -> None:
    states, labels = layered(120)
    probe = KnowledgeProbe().fit(states, labels)
    for path in (tmp_path / "folder", tmp_path / "mine.safetensors"):
        file = probe.save(path)
        assert set(load_file(file)) == {"head.weight", "head.bias", "mean", "scale", "slope", "offset", "curve"}
        again = KnowledgeProbe.load(path)
        assert again.layer_ == 1
        np.testing.assert_array_equal(again.predict_proba(states), probe.predict_proba(states))
    _, card = probe_from_bytes((tmp_path / "folder/probe.safetensors").read_bytes(), "here")  # as ka2l score --probe reads it
    assert (card.layer, card.kind, card.dimension) == (1, "linear", 8)


def test_with_a_model_it_reads_the_states_itself(scorer: Uncertainty, student: LanguageModel, pool: pd.DataFrame) -> None:
    """They are transformers' own hidden states of the last prompt token."""
    table = scorer.score(pool.question)
    probe = KnowledgeProbe(scorer.model).fit(table)
    assert scorer.model is not None
    prompts = [scorer.model.prompter.encode(scorer.model.prompter.prompt(q)) for q in pool.question]
    with torch.inference_mode():
        outs = [student.model(torch.tensor([ids]), output_hidden_states=True).hidden_states for ids in prompts]
    states = np.array([[layer[0, -1].numpy() for layer in out] for out in outs])
    np.testing.assert_allclose(probe.predict_proba(pool.question), probe.predict_proba(states), atol=1e-4)
    again = KnowledgeProbe(scorer.model).fit(pool.question, table["label"])
    np.testing.assert_array_equal(again.predict_proba(pool.question), probe.predict_proba(pool.question))


def test_a_saved_probe_goes_on_with_a_model(scorer: Uncertainty, pool: pd.DataFrame, tmp_path: Path) -> None:
    probe = KnowledgeProbe(scorer.model).fit(scorer.score(pool))
    probe.save(tmp_path)
    again = KnowledgeProbe.load(tmp_path, scorer.model)
    np.testing.assert_array_equal(again.predict_proba(pool), probe.predict_proba(pool))


def test_validation_holds_both_labels_and_never_part_of_equal_questions() -> None:
    groups = [f"Question {i // 2}{'?' * (i % 2)}" for i in range(40)]
    labels = np.array([i // 2 < 3 for i in range(40)], np.int8)
    held_out = _validation_rows(groups, labels, 0.2, seed=0)
    assert (held_out[::2] == held_out[1::2]).all()
    assert {*labels[held_out].tolist()} == {*labels[~held_out].tolist()} == {0, 1}
    assert held_out.sum() == 2 * (round(0.2 * 3) + round(0.2 * 17))
    assert (_validation_rows(groups, labels, 0.2, seed=1) != held_out).any()


def test_labels_that_leave_nothing_to_tell_apart_have_an_error_of_their_own() -> None:
    states, _ = layered(20)
    with pytest.raises(DegenerateLabelsError, match="0 of 20 questions are known"):
        KnowledgeProbe().fit(states, np.ones(20))
    with pytest.raises(DegenerateLabelsError, match="1 of 20 questions are unknown"):
        KnowledgeProbe().fit(states, np.arange(20) == 4)


def test_wrong_use_is_one_line(tmp_path: Path) -> None:
    states, labels = layered(20)
    broken = states.copy()
    broken[3, 2, 0] = np.nan
    fitted = KnowledgeProbe().fit(states, labels)
    refused: list[tuple[Any, str]] = [
        (lambda: KnowledgeProbe().predict_proba(states), "not fitted"),
        (lambda: KnowledgeProbe().fit(["Who?"], [1]), "a probe without a model"),
        (lambda: KnowledgeProbe().fit(states), "no labels were given"),
        (lambda: KnowledgeProbe().fit(states, labels[:5]), r"labels of shape \(5,\) for 20 questions"),
        (lambda: KnowledgeProbe().fit(states, labels + 1), "labels must be 1"),
        (lambda: KnowledgeProbe().fit(broken, labels), "non-finite value in layer 2"),
        (lambda: KnowledgeProbe().fit(states[..., None], labels), "states of shape"),
        (lambda: KnowledgeProbe(layers=[7]).fit(states, labels), "no states of layer 7"),
        (lambda: KnowledgeProbe(kind="forest"), "KnowledgeProbe: kind"),  # type: ignore[arg-type]
        (lambda: KnowledgeProbe(validation=1.0), "validation is 1.0"),
        (lambda: fitted.predict_proba(states[:, 1, :4]), "4 dimensions, the probe was fitted on 8"),
        (lambda: KnowledgeProbe.load(tmp_path), "no probe there"),
    ]
    for use, message in refused:
        with pytest.raises(UserError, match=message) as error:
            use()
        assert "\n" not in str(error.value)


def test_the_cards_figures_are_of_questions_that_chose_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Of noise the best of 25 layers flatters itself on validation, and on the test part does not."""
    found: dict[str, list[float]] = {"validation": [], "test": []}
    for seed in range(6):
        rng = np.random.default_rng(seed)
        noise, labels = rng.normal(size=(500, 25, 16)).astype(np.float32), rng.integers(0, 2, 500)
        card = KnowledgeProbe().fit(noise, labels).card
        for part, of in found.items():
            of.append(card.figures[part]["auroc"])
        assert card.figures["test"]["rows"] == 50
    assert np.mean(found["validation"]) > 0.58
    assert np.mean(found["test"]) == pytest.approx(0.5, abs=0.06)  # two standard deviations of six times fifty
    assert len([each for each in caplog.records if "says nothing" in each.message]) >= 4
    assert "they chose the layer" in card_page(card)


def test_few_questions_or_one_rare_label_have_no_test_part() -> None:
    states, labels = layered(300)
    assert set(KnowledgeProbe().fit(states[:199], labels[:199]).card.figures) == {"validation"}
    assert set(KnowledgeProbe().fit(states, np.arange(300) < 2).card.figures) == {"validation"}
    copies = KnowledgeProbe().fit(np.tile(states[:250], (2, 1, 1)), np.tile(labels[:250], 2)).card
    assert copies.figures["test"]["rows"] == 2 * 40


def test_states_of_another_layer_or_that_are_not_finite_are_refused() -> None:
    states, labels = layered(120)
    probe = KnowledgeProbe(layers=[1]).fit(states, labels)
    one = states[:, 1].astype(np.float64)
    refused: list[tuple[Any, str]] = [({7: one}, r"no states of layer 1 were given, only of \[7\]")]
    for bad in (np.nan, np.inf, 1e300):
        wrong = one.copy()
        wrong[5, 2] = bad
        refused.append((wrong, "question '5' has a non-finite value in layer 1"))
    for given, message in refused:
        for use in (probe.predict_proba, probe.predict):
            with pytest.raises(UserError, match=message):
                use(given)
    tokens = np.random.default_rng(0).normal(size=(60, 4, 8)).astype(np.float32)
    weighed = KnowledgeProbe(position="attention", layers=[1]).fit(tokens, np.arange(60) % 2)
    tokens[7] = np.nan
    for act in (lambda: weighed.predict(tokens), lambda: weighed.fit(tokens, np.arange(60) % 2)):
        with pytest.raises(UserError, match="question '7' has no tokens in layer 1"):
            act()


def test_rows_without_a_label_are_left_out() -> None:
    states, labels = layered(120)
    some = labels.astype(object)
    some[:20] = None
    wanted = KnowledgeProbe().fit(states[20:], labels[20:]).card
    found = KnowledgeProbe().fit(states, some).card
    assert found.figures["validation"]["rows"] == 20
    assert found.layer == wanted.layer == 1


def test_a_target_of_its_own_needs_no_label() -> None:
    states, _ = layered(200)
    shares = np.clip(0.5 + states[:, 1, 0] / 12, 0, 1)
    probe = KnowledgeProbe(target="soft").fit(states, shares)
    assert probe.layer_ == 1
    assert np.corrcoef(probe.predict_proba(states)[:, 1], shares)[0, 1] > 0.95
    with pytest.raises(UserError, match="target soft goes from 0 to 1"):
        KnowledgeProbe(target="soft").fit(states, shares + 1)


def test_of_a_target_of_its_own_only_equal_ones_leave_nothing_to_fit(caplog: pytest.LogCaptureFixture) -> None:
    states, _ = layered(200)
    most = np.clip(1.1 + states[:, 1, 0] / 6, 0, 1)
    assert (most == 1).mean() > 0.5
    probe = KnowledgeProbe(target="soft").fit(states, most)
    assert np.corrcoef(probe.predict_proba(states)[:, 1], most)[0, 1] > 0.8
    assert probe.card.figures == {}, "there are no labels to hold it against"
    assert "questions of" not in card_page(probe.card)
    assert not caplog.records
    for targets in (np.where(np.arange(200) == 3, 0.0, 1.0), np.where(np.arange(200) == 3, 1.0, 0.2)):
        assert np.isfinite(KnowledgeProbe(target="soft").fit(states, targets).predict_proba(states)).all()
    with pytest.raises(DegenerateLabelsError, match="target soft is the same for all 200 questions"):
        KnowledgeProbe(target="soft").fit(states, np.ones(200))
    with pytest.raises(DegenerateLabelsError, match="2 questions are too few"):
        KnowledgeProbe(target="soft").fit(states[:2], [0.1, 0.9])


@pytest.mark.parametrize("target", ["soft", "semantic_entropy"])
def test_ten_times_i_do_not_know_is_the_most_unknown(target: Any) -> None:
    ids = [[0] * 10, list(range(10)), [0] * 5 + [1] * 5, [0] * 10, [0] * 10]
    entropies = [0.0, np.log(10), np.log(2), 0.0, 0.0]
    columns = {"cluster_ids": ids, "semantic_entropy": entropies, "abstains": [False, False, False, True, True]}
    labels, targets = _wanted(target, {**columns, "label": [0, 1, 1, 1, 0]}, None, 5)
    assert labels is not None
    assert labels.tolist() == [0, 1, 1, 1, 0]
    middle = 0.5 if target == "soft" else np.log(2) / np.log(10)
    assert targets == pytest.approx([0, 0.9 if target == "soft" else 1, middle, 1, 0])  # the last is labelled known
    labels, targets = _wanted(target, columns, None, 5)
    assert labels is None
    assert targets.tolist()[3:] == [1, 1]
    _, targets = _wanted(target, {**columns, "label": [0, 1, 1, None, 0]}, None, 5)
    assert np.isnan(targets[3])


def test_equal_states_are_one_question() -> None:
    states, labels = layered(60)
    unseen, truth = layered(2000, seed=1)
    states[:, :, 0] /= 4
    unseen[:, :, 0] /= 4
    error = {}
    for copies in (1, 6):
        probe = KnowledgeProbe().fit(np.repeat(states, copies, axis=0), np.repeat(labels, copies))
        assert probe.card.figures["validation"]["rows"] == 12 * copies
        error[copies] = figures(truth, probe.predict_proba(unseen)[:, 1]).calibration_error
    assert error[6] < error[1] + 0.05


def test_a_probe_of_tokens_reads_them_alone_or_by_layer_and_goes_on_when_saved(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 150)
    tokens = rng.normal(size=(150, 4, 8)).astype(np.float32)
    tokens[:, :, 0] += 3 * (labels[:, None] - 0.5)
    tokens[:30, 3] = np.nan
    probe = KnowledgeProbe(position="attention", layers=[5]).fit(tokens, labels)
    assert (probe.layer_, probe.card.dimension) == (5, 8)
    wanted = probe.predict_proba({5: tokens})
    assert ((wanted[:, 1] >= 0.5) == labels).mean() > 0.95
    probe.save(tmp_path)
    for each in (probe, KnowledgeProbe.load(tmp_path)):
        for given in (tokens, {5: tokens}, torch.from_numpy(tokens)):
            np.testing.assert_array_equal(each.predict_proba(given), wanted)
        with pytest.raises(UserError, match=r"states of shape \(150, 8\); give \(n, T, d\)"):
            each.predict_proba(tokens[:, 0])


@pytest.mark.parametrize("position", ["last_prompt_token", "mean", "attention", "answer_token"])
def test_the_lines_on_a_card_without_a_model_to_ask_run(
    position: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Source("m/model", None, 4, None, {}, "0123") if position == "answer_token" else None
    card = ProbeCard("linear", 2, 6, 1, position=position, source=source)
    data = probe_to_bytes(make_probe("linear", 6, 1, attention=position == "attention"), card)
    (tmp_path / "probe.safetensors").write_bytes(data)
    monkeypatch.chdir(tmp_path)
    exec(card_page(card).split("```python\n")[1].split("```")[0], {})
    assert re.fullmatch(r"\[0\.\d+\]\n", capsys.readouterr().out)


@pytest.mark.parametrize("position", ["mean", "attention"])
def test_a_probe_reads_its_position_and_asks_as_it_was_fitted(
    scorer: Uncertainty, pool: pd.DataFrame, tmp_path: Path, position: str
) -> None:
    asked = {"instruction": "Answer in one word."}
    probe = KnowledgeProbe("bundled:student", prompt=asked, position=position, layers=[2], device="cpu")
    probe.fit(pool.question, np.arange(len(pool)) % 2)
    probe.save(tmp_path)
    again = KnowledgeProbe.load(tmp_path, "bundled:student", device="cpu")  # the prompt comes with it
    np.testing.assert_array_equal(again.predict_proba(pool), probe.predict_proba(pool))
    assert again.card.position == position
    with pytest.raises(UserError, match="rendered otherwise"):
        KnowledgeProbe.load(tmp_path, scorer.model)


def test_a_probe_of_another_model_is_refused(scorer: Uncertainty, tmp_path: Path) -> None:
    states, labels = layered(60)
    KnowledgeProbe().fit(states, labels).save(tmp_path)
    with pytest.raises(UserError, match="layer 1 for states of width 8, this model has 4 layers of width 192"):
        KnowledgeProbe.load(tmp_path, scorer.model)


@pytest.mark.check
def test_on_the_bundled_world_p_unknown_is_calibrated_on_questions_it_was_not_fitted_on(world: World) -> None:
    rows = world.rows("pool")
    scorer = Uncertainty("bundled:student", judge="bundled:judge", max_tokens=12, device="cpu", prompt={"instruction": ""})
    table = scorer.score(rows).to_arrow()
    labels = np.array(table["label"].to_pylist())
    questions = np.array([row["question"] for row in rows])
    for kind, how in (("linear", {}), ("mlp", {"hidden_width": 2048, "epochs": 40})):
        found = []
        for split in range(2):  # which questions are fitted on moves the error of one fit by a hundredth
            order = np.random.default_rng(split).permutation(len(rows))
            fitted, rest = order[:720], order[720:]
            assert len(rest) >= 1000
            probe = KnowledgeProbe(scorer.model, kind=kind, **how).fit(questions[fitted].tolist(), labels[fitted])
            found.append(figures(labels[rest], probe.predict_proba(questions[rest].tolist())[:, 1]))
        assert np.mean([each.calibration_error for each in found]) <= 0.03
        assert min(each.auroc for each in found) > 0.98
