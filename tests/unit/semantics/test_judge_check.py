"""The judge held against a person: what is drawn, what the accuracy is worth, what is refused."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from ka2l_ray.extraction import Extract
from ka2l_ray.jobs.commands.cli import app
from ka2l_ray.reading import Reading
from ka2l_ray.semantics.judge_check import STRATA, AnswerPair, Draw, answer_pairs, check, shares, stratified
from ka2l_ray.store.artefacts import RunStore
from ka2l_ray.uncertainty.calibration import wilson

ANSWERS = ["Paris", "Paris, France", "paris", "Lutetia", "Rome", "Rome, New York", "", "Berlin"]
CLUSTERS = [0, 0, 0, 0, 1, 2, 3, 4]
NONE = [False] * 8


def test_pairs_fall_into_strata_by_verdict_and_letters() -> None:
    found = {(pair.a, pair.b): pair.stratum for pair in answer_pairs("Where?", ANSWERS, CLUSTERS, NONE)}
    assert len(found) == 7 * 6 / 2  # of an answer without a word nothing is asked
    assert found["Paris", "Paris, France"] == "merged"
    assert found["Lutetia", "Paris"] == "merged, borderline"
    assert found["Berlin", "Rome"] == "separated"
    assert found["Rome", "Rome, New York"] == "separated, borderline"
    assert list(answer_pairs("Where?", ["Rome", "Rome ", "Rome"], [0, 0, 0], NONE[:3])) == []
    settled = answer_pairs("Where?", ["Rome", "Bern", "Oslo"], [0, 1], NONE[:2])  # the label was decided by two answers
    assert [(pair.a, pair.b) for pair in settled] == [("Bern", "Rome")]
    assert list(answer_pairs("Where?", ["Rome", "I don't know"], [0, 1], [False, True])) == []


def test_answers_are_read_before_they_are_paired() -> None:
    number = Reading(extract=Extract("last_number"))
    answers = ["3 + 4 = 7", "So it is 7.", "7 apples", "8", "none"]
    found = list(answer_pairs("How many?", answers, [0, 0, 0, 1, 2], [False] * 5, number))
    assert [(pair.a, pair.b, pair.stratum) for pair in found] == [("7", "8", "separated")]


def test_each_stratum_gets_an_equal_part_and_what_a_small_one_cannot_fill_goes_to_the_others() -> None:
    assert shares({"a": 1000, "b": 1000, "c": 1000, "d": 1000}, 100) == {"a": 25, "b": 25, "c": 25, "d": 25}
    assert shares({"a": 3, "b": 1000, "c": 0, "d": 50}, 100) == {"a": 3, "b": 49, "c": 0, "d": 48}
    assert shares({"a": 3, "b": 4}, 100) == {"a": 3, "b": 4}


def pool_of_pairs(n: int = 4000, seed: int = 0) -> list[tuple[AnswerPair, bool]]:
    """Pairs with a person's word: the judge is right on 0.98, 0.6, 0.95, 0.7 of its strata, which hold 5, 5, 80 and 10 %."""
    rng = random.Random(seed)
    found = []
    for i in range(n):
        stratum, right = rng.choices(list(zip(STRATA, (0.98, 0.6, 0.95, 0.7), strict=True)), (0.05, 0.05, 0.8, 0.1))[0]
        pair = AnswerPair("q", f"a{i}", f"b{i}", stratum)
        found.append((pair, pair.merged == (rng.random() < right)))
    return found


def drawn_from(pairs: list[tuple[AnswerPair, bool]], seed: int) -> Draw:
    draw = Draw(100, seed)
    for i, (pair, _) in enumerate(pairs):
        draw.add(f"q{i % 7}", [pair])
    return draw


