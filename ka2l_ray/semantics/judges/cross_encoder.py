"""Judge ``cross_encoder``: a sequence-classification model that was fine-tuned to say whether two answers mean the same.

Any model with one or two labels serves. It reads a sentence pair, ``question + " " + a`` and ``question + " " + b`` (the answers
alone where there is no question), in both orders, and the mean of the two probabilities of "the same" is held against a
threshold: a verdict does not depend on which answer stands first. One label: the probability is the sigmoid of its logit. Two
labels: softmax, and which of the two is "the same" is read from their names. The threshold that a model was made for stands in
its ``config.json``, as ``same_answer_threshold``; the settings' own goes before it. Answers that are equal after normalisation
are the same, and the model is not asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PretrainedConfig

from ka2l_ray.config import JudgePlace, JudgeSettings, ModelConfig
from ka2l_ray.errors import UserError
from ka2l_ray.models.batching import enough_tokens
from ka2l_ray.models.model_files import model_identity
from ka2l_ray.normalization import Form, normalize_answer
from ka2l_ray.semantics.clustering import CONTRADICTION, ENTAILMENT, SAME, Pair, Verdict, joined
from ka2l_ray.semantics.texts import EncoderKind, Texts, load_encoder, load_encoder_config

CROSS_ENCODER = EncoderKind("cross-encoder", AutoModelForSequenceClassification)
THRESHOLD_KEY = "same_answer_threshold"
UNTOLD_THRESHOLD = 0.5
NAMES_OF_SAME = ("same", "equivalent", "entail", "duplicate", "paraphrase", "yes", "true", "label_1")

MODEL_KEY: str | None = "cross_encoder"


class CrossEncoderJudge:
    """Two answers mean the same where the model's mean probability of it over both orders is ``threshold`` or more.

    Args:
        path: directory or hub name.
        threshold: of P(the same); None: the one in the model's ``config.json``, else 0.5.
        batch_tokens: padded tokens of one forward pass.
        device: as torch names it; left out: the first GPU, or the CPU where there is none.
    """

    symmetric = True

    def __init__(
        self,
        path: str,
        *,
        threshold: float | None = None,
        normalize: Form = "unicode",
        batch_tokens: int = 4096,
        device: str | None = None,
    ) -> None:
        config = load_encoder_config(path, CROSS_ENCODER)
        self.same = same_label(config, path)
        self.threshold = threshold_of(config) if threshold is None else threshold
        self.texts = Texts(path, config)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = load_encoder(path, CROSS_ENCODER, dtype=torch.float32)
        self.model.eval().to(self.device)
        self.batch_tokens = batch_tokens
        self.normalize = normalize

    def verdicts(self, questions: Sequence[str], pairs: Sequence[Pair]) -> list[Verdict]:
        verdicts = [SAME] * len(pairs)
        open_ = [i for i, (a, b) in enumerate(pairs) if self._form(a) != self._form(b)]
        found, truncated = self.probabilities([questions[i] for i in open_], [pairs[i] for i in open_])
        for row, i in enumerate(open_):
            verdicts[i] = Verdict(ENTAILMENT if found[row] >= self.threshold else CONTRADICTION, truncated=row in truncated)
        return verdicts

    def _form(self, answer: str) -> str:
        return normalize_answer(answer, self.normalize)

    @torch.inference_mode()
    def probabilities(self, questions: Sequence[str], pairs: Sequence[Pair]) -> tuple[list[float], set[int]]:
        """(P(the same) of each pair, in both orders' mean; the pairs of which not all was seen: the beginning is cut off)."""
        texts = joined(questions, pairs)
        n = len(texts)
        if not n:
            return [], set()
        encoded, truncated = self.texts.encode(
            [*(a for a, _ in texts), *(b for _, b in texts)], [b for _, b in texts] + [a for a, _ in texts]
        )
        p = torch.empty(2 * n)
        for rows, batch in self.texts.batches(encoded, self.batch_tokens, enough_tokens(self.device)):
            logits = self.model(**batch.to(self.device)).logits.float()
            p[rows] = (logits[:, 0].sigmoid() if self.same is None else logits.softmax(-1)[:, self.same]).cpu()
        return ((p[:n] + p[n:]) / 2).tolist(), {i % n for i in truncated}


def same_label(config: PretrainedConfig, path: str) -> int | None:
    """The output that says "the same" of a model with two labels; None of a model with one.

    Raises:
        UserError: more labels, or names that do not tell.
    """
    if config.num_labels == 1:
        return None
    names = [str(config.id2label[i]) for i in range(config.num_labels)]
    same = [i for i, name in enumerate(names) if name.lower().startswith(NAMES_OF_SAME)]
    if len(names) != 2 or len(same) != 1:
        raise UserError(
            f"{path}: its labels are {names}; a cross-encoder judge has one label, or two of which one is 'same' or 'equivalent'"
            + ("; an NLI model is the judge nli" if len(names) == 3 else "")
        )
    return same[0]


def threshold_of(config: PretrainedConfig) -> float:
    """The threshold that the model was made for."""
    return float(getattr(config, THRESHOLD_KEY, UNTOLD_THRESHOLD))


def make(settings: JudgeSettings, normalize: Form, directed: bool) -> CrossEncoderJudge:
    assert settings.cross_encoder is not None
    return CrossEncoderJudge(
        settings.cross_encoder,
        threshold=settings.cross_encoder_threshold,
        normalize=normalize,
        batch_tokens=settings.batch_tokens,
    )


def identity(settings: JudgeSettings, normalize: Form) -> dict[str, Any]:
    assert settings.cross_encoder is not None
    config = load_encoder_config(settings.cross_encoder, CROSS_ENCODER)
    same_label(config, settings.cross_encoder)
    threshold = settings.cross_encoder_threshold
    return {
        "cross_encoder": model_identity(ModelConfig(path=settings.cross_encoder)),
        "cross_encoder_threshold": threshold_of(config) if threshold is None else threshold,
        "normalize": normalize,
    }


def place(settings: JudgeSettings) -> JudgePlace:
    return "gpu"
