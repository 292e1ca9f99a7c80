"""Judge ``nli``: an NLI model says whether one answer entails another, given their question."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PretrainedConfig

from ka2l_ray.config import JudgePlace, JudgeSettings, ModelConfig
from ka2l_ray.errors import UserError
from ka2l_ray.models.batching import enough_tokens
from ka2l_ray.models.model_files import model_identity
from ka2l_ray.normalization import Form
from ka2l_ray.semantics.clustering import CONTRADICTION, ENTAILMENT, NEUTRAL, Pair, Verdict, joined
from ka2l_ray.semantics.deberta import precompute_positions
from ka2l_ray.semantics.texts import EncoderKind, Texts, load_encoder, load_encoder_config
from ka2l_ray.world import bundled_path

logger = logging.getLogger(__name__)

NLI_MODEL = EncoderKind("NLI model", AutoModelForSequenceClassification)

MODEL_KEY: str | None = "nli_model"


class NLIJudge:
    """An NLI model; it sees ``question + " " + answer`` on both sides, as a sentence pair. Label ids are read from its config.

    ``real_tokens`` and ``padded_tokens`` count what went through the model without and with padding.

    Args:
        path: directory, hub name, or ``bundled:judge``.
        batch_tokens: padded tokens of one forward pass.
        device: as torch names it; left out: the first GPU, or the CPU where there is none.
    """

    symmetric = False

    def __init__(
        self, path: str, *, batch_tokens: int = 4096, trust_remote_code: bool = False, device: str | None = None
    ) -> None:
        config = load_encoder_config(path, NLI_MODEL, trust_remote_code)
        labels = label_verdicts(config, path)
        self.path = path = bundled_path(path)
        self.labels = [labels[i] for i in range(len(labels))]
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.texts = Texts(path, config, trust_remote_code)
        dtype = torch.float32 if self.device.type == "cpu" else torch.float16
        self.model = load_encoder(path, NLI_MODEL, trust_remote_code, dtype=dtype)
        self.model.eval().to(self.device)
        precompute_positions(self.model)
        self.batch_tokens = batch_tokens
        self.real_tokens = self.padded_tokens = 0

    def verdicts(self, questions: Sequence[str], pairs: Sequence[Pair]) -> list[Verdict]:
        return self.entailments(joined(questions, pairs))

    @torch.inference_mode()
    def entailments(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """Verdict of each (premise, hypothesis), in batches of similar length. What is too long loses its beginning."""
        encoded, truncated = self.texts.encode([a for a, _ in pairs], [b for _, b in pairs])
        verdicts: dict[int, Verdict] = {}
        for rows, batch in self.texts.batches(encoded, self.batch_tokens, enough_tokens(self.device)):
            self.real_tokens += sum(len(encoded["input_ids"][i]) for i in rows)
            self.padded_tokens += batch["input_ids"].numel()
            for i, label in zip(rows, self._logits(batch, pairs[rows[0]]).argmax(dim=-1).tolist(), strict=True):
                verdicts[i] = Verdict(self.labels[label], truncated=i in truncated)
        return [verdicts[i] for i in range(len(pairs))]

    def _logits(self, batch: Any, first: Pair) -> Tensor:
        """(B, 3); in float32 from the first time that float16 overflows.

        Raises:
            UserError: they are not finite in float32 either.
        """
        batch = batch.to(self.device)
        logits: Tensor = self.model(**batch).logits
        if not torch.isfinite(logits).all() and self.model.dtype != torch.float32:
            logger.warning("%s gives numbers that are not finite in %s; it goes on in float32", self.path, self.model.dtype)
            self.model.float()
            logits = self.model(**batch).logits
        if not torch.isfinite(logits).all():
            raise UserError(
                f"{self.path}: this NLI model gives logits that are not finite, first near premise {first[0]!r}; "
                "its weights are damaged: give another nli_model"
            )
        return logits


def label_verdicts(config: PretrainedConfig, path: str) -> dict[int, int]:
    """Verdict of each output id, read from the model's own label names: their order differs between models.

    Raises:
        UserError: the names do not say which label is entailment.
    """
    names = {"entail": ENTAILMENT, "neutral": NEUTRAL, "contradict": CONTRADICTION}
    found: dict[int, int] = {}
    for index, label in config.id2label.items():
        for stem, verdict in names.items():
            if label.lower().startswith(stem):
                found[int(index)] = verdict
    if sorted(found.values()) != sorted(names.values()):
        raise UserError(
            f"{path}: its labels are {list(config.id2label.values())}; an NLI judge needs entailment, neutral, contradiction"
        )
    return found


def make(settings: JudgeSettings, normalize: Form, directed: bool) -> NLIJudge:
    return NLIJudge(settings.nli_model, batch_tokens=settings.batch_tokens)


def identity(settings: JudgeSettings, normalize: Form) -> dict[str, Any]:
    label_verdicts(load_encoder_config(settings.nli_model, NLI_MODEL), settings.nli_model)
    return {"nli_model": model_identity(ModelConfig(path=settings.nli_model))}


def place(settings: JudgeSettings) -> JudgePlace:
    return "gpu"
