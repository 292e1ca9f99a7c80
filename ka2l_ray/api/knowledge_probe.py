"""``KnowledgeProbe``: known or unknown from a model's hidden states, without sampling (KA2L section 3.2.3)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray

from ka2l_ray.api.given import read_questions
from ka2l_ray.api.model import PromptedModel
from ka2l_ray.config import ProbeConfig
from ka2l_ray.config_files import validate_section
from ka2l_ray.errors import UserError
from ka2l_ray.normalization import normalize_question
from ka2l_ray.probes import (
    DegenerateLabelsError,
    LayerFit,
    ProbeCard,
    check_finite,
    fit_layers,
    p_unknown,
    probe_from_bytes,
    probe_to_bytes,
)

FILE = "probe.safetensors"
States = dict[int, NDArray[np.float32]]


class KnowledgeProbe:
    """A classifier of known and unknown on the hidden state that predicts the first answer token; the layer is chosen inside.

    With a model it takes questions and reads their states itself; without one it takes states: (n, d) of one layer,
    (n, L, d) of layers 0 to L - 1, or a mapping from layer to (n, d).

    Args:
        model: as of ``Uncertainty``; its own ``model`` will do.
        tokenizer: of a loaded model.
        kind: ``linear``, ridge logistic regression; or ``mlp``, KA2L's, which takes the other settings.
        layers: to choose among; 0 are the embeddings.
        validation: share of the questions that chooses the layer rather than being fitted on. Equal questions never part ways.
        hidden_width, learning_rate, epochs, batch_size: of ``mlp``, as in the configuration's ``probe``.
        prompt, device: as of ``Uncertainty``.
        seed: of the split, and of ``mlp``.

    Attributes:
        classes_: ``[0, 1]``: known, unknown.
        layer_: the layer chosen.
        fits_: how well each layer did on validation.
    """

    classes_ = np.array([0, 1])

    def __init__(
        self,
        model: Any = None,
        tokenizer: Any = None,
        *,
        kind: Literal["linear", "mlp"] = "linear",
        layers: Literal["all"] | Sequence[int] = "all",
        validation: float = 0.2,
        hidden_width: int = 14336,
        learning_rate: float = 1e-5,
        epochs: int = 20,
        batch_size: int = 32,
        prompt: Mapping[str, Any] | None = None,
        seed: int = 0,
        device: str | None = None,
    ) -> None:
        chosen = layers if isinstance(layers, str) else [int(layer) for layer in layers]
        settings = {
            "kind": kind,
            "layers": chosen,
            "hidden_width": hidden_width,
            "learning_rate": learning_rate,
            "epochs": epochs,
            "batch_size": batch_size,
        }
        self.config = validate_section(ProbeConfig, settings, "KnowledgeProbe")
        if not 0 < validation < 1:
            raise UserError(f"validation is {validation}; give a share of the questions between 0 and 1")
        self.validation = validation
        self.seed = int(seed)
        self.model = None if model is None else PromptedModel.of(model, tokenizer, prompt, device)
        self.fits_: list[LayerFit] = []
        self._probe: torch.nn.Module | None = None
        self._card: ProbeCard | None = None

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit one probe a layer, and keep the one that does best on the validation part.

        Args:
            X: questions, or their states.
            y: (n,) labels: 1 unknown, 0 known. Left out: the column ``label`` of X, as of ``Uncertainty.score``'s table.

        Raises:
            DegenerateLabelsError: there are not two questions of either label.
            UserError: X and y do not fit together, or a state is not finite.
        """
        states, groups, found = self._read(X, None)
        labels = _labels(found if y is None else y, len(groups))
        held_out = _validation_rows(groups, labels, self.validation, self.seed)
        for layer, rows in states.items():
            check_finite(rows, groups, layer)
        self._probe, best, self.fits_ = fit_layers(
            states,
            labels,
            validation=held_out,
            seed=self.seed,
            **self.config.model_dump(include={"kind", "hidden_width", "learning_rate", "epochs", "batch_size"}),
        )
        self._card = ProbeCard(self.config.kind, best.layer, states[best.layer].shape[1], self.config.hidden_width)
        return self

    @property
    def layer_(self) -> int:
        return self._fitted()[1].layer

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """(n, 2) probabilities of known and unknown, as in scikit-learn; of questions no block beyond ``layer_`` runs."""
        probe, card = self._fitted()
        states, _, _ = self._read(X, card.layer)
        if states[card.layer].shape[1] != card.dimension:
            raise UserError(
                f"these states have {states[card.layer].shape[1]} dimensions, the probe was fitted on {card.dimension}; "
                "give states of the same model and layer"
            )
        p = p_unknown(probe, torch.from_numpy(states[card.layer])).double().numpy()
        return np.stack([1 - p, p], axis=1)

    def predict(self, X: Any) -> NDArray[np.int64]:
        """(n,) 1 where unknown is the likelier."""
        return (self.predict_proba(X)[:, 1] >= 0.5).astype(np.int64)

    def save(self, path: str | Path) -> Path:
        """Write the probe as safetensors, to ``path`` or, where that is a directory, to ``probe.safetensors`` in it."""
        probe, card = self._fitted()
        file = _file(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(probe_to_bytes(probe, card))
        return file

    @classmethod
    def load(cls, path: str | Path, model: Any = None, tokenizer: Any = None, **settings: Any) -> Self:
        """The probe that ``save`` or ``ka2l probe`` wrote; further arguments as of the class.

        Raises:
            UserError: no probe there, or a damaged one.
        """
        file = _file(path)
        if not file.is_file():
            raise UserError(f"{file}: no probe there; give what KnowledgeProbe.save or ka2l probe wrote")
        probe, card = probe_from_bytes(file.read_bytes(), str(file))
        found = cls(model, tokenizer, kind=card.kind, hidden_width=card.hidden_width, **settings)
        found._probe, found._card = probe, card
        return found

    def _fitted(self) -> tuple[torch.nn.Module, ProbeCard]:
        if self._probe is None or self._card is None:
            raise UserError("this probe is not fitted; call fit() first, or load() one")
        return self._probe, self._card

    def _read(self, X: Any, only: int | None) -> tuple[States, list[str], Any]:
        """(states by layer, what rows must not be parted by: question or place, labels that came with them)."""
        given = _given_states(X)
        if given is None:
            if self.model is None:
                raise UserError(
                    "questions were given to a probe without a model; make it as KnowledgeProbe(model), or give states"
                )
            asked = read_questions(X)
            layers = self.model.layers if self.config.layers == "all" else self.config.layers
            if max(layers) > self.model.layers[-1]:
                raise UserError(
                    f"layer {max(layers)} does not exist; this model has layers 0 (embeddings) to {self.model.layers[-1]}"
                )
            states = self.model.states(asked.questions, layers if only is None else [only])
            return states, asked.questions, (asked.columns or {}).get("label")
        wanted = list(given) if self.config.layers == "all" else self.config.layers
        if only is not None:
            wanted = list(given) if len(given) == 1 else [only]  # one array is the layer that is meant
        missing = [layer for layer in wanted if layer not in given]
        if missing:
            raise UserError(f"no states of layer {missing[0]} were given, only of {list(given)}")
        n = len(next(iter(given.values())))
        states = {layer: given[layer] for layer in wanted} if only is None else {only: given[wanted[0]]}
        return states, [str(i) for i in range(n)], None


def _given_states(X: Any) -> States | None:
    """States by layer where X holds numbers; None where it holds questions."""
    if isinstance(X, Mapping) and X and all(isinstance(layer, int | np.integer) for layer in X):
        found = {int(layer): _numbers(rows) for layer, rows in X.items()}
        if any(rows is None or rows.ndim != 2 for rows in found.values()) or len({len(rows) for rows in found.values()}) > 1:  # type: ignore[arg-type]
            raise UserError("states by layer must be arrays (n, d), with as many rows each")
        return found  # type: ignore[return-value]
    array = None if isinstance(X, Mapping) or "question" in getattr(X, "columns", ()) else _numbers(X)
    if array is None:
        return None
    if array.ndim == 3:
        return {layer: array[:, layer] for layer in range(array.shape[1])}
    if array.ndim != 2:
        raise UserError(f"states of shape {array.shape}; give (n, d) of one layer, or (n, L, d) of all")
    return {0: array}


def _numbers(X: Any) -> NDArray[np.float32] | None:
    """X as an array of numbers, whatever holds them; None where it holds something else."""
    if isinstance(X, torch.Tensor):
        X = X.detach().float().cpu().numpy()
    if isinstance(X, np.ndarray) or hasattr(X, "iloc") or (isinstance(X, Sequence) and X and not isinstance(X[0], str | Mapping)):
        array = np.asarray(X)
        return array.astype(np.float32) if array.dtype.kind in "fiub" else None
    return None


def _labels(y: Any, n: int) -> NDArray[np.int8]:
    if y is None:
        raise UserError("no labels were given; give y, 1 unknown and 0 known, or a table with a column 'label'")
    array = y.detach().cpu().numpy() if isinstance(y, torch.Tensor) else np.asarray(y)
    if array.shape != (n,):
        raise UserError(f"labels of shape {array.shape} for {n} questions; give one label each")
    if array.dtype.kind not in "iubf" or not np.isin(array, (0, 1)).all():
        raise UserError(f"labels must be 1 (unknown) or 0 (known); there are {sorted(set(map(str, array.tolist())))[:5]}")
    return array.astype(np.int8)


def _validation_rows(groups: Sequence[str], labels: NDArray[np.int8], share: float, seed: int) -> NDArray[np.bool_]:
    """(n,) the rows that validate: ``share`` of each label's questions, drawn by hash of the text; one at least.

    Raises:
        DegenerateLabelsError: a label has fewer than two different questions.
    """
    label_of: dict[str, int] = {}
    names = [normalize_question(group) or group for group in groups]
    for name, label in zip(names, labels.tolist(), strict=True):
        label_of.setdefault(name, label)
    chosen: set[str] = set()
    for label, word in ((0, "known"), (1, "unknown")):
        order = sorted(
            (name for name, each in label_of.items() if each == label),
            key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest(),
        )
        if len(order) < 2:
            raise DegenerateLabelsError(
                f"{len(order)} of {len(labels)} questions are {word}: no probe can be fitted; give more questions, or "
                "another rule of what is unknown (such as two_means)"
            )
        chosen.update(order[: min(len(order) - 1, max(1, round(share * len(order))))])
    return np.array([name in chosen for name in names])


def _file(path: str | Path) -> Path:
    return Path(path) if Path(path).suffix == ".safetensors" else Path(path) / FILE