def test_a_draw_depends_on_its_seed_and_not_on_the_order_of_the_run() -> None:
    pairs = [pair for pair, _ in pool_of_pairs(500)]
    forward, backward, other = Draw(40, 0), Draw(40, 0), Draw(40, 1)
    for draw, order in ((forward, pairs), (backward, pairs[::-1]), (other, pairs)):
        for pair in order:
            draw.add("q", [pair])
    assert forward.drawn() == backward.drawn() != other.drawn()
    assert len(set(forward.drawn())) == 40
    order = [STRATA.index(pair.stratum) for pair in forward.drawn()]
    assert order != sorted(order)  # who labels cannot tell the strata by their place


def test_the_accuracy_of_a_stratified_draw_is_that_of_all_pairs_and_its_interval_holds_it() -> None:
    pairs = pool_of_pairs()
    words = {pair.a: same for pair, same in pairs}
    truth = np.mean([same == pair.merged for pair, same in pairs])
    merges = np.mean([not same for pair, same in pairs if pair.merged])
    splits = np.mean([same for pair, same in pairs if not pair.merged])
    found = []
    for seed in range(60):
        draw = drawn_from(pairs, seed)
        drawn = draw.drawn()
        found.append(check(drawn, draw.population, {i: words[pair.a] for i, pair in enumerate(drawn)}))
    for name, true in (("accuracy", truth), ("false_merges", merges), ("false_splits", splits)):
        values = np.array([getattr(each, name).value for each in found])
        assert abs(values.mean() - true) < 3 * values.std() / 60**0.5, name
    unweighted = np.mean([sum(row["agree"] for row in each.strata.values()) / 100 for each in found])
    assert abs(unweighted - truth) > 0.08  # what the weights are for


@pytest.mark.parametrize("right", [(0.98, 0.6, 0.95, 0.7), (1.0, 0.9, 1.0, 0.5), (0.7, 0.7, 0.7, 0.7)])
def test_ninety_five_of_a_hundred_intervals_hold_the_truth(right: tuple[float, ...]) -> None:
    rng, sizes = np.random.default_rng(0), (200, 200, 3200, 400)
    truth = np.dot(sizes, right) / sum(sizes)
    held = 0
    for _ in range(2000):
        found = stratified([(size, 25, int(rng.binomial(25, p))) for size, p in zip(sizes, right, strict=True)])
        held += found.low <= truth <= found.high
    assert held / 2000 > 0.93


def test_the_interval_of_one_stratum_is_wilsons() -> None:
    low, high = wilson(0.9, 50)
    assert (low, high) == pytest.approx((0.7864, 0.9565), abs=1e-4)  # Newcombe 1998's formula, by hand
    some = stratified([(1000, 50, 45)])
    assert some.value == 0.9
    assert (some.low, some.high) == pytest.approx((low, high))
    assert stratified([(1000, 100, 100)]).low < 1.0


def a_run(root: Path, questions: int = 60, extract: dict[str, str] | None = None) -> str:
    """A run of one round whose judge merges by the first letter."""
    store = RunStore(str(root))
    rng = random.Random(0)
    words = ["Paris", "Paris, France", "Pisa", "Rome", "Rome, New York", "Roma", "Bern", "Berlin", "=1+1", "<script>x</script>"]
    asked = [{"question_id": f"q{i}", "question": f"Where was {i} born?"} for i in range(questions)]
    generations = [rng.choices(words, k=10) for _ in asked]
    ids = [[sorted({t[0] for t in texts}).index(text[0]) for text in texts] for texts in generations]
    samples = [{**row, "generations": texts} for row, texts in zip(asked, generations, strict=True)]
    clusters = [{**row, "cluster_ids": of, "declines": [False] * 10} for row, of in zip(asked, ids, strict=True)]
    tables = {"rounds/000/samples": pa.Table.from_pylist(samples), "rounds/000/entropy": pa.Table.from_pylist(clusters)}
    for name, table in tables.items():

        def build(work: Any, table: pa.Table = table) -> dict[str, Any]:
            work.write_table("part-00000.parquet", table)
            return {"rows": len(table)}

        store.compute(name, {"stage": name, "entropy": {"judge": "exact", "extract": extract}}, build)
    return store.root


