"""Semantic entropy on real models' answers, as docs/semantic_entropy.md with its plots.

    make models && python benchmarks/learned_judge.py train
    python benchmarks/real_answers.py [--judge DIR]

Reads ../shared/data (gen_*_10x.jsonl, gen_triviaqa_qwen25_3b_10x.jsonl, gen_date_codex40.jsonl, pairs_qa_equivalence.jsonl).
Meanings of words are told by the learned judge, those of numbers and dates by exact match.
What the page concludes stands in docs/semantic_entropy.md.j2; every figure in it is put in here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import spearmanr
from semantic_entropy import SHARED, OracleJudge

from ka2l_ray.report.figures import COLOURS, MARKERS, STYLE
from ka2l_ray.semantics.clustering import Clustering, Judge, cluster_answers
from ka2l_ray.semantics.entropy import KA2L_THRESHOLD, bias_corrected_entropy, semantic_entropy, threshold
from ka2l_ray.semantics.judges.contains import ContainsJudge
from ka2l_ray.semantics.judges.cross_encoder import CrossEncoderJudge
from ka2l_ray.semantics.judges.exact import ExactJudge
from ka2l_ray.semantics.judges.nli import NLIJudge
from ka2l_ray.semantics.pairs import judge_pairs
from ka2l_ray.semantics.reliability import Reliability, half_entropies, reliability
from ka2l_ray.uncertainty.calibration import calibration_error
from ka2l_ray.uncertainty.p_wrong import calibrate
from ka2l_ray.uncertainty.ranking import auroc
from ka2l_ray.uncertainty.scores import Quality, answer_scores, quality
from ka2l_ray.world import bundled_path

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
BALANCED = {"gen_triviaqa_10x": "TriviaQA", "gen_sciq_10x": "SciQ"}
RULES = ("ka2l", "two_means", "quantile")
NUMBERS = (2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 40)
DRAWS = 20  # of N answers out of 40
BY_EXACT = "semantic entropy, exact match"


def read(name: str) -> list[dict[str, Any]]:
    with (SHARED / f"{name}.jsonl").open() as lines:
        return [json.loads(line) for line in lines]


def clustered(rows: list[dict[str, Any]], judge: Judge, **how: Any) -> list[Clustering]:
    answers = [[text.strip() for text in row["generations"]] for row in rows]
    return cluster_answers([row["question"] for row in rows], answers, judge, **how)


class File:
    """One file's rows with their clusters by a judge and by exact match, and whether the answer is wrong."""

    def __init__(self, name: str, title: str, judge: Judge | None = None, truth: str = "greedy_correct_llm_verdict") -> None:
        """
        Args:
            judge: None is exact match.
        """
        self.title, self.rows = title, read(name)
        self.exact = clustered(self.rows, ExactJudge())
        self.found = self.exact if judge is None else clustered(self.rows, judge)
        self.judged = judge is not None
        self.entropies = np.array([semantic_entropy(each.cluster_ids) for each in self.found])
        self.wrong = np.array([not row[truth] for row in self.rows])
        self.model = np.array([row["model"] for row in self.rows])
        self.questions = [row["question"] for row in self.rows]

    def models(self) -> list[str]:
        return sorted(set(self.model.tolist()))

    def qualities(self, model: str) -> list[Quality]:
        mine = np.flatnonzero(self.model == model)
        scores = [answer_scores(self.rows[i]["generations"], self.found[i].cluster_ids) for i in mine]
        given = {"ref_p_true_score": "P(True), the source's", "ref_cluster_entropy": "cluster entropy, the source's"}
        given |= {"source_embedding_cluster_entropy": "embedding cluster entropy, the source's"}
        for at, i in enumerate(mine):
            if self.judged:
                scores[at][BY_EXACT] = semantic_entropy(self.exact[i].cluster_ids)
            for column, name in given.items():
                value = self.rows[i].get(column)
                if value is not None:
                    scores[at][name] = -value if column == "ref_p_true_score" else value
        names = list(dict.fromkeys(name for row in scores for name in row))
        found = []
        for name in names:
            having = [at for at, row in enumerate(scores) if name in row]
            score = np.array([scores[at][name] for at in having])
            rows = mine[having]
            found.append(quality(name, score, self.wrong[rows], [self.questions[i] for i in rows], resamples=300))
        return found

    def thresholds(self) -> list[dict[str, Any]]:
        found = []
        for model in self.models():
            mine = self.model == model
            entropies, wrong = self.entropies[mine], self.wrong[mine]
            row: dict[str, Any] = {"model": model, "questions": int(mine.sum()), "wrong": float(wrong.mean())}
            for rule in RULES:
                at = threshold(entropies, rule)
                unknown = entropies >= at
                balanced = 0.5 * (unknown[wrong].mean() + (~unknown[~wrong]).mean())
                row[rule] = {"at": at, "share": float(unknown.mean()), "balanced": float(balanced)}
            row["best"] = max(
                0.5 * ((entropies >= at)[wrong].mean() + (entropies < at)[~wrong].mean()) for at in np.unique(entropies)
            )
            found.append(row)
        return found

    def repeatability(self, model: str) -> Reliability:
        """Of the labels that rule ``ka2l`` gives one model's questions."""
        mine = np.flatnonzero(self.model == model)
        halves = [half_entropies(str(i), self.found[i].cluster_ids, [False] * len(self.found[i].cluster_ids)) for i in mine]
        pairs = [each for each in halves if each is not None]
        entropies, without = np.stack([each[0] for each in pairs]), np.stack([each[1] for each in pairs])
        share = float((self.entropies[mine] >= KA2L_THRESHOLD).mean())
        half = float(np.mean([len(self.found[i].cluster_ids) // 2 for i in mine]))
        return reliability(entropies, without, KA2L_THRESHOLD, share_unknown=share, half=half)

    def p_wrong(self) -> dict[str, Any]:
        """p(wrong) with every row labelled, and with every fourth, held against the others."""
        every = calibrate(self.entropies, self.wrong.tolist(), self.questions)
        fourth = np.arange(len(self.rows)) % 4 == 0
        known = [bool(wrong) if known else None for wrong, known in zip(self.wrong, fourth, strict=True)]
        some = calibrate(self.entropies, known, self.questions)
        p, truth = some.p_wrong[~fourth], self.wrong[~fourth]
        others = {"error": calibration_error(truth, p), "brier": float(np.mean((p - truth) ** 2))}
        return {"every": every, "some": some, "others": others, "base": every.wrong * (1 - every.wrong)}


def policies(rows: list[dict[str, Any]], judge: Judge) -> dict[str, float]:
    """How often the two policies give other clusters, another entropy, another label; share of triples not transitive."""
    last, first = (clustered(rows, judge, policy=policy) for policy in ("founder_last", "founder_first"))
    audited = clustered(rows[:300], judge, audited=range(300))
    a, b = (np.array([semantic_entropy(each.cluster_ids) for each in found]) for found in (last, first))
    triples = sum(each.triples for each in audited)
    return {
        "clusters": float(np.mean([x.cluster_ids != y.cluster_ids for x, y in zip(last, first, strict=True)])),
        "entropy": float(np.mean(a != b)),
        "label": float(np.mean((a >= KA2L_THRESHOLD) != (b >= KA2L_THRESHOLD))),
        "non_transitive": sum(each.non_transitive_triples for each in audited) / triples,
    }


def convergence(rows: list[dict[str, Any]], found: list[Clustering]) -> dict[str, NDArray[np.float64]]:
    """Of N answers out of 40: mean entropy, plain and corrected, rank correlation with all 40, AUROC against a wrong majority."""
    whole = np.array([semantic_entropy(each.cluster_ids) for each in found])
    right = [{text.strip() for text, ok in zip(r["generations"], r["exact_match"], strict=True) if ok} for r in rows]
    wrong = np.array([each.majority_answer not in ok for each, ok in zip(found, right, strict=True)])
    generator = np.random.default_rng(0)
    figures: dict[str, list[float]] = {name: [] for name in ("plain", "corrected", "rank", "auroc", "auroc_corrected")}
    for n in NUMBERS:
        values: dict[str, list[float]] = {name: [] for name in figures}
        for _ in range(DRAWS if n < len(rows[0]["generations"]) else 1):
            chosen = generator.permutation(len(rows[0]["generations"]))[:n]
            ids = [[each.cluster_ids[i] for i in chosen] for each in found]
            plain, corrected = (np.array([of(row) for row in ids]) for of in (semantic_entropy, bias_corrected_entropy))
            values["plain"].append(float(plain.mean()))
            values["corrected"].append(float(corrected.mean()))
            values["rank"].append(float(spearmanr(plain, whole).statistic))
            values["auroc"].append(auroc(wrong, plain))
            values["auroc_corrected"].append(auroc(wrong, corrected))
        for name, drawn in values.items():
            figures[name].append(float(np.mean(drawn)))
    return {name: np.array(values) for name, values in figures.items()}


def by_number(file: File, found: Sequence[Clustering]) -> dict[int, float]:
    """AUROC of semantic entropy by its first N answers, mean over models."""
    aurocs = {}
    for n in range(2, 11):
        entropies = np.array([semantic_entropy(each.cluster_ids[:n]) for each in found])
        aurocs[n] = float(np.mean([auroc(file.wrong[file.model == m], entropies[file.model == m]) for m in file.models()]))
    return aurocs


def draw_aurocs(tables: dict[str, dict[str, list[Quality]]], path: Path) -> None:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        shared = np.atleast_1d(figure.subplots(1, len(tables), sharey=True))
        for axes, (title, models) in zip(shared, tables.items(), strict=True):
            for i, found in enumerate(models.values()):
                for j, each in enumerate(found[:4]):
                    x = i + (j - 1.5) * 0.18
                    label = each.score if i == 0 else None
                    error = [[each.auroc - each.auroc_low], [each.auroc_high - each.auroc]]
                    axes.errorbar(x, each.auroc, error, fmt=MARKERS[j], color=COLOURS[j], label=label, markersize=4)
            axes.set_xticks(range(len(models)), [m.split("-")[0] for m in models], rotation=30)
            axes.set_title(title)
            axes.axhline(0.5, color="black", linewidth=0.6)
        figure.axes[0].set_ylabel("AUROC against a wrong answer")
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        figure.savefig(path, metadata={"Date": None})


def draw_convergence(figures: dict[str, NDArray[np.float64]], path: Path) -> None:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 3), layout="constrained")
        entropy, ranks, aurocs = figure.subplots(1, 3)
        entropy.plot(NUMBERS, figures["plain"], marker="o", color=COLOURS[0], label="plain")
        entropy.plot(NUMBERS, figures["corrected"], marker="s", linestyle="--", color=COLOURS[1], label="bias-corrected")
        entropy.set(title="mean semantic entropy, nats", xlabel="answers")
        entropy.legend()
        ranks.plot(NUMBERS, figures["rank"], marker="o", color=COLOURS[0])
        ranks.set(title="rank correlation with all 40", xlabel="answers")
        aurocs.plot(NUMBERS, figures["auroc"], marker="o", color=COLOURS[0], label="plain")
        aurocs.plot(NUMBERS, figures["auroc_corrected"], marker="s", linestyle="--", color=COLOURS[1], label="bias-corrected")
        aurocs.set(title="AUROC against a wrong majority", xlabel="answers")
        figure.savefig(path, metadata={"Date": None})


def draw_entropies(files: Sequence[File], path: Path) -> None:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 2.8), layout="constrained")
        for axes, file in zip(figure.subplots(1, len(files)), files, strict=True):
            bins = np.linspace(0, np.log(10) + 1e-9, 16)
            parts = [file.entropies[~file.wrong], file.entropies[file.wrong]]
            axes.hist(parts, bins, stacked=True, color=COLOURS[:2], label=["right", "wrong"])
            for i, rule in enumerate(RULES):
                axes.axvline(threshold(file.entropies, rule), color=COLOURS[2 + i], linestyle=("-", "--", ":")[i], label=rule)
            axes.set(title=file.title, xlabel="semantic entropy, nats")
        figure.axes[0].legend(fontsize=7)
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", type=Path, default=ROOT / "outputs/learned_judge/judge", help="a cross-encoder")
    place = parser.parse_args().judge
    if not SHARED.is_dir():
        raise SystemExit(f"the public answers are not there ({SHARED})")
    learned = CrossEncoderJudge(str(place))
    figures = DOCS / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    files = [*(File(name, title, learned) for name, title in BALANCED.items()), File("gen_math_10x", "maths")]
    sentences = File("gen_triviaqa_qwen25_3b_10x", "TriviaQA, sentences", learned, "source_majority_correct_rougeL")
    aliases = np.array([np.mean(row["alias_match"]) < 0.5 for row in sentences.rows])
    tables = {file.title: {model: file.qualities(model) for model in file.models()} for file in files}
    math = files[-1]
    ours, theirs = math.entropies, np.array([row["ref_cluster_entropy"] for row in math.rows])
    date_rows = read("gen_date_codex40")
    date_clusters = clustered(date_rows, ExactJudge())
    dates = convergence(date_rows, date_clusters)
    pairs = read("pairs_qa_equivalence")
    bundled = NLIJudge(bundled_path("bundled:judge"))
    trivia = files[0].rows
    judges = {
        "exact": judge_pairs(ExactJudge(), pairs),
        "contains": judge_pairs(ContainsJudge(), pairs),
        "bundled": judge_pairs(bundled, pairs),
    }
    draw_aurocs(tables, figures / "auroc.svg")
    draw_convergence(dates, figures / "convergence.svg")
    draw_entropies(files, figures / "entropies.svg")
    template = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
        (DOCS / "semantic_entropy.md.j2").read_text()
    )
    all_thresholds = {file.title: file.thresholds() for file in files}
    rows = all_thresholds[math.title]  # the one file that is drawn as it came
    mean_auroc: dict[str, dict[str, float]] = {}
    for title, models in tables.items():
        aurocs = [each for found in models.values() for each in found]
        names = {each.score for each in aurocs}
        mean_auroc[title] = {name: float(np.mean([q.auroc for q in aurocs if q.score == name])) for name in names}
    page = template.render(
        mean_auroc=mean_auroc,
        dates_rows=len(date_rows),
        dates_uncertain=sum(len(set(each.cluster_ids)) > 1 for each in date_clusters),
        growth={
            n: tuple(
                float(np.mean([of(each.cluster_ids[:n]) for each in math.found]))
                for of in (semantic_entropy, bias_corrected_entropy)
            )
            for n in range(2, 11)
        },
        mean_balanced={rule: float(np.mean([row[rule]["balanced"] for row in rows])) for rule in RULES},
        mean_best=float(np.mean([row["best"] for row in rows])),
        tables=tables,
        sentences=sentences.qualities(sentences.models()[0]),
        sentences_aliases=auroc(aliases, sentences.entropies),
        sentences_exact=auroc(aliases, np.array([semantic_entropy(each.cluster_ids) for each in sentences.exact])),
        thresholds={**all_thresholds, sentences.title: sentences.thresholds()},
        rules=RULES,
        policies={
            "exact match": policies(trivia, ExactJudge()),
            "learned": policies(trivia[::4], learned),
            "words held (`oracle` of benchmarks/semantic_entropy.py)": policies(trivia, OracleJudge()),
            "the bundled NLI judge, far from what it was trained on": policies(trivia[::4], bundled),
        },
        math={
            "equal": float(np.mean(np.abs(ours - theirs) < 0.006)),
            "rank": float(spearmanr(ours, theirs).statistic),
            "difference": float(np.mean(np.abs(ours - theirs))),
            "label": float(np.mean((ours >= KA2L_THRESHOLD) == (theirs >= KA2L_THRESHOLD))),
        },
        numbers=NUMBERS,
        dates=dates,
        by_number={file.title: by_number(file, file.found) for file in files},
        by_number_exact={file.title: by_number(file, file.exact) for file in files if file.judged},
        judges=judges,
        repeatability={file.title: [file.repeatability(model) for model in file.models()] for file in files},
        p_wrong={file.title: file.p_wrong() for file in files},
    )
    (DOCS / "semantic_entropy.md").write_text(page)
    print(f"wrote {DOCS / 'semantic_entropy.md'}")


if __name__ == "__main__":
    main()
