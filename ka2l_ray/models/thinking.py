"""Think blocks: what a reasoning model says to itself before it answers, told from the answer.

A block is everything up to the last closing mark, with or without an opening one, which may stand in the prompt (DeepSeek-R1,
Qwen3.6). gpt-oss thinks in a channel of its own; the header of its final channel closes the block. The marks are special tokens
in some vocabularies and plain text in others, so they are sought in text decoded with special tokens.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

_NAMES = r"(?:\w+[:_])?(?:think|thinking|thought|reasoning)"
OPENING = re.compile(
    rf"<{_NAMES}>|\[THINK\]|◁think▷|<\|(?:START_THINKING|inner_prefix|think:start|start_think|thought_start|reasoning)\|>"
    r"|<\|channel>thought|<\|channel\|>(?:analysis|commentary)"
)
CLOSING = re.compile(
    rf"</{_NAMES}>|\[/THINK\]|◁/think▷|<\|(?:END_THINKING|inner_suffix|think:end|end_think|thought_end|end_reasoning)\|>"
    r"|<channel\|>|<\|channel\|>final[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>"
)

_BEFORE = re.compile(r"(?:\s|<\|(?:start|im_start)\|>\s*\w+|<(?:s|bos)>)*")  # of an answer's first word

_PAIRS = {
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|inner_prefix|>": "<|inner_suffix|>",
    "<|think:start|>": "<|think:end|>",
    "<|start_think|>": "<|end_think|>",
    "<|thought_start|>": "<|thought_end|>",
    "<|reasoning|>": "<|end_reasoning|>",
    "<|channel>": "<channel|>",
    "<|channel|>": "<|channel|>final<|message|>",
}
"""Marks that are not closed by themselves with a slash."""

Thought = Literal["none", "closed", "open"]
"""Whether an answer has a think block, and whether it was closed before the answer ended."""


@dataclass(frozen=True)
class Thinking:
    """What is known of think blocks before a model answers.

    Args:
        strip: the model may think: stop texts count behind the block only.
        opened: the prompt ends inside a block.
    """

    strip: bool = False
    opened: bool = False


NO_THINKING = Thinking()


def answer_start(said: str, opened: bool = False) -> int | None:
    """Where the answer begins in what was said: behind the last think block; None while a block is open.

    The first block opens where an answer begins: a mark within an answer is a word like any other.
    """
    start = max((mark.end() for mark in CLOSING.finditer(said)), default=0)
    if start:
        return None if OPENING.search(said, start) else start
    first = _BEFORE.match(said)
    assert first is not None
    return None if opened or OPENING.match(said, first.end()) else 0


def open_mark(prompt: str) -> str | None:
    """The mark of the think block that ``prompt`` ends in, if it does."""
    closed = max((mark.end() for mark in CLOSING.finditer(prompt)), default=0)
    found = list(OPENING.finditer(prompt, closed))
    return found[-1][0] if found else None


def closing_mark(opening: str) -> str:
    """The mark that closes the block that ``opening`` opens."""
    for begin, end in _PAIRS.items():
        if opening.startswith(begin):
            return end
    return f"{opening[0]}/{opening[1:]}"


def split_answer(token_ids: Sequence[int], tokenizer: Any, opened: bool = False) -> tuple[str, Thought]:
    """The text of an answer without its think block and without special tokens; and what became of the block."""
    ids = list(token_ids)
    said = tokenizer.decode(ids, skip_special_tokens=False)
    start = answer_start(said, opened)
    if start == 0:
        return tokenizer.decode(ids, skip_special_tokens=True), "none"
    if start is None:
        return "", "open"
    n = bisect_left(range(len(ids)), start, key=lambda i: len(tokenizer.decode(ids[:i], skip_special_tokens=False)))
    rest = tokenizer.decode(ids[:n], skip_special_tokens=False)[start:]  # of a token that holds the mark's end and more
    return rest + tokenizer.decode(ids[n:], skip_special_tokens=True), "closed"
