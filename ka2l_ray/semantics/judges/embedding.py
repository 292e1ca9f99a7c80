"""Judge ``embedding``: a sentence encoder; answers that mean the same lie near each other, each behind its question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ka2l_ray.config import JudgePlace, JudgeSettings, ModelConfig
from ka2l_ray.models.model_files import model_identity
from ka2l_ray.normalization import Form
from ka2l_ray.semantics.clustering import CONTRADICTION, ENTAILMENT, Pair, Verdict, joined
from ka2l_ray.semantics.encoder import SENTENCE_ENCODER, SentenceEncoder
from ka2l_ray.semantics.texts import load_encoder_config

MODEL_KEY: str | None = "encoder"


class EmbeddingJudge:
    """A sentence encoder: equivalent are answers whose ``question + " " + answer`` have a cosine of ``threshold`` or more.

    Pooling (mean or first token) is read from the encoder's ``1_Pooling/config.json``, mean where there is none.
    """

    symmetric = True

    def __init__(self, path: str, *, threshold: float, batch_tokens: int = 8192, trust_remote_code: bool = False) -> None:
        self.encoder = SentenceEncoder(path, batch_tokens=batch_tokens, trust_remote_code=trust_remote_code)
        self.threshold = threshold

    def verdicts(self, questions: Sequence[str], pairs: Sequence[Pair]) -> list[Verdict]:
        texts = joined(questions, pairs)
        row = {text: i for i, text in enumerate(dict.fromkeys(text for pair in texts for text in pair))}
        encoded_ND, truncated = self.encoder.encode(list(row))
        cosines = (encoded_ND[[row[a] for a, _ in texts]] * encoded_ND[[row[b] for _, b in texts]]).sum(-1).tolist()
        return [
            Verdict(
                ENTAILMENT if cosine >= self.threshold else CONTRADICTION,
                truncated=row[a] in truncated or row[b] in truncated,
            )
            for (a, b), cosine in zip(texts, cosines, strict=True)
        ]


def make(settings: JudgeSettings, normalize: Form, directed: bool) -> EmbeddingJudge:
    return EmbeddingJudge(settings.encoder, threshold=settings.similarity, batch_tokens=settings.batch_tokens)


def identity(settings: JudgeSettings, normalize: Form) -> dict[str, Any]:
    load_encoder_config(settings.encoder, SENTENCE_ENCODER)
    return {"encoder": model_identity(ModelConfig(path=settings.encoder)), "similarity": settings.similarity}


def place(settings: JudgeSettings) -> JudgePlace:
    return "gpu"
