"""A probe as a public artefact: safetensors with a card, and the card as a page.

The card says what the probe reads (model, prompt, layer, position), what it was fitted to, how well it does on questions that it
was not fitted on, and how it was calibrated: all that someone needs to use it, or not to.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from ka2l_ray.errors import UserError
from ka2l_ray.probes.networks import Kind, Probe, make_probe
from ka2l_ray.probes.parts import Target
from ka2l_ray.schema import Position

logger = logging.getLogger(__name__)

CARD_BYTES = 262144  # a probe's safetensors header is far shorter
FILE, PAGE = "probe.safetensors", "README.md"


@dataclass(frozen=True)
class Source:
    """The model and prompt whose states a probe reads. ``prompt`` are the configuration's keys; ``rendering`` is the digest of
    the token ids of one fixed question and its answer, whatever template, tokenizer and library make of them."""

    model: str
    revision: str | None
    layers: int
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

    kind: Kind
    layer: int
    dimension: int
    hidden_width: int
    position: Position = "last_prompt_token"
    target: Target = "label"
    standardized: bool = True
    biases: bool = False
    """Of gate and up, in ``mlp``: where states are standardised (not in probes that were saved before there were any)."""
    class_weights: str = "balanced"
    calibration: str = "none"
    source: Source | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    """``uncertainty.calibration.summary`` on rows that the probe was not fitted on, under the name of those rows."""


def probe_to_bytes(probe: Probe, card: ProbeCard) -> bytes:
    """safetensors, the card in its metadata."""
    weights = {name: tensor.contiguous() for name, tensor in probe.state_dict().items()}
    data: bytes = save(weights, {"card": json.dumps(asdict(card))})
    return data


def probe_card(data: bytes, where: str) -> ProbeCard:
    """The card of a saved probe, of which ``data`` is the beginning at least (``CARD_BYTES``).

    Raises:
        UserError: the bytes are not a probe of ours.
    """
    length = int.from_bytes(data[:8], "little")
    try:
        card = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["card"])
        source = card.pop("source", None)
        return ProbeCard(**card, source=None if source is None else Source(**source))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{where}: not a probe; give the directory that ka2l probe wrote") from None


def probe_from_bytes(data: bytes, where: str) -> tuple[Probe, ProbeCard]:
    """The probe and its card.

    Raises:
        UserError: the bytes are not a probe of ours, or damaged.
    """
    card = probe_card(data, where)
    attention = card.position == "attention"
    probe = make_probe(card.kind, card.dimension, card.hidden_width, attention=attention, biases=card.biases)
    try:
        weights = load(data)
        probe.curve = weights["curve"]  # as long as it was fitted
        probe.load_state_dict(weights)
    except (SafetensorError, RuntimeError, KeyError) as error:
        raise UserError(f"{where}: the probe is damaged ({str(error).splitlines()[0]}); fit it again") from None
    probe.calibration = card.calibration
    return probe.eval(), card


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
        lines += ["", f"On {found['rows']} questions of {part}, {found['base_rate']:.1%} of them unknown:", ""]
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


FIGURES = {
    "auroc": "AUROC",
    "accuracy": "accuracy at p = 0.5",
    "brier": "Brier score",
    "calibration_error": "calibration error, debiased",
    "log_loss": "log loss, nats",
    "base_rate_entropy": "log loss of always saying the base rate, nats",
}


def _words(position: Position) -> str:
    words = {
        "last_prompt_token": "the state of its prompt's last token",
        "mean": "the mean state of its prompt's tokens",
        "attention": "the states of its prompt's last tokens, weighed by attention",
        "answer_token": "the state of its answer's last token but one",
    }
    return words[position]
