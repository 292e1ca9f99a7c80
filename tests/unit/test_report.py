"""The report of small runs whose every number is set here by hand."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ka2l_ray import schema
from ka2l_ray.errors import UserError
from ka2l_ray.evaluation import Interval
from ka2l_ray.report import figures, write_report
from ka2l_ray.report.data import GROUPS, Changes, CurvePoint, EntropyRound, pca_rounds, principal_components, read_runs
from ka2l_ray.semantics.entropy import semantic_entropy
from ka2l_ray.store.artefacts import RunStore
from ka2l_ray.store.storage import Storage
from ka2l_ray.uncertainty.calibration import summary

PROMPT = {
    "question": "Who <b>?",
    "text": "<s>Who <b>?\n",
    "token_ids": [1, 17, 23],
    "end_of_turn": "</s>",
    "end_of_turn_ids": [2],
}
SECTIONS = [
    "The prompt",
    "Semantic entropy",
    "Probe by layer",
    "Calibration of the probe",
    "Hidden states of the chosen layer",
    "Entropy against correctness",
    "Examples by semantic entropy",
    "Learned and forgotten",
    "Probe drift",
    "Cost ledger",
]
FIGURES = ["entropy", "layers", "calibration", "states", "quadrants", "forgetting", "drift"]


CONFIG = """
seed: 7
model: {path: bundled:student, revision: abc}
pool: {probing_size: 30, test: TEST}
sampling: {k: 10, temperature: 1.0}
entropy: {judge: nli, nli_model: bundled:judge, equivalence: strict, policy: founder_first, rule: fixed}
selection: {strategy: ka2l}
finetune: {start: last_adapter}
"""
JUDGED = "evaluation: {judge: nli, nli_model: bundled:judge}\n"
JUDGING = ("judge_calls", "cached_verdicts", "truncated", "unparsable")
QUESTIONS = [f"What is q{i:02d}?" if i else "Is <script>alert(1)</script> q00?" for i in range(30)]
# Ten questions with one meaning, ten with two, ten with as many as answers; the fixed threshold lies after the first ten.
CLUSTERS = [[0] * 10] * 10 + [[0] * 5 + [1] * 5] * 10 + [list(range(10))] * 10
GENERATIONS = [["answer"] * 10] * 10 + [["yes"] * 3 + ["Yes. "] * 2 + ["no"] * 5] * 10 + [[str(n) for n in range(10)]] * 10
ENTROPIES = [semantic_entropy(clusters) for clusters in CLUSTERS]
RIGHT = [*range(8), *range(10, 15)]
GOLD = {i: [f"Alias {i}", f"The Answer, {i}!"] for i in range(27)}
TEST_PART = {0: 0.4, 5: 0.1, 8: 0.3, 16: 0.05, 27: 0.9, 28: 0.2}
EXACT_MATCH = [(0.2, 1.0, 0.0), (0.5, 0.95, 0.3), (0.6, 0.9, 0.525)]
THRESHOLDS = {"ka2l": 0.5, "two_means": 1.498, "quantile": 0.693, "fixed": 0.6}
LABELS = {"drawn": 300, "empty_answers": 7, "abstentions": 21, "abstaining": 4, "silent": 1, "dropped": 0, "cut_answers": 9}
LABELS["reliability"] = {
    **{"questions": 30, "half": 5.0, "threshold": 0.6, "agreement": 0.9, "kappa": 0.75},
    **{"entropy_reliability": 0.88, "accuracy_ceiling": 0.968, "auroc_ceiling": 1.0},
}
SHARES = {"ka2l": 0.667, "two_means": 0.333, "quantile": 0.5, "fixed": 0.6666}


def fake_run(root: Path, rounds: int = 2, test: bool = True, probe: bool = True, gold: bool = True) -> str:
    """A run directory of 30 questions, committed as the stages do, with facts that no stage would find by chance."""
    store = RunStore(str(root))
    store.storage.write_bytes("config.yaml", CONFIG.replace("TEST", "test.jsonl" if test else "null").encode())
    pool = [
        {"question_id": f"q{i:02d}", "question": q, "answers": GOLD.get(i) if gold else None} for i, q in enumerate(QUESTIONS)
    ]
    commit(store, "pool", {"rows": 30}, {"part.parquet": pa.Table.from_pylist(pool, schema=schema.QUESTIONS)})
    if test:
        commit(store, "test", {"rows": 12})
        commit(store, "near_duplicates", {"rows": 1, "of": 12})
        commit_evaluation(store, "baseline/evaluation", 0, wrong=range(5, 12))
    for round_ in range(rounds):
        at = f"rounds/{round_:03d}"
        commit_probing_set(store, at)
        commit_probe(store, at, probe, round_)
        commit(store, f"{at}/selection", {"rows": 10}, strategy=("ka2l", "random")[round_])
        commit(store, f"{at}/annotations", {"rows": 10, "labels": 10})
        commit(store, f"{at}/adapter", {"rows": 10})
        if test:
            commit_evaluation(store, f"{at}/evaluation", round_ + 1, wrong=range(2))
    for reason in ("an earlier end", "the budget of 20 labels is spent"):
        store.log_metric("stopped", reason)
    return store.root


def commit(store: RunStore, name: str, facts: dict[str, Any], tables: dict[str, pa.Table] | None = None, **inputs: Any) -> None:
    def build(work: Storage) -> dict[str, Any]:
        for file, table in (tables or {}).items():
            work.write_table(file, table)
        return facts

    store.compute(name, {"stage": name, **inputs}, build)


def commit_probing_set(store: RunStore, at: str) -> None:
    """Samples, hidden states (in two files, last question first; layer 1 tells the entropy) and entropies."""
    asked = [{"question_id": f"q{i:02d}", "question": question} for i, question in enumerate(QUESTIONS)]
    said = {"prompt": "", "token_ids": [], "token_logprobs": [], "finish_reasons": [], "greedy_logprob": 0.0}
    greedy = [f"answer {i}." if i in RIGHT else "nonsense" for i in range(30)]
    samples = [{**row, **said, "generations": g, "greedy": a} for row, g, a in zip(asked, GENERATIONS, greedy, strict=True)]
    commit(
        store,
        f"{at}/samples",
        {"rows": 30, "prompt": PROMPT},
        {"part.parquet": pa.Table.from_pylist(samples, schema=schema.SAMPLES)},
    )
    noise = np.random.default_rng(0).normal(size=(30, 4)) / 100
    states = zip(asked, noise.astype(np.float16), (noise + np.array(ENTROPIES)[:, None]).astype(np.float16), strict=True)
    hidden = [{**row, "layer_0": list(blind), "layer_1": list(telling)} for row, blind, telling in states]
    table = pa.Table.from_pylist(hidden[::-1], schema=schema.hidden_states(4, [0, 1], pa.float16(), "float32"))
    commit(store, f"{at}/hidden_states", {"rows": 30}, {"a.parquet": table.slice(0, 20), "b.parquet": table.slice(20)})
    counts = ("judge_calls", "cached_verdicts", "reference_calls", "empty_answers", "truncated", "unparsable")
    counts += ("drawn", "abstentions", "cut_answers", "triples", "non_transitive_triples")
    judged = {
        "majority_answer": "",
        "declines": [],
        "abstains": False,
        "replayable": True,
        "paragraph": False,
        **dict.fromkeys(counts, 0),
    }
    entropies = [
        {**row, **judged, "semantic_entropy": entropy, "bound": "exact", "cluster_ids": clusters, "label": int(entropy >= 0.6)}
        for row, entropy, clusters in zip(asked, ENTROPIES, CLUSTERS, strict=True)
    ]
    facts = {
        "rows": 30,
        "rule": "fixed",
        "agreeing": {"10": 9},
        **LABELS,
        "threshold": 0.6,
        "unknown": 20,
        "thresholds": THRESHOLDS,
        "share_unknown": SHARES,
    }
    counters = {"judge_calls": 1234, "triples": 200, "non_transitive_triples": 5, "paragraphs": 16}
    part = pa.Table.from_pylist(entropies, schema=schema.ENTROPY)
    commit(store, f"{at}/entropy", {**facts, **counters}, {"part.parquet": part})


def commit_probe(store: RunStore, at: str, fitted: bool, round_: int) -> None:
    if not fitted:
        return commit(store, f"{at}/probe", {"fitted": False, "reason": "all labels are 1", "rows": 30})
    losses = {"validation_accuracy": 0.5, "validation_loss": 0.5, "train_loss": 0.5}
    layers = [{"layer": layer, "validation_auroc": auroc, **losses} for layer, auroc in ((1, 0.8), (0, 0.5))]
    predictions = {
        "question_id": [f"q{i:02d}" for i in range(30)],
        "part": ["test" if i in TEST_PART else "train" for i in range(30)],
        "p_unknown": [TEST_PART.get(i, 0.5) for i in range(30)],
    }
    facts: dict[str, Any] = {"fitted": True, "rows": 30, "layer": 1, "test_auroc": 0.877, "test_rows": 6}
    facts |= {"position": "last_prompt_token", "target": "semantic_entropy", "calibration": "platt"}
    facts["held_out"] = {"test": summary(np.array([0, 1, 1, 1]), np.array([0.2, 0.7, 0.8, 0.9]))}
    facts["warning"] = "the training loss of layer 1 stayed at 0.6931 nats"
    if round_:
        facts["drift"] = {"auroc_previous": 0.612, "auroc_own": 0.934, "rows": 9}
    table = pa.Table.from_pylist(layers, schema=schema.PROBE_LAYERS)
    return commit(store, f"{at}/probe", facts, {"layers.parquet": table, "predictions.parquet": pa.table(predictions)})


def commit_evaluation(store: RunStore, name: str, stage: int, wrong: range, judge: str = "exact") -> None:
    """The ``stage``-th evaluation; test questions 0 to 4 were known before."""
    scores = dict.fromkeys(("token_f1", "rouge_l", "bleu", "meteor"), 0.0)
    rows = [
        {
            "question_id": f"t{i:02d}",
            "question": f"Test t{i:02d}?",
            "prediction": f"{'wrong' if i in wrong else 'right'} {i}",
            "answers": [f"right {i}"],
            "correct": float(i not in wrong),
            "exact_match": float(i not in wrong),
            "known_before": i < 5,
            "exact_match_before": i < 5,
            **scores,
        }
        for i in range(12)
    ]
    metrics = {"correct": 0.0, "exact_match": 0.0 if judge == "exact" else -0.1, "token_f1": 0.01, "rouge_l": 0.02, "bleu": 0.03}
    changes = {"learned": (0, 7, 4)[stage], "forgotten": (0, 1, 6)[stage], "known_before": 5}
    facts = {
        "rows": 12,
        "figures": {
            group: {metric: {"mean": m + x, "low": m + x - 0.05, "high": m + x + 0.05, "n": 12} for metric, x in metrics.items()}
            for group, m in zip(GROUPS, EXACT_MATCH[stage], strict=True)
        },
        "corpus_bleu": 61.5,
        "metric_notes": {"meteor": "matches words by exact, stem"},
        "judge": judge,
        **changes,
        "by_exact_match": changes if judge == "exact" else {"learned": 3, "forgotten": 2, "known_before": 4},
    }
    commit(store, name, facts, {"evaluation.parquet": pa.Table.from_pylist(rows, schema=schema.EVALUATION)})


class Page(HTMLParser):
    """What a reader sees: under each heading, its text and the cells of its table rows."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.html = Path(path).read_text()
        self.heading = ""
        self.rows: dict[str, list[list[str]]] = {}
        self.text: dict[str, str] = {}
        self.into: str | None = None
        self.feed(self.html)
        self.rows = {heading: [[_shown(cell) for cell in row] for row in rows] for heading, rows in self.rows.items()}

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag in ("h1", "h2", "h3", "h4"):
            self.heading, self.into = "", "heading"
        elif tag == "tr":
            self.rows.setdefault(self.heading, []).append([])
        elif tag in ("td", "th"):
            self.rows[self.heading][-1].append("")
            self.into = "cell"
        elif tag == "br":
            self.handle_data(" ")
        elif tag == "style":
            self.into = "style"

    def handle_endtag(self, tag: str) -> None:
        if tag in ("h1", "h2", "h3", "h4", "td", "th", "style"):
            self.into = None

    def handle_data(self, data: str) -> None:
        if self.into == "heading":
            self.heading += data
        elif self.into == "cell":
            self.rows[self.heading][-1][-1] += data
        elif self.into is None:
            self.text[self.heading] = self.text.get(self.heading, "") + data

    def cells(self, heading: str, *first: str) -> list[str]:
        """The one row under a heading that begins so."""
        found = [row for row in self.rows[heading] if row[: len(first)] == list(first)]
        assert len(found) == 1, (first, self.rows[heading])
        return found[0]

    def said(self, heading: str) -> str:
        return " ".join(self.text.get(heading, "").split())


