"""A model's own chat template, as far as a closed-book prompt needs it.

Templates are programs: some refuse a system message, some move it, some write a think block or today's date. So nothing is
assumed of one; it is rendered once with marked turns, and what it writes around an instruction, a question and an answer is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from jinja2 import Environment, TemplateError, meta
from transformers import PreTrainedTokenizerBase

from ka2l_ray.models.thinking import CLOSING

DATE = datetime(2024, 7, 26)
"""Printed by templates that print today's date: a prompt is the same on every day. It is Llama's where it knows no clock."""

REFUSALS = (TemplateError, TypeError, ValueError, KeyError)
"""What a template raises on messages that it was not written for."""

QUESTION, ANSWER, NEXT = "Which word marks the question, rhubarb?", "samovar", "And which one the next, tombola?"

Message = dict[str, Any]


@dataclass(frozen=True)
class Turn:
    """What a template writes between a question and its answer, and after it.

    Args:
        prompt: behind the question, up to where the model goes on.
        header: what an answer's turn begins with, where the template does not write it for generation; belongs to the prompt.
        lead: what stands between the prompt and the answer's first word: the model samples it.
        tail: behind an answer that is the last turn.
        next: behind an answer that another question follows.
    """

    prompt: str
    header: str
    lead: str
    tail: str
    next: str


@dataclass(frozen=True)
class ChatTemplate:
    """The tokenizer's template with its arguments."""

    tokenizer: PreTrainedTokenizerBase
    arguments: Mapping[str, Any]

    def render(self, messages: Sequence[Message], *, generation: bool) -> str:
        """The text of ``messages``; with ``generation`` it ends where an answer begins."""
        return self._render(_in_parts(messages) if self._wants_parts else messages, generation)

    def _render(self, messages: Sequence[Message], generation: bool) -> str:
        text: str = self.tokenizer.apply_chat_template(
            list(messages),
            tokenize=False,
            add_generation_prompt=generation,
            **{"strftime_now": DATE.strftime, **self.arguments},
        )
        return text

    @cached_property
    def _wants_parts(self) -> bool:
        """Whether contents must be lists of parts, as in templates of models that see images too."""
        message = {"role": "user", "content": QUESTION}

        def shows(messages: Sequence[Message]) -> bool:
            try:
                return QUESTION in self._render(messages, True)
            except REFUSALS:
                return False

        return not shows([message]) and shows(_in_parts([message]))

    @property
    def variables(self) -> set[str]:
        """The names that the template reads."""
        text = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", self.tokenizer.get_chat_template())  # transformers' own tag
        return set(meta.find_undeclared_variables(Environment(extensions=["jinja2.ext.loopcontrols"]).parse(text)))

    def misplaces(self, instruction: str, before: Sequence[Message], after: Sequence[Message]) -> str | None:
        """What the template does wrong to the system message ``before``, in words; None where it leaves it in its place.

        Args:
            before: messages that end with ``QUESTION``.
            after: the same with an answer.
        """
        try:
            asked, answered = self.render(before, generation=True), self.render(after, generation=False)
        except REFUSALS as error:
            return f"refuses one ({in_one_line(error)})"
        begin, found, _ = asked.partition(QUESTION)
        if not found or instruction.strip() not in begin:
            return "leaves it out"
        if not answered.startswith(begin + QUESTION):
            return "moves it once an answer follows"
        return None

    def turn(self, messages: Sequence[Message]) -> Turn:
        """What is written around the answer to ``messages``, which end with ``QUESTION``."""
        asked = self.render(messages, generation=True)
        prompt = asked.partition(QUESTION)[2]
        answered = [*messages, {"role": "assistant", "content": ANSWER}]
        between, tail = _around(self.render(answered, generation=False))
        try:
            following = _around(self.render([*answered, {"role": "user", "content": NEXT}], generation=False))[1]
        except REFUSALS:
            following = ""
        header, lead = "", ""
        if between.startswith(prompt):
            lead = between[len(prompt) :]
            if asked == self.render(messages, generation=False) and not CLOSING.search(lead):
                header = lead.rstrip(" ") if lead.strip() else ""
                lead = lead[len(header) :]
        elif not prompt.startswith(between):  # it writes an answer's turn otherwise than it opens one
            lead = between[len(between.rstrip()) :] if not prompt[-1:].isspace() else ""
        return Turn(prompt, header, lead, tail, following.partition(NEXT)[0])


def in_one_line(error: Exception) -> str:
    """What a template says where it refuses."""
    return " ".join(str(error).split())[:200]


def _in_parts(messages: Sequence[Message]) -> list[Message]:
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]


def _around(text: str) -> tuple[str, str]:
    """What stands between question and answer, and behind the answer."""
    between, found, tail = text.partition(QUESTION)[2].partition(ANSWER)
    return (between, tail) if found else ("", "")
