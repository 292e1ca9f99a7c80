"""``KnowledgeProbe``: known or unknown from a model's hidden states, without sampling (KA2L section 3.2.3)."""

from __future__ import annotations

import hashlib
import logging
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
    FILE,
    PAGE,
    DegenerateLabelsError,
    LayerFit,
    Probe,
    ProbeCard,
    Target,
    card_page,
    check_finite,
    fit_layers,
    learned_nothing,
    predict,
    probe_from_bytes,
    probe_to_bytes,
    soft_target,
)
from ka2l_ray.schema import Position
from ka2l_ray.uncertainty.calibration import figures, summary

logger = logging.getLogger(__name__)

States = dict[int, NDArray[np.float32]]

TEST_FROM = 200
"""Different questions from which some are set apart for the card's figures alone."""
TEST_SHARE, LEAST_TEST = 0.1, 40
"""A tenth of the questions, as in KA2L, and as many at least."""


class KnowledgeProbe:
    """A classifier of known and unknown on the hidden state that predicts the first answer token; the layer is chosen inside.

    With a model it takes questions and reads their states itself; without one it takes states: (n, d) of one layer,
    (n, L, d) of layers 0 to L - 1, or a mapping from layer to (n, d). At position ``attention`` (n, T, d) of one layer's tokens,
    padded with NaN, or a mapping to such.

    Args:
        model: as of ``Uncertainty``; its own ``model`` will do.
        tokenizer: of a loaded model.
        kind: ``linear``, ridge logistic regression; or ``mlp``, KA2L's.
        layers: to choose among; 0 are the embeddings.
        validation: share of the questions that chooses the layer rather than being fitted on. Equal questions never part ways.
            Of 200 labelled questions or more a tenth, 40 at least, does neither, and is for the card's figures.
        prompt, device: as of ``Uncertainty``.
        seed: of the split, and of ``mlp``.
        settings: further keys of the configuration's ``probe``, such as ``target``, ``position``, ``calibration``.

    Attributes:
        classes_: ``[0, 1]``: known, unknown.
        layer_: the layer chosen.
        fits_: how well each layer did on validation.
        card: what the probe reads, how it was fitted, and how well it does: ``figures["test"]``, where there are enough
            questions, of those that had no part in it; ``figures["validation"]`` flatter.
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
        prompt: Mapping[str, Any] | None = None,
        seed: int = 0,
        device: str | None = None,
        **settings: Any,
    ) -> None:
        chosen = layers if isinstance(layers, str) else [int(layer) for layer in layers]
        self.config = validate_section(ProbeConfig, {"kind": kind, "layers": chosen, **settings}, "KnowledgeProbe")
        if not 0 < validation < 1:
            raise UserError(f"validation is {validation}; give a share of the questions between 0 and 1")
        self.validation = validation
        self.seed = int(seed)
        self.model = None if model is None else PromptedModel.of(model, tokenizer, prompt, device)
        self.fits_: list[LayerFit] = []
        self._probe: Probe | None = None
        self._card: ProbeCard | None = None

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit one probe a layer, keep the one that does best on the validation part, and calibrate it.

        Args:
            X: questions, or their states.
            y: (n,) labels: 1 unknown, 0 known; None or NaN leaves a row out. Left out: the column ``label`` of X, as of
                ``Uncertainty.score``'s table. Of a ``target`` that is no label, what to fit, 0 to 1; left out: from the columns
                ``semantic_entropy`` and ``cluster_ids``.

        Raises:
            DegenerateLabelsError: there are not two questions of either label, or all targets are the same.
            UserError: X and y do not fit together, or a state is not finite.
        """
        states, groups, columns = self._read(X, None)
        labels, targets = _wanted(self.config.target, columns, y, len(groups))
        kept = np.flatnonzero(~np.isnan(targets))
        groups, targets = [groups[i] for i in kept], targets[kept].astype(np.float32)
        labels = None if labels is None else labels[kept]
        for layer, rows in states.items():
            check_finite(rows[kept], groups, layer)
        sides, least = (targets, 2) if self.config.target == "label" else (_sides(targets, self.config.target), 1)
        held_out = _validation_rows(groups, sides, self.validation, self.seed, least=least)
        tested = np.zeros(len(groups), bool) if labels is None else _test_rows(groups, sides, ~held_out, self.seed)
        fitted = np.flatnonzero(~tested)
        apart = {"target", "position", "layers", "workers"}
        probe, best, self.fits_ = fit_layers(
            {layer: rows[kept[fitted]] for layer, rows in states.items()},
            np.zeros(len(fitted), np.int8) if labels is None else labels[fitted],
            validation=held_out[fitted],
            targets=targets[fitted],
            groups=[_identity(groups[i]) for i in fitted.tolist()],
            seed=self.seed,
            **self.config.model_dump(exclude=apart),
        )
        found, judged = {}, None
        for part, at in {"validation": held_out, "test": tested}.items():
            if labels is not None and at.any():
                p = predict(probe, states[best.layer][kept[at]])
                found[part], judged = summary(labels[at], p), figures(labels[at], p)
        self._probe, self._card = probe, self._card_of(probe, best.layer, found)
        warning = learned_nothing(best, targets[~held_out & ~tested], self.config.class_weights, judged)
        if warning:
            logger.warning("%s", warning)
        return self

    def _card_of(self, probe: Probe, layer: int, found: dict[str, Any]) -> ProbeCard:
        return ProbeCard(
            kind=self.config.kind,
            layer=layer,
            dimension=len(probe.mean),
            hidden_width=self.config.hidden_width,
            position=self.config.position,
            target=self.config.target,
            standardized=self.config.standardize or self.config.kind == "linear",
            biases=self.config.standardize and self.config.kind == "mlp",
            class_weights=self.config.class_weights,
            calibration=probe.calibration,
            source=None if self.model is None else self.model.source(),
            epochs=probe.epochs,
            figures=found,
        )

    @property
    def layer_(self) -> int:
        return self._fitted()[1].layer

    @property
    def card(self) -> ProbeCard:
        return self._fitted()[1]

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """(n, 2) probabilities of known and unknown, as in scikit-learn; of questions no block beyond ``layer_`` runs.

        Raises:
            UserError: states of another layer or width, or that are not finite.
        """
        probe, card = self._fitted()
        states, groups, _ = self._read(X, card.layer)
        if states[card.layer].shape[-1] != card.dimension:
            raise UserError(
                f"these states have {states[card.layer].shape[-1]} dimensions, the probe was fitted on {card.dimension}; "
                "give states of the same model and layer"
            )
        check_finite(states[card.layer], groups, card.layer)
        p = predict(probe, states[card.layer]).astype(np.float64)
        return np.stack([1 - p, p], axis=1)

    def predict(self, X: Any) -> NDArray[np.int64]:
        """(n,) 1 where unknown is the likelier."""
        return (self.predict_proba(X)[:, 1] >= 0.5).astype(np.int64)

    def save(self, path: str | Path) -> Path:
        """Write the probe with its card as safetensors, to ``path``; or, where that is a directory, to ``probe.safetensors`` in
        it, and the card as a page, ``README.md``."""
        probe, card = self._fitted()
        file = _file(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(probe_to_bytes(probe, card))
        if file != Path(path):
            (file.parent / PAGE).write_text(card_page(card), encoding="utf-8")
        return file

    @classmethod
    def load(cls, path: str | Path, model: Any = None, tokenizer: Any = None, **settings: Any) -> Self:
        """The probe that ``save``, ``ka2l probe`` or a run wrote; further arguments as of the class.

        Questions are put to the model as they were when the probe was fitted, unless ``prompt`` says otherwise.

        Raises:
            UserError: no probe there, a damaged one, or one for a model or prompt that reads questions otherwise.
        """
        file = _file(path)
        if not file.is_file():
            raise UserError(f"{file}: no probe there; give what KnowledgeProbe.save or ka2l probe wrote")
        probe, card = probe_from_bytes(file.read_bytes(), str(file))
        if model is not None and not isinstance(model, PromptedModel) and card.source is not None:
            settings = {"prompt": card.source.prompt, **settings}
        of_card: dict[str, Any] = {
            "kind": card.kind,
            "hidden_width": card.hidden_width,
            "target": card.target,
            "layers": [card.layer],
        }
        if card.position != "answer_token":  # whose states only a run makes
            of_card["position"] = card.position
        found = cls(model, tokenizer, **of_card, **settings)
        found._probe, found._card = probe, card
        found._check_model(str(file))
        return found

    def _check_model(self, where: str) -> None:
        """Raise a UserError where the model is not one that the loaded probe can read."""
        _, card = self._fitted()
        if self.model is None:
            return
        width = self.model.language_model.hidden_size
        if card.dimension != width or card.layer > self.model.layers[-1]:
            raise UserError(
                f"{where}: a probe of layer {card.layer} for states of width {card.dimension}, this model has "
                f"{self.model.layers[-1]} layers of width {width}; give the model that it was fitted on"
            )
        if card.position == "answer_token":
            raise UserError(f"{where}: a probe of answers (position answer_token); give it their states, not questions")
        if card.source is not None:
            mine = self.model.source()
            card.source.check(where, mine.model, mine.rendering, mine.adapter)

    def _fitted(self) -> tuple[Probe, ProbeCard]:
        if self._probe is None or self._card is None:
            raise UserError("this probe is not fitted; call fit() first, or load() one")
        return self._probe, self._card

    def _read(self, X: Any, only: int | None) -> tuple[States, list[str], Mapping[str, Any]]:
        """(states by layer, what rows must not be parted by: question or equal states, columns that came with them)."""
        position = self.config.position if only is None else self._fitted()[1].position
        alone = self.config.layers[0] if self.config.layers != "all" and len(self.config.layers) == 1 else 0
        alone = alone if only is None else only  # one array is the layer that is meant
        given = _given_states(X, position, alone)
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
            states = self.model.states(asked.questions, layers if only is None else [only], position)
            return states, asked.questions, asked.columns or {}
        wanted = list(given) if self.config.layers == "all" else self.config.layers
        wanted = wanted if only is None else [only]
        missing = [layer for layer in wanted if layer not in given]
        if missing:
            raise UserError(f"no states of layer {missing[0]} were given, only of {list(given)}")
        n = len(next(iter(given.values())))
        return {layer: given[layer] for layer in wanted}, _equal_rows(given) if only is None else [*map(str, range(n))], {}


def _given_states(X: Any, position: Position, alone: int) -> States | None:
    """States by layer where X holds numbers, those of one layer under the number ``alone``; None where it holds questions."""
    axes = 3 if position == "attention" else 2
    if isinstance(X, Mapping) and X and all(isinstance(layer, int | np.integer) for layer in X):
        found = {int(layer): _numbers(rows) for layer, rows in X.items()}
        if any(rows is None or rows.ndim != axes for rows in found.values()) or len({len(rows) for rows in found.values()}) > 1:  # type: ignore[arg-type]
            raise UserError("states by layer must be arrays (n, d) (of attention: (n, T, d)), with as many rows each")
        return found  # type: ignore[return-value]
    array = None if isinstance(X, Mapping) or "question" in getattr(X, "columns", ()) else _numbers(X)
    if array is None:
        return None
    if array.ndim == 3 and position != "attention":
        return {layer: array[:, layer] for layer in range(array.shape[1])}
    if array.ndim != axes:
        wanted = "(n, T, d) of one layer's tokens" if position == "attention" else "(n, d) of one layer, or (n, L, d) of all"
        raise UserError(f"states of shape {array.shape}; give {wanted}")
    return {alone: array}


def _equal_rows(states: States) -> list[str]:
    """(n,) the place of the first row with the same states in all layers."""
    first: dict[bytes, int] = {}
    found = []
    for i in range(len(next(iter(states.values())))):
        digest = hashlib.sha256()
        for rows in states.values():
            digest.update(rows[i].tobytes())
        found.append(str(first.setdefault(digest.digest(), i)))
    return found


def _numbers(X: Any) -> NDArray[np.float32] | None:
    """X as an array of numbers, whatever holds them; None where it holds something else."""
    if isinstance(X, torch.Tensor):
        X = X.detach().float().cpu().numpy()
    if isinstance(X, np.ndarray) or hasattr(X, "iloc") or (isinstance(X, Sequence) and X and not isinstance(X[0], str | Mapping)):
        array = np.asarray(X)
        with np.errstate(over="ignore"):  # infinite then, which is refused by name
            return array.astype(np.float32) if array.dtype.kind in "fiub" else None
    return None


def _wanted(target: Target, columns: Mapping[str, Any], y: Any, n: int) -> tuple[NDArray[np.int8] | None, NDArray[np.float64]]:
    """(n,) labels that calibrate, None where there are none, and (n,) targets that are fitted; NaN where a row is left out."""
    if target == "label":
        found = _column(columns.get("label") if y is None else y, n)
        told = found[~np.isnan(found)]
        if not np.isin(told, (0, 1)).all():
            raise UserError(f"labels must be 1 (unknown) or 0 (known); there are {sorted(set(map(str, told.tolist())))[:5]}")
        return np.nan_to_num(found).astype(np.int8), found
    labels = _column(columns["label"], n) if "label" in columns else None
    if y is None and "semantic_entropy" in columns and "cluster_ids" in columns:
        unknown = np.ones(n, bool) if labels is None else labels == 1
        unanswered = unknown & np.array([bool(each) for each in columns.get("abstains", [False] * n)])
        of = zip(columns["semantic_entropy"], columns["cluster_ids"], unanswered.tolist(), strict=True)
        y = [soft_target(target, entropy, list(ids), unanswered=silent) for entropy, ids, silent in of]
    targets = _column(y, n)
    if (targets < 0).any() or (targets > 1).any():
        raise UserError(f"target {target} goes from 0 to 1; these go from {np.nanmin(targets):g} to {np.nanmax(targets):g}")
    if labels is None:
        return None, targets
    return np.nan_to_num(labels).astype(np.int8), np.where(np.isnan(labels), np.nan, targets)


def _sides(targets: NDArray[np.floating], target: Target) -> NDArray[np.bool_]:
    """(n,) whether a target is above the median; where none is, whether it is there.

    Raises:
        DegenerateLabelsError: all are the same.
    """
    if len(set(targets.tolist())) < 2:
        raise DegenerateLabelsError(f"target {target} is the same for all {len(targets)} questions: no probe can be fitted")
    middle = np.median(targets)
    above: NDArray[np.bool_] = targets > middle
    return above if above.any() else targets == middle


def _column(y: Any, n: int) -> NDArray[np.float64]:
    """(n,) numbers; None and NaN are NaN."""
    if y is None:
        raise UserError("no labels were given; give y, 1 unknown and 0 known, or a table with a column 'label'")
    array = y.detach().cpu().numpy() if isinstance(y, torch.Tensor) else np.asarray(y)
    if array.shape != (n,):
        raise UserError(f"labels of shape {array.shape} for {n} questions; give one label each")
    try:
        return array.astype(np.float64)
    except (TypeError, ValueError):
        raise UserError(f"labels must be 1 (unknown) or 0 (known); there are {sorted(set(map(str, array)))[:5]}") from None


def _identity(group: str) -> str:
    return normalize_question(group) or group


def _validation_rows(
    groups: Sequence[str], labels: NDArray[Any], share: float, seed: int, *, least: int = 2
) -> NDArray[np.bool_]:
    """(n,) the rows that validate: ``share`` of each label's questions, drawn by hash of the text; one at least, none of one.

    Raises:
        DegenerateLabelsError: a label has fewer than ``least`` different questions, or none has two.
    """
    label_of: dict[str, int] = {}
    names = [_identity(group) for group in groups]
    for name, label in zip(names, labels.tolist(), strict=True):
        label_of.setdefault(name, label)
    chosen: set[str] = set()
    for label, word in ((0, "known"), (1, "unknown")):
        order = sorted(
            (name for name, each in label_of.items() if each == label),
            key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest(),
        )
        if len(order) < least:
            raise DegenerateLabelsError(
                f"{len(order)} of {len(label_of)} questions are {word}: no probe can be fitted; give more questions, or "
                "another rule of what is unknown (such as two_means)"
            )
        chosen.update(order[: min(len(order) - 1, max(1, round(share * len(order))))])
    if not chosen:
        raise DegenerateLabelsError(f"{len(label_of)} questions are too few for a probe; give more")
    return np.array([name in chosen for name in names])


def _test_rows(groups: Sequence[str], labels: NDArray[Any], free: NDArray[np.bool_], seed: int) -> NDArray[np.bool_]:
    """(n,) the rows, of those ``free`` of another part, that neither fit nor choose nor calibrate; none of too few questions."""
    names = np.array([_identity(group) for group in groups])
    questions, rest = len(set(names)), len(set(names[free]))
    share = max(TEST_SHARE, LEAST_TEST / max(1, questions)) * questions / max(1, rest)
    tested = np.zeros(len(names), bool)
    if questions >= TEST_FROM and share < 0.5:  # most are for fitting
        try:
            tested[free] = _validation_rows(names[free].tolist(), labels[free], share, seed)
        except DegenerateLabelsError:  # too few of a label to do without any
            return tested
    return tested


def _file(path: str | Path) -> Path:
    return Path(path) if Path(path).suffix == ".safetensors" else Path(path) / FILE
