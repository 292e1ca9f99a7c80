"""Probes: classifiers of known/unknown on one layer's hidden states (KA2L section 3.2.3), fitted and judged without Ray.

The paper chooses the layer on the test set; here validation chooses, and the test part is touched once, by the caller.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from ka2l_ray.config import ProbeConfig
from ka2l_ray.errors import UserError
from ka2l_ray.normalization import normalize_question
from ka2l_ray.seeds import derive_seed
from ka2l_ray.uncertainty.ranking import auroc

Kind = Literal["mlp", "linear"]
Part = Literal["train", "validation", "test"]
DEFAULTS = ProbeConfig()


class MLPProbe(nn.Module):
    """KA2L's probe, "4 linear layers and 1 SiLU": head(down(silu(gate(x)) * up(x))); 3 d w + 2 d + 2 parameters."""

    def __init__(self, dimension: int, hidden_width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dimension, hidden_width, bias=False)
        self.up = nn.Linear(dimension, hidden_width, bias=False)
        self.down = nn.Linear(hidden_width, dimension, bias=False)
        self.head = nn.Linear(dimension, 2)

    def forward(self, state_BD: Tensor) -> Tensor:
        """(B, D) states to (B, 2) logits: known, unknown."""
        logits_B2: Tensor = self.head(self.down(nn.functional.silu(self.gate(state_BD)) * self.up(state_BD)))
        return logits_B2


class LinearProbe(nn.Module):
    """Logistic regression, as in semantic-entropy probes."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.head = nn.Linear(dimension, 2)

    def forward(self, state_BD: Tensor) -> Tensor:
        """(B, D) states to (B, 2) logits: known, unknown."""
        logits_B2: Tensor = self.head(state_BD)
        return logits_B2


def make_probe(kind: Kind, dimension: int, hidden_width: int) -> nn.Module:
    return MLPProbe(dimension, hidden_width) if kind == "mlp" else LinearProbe(dimension)


CARD_BYTES = 65536  # a probe's safetensors header is far shorter


@dataclass(frozen=True)
class ProbeCard:
    """What is needed to use a saved probe."""

    kind: Kind
    layer: int
    dimension: int
    hidden_width: int


@dataclass(frozen=True)
class LayerFit:
    """How well one layer's probe does on validation."""

    layer: int
    validation_auroc: float
    validation_accuracy: float
    validation_loss: float
    train_loss: float


class DegenerateLabelsError(UserError):
    """The labels of a part are all the same: there is nothing to tell apart."""


def split_of(question: str) -> Part:
    """Part of a question by hash of its normalised text, 7:2:1; equal questions never part ways."""
    point = int.from_bytes(hashlib.sha256(normalize_question(question).encode()).digest()[:4], "big") / 2**32
    return "train" if point < 0.7 else "validation" if point < 0.9 else "test"


def split_indices(questions: Sequence[str]) -> dict[Part, NDArray[np.int64]]:
    parts = np.array([split_of(question) for question in questions], dtype=object)
    return {part: np.flatnonzero(parts == part) for part in ("train", "validation", "test")}  # type: ignore[misc]


def check_labels(labels: NDArray[np.int8], parts: dict[Part, NDArray[np.int64]]) -> None:
    """Raise DegenerateLabelsError where training or validation holds one label only."""
    if len(set(labels.tolist())) == 1:
        word = "unknown" if labels[0] else "known"
        raise DegenerateLabelsError(f"all {len(labels)} questions of the probing set are labelled {word}: no probe can be fitted")
    for part in ("train", "validation"):
        values = set(labels[parts[part]].tolist())  # type: ignore[index]
        if len(values) < 2:
            size = len(parts[part])  # type: ignore[index]
            raise DegenerateLabelsError(
                f"the probe's {part} part ({size} questions) does not hold both labels: no probe can be fitted; "
                "raise pool.probing_size or choose another entropy.rule"
            )


