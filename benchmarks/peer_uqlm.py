r"""Semantic entropy against uqlm's, on the same questions, weights and threads, in one process.

    python -m venv /tmp/peer
    /tmp/peer/bin/pip install --only-binary :all: torch==2.13.0 'transformers<5' 'numpy<2' 'pyarrow<21' 'datasets<4.5' \
        bert-score langchain langchain-model-profiles rich pandas scikit-learn optuna matplotlib pydantic pyyaml fsspec \
        jinja2 sacrebleu nltk peft psutil sentencepiece
    /tmp/peer/bin/pip install --no-deps uqlm
    PYTHONPATH=. /tmp/peer/bin/python benchmarks/peer_uqlm.py

uqlm wants other versions of transformers and numpy than we do, hence the environment of its own. Its ``SemanticClusterer``
differs in what it computes: one direction of entailment is enough, labels are taken to be in the order contradiction, neutral,
entailment, an answer joins every cluster whose first answer it matches (so that clusters may overlap), and the question stands
before the answer after a line break. So clusters are not compared, only calls and seconds.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from semantic_entropy import FILES, Overruled, make_model, oracle, read
from uqlm.nli.cluster import SemanticClusterer
from uqlm.nli.nli import NLI

from ka2l_ray.semantics.clustering import Counts, cluster_answers

QUESTIONS, REPEATS = 16, 3


class OverruledNLI(NLI):
    """uqlm's model runs on every pair it asks about; the probabilities are the oracle's verdicts."""

    calls = 0

    def predict_batch(self, pairs: list[tuple[str, str]]) -> Any:
        super().predict_batch(pairs)
        self.calls += len(pairs)
        verdicts = [oracle(a.split("\n", 1)[1], b.split("\n", 1)[1]) for a, b in pairs]
        return np.eye(3)[verdicts].reshape(-1, 3)


def main() -> None:
    questions, answers = read(FILES[0])
    texts = [f"{q} {a}" for q, row in zip(questions, answers, strict=True) for a in set(row)]
    step = len(questions) // QUESTIONS
    asked: tuple[list[str], list[list[str]]] = (questions[::step][:QUESTIONS], answers[::step][:QUESTIONS])
    with tempfile.TemporaryDirectory() as folder:
        make_model(folder, texts)
        judge = Overruled(folder, batch_tokens=2048)
        seconds: dict[str, list[float]] = {"uqlm": [], "ours": []}
        for _ in range(REPEATS):
            peer = OverruledNLI(nli_model_name=folder, device="cpu")
            start = time.perf_counter()
            cluster_with_uqlm(peer, *asked)
            seconds["uqlm"].append(time.perf_counter() - start)
            counts = Counts()
            start = time.perf_counter()
            for each in cluster_answers(*asked, judge):
                counts += each.counts
            seconds["ours"].append(time.perf_counter() - start)
    print("| by | calls a question | seconds a question |\n|---|---|---|")
    for name, calls in (("uqlm", peer.calls), ("ours", counts.judge_calls)):
        print(f"| {name} | {calls / QUESTIONS:.1f} | {statistics.median(seconds[name]) / QUESTIONS:.3f} |")


def cluster_with_uqlm(nli: NLI, questions: Sequence[str], answers: Sequence[list[str]]) -> None:
    for question, row in zip(questions, answers, strict=True):
        SemanticClusterer(nli).cluster_responses(row, prompt=question)


if __name__ == "__main__":
    main()