def _shown(cell: str) -> str:
    return " ".join(cell.split()).replace("\N{MULTIPLICATION SIGN}", "x")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two rounds with everything; read only."""
    return fake_run(tmp_path_factory.mktemp("runs") / "full")


@pytest.fixture(scope="module")
def page(run: str, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(write_report(str(tmp_path_factory.mktemp("report")), [run]))


def test_every_section_and_figure_is_there(run: str, tmp_path: Path) -> None:
    path = write_report(str(tmp_path), [run])
    page = Page(path)
    assert path == str(tmp_path / "report.html")
    for section in ["Learning curve", "Area under the learning curve", *SECTIONS]:
        assert f"{section}</h" in page.html
        assert "Left out" not in page.said(section)
    names = {"learning_curve.png"} | {f"full_{name}.png" for name in FIGURES}
    assert {file.name for file in (tmp_path / "figures").iterdir()} == names
    assert all((tmp_path / "figures" / name).read_bytes().startswith(b"\x89PNG") for name in names)
    assert page.html.count("<figure>") == len(names) == page.html.count('src="data:image/')


def test_the_page_loads_nothing_from_elsewhere(page: Page) -> None:
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//|url\(|@import|<script|<link|<iframe""", page.html)
    assert set(re.findall(r'src="([a-z]+):', page.html)) == {"data"}
    assert "default-src 'none'" in page.html


