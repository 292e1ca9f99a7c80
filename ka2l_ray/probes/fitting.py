"""Fitting probes (KA2L section 3.2.3): one a layer, without Ray.

The paper chooses the layer on the test set; here validation chooses, and the test part is touched once, by the caller.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ka2l_ray.config import ProbeConfig
from ka2l_ray.probes.networks import Kind, LinearProbe, Probe, logit_of, make_probe, p_unknown
from ka2l_ray.seeds import derive_seed
from ka2l_ray.uncertainty.calibration import ISOTONIC_FROM, Figures, auroc_interval, isotonic_regression, log_loss, platt_scaling
from ka2l_ray.uncertainty.ranking import concordance

DEFAULTS = ProbeConfig()
FOLDS = 5
"""Rows from which isotonic calibration is no worse than Platt's (Niculescu-Mizil and Caruana, 2005)."""
CHUNK = 4096  # rows of one forward pass
LEAST_GAIN = 0.02
"""Of what could be gained over the base rate's entropy: a probe that gains less has learned nothing."""
LEAST_AUROC = 0.6
"""An AUROC whose 95 % interval goes below may be chance, and the choice among layers."""

Weights = tuple[float, float]
"""Of what is known and of what is unknown, in the loss."""
Calibration = Literal["auto", "platt", "isotonic", "none"]


@dataclass(frozen=True)
class LayerFit:
    """How well one layer's probe does on validation, before calibration. Losses are cross-entropies with the target, nats; that
    of training is of the weights that were kept, weighed as in training."""

    layer: int
    validation_auroc: float
    validation_accuracy: float
    validation_loss: float
    train_loss: float


def fit_probe(
    states: NDArray[np.floating],
    targets: NDArray[np.int8] | NDArray[np.floating],
    *,
    validation: tuple[NDArray[np.floating], NDArray[np.int8] | NDArray[np.float32]],
    layer: int = 0,
    kind: Kind = DEFAULTS.kind,
    hidden_width: int = DEFAULTS.hidden_width,
    learning_rate: float = DEFAULTS.learning_rate,
    epochs: int = DEFAULTS.epochs,
    batch_size: int = DEFAULTS.batch_size,
    standardize: bool = DEFAULTS.standardize,
    early_stopping: bool = DEFAULTS.early_stopping,
    patience: int = DEFAULTS.patience,
    class_weights: Literal["balanced", "none"] = DEFAULTS.class_weights,
    seed: int = 0,
    device: str = "cpu",
    on_epoch: Callable[[int, float], None] | None = None,
) -> tuple[Probe, LayerFit]:
    """Fit one layer's probe: ``mlp`` with cross-entropy and Adam, ``linear`` by ridge logistic regression to convergence.

    Args:
        states: (n, d) training states; (n, T, d) of tokens, padded with NaN, for a probe that learns how to weigh them.
        targets: (n,) 1 unknown, 0 known, or between.
        validation: states and targets that choose among layers, and end the training of ``mlp``.
        hidden_width: of ``mlp``, as are learning rate, epochs, batch size, early stopping, patience and seed: ``linear``
            converges, whatever the seed.
        standardize: by mean and scale of ``states``. ``linear`` always does; ``mlp`` then has biases.
        early_stopping: end after ``patience`` epochs whose validation loss is no lower than the lowest, whose weights are kept.
        class_weights: ``balanced`` weighs both labels alike, however many of each there are.
        on_epoch: told (epoch, mean training loss in nats) after each pass.
    """
    weights = balanced(targets) if class_weights == "balanced" else (1.0, 1.0)
    if kind == "linear":
        line = logistic_regression(states, targets, weights=weights, device=device)
        return line, _judged(line, layer, validation, log_loss(targets, predict(line, states), weights))
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = make_probe(kind, states.shape[-1], hidden_width, attention=states.ndim == 3, biases=standardize)
    if standardize:
        probe.standardise(states)
    if probe.query is not None:
        probe.query.data.copy_(_query_of_line(probe, states, targets, weights, device))
    probe = probe.to(device)
    schedule: dict[str, Any] = {"learning_rate": learning_rate, "epochs": epochs, "batch_size": batch_size, "on_epoch": on_epoch}
    watched = (*validation, patience) if early_stopping else None
    probe.epochs = _train(probe, states, targets, weights, generator, watched, **schedule)
    train_loss = log_loss(targets, predict(probe, states), weights)
    probe = probe.cpu().eval()
    return probe, _judged(probe, layer, validation, train_loss)


