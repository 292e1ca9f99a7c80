"""A probe as a public artefact: safetensors with a card, and the card as a page.

The card says what the probe reads (model, prompt, layer, position), what it was fitted to, how well it does on questions that it
was not fitted on (and whether they chose anything), and how it was calibrated: all that someone needs to use it, or not to.
"""

from __future__ import annotations

import json
import logging
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ka2l_ray.errors import UserError
from ka2l_ray.probes.networks import Kind, Probe, make_probe
from ka2l_ray.probes.parts import Target
from ka2l_ray.schema import Position

logger = logging.getLogger(__name__)

CARD_BYTES = 262144  # a probe's safetensors header is far shorter
FILE, PAGE = "probe.safetensors", "README.md"
FORMAT = 1
"""Of the card. Cards without ``format_version`` were written before there was one, and lack what came with it at most."""
FIGURES = {
    "auroc": "AUROC",
    "accuracy": "accuracy at p = 0.5",
    "brier": "Brier score",
    "calibration_error": "calibration error, debiased",
    "log_loss": "log loss, nats",
    "base_rate_entropy": "log loss of always saying the base rate, nats",
}


def _with_figures(figures: dict[str, Any]) -> dict[str, Any]:
    for part, found in figures.items():
        for key in ("rows", "base_rate", *FIGURES):
            if not isinstance(found, dict) or type(found.get(key)) not in (int, float):
                raise ValueError(f"{part} has no number {key}")
    return figures


@dataclass(frozen=True)
class Source:
    """The model and prompt whose states a probe reads. ``prompt`` are the configuration's keys; ``rendering`` is the digest of
    the token ids of one fixed question and its answer, whatever template, tokenizer and library make of them."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", strict=True)

    model: str
    revision: str | None
    layers: Annotated[int, Field(ge=0)]
    adapter: str | None
    prompt: dict[str, Any]
    rendering: str

    def check(self, where: str, model: str, rendering: str, adapter: str | None) -> None:
        """Hold a model and prompt against those that the probe was fitted on; another name or adapter is warned of.

        Raises:
            UserError: the prompt is rendered otherwise: p(unknown) would be of other states.
        """
        if rendering != self.rendering:
            raise UserError(
                f"{where}: the probe was fitted on prompts of {self.model} that are rendered otherwise ({self.rendering}) than "
                f"those of {model} ({rendering}): another tokenizer, chat template, instruction or examples; give its prompt, "
                f"which stands in its card ({PAGE})"
            )
        if Path(model).name != Path(self.model).name:
            logger.warning("%s: the probe was fitted on states of %s, and is asked about those of %s", where, self.model, model)
        if adapter != self.adapter:
            had, has = (f"adapter {each}" if each else "no adapter" for each in (self.adapter, adapter))
            logger.warning("%s: the probe was fitted on states of %s with %s, this has %s", where, self.model, had, has)


@dataclass(frozen=True)
class ProbeCard:
    """What is needed to use a saved probe. ``source`` is None where it was fitted on states alone."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", strict=True)

    kind: Kind
    layer: Annotated[int, Field(ge=0)]
    dimension: Annotated[int, Field(ge=1)]
    hidden_width: Annotated[int, Field(ge=1)]
    position: Position = "last_prompt_token"
    target: Target = "label"
    standardized: bool = True
    biases: bool = False
    """Of gate and up, in ``mlp``: where states are standardised (not in probes that were saved before there were any)."""
    class_weights: Literal["balanced", "none"] = "balanced"
    calibration: Annotated[str, Field(pattern="^(none|platt|isotonic)$")] = "none"
    source: Source | None = None
    epochs: Annotated[int, Field(ge=1)] | None = None
    """Of ``mlp``: ``Probe.epochs``, written with the probe."""
    figures: Annotated[dict[str, Any], AfterValidator(_with_figures)] = field(default_factory=dict)
    """``uncertainty.calibration.summary`` on rows whose labels its weights were not fitted to, under their name: ``test`` had no
    part in it at all, ``validation`` chose layer and epochs."""


def probe_to_bytes(probe: Probe, card: ProbeCard) -> bytes:
    """safetensors, the card in its metadata."""
    weights = {name: tensor.contiguous() for name, tensor in probe.state_dict().items()}
    data: bytes = save(weights, {"card": json.dumps({"format_version": FORMAT, **asdict(card), "epochs": probe.epochs})})
    return data


def probe_card(data: bytes, where: str) -> ProbeCard:
    """The card of a saved probe, of which ``data`` is the beginning at least (``CARD_BYTES``).

    Raises:
        UserError: the bytes are not a probe of ours, or of a newer ka2l-ray, or the card holds what no card does.
    """
    length = int.from_bytes(data[:8], "little")
    try:
        card = from_json(from_json(data[8 : 8 + length])["__metadata__"]["card"])
        missing = [each.name for each in fields(ProbeCard) if each.name not in card]
        always = [each.name for each in fields(ProbeCard) if each.default is each.default_factory is MISSING]
        version = card.pop("format_version", None)
    except (ValueError, KeyError, TypeError, AttributeError):
        always = missing = ["card"]
    if set(always) & set(missing):
        raise UserError(f"{where}: not a probe; give the directory that ka2l probe wrote")
    if type(version) is int and version > FORMAT:
        raise UserError(
            f"{where}: a probe of a newer ka2l-ray (format {version}, this one reads {FORMAT}); upgrade ka2l-ray, or fit it again"
        )
    if version not in (None, FORMAT):
        raise UserError(f"{where}: the probe's card is damaged (format_version: {str(version)[:40]}); fit it again")
    if missing and (version is not None or "position" in missing):
        name = "position" if "position" in missing else missing[0]
        raise UserError(f"{where}: the probe's card is damaged ({name}: it is missing); fit it again")
    try:
        return CARD.validate_json(json.dumps(card))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(each) for each in first["loc"])
        raise UserError(f"{where}: the probe's card is damaged ({place}: {first['msg']}); fit it again") from None


