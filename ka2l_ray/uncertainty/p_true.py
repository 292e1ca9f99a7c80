"""P(True): the model's own probability that its answer is right, asked with brainstormed answers (Kadavath et al., 2022).

The prompt shows a few solved examples, then the question, the sampled answers as brainstormed ones and the greedy-like answer as
the possible one; P(True) is the probability of A (true) against B (false) as the next word.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from ka2l_ray.models.prompts import Prompter

EXAMPLES = 8


@dataclass(frozen=True)
class Answered:
    """A question with its sampled answers and the greedy-like one."""

    question: str
    brainstormed: Sequence[str]
    answer: str


def case(row: Answered, right: bool | None = None) -> str:
    """One case of the prompt; solved where ``right`` is given."""
    lines = [f"Question: {row.question}", "Brainstormed answers:", *row.brainstormed, f"Possible answer: {row.answer}"]
    solution = "" if right is None else f" {'A' if right else 'B'}"
    return "\n".join([*lines, "Is the possible answer:", "A) True", "B) False", f"The possible answer is:{solution}"])


def solved_examples(question_ids: Sequence[str], right: Sequence[bool], n: int = EXAMPLES) -> list[int]:
    """Rows to show as examples: half right, half wrong where there are as many, drawn by hash of the id."""
    order = sorted(range(len(right)), key=lambda i: hashlib.sha256(f"example {question_ids[i]}".encode()).digest())
    sides = [[i for i in order if right[i]], [i for i in order if not right[i]]]
    chosen = sides[0][: n // 2] + sides[1][: n // 2]
    return sorted(chosen, key=order.index)


def encode(prompter: Prompter, text: str) -> tuple[list[int], list[int], list[int]]:
    """Token ids of the prompt, of A and of B; in the model's chat template where it has one."""
    bare = Prompter(prompter.tokenizer, prompter.config.model_copy(update={"instruction": "", "examples": []}))
    prompt = bare.prompt(text) if bare.uses_chat_template else bare.open(text)
    return bare.encode(prompt), bare.follow(prompt, "A"), bare.follow(prompt, "B")