def test_text_from_data_is_escaped(page: Page) -> None:
    assert "<script" not in page.html
    assert "Is &lt;script&gt;alert(1)&lt;/script&gt; q00?" in page.html
    assert any("Is <script>alert(1)</script> q00?" in row for row in page.rows["Low"])


def test_the_header_says_what_the_run_was(page: Page) -> None:
    title = "What the model does not know: full"
    assert page.cells(title, "Strategy") == ["Strategy", "ka2l (random in round 1)"]
    assert page.cells(title, "Seed")[1] == "7"
    assert page.cells(title, "Model")[1] == "bundled:student @ abc"
    assert page.cells(title, "Rounds")[1] == "2"
    assert page.cells(title, "Labels")[1] == "20"
    assert page.cells(title, "Why it stopped")[1] == "the budget of 20 labels is spent"
    assert page.cells(title, "Fine-tuning starts from")[1] == "last_adapter"
    assert page.cells(title, "Judge of meaning")[1] == "nli, bundled:judge"
    assert page.cells(title, "Threshold rule")[1] == "fixed"
    assert page.cells(title, "Cluster policy")[1] == "founder_first"


def test_the_learning_curve_is_the_facts_of_the_evaluations(page: Page) -> None:
    before = page.cells("Learning curve", "full", "untrained")
    assert before[2:6] == ["0", "0.200 [0.150, 0.250]", "1.000 [0.950, 1.050]", "0.000 [-0.050, 0.050]"]
    after = page.cells("Learning curve", "full", "1")
    assert after[2:6] == ["20", "0.600 [0.550, 0.650]", "0.900 [0.850, 0.950]", "0.525 [0.475, 0.575]"]
    assert after[6:] == ["0.610", "0.620", "0.630", "n/a", "n/a", "61.5"]
    assert "meteor (full): matches words by exact, stem" in page.said("Learning curve")