def check_finite(states: NDArray[np.floating], question_ids: Sequence[str], layer: int) -> None:
    """Raise a UserError that names the first question with a NaN or infinite state."""
    bad = np.flatnonzero(~np.isfinite(states).all(axis=1))
    if len(bad):
        raise UserError(
            f"hidden states: question '{question_ids[bad[0]]}' has a non-finite value in layer {layer} ({len(bad)} of "
            f"{len(states)} questions do); run the model in float32 (model.dtype)"
        )


def fit_probe(
    states: NDArray[np.floating],
    labels: NDArray[np.int8],
    *,
    validation: tuple[NDArray[np.floating], NDArray[np.int8]],
    layer: int = 0,
    kind: Kind = DEFAULTS.kind,
    hidden_width: int = DEFAULTS.hidden_width,
    learning_rate: float = DEFAULTS.learning_rate,
    epochs: int = DEFAULTS.epochs,
    batch_size: int = DEFAULTS.batch_size,
    seed: int = 0,
    device: str = "cpu",
    on_epoch: Callable[[int, float], None] | None = None,
) -> tuple[nn.Module, LayerFit]:
    """Fit one layer's probe: ``mlp`` with cross-entropy and Adam, ``linear`` by ridge logistic regression.

    Args:
        states: (n, d) training states.
        labels: (n,) 1 unknown, 0 known.
        validation: states and labels that choose among layers.
        hidden_width: of ``mlp``, as are learning rate, epochs, batch size and seed: ``linear`` converges, whatever the seed.
        on_epoch: told (epoch, mean training loss in nats) after each pass.
    """
    if kind == "linear":
        line = logistic_regression(states, labels)
        return line, _judged(line, layer, validation, _loss(labels, _predict(line, states)))
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = make_probe(kind, states.shape[1], hidden_width).to(device)
    x_ND = torch.from_numpy(np.asarray(states, np.float32)).to(device)
    y_N = torch.from_numpy(labels.astype(np.int64)).to(device)
    optimizer = torch.optim.Adam(probe.parameters(), lr=learning_rate, fused=True)
    mean_loss = float("nan")
    for epoch in range(epochs):
        order_N = torch.randperm(len(x_ND), generator=generator).to(device)
        total = 0.0
        for rows in order_N.split(batch_size):
            loss = nn.functional.cross_entropy(probe(x_ND[rows]), y_N[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        mean_loss = total / len(x_ND)
        if on_epoch is not None:
            on_epoch(epoch, mean_loss)
    probe = probe.cpu().eval()
    return probe, _judged(probe, layer, validation, mean_loss)


def fit_layers(
    states: Mapping[int, NDArray[np.floating]],
    labels: NDArray[np.int8],
    *,
    validation: NDArray[np.bool_],
    seed: int = 0,
    **how: Any,
) -> tuple[nn.Module, LayerFit, list[LayerFit]]:
    """One probe a layer: the probe that does best on validation, how well it does, and how well each layer's does.

    Args:
        states: (n, d) of each layer.
        labels: (n,) 1 unknown, 0 known.
        validation: (n,) the rows that choose among layers; the others are fitted on.
        how: further arguments of ``fit_probe``.
    """
    best: tuple[nn.Module, LayerFit] | None = None
    fits = []
    for layer, rows in states.items():
        held_out = (rows[validation], labels[validation])
        layer_seed = derive_seed(seed, "probe", layer) % 2**63
        probe, fit = fit_probe(rows[~validation], labels[~validation], validation=held_out, layer=layer, seed=layer_seed, **how)
        fits.append(fit)
        if best is None or better(fit, best[1]):
            best = probe, fit
    assert best is not None
    return *best, fits


def logistic_regression(states: NDArray[np.floating], labels: NDArray[np.int8] | NDArray[np.bool_]) -> LinearProbe:
    """Maximum likelihood on standardised states with the ridge of scikit-learn's default (C = 1), by L-BFGS to convergence.

    The standardisation goes into the weights: the probe takes states as they are.

    Args:
        states: (n, d).
        labels: (n,) 1 or True: the second class.
    """
    x_ND = torch.from_numpy(np.asarray(states, np.float32))
    y_N = torch.from_numpy(np.asarray(labels, np.float32))
    mean_D = x_ND.mean(0)
    scale_D = x_ND.std(0, correction=0).clamp(min=1e-6)
    x_ND = (x_ND - mean_D) / scale_D
    weight_D = torch.zeros(x_ND.shape[1], requires_grad=True)
    bias = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight_D, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = nn.functional.binary_cross_entropy_with_logits(x_ND @ weight_D + bias, y_N, reduction="sum")
        total = (total + 0.5 * (weight_D**2).sum()) / len(x_ND)
        total.backward()
        return total

    optimizer.step(loss)
    probe = LinearProbe(x_ND.shape[1])
    slope_D = weight_D.detach().double() / scale_D.double()
    offset = bias.detach().double() - slope_D @ mean_D.double()
    with torch.no_grad():
        probe.head.weight.copy_(torch.stack([-slope_D, slope_D]) / 2)
        probe.head.bias.copy_(torch.stack([-offset, offset]) / 2)
    return probe.eval()


def _predict(probe: nn.Module, states: NDArray[np.floating]) -> NDArray[np.float32]:
    p_N: NDArray[np.float32] = p_unknown(probe, torch.from_numpy(np.asarray(states, np.float32))).numpy()
    return p_N


def _loss(truth: NDArray[np.int8], p: NDArray[np.float32]) -> float:
    """Mean cross-entropy, nats."""
    return float(-np.log(np.where(truth == 1, p, 1 - p).clip(1e-12, 1)).mean())


def _judged(
    probe: nn.Module, layer: int, validation: tuple[NDArray[np.floating], NDArray[np.int8]], train_loss: float
) -> LayerFit:
    truth, p = validation[1], _predict(probe, validation[0])
    return LayerFit(layer, auroc(truth, p), float(((p >= 0.5) == truth).mean()), _loss(truth, p), train_loss)


@torch.inference_mode()
def p_unknown(probe: nn.Module, state_BD: Tensor) -> Tensor:
    """(B,) probability that a question is unknown, from states (B, D) in any float dtype."""
    weight = next(probe.parameters())
    probability_B: Tensor = probe(state_BD.to(weight.dtype)).softmax(-1)[:, 1]
    return probability_B


def better(a: LayerFit, b: LayerFit) -> bool:
    """Whether ``a`` is to be chosen before ``b``: by validation AUROC, then loss, then the earlier layer."""
    return (-a.validation_auroc, a.validation_loss, a.layer) < (-b.validation_auroc, b.validation_loss, b.layer)


def probe_to_bytes(probe: nn.Module, card: ProbeCard) -> bytes:
    """safetensors, the card in its metadata."""
    data: bytes = save({k: v.contiguous() for k, v in probe.state_dict().items()}, {"card": json.dumps(asdict(card))})
    return data


def probe_card(data: bytes, where: str) -> ProbeCard:
    """The card of a saved probe, of which ``data`` is the beginning at least (``CARD_BYTES``).

    Raises:
        UserError: the bytes are not a probe of ours.
    """
    length = int.from_bytes(data[:8], "little")
    try:
        return ProbeCard(**json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["card"]))
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{where}: not a probe; give the directory that ka2l probe wrote") from None


def probe_from_bytes(data: bytes, where: str) -> tuple[nn.Module, ProbeCard]:
    """The probe and its card.

    Raises:
        UserError: the bytes are not a probe of ours, or damaged.
    """
    card = probe_card(data, where)
    probe = make_probe(card.kind, card.dimension, card.hidden_width)
    try:
        probe.load_state_dict(load(data))
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"{where}: the probe is damaged ({str(error).splitlines()[0]}); fit it again") from None
    return probe.eval(), card