def ka2l(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def refused(*arguments: str) -> str:
    result = ka2l(*arguments)
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def a_persons_word(run: str, path: Path) -> dict[str, bool]:
    """Fills in pairs.csv: the same are answers of the same first word."""
    with (Path(run) / "judge_check/pairs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["same"] = "yes" if row["a"].split(",")[0] == row["b"].split(",")[0] else "no"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return {row["id"]: row["same"] == "yes" for row in rows}


def test_a_hundred_pairs_are_drawn_for_a_person_and_the_accuracy_told(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    result = ka2l("judge-check", run)
    assert result.exit_code == 0, result.output
    assert "100 pairs of rounds/000/entropy" in result.output
    with (tmp_path / "run/judge_check/pairs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 100
    assert list(rows[0]) == ["id", "question", "a", "b", "same"]  # who fills them in does not see the verdict
    assert all(row["same"] == "" and row["a"] != row["b"] for row in rows)
    page = (tmp_path / "run/judge_check/page.html").read_text()
    assert page.count("<fieldset>") == 100
    assert "<script>x" not in page
    assert "merged" not in page
    assert "://" not in page

    words = a_persons_word(run, tmp_path / "labels.csv")
    result = ka2l("judge-check", run, "--labels", str(tmp_path / "labels.csv"))
    assert result.exit_code == 0, result.output
    assert "judge exact: 100 of 100 pairs labelled" in result.output
    kept = json.loads((tmp_path / "run/judge_check/result.json").read_text())
    drawn = json.loads((tmp_path / "run/judge_check/drawn.json").read_text())
    right = {name: [] for name in STRATA}
    for pair in drawn["pairs"]:
        right[pair["stratum"]].append(words[pair["id"]] == pair["stratum"].startswith("merged"))
    whole = sum(drawn["population"].values())
    by_hand = sum(drawn["population"].get(name, 0) / whole * np.mean(hits) for name, hits in right.items() if hits)
    assert kept["accuracy"]["value"] == pytest.approx(by_hand)
    assert f"accuracy, on all pairs of different answers of the run: {by_hand:.3f}" in result.output
    assert kept["false_merges"]["value"] > 0.5  # "Paris" and "Pisa"
    assert kept["false_splits"]["value"] == 0
    judged = ka2l("judge-pairs", str(tmp_path / "run/judge_check/judged.jsonl"), "--judge", "contains")
    assert json.loads(judged.stdout)["pairs"] == 100  # any other judge on the same pairs


def test_pairs_of_a_run_are_of_answers_as_it_read_them(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", extract={"how": "regex", "pattern": "^[A-Z]"})
    assert ka2l("judge-check", run).exit_code == 0
    drawn = json.loads((tmp_path / "run/judge_check/drawn.json").read_text())
    assert {text for pair in drawn["pairs"] for text in (pair["a"], pair["b"])} == {"P", "R", "B"}
    assert all(pair["stratum"].startswith("separated") for pair in drawn["pairs"])


def test_the_same_draw_again_leaves_what_is_there_and_another_is_refused(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    assert ka2l("judge-check", run, "--pairs", "10").exit_code == 0
    filled = tmp_path / "run/judge_check/pairs.csv"
    filled.write_text(filled.read_text().replace('","', '", "'))
    before = filled.read_bytes()
    assert ka2l("judge-check", run, "--pairs", "10").exit_code == 0
    assert "holds another draw" in refused("judge-check", run, "--pairs", "11")
    assert "holds another draw" in refused("judge-check", run, "--pairs", "10", "--seed", "1")
    assert filled.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("labels.csv", "id,same\n1,yes\n2,perhaps\n", ":3: 'same' is 'perhaps'; write yes or no"),
        ("labels.csv", "id,same\n1,yes\n1,no\n", ":3: pair '1' stands in"),
        ("labels.csv", "id,same\n1,yes\n999,no\n", ":3: no pair '999' was drawn"),
        ("labels.csv", "id,word\n1,yes\n", ":1: no column 'same'"),
        ("labels.csv", "id,question,same\n1,yes\n", ":2: the row has not as many fields"),
        ("labels.csv", 'id,same\n1,"yes\n', "not a table in CSV"),
        ("labels.csv", "id,same\n1,\n2,\n", ": no pair is labelled"),
        ("labels.csv", "", ":1: no column 'id'"),
        ("labels.jsonl", '{"id": "1", "same": "yes"}\n{"id": "2", "same": \n', ":2: not JSON"),
        ("labels.jsonl", '{"id": "1", "same": 2}\n', ":1: 'same' is '2'"),
        ("labels.txt", "1 yes\n", "unknown format '.txt'"),
    ],
)
def test_a_malformed_file_of_labels_is_one_line_and_writes_nothing(tmp_path: Path, name: str, text: str, told: str) -> None:
    run = a_run(tmp_path / "run", questions=5)
    assert ka2l("judge-check", run, "--pairs", "5").exit_code == 0
    before = sorted((tmp_path / "run/judge_check").iterdir())
    labels = tmp_path / name
    labels.write_text(text)
    line = refused("judge-check", run, "--labels", str(labels))
    assert f"{labels}" in line
    assert told in line
    assert sorted((tmp_path / "run/judge_check").iterdir()) == before


def test_labels_come_as_json_lines_too_and_of_some_pairs_only(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    assert ka2l("judge-check", run).exit_code == 0
    labels = tmp_path / "labels.jsonl"
    labels.write_text('{"id": "1", "same": true}\n{"id": 2, "same": 0}\n{"id": "3", "same": null}\n')
    result = ka2l("judge-check", run, "--labels", str(labels))
    assert result.exit_code == 0, result.output
    assert "2 of 100 pairs labelled" in result.output
    assert "no pair is labelled of these kinds" in result.output


def test_what_cannot_be_drawn_or_checked_is_refused(tmp_path: Path) -> None:
    assert "no run there" in refused("judge-check", str(tmp_path / "absent"))
    run = a_run(tmp_path / "run", questions=5)
    assert "no pairs were drawn" in refused("judge-check", run, "--labels", str(tmp_path / "labels.csv"))
    assert ka2l("judge-check", run, "--pairs", "5").exit_code == 0
    assert "labels.csv: no such file" in refused("judge-check", run, "--labels", str(tmp_path / "labels.csv"))
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    manifest["artefacts"]["rounds/000/entropy"]["key"] = "another"
    (tmp_path / "run/manifest.json").write_text(json.dumps(manifest))
    assert "were drawn from rounds/000/entropy as it was" in refused("judge-check", run, "--labels", "labels.csv")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[:-40], "damaged (Invalid JSON"),
        (lambda text: "[]", "damaged (Input should be"),
        (lambda text: text.replace('"stratum"', '"kind"'), "damaged (pairs.0.stratum: Field required)"),
        (lambda text: text.replace('"stratum": "', '"stratum": "x'), "damaged (pairs.0.stratum: Input should be 'merged'"),
        (lambda text: text.replace('"population": {', '"population": {"x": "x", '), "damaged (population.x: "),
    ],
)
def test_a_damaged_draw_is_one_line(damage: Callable[[str], str], words: str, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", questions=8)
    assert ka2l("judge-check", run).exit_code == 0
    a_persons_word(run, tmp_path / "labels.csv")
    drawn = tmp_path / "run/judge_check/drawn.json"
    drawn.write_text(damage(drawn.read_text()))
    for arguments in ((), ("--labels", str(tmp_path / "labels.csv"))):
        line = refused("judge-check", run, *arguments)
        assert f"drawn.json: {words}" in line


def test_samples_that_are_damaged_or_not_those_that_were_clustered_are_one_line(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", questions=8)
    samples = tmp_path / "run/rounds/000/samples/part-00000.parquet"
    whole = samples.read_bytes()
    samples.write_bytes(whole[:-30])
    assert "part-00000.parquet: not a whole Parquet file" in refused("judge-check", run)
    table = pq.read_table(io.BytesIO(whole))
    pq.write_table(table.slice(1), samples)
    assert "question 'q0' has not the answers that" in refused("judge-check", run)
    few = pa.array([texts[:3] for texts in table["generations"].to_pylist()])
    pq.write_table(table.set_column(table.column_names.index("generations"), "generations", few), samples)
    assert "question 'q0' has not the answers that" in refused("judge-check", run)


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ("{", "manifest.json: damaged (Expecting"),
        ("[]", "manifest.json: damaged (not a JSON object)"),
        ("{}", "manifest.json: damaged (no artefacts in it)"),
        ('{"artefacts": {"pool": 3}}', "manifest.json: damaged (no artefacts in it)"),
        ('{"artefacts": {"pool": {"name": "pool"}}}', "recorded by another version of ka2l_ray"),
        (None, "manifest.json: damaged (facts: Input should be"),
    ],
)
def test_a_damaged_manifest_is_one_line(manifest: str | None, words: str, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", questions=8)
    path = tmp_path / "run/manifest.json"
    if manifest is None:
        document = json.loads(path.read_text())
        document["artefacts"]["rounds/000/samples"]["facts"] = 3
        manifest = json.dumps(document)
    path.write_text(manifest)
    for command in ("status", "report", "judge-check"):
        assert words in refused(command, run)


def test_a_judge_is_held_against_a_file_of_judged_pairs(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    rows = [
        '{"id": "1", "question": null, "a": "Bern", "b": "bern.", "label": 1}',
        '{"id": "2", "a": "x y", "b": "y", "label": 0}',
    ]
    pairs.write_text("\n".join(rows) + "\n")
    result = ka2l("judge-pairs", str(pairs), "--judge", "exact")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["judge"], found["pairs"], found["accuracy"], found["f1"]) == ("exact", 2, 1.0, 1.0)
    assert json.loads(ka2l("judge-pairs", str(pairs), "--judge", "contains").stdout)["accuracy"] == 0.5
    bundled = ka2l("judge-pairs", str(pairs), "--judge", "nli", "-o", "entropy.nli_model=bundled:judge")
    assert json.loads(bundled.stdout)["judge"] == "nli"
    pairs.write_text('{"id": "1", "a": "Bern", "label": 1}\n')
    assert f"{pairs}:1: a pair has the texts 'a' and 'b'" in refused("judge-pairs", str(pairs), "--judge", "exact")
    assert "no such file" in refused("judge-pairs", str(tmp_path / "absent.jsonl"), "--judge", "exact")
    assert "judge" in refused("judge-pairs", str(pairs), "--judge", "oracle")
    pairs.write_text(rows[0] + "\n")
    number = '{"id": "1", "a": "3 + 4 = 7", "b": "7 apples", "label": 1}\n{"id": "2", "a": "7 of 8", "b": "7", "label": 0}\n'
    pairs.write_text(number)
    assert json.loads(ka2l("judge-pairs", str(pairs), "--judge", "exact").stdout)["accuracy"] == 0.5
    read = ka2l("judge-pairs", str(pairs), "--judge", "exact", "-o", "evaluation.extract=last_number")
    assert json.loads(read.stdout)["accuracy"] == 1.0
    for question in (["x"], 5, True):
        pairs.write_text(json.dumps({"id": "1", "question": question, "a": "x", "b": "y", "label": 0}) + "\n")
        assert f"{pairs}:1: 'question' must be a text, or null" in refused("judge-pairs", str(pairs), "--judge", "exact")
    pairs.write_text(rows[0] + "\n")
    absent = refused("judge-pairs", str(pairs), "--judge", "nli", "-o", f"entropy.nli_model={tmp_path}/absent")
    assert "no NLI model there" in absent