def test_the_area_under_the_curve_is_trapezoids_over_the_range_of_labels(page: Page) -> None:
    # Exact match 0.2, 0.5, 0.6 at 0, 10, 20 labels: (3.5 + 5.5) / 20.
    assert page.cells("Area under the learning curve", "full") == ["full", "0", "20", "0.450", "0.950", "0.281"]


def test_every_threshold_rule_is_shown_with_its_share(page: Page) -> None:
    cells = page.cells("Semantic entropy", "0")
    assert cells[1:6] == ["30", "66.7% at 0.500", "33.3% at 1.498", "50.0% at 0.693", "66.7% at 0.600, in force"]
    assert cells[6:] == ["1,234", "2.5% of 200"]


def test_what_the_labels_rest_on_is_shown(page: Page) -> None:
    title = "What the labels rest on"
    counts, halves = (row for row in page.rows[title] if row[0] == "0")
    assert counts[1:] == ["fixed 0.600 nats", "9 of 10", "7", "21 of 300", "4 of 30, 1 silent", "3.0%"]
    assert halves[1:] == ["5.0 answers, 30 questions", "90.0%", "0.750", "0.880", "96.8%", "1.000"]
    assert "Round 0: 3.0% of the answers were cut at sampling.max_tokens" in page.said(title)


