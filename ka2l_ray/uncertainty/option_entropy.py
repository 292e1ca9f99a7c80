"""How sure a model is among the options of a question, without sampling: the entropy of the options' likelihoods, in nats.

Where the prompt shows the options, the likelihood of one is its letter's as the next token: one forward pass over the prompt.
Where it does not, it is that of the option's text as the whole answer, the token that ends it included (the sum over its tokens,
not their mean): a pass over the prompt with each option. Either way they are normalised to sum to one: how likely the model is to
say any of them at all does not count.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ka2l_ray.models.architecture import vocabulary_logits
from ka2l_ray.models.chat_templates import QUESTION
from ka2l_ray.models.language_model import LanguageModel
from ka2l_ray.models.prompts import Prompter
from ka2l_ray.options import LETTERS, shows_options


class OptionEntropy:
    """The score for one model and its prompt."""

    def __init__(self, model: LanguageModel, prompter: Prompter) -> None:
        self.model, self.prompter = model, prompter
        prompt = prompter.prompt(QUESTION)
        tokens = [prompter.follow(prompt, letter) for letter in LETTERS]
        single = all(len(ids) == 1 for ids in tokens) and len({ids[0] for ids in tokens}) == len(tokens)
        self.letter_ids = [ids[0] for ids in tokens] if single else None
        """Tokens of the letters as they follow a prompt; None where they are not one token each."""

    def __call__(
        self,
        questions: Sequence[str],
        prompts_ids: Sequence[Sequence[int]],
        options: Sequence[Sequence[str] | None],
        *,
        batch_tokens: int = 65536,
    ) -> NDArray[np.float64]:
        """(n,) nats; NaN where there are no options.

        Args:
            questions: (n,) texts as they are asked: those that hold their options are scored by letter.
            prompts_ids: (n,) token ids of their prompts.
            options: (n,) texts.
        """
        found = np.full(len(questions), np.nan)
        having = {i: texts for i, texts in enumerate(options) if texts is not None}
        shown = [i for i, texts in having.items() if shows_options(questions[i], texts)]
        said = {i: list(dict.fromkeys(texts)) for i, texts in having.items()}  # a text that stands twice is said once
        if self.letter_ids is not None:
            for i, log_p in zip(shown, self._letters([prompts_ids[i] for i in shown], batch_tokens), strict=True):
                found[i] = entropy_of(log_p[: len(having[i])], having[i])
                del said[i]
        else:
            said |= {i: list(LETTERS[: len(having[i])]) for i in shown}
        prompts = [prompts_ids[i] for i, answers in said.items() for _ in answers]
        continuations = [self.prompter.encode_answer(questions[i], answer) for i, answers in said.items() for answer in answers]
        likelihoods = iter(self.model.log_likelihood(prompts, continuations, batch_tokens=batch_tokens))
        for i, answers in said.items():
            log_p = np.array([sum(next(likelihoods)) for _ in answers])
            found[i] = entropy_of(log_p, having[i] if i in shown else answers)
        return found

    @torch.inference_mode()
    def _letters(self, prompts_ids: Sequence[Sequence[int]], batch_tokens: int) -> NDArray[np.float64]:
        """(n, 26) logits of the letters as the token that follows each prompt."""
        found = np.empty((len(prompts_ids), len(LETTERS)))
        last = self.model.n_layers
        for rows, states in self.model.last_token_states(prompts_ids, [last], batch_tokens=batch_tokens) if prompts_ids else ():
            logits_BV = vocabulary_logits(self.model.causal_lm, states[last])
            found[rows] = logits_BV[:, self.letter_ids].double().cpu().numpy()
        return found


def entropy_of(log_likelihoods: NDArray[np.float64], options: Sequence[str]) -> float:
    """Nats, 0 to ln of the number of different options.

    Args:
        log_likelihoods: (n,) of each option, up to a constant.
        options: (n,) texts; of equal ones the likelihoods add up.
    """
    p = np.exp(log_likelihoods - log_likelihoods.max())
    _, meaning = np.unique(np.array(options, object), return_inverse=True)
    p = np.bincount(meaning, p)
    p = p[p > 0] / p.sum()
    return float(-(p * np.log(p)).sum())
