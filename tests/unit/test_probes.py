"""Probes: the network's formula and size, the split, fitting, files, figures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from scipy.optimize import minimize
from torch import nn

from ka2l_ray.errors import UserError
from ka2l_ray.probes import (
    DegenerateLabelsError,
    Kind,
    LayerFit,
    LinearProbe,
    MLPProbe,
    ProbeCard,
    Source,
    better,
    card_page,
    check_finite,
    check_labels,
    check_targets,
    fit_layers,
    fit_probe,
    learned_nothing,
    logistic_regression,
    make_probe,
    p_unknown,
    predict,
    probe_from_bytes,
    probe_to_bytes,
    soft_target,
    split_indices,
    split_of,
)
from ka2l_ray.probes.fitting import balanced
from ka2l_ray.uncertainty.calibration import calibration_error, figures, log_loss, summary
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


def test_biases_of_the_mlp_are_those_of_gate_and_up_which_begins_at_one() -> None:
    torch.manual_seed(0)
    probe, x = MLPProbe(5, 7, biases=True).double(), torch.randn(3, 5, dtype=torch.float64)
    assert sum(p.numel() for p in probe.parameters()) == 3 * 5 * 7 + 2 * 5 + 2 + 2 * 7
    assert (probe.up.bias == 1).all()
    gate, up = (x @ part.weight.T + part.bias for part in (probe.gate, probe.up))
    torch.testing.assert_close(
        probe(x), (gate * gate.sigmoid() * up) @ probe.down.weight.T @ probe.head.weight.T + probe.head.bias
    )


def towards(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """States far from zero of which one direction says the label, as well as a logistic can."""
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(n, 64))
    labels = (6 * states[:, :8].mean(1) * 8**0.5 / 2 + rng.logistic(size=n) > 0).astype(np.int8)
    return (5 / 8 * states + 3).astype(np.float32), labels


def test_the_mlp_reads_a_direction_in_standardised_states() -> None:
    states, labels = towards(750, 0)
    unseen, truth = towards(2000, 1)
    found = {}
    for kind in ("mlp", "linear"):
        probe, _, _ = fit_layers({0: states}, labels, validation=np.arange(750) >= 600, kind=kind, hidden_width=512)
        found[kind] = auroc(truth, predict(probe, unseen))
    assert found["linear"] > 0.85
    assert found["mlp"] > found["linear"] - 0.03


@pytest.mark.parametrize("standardize", [True, False])
def test_the_mlp_has_biases_where_its_states_are_standardised(standardize: bool) -> None:
    probe, _ = fit_probe(*separable(60), validation=separable(20, seed=1), hidden_width=4, epochs=1, standardize=standardize)
    assert isinstance(probe, MLPProbe)
    assert (probe.up.bias is not None, probe.gate.bias is not None) == (standardize, standardize)


def test_a_dimension_that_was_constant_in_training_may_vary_later() -> None:
    states, labels = separable(400)
    states[:, 5] = 7.1  # whose float32 mean is not quite itself
    states[:, 6] = 0
    unseen, truth = separable(400, seed=2)
    unseen[:, 5:7] = states[:, 5:7] + 0.01 * np.random.default_rng(0).normal(size=(400, 2))
    for kind in ("mlp", "linear"):
        probe, _ = fit_probe(
            states, labels, **{**SETTINGS, "kind": kind, "learning_rate": 1e-2}, validation=separable(200, seed=1)
        )
        assert probe.scale[5:7].tolist() == [1, 1]
        assert auroc(truth, predict(probe, unseen)) > 0.99


@pytest.mark.parametrize("norm", [1e-7, 1e7])
def test_states_of_any_size_are_standardised_alike(norm: float) -> None:
    states, labels = separable(400)
    wanted = logistic_regression(states, labels)
    probe = logistic_regression((norm * states.astype(np.float64)).astype(np.float32), labels)
    np.testing.assert_allclose(probe.scale.numpy(), norm * wanted.scale.numpy(), rtol=1e-4)
    np.testing.assert_allclose(predict(probe, norm * states), predict(wanted, states), atol=1e-3)


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


@given(st.lists(st.text("abcdefghXYZ", min_size=1), min_size=1).map(" ".join), st.text(".,?! ", max_size=3))
def test_split_never_parts_questions_that_are_equal_but_for_case_and_punctuation(question: str, tail: str) -> None:
    assert (
        split_of(question)
        == split_of(question.upper())
        == split_of(f"  {question}{tail}")
        == split_of(question.replace(" ", ", "))
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
    assert fit.train_loss == pytest.approx(log_loss(labels[100:], predict(probe, states[100:]), balanced(labels[100:])))
    assert probe.epochs == 20


def test_one_good_epoch_is_training() -> None:
    states, labels = separable(400)
    how = {"hidden_width": 64, "learning_rate": 5e-3, "epochs": 1, "early_stopping": False}
    told: list[float] = []
    _, fit = fit_probe(states, labels, validation=separable(50), on_epoch=lambda _, loss: told.append(loss), **how)
    assert fit.train_loss < 0.8 * told[-1]  # a mean over the epoch, most of it before


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


@pytest.mark.parametrize("biases", [True, False])
def test_an_mlp_is_read_with_the_biases_that_its_card_has(biases: bool) -> None:
    probe = make_probe("mlp", 6, 10, biases=biases)
    data = probe_to_bytes(probe, ProbeCard("mlp", 4, 6, 10, biases=biases))
    loaded, card = probe_from_bytes(data, "here")
    x = torch.randn(5, 6)
    assert torch.equal(p_unknown(loaded, x), p_unknown(probe, x))
    assert ("gate and up with biases" in card_page(card)) == biases


def test_the_epochs_of_an_mlp_are_saved_with_it() -> None:
    probe, _ = fit_probe(*separable(60), validation=separable(20, seed=1), hidden_width=4, epochs=3, early_stopping=False)
    again, card = probe_from_bytes(probe_to_bytes(probe, ProbeCard("mlp", 0, 8, 4, biases=True)), "here")
    assert again.epochs == card.epochs == 3


def test_an_mlp_saved_before_there_were_biases_is_still_read() -> None:
    probe, card = make_probe("mlp", 6, 10), asdict(ProbeCard("mlp", 4, 6, 10))
    del card["biases"]
    weights = {name: tensor.contiguous() for name, tensor in probe.state_dict().items()}
    loaded, read = probe_from_bytes(save(weights, {"card": json.dumps(card)}), "here")
    x = torch.randn(5, 6)
    assert not read.biases
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


def file_with(values: dict[str, object], kind: Kind = "linear") -> bytes:
    """A probe of width 6 of whose card and tensors some are others, or left out."""
    weights = {name: tensor.contiguous() for name, tensor in make_probe(kind, 6, 3).state_dict().items()}
    weights |= {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
    card = {"format_version": 1, **asdict(ProbeCard(kind, 4, 6, 3)), **values}
    written = {name: value for name, value in card.items() if not isinstance(value, torch.Tensor) and value != "left out"}
    return save(weights, {"card": json.dumps(written)})


ONES = torch.ones(6)
DAMAGE: list[tuple[dict[str, object], str]] = [
    *[({name: ONES * float("nan")}, f"{name} holds values that are not finite") for name in ("mean", "scale")],
    *[({name: torch.tensor(float("inf"))}, f"{name} holds values that are not finite") for name in ("slope", "offset")],
    ({"head.weight": torch.full((2, 6), float("nan"))}, "head.weight holds values that are not finite"),
    ({"scale": ONES * 0}, "scale is not above zero"),
    ({"scale": -ONES}, "scale is not above zero"),
    ({"slope": torch.tensor(-1.0)}, "slope is not above zero"),
    ({"curve": torch.tensor([[0.0, 1.0], [0.5, 3.0]])}, "curve does not rise"),
    ({"curve": torch.tensor([[0.0, 1.0], [0.5, 0.4]])}, "curve does not rise"),
    ({"curve": torch.tensor([[1.0, 0.0], [0.4, 0.5]])}, "curve does not rise"),
    ({"curve": torch.tensor([[0.0, 0.0], [0.4, 0.5]])}, "curve does not rise"),
    ({"curve": torch.zeros(2, 1)}, r"curve is of shape \(2, 1\)"),
    ({"curve": torch.zeros(5)}, r"curve is of shape \(5,\)"),
    ({"curve": torch.zeros(3, 7)}, r"curve is of shape \(3, 7\)"),
    ({"head.weight": torch.ones((2, 6), dtype=torch.int32)}, "head.weight is int32"),
    ({"mean": torch.zeros(7)}, r"mean is of shape \(7,\), its card says \(6,\)"),
    ({"other": ONES}, "other is not in both"),
    ({"kind": "forest"}, "kind: "),
    ({"layer": "three"}, "layer: "),
    ({"layer": None}, "layer: "),
    ({"layer": 3.5}, "layer: "),
    ({"layer": -1}, "layer: "),
    ({"dimension": "8"}, "dimension: "),
    ({"dimension": 6.0}, "dimension: "),
    ({"dimension": -8}, "dimension: "),
    ({"dimension": 10**12}, "its card says 1000000000000 x 1"),
    ({"kind": "mlp", "hidden_width": 10**9}, "its card says 6 x 1000000000"),
    ({"figures": None}, "figures: "),
    ({"figures": [1]}, "figures: "),
    ({"figures": {"test": {}}}, "figures: .*test has no number rows"),
    ({"position": "left out"}, "position: it is missing"),
    ({"position": "left out", "format_version": "left out"}, "position: it is missing"),
    ({"biases": "left out"}, "biases: it is missing"),
    ({"source": {"model": "m"}}, "source.revision: "),
    ({"calibration": "magic"}, "calibration: "),
    ({"colour": "red"}, "colour: "),
    ({"format_version": "one"}, "format_version: one"),
]


@pytest.mark.parametrize(("values", "message"), DAMAGE, ids=[f"{i} {message}" for i, (_, message) in enumerate(DAMAGE)])
def test_a_probe_with_a_wrong_card_or_weights_is_refused_in_one_line(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=rf"^runs/x: the probe(.s card)? is damaged \({message}") as error:
        probe_from_bytes(file_with(values), "runs/x")
    assert "\n" not in str(error.value)


def test_a_probe_of_a_newer_version_asks_for_it_and_one_from_before_versions_is_read() -> None:
    with pytest.raises(UserError, match=r"runs/x: a probe of a newer ka2l-ray \(format 2, this one reads 1\); upgrade"):
        probe_from_bytes(file_with({"format_version": 2, "colour": "red"}), "runs/x")
    _, card = probe_from_bytes(file_with({"format_version": "left out", "biases": "left out"}), "runs/x")
    assert card == ProbeCard("linear", 4, 6, 3)


def test_json_nested_without_end_is_no_probe() -> None:
    for header in (b"[" * 100_000, json.dumps({"__metadata__": {"card": "[" * 100_000}}).encode()):
        with pytest.raises(UserError, match="runs/x: not a probe"):
            probe_from_bytes(len(header).to_bytes(8, "little") + header, "runs/x")


def test_reading_a_probe_leaves_the_global_random_numbers_alone() -> None:
    data = file_with({}, "mlp")
    state = torch.get_rng_state()
    probe_from_bytes(data, "here")
    assert torch.equal(torch.get_rng_state(), state)


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
    alike = LayerFit(1, float("nan"), 0.8, 0.4, 0.1)  # validation's targets are all the same: its loss chooses
    assert better(LayerFit(2, float("nan"), 0.8, 0.3, 0.1), alike)
    assert better(fit, alike)


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


def at_norm(norm: float, n: int = 500, d: int = 96, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """States of length ``norm`` that say the label in a few directions, beside a direction that all share."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.35).astype(np.int8)
    states = rng.normal(size=(n, d)) * np.geomspace(0.05, 3, d)
    states[:, ::9] += 0.5 * np.geomspace(0.05, 3, d)[::9] * (2 * labels[:, None] - 1)
    states[:, 0] += 20
    return (norm * states / np.linalg.norm(states, axis=1, keepdims=True)).astype(np.float32), labels


