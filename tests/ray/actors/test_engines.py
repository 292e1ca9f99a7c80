"""Replicas and their places: what fails is set apart, what is held is given back."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
import ray
import torch
from ray.exceptions import RayActorError
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from transformers import AutoModelForCausalLM, AutoTokenizer

from ka2l_ray.actors import replicas as replicas_module
from ka2l_ray.actors.engines import Engines
from ka2l_ray.actors.feeding import EnginesDieError, Feed
from ka2l_ray.actors.language_model import Done, LanguageModelActor, Model
from ka2l_ray.actors.shards import Shard, shard_of
from ka2l_ray.actors.vllm_engine import EngineCrashed
from ka2l_ray.config import EngineConfig, ModelConfig, PromptConfig, SamplingConfig
from ka2l_ray.errors import UserError
from ka2l_ray.jobs.commands.inputs import Inputs
from ka2l_ray.jobs.stages.hidden_states import hidden_states
from ka2l_ray.models.language_model import LanguageModel
from ka2l_ray.store.artefacts import Artefact, StageDirectory
from ka2l_ray.store.storage import Storage
from ka2l_ray.world import bundled_path
from tests.ray.commands import ka2l
from tests.ray.conftest import write_lines
from tests.ray.sampling import sampled

SAMPLING = SamplingConfig(k=2, max_tokens=8)
REFUSES = "{% if 'MACHINE' in messages[0].content %}{{ raise_exception('no machines here') }}{% endif %}"


@pytest.fixture(scope="module")
def refusing_student(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The student with a chat template that raises on a word: a question that can never be asked."""
    folder = str(tmp_path_factory.mktemp("refusing"))
    AutoModelForCausalLM.from_pretrained(bundled_path("bundled:student")).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(bundled_path("bundled:student"))
    tokenizer.chat_template = REFUSES + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    return Model(ModelConfig(path=folder), PromptConfig(instruction=""))


@pytest.fixture
def asked(world_files: dict[str, str], tmp_path: Path) -> Artefact:
    """Forty questions, the 18th of which cannot be asked."""
    rows = [json.loads(line) for line in Path(world_files["pool"]).read_text().splitlines()[:40]]
    rows[17]["question"] = "Where is the MACHINE?"
    return Inputs(str(tmp_path / "inputs")).questions(write_lines(tmp_path / "asked.jsonl", rows))


@pytest.fixture
def engines() -> Iterator[Engines]:
    made: list[Engines] = []

    def make(**keys: Any) -> Engines:
        made.append(Engines(EngineConfig.model_validate({"shard_size": 16, **keys})))
        return made[-1]

    yield make  # type: ignore[misc]
    for each in made:
        each.release()


def test_a_question_that_always_raises_is_set_apart_with_its_error(
    asked: Artefact, refusing_student: Model, engines: Any, tmp_path: Path
) -> None:
    pool = engines(max_error_rate=0.05)
    done = sampled(tmp_path / "samples", asked, SAMPLING, pool, refusing_student)
    table = done.storage.read_table("").sort_by("question_id")
    failed = [row for row in table.to_pylist() if row["error"] is not None]
    assert len(table) == len(set(table["question_id"].to_pylist())) == 40
    assert [row["question"] for row in failed] == ["Where is the MACHINE?"]
    assert "no machines here" in failed[0]["error"]
    assert failed[0]["generations"] is None
    assert done.facts["errors"] == 1
    assert all(len(row["generations"]) == 2 for row in table.to_pylist() if row["error"] is None)
    states = hidden_states(
        StageDirectory(str(tmp_path / "states")),
        "states",
        questions=asked,
        model=refusing_student,
        layers=[4],
        engine=pool.config,
        engines=pool,
    )
    errors = states.storage.read_table("", columns=["error"])["error"]
    assert len(errors) - errors.null_count == 1
    answered = hidden_states(
        StageDirectory(str(tmp_path / "answered")),
        "states",
        questions=done,
        model=refusing_student,
        layers=[4],
        engine=pool.config,
        engines=pool,
        position="answer_token",
    )
    assert answered.facts["rows"] == 39
    row = next(row for row in done.storage.read_table("").to_pylist() if row["error"] is None)
    student = LanguageModel(refusing_student.base, device="cpu")
    prompt = student.tokenizer.encode(row["prompt"], add_special_tokens=False)
    whole = torch.tensor([[*prompt, *row["greedy_token_ids"]]])
    expected = student.model(input_ids=whole, output_hidden_states=True).hidden_states[4][0, -2]
    found = {r["question_id"]: r["layer_4"] for r in answered.storage.read_table("").to_pylist()}
    torch.testing.assert_close(torch.tensor(found[row["question_id"]]), expected.detach(), atol=1e-4, rtol=1e-4)


