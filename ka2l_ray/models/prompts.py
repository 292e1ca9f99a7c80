"""The closed-book prompt: instruction, optional few-shot examples, question; in the model's own chat template where it has one.

A training row is the prompt's tokens, the answer's, and the token that ends a turn: just what the model would have sampled. The
answer is encoded as it follows the prompt, never as a text of its own.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

from transformers import PreTrainedTokenizerBase

from ka2l_ray.config import ModelConfig, PromptConfig
from ka2l_ray.errors import UserError
from ka2l_ray.models.chat_templates import ANSWER, QUESTION, REFUSALS, ChatTemplate, Message, Turn, in_one_line
from ka2l_ray.models.model_files import load_tokenizer
from ka2l_ray.models.sampling import Generation
from ka2l_ray.models.thinking import CLOSING, OPENING, Thinking, closing_mark, open_mark

logger = logging.getLogger(__name__)

# Of the answers of one shard: so many may think where they should not (the odd one does), or be cut in their thoughts.
MOST_THINKING = 0.1
MOST_CUT = 0.5
FIXED_CASE = ("Which city is the capital of France?", "Paris")

SWITCHES = ("enable_thinking", "thinking")
"""Template arguments that turn a model's thinking off, where its template knows them."""


@dataclass(frozen=True)
class Prompter:
    """Turns questions into prompts for one tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    config: PromptConfig

    @property
    def uses_chat_template(self) -> bool:
        return self.config.chat_template == "auto" and bool(self.tokenizer.chat_template)

    def check(self) -> None:
        """Raise a UserError where the configuration does not fit the tokenizer and its template; warn of what has no effect."""
        config = self.config
        known: set[str] = set()
        if self.uses_chat_template:
            self._check_template()
            known = self._template.variables
        elif config.role != "auto":
            raise UserError(f"prompt.role is {config.role}, and no chat template is used; leave it out")
        for name in config.template_arguments:
            if name not in known:
                logger.warning("prompt.template_arguments: no chat template reads '%s'; it has no effect", name)
        if self.end_of_turn is None:
            raise UserError("the tokenizer has no token that ends an answer; set its eos_token")
        self._check_prefill()
        if config.thinking == "off" and self._first_says:
            raise UserError(
                f"the model would think before it answers ({self._first_says!r}), and prompt.thinking is off; {self.ways_out}"
            )
        for name in known.intersection(SWITCHES).difference(config.template_arguments) if config.thinking == "off" else ():
            logger.warning("the chat template reads '%s', which prompt.template_arguments does not set: it may think", name)

    def check_answers(self, answers: Sequence[Sequence[Generation]], max_tokens: int) -> None:
        """Raise a UserError where too many answers (one row a question) think unasked, or are cut in their thoughts."""
        drawn = [answer.thought for row in answers for answer in row]
        thoughts, cut = len(drawn) - drawn.count("none"), drawn.count("open")
        if self.config.thinking == "off" and thoughts > MOST_THINKING * len(drawn):
            raise UserError(
                f"{thoughts} of {len(drawn)} answers begin with a think block, and prompt.thinking is off; {self.ways_out}"
            )
        if cut > MOST_CUT * len(drawn):
            raise UserError(
                f"{cut} of {len(drawn)} answers end inside their think block; raise sampling.max_tokens ({max_tokens}), "
                f"or turn thinking off: {self.ways_out}"
            )

    def prompt(self, question: str) -> str:
        """The text given to the model; it ends where the answer begins."""
        if self.uses_chat_template:
            text = self._template.render(self._messages(question, self._role), generation=True) + self._turn.header
        else:
            lines = [self.config.instruction] if self.config.instruction else []
            lines += [f"Question: {q}\nAnswer: {a}" for q, a in self.config.examples]
            text = "\n\n".join([*lines, f"Question: {question}\nAnswer:"])
        return self.open(text)

    def open(self, text: str) -> str:
        """``text`` with what every answer begins with. A think block that the template opens already is opened once."""
        prefill = self.config.prefill
        begun = OPENING.match(prefill)
        if begun and text.rstrip().endswith(begun[0]):
            text = text.rstrip().removesuffix(begun[0])
        return text + prefill

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a prompt. A chat template writes its own special tokens, so none are added: no doubled BOS."""
        ids: list[int] = self.tokenizer.encode(prompt, add_special_tokens=not self.uses_chat_template)
        if not self.uses_chat_template and ids and ids[-1] == self.tokenizer.eos_token_id:
            ids = ids[:-1]  # some tokenizers close every text; a prompt must stay open
        return ids

    def encode_answer(self, question: str, answer: str) -> list[int]:
        """Token ids that follow the prompt when the model answers ``answer``, end token included."""
        assert self.end_of_turn is not None
        return [*self.follow(self.prompt(question), f"{answer}{self._closing[0]}"), self.end_of_turn]

    def follow(self, prompt: str, answer: str) -> list[int]:
        """Token ids of ``answer`` as it follows ``prompt``, open-ended."""
        text = f"{self._lead}{answer}"
        start, whole = self.encode(prompt), self.encode(prompt + text)
        if whole[: len(start)] == start:
            return whole[len(start) :]
        # Prompt and answer share a token; sampled answers begin after the prompt's own tokens.
        line = self.tokenizer.encode("\n", add_special_tokens=False)
        behind_line = self.tokenizer.encode(f"\n{text}", add_special_tokens=False)
        if behind_line[: len(line)] == line:  # a text of its own would get a space in front of it by some tokenizers
            return list(behind_line[len(line) :])
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    @property
    def thinking(self) -> Thinking:
        """For the engine that generates."""
        return Thinking(strip=self.config.thinking == "strip", opened=self._open_mark is not None)

    @property
    def end_ids(self) -> list[int]:
        """Tokens of a training row behind the answer's text."""
        answer = self.follow(self.prompt(QUESTION), ANSWER)
        return self.encode_answer(QUESTION, ANSWER)[len(answer) :]

    @property
    def end_of_turn(self) -> int | None:
        """The token that ends an answer, in training rows too; None where the tokenizer has none."""
        return self._closing[1]

    @property
    def ways_out(self) -> str:
        """How thinking can be turned off here, or let be."""
        known = self._template.variables if self.uses_chat_template else set()
        switches = [name for name in SWITCHES if name in known and name not in self.config.template_arguments]
        switch = f": {{{switches[0]}: false}}" if switches else " (the template reads no switch that we know)"
        return (
            f"set prompt.template_arguments{switch}, or prompt.prefill: {self._empty_block!r}, "
            "or let it: prompt.thinking: strip, with a sampling.max_tokens to match"
        )

    @cached_property
    def _template(self) -> ChatTemplate:
        return ChatTemplate(self.tokenizer, self.config.template_arguments)

    @cached_property
    def _role(self) -> str:
        if self.config.role != "auto" or not self.config.instruction:
            return self.config.role
        return "user" if self._misplaced else "system"

    @cached_property
    def _misplaced(self) -> str | None:
        asked = self._messages(QUESTION, "system")
        return self._template.misplaces(self.config.instruction, asked, [*asked, {"role": "assistant", "content": ANSWER}])

    @cached_property
    def _turn(self) -> Turn:
        return self._template.turn(self._messages(QUESTION, self._role))

    @cached_property
    def _opened(self) -> str:
        """What stands between a question and its answer."""
        return self.open(self._turn.prompt + self._turn.header if self.uses_chat_template else "\nAnswer:")

    @cached_property
    def _open_mark(self) -> str | None:
        """The mark of the think block that the prompt ends in."""
        return open_mark(self._opened)

    @property
    def _first_says(self) -> str:
        """What comes between the prompt and an answer but space: a think block that is open, or that the template expects."""
        return self._open_mark or self._lead.strip()

    @cached_property
    def _lead(self) -> str:
        """What stands between a prompt and its answer."""
        if self._open_mark is not None and not CLOSING.search(self._turn.lead if self.uses_chat_template else ""):
            return f"\n{closing_mark(self._open_mark)}\n\n"
        prefill = self.config.prefill
        if self.uses_chat_template and self._turn.lead.startswith(prefill):
            return self._turn.lead.removeprefix(prefill)
        ids = self.tokenizer.encode(prefill, add_special_tokens=False)
        behind_mark = bool(ids) and ids[-1] in self.tokenizer.added_tokens_decoder  # no space is due there
        return "" if prefill[-1:].isspace() or behind_mark else " "

    @property
    def _empty_block(self) -> str:
        """What says in the model's own marks that nothing is thought."""
        if self._open_mark is None and self._lead.strip():
            return self._lead
        mark = self._open_mark or "<think>"
        return f"{mark}\n\n{closing_mark(mark)}\n\n"

    @cached_property
    def _closing(self) -> tuple[str, int | None]:
        """(text, token) that end an answer: the first special token behind it, and what stands before that token."""
        eos = self.tokenizer.eos_token_id
        if not self.uses_chat_template:
            return "", eos
        for tail, only_first in ((self._turn.tail, False), (self._turn.next, True)):
            # A template whose turns have no end of their own ends them with the next one's first token.
            found = self._special.search(tail) if self._special.pattern else None
            before = tail[: found.start()] if found else ""
            if found and not (only_first and before.strip()):
                return before.rstrip(), self.tokenizer.convert_tokens_to_ids(found[0])
        return self._turn.tail.rstrip(), eos

    @cached_property
    def _special(self) -> re.Pattern[str]:
        texts = {str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        texts -= {self.tokenizer.bos_token}  # begins a turn, in templates that write it for each
        texts |= {self.tokenizer.eos_token} if self.tokenizer.eos_token else set()
        return re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)))

    def _messages(self, question: str, role: str) -> list[Message]:
        messages: list[Message] = []
        for example_question, example_answer in self.config.examples:
            messages += [{"role": "user", "content": example_question}, {"role": "assistant", "content": example_answer}]
        messages.append({"role": "user", "content": question})
        instruction = self.config.instruction
        if instruction and role == "system":
            return [{"role": "system", "content": instruction}, *messages]
        if instruction:
            messages[0]["content"] = f"{instruction}\n\n{messages[0]['content']}"
        return messages

    def _check_template(self) -> None:
        if self.config.role == "system" and self.config.instruction and self._misplaced:
            raise UserError(f"prompt.role is system, and the chat template {self._misplaced}; set prompt.role: auto")
        try:
            shown = self._template.render(self._messages(QUESTION, self._role), generation=True)
            _ = self._turn
        except REFUSALS as error:
            raise UserError(
                f"the chat template refuses the prompt ({in_one_line(error)}); set prompt.chat_template: never"
            ) from None
        if QUESTION not in shown:
            raise UserError("the chat template leaves the question out; set prompt.chat_template: never")

    def _check_prefill(self) -> None:
        prefill, unknown = self.config.prefill, self.tokenizer.unk_token_id
        ids = self.tokenizer.encode(prefill, add_special_tokens=False) if prefill else []
        if unknown is not None and unknown in ids:
            raise UserError(f"prompt.prefill {prefill!r}: the tokenizer has no tokens for it; give other text")
        vocabulary = self.tokenizer.get_vocab()
        for mark in re.findall(r"<\|[^<>|]*\|>", prefill):
            if mark not in vocabulary:
                logger.warning("prompt.prefill: '%s' is no token of this model's; it is read as plain text", mark)