def reference(states: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """scikit-learn's LogisticRegression on standardised states, from its definition: C = 1, the intercept free, in float64."""
    mean, scale = states.mean(0, dtype=np.float64), states.std(0, dtype=np.float64)
    x, sign = (states - mean) / scale, 2.0 * labels - 1

    def loss(at: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (x @ at[1:] + at[0])
        slope = -sign / (1 + np.exp(margin))
        return np.logaddexp(0, -margin).sum() + 0.5 * at[1:] @ at[1:], np.concatenate([[slope.sum()], slope @ x + at[1:]])

    at = minimize(loss, np.zeros(1 + states.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 5000}).x
    return lambda rows: ((rows - mean) / scale) @ at[1:] + at[0]


@pytest.mark.parametrize("norm", [0.5, 5, 50])
def test_the_linear_probe_ranks_as_a_converged_logistic_regression_whatever_the_norm(norm: float) -> None:
    states, labels = at_norm(norm)
    unseen, truth = at_norm(norm, 2000, seed=1)
    validation = np.arange(500) >= 400
    probe, _, _ = fit_layers({0: states}, labels, validation=validation, kind="linear")
    p = predict(probe, unseen)
    wanted = auroc(truth, reference(states[~validation], labels[~validation])(unseen))
    assert wanted > 0.8
    assert auroc(truth, p) == pytest.approx(wanted, abs=0.005)
    assert calibration_error(truth, p) < 0.05
    assert p.min() < 0.1
    assert p.max() > 0.8


def test_the_mlp_does_not_depend_on_the_norm_either_and_the_papers_schedule_stays() -> None:
    spread = {}
    paper = {"learning_rate": 1e-5, "epochs": 20, "standardize": False, "early_stopping": False, "calibration": "none"}
    for name, norm, how in (("short", 0.5, {}), ("long", 50, {}), ("paper", 1, paper)):
        states, labels = at_norm(norm, d=24)
        settings = {"kind": "mlp", "hidden_width": 64, "learning_rate": 1e-3, "epochs": 40, **how}
        probe, _, _ = fit_layers({0: states}, labels, validation=np.arange(500) >= 400, **settings)
        p = predict(probe, at_norm(norm, 1000, 24, seed=1)[0])
        spread[name] = p.min(), p.max()
    assert spread["short"][1] - spread["short"][0] > 0.5
    assert spread["long"] == pytest.approx(spread["short"], abs=0.05)
    assert spread["paper"][1] - spread["paper"][0] < 0.1  # all about 0.5: untrained


def test_the_mlp_stops_when_validation_stops_falling_and_keeps_its_best_weights() -> None:
    states, labels = at_norm(5, 200)
    held_out = at_norm(5, 100, seed=1)
    told: list[float] = []
    how = {**SETTINGS, "learning_rate": 1e-2, "epochs": 300, "patience": 3, "class_weights": "none"}
    probe, _ = fit_probe(states, labels, validation=held_out, on_epoch=lambda _, loss: told.append(loss), **how)
    assert len(told) < 300
    assert probe.epochs == len(told) - 3  # which were no better
    before = fit_probe(states, labels, validation=held_out, **{**how, "epochs": len(told) - 3})[0]
    assert torch.equal(probe.head.weight, before.head.weight)


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_class_weights_move_the_cut_and_calibration_moves_it_back(kind: str) -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(2000) < 0.1).astype(np.int8)
    states = (rng.normal(size=(2000, 6)) + 0.8 * labels[:, None]).astype(np.float32)
    validation = np.arange(2000) >= 1000
    how = {"kind": kind, "hidden_width": 16, "learning_rate": 1e-2}
    mean = {}
    for weights, calibration in (("balanced", "none"), ("none", "none"), ("balanced", "platt"), ("balanced", "isotonic")):
        settings = {"class_weights": weights, "calibration": calibration}
        probe, _, _ = fit_layers({0: states}, labels, validation=validation, **settings, **how)
        assert probe.calibration == calibration
        mean[weights, calibration] = predict(probe, states[validation]).mean()
    assert mean["balanced", "none"] > 0.2
    for each in (("none", "none"), ("balanced", "platt"), ("balanced", "isotonic")):
        assert mean[each] == pytest.approx(0.1, abs=0.03)


def test_copies_of_a_question_do_not_calibrate_the_probe_that_was_fitted_on_them() -> None:
    unseen, truth = at_norm(5, 4000, seed=9)
    errors = {}
    for name, copies in (("once", 1), ("six times", 6), ("six times, of questions", 6)):
        found = []
        for seed in range(3):
            states, labels = (np.repeat(each, copies, axis=0) for each in at_norm(5, 250, seed=seed))
            groups = None
            if name.endswith("questions"):  # whose states are not quite the same
                states = states + 1e-3 * np.random.default_rng(0).normal(size=states.shape).astype(np.float32)
                groups = [f"Question {i // copies}" for i in range(len(labels))]
            validation = np.repeat(np.arange(250) >= 200, copies)
            probe, _, _ = fit_layers({0: states}, labels, validation=validation, kind="linear", groups=groups)
            assert probe.calibration == "platt", "1200 rows of 200 questions are 200"
            found.append(calibration_error(truth, predict(probe, unseen)))
        errors[name] = np.mean(found)
    assert max(errors.values()) < errors["once"] + 0.04


def test_few_questions_calibrate_the_mlp_on_all_that_it_was_fitted_and_validated_on() -> None:
    errors = []
    for seed in range(3):
        states, labels = at_norm(5, 400, 64, seed=seed)
        unseen, truth = at_norm(5, 4000, 64, seed=100 + seed)
        how = {"kind": "mlp", "hidden_width": 128, "learning_rate": 1e-3}
        probe, _, _ = fit_layers({0: states}, labels, validation=np.arange(400) >= 320, **how)
        errors.append(calibration_error(truth, predict(probe, unseen)))
    assert np.mean(errors) < 0.03


def test_states_that_are_all_alike_have_the_base_rate() -> None:
    labels = (np.arange(60) % 3 == 0).astype(np.int8)
    for kind in ("linear", "mlp"):
        for calibration in ("platt", "isotonic"):
            how = {"kind": kind, "hidden_width": 4, "epochs": 1, "calibration": calibration}
            probe, _, _ = fit_layers({0: np.ones((60, 3), np.float32)}, labels, validation=np.arange(60) >= 30, **how)
            p = predict(probe, np.array([[1, 1, 1], [1, 2, 0]], np.float32))
            assert np.isfinite(p).all(), (kind, calibration)
            assert p[0] == pytest.approx(1 / 3, abs=0.02)


def test_a_probe_with_its_curve_survives_saving() -> None:
    states, labels = at_norm(5)
    for calibration in ("platt", "isotonic"):
        probe, fit, _ = fit_layers({3: states}, labels, validation=np.arange(500) >= 400, kind="linear", calibration=calibration)
        source = Source("m/model", "abc", 4, None, {"instruction": "Be | brief."}, "0123")
        found = {"test": summary(labels, predict(probe, states))}
        card = ProbeCard("linear", fit.layer, 96, 1, calibration=calibration, source=source, figures=found)
        again, read = probe_from_bytes(probe_to_bytes(probe, card), "here")
        assert read == card
        assert again.calibration == calibration
        np.testing.assert_array_equal(predict(again, states), predict(probe, states))
        page = card_page(card)
        assert all(word in page for word in ("m/model @ abc", "layer 3", calibration, "Brier score", "KnowledgeProbe.load"))


def test_attention_finds_the_token_that_says_the_label_where_the_mean_and_the_last_do_not() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 600).astype(np.int8)
    tokens = rng.normal(size=(600, 30, 8)).astype(np.float32)
    place = rng.integers(0, 20, 600)
    tokens[np.arange(600), place, 0] += 8  # marks the token to read
    tokens[np.arange(600), place, 1] += 3 * (2 * labels - 1)
    tokens[rng.random(600) < 0.5, 25:] = np.nan  # shorter prompts
    validation = np.arange(600) >= 400
    found = {}
    for name, states in {"attention": tokens, "mean": np.nanmean(tokens, 1), "last": tokens[:, 24]}.items():
        found[name] = fit_layers({5: states}, labels, validation=validation, kind="linear")[1].validation_auroc
    assert found["attention"] > 0.97
    assert found["attention"] > found["mean"] + 0.05
    assert found["last"] < 0.6