class Crashing(LanguageModelActor.__ray_metadata__.modified_class):  # type: ignore[misc, name-defined]
    """A replica whose engine ends with an exception on some questions."""

    def run(self, method: str, out: str, file: str, questions: pa.Table, *further: Any) -> Done:
        if any(word in question for word in ("MACHINE", "CRASH") for question in questions["question"].to_pylist()):
            raise EngineCrashed(f"vLLM's engine process died of RuntimeError: no offset at 0x{id(questions):x}")
        done: Done = super().run(method, out, file, questions, *further)
        return done


@pytest.fixture
def crashing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas_module, "LanguageModelActor", ray.remote(Crashing))


@pytest.mark.check
@pytest.mark.usefixtures("crashing")
def test_a_question_that_crashes_engines_is_set_apart(asked: Artefact, engines: Any, tmp_path: Path) -> None:
    pool = engines(max_error_rate=0.05, shard_size=4, max_attempts=2)
    done = sampled(tmp_path / "samples", asked, SAMPLING, pool)
    failed = [row for row in done.storage.read_table("").to_pylist() if row["error"] is not None]
    assert [row["question"] for row in failed] == ["Where is the MACHINE?"]
    assert "no offset" in failed[0]["error"]


@pytest.mark.usefixtures("crashing")
def test_engines_that_crash_alike_on_different_shards_end_the_stage(
    world_files: dict[str, str], engines: Any, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in Path(world_files["pool"]).read_text().splitlines()[:40]]
    for row in rows[::7]:
        row["question"] = f"CRASH {row['question']}"
    asked = Inputs(str(tmp_path / "inputs")).questions(write_lines(tmp_path / "asked.jsonl", rows))
    pool = engines(max_error_rate=1)
    with pytest.raises(EnginesDieError, match=r"sample: engines die of one cause on different shards.*RuntimeError: no offset"):
        sampled(tmp_path / "samples", asked, SAMPLING, pool)


def test_too_many_errors_stop_the_stage(asked: Artefact, refusing_student: Model, engines: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1 of 40 questions failed, engine.max_error_rate allows 0.01; .*no machines here"):
        sampled(tmp_path / "samples", asked, SAMPLING, engines(), refusing_student)
    assert not (tmp_path / "samples").exists()


def test_after_two_stages_nothing_is_held(asked: Artefact, refusing_student: Model, engines: Any, tmp_path: Path) -> None:
    pool = engines(max_error_rate=0.05, replicas=2)
    sampled(tmp_path / "one", asked, SAMPLING, pool, refusing_student)
    actors = [replica.actor for replica in pool.members]
    groups = {replica.group.id.hex() for replica in pool.members}
    sampled(tmp_path / "two", asked, SAMPLING, pool, refusing_student)
    assert [replica.actor for replica in pool.members] == actors, "the second stage has the engines of the first"
    pool.release()
    states = {group: entry["state"] for group, entry in placement_group_table().items()}
    assert all(states[group] == "REMOVED" for group in groups)
    for actor in actors:
        with pytest.raises(RayActorError):
            _call_until_it_is_gone(actor)


def _call_until_it_is_gone(actor: Any) -> None:
    for _ in range(600):  # its end is on the way
        ray.get(actor.close.remote())
        time.sleep(0.1)


def test_a_busy_cluster_is_waited_for_and_then_named(asked: Artefact, engines: Any, tmp_path: Path) -> None:
    cpus = ray.cluster_resources()["CPU"]
    holder = placement_group([{"CPU": cpus}])
    ray.get(holder.ready())
    pool = engines(placement_timeout=2, replicas=2, max_error_rate=1)
    try:
        with pytest.raises(UserError, match=r"engine asks for 2 CPUs \(2 replicas of .*\); after 2 s no replica has a place"):
            sampled(tmp_path / "samples", asked, SAMPLING, pool)
    finally:
        remove_placement_group(holder)
    assert not pool.members
    assert sampled(tmp_path / "samples", asked, SAMPLING, pool).facts["rows"] == 40


def test_work_begins_with_the_replicas_that_have_a_place(asked: Artefact, engines: Any, tmp_path: Path) -> None:
    pool = engines(replicas=int(ray.cluster_resources()["CPU"]) + 2, max_error_rate=1)
    assert sampled(tmp_path / "samples", asked, SAMPLING, pool).facts["rows"] == 40
    assert 0 < len(pool.members) < pool.config.replicas, "what has no place is not held on to between stages"


def test_a_damaged_adapter_and_one_for_another_model_are_refused(world_files: dict[str, str], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(bundled_path("bundled:student"))
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "damaged")
    weights = tmp_path / "damaged" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    foreign = tmp_path / "foreign"
    base = AutoModelForCausalLM.from_pretrained(bundled_path("bundled:student"))
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(foreign)
    settings = json.loads((foreign / "adapter_config.json").read_text())
    (foreign / "adapter_config.json").write_text(json.dumps({**settings, "target_modules": ["query_key_value"]}))
    for adapter in (tmp_path / "damaged", foreign):
        arguments = ("--questions", world_files["pool"], "--adapter", str(adapter), "--out", str(tmp_path / "out"))
        done = ka2l("sample", "--model", "bundled:student", *arguments)
        assert done.returncode == 2, done.stderr
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert f"{adapter}: this adapter does not load onto bundled:student" in lines[0]
        assert not (tmp_path / "out").exists()


def test_what_an_engine_died_of_counts_until_its_shard_has_gone_through(tmp_path: Path, engines: Any) -> None:
    """Two deaths in a long stage that have nothing to do with each other do not end it."""
    student = Model(ModelConfig(path="bundled:student"), PromptConfig())
    feed = Feed(engines(), student, "sample", Storage(str(tmp_path)), pa.table({}), (), [], of=100)
    feed._crashed(Shard(0, 8), "OutOfMemoryError: tried to allocate 20 MiB")
    feed._went_through(Shard(0, 8, attempts=1))
    feed._crashed(Shard(48, 56), "OutOfMemoryError: tried to allocate 64 MiB")
    feed._went_through(Shard(48, 52, attempts=1, origin=48))  # the half of it that was not at fault
    with pytest.raises(EnginesDieError, match="one cause on different shards"):
        feed._crashed(Shard(80, 88), "OutOfMemoryError: tried to allocate 8 MiB")


def test_an_engine_that_hangs_is_ended_and_its_shard_done_by_another(
    asked: Artefact, engines: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    many = SamplingConfig(k=40, max_tokens=8)
    pool = engines(shard_size=2, max_error_rate=1, deadline_least=3, deadline_factor=3)
    plain = sampled(tmp_path / "plain", asked, many, pool)
    stopped = _pid(pool.members[0].actor)

    def stop_amid_the_work() -> None:
        while len(list(tmp_path.glob("again.partial-*/part-*.parquet"))) < 3:
            time.sleep(0.002)
        os.kill(stopped, signal.SIGSTOP)

    threading.Thread(target=stop_amid_the_work, daemon=True).start()
    again = sampled(tmp_path / "again", asked, many, pool)
    assert "taken for hung" in caplog.text
    assert _pid(pool.members[0].actor) != stopped
    assert again.storage.read_table("").sort_by("question_id") == plain.storage.read_table("").sort_by("question_id")
    assert not psutil.pid_exists(stopped) or psutil.Process(stopped).status() == psutil.STATUS_ZOMBIE


def _pid(actor: Any) -> int:
    pid: int = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))
    return pid


