"""Bad input: one clear line, exit code 2, nothing half-written."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from typer.testing import CliRunner

from ka2l_ray import schema
from ka2l_ray.errors import UserError
from ka2l_ray.jobs.checks import hold_config
from ka2l_ray.jobs.commands.cli import app
from ka2l_ray.jobs.demo import check_directory
from ka2l_ray.probes import ProbeCard, make_probe, probe_to_bytes
from ka2l_ray.store.artefacts import RunStore, StageDirectory
from ka2l_ray.store.storage import Storage
from ka2l_ray.world import bundled_path
from tests.ray.conftest import resolved, write_config, write_lines

GOOD = [{"id": f"q{i}", "question": f"Where was person number {i} born?", "answers": ["Cekis"]} for i in range(12)]


def refused(*arguments: str) -> str:
    """The error line of a command that must end with exit code 2."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 2, f"exit code {result.exit_code}: {result.output}"
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.output
    return lines[0]


def run_with(rows: list[dict[str, Any]] | str, small_run: dict[str, Any], tmp_path: Path, **changes: Any) -> str:
    pool = tmp_path / "pool.jsonl"
    if isinstance(rows, str):
        pool.write_text(rows)
    else:
        write_lines(pool, rows)
    small_run["pool"] = {"questions": str(pool), "probing_size": 8}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            small_run.setdefault(section, {})[name] = value
        else:
            small_run[section] = value
    return refused("run", write_config(small_run, tmp_path))


def test_no_such_file(small_run: dict[str, Any], tmp_path: Path) -> None:
    small_run["pool"]["questions"] = str(tmp_path / "absent.jsonl")
    assert "absent.jsonl: no such file" in refused("run", write_config(small_run, tmp_path))
    assert "absent.yaml: no such file" in refused("run", str(tmp_path / "absent.yaml"))


def test_a_malformed_line_is_named_by_file_and_line(small_run: dict[str, Any], tmp_path: Path) -> None:
    text = '{"id": "a", "question": "Who?"}\n{"id": "b", "question": \n'
    assert "pool.jsonl:2: not JSON" in run_with(text, small_run, tmp_path)


def test_a_row_without_question(small_run: dict[str, Any], tmp_path: Path) -> None:
    assert "pool.jsonl:13: the row has no 'question'" in run_with([*GOOD, {"id": "z"}], small_run, tmp_path)


def test_duplicate_ids(small_run: dict[str, Any], tmp_path: Path) -> None:
    line = run_with([*GOOD, {"id": "q3", "question": "What else?"}], small_run, tmp_path)
    assert "pool.jsonl:13: id 'q3'" in line
    assert "unique" in line


def test_an_empty_pool(small_run: dict[str, Any], tmp_path: Path) -> None:
    assert "pool.jsonl: no questions" in run_with("\n", small_run, tmp_path)
    assert not list(Path(small_run["output"]).glob("pool*/*.parquet"))


def test_an_empty_pool_in_the_plan_and_to_the_doctor(small_run: dict[str, Any], tmp_path: Path) -> None:
    small_run["pool"] = {"questions": write_lines(tmp_path / "pool.jsonl", []), "probing_size": 8}
    config = write_config(small_run, tmp_path)
    assert "pool.jsonl: no questions in this file" in refused("run", config, "--dry-run")
    said = CliRunner().invoke(app, ["doctor", config]).output
    assert f"failed  prompt: {tmp_path}/pool.jsonl: no questions in this file" in said