def test_the_mlp_weighs_tokens_as_well_as_the_line() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 500).astype(np.int8)
    tokens = rng.normal(size=(500, 20, 8)).astype(np.float32)
    place = np.arange(500), rng.integers(0, 20, 500)
    tokens[(*place, 0)] += 8  # marks the token to read
    tokens[(*place, 1)] += 3 * (2 * labels - 1)
    part, validation = (tokens[:350], labels[:350]), (tokens[350:], labels[350:])
    line, _ = fit_probe(*part, validation=validation, kind="linear")
    assert line.query is not None
    for standardize in (True, False):
        how = {"kind": "mlp", "hidden_width": 64, "standardize": standardize}
        untrained, _ = fit_probe(*part, validation=validation, epochs=1, learning_rate=1e-12, **how)
        assert untrained.query is not None
        scores = [(tokens / probe.scale.numpy()) @ probe.query.detach().numpy() for probe in (line, untrained)]
        np.testing.assert_allclose(scores[1], scores[0], atol=1e-4)  # ranks a question's tokens as the line does
        assert fit_probe(*part, validation=validation, epochs=8, **how)[1].validation_auroc > 0.9


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_soft_target_ranks_and_is_calibrated_against_the_label(kind: str) -> None:
    rng = np.random.default_rng(0)
    states = rng.normal(size=(500, 6)).astype(np.float32)
    targets = (1 / (1 + np.exp(-2 * states[:, 0]))).astype(np.float32)
    labels = (targets > 0.8).astype(np.int8)
    how = {"kind": kind, "hidden_width": 16, "learning_rate": 1e-2, "targets": targets, "validation": np.arange(500) >= 350}
    probe, fit, _ = fit_layers({0: states}, labels, **how)
    assert fit.validation_auroc > 0.92  # of the targets' order
    assert predict(probe, states).mean() == pytest.approx(labels.mean(), abs=0.05)
    blank, _, _ = fit_layers({0: states}, np.ones(500, np.int8), **how)  # no threshold parts them: it says the target itself
    assert blank.calibration == "none"
    assert np.abs(predict(blank, states) - targets).mean() < 0.1


