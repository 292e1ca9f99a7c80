"""Probes: the network's formula and size, the split, fitting, files, figures."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from ka2l_ray.errors import UserError
from ka2l_ray.probes import (
    DegenerateLabelsError,
    LayerFit,
    LinearProbe,
    MLPProbe,
    ProbeCard,
    better,
    check_finite,
    check_labels,
    fit_layers,
    fit_probe,
    logistic_regression,
    make_probe,
    p_unknown,
    probe_from_bytes,
    probe_to_bytes,
    split_indices,
    split_of,
)
from ka2l_ray.uncertainty.ranking import auroc

SETTINGS = {"layer": 3, "kind": "mlp", "hidden_width": 64, "learning_rate": 1e-3, "epochs": 20, "batch_size": 32, "seed": 0}


@pytest.mark.parametrize("d", [64, 192])
def test_mlp_has_three_matrices_of_d_by_14336_and_a_head(d: int) -> None:
    probe = MLPProbe(d, 14336)
    assert sum(p.numel() for p in probe.parameters()) == 3 * d * 14336 + 2 * d + 2
    assert sum(isinstance(module, nn.Linear) for module in probe.modules()) == 4


def test_mlp_is_head_of_down_of_silu_gate_times_up() -> None:
    torch.manual_seed(0)
    probe, x = MLPProbe(5, 7).double(), torch.randn(3, 5, dtype=torch.float64)
    weight = {name: p.detach().numpy() for name, p in probe.named_parameters()}
    gate, up = x.numpy() @ weight["gate.weight"].T, x.numpy() @ weight["up.weight"].T
    inner = gate / (1 + np.exp(-gate)) * up
    expected = (inner @ weight["down.weight"].T) @ weight["head.weight"].T + weight["head.bias"]
    np.testing.assert_allclose(probe(x).detach().numpy(), expected, rtol=1e-12)


def test_linear_probe_is_logistic_regression() -> None:
    probe = make_probe("linear", 5, 7)
    assert isinstance(probe, LinearProbe)
    assert sum(p.numel() for p in probe.parameters()) == 2 * 5 + 2
    x = torch.randn(4, 5)
    difference = (probe.head.weight[1] - probe.head.weight[0]) @ x.T + probe.head.bias[1] - probe.head.bias[0]
    torch.testing.assert_close(p_unknown(probe, x), difference.sigmoid())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_p_unknown_is_the_second_softmax_for_states_of_any_float_dtype(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    probe, states = MLPProbe(8, 16), torch.randn(6, 8)
    expected = probe(states.to(dtype).float()).softmax(-1)[:, 1]
    torch.testing.assert_close(p_unknown(probe, states.to(dtype)), expected)


def test_split_is_about_7_2_1() -> None:
    parts = Counter(split_of(f"What is the {i}th thing?") for i in range(5000))
    # Three standard deviations of a binomial share of 5000 are below 0.02.
    assert [parts[part] / 5000 for part in ("train", "validation", "test")] == pytest.approx([0.7, 0.2, 0.1], abs=0.02)


def test_split_indices_share_out_every_row() -> None:
    questions = [f"What is the {i}th thing?" for i in range(300)]
    parts = split_indices(questions)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(300))
    assert all(split_of(questions[i]) == part for part, rows in parts.items() for i in rows)


@given(st.text("abcdefgh XYZ.,?'-", min_size=1), st.text(".,?! ", max_size=3))
def test_split_never_parts_questions_that_are_equal_but_for_case_and_punctuation(question: str, tail: str) -> None:
    assert (
        split_of(question)
        == split_of(question.upper())
        == split_of(f"  {question}{tail}")
        == split_of(question.replace(".", ","))
    )


def separable(n: int, d: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """States whose first two coordinates say the label."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.4).astype(np.int8)
    states = rng.normal(size=(n, d))
    states[:, :2] += 4 * (2 * labels[:, None] - 1)
    return states.astype(np.float32), labels


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_fit_separates_separable_states(kind) -> None:
    states, labels = separable(400)
    probe, fit = fit_probe(states, labels, **{**SETTINGS, "kind": kind, "learning_rate": 1e-2}, validation=separable(200, seed=1))
    assert fit.validation_auroc > 0.999
    assert fit.validation_accuracy > 0.99
    assert fit.layer == 3
    assert not probe.training
    unseen, truth = separable(200, seed=2)
    assert (((p_unknown(probe, torch.from_numpy(unseen)) >= 0.5).numpy()) == truth).mean() > 0.99