CARD = TypeAdapter(ProbeCard)


def probe_from_bytes(data: bytes, where: str) -> tuple[Probe, ProbeCard]:
    """The probe and its card.

    Raises:
        UserError: the bytes are not a probe of ours, or damaged.
    """
    card = probe_card(data, where)
    try:
        weights = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{where}: the probe is damaged ({str(error).splitlines()[0]}); fit it again") from None
    wrong = _unlike_card(weights, card) or _out_of_range(weights)
    if wrong:
        raise UserError(f"{where}: the probe is damaged ({wrong}); fit it again")
    probe = _blank(card)
    probe.curve = weights["curve"]  # as long as it was fitted
    probe.load_state_dict(weights, assign=True)
    probe.calibration, probe.epochs = card.calibration, card.epochs
    return probe.eval(), card


def _blank(card: ProbeCard) -> Probe:
    """The network of a card, without memory for its weights."""
    with torch.device("meta"):
        return make_probe(
            card.kind, card.dimension, card.hidden_width, attention=card.position == "attention", biases=card.biases
        )


def _unlike_card(weights: dict[str, Tensor], card: ProbeCard) -> str | None:
    """How the tensors differ in name, dtype or shape from those of the card's network."""
    width = card.hidden_width if card.kind == "mlp" else 1
    held = sum(tensor.numel() for tensor in weights.values())
    if card.dimension * width > held:
        return f"its card says {card.dimension} x {width}, it holds {held} numbers"
    expected = _blank(card).state_dict()
    if weights.keys() != expected.keys():
        return f"{min(weights.keys() ^ expected.keys())} is not in both the file and its card's network"
    for name, tensor in weights.items():
        if tensor.dtype != torch.float32:
            return f"{name} is {str(tensor.dtype).removeprefix('torch.')}, not float32"
        if name != "curve" and tensor.shape != expected[name].shape:
            return f"{name} is of shape {tuple(tensor.shape)}, its card says {tuple(expected[name].shape)}"
    return None


def _out_of_range(weights: dict[str, Tensor]) -> str | None:
    """Which tensor holds values that make no probability, or one that falls as the logit rises."""
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            return f"{name} holds values that are not finite"
    for name in ("scale", "slope"):
        if (weights[name] <= 0).any():
            return f"{name} is not above zero"
    curve = weights["curve"]
    if curve.ndim != 2 or len(curve) != 2 or curve.shape[1] == 1:
        return f"curve is of shape {tuple(curve.shape)}, not (2, 0), or (2, 2) or longer"
    knots, heights = curve
    if curve.shape[1] and not (knots[0] < knots[1] and (curve.diff() >= 0).all() and heights[0] >= 0 and heights[-1] <= 1):
        return "curve does not rise from 0 to 1"
    return None


def card_page(card: ProbeCard) -> str:
    """The card in Markdown."""
    source = card.source
    lines = ["# A probe of what a language model knows", ""]
    lines += [f"p(unknown) of a question from {_words(card.position)}, layer {card.layer}, without sampling an answer.", ""]
    network = ", gate and up with biases" if card.biases else ""
    rows: dict[str, Any] = {"kind": f"{card.kind}{network}", "fitted to": card.target}
    if source is not None:
        revision = f" @ {source.revision}" if source.revision else ""
        rows |= {"model": f"{source.model}{revision}, {source.layers} layers of width {card.dimension}"}
        rows |= {"adapter": source.adapter} if source.adapter else {}
        rows |= {"prompt": json.dumps(source.prompt, ensure_ascii=False), "rendering": source.rendering}
    rows |= {"states standardised": "yes, by the training part" if card.standardized else "no"}
    rows |= {"class weights": card.class_weights, "calibration": card.calibration}
    lines += ["| | |", "|---|---|", *(f"| {name} | {str(value).replace('|', chr(92) + '|')} |" for name, value in rows.items())]
    for part, found in card.figures.items():
        flatter = (
            " (they chose the layer, of mlp also the epochs and a part of the curve, and flatter it)"
            if part == "validation"
            else ""
        )
        lines += ["", f"On {found['rows']} questions of {part}, {found['base_rate']:.1%} of them unknown{flatter}:", ""]
        lines += [f"* {name}: {found[key]:.3f}" for key, name in FIGURES.items()]
    lines += ["", "```python", *_use(card), "```", ""]
    return "\n".join(lines)


def _use(card: ProbeCard) -> list[str]:
    """Lines of Python: of questions where they make the states that the probe reads, else of states."""
    if card.source is not None and card.position != "answer_token":
        load = f'probe = KnowledgeProbe.load(".", "{card.source.model}")'
        return ["from ka2l_ray import KnowledgeProbe", "", load, 'print(probe.predict_proba(["Who wrote Faust?"])[:, 1])']
    shape, said = ((1, 9), "n, tokens") if card.position == "attention" else ((1,), "n")
    zeros = f"np.zeros({(*shape, card.dimension)}, np.float32)  # yours: ({said}, {card.dimension}), of layer {card.layer}"
    use = ['probe = KnowledgeProbe.load(".")', f"states = {zeros}", "print(probe.predict_proba(states)[:, 1])"]
    return ["import numpy as np", "", "from ka2l_ray import KnowledgeProbe", "", *use]


def _words(position: Position) -> str:
    words = {
        "last_prompt_token": "the state of its prompt's last token",
        "mean": "the mean state of its prompt's tokens",
        "attention": "the states of its prompt's last tokens, weighed by attention",
        "answer_token": "the state of its answer's last token but one",
    }
    return words[position]
