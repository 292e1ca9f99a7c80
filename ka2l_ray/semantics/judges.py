"""Judges of meaning. A new judge is a class with ``symmetric`` and ``verdicts``, and a line in ``make_judge``."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PretrainedConfig

from ka2l_ray.config import EntropyConfig, ModelConfig, PromptConfig
from ka2l_ray.errors import UserError
from ka2l_ray.models.batching import enough_tokens
from ka2l_ray.models.language_model import LanguageModel
from ka2l_ray.models.prompts import without_thinking
from ka2l_ray.models.thinking import answer_start
from ka2l_ray.questions import normalize_answer
from ka2l_ray.semantics.clustering import CONTRADICTION, ENTAILMENT, NEUTRAL, Judge, Pair, Verdict, joined
from ka2l_ray.semantics.deberta import precompute_positions
from ka2l_ray.semantics.encoder import SentenceEncoder
from ka2l_ray.semantics.texts import EncoderKind, Texts, load_encoder, load_encoder_config
from ka2l_ray.world import bundled_path

logger = logging.getLogger(__name__)

NLI_MODEL = EncoderKind("NLI model", AutoModelForSequenceClassification)
KEY_VARIABLE = "KA2L_JUDGE_API_KEY"
GREEDY = 1e-4  # temperature at which the likeliest token is drawn
SAME, DIFFERENT = Verdict(ENTAILMENT), Verdict(CONTRADICTION)


class ExactJudge:
    """Two answers are equivalent when they are equal after SQuAD normalisation."""

    symmetric = True

    def verdicts(self, questions: Sequence[str], pairs: Sequence[Pair]) -> list[Verdict]:
        return [SAME if normalize_answer(a) == normalize_answer(b) else DIFFERENT for a, b in pairs]


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
                "its weights are damaged: give another entropy.nli_model"
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


class LLMJudge:
    """A language model, asked whether two answers to the question mean the same. It says yes or no.

    Args:
        ask: greedy answers to prompts.
        prompt: with ``{question}``, ``{a}`` and ``{b}``.
    """

    symmetric = True

    def __init__(self, ask: Callable[[list[str]], list[str]], prompt: str) -> None:
        self.ask = ask
        self.prompt = prompt

    def verdicts(self, questions: Sequence[str], pairs: Sequence[Pair]) -> list[Verdict]:
        prompts = [self.prompt.format(question=q, a=a, b=b) for q, (a, b) in zip(questions, pairs, strict=True)]
        return [read_yes_or_no(text) for text in self.ask(prompts)]


def read_yes_or_no(text: str) -> Verdict:
    """The first yes or no in a judge's words, its thoughts left out; with neither in them, the verdict is unparsable and taken
    for neutral."""
    start = answer_start(text)
    found = re.search(r"\b(yes|no)\b", text[start:].lower()) if start is not None else None
    if found is None:
        return Verdict(NEUTRAL, unparsable=True)
    return SAME if found[1] == "yes" else DIFFERENT


def endpoint(
    url: str, model: str, key: str | None, *, connections: int = 16, retries: int = 5, max_tokens: int = 8
) -> Callable[[list[str]], list[str]]:
    """Ask an OpenAI-compatible server (vLLM's, for one) for chat answers at temperature 0, several at a time, with retries.

    Raises:
        UserError: the package is missing, or the server does not answer.
    """
    try:
        from openai import OpenAI, OpenAIError
    except ImportError:
        raise UserError("entropy.endpoint needs a package that is not installed; pip install 'ka2l_ray[endpoint]'") from None
    client = OpenAI(base_url=url, api_key=key or "none", max_retries=retries)

    def one(prompt: str) -> str:
        try:
            answer = client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": prompt}], temperature=0, max_tokens=max_tokens
            )
        except OpenAIError as error:
            raise UserError(f"{url}: the judge's endpoint failed: {type(error).__name__}: {str(error)[:200]}") from None
        return answer.choices[0].message.content or ""

    def ask(prompts: list[str]) -> list[str]:
        with ThreadPoolExecutor(connections) as pool:
            return list(pool.map(one, prompts))

    return ask


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


def local_model(path: str, *, batch_tokens: int, max_tokens: int = 8) -> Callable[[list[str]], list[str]]:
    """Ask a causal language model held in this process, by its chat template where it has one, for its likeliest answers."""
    model = LanguageModel(ModelConfig(path=path))
    prompter = without_thinking(model.tokenizer, PromptConfig(instruction=""))

    def ask(prompts: list[str]) -> list[str]:
        encoded = [prompter.encode(prompter.prompt(prompt)) for prompt in prompts]
        fitting = [i for i, ids in enumerate(encoded) if len(ids) + max_tokens <= model.max_length]
        given = [encoded[i] for i in fitting]
        answers = model.generate(given, 0, [GREEDY], max_tokens=max_tokens, batch_tokens=batch_tokens)
        said = dict(zip(fitting, (row[0].text for row in answers), strict=True))
        return [said.get(i, "") for i in range(len(prompts))]  # what does not fit is not answered, and counts as unparsable

    return ask


def make_judge(config: EntropyConfig) -> Judge:
    """The judge of a configuration, loaded."""
    if config.judge == "exact":
        return ExactJudge()
    if config.judge == "nli":
        return NLIJudge(config.nli_model, batch_tokens=config.batch_tokens)
    if config.judge == "embedding":
        return EmbeddingJudge(config.encoder, threshold=config.similarity, batch_tokens=config.batch_tokens)
    assert config.llm_model is not None
    if config.endpoint is not None:
        ask = endpoint(config.endpoint, config.llm_model, os.environ.get(KEY_VARIABLE))
    else:
        ask = local_model(config.llm_model, batch_tokens=config.batch_tokens)
    return LLMJudge(ask, config.llm_prompt)