def test_fit_finds_what_no_line_can_separate() -> None:
    """Exclusive or: the MLP learns it, logistic regression cannot."""
    rng = np.random.default_rng(0)
    states = rng.choice([-1.0, 1.0], (600, 4)) + rng.normal(0, 0.1, (600, 4))
    labels = (states[:, 0] * states[:, 1] > 0).astype(np.int8)
    validation = (states[400:], labels[400:])
    figures = {}
    for kind in ("mlp", "linear"):
        settings = {**SETTINGS, "kind": kind, "learning_rate": 1e-2}
        figures[kind] = fit_probe(states[:400], labels[:400], **settings, validation=validation)[1].validation_auroc
    assert figures["mlp"] > 0.99
    assert figures["linear"] < 0.7


def test_fit_reports_the_figures_of_its_own_predictions() -> None:
    states, labels = separable(200, d=4)
    noisy = np.where(np.random.default_rng(3).random(100) < 0.2, 1 - labels[:100], labels[:100]).astype(np.int8)
    epochs: list[tuple[int, float]] = []
    how = {**SETTINGS, "early_stopping": False, "on_epoch": lambda *told: epochs.append(told)}
    probe, fit = fit_probe(states[100:], labels[100:], **how, validation=(states[:100], noisy))
    p = p_unknown(probe, torch.from_numpy(states[:100])).double().numpy()
    assert fit.validation_accuracy == ((p >= 0.5) == noisy).mean()
    assert fit.validation_loss == pytest.approx(-np.log(np.where(noisy == 1, p, 1 - p)).mean(), rel=1e-4)
    assert fit.validation_auroc == pytest.approx(pairwise_auroc(noisy, p))
    assert [epoch for epoch, _ in epochs] == list(range(20))
    assert fit.train_loss == epochs[-1][1] < epochs[0][1]


def test_fit_repeats_with_its_seed_whatever_the_global_one() -> None:
    states, labels = separable(120)

    def weights(seed: int, global_seed: int) -> torch.Tensor:
        torch.manual_seed(global_seed)
        probe, _ = fit_probe(states, labels, **{**SETTINGS, "seed": seed, "epochs": 2}, validation=(states, labels))
        return torch.cat([p.detach().flatten() for p in probe.parameters()])

    assert torch.equal(weights(1, 10), weights(1, 20))
    assert not torch.equal(weights(1, 10), weights(2, 10))


def test_fit_leaves_the_global_random_numbers_alone() -> None:
    states, labels = separable(60)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit_probe(states, labels, **{**SETTINGS, "epochs": 1}, validation=(states, labels))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_check_finite_names_the_question_and_the_layer(bad: float) -> None:
    states = np.zeros((4, 3), np.float16)
    check_finite(states, list("abcd"), 7)
    states[2, 1] = states[3, 0] = bad
    with pytest.raises(UserError, match=r"question 'c' has a non-finite value in layer 7 \(2 of 4"):
        check_finite(states, list("abcd"), 7)


@pytest.mark.parametrize(("label", "word"), [(0, "known"), (1, "unknown")])
def test_labels_all_alike_leave_nothing_to_tell_apart(label: int, word: str) -> None:
    parts = {"train": np.arange(8), "validation": np.array([8]), "test": np.array([9])}
    with pytest.raises(DegenerateLabelsError, match=f"all 10 questions.* labelled {word}:"):
        check_labels(np.full(10, label, np.int8), parts)


@pytest.mark.parametrize("part", ["train", "validation"])
def test_a_part_with_one_label_only_is_named(part: str) -> None:
    parts = {"train": np.arange(4), "validation": np.arange(4, 8), "test": np.arange(8, 10)}
    labels = np.array([0, 1] * 5, np.int8)
    check_labels(labels, parts)
    labels[parts[part]] = 1
    with pytest.raises(DegenerateLabelsError, match=rf"{part} part \(4 questions\).*pool.probing_size"):
        check_labels(labels, parts)


def test_the_test_part_may_hold_one_label() -> None:
    parts = {"train": np.arange(2), "validation": np.arange(2, 4), "test": np.array([4])}
    labels = np.array([0, 1, 0, 1, 1], np.int8)
    check_labels(labels, parts)
    with pytest.raises(DegenerateLabelsError, match="validation part"):
        check_labels(labels, {**parts, "validation": parts["test"]})


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_a_probe_survives_saving(kind) -> None:
    probe, card = make_probe(kind, 6, 10), ProbeCard(kind, 4, 6, 10)
    loaded, loaded_card = probe_from_bytes(probe_to_bytes(probe, card), "here")
    assert loaded_card == card
    assert not loaded.training
    x = torch.randn(5, 6)
    assert torch.equal(p_unknown(loaded, x), p_unknown(probe, x))