def test_a_budget_beyond_the_pool(small_run: dict[str, Any], tmp_path: Path) -> None:
    line = run_with(GOOD, small_run, tmp_path, selection__budget=13)
    assert "selection.budget is 13" in line
    assert "12 questions" in line


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("changed", "key", "words"),
    [
        ({"answers": None}, None, "0 of 12 questions of {pool} have an answer; add 'answers'"),
        ({"answers": None, "options": ["Cekis", "Dorn"]}, None, "0 of 12 questions of {pool} have an answer; add 'answers'"),
        ({}, [{"id": "p1", "answers": ["x"]}], "0 of 12 questions of {pool} have an answer in {key}; give more of"),
        ({}, [{"id": "q1", "answers": ["x"]}], "selection.budget is 2 labels a round, 1 of 12 questions"),
        ({}, [{"id": "q1", "answers": [3]}], "key.jsonl:1: 'answers' must be a list of strings"),
    ],
)
def test_a_pool_whose_answers_are_not_there_is_refused_before_anything_is_sampled(
    changed: dict[str, Any],
    key: list[dict[str, Any]] | None,
    words: str,
    dry: tuple[str, ...],
    small_run: dict[str, Any],
    tmp_path: Path,
) -> None:
    pool = write_lines(tmp_path / "pool.jsonl", [row | changed for row in GOOD])
    small_run["pool"] = {"questions": pool, "probing_size": 8}
    small_run["selection"]["budget"] = 2
    answers = None if key is None else write_lines(tmp_path / "key.jsonl", key)
    small_run["annotation"] = {"answers": answers}
    line = refused("run", write_config(small_run, tmp_path), *dry)
    assert words.format(pool=pool, key=answers) in line
    assert not (tmp_path / "run" / "rounds").exists()