def test_soft_targets_are_the_share_outside_the_largest_meaning_and_the_entropy_as_a_share_of_the_most() -> None:
    ids = [0, 0, 0, 1, 2]
    assert soft_target("soft", 0.95, ids) == pytest.approx(0.4)
    assert soft_target("semantic_entropy", 0.95, ids) == pytest.approx(0.95 / np.log(5))
    assert soft_target("semantic_entropy", 0.0, [0]) == 0
    assert soft_target("soft", 0.0, [0] * 10, unanswered=True) == soft_target("semantic_entropy", 0.0, [0], unanswered=True) == 1
    alike = np.full(5, 0.4, np.float32)
    parts = {"train": np.arange(3), "validation": np.arange(3, 5), "test": np.arange(0)}
    with pytest.raises(DegenerateLabelsError, match=r"target soft is the same for all 3 questions of the probe's train part"):
        check_targets(alike, parts, "soft")


def test_a_hundred_questions_do_not_call_a_real_signal_nothing() -> None:
    """Of AUROC 0.83, with a p that is off, as one of a hundred rows is; where there is none, the same p is told."""
    fit = LayerFit(0, 0.8, 0.8, 0.5, 0.3)
    train = np.arange(300) % 5 == 0
    told = {0.0: 0, 1.35: 0}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        labels = (rng.random(100) < 0.2).astype(np.int8)
        for distance in told:
            p = 1 / (1 + np.exp(-2 * (rng.normal(size=100) + distance * labels)))
            told[distance] += learned_nothing(fit, train.astype(np.int8), "balanced", figures(labels, p)) is not None
    assert told[1.35] <= 1
    assert told[0.0] >= 19