def test_a_listing_that_lags_is_waited_for(
    asked: Artefact, engines: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network filesystem may show a directory as it was some seconds ago."""
    names, begun = Storage.names, time.monotonic()

    def lagging(self: Storage, name: str = "") -> list[str]:
        fresh = names(self, name)
        hidden = time.time() - 4
        return [n for n in fresh if shard_of(n) is None or Path(self.path(n)).stat().st_mtime < hidden]

    monkeypatch.setattr(Storage, "names", lagging)
    assert sampled(tmp_path / "samples", asked, SAMPLING, engines(max_error_rate=1)).facts["rows"] == 40
    assert time.monotonic() - begun > 3


def test_questions_too_long_for_the_engine_are_rows_with_an_error(asked: Artefact, engines: Any, tmp_path: Path) -> None:
    """They end a stage only where they are too many, and a larger limit does them without the others."""
    rows = [{"id": row["question_id"], "question": row["question"]} for row in asked.storage.read_table("").to_pylist()]
    rows[37]["question"] = "where was " + "Fra " * 25 + "born"
    long = Inputs(str(tmp_path / "long_inputs")).questions(write_lines(tmp_path / "long.jsonl", rows))
    pool = engines(max_model_len=48, shard_size=8)
    with pytest.raises(UserError, match=r"1 of 40 questions failed.*its prompt has \d+ tokens.*raise engine.max_model_len"):
        sampled(tmp_path / "samples", long, SAMPLING, pool)
    (partial,) = tmp_path.glob("samples.partial-*")
    before = {file.name: file.stat().st_mtime_ns for file in partial.glob("part-*.parquet")}
    assert before
    wider = engines(max_model_len=128, shard_size=8)
    done = sampled(tmp_path / "samples", long, SAMPLING, wider)
    assert done.facts.get("errors", 0) == 0
    kept = {
        file.name for file in (tmp_path / "samples").glob("part-*.parquet") if before.get(file.name) == file.stat().st_mtime_ns
    }
    assert len(kept) == len(before) - 1, "the shard with the long question was done again, and no other"
    tolerant = engines(max_model_len=48, shard_size=8, max_error_rate=0.05)
    table = sampled(tmp_path / "tolerant", long, SAMPLING, tolerant).storage.read_table("")
    failed = [row for row in table.to_pylist() if row["error"] is not None]
    assert [row["question_id"] for row in failed] == [rows[37]["id"]]
    assert len(table) == 40
