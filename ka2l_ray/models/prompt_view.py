"""A prompt as its model reads it, to be looked at before anything is paid for: text with its special tokens, and token ids."""

from __future__ import annotations

from dataclasses import dataclass

from ka2l_ray.models.chat_templates import REFUSALS, in_one_line
from ka2l_ray.models.prompts import Prompter


@dataclass(frozen=True)
class PromptView:
    """One question's prompt, and how a training row goes on behind the answer."""

    question: str
    text: str
    """Decoded from the token ids, special tokens included."""
    token_ids: list[int]
    end_of_turn: str
    end_of_turn_ids: list[int]

    def __str__(self) -> str:
        text = "\n".join(f"  | {line}" for line in self.text.split("\n"))
        return (
            f"prompt of the first question, {len(self.token_ids)} tokens:\n{text}\n  token ids: {self.token_ids}\n"
            f"  a training row ends its answer with {self.end_of_turn!r}, token ids {self.end_of_turn_ids}"
        )


def view_prompt(prompter: Prompter, question: str) -> PromptView:
    """What the model reads for ``question``."""
    end_ids = prompter.end_ids
    end = _decoded(prompter, end_ids)
    try:
        ids = prompter.encode(prompter.prompt(question))
    except REFUSALS as error:  # of this one question: it will be written with its error
        return PromptView(question, f"(the chat template refuses this question: {in_one_line(error)})", [], end, end_ids)
    return PromptView(question, _decoded(prompter, ids), ids, end, end_ids)


def _decoded(prompter: Prompter, ids: list[int]) -> str:
    return str(prompter.tokenizer.decode(ids, skip_special_tokens=False))