def test_the_chosen_layer_and_the_one_test_figure(page: Page) -> None:
    assert "test AUROC 0.877 in round 0 (layer 1, 6 questions), 0.877 in round 1 (layer 1, 6 questions)" in page.said(
        "Probe by layer"
    )


def test_the_four_quadrants_count_greedy_answers_by_any_alias(page: Page) -> None:
    assert page.cells("Entropy against correctness", "0", "exact match", "8") == ["0", "exact match", "8", "2", "5", "12", "3"]
    assert "Gold answers are used here for evaluation only, never for selection." in page.said("Entropy against correctness")
    heading = "Sure and wrong: 2 of 10 known questions in round 0 (exact match)"
    assert [row[2:] for row in page.rows[heading][1:]] == [
        [f"What is q{i:02d}?", "answer x10", "nonsense", f"Alias {i} / The Answer, {i}!"] for i in (8, 9)
    ]


def test_scores_are_held_against_wrong_greedy_answers_the_probe_on_its_test_part_only(page: Page) -> None:
    wrong = [8, 9, *range(15, 27)]
    pairs = [(ENTROPIES[w] > ENTROPIES[r]) + 0.5 * (ENTROPIES[w] == ENTROPIES[r]) for w in wrong for r in RIGHT]
    every = page.cells("Entropy against correctness", "0", "exact match", "semantic entropy", "all sampled")
    assert every[4:] == ["27", f"{np.mean(pairs):.3f}"]
    # The test part is q00, q05 (right), q08, q16 (wrong) with p = 0.4, 0.1, 0.3, 0.05, and two without a gold answer.
    assert page.cells("Entropy against correctness", "0", "exact match", "probe, p(unknown)")[3:] == [
        "probe's test part",
        "4",
        "0.250",
    ]
    assert page.cells("Entropy against correctness", "0", "exact match", "semantic entropy", "probe's test part")[4:] == [
        "4",
        "0.750",
    ]


def test_examples_show_generations_by_meaning(page: Page) -> None:
    assert [row[:4] for row in page.rows["Middle"][1:]] == [
        ["0.693", "2", f"What is q{i}?", "yes x3, Yes. x2 no x5"] for i in (10, 11, 12)
    ]
    high = page.rows["High"][1:]
    assert [row[1:3] for row in high] == [["10", f"What is q{i}?"] for i in (27, 28, 29)]
    assert all(row[5] == "n/a" for row in high)


def test_forgetting_shows_counts_and_answers_before_and_after(page: Page) -> None:
    assert page.cells("Learned and forgotten", "0") == ["0", "exact match", "5", "7", "1", "+6"]
    assert page.cells("Learned and forgotten", "1") == ["1", "exact match", "5", "4", "6", "-2"]
    rows = page.rows["Forgotten after the last round"][1:]
    assert rows == [["Test t00?", "right 0", "wrong 0", "right 0"], ["Test t01?", "right 1", "wrong 1", "right 1"]]


def test_figures_by_a_judge_stand_beside_exact_match_and_are_called_by_its_name(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path / "judged"))
    store.storage.write_bytes("config.yaml", CONFIG.replace("TEST", "test.jsonl").encode() + JUDGED.encode())
    commit_evaluation(store, "baseline/evaluation", 0, wrong=range(5, 12), judge="nli")
    commit_evaluation(store, "rounds/000/evaluation", 1, wrong=range(2), judge="nli")
    page = Page(write_report(store.root, [store.root]))
    assert page.cells("What the model does not know: judged", "Right is")[1] == "nli, bundled:judge"
    assert page.rows["Learning curve"][0][3:7] == ["right by nli", "… known before", "… unknown before", "exact_match"]
    assert page.cells("Learning curve", "judged", "0")[3:7] == [
        *("0.500 [0.450, 0.550]", "0.950 [0.900, 1.000]", "0.300 [0.250, 0.350]"),
        "0.400",
    ]
    assert "Right by nli on the test set against all labels" in page.said("Learning curve")
    assert [row[:5] for row in page.rows["Learned and forgotten"][1:]] == [
        ["0", "nli", "5", "7", "1"],
        ["0", "exact match", "4", "3", "2"],
    ]