def test_a_plan_warns_where_some_of_the_pool_has_no_answer(
    small_run: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool = write_lines(tmp_path / "pool.jsonl", [*GOOD, {"id": "bare", "question": "Who?"}])
    small_run["pool"] = {"questions": pool, "probing_size": 8}
    small_run["selection"]["budget"] = 2
    assert CliRunner().invoke(app, ["run", write_config(small_run, tmp_path), "--dry-run"]).exit_code == 0
    assert f"12 of 13 questions of {pool} have an answer; a round that chooses another ends the run" in caplog.text


def test_fewer_than_two_samples(small_run: dict[str, Any], tmp_path: Path) -> None:
    assert "sampling.k" in run_with(GOOD, small_run, tmp_path, sampling__k=1)
    samples = write_lines(tmp_path / "samples.jsonl", [{"id": "a", "question": "Who?", "generations": []}])
    line = refused("entropy", "--samples", samples, "--judge", "exact", "--out", str(tmp_path / "out"))
    assert "samples.jsonl:1: no generations" in line


def test_an_unknown_key_with_the_nearest_named(small_run: dict[str, Any], tmp_path: Path) -> None:
    small_run["probe"]["epoch"] = 3
    assert "unknown key 'probe.epoch' (nearest: 'probe.epochs')" in refused("run", write_config(small_run, tmp_path))


def test_a_model_path_that_is_no_model(small_run: dict[str, Any], tmp_path: Path) -> None:
    assert f"{tmp_path}: no model there" in run_with(GOOD, small_run, tmp_path, model={"path": str(tmp_path)})
    assert not Path(small_run["output"]).exists()


def test_annotating_questions_without_answers(tmp_path: Path) -> None:
    bare = write_lines(tmp_path / "bare.jsonl", [{"id": "a", "question": "Who?"}])
    line = refused("annotate", "--questions", bare, "--out", str(tmp_path / "out"))
    assert "question 'a' has no answers" in line
    assert not (tmp_path / "out").exists()


def test_hidden_states_that_are_not_finite(tmp_path: Path) -> None:
    questions = [f"Question number {i}?" for i in range(60)]
    states = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    states[7, 3] = np.nan
    head = [pa.array([f"q{i}" for i in range(60)]), pa.array(questions), pa.nulls(60, pa.string())]
    column = pa.FixedSizeListArray.from_arrays(states.ravel(), 8)
    table = pa.Table.from_arrays([*head, column], schema=schema.hidden_states(8, [0], pa.float32(), "float32"))
    Storage(str(tmp_path)).write_table("states/part-00000.parquet", table)
    labels = pa.table({"question_id": head[0], "label": pa.array([i % 2 for i in range(60)], pa.int8())})
    Storage(str(tmp_path)).write_table("entropy/part-00000.parquet", labels)
    arguments = ("--hidden-states", str(tmp_path / "states"), "--entropy", str(tmp_path / "entropy"))
    line = refused("probe", *arguments, "--kind", "linear", "--out", str(tmp_path / "out"))
    assert "question 'q7' has a non-finite value in layer 0" in line
    assert not (tmp_path / "out").exists()


def test_a_run_directory_of_another_configuration(small_run: dict[str, Any], tmp_path: Path) -> None:
    begun = resolved(small_run, tmp_path)
    with RunStore(begun.output).locked():
        store = RunStore(begun.output)
        hold_config(begun, store)
        store.compute("baseline/evaluation", {"stage": "evaluate"}, lambda _: {"rows": 1})
    small_run["prompt"] = {"instruction": "Say it."}
    line = refused("run", write_config(small_run, tmp_path))
    assert "prompt.instruction: '' there, 'Say it.' now" in line
    assert "holds for all of its rounds" in line


def test_a_run_of_an_earlier_version(small_run: dict[str, Any], tmp_path: Path) -> None:
    """Its configuration lacks the keys that are new, and its artefacts are not ours to read: it is said, not guessed at."""
    begun = resolved(small_run, tmp_path)
    with RunStore(begun.output).locked():
        store = RunStore(begun.output)
        hold_config(begun, store)
        store.compute("rounds/000/samples", {"stage": "sample"}, lambda _: {"rows": 1})
    run = Path(begun.output)
    document = yaml.safe_load((run / "config.yaml").read_text())
    for key in ("role", "template_arguments", "prefill", "thinking"):
        del document["prompt"][key]
    (run / "config.yaml").write_text(yaml.safe_dump(document))
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["artefacts"]["rounds/000/samples"]["schema_version"] = 3
    (run / "manifest.json").write_text(json.dumps(manifest))
    line = refused("run", write_config(small_run, tmp_path))
    assert f"made by another version of ka2l_ray (schema version 3, this one's is {schema.SCHEMA_VERSION})" in line
    del manifest["artefacts"]["rounds/000/samples"]["seconds"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert "recorded by another version of ka2l_ray" in refused("run", write_config(small_run, tmp_path))
    assert "recorded by another version of ka2l_ray" in refused("status", str(run))


def test_a_directory_that_no_run_made_is_left_alone(small_run: dict[str, Any], tmp_path: Path) -> None:
    theirs = Path(small_run["output"]) / "test" / "notes.txt"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("mine")
    assert "not made by ka2l" in refused("run", write_config(small_run, tmp_path))
    assert theirs.read_text() == "mine"


def test_more_than_any_node_has(small_run: dict[str, Any], tmp_path: Path) -> None:
    small_run["engine"]["cpus"] = 64
    line = refused("run", write_config(small_run, tmp_path))
    assert "engine asks for 64 CPUs" in line
    assert "lower engine.cpus" in line


def test_a_table_without_the_column_that_the_stage_reads(tmp_path: Path) -> None:
    bare = write_lines(
        tmp_path / "bare.jsonl", [{"id": "a", "p_unknown": 0.5, "question": "Who?"}, {"id": "b", "p_unknown": 0.1}]
    )
    assert (
        CliRunner().invoke(app, ["select", "--scores", bare, "--budget", "1", "--out", str(tmp_path / "chosen")]).exit_code == 0
    )
    line = refused("annotate", "--questions", str(tmp_path / "chosen"), "--out", str(tmp_path / "out"))
    assert "question 'a' has no answers" in line
    line = refused("entropy", "--samples", str(tmp_path / "chosen"), "--out", str(tmp_path / "out"))
    assert "has no column 'generations'" in line


def test_a_second_driver_on_the_run(small_run: dict[str, Any], tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom ka2l_ray.store.artefacts import RunStore\n"
        "with RunStore(sys.argv[1]).locked():\n    print(1, flush=True)\n    time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, small_run["output"]], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        line = refused("run", write_config(small_run, tmp_path))
        assert "another driver works on this run" in line
        assert f"process {holder.pid}" in line
    finally:
        holder.kill()
        holder.wait()
    time.sleep(0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("select", "--scores", "{scores}", "--strategy", "best", "--budget", "1"), "no strategy 'best'"),
        (("select", "--scores", "{scores}", "--strategy", "entropy", "--budget", "1"), "needs the column 'next_token_entropy'"),
        (("select", "--scores", "{scores}", "--budget", "5"), "the budget is 5 labels"),
        (("evaluate", "--model", "bundled:student", "--test", "{bare}"), "has no answers"),
        (("sample", "--model", "bundled:student", "--questions", "{scores}.csv"), "no such file"),
        (("sample", "--model", "bundled:student", "--questions", "{bare}", "--adapter", "{folder}"), "no adapter there"),
        (("hidden-states", "--model", "bundled:student", "--questions", "{bare}", "--layers", "9"), "layer 9 does not exist"),
        (("score", "--model", "bundled:student", "--questions", "{bare}"), "give a probe"),
        (
            ("score", "--model", "bundled:student", "--questions", "{bare}", "--probe", "{folder}/wide"),
            "a probe of layer 3 for states of width 8, but bundled:student has 4 layers of width",
        ),
    ],
)
def test_other_wrong_uses(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    places = {
        "scores": write_lines(tmp_path / "scores.jsonl", [{"id": "a", "p_unknown": 0.5}, {"id": "b", "p_unknown": 0.1}]),
        "bare": write_lines(tmp_path / "bare.jsonl", [{"id": "a", "question": "Who?"}]),
        "folder": str(tmp_path),
    }
    foreign = probe_to_bytes(make_probe("linear", 8, 1), ProbeCard("linear", layer=3, dimension=8, hidden_width=1))
    Storage(str(tmp_path)).write_bytes("wide/probe.safetensors", foreign)
    Storage(str(tmp_path)).write_table("wide/layers.parquet", pa.table({"layer": [3]}))
    assert message in refused(*(a.format(**places) for a in arguments), "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_configuration_that_was_refused_may_be_corrected(small_run: dict[str, Any], tmp_path: Path) -> None:
    line = run_with(GOOD, small_run, tmp_path, selection__budget=5000)
    assert "selection.budget is 5000 labels a round" in line
    line = run_with([*GOOD, {"id": "last", "question": ""}], small_run, tmp_path, selection__budget=2)
    assert "pool.jsonl:13: " in line
    assert not (tmp_path / "run" / "pool").exists()


@pytest.mark.parametrize("below", ["", "/run"])
def test_an_output_that_is_a_file(below: str, small_run: dict[str, Any], tmp_path: Path) -> None:
    taken = write_lines(tmp_path / "taken", [])
    small_run["output"] = taken + below
    config = write_config(small_run, tmp_path)
    for dry in ((), ("--dry-run",)):
        assert f"output: {taken} is a file, not a directory; give another output" in refused("run", config, *dry)
    assert f"{taken} is a file, not a directory" in CliRunner().invoke(app, ["doctor", config]).output
    words = "taken: file exists" if not below else "taken/run: not a directory"
    assert f"{words}; give another path" in refused("demo", "--out", small_run["output"])


def test_a_demo_overwrites_nothing_of_others(tmp_path: Path) -> None:
    write_lines(tmp_path / "pool.jsonl", GOOD)
    before = (tmp_path / "pool.jsonl").read_bytes()
    assert f"{tmp_path}: the directory holds no demo, but pool.jsonl; give another --out" in refused(
        "demo", "--out", str(tmp_path)
    )
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]
    begun = {"pool.jsonl": before.decode(), "test.jsonl": "x"}
    check_directory(tmp_path, begun)  # a demo that was killed as it began
    with pytest.raises(UserError, match="holds no demo, but pool"):
        check_directory(tmp_path, {"test.jsonl": "x"})
    (tmp_path / "ka2l.yaml").write_text("")
    check_directory(tmp_path, {})


def test_a_configuration_that_is_no_text_or_empty_or_a_directory(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty.yaml").write_text("")
    for name, words in (("binary.yaml", "not UTF-8"), ("empty.yaml", "the file is empty"), (".", "a directory; give a YAML")):
        for command in ("run", "doctor"):
            assert words in refused(command, str(tmp_path / name))


def test_a_plan_refuses_what_the_run_would(small_run: dict[str, Any], tmp_path: Path) -> None:
    small_run["selection"]["budget"] = 5000
    assert "selection.budget is 5000 labels a round" in refused("run", write_config(small_run, tmp_path), "--dry-run")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("engine.tensor_parallel=3",), "engine.tensor_parallel is 3, which does not divide the 4 attention heads"),
        (("engine.max_model_len=8",), "question 'q0': its prompt has"),
        (("engine.max_model_len=9999",), "engine.max_model_len is 9999, bundled:student takes"),
        (("engine.gpus=1",), "engine asks for 1 GPUs and 1 CPUs (one replica); the cluster has"),
        (("engine.name=vllm", "sampling.k=20000"), "sampling.k is 20000, vLLM takes 16384 a request"),
        (("sampling.stop_when_decided=true", "entropy.rule=two_means"), "needs a threshold that is known beforehand"),
    ],
)
def test_what_the_engine_cannot_do(overrides: tuple[str, ...], words: str, tmp_path: Path) -> None:
    asked = write_lines(tmp_path / "asked.jsonl", GOOD[:1])
    settings = [word for override in overrides for word in ("-o", override)]
    out = tmp_path / "out"
    assert words in refused("sample", "--model", "bundled:student", "--questions", asked, "--out", str(out), *settings)
    assert not out.exists()


