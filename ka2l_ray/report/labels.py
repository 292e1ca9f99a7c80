"""What the labels known and unknown rest on: the rule in force, answers that are none, how far a label would repeat itself."""

from __future__ import annotations

from dataclasses import dataclass

from ka2l_ray.report.data import NotThereError, Run
from ka2l_ray.semantics.reliability import Reliability


@dataclass(frozen=True)
class LabelRound:
    """Of one probing set; see ``jobs.stages.entropy.EntropyFacts``."""

    round: int
    rule: str
    threshold: float
    agreeing: str
    """At least how many answers of how many must mean the same in a known question."""
    questions: int
    drawn: int
    empty_answers: int
    abstentions: int
    abstaining: int
    silent: int
    dropped: int
    cut_share: float
    reliability: Reliability | None


def label_rounds(run: Run) -> list[LabelRound]:
    found = []
    for round_, artefact in run.rounds("entropy").items():
        facts = artefact.facts
        named = ("rule", "threshold", "drawn", "empty_answers", "abstentions", "abstaining", "silent", "dropped")
        found.append(
            LabelRound(
                round=round_,
                **{name: facts[name] for name in named},
                agreeing=", ".join(f"{n} of {k}" for k, n in facts["agreeing"].items()) or "not of bounds",
                questions=int(facts["rows"]),
                cut_share=facts["cut_answers"] / max(1, facts["drawn"]),
                reliability=Reliability(**facts["reliability"]) if facts["reliability"] else None,
            )
        )
    if not found:
        raise NotThereError("no round has got as far as semantic entropy")
    return found


def rule_in_force(run: Run) -> str:
    """As configured, and what ``auto`` took."""
    configured = run.setting("entropy.rule")
    first = next(iter(run.rounds("entropy").values()), None)
    if configured != "auto" or first is None:
        return configured
    why = "the constant of Eq. 3" if first.facts["rule"] == "ka2l" else "Eq. 3 leaves one class less than a twentieth"
    return f"auto: {first.facts['rule']}, {first.facts['threshold']:.3f} nats for the whole run ({why})"