def test_entropy_stands_against_the_judge_s_verdicts_and_exact_match(tmp_path: Path) -> None:
    store = RunStore(fake_run(tmp_path / "judged", rounds=1))
    rows = [
        {"question_id": f"q{i:02d}", "correct": i in RIGHT or i == 8, "exact_match": i in RIGHT, **dict.fromkeys(JUDGING, 0)}
        for i in range(27)
    ]
    table = pa.Table.from_pylist(rows, schema=schema.CORRECTNESS)
    commit(store, "rounds/000/correctness", {"rows": 27, "judge": "nli"}, {"correctness.parquet": table})
    page = Page(write_report(store.root, [store.root]))
    assert page.cells("Entropy against correctness", "0", "right by nli", "9")[2:] == ["9", "1", "5", "12", "3"]
    assert page.cells("Entropy against correctness", "0", "exact match", "8")[2:] == ["8", "2", "5", "12", "3"]
    assert "Sure and wrong: 1 of 10 known questions in round 0 (right by nli)" in page.rows


def test_drift_is_shown_from_the_second_round_on(page: Page) -> None:
    assert [row[0] for row in page.rows["Probe drift"][1:]] == ["1"]
    assert page.cells("Probe drift", "1") == ["1", "0.612", "0.934", "9"]


def test_what_was_reused_costs_nothing(run: str, tmp_path: Path) -> None:
    second = RunStore(str(tmp_path / "second"), reuse=(run,))
    pool = RunStore(run).manifest["pool"]
    second.compute("pool", pool.inputs, lambda work: pytest.fail("not reused"))
    facts = {"rows": 3, "prompt_tokens": 100, "generated_tokens": 20, "answer_tokens": 3, "judge_calls": 5, "labels": 4}
    second.compute("rounds/000/annotations", {"stage": "annotate"}, lambda work: facts)
    page = Page(write_report(str(tmp_path / "out"), [second.root]))
    assert page.cells("Cost ledger", "pool")[6] == run
    assert page.cells("Cost ledger", "rounds/000/annotations")[2:] == ["3", "123", "5", "4", ""]
    assert page.cells("Cost ledger", "spent by this run")[2:] == ["", "123", "5", "4", ""]


def test_a_run_without_test_set_probe_or_gold_answers_gets_notes(tmp_path: Path) -> None:
    root = fake_run(tmp_path / "bare", rounds=1, test=False, probe=False, gold=False)
    page = Page(write_report(str(tmp_path / "out"), [root]))
    assert page.said("Learning curve") == "Left out: the run has no test set (pool.test)."
    assert page.said("Probe by layer") == "Round 0: no probe was fitted: all labels are 1."
    assert page.said("Hidden states of the chosen layer") == "Left out: no probe was fitted, so no layer was chosen."
    assert page.said("Entropy against correctness").startswith("Left out: the pool has no gold answers")
    assert page.said("Learned and forgotten") == "Left out: the run has no test set (pool.test)."
    assert page.said("Probe drift") == "Left out: drift is measured from the second round on."
    assert [file.name for file in (tmp_path / "out" / "figures").iterdir()] == ["bare_entropy.png"]
    assert [row[5] for row in page.rows["Low"][1:]] == ["n/a"] * 3


def test_a_run_that_has_only_begun_gets_notes(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path / "begun"))
    store.compute("pool", {"stage": "questions"}, lambda work: {"rows": 3})
    page = Page(write_report(store.root, [store.root]))
    assert page.cells("What the model does not know: begun", "Why it stopped")[1] == "it has not ended"
    for section in SECTIONS[:-1]:
        assert page.said(section).startswith("Left out: "), section