def test_vllm_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    asked = write_lines(tmp_path / "asked.jsonl", GOOD[:1])
    line = refused(
        "sample", "--model", "bundled:student", "--questions", asked, "--out", str(tmp_path / "out"), "--engine", "vllm"
    )
    assert "engine.name is vllm, which is not installed; pip install 'ka2l_ray[vllm]'" in line


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
@pytest.mark.parametrize("section", ["entropy", "evaluation"])
@pytest.mark.parametrize(("judge", "key"), [("nli", "nli_model"), ("embedding", "encoder"), ("cross_encoder", "cross_encoder")])
def test_a_judge_whose_model_is_not_there(
    judge: str, key: str, section: str, dry: tuple[str, ...], small_run: dict[str, Any], tmp_path: Path
) -> None:
    small_run.setdefault(section, {}).update({"judge": judge, key: str(tmp_path / "nowhere")})
    line = refused("run", write_config(small_run, tmp_path), *dry)
    assert f"{tmp_path / 'nowhere'}: no " in line
    assert not Path(small_run["output"]).exists()


def test_a_cross_encoder_that_is_none_is_refused_by_its_labels(small_run: dict[str, Any], tmp_path: Path) -> None:
    small_run["evaluation"] |= {"judge": "cross_encoder", "cross_encoder": bundled_path("bundled:judge")}
    assert "an NLI model is the judge nli" in refused("run", write_config(small_run, tmp_path), "--dry-run")


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_judge_for_english_on_questions_that_are_not(dry: tuple[str, ...], small_run: dict[str, Any], tmp_path: Path) -> None:
    asked = ["法国的首都是哪里?", "谁写了《红楼梦》?", "水的化学式是什么?", "地球的卫星叫什么名字?"]
    pool = write_lines(tmp_path / "pool.jsonl", [{"id": f"q{i}", "question": q, "answers": ["x"]} for i, q in enumerate(asked)])
    small_run["pool"] = {"questions": pool, "probing_size": 4}
    small_run["selection"]["budget"] = 2
    line = refused("run", write_config(small_run, tmp_path), *dry)
    assert f"entropy.nli_model: bundled:judge reads English, and the questions of {pool} are in Chinese" in line
    assert "set entropy.judge to exact or llm" in line
    assert not Path(small_run["output"]).exists()
    samples = [{"id": f"q{i}", "question": q, "generations": ["巴黎", "里昂"]} for i, q in enumerate(asked)]
    file = write_lines(tmp_path / "samples.jsonl", samples)
    out = ("--out", str(tmp_path / "out"))
    line = refused("entropy", "--samples", file, *out)
    assert f"entropy.nli_model: microsoft/deberta-large-mnli reads English, and the questions of {file} are in Chinese" in line


def test_an_evaluation_by_another_judge_is_no_before(small_run: dict[str, Any], tmp_path: Path) -> None:
    store = StageDirectory(str(tmp_path / "before"))
    before = store.compute("evaluation", {"stage": "evaluate", "correctness": {"judge": "nli"}}, lambda _: {"rows": 1})
    line = refused(
        *("evaluate", "--model", "bundled:student", "--test", small_run["pool"]["test"], "--before", before.url),
        *("--out", str(tmp_path / "out")),
    )
    assert "evaluated by another judge" in line
    assert "judge.judge: 'nli' there, 'exact' now" in line
