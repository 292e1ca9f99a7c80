"""Multiple choice: a row's options, the right one, how they are shown to a model, and what then is a right answer.

Options of the same text are one option under several letters: MedMCQA (there is a row of nothing else) and CommonsenseQA have
them, and are read all the same. Options that differ by case or punctuation alone are refused.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ka2l_ray.errors import UserError
from ka2l_ray.extraction import Extract, extract
from ka2l_ray.normalization import Form, normalize_answer, normalize_question
from ka2l_ray.seeds import derive_seed

Shown = Literal["show", "hide"]

LETTERS = string.ascii_uppercase
_BY_LETTER = Extract("letter")
COLUMNS = ("options", "choices")


@dataclass(frozen=True)
class Choice:
    """Options, and the index of the right one where it is known."""

    options: tuple[str, ...]
    right: int | None

    @property
    def right_letters(self) -> list[str]:
        return [LETTERS[i] for i, text in enumerate(self.options) if self.right is not None and text == self.options[self.right]]

    def accepted(self, answers: Sequence[str], shown: Shown) -> list[str]:
        """All that is a right answer: the right option's text and the other ``answers`` given.

        Where options are shown, its letter comes first, its whole line last, and no text counts that reads as another option's
        letter (C, or C. difficile); where they are not, no letter counts.
        """
        if self.right is None:
            return []
        text, letters = self.options[self.right], LETTERS[: len(self.options)]
        texts = [text, *(answer for answer in answers if answer.strip().upper() not in set(letters))]
        if shown == "show":
            others = set(letters).difference(self.right_letters)
            lines = [_line(letter, text) for letter in self.right_letters]
            texts = [*self.right_letters, *(t for t in texts if extract(t, _BY_LETTER) not in others), *lines]
        return list(dict.fromkeys(texts))

    def target(self, shown: Shown) -> str | None:
        """What to train on: the letter where options are shown, else the text."""
        if self.right is None:
            return None
        return LETTERS[self.right] if shown == "show" else self.options[self.right]

    def trains(self, target: str, answers: Sequence[str], form: Form) -> bool:
        """Whether ``target`` says the right option, or one of ``answers``: by text, letter or line, in its normal form."""
        if self.right is None:
            return False
        text = self.options[self.right]
        lines = (_line(letter, text) for letter in self.right_letters)
        said = (text, *self.right_letters, *lines, *answers)
        return normalize_answer(target, form) in {normalize_answer(each, form) for each in said}


def choice_of(place: str, row: dict[str, Any], answers: Sequence[str], form: Form) -> Choice | None:
    """The options of a row (``options`` or ``choices``), the right one by its ``label`` or by its ``answers``; None: it has none.

    Raises:
        UserError: what is there is no list of 2 to 26 texts, these all say the same, or none is what the label or an answer says.
    """
    column = next((name for name in COLUMNS if row.get(name) is not None), None)
    if column is None:
        return None
    texts = row[column]
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise UserError(f"{place}: '{column}' must be a list of texts, none of them empty")
    options = tuple(text.strip() for text in texts)
    if not 2 <= len(options) <= len(LETTERS):
        raise UserError(f"{place}: '{column}' holds {len(options)} options; a question has 2 to {len(LETTERS)}")
    if len({normalize_answer(text) for text in options}) == 1 < len(set(options)):
        raise UserError(f"{place}: the '{column}' all say '{options[0]}'; give options that differ, or leave them out")
    right = _labelled(place, row.get("label"), options)
    said = {options[i] for i in _among(answers, options, form)}
    if right is None and len(said) == 1:
        right = options.index(said.pop())
    elif right is None and answers:
        many = f"'answers' holds {len(said)} of the options; say by 'label' which is the right one"
        raise UserError(f"{place}: {many if said else _none_right(column)}")
    elif right is not None and said and options[right] not in said:
        raise UserError(f"{place}: 'label' is {row['label']!r}, '{options[right]}', but 'answers' says '{said.pop()}'")
    return Choice(options, right)


def _none_right(column: str) -> str:
    return f"no answer is among the '{column}'; give 'label', the letter of the right one or its index from 0"


def _labelled(place: str, label: Any, options: Sequence[str]) -> int | None:
    """The index that a label says."""
    if label is None or label == "":
        return None
    index = label
    if isinstance(label, str):
        index = LETTERS.find(label.strip(" ().").upper()) if len(label.strip(" ().")) == 1 else -1
    elif isinstance(label, float) and label.is_integer():
        index = int(label)
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(options):
        last = LETTERS[len(options) - 1]
        raise UserError(
            f"{place}: 'label' is {label!r}; give a letter from A to {last}, or an index from 0 to {len(options) - 1}"
        )
    return index


def _among(answers: Sequence[str], options: Sequence[str], form: Form) -> list[int]:
    """Indices of the options that answers say: by their text, else by its normal form, else by their letter."""
    exact = [i for i, text in enumerate(options) if text in {answer.strip() for answer in answers}]
    if exact:
        return exact
    normal = {normalize_answer(answer, form) for answer in answers}
    found = [i for i, text in enumerate(options) if normalize_answer(text, form) in normal]
    letters = {answer.strip().upper() for answer in answers}
    return found or [i for i in range(len(options)) if LETTERS[i] in letters]


def _line(letter: str, text: str) -> str:
    return f"{letter}. {text}"


def with_options(question: str, options: Sequence[str]) -> str:
    """The question as it is asked where options are shown."""
    return "\n".join([question, *(_line(letter, text) for letter, text in zip(LETTERS, options, strict=False))])


def shows_options(question: str, options: Sequence[str]) -> bool:
    """Whether the text asked holds the options."""
    return question.endswith(with_options("", options))


def question_key(question: str, options: Sequence[str] | None, form: Form) -> int:
    """What makes two questions the same: a digest of the normalised text and, in any order, of the options."""
    if not options:
        return derive_seed(normalize_question(question, form))
    bare = question.removesuffix(with_options("", options))
    return derive_seed(normalize_question(bare, form), *sorted({normalize_answer(text, form) for text in options}))