def _query_of_line(probe: Probe, states: NDArray[np.floating], targets: NDArray[Any], weights: Weights, device: str) -> Tensor:
    """(D,) the query of ``linear``, in the units of the probe's states: from zero on, Adam hardly finds one.

    Its score of a token is query . (state - mean) / scale, of which the mean adds the same to all tokens.
    """
    line = logistic_regression(states, targets, weights=weights, device=device)
    assert line.query is not None
    return line.query.detach() / line.scale * probe.scale


def balanced(targets: NDArray[Any]) -> Weights:
    """Weights under which known and unknown have half of the loss each."""
    share = float(np.mean(targets, dtype=np.float64))
    return (1.0, 1.0) if share in (0.0, 1.0) else (0.5 / (1 - share), 0.5 / share)


def _train(
    probe: Probe,
    states: NDArray[np.floating],
    targets: NDArray[Any],
    weights: Weights,
    generator: torch.Generator,
    watched: tuple[NDArray[np.floating], NDArray[Any], int] | None,
    *,
    learning_rate: float,
    epochs: int,
    batch_size: int,
    on_epoch: Callable[[int, float], None] | None,
) -> int:
    """Adam on the cross-entropy; the number of epochs after which the weights were as they stay."""
    device = probe.mean.device
    x = torch.from_numpy(np.asarray(states, np.float32)).to(device)
    y_N = torch.from_numpy(np.asarray(targets, np.float32)).to(device)
    optimizer = torch.optim.Adam(probe.parameters(), lr=learning_rate, fused=True)
    best: dict[str, Tensor] | None = None
    best_loss, kept, waited = float("inf"), epochs, 0
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(x), generator=generator).to(device).split(batch_size):
            logits_B2 = probe(x[rows])
            loss = _cross_entropy(logits_B2[:, 1] - logits_B2[:, 0], y_N[rows], weights)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        if on_epoch is not None:
            on_epoch(epoch, total / len(x))
        if watched is None:
            continue
        held_out, wanted, patience = watched
        reached = log_loss(wanted, predict(probe, held_out), weights)
        if reached < best_loss:
            best, best_loss, kept, waited = copy.deepcopy(probe.state_dict()), reached, epoch + 1, 0
        else:
            waited += 1
            if waited >= patience:
                break
    if best is not None:
        probe.load_state_dict(best)
    return kept


def _cross_entropy(logit_B: Tensor, target_B: Tensor, weights: Weights) -> Tensor:
    """Mean over rows, nats."""
    softplus = nn.functional.softplus
    return (weights[1] * target_B * softplus(-logit_B) + weights[0] * (1 - target_B) * softplus(logit_B)).mean()


def logistic_regression(
    states: NDArray[np.floating], targets: NDArray[Any], *, weights: Weights = (1.0, 1.0), device: str = "cpu"
) -> LinearProbe:
    """Maximum likelihood on standardised states with the ridge of scikit-learn's default (C = 1), by L-BFGS to convergence.

    Args:
        states: (n, d), or (n, T, d) of tokens: then the weights of the tokens are fitted with it, from their mean on.
        targets: (n,) 1 or True: the second class; or between.
    """
    probe = LinearProbe(states.shape[-1], attention=states.ndim == 3)
    probe.standardise(states)
    x = ((torch.from_numpy(np.asarray(states, np.float32)) - probe.mean) / probe.scale).to(device)
    y_N = torch.from_numpy(np.asarray(targets, np.float32)).to(device)
    weight_D = torch.zeros(x.shape[-1], device=device, requires_grad=True)
    bias = torch.zeros((), device=device, requires_grad=True)
    line = [weight_D, bias]
    if probe.query is None:
        _minimise(lambda: x @ weight_D + bias, line, y_N, weights)
    else:
        mean_ND = x.nanmean(1)
        _minimise(lambda: mean_ND @ weight_D + bias, line, y_N, weights)
        query_D = torch.zeros_like(weight_D, requires_grad=True)
        _minimise(lambda: Probe.pooled(x, query_D) @ weight_D + bias, [*line, query_D], y_N, weights)
        probe.query.data.copy_(query_D.detach())
    with torch.no_grad():
        probe.head.weight.copy_(torch.stack([-weight_D, weight_D]) / 2)
        probe.head.bias.copy_(torch.stack([-bias, bias]) / 2)
    return probe.eval()


