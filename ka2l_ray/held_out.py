"""Held-out questions against the pool: what a test set may share with it, by its kind.

Facts are independent, so a label teaches the fact that it states. An ``inductive`` test set asks other facts: it measures format
and forgetting. A ``transductive`` one asks the pool's own facts in other words: it measures what labels teach. Facts are told by
an id, ``fact``, in both files; whether two texts ask the same fact is not guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ka2l_ray.config import TestKind
from ka2l_ray.errors import UserError
from ka2l_ray.normalization import Form
from ka2l_ray.options import question_key


@dataclass
class HeldOut:
    """A test set's questions and facts, each with the id of a question."""

    source: str
    kind: TestKind
    questions: dict[int, str] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, source: str, kind: TestKind, rows: Iterable[Mapping[str, Any]], form: Form) -> HeldOut:
        """
        Args:
            rows: of ``schema.QUESTIONS``.

        Raises:
            UserError: a transductive row without a fact.
        """
        found = cls(source, kind)
        for row in rows:
            found.questions[question_key(row["question"], row["options"], form)] = row["question_id"]
            if row["fact"] is not None:
                found.facts.setdefault(row["fact"], row["question_id"])
            elif kind == "transductive":
                raise UserError(
                    f"{source}: test question '{row['question_id']}' has no 'fact'; a transductive test set names by it which "
                    "fact of the pool is asked: add the column to both files, or make the set inductive"
                )
        return found

    def refuse(self, pool_id: str, key: int, fact: str | None) -> None:
        """Raise a UserError where a question of the pool may not be there."""
        if key in self.questions:
            raise UserError(
                f"pool question '{pool_id}' is test question '{self.questions[key]}' of {self.source}; "
                "a test set shares no question with the pool"
            )
        if self.kind == "inductive" and fact in self.facts:
            raise UserError(
                f"pool question '{pool_id}' asks the fact '{fact}' of test question '{self.facts[fact]}' of {self.source}; an "
                "inductive test set shares no fact with the pool: leave it out, or make the set transductive "
                "(pool.test: {NAME: {path: FILE, kind: transductive}})"
            )


def check_held_out(sets: Sequence[HeldOut], pool: Iterable[Mapping[str, Any]], form: Form) -> None:
    """Raise a UserError where a test set shares with the pool what its kind forbids, or does not share what it demands.

    Args:
        pool: rows of ``schema.QUESTIONS``, read once and not kept.
    """
    lacking = [set(held.facts) if held.kind == "transductive" else set() for held in sets]
    has_facts = False
    for row in pool:
        key, fact = question_key(row["question"], row["options"], form), row["fact"]
        has_facts |= fact is not None
        for held, missing in zip(sets, lacking, strict=True):
            held.refuse(row["question_id"], key, fact)
            missing.discard(fact)
    for held, missing in zip(sets, lacking, strict=True):
        if missing:
            first = min(missing)
            there = f"{len(missing)} of its {len(held.facts)} facts are not" if has_facts else "the pool has no column 'fact'"
            raise UserError(
                f"{held.source}: the fact '{first}' of test question '{held.facts[first]}' is not in the pool ({there}); a "
                "transductive test set asks the pool's own facts: add them to the pool, or make the set inductive"
            )
