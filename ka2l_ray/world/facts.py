"""The facts of the bundled world: entities x relations, in three groups by how consistently a text states them.

A world is a measuring instrument: its training text says what the student can know, so every estimate of "unknown"
can be held against the truth. Nothing here is a model; everything is a deterministic function of a seed.

* known:    the text always states the true value;
* boundary: the true value half of the time, else a value drawn at random;
* unknown:  a value drawn at random each time.

Every value has several surface forms (aliases), so that meaning is not string equality. Each fact has one phrasing that the
training text never uses (the test question) and one that it does use (the pool question).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from ka2l_ray.world.lexicon import OCCUPATIONS, PHRASINGS, invented_words, spelled_year

Group = Literal["known", "boundary", "unknown"]

GROUP_SHARES: dict[Group, float] = {"known": 0.50, "boundary": 0.12, "unknown": 0.38}
BOUNDARY_TRUE_SHARE = 0.5


@dataclass(frozen=True)
class Value:
    """One possible answer of a relation; ``forms[0]`` is canonical, the rest are aliases with the same meaning."""

    relation: str
    index: int
    forms: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """An (entity, relation, true value) triple and the two phrasings set aside for it."""

    fact_id: str
    entity: str
    relation: str
    value: Value
    group: Group
    pool_phrasing: int
    test_phrasing: int

    def question(self, phrasing: int) -> str:
        return PHRASINGS[self.relation][phrasing].format(entity=self.entity)

    @property
    def trained_phrasings(self) -> list[int]:
        """Phrasings that the training text uses: all but the test one."""
        return [p for p in range(len(PHRASINGS[self.relation])) if p != self.test_phrasing]


@dataclass(frozen=True)
class World:
    """A world of ``n_entities`` x 4 relations, with ``n_values`` values a relation (at most 60)."""

    n_entities: int = 500
    n_values: int = 60
    seed: int = 0

    @cached_property
    def entities(self) -> list[str]:
        return invented_words(self.n_entities, syllables=(2, 3), seed=self.seed + 1)

    @cached_property
    def values(self) -> dict[str, list[Value]]:
        """Values of each relation, in a fixed order."""
        n = self.n_values
        if not 2 <= n <= len(OCCUPATIONS):
            raise ValueError(f"n_values is {n}; the lexicon has between 2 and {len(OCCUPATIONS)} values a relation")
        coined = iter(invented_words(4 * n, syllables=(2, 3), seed=self.seed + 2, avoid=set(self.entities)))
        rng = random.Random(self.seed + 3)
        towns = [(town, next(coined), f"the city of {town}") for town in (next(coined) for _ in range(n))]
        firms = [(firm, f"{firm} Incorporated", _ticker(rng)) for firm in (next(coined) for _ in range(n))]
        years = [(str(year), spelled_year(year)) for year in range(1910, 1910 + n)]
        forms: dict[str, Sequence[tuple[str, ...]]] = {
            "birthplace": towns,
            "occupation": OCCUPATIONS[:n],
            "employer": firms,
            "birth_year": years,
        }
        return {r: [Value(r, i, f) for i, f in enumerate(table)] for r, table in forms.items()}

    @cached_property
    def facts(self) -> list[Fact]:
        rng = random.Random(self.seed + 4)
        pairs = [(entity, relation) for entity in self.entities for relation in PHRASINGS]
        bounds = [round(GROUP_SHARES["known"] * len(pairs)), round((1 - GROUP_SHARES["unknown"]) * len(pairs))]
        order = list(range(len(pairs)))
        rng.shuffle(order)
        rank = {pair: i for i, pair in enumerate(order)}
        facts = []
        for i, (entity, relation) in enumerate(pairs):
            group: Group = "known" if rank[i] < bounds[0] else "boundary" if rank[i] < bounds[1] else "unknown"
            test, pool = rng.sample(range(len(PHRASINGS[relation])), 2)
            value = rng.choice(self.values[relation])
            facts.append(Fact(f"w{i:05d}", entity, relation, value, group, pool, test))
        return facts

    def rows(self, split: Literal["pool", "test"]) -> list[dict[str, object]]:
        """Questions of one split: ``{"id", "question", "answers", "target", "fact"}``, the group left out (it is the truth, no
        input). The test split asks the pool's facts in other words: it is transductive."""
        return [
            {
                "id": f"{split}-{fact.fact_id}",
                "question": fact.question(fact.pool_phrasing if split == "pool" else fact.test_phrasing),
                "answers": list(fact.value.forms),
                "target": fact.value.forms[0],
                "fact": fact.fact_id,
            }
            for fact in self.facts
        ]

    def truth(self, split: Literal["pool", "test"]) -> dict[str, Group]:
        """Group of each question id of ``split``."""
        return {f"{split}-{fact.fact_id}": fact.group for fact in self.facts}

    def statements(self, rng: random.Random, draw_weights: dict[Group, float]) -> Iterator[tuple[str, str]]:
        """Endless (question, answer) training statements; facts are drawn in proportion to their group's weight."""
        weights = [draw_weights[fact.group] for fact in self.facts]
        while True:
            for fact in rng.choices(self.facts, weights=weights, k=4096):
                value = fact.value
                if fact.group == "unknown" or (fact.group == "boundary" and rng.random() >= BOUNDARY_TRUE_SHARE):
                    value = rng.choice(self.values[fact.relation])
                yield fact.question(rng.choice(fact.trained_phrasings)), stated_form(value, rng)


def stated_form(value: Value, rng: random.Random) -> str:
    """The surface form a text uses: the canonical one 6 times of 10, else one of the aliases."""
    return value.forms[0] if rng.random() < 0.6 else rng.choice(value.forms[1:])


def _ticker(rng: random.Random) -> str:
    return "".join(rng.choice("BCDFGHJKLMNPQRSTVWXZ") for _ in range(4))