def test_a_probe_that_learned_nothing_is_told() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(400) < 0.3).astype(np.int8)
    noise = rng.normal(size=(400, 5)).astype(np.float32)
    validation = np.arange(400) >= 250
    untrained = {"kind": "mlp", "hidden_width": 8, "learning_rate": 1e-7, "epochs": 1, "early_stopping": False}
    _, fit, _ = fit_layers({2: noise}, labels, validation=validation, **untrained)
    told = learned_nothing(fit, labels[~validation], "balanced", figures(labels[validation], np.full(150, 0.3)))
    assert told is not None
    assert "stayed at 0.69" in told
    assert "raise probe.epochs" in told
    states, truth = separable(400)
    probe, fit, _ = fit_layers({2: states}, truth, validation=validation, kind="linear")
    good = figures(truth[validation], predict(probe, states[validation]))
    assert learned_nothing(fit, truth[~validation], "balanced", good) is None
    assert learned_nothing(fit, truth[~validation], "balanced", None) is None
    alike = figures(np.ones(150), np.full(150, 0.6))  # one class: there is nothing to say
    assert learned_nothing(fit, truth[~validation], "balanced", alike) is None
    assert "it says nothing about other questions" in (
        learned_nothing(fit, truth[~validation], "balanced", figures(truth[validation], rng.normal(0.4, 0.01, 150))) or ""
    )
    blind = figures(truth[validation], np.full(150, truth.mean()))
    assert "it says nothing about other questions" in (learned_nothing(fit, truth[~validation], "balanced", blind) or "")