FOREIGN_FILES = {
    "empty": b"",
    "text": b"question_id,p_unknown\nq1,0.5\n",
    "binary": bytes(range(256)) * 4,
    "other safetensors": save({"a": torch.zeros(2)}),
    "other card": save({"a": torch.zeros(2)}, {"card": json.dumps({"kind": "mlp"})}),
}


@pytest.mark.parametrize("name", FOREIGN_FILES)
def test_a_file_that_is_no_probe_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"runs/x: not a probe; give the directory that ka2l probe wrote"):
        probe_from_bytes(FOREIGN_FILES[name], "runs/x")


def test_a_damaged_probe_is_refused() -> None:
    data = probe_to_bytes(make_probe("linear", 6, 1), ProbeCard("linear", 4, 6, 1))
    with pytest.raises(UserError, match="runs/x"):
        probe_from_bytes(data[:-8], "runs/x")


def pairwise_auroc(truth: np.ndarray, score: np.ndarray) -> float:
    """Share of (unknown, known) pairs in the right order, ties half."""
    unknown, known = score[truth == 1], score[truth == 0]
    difference = unknown[:, None] - known[None, :]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5)), min_size=2, max_size=40))
def test_auroc_is_the_share_of_pairs_in_the_right_order(rows: list[tuple[int, int]]) -> None:
    truth, score = (np.array(column) for column in zip(*rows, strict=True))
    if len(set(truth.tolist())) == 1:
        assert np.isnan(auroc(truth, score))
    else:
        assert auroc(truth, score / 5) == pytest.approx(pairwise_auroc(truth, score))


def test_the_better_layer_has_more_auroc_then_less_loss_then_comes_first() -> None:
    fit = LayerFit(layer=5, validation_auroc=0.9, validation_accuracy=0.8, validation_loss=0.4, train_loss=0.1)
    assert better(fit, LayerFit(1, 0.8, 0.99, 0.1, 0.0))
    assert better(fit, LayerFit(1, 0.9, 0.99, 0.5, 0.0))
    assert better(fit, LayerFit(6, 0.9, 0.99, 0.4, 0.0))
    assert not better(fit, fit)


def test_fitting_a_probe_takes_states_labels_and_what_validates() -> None:
    probe, fit = fit_probe(*separable(60), validation=separable(20, seed=1), hidden_width=16)
    assert isinstance(probe, MLPProbe)
    assert (fit.layer, fit.validation_auroc > 0) == (0, True)


def test_the_linear_probe_is_the_maximum_likelihood_with_a_ridge_on_standardised_states() -> None:
    """Its gradient, computed apart from it in float64, is zero; the probe takes states as they are, far from zero or not."""
    states, labels = separable(80)
    states = states * np.linspace(0.01, 100, 8, dtype=np.float32) + 50
    probe = logistic_regression(states, labels)
    weight = (probe.head.weight[1] - probe.head.weight[0]).detach().double().numpy()
    bias = float((probe.head.bias[1] - probe.head.bias[0]).detach())
    x = (states.astype(np.float64) - states.mean(0, dtype=np.float64)) / states.std(0, dtype=np.float64)
    p = 1 / (1 + np.exp(-(x @ weight + bias)))
    gradient = ((p - labels) @ x + weight, (p - labels).sum())
    assert max(np.abs(gradient[0]).max(), abs(gradient[1])) < 0.02
    np.testing.assert_allclose(p_unknown(probe, torch.from_numpy(states)).numpy(), p, atol=1e-4)


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_of_several_layers_the_one_that_validates_best_is_chosen(kind: str) -> None:
    states, labels = separable(200)
    noise = np.random.default_rng(3).normal(size=states.shape).astype(np.float32)
    validation = np.arange(200) >= 140
    how = {"hidden_width": 32, "learning_rate": 1e-2}
    probe, chosen, fits = fit_layers({0: noise, 4: states, 9: -noise}, labels, validation=validation, kind=kind, **how)
    assert chosen.layer == 4
    assert [fit.layer for fit in fits] == [0, 4, 9]
    assert max(fits, key=lambda fit: fit.validation_auroc) == chosen
    assert (((p_unknown(probe, torch.from_numpy(states)) >= 0.5).numpy()) == labels).mean() > 0.98