def without_thinking(tokenizer: PreTrainedTokenizerBase, config: PromptConfig) -> Prompter:
    """A prompter whose model answers at once: by its template's own switch, else by an empty think block that is prefilled."""
    prompter = Prompter(tokenizer, config)
    if prompter.uses_chat_template:
        switches = {name: False for name in SWITCHES if name in prompter._template.variables}
        prompter = Prompter(tokenizer, config.model_copy(update={"template_arguments": switches}))
    if prompter._first_says:
        prompter = Prompter(tokenizer, prompter.config.model_copy(update={"prefill": prompter._empty_block}))
    return prompter


def load_prompter(model: ModelConfig, prompt: PromptConfig) -> Prompter:
    """The checked prompter of a model that is not loaded; remembered for the life of the process.

    Raises:
        UserError: there is no tokenizer, or the prompt does not fit it.
    """
    return _load_prompter(model, prompt.model_dump_json())


def fixed_case(model: ModelConfig, prompt: PromptConfig) -> list[int]:
    """Token ids of one question and its answer as the model reads them: whatever template, tokenizer and library make of them."""
    return fixed_case_of(load_prompter(model, prompt))


def fixed_case_of(prompter: Prompter) -> list[int]:
    question, answer = FIXED_CASE
    return [*prompter.encode(prompter.prompt(question)), *prompter.encode_answer(question, answer)]


@cache
def _load_prompter(model: ModelConfig, prompt: str) -> Prompter:
    prompter = Prompter(load_tokenizer(model), PromptConfig.model_validate_json(prompt))
    prompter.check()
    return prompter


@cache
def load_quiet_prompter(model: ModelConfig) -> Prompter:
    """The prompter of a judge that is not loaded: ``without_thinking`` and without an instruction."""
    return without_thinking(load_tokenizer(model), PromptConfig(instruction=""))
