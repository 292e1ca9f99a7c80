"""The judge's worker on whole batches: what is silence, abstention or cut, and what may be replayed."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from ka2l_ray import schema
from ka2l_ray.actors.judge import ClusterBatch
from ka2l_ray.config import EntropyConfig
from ka2l_ray.reading import READING
from ka2l_ray.semantics.clustering import SAME as ALIKE
from ka2l_ray.semantics.judges.llm import LLMJudge

IDK = "I don't know"


def clustered(rows: dict[str, Any], config: EntropyConfig | None = None, decided_at: float | None = None) -> dict[str, Any]:
    """The worker's row of each question; a value is its answers, or (answers, finish reasons)."""
    asked = [(name, row if isinstance(row, tuple) else (row, None)) for name, row in rows.items()]
    batch = pa.table(
        {
            "question_id": [name for name, _ in asked],
            "question": ["Which band?"] * len(asked),
            "generations": [answers for _, (answers, _) in asked],
            "finish_reasons": pa.array([reasons for _, (_, reasons) in asked], pa.list_(pa.string())),
        }
    )
    table = ClusterBatch(config or EntropyConfig(judge="exact"), READING, None, decided_at)(batch)
    assert table.schema.equals(schema.CLUSTERS)
    return {row["question_id"]: row for row in table.to_pylist()}


def test_ten_times_i_dont_know_is_one_meaning_and_no_answer() -> None:
    found = clustered(
        {
            "idk": [IDK] * 10,
            "silence": [""] * 10,
            "many words": ["Queen"] * 4 + [IDK, "I'm not sure.", "N/A", "No idea", "Unknown", ""],
            "the who": ["The Who"] * 10,
            "one": ["The Who"] * 9 + [IDK],
        }
    )
    assert {name: row["abstains"] for name, row in found.items()} == {
        **{"idk": True, "silence": True, "many words": True},
        **{"the who": False, "one": False},
    }
    assert {name: row["replayable"] for name, row in found.items()} == {name: not row["abstains"] for name, row in found.items()}
    assert [found[name]["abstentions"] for name in found] == [10, 0, 5, 0, 1]
    assert [found[name]["empty_answers"] for name in found] == [0, 10, 1, 0, 0]
    assert (found["idk"]["semantic_entropy"], found["idk"]["cluster_ids"]) == (0, [0] * 10)
    assert found["one"]["declines"] == [False] * 9 + [True]


def test_a_cut_majority_answer_is_counted_and_not_replayed() -> None:
    found = clustered(
        {
            "cut": (["Guns N'"] * 10, ["length"] * 10),
            "once whole": (["Queen"] * 10, ["length"] * 9 + ["stop"]),
            "other cut": (["Queen"] * 9 + ["Guns N'"], ["stop"] * 9 + ["length"]),
            "nothing known of it": ["Queen"] * 10,
        }
    )
    assert [row["cut_answers"] for row in found.values()] == [10, 9, 1, 0]
    assert [row["replayable"] for row in found.values()] == [False, True, True, True]
    assert {row["drawn"] for row in found.values()} == {10}


def test_labels_only_settles_on_where_an_abstention_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ka2l_ray.semantics.judges.exact.ExactJudge.verdicts", lambda _, q, pairs: [ALIKE for _ in pairs])
    answers = [IDK] * 4 + ["I have no opinion"] * 5 + [IDK]  # one meaning, half of it caught by the patterns
    only = EntropyConfig(judge="exact", rule="ka2l", label_only=True)
    assert clustered({"q": answers}, only, 0.5)["q"]["abstains"]
    assert len(clustered({"q": answers}, only, 0.5)["q"]["cluster_ids"]) == 10
    assert len(clustered({"q": answers}, only.model_copy(update={"abstentions": "known"}), 0.5)["q"]["cluster_ids"]) == 9


def test_a_language_model_is_asked_of_what_no_pattern_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def ask(prompts: list[str]) -> list[str]:
        asked.extend(prompts)
        return ["yes" if "beats me" in prompt else "no" for prompt in prompts]

    monkeypatch.setattr("ka2l_ray.actors.judge.make_judge", lambda *_: LLMJudge(ask, "{question} {a} {b}"))
    prompt = "Does '{answer}' decline to answer '{question}'?"
    config = EntropyConfig(judge="llm", llm_model="m", abstention_prompt=prompt)
    found = clustered({"q": ["That beats me"] * 5 + [IDK] * 5, "r": ["Queen"] * 2}, config)
    assert found["q"]["declines"] == [True] * 10
    assert not found["r"]["abstains"]
    put = [text for text in asked if text.startswith("Does")]
    assert put == [f"Does '{answer}' decline to answer 'Which band?'?" for answer in ("That beats me", "Queen")]
