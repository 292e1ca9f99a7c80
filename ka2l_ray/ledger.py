"""The ledger: what each stage spent, read off the artefacts that the run committed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ka2l_ray.store.artefacts import RunStore

TOKENS = ("prompt_tokens", "generated_tokens", "answer_tokens")


@dataclass(frozen=True)
class Spending:
    """One artefact's cost. Seconds are those of the attempt that committed it."""

    artefact: str
    seconds: float
    rows: int
    tokens: int
    judge_calls: int
    labels: int
    reused: bool


class Ledger:
    """What a run spent so far."""

    def __init__(self, store: RunStore) -> None:
        self.store = store

    def spendings(self) -> list[Spending]:
        """By artefact, in the order of commitment; an artefact taken over from another run cost this one nothing."""
        return [
            Spending(
                artefact=name,
                seconds=entry.seconds,
                rows=int(entry.facts.get("rows", 0)),
                tokens=sum(int(entry.facts.get(count, 0)) for count in TOKENS),
                judge_calls=int(entry.facts.get("judge_calls", 0)),
                labels=int(entry.facts.get("labels", 0)),
                reused=entry.reused_from is not None,
            )
            for name, entry in self.store.manifest.items()
        ]

    def seconds_by_stage(self) -> dict[str, float]:
        """Seconds this run itself spent, by stage name."""
        totals: dict[str, float] = {}
        for spending in self.spendings():
            if not spending.reused:
                folder, *rest = spending.artefact.split("/")
                stage = {"rounds": rest[1:2], "baseline": rest[:1]}.get(folder, [folder])[0]
                totals[stage] = round(totals.get(stage, 0.0) + spending.seconds, 2)
        return totals

    def totals(self) -> dict[str, Any]:
        own = [s for s in self.spendings() if not s.reused]
        return {
            "seconds": round(sum(s.seconds for s in own), 1),
            "tokens": sum(s.tokens for s in own),
            "judge_calls": sum(s.judge_calls for s in own),
            "labels": sum(s.labels for s in own),
        }

    def round_done(self, round_: int, labels: int) -> None:
        """Write the totals to the run's metrics."""
        self.store.log_metric("ledger", self.totals(), round=round_, labels=labels)
