"""The closed-book prompt: instruction, optional few-shot examples, question; in the model's own chat template where it has one.

The answer's tokens are encoded apart from the prompt's, so that a model is trained on just the tokens it would have sampled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from ka2l_ray.config import PromptConfig
from ka2l_ray.errors import UserError


@dataclass(frozen=True)
class Prompter:
    """Turns questions into prompts for one tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    config: PromptConfig

    @property
    def uses_chat_template(self) -> bool:
        return self.config.chat_template == "auto" and bool(self.tokenizer.chat_template)

    def check(self) -> None:
        """Raise a UserError where the chat template cannot take the instruction, or an answer to train on."""
        try:
            self.encode_answer("Who?", "nobody")
        except TemplateError as error:
            raise UserError(
                f"the chat template refuses the prompt ({error}); set prompt.instruction: '' or prompt.chat_template: never"
            ) from None

    def prompt(self, question: str) -> str:
        """The text given to the model; it ends where the answer begins."""
        if self.uses_chat_template:
            text: str = self.tokenizer.apply_chat_template(self._messages(question), tokenize=False, add_generation_prompt=True)
            return text
        lines = [self.config.instruction] if self.config.instruction else []
        lines += [f"Question: {q}\nAnswer: {a}" for q, a in self.config.examples]
        return "\n\n".join([*lines, f"Question: {question}\nAnswer:"])

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a prompt. A chat template writes its own special tokens, so none are added: no doubled BOS."""
        ids: list[int] = self.tokenizer.encode(prompt, add_special_tokens=not self.uses_chat_template)
        if not self.uses_chat_template and ids and ids[-1] == self.tokenizer.eos_token_id:
            ids = ids[:-1]  # some tokenizers close every text; a prompt must stay open
        return ids

    def encode_answer(self, question: str, answer: str) -> list[int]:
        """Token ids that follow the prompt when the model answers ``answer``, end token included."""
        start = self.prompt(question)
        whole = f"{start} {answer}"
        if self.uses_chat_template:
            messages = [*self._messages(question), {"role": "assistant", "content": answer}]
            whole = self.tokenizer.apply_chat_template(messages, tokenize=False).rstrip("\n")
            if not whole.startswith(start):
                raise UserError("the chat template rewrites the prompt when an answer follows; set prompt.chat_template: never")
        start_ids, whole_ids = self.encode(start), self.encode(whole)
        if whole_ids[: len(start_ids)] == start_ids:
            ids = whole_ids[len(start_ids) :]
        else:  # prompt and answer share a token; sampled answers begin after the prompt's own tokens
            ids = list(self.tokenizer.encode(whole[len(start) :], add_special_tokens=False))
        last = self.tokenizer.added_tokens_decoder.get(ids[-1]) if ids else None
        return ids if last is not None and last.special else [*ids, self.tokenizer.eos_token_id]

    def _messages(self, question: str) -> list[dict[str, Any]]:
        messages = [{"role": "system", "content": self.config.instruction}] if self.config.instruction else []
        for example_question, example_answer in self.config.examples:
            messages += [{"role": "user", "content": example_question}, {"role": "assistant", "content": example_answer}]
        return [*messages, {"role": "user", "content": question}]
