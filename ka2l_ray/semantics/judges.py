"""Judges of semantic equivalence. A new judge is a class with ``equivalent`` and a line in ``make_judge``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PretrainedConfig

from ka2l_ray.errors import UserError
from ka2l_ray.questions import normalize_answer
from ka2l_ray.semantics.clustering import EquivalenceJudge, Pair

Verdict = Literal["entailment", "neutral", "contradiction"]
Equivalence = Literal["strict", "lenient"]


class ExactJudge:
    """Two answers are equivalent when they are equal after SQuAD normalisation."""

    def equivalent(self, questions: Sequence[str], pairs: Sequence[Pair]) -> tuple[list[bool], list[int]]:
        return [normalize_answer(a) == normalize_answer(b) for a, b in pairs], [0] * len(pairs)


class NLIJudge:
    """Two answers are equivalent when an NLI model says that each entails the other, given the question.

    The model sees ``question + " " + answer`` on both sides, as a sentence pair; label ids are read from its config.
    ``strict``: entailment both ways. ``lenient``: no contradiction, and not both neutral.
    """

    def __init__(
        self, path: str, *, equivalence: Equivalence = "strict", batch_size: int = 64, trust_remote_code: bool = False
    ) -> None:
        config = load_nli_config(path, trust_remote_code)
        self.verdict_of = label_verdicts(config, path)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code, truncation_side="left")
        self.max_length = min(
            self.tokenizer.model_max_length, getattr(config, "max_position_embeddings", 512) - 2
        )  # RoBERTa keeps two
        dtype = torch.float32 if self.device.type == "cpu" else torch.float16
        self.model = AutoModelForSequenceClassification.from_pretrained(path, dtype=dtype, trust_remote_code=trust_remote_code)
        self.model.eval().to(self.device)
        self.equivalence = equivalence
        self.batch_size = batch_size

    def equivalent(self, questions: Sequence[str], pairs: Sequence[Pair]) -> tuple[list[bool], list[int]]:
        """Forward verdicts first; the reverse direction only where the forward one leaves it open."""
        premises = [f"{question} {a}" for question, (a, _) in zip(questions, pairs, strict=True)]
        hypotheses = [f"{question} {b}" for question, (_, b) in zip(questions, pairs, strict=True)]
        forward = self.verdicts(premises, hypotheses)
        undecided = [i for i, verdict in enumerate(forward) if self._leaves_open(verdict)]
        reverse = self.verdicts([hypotheses[i] for i in undecided], [premises[i] for i in undecided])
        equivalent, calls = [False] * len(pairs), [1] * len(pairs)
        for i, verdict in zip(undecided, reverse, strict=True):
            calls[i] = 2
            if self.equivalence == "strict":
                equivalent[i] = verdict == "entailment"
            else:
                equivalent[i] = verdict != "contradiction" and (forward[i], verdict) != ("neutral", "neutral")
        return equivalent, calls

    def _leaves_open(self, forward: Verdict) -> bool:
        return forward == "entailment" if self.equivalence == "strict" else forward != "contradiction"

    @torch.inference_mode()
    def verdicts(self, premises: Sequence[str], hypotheses: Sequence[str]) -> list[Verdict]:
        """Verdict of each (premise, hypothesis), in batches of similar length. What is too long loses its beginning."""
        order = sorted(range(len(premises)), key=lambda i: len(premises[i]) + len(hypotheses[i]))
        verdicts: dict[int, Verdict] = {}
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            batch = self.tokenizer(
                [premises[i] for i in rows],
                [hypotheses[i] for i in rows],
                padding=True,
                truncation=True,
                max_length=self.max_length,
                return_tensors="pt",
            )
            label_ids = self.model(**batch.to(self.device)).logits.argmax(dim=-1).tolist()
            verdicts.update({i: self.verdict_of[label] for i, label in zip(rows, label_ids, strict=True)})
        return [verdicts[i] for i in range(len(premises))]


def load_nli_config(path: str, trust_remote_code: bool = False) -> PretrainedConfig:
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no NLI model there ({str(error).splitlines()[0]})") from None
    return config


def label_verdicts(config: PretrainedConfig, path: str) -> dict[int, Verdict]:
    """Verdict of each output id, read from the model's own label names: their order differs between models.

    Raises:
        UserError: the names do not say which label is entailment.
    """
    names: dict[str, Verdict] = {"entail": "entailment", "neutral": "neutral", "contradict": "contradiction"}
    found: dict[int, Verdict] = {}
    for index, label in config.id2label.items():
        for stem, verdict in names.items():
            if label.lower().startswith(stem):
                found[int(index)] = verdict
    if sorted(found.values()) != sorted(names.values()):
        raise UserError(
            f"{path}: its labels are {list(config.id2label.values())}; an NLI judge needs entailment, neutral, contradiction"
        )
    return found


def make_judge(name: str, nli_model: str, equivalence: Equivalence, batch_size: int) -> EquivalenceJudge:
    """The judge called ``name``."""
    if name == "exact":
        return ExactJudge()
    if name == "nli":
        return NLIJudge(nli_model, equivalence=equivalence, batch_size=batch_size)
    raise UserError(f"no judge '{name}'; there are: nli, exact")
