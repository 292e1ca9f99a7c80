"""The ledger: sums over what the run itself committed."""

from __future__ import annotations

import json
from pathlib import Path

from ka2l_ray.ledger import Ledger
from ka2l_ray.store.artefacts import RunStore
from ka2l_ray.store.storage import Storage


def spend(store: RunStore, name: str, facts: dict[str, int]) -> None:
    def build(work: Storage) -> dict[str, int]:
        work.write_bytes("x", b"")
        return facts

    store.compute(name, {"name": name}, build)


def test_totals_are_over_all_rounds_and_leave_out_what_was_taken_over(tmp_path: Path) -> None:
    lender = RunStore(str(tmp_path / "a"))
    spend(lender, "rounds/000/samples", {"rows": 9, "generated_tokens": 900})
    store = RunStore(str(tmp_path / "b"), reuse=(str(tmp_path / "a"),))
    spend(store, "rounds/000/samples", {})
    spend(store, "rounds/000/entropy", {"rows": 5, "judge_calls": 40})
    spend(store, "rounds/000/annotations", {"rows": 5, "labels": 3})
    spend(store, "rounds/001/samples", {"rows": 5, "prompt_tokens": 50, "generated_tokens": 25})
    spend(store, "rounds/001/annotations", {"rows": 4, "labels": 4})
    ledger = Ledger(store)
    totals = ledger.totals()
    assert {name: totals[name] for name in ("tokens", "judge_calls", "labels")} == {"tokens": 75, "judge_calls": 40, "labels": 7}
    assert [s.reused for s in ledger.spendings()] == [True, False, False, False, False]
    assert set(ledger.seconds_by_stage()) == {"entropy", "annotations", "samples"}
    ledger.round_done(1, labels=7)
    line = json.loads((tmp_path / "b/metrics.jsonl").read_text().splitlines()[-1])
    assert (line["name"], line["value"], line["round"], line["labels"]) == ("ledger", totals, 1, 7)


def test_an_evaluation_on_a_named_test_set_is_an_evaluation(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path))
    for name in ("test/own", "baseline/evaluation/own", "rounds/001/evaluation/samples"):
        spend(store, name, {})
    assert set(Ledger(store).seconds_by_stage()) == {"test", "evaluation"}