def _minimise(logit: Callable[[], Tensor], parameters: Sequence[Tensor], y_N: Tensor, weights: Weights) -> None:
    """Cross-entropy and a ridge on all but scalars, by L-BFGS."""
    optimizer = torch.optim.LBFGS(parameters, max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        ridge = torch.stack([(each**2).sum() for each in parameters if each.ndim]).sum()
        total = _cross_entropy(logit(), y_N, weights) + 0.5 * ridge / len(y_N)
        total.backward()
        return total

    optimizer.step(loss)


def predict(probe: Probe, states: NDArray[np.floating]) -> NDArray[np.float32]:
    """(n,) p(unknown), from states in any float dtype."""
    return _by_chunks(p_unknown, probe, states)


def _by_chunks(read: Callable[[Probe, Tensor], Tensor], probe: Probe, states: NDArray[np.floating]) -> NDArray[np.float32]:
    chunks = [states[i : i + CHUNK] for i in range(0, len(states), CHUNK)]
    on = probe.mean.device
    found = [read(probe, torch.from_numpy(np.array(chunk, np.float32)).to(on)).cpu().numpy() for chunk in chunks]
    return np.concatenate(found) if found else np.empty(0, np.float32)


def _judged(probe: Probe, layer: int, validation: tuple[NDArray[np.floating], NDArray[Any]], train_loss: float) -> LayerFit:
    truth, p = validation[1], predict(probe, validation[0])
    accuracy = float(((p >= 0.5) == (truth >= 0.5)).mean())
    return LayerFit(layer, concordance(truth, p), accuracy, log_loss(truth, p), train_loss)


def better(a: LayerFit, b: LayerFit) -> bool:
    """Whether ``a`` is to be chosen before ``b``: by validation AUROC, then loss, then the earlier layer."""
    return _rank(a) < _rank(b)


def _rank(fit: LayerFit) -> tuple[float, float, int]:
    auroc = 0.5 if np.isnan(fit.validation_auroc) else fit.validation_auroc  # of equal targets
    return -auroc, fit.validation_loss, fit.layer


def fit_layers(
    states: Mapping[int, NDArray[np.floating]],
    labels: NDArray[np.int8],
    *,
    validation: NDArray[np.bool_],
    targets: NDArray[np.floating] | None = None,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
    calibration: Calibration = DEFAULTS.calibration,
    **how: Any,
) -> tuple[Probe, LayerFit, list[LayerFit]]:
    """One probe a layer: the probe that does best on validation, calibrated, how well it does, and how well each layer's does.

    Args:
        states: (n, d) of each layer, or (n, T, d).
        labels: (n,) 1 unknown, 0 known.
        validation: (n,) the rows that choose among layers; the others are fitted on.
        targets: (n,) what is fitted in place of the labels, 0 to 1.
        groups: as of ``calibrate``.
        how: further arguments of ``fit_probe``.
    """
    wanted = labels if targets is None else targets
    best: tuple[Probe, LayerFit] | None = None
    fits = []
    for layer, rows in states.items():
        held_out = (rows[validation], wanted[validation])
        probe, fit = fit_probe(
            rows[~validation], wanted[~validation], validation=held_out, layer=layer, seed=layer_seed(seed, layer), **how
        )
        fits.append(fit)
        if best is None or better(fit, best[1]):
            best = probe, fit
    assert best is not None
    probe, fit = best
    how |= {"layer": fit.layer, "seed": layer_seed(seed, fit.layer), "targets": wanted, "groups": groups}
    calibrate(probe, states[fit.layer], labels, validation, calibration, **how)
    return probe, fit, fits


def layer_seed(seed: int, layer: int) -> int:
    return derive_seed(seed, "probe", layer) % 2**63


def calibrate(
    probe: Probe,
    states: NDArray[np.floating],
    labels: NDArray[np.int8],
    validation: NDArray[np.bool_],
    method: Calibration,
    *,
    targets: NDArray[Any],
    groups: Sequence[Hashable] | None = None,
    **how: Any,
) -> None:
    """Give a fitted probe the curve from its logit to a probability; its ``calibration`` says which.

    The curve is fitted to rows that are each scored by a probe of the other four fifths (cross-fitting): validation alone has few
    rows, and has chosen the layer. ``linear`` uses the training part; ``mlp`` both, whose four fifths are as many rows as it was
    fitted on, and trains for as many epochs as validation chose. None where the labels hold one class only.

    Args:
        states: (n, d) of the probe's layer.
        validation: (n,) rows that the probe was not fitted on.
        targets, how: as the probe was fitted.
        groups: (n,) what rows must not be parted by in cross-fitting, such as their questions; equal states where there are none.
    """
    rows = np.flatnonzero(~validation) if isinstance(probe, LinearProbe) else np.arange(len(labels))
    truth = labels[rows]
    if method == "none" or len(set(truth.tolist())) < 2:
        return
    if probe.epochs is not None:
        how = {**how, "epochs": probe.epochs, "early_stopping": False}
    group = _numbered([states[row].tobytes() if groups is None else groups[row] for row in rows.tolist()])
    logits = _cross_fitted_logits(states[rows], targets[rows], group, **how)
    if method == "isotonic" or (method == "auto" and group.max() + 1 >= ISOTONIC_FROM):
        probe.curve = torch.from_numpy(np.stack(isotonic_regression(logits, truth))).float()
        probe.calibration = "isotonic"
        return
    slope, offset = platt_scaling(logits, truth)
    probe.slope.fill_(slope)
    probe.offset.fill_(offset)
    probe.calibration = "platt"


def _numbered(groups: Sequence[Hashable]) -> NDArray[np.int64]:
    """(n,) numbers of the groups from 0, in the order in which they come."""
    numbers = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    return np.array([numbers[group] for group in groups], np.int64)


def _cross_fitted_logits(
    states: NDArray[np.floating], targets: NDArray[Any], group: NDArray[np.int64], **how: Any
) -> NDArray[np.float64]:
    """(n,) of a probe that was fitted on rows of other groups; where there is one group, on the same."""
    fold = (np.random.default_rng(0).permutation(group.max() + 1) % FOLDS)[group]
    logits = np.zeros(len(targets))
    for held_out in np.unique(fold):
        test = fold == held_out
        rest = test if test.all() else ~test
        part, _ = fit_probe(states[rest], targets[rest], validation=(states[test], targets[test]), **how)
        logits[test] = _by_chunks(logit_of, part, states[test])
    return logits


def learned_nothing(
    fit: LayerFit, targets: NDArray[Any], class_weights: Literal["balanced", "none"], held_out: Figures | None
) -> str | None:
    """A warning, where the training loss stayed at the base rate's entropy, or where p(unknown) is no better than the base rate
    and its AUROC may be chance: of a hundred rows the loss alone says too little.

    Args:
        targets: of the training part.
        held_out: figures of the calibrated probe on rows that it was not fitted on; None where they have no labels.
    """
    weights = balanced(targets) if class_weights == "balanced" else (1.0, 1.0)
    unknown, known = (weights[1] * float(np.mean(targets)), weights[0] * float(np.mean(1.0 - targets)))
    base = log_loss(targets, np.full(len(targets), unknown / (unknown + known)), weights)
    floor = log_loss(targets, targets, weights)
    if base - fit.train_loss < LEAST_GAIN * (base - floor):
        return (
            f"the training loss of layer {fit.layer} stayed at {fit.train_loss:.4f} nats, the base rate's entropy is {base:.4f}: "
            "the probe is not trained; raise probe.epochs or probe.learning_rate, or leave probe.standardize on"
        )
    if held_out is None or np.isnan(held_out.auroc):  # no labels, or all alike
        return None
    low, high = auroc_interval(held_out)
    if held_out.log_loss > (1 - LEAST_GAIN) * held_out.base_rate_entropy and low < LEAST_AUROC:
        return (
            f"on {held_out.rows} questions it was not fitted on the probe's loss is {held_out.log_loss:.4f} nats, that of always "
            f"saying the base rate {held_out.base_rate_entropy:.4f}, and its AUROC is within {low:.2f} and "
            f"{high:.2f}: it says nothing about other questions; raise "
            "pool.probing_size, or look at the labels (entropy.rule)"
        )
    return None