def test_lost_files_are_a_note_and_the_rest_is_shown(tmp_path: Path) -> None:
    root = fake_run(tmp_path / "lossy", rounds=1)
    Storage(root).delete("rounds/000/hidden_states")
    page = Page(write_report(str(tmp_path / "out"), [root]))
    assert re.match("Left out: .*rounds/000/hidden_states cannot be read", page.said("Hidden states of the chosen layer"))
    assert page.cells("Entropy against correctness", "0", "exact match", "8")[2] == "8"


def test_a_run_directory_that_moved_is_read_where_it_is_now(tmp_path: Path) -> None:
    fake_run(tmp_path / "here", rounds=1)
    (tmp_path / "here").rename(tmp_path / "there")
    page = Page(write_report(str(tmp_path / "there"), [str(tmp_path / "there")]))
    assert [section for section in SECTIONS if page.said(section).startswith("Left out")] == ["Probe drift"]


def test_gold_answers_of_a_file_apart_are_used(tmp_path: Path) -> None:
    root = fake_run(tmp_path / "apart", rounds=1, gold=False)
    table = pa.Table.from_pylist([{"question_id": "q00", "question": "?", "answers": ["Answer 0"]}], schema=schema.QUESTIONS)
    commit(RunStore(root), "answers", {"rows": 1}, {"part.parquet": table})
    page = Page(write_report(str(tmp_path / "out"), [root]))
    assert page.cells("Entropy against correctness", "0", "exact match", "1") == ["0", "exact match", "1", "0", "0", "0", "29"]


def test_several_runs_stand_beside_each_other(run: str, tmp_path: Path) -> None:
    one, other = fake_run(tmp_path / "a" / "full", rounds=1), fake_run(tmp_path / "b" / "full", rounds=1, test=False)
    out = tmp_path / "out"
    page = Page(write_report(str(out), [one, other, one + "/"]))
    title = "What the models do not know: a/full, b/full"
    assert page.rows[title][0] == ["", "a/full", "b/full"]
    assert page.cells(title, "Test set")[1:] == ["12 questions", "none"]
    assert page.cells(title, "Near-duplicates")[1:] == [
        "1 of 12 test questions share at least 80% of their words with a question of the pool",
        "none counted",
    ]
    assert "Left out: b/full: the run has no test set" in page.said("Learning curve")
    assert page.cells("Learning curve", "a/full", "0")[2] == "10"
    assert page.html.count("<details") == 2
    assert {"learning_curve.png", "a-full_entropy.png", "b-full_entropy.png"} <= {f.name for f in (out / "figures").iterdir()}


def test_the_learning_curve_draws_every_run_with_its_intervals() -> None:
    runs = {"one": curve(0.2, 0.4), "two": curve(0.2, 0.7)}
    figure = figures.learning_curves(runs)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "two"]
    panel = figure.axes[0]
    assert panel.get_xlabel() == "labels spent"
    np.testing.assert_allclose(panel.containers[1].lines[0].get_ydata(), [0.2, 0.7])
    np.testing.assert_allclose(panel.containers[0].lines[0].get_xdata(), [0, 10], atol=0.2)
    intervals = [segment[:, 1] for segment in panel.containers[1].lines[2][0].get_segments()]
    np.testing.assert_allclose(intervals, [[0.1, 0.3], [0.6, 0.8]])


def curve(*means: float) -> list[CurvePoint]:
    intervals = [Interval(mean, mean - 0.1, mean + 0.1, 9) for mean in means]
    none = Changes(0, 0, 0)
    return [
        CurvePoint(i or None, 10 * i, "exact", {group: {"correct": interval} for group in GROUPS}, 0.0, {}, none, none)
        for i, interval in enumerate(intervals)
    ]


def test_no_bin_of_the_histograms_holds_known_and_unknown() -> None:
    entropies = np.array([0.0, 0.49, 0.5, 0.51, 2.3])
    figure = figures.entropy_histograms([EntropyRound(0, "ka2l", entropies, 0.5, {"ka2l": 0.5}, {"ka2l": 0.6}, 0, 0, 0)])
    bars = [bar for bar in figure.axes[0].patches if bar.get_height()]
    assert sum(bar.get_height() for bar in bars if bar.get_x() + bar.get_width() <= 0.5 + 1e-9) == 2
    assert sum(bar.get_height() for bar in bars if bar.get_x() >= 0.5 - 1e-9) == 3


