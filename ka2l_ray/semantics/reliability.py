"""How far a label would repeat itself: the semantic entropy of two random halves of each question's answers.

A label known/unknown is one draw of k answers. Clusters of all answers are clusters of any half of them, so that halves cost no
judge call. Each half is labelled as if it were all that was drawn, by the same rule: ``ka2l`` and ``fixed`` at their nats,
``two_means`` and ``quantile`` at the threshold that they find for the halves, ``two_means`` among the splits that rule ``auto``
allows where that took it. Agreement and Cohen's kappa are those of the two labels, and stand for those of labels by all answers:
the same nats ask for other agreement of more answers, so that kappa grows less than Spearman-Brown has it (by 0.02 on real
answers, by up to 0.14 in simulated pools). The reliability of semantic entropy is the halves' correlation, brought from half the
answers to all by Spearman-Brown, 2r / (1 + r).

About what no probe can exceed follows from it, rather too low where kappa grows. Let a question be labelled unknown with
probability p, and a share u of all be unknown. Labels that repeat with kappa c have E[p^2 + (1-p)^2] = 1 - 2u(1-u)(1-c). Whoever
knew every p would be right in E[max(p, 1-p)] <= (1 + sqrt(1 - 4u(1-u)(1-c))) / 2 of the questions (Jensen), and rank them with an
AUROC of 1/2 + E|p-p'| / (4u(1-u)) <= (1 + sqrt(c / (3u(1-u)))) / 2, as a mean difference is at most 2/sqrt(3)
standard deviations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ka2l_ray.seeds import generator
from ka2l_ray.semantics.abstention import without_answer
from ka2l_ray.semantics.entropy import labels

LEAST_ANSWERS = 4  # a half of one answer has no entropy


@dataclass(frozen=True)
class Reliability:
    """Of one table of labels; NaN where a class is empty in one half."""

    questions: int
    """With answers enough."""
    half: float
    """Answers of a half, mean over the questions."""
    threshold: float
    """Nats, of the halves' labels."""
    agreement: float
    """Share of the questions whose halves have the same label."""
    kappa: float
    """Of the halves' labels."""
    entropy_reliability: float
    """Correlation to be expected of semantic entropies of all answers (Spearman-Brown)."""
    accuracy_ceiling: float
    """About the share of labels that no probe can exceed, at the cut of its choice."""
    auroc_ceiling: float
    """About the AUROC against the labels that no probe can exceed; 1: this bound says nothing."""


def half_entropies(
    question_id: str, cluster_ids: Sequence[int], declines: Sequence[bool]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]] | None:
    """((2,) semantic entropies of two random halves, nats, (2,) whether each goes without an answer); None of too few answers.

    The halves are drawn by the question's id; of an odd number of answers one is left out.
    """
    if len(cluster_ids) < LEAST_ANSWERS:
        return None
    size = len(cluster_ids) // 2
    drawn = generator("halves", question_id).permutation(len(cluster_ids))[: 2 * size].reshape(2, size)
    ids = np.asarray(cluster_ids)[drawn]
    alike = (ids[:, :, None] == ids[:, None, :]).sum(-1)  # answers of the same meaning, for each answer
    return -np.log(alike / size).mean(-1), without_answer(ids, np.asarray(declines, bool)[drawn])


def reliability(
    entropies: NDArray[np.float64], unknown: NDArray[np.bool_], at: float, *, share_unknown: float, half: float
) -> Reliability:
    """Of labels, by the halves' semantic entropies.

    Args:
        entropies: (n, 2) nats, n >= 1.
        unknown: (n, 2) whether a half is unknown whatever its entropy.
        at: nats, of the halves.
        share_unknown: of the labels by all answers.
        half: answers of a half.
    """
    first, second = (labels(entropies, at).astype(bool) | unknown).T
    kappa = cohen_kappa(first, second)
    spread = 4 * share_unknown * (1 - share_unknown)
    repeated = max(kappa, 0.0)
    ceiling = auroc = math.nan
    if spread > 0 and not math.isnan(kappa):
        ceiling = (1 + math.sqrt(max(0.0, 1 - spread * (1 - repeated)))) / 2
        auroc = (1 + min(1.0, math.sqrt(4 * repeated / (3 * spread)))) / 2
    return Reliability(
        questions=len(entropies),
        half=half,
        threshold=at,
        agreement=float((first == second).mean()),
        kappa=kappa,
        entropy_reliability=spearman_brown(_correlation(entropies)),
        accuracy_ceiling=ceiling,
        auroc_ceiling=auroc,
    )


def cohen_kappa(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Agreement of two (n,) labellings beyond chance; NaN where both say one and the same throughout."""
    p, q = float(first.mean()), float(second.mean())
    by_chance = p * q + (1 - p) * (1 - q)
    return math.nan if by_chance == 1 else (float((first == second).mean()) - by_chance) / (1 - by_chance)


def spearman_brown(r: float) -> float:
    """Reliability of a measurement twice as long."""
    return 2 * r / (1 + r)


def _correlation(entropies: NDArray[np.float64]) -> float:
    """Of two exchangeable measurements: both in either order."""
    both = np.concatenate([entropies, entropies[:, ::-1]])
    spread = float(both[:, 0].var())
    return float(((both[:, 0] - both[:, 0].mean()) * (both[:, 1] - both[:, 1].mean())).mean() / spread) if spread else math.nan
