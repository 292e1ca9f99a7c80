"""Judge ``llm``: a language model is asked whether two answers to the question mean the same; it says yes or no."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ka2l_ray.config import JudgePlace, JudgeSettings, ModelConfig, PromptConfig
from ka2l_ray.errors import UserError
from ka2l_ray.models.language_model import LanguageModel
from ka2l_ray.models.model_files import check_is_model, model_identity
from ka2l_ray.models.prompts import load_quiet_prompter, without_thinking
from ka2l_ray.models.thinking import answer_start
from ka2l_ray.normalization import Form
from ka2l_ray.semantics.clustering import DIFFERENT, NEUTRAL, SAME, Pair, Verdict

KEY_VARIABLE = "KA2L_JUDGE_API_KEY"
GREEDY = 1e-4  # temperature at which the likeliest token is drawn

MODEL_KEY: str | None = None


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

    def abstains(self, questions: Sequence[str], answers: Sequence[str], prompt: str) -> list[bool]:
        """Whether each answer declines to answer; ``prompt`` with ``{question}`` and ``{answer}``."""
        texts = self.ask([prompt.format(question=q, answer=a) for q, a in zip(questions, answers, strict=True)])
        return [read_yes_or_no(text) == SAME for text in texts]


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
        raise UserError("the judge's endpoint needs a package that is not installed; pip install 'ka2l_ray[endpoint]'") from None
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


def make(settings: JudgeSettings, normalize: Form, directed: bool) -> LLMJudge:
    assert settings.llm_model is not None
    if settings.endpoint is not None:
        ask = endpoint(settings.endpoint, settings.llm_model, os.environ.get(KEY_VARIABLE))
    else:
        ask = local_model(settings.llm_model, batch_tokens=settings.batch_tokens)
    return LLMJudge(ask, settings.llm_prompt)


def identity(settings: JudgeSettings, normalize: Form) -> dict[str, Any]:
    assert settings.llm_model is not None
    served: Any = settings.llm_model
    if settings.endpoint is None:
        model = ModelConfig(path=settings.llm_model)
        check_is_model(model)
        prompter = load_quiet_prompter(model)
        served = {**model_identity(model), "rendering": prompter.encode(prompter.prompt(settings.llm_prompt))}
    return {"llm_model": served, "llm_prompt": settings.llm_prompt}


def place(settings: JudgeSettings) -> JudgePlace:
    return "gpu" if settings.endpoint is None else "worker"