def test_hidden_states_of_the_chosen_layer_are_matched_with_their_entropies(run: str) -> None:
    first = pca_rounds(read_runs([run])[0])[0]
    assert (first.layer, first.rows, first.points.shape) == (1, 30, (30, 2))
    assert abs(np.corrcoef(first.points[:, 0], first.entropies)[0, 1]) > 0.999


def test_principal_components_agree_with_the_covariance() -> None:
    states = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32) * np.array([1, 5, 2, 1, 3, 1], np.float32)
    points, explained = principal_components(states)
    variances = np.linalg.eigvalsh(np.cov(states.T))[::-1]
    np.testing.assert_allclose(explained, variances[:2] / variances.sum(), rtol=1e-4)
    np.testing.assert_allclose(points.var(axis=0, ddof=1), variances[:2], rtol=1e-4)


def test_the_demo_summary_is_a_table_of_arms(run: str, tmp_path: Path) -> None:
    summary = {
        "se_auroc_truth": 0.98765,
        "labels": {"ka2l": 20, "random": 21},
        "seconds_by_stage": {"ka2l": {"sample": 1.5}, "random": {"sample": 2.5, "score": 3.0}},
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    page = Page(write_report(str(tmp_path), [run]))
    assert page.rows["Demo summary"] == [
        ["figure", "ka2l", "random"],
        ["se_auroc_truth", "0.9877"],
        ["labels", "20", "21"],
        ["seconds_by_stage.sample", "1.5", "2.5"],
        ["seconds_by_stage.score", "", "3"],
    ]


def test_the_same_run_gives_the_same_bytes(run: str, tmp_path: Path) -> None:
    first, second = (Path(write_report(str(tmp_path / name), [run])).read_bytes() for name in ("a", "b"))
    assert first == second


@pytest.mark.parametrize(("runs", "said"), [([], "no run is given"), (["nowhere"], "nowhere: no run there")])
def test_what_is_no_run_is_refused(runs: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        write_report(str(tmp_path), [str(tmp_path / name) for name in runs])
    assert not list(tmp_path.iterdir())


def test_the_report_needs_neither_ray_nor_torch() -> None:
    heavy = ("ray", "torch", "vllm", "deepspeed", "ka2l_ray.jobs", "ka2l_ray.actors")
    code = f"import sys, ka2l_ray.report; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_named_test_sets_say_which_figure_is_which(tmp_path: Path) -> None:
    root = fake_run(tmp_path / "named", rounds=1, test=False, probe=False)
    store = RunStore(root)
    sets = "{own: {path: a, kind: transductive}, samples: {path: b, kind: inductive}}"
    store.storage.write_bytes("config.yaml", CONFIG.replace("TEST", sets).encode())
    for i, name in enumerate(("own", "samples")):  # a set may be named as a stage is
        commit(store, f"test/{name}", {"rows": 12 + i})
        commit_evaluation(store, f"baseline/evaluation/{name}", i, wrong=range(5, 12))
        commit_evaluation(store, f"rounds/000/evaluation/{name}", i + 1, wrong=range(2))
    page = Page(write_report(str(tmp_path / "report"), [root]))
    title = "What the model does not know: named"
    assert page.cells(title, "Test set")[1] == "own: 12 questions, transductive; samples: 13 questions, inductive"
    assert page.cells("Learning curve", "named, own (transductive)", "untrained")[3].startswith("0.200")
    assert page.cells("Learning curve", "named, samples (inductive)", "0")[3].startswith("0.600")
    assert "A transductive test set asks the pool's own facts in other words" in page.said("Learning curve")
    assert "not what labels teach" in page.said("Learning curve")
    assert "named, own (transductive)" in page.rows
    assert page.cells("named, own (transductive)", "0")[0] == "0"


def test_the_probes_calibration_is_told_beside_the_base_rate_and_with_its_warning(page: Page) -> None:
    told = page.said("Calibration of the probe")
    assert "Round 0: the training loss of layer 1 stayed at 0.6931 nats." in told
    row = page.cells("Calibration of the probe", "0")
    assert row[1] == "layer 1, last prompt token, fitted to semantic entropy, calibration platt"
    assert row[2:6] == ["test", "4", "75.0%", "1.000"]
    assert row[6] == "0.045 base rate 0.188"  # (0.04 + 0.09 + 0.04 + 0.01) / 4
