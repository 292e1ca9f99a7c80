"""Judges of equivalence: the bundled one against the world's truth, label order, strict and lenient from the definition."""

from __future__ import annotations

import copy
import json
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer, BertConfig, BertModel, DebertaV2Config, DebertaV2ForSequenceClassification

from ka2l_ray.config import EntropyConfig
from ka2l_ray.errors import UserError
from ka2l_ray.models.language_model import LanguageModel
from ka2l_ray.semantics.cache import CachedJudge, claim, merge
from ka2l_ray.semantics.clustering import Verdict, cluster_answers
from ka2l_ray.semantics.deberta import precompute_positions
from ka2l_ray.semantics.encoder import SentenceEncoder
from ka2l_ray.semantics.judges import make_judge, verdict_identity
from ka2l_ray.semantics.judges.contains import ContainsJudge
from ka2l_ray.semantics.judges.exact import ExactJudge
from ka2l_ray.semantics.judges.llm import LLMJudge, endpoint
from ka2l_ray.semantics.judges.nli import NLI_MODEL, NLIJudge, label_verdicts
from ka2l_ray.semantics.texts import load_encoder_config
from ka2l_ray.world import bundled_path
from ka2l_ray.world.facts import World
from ka2l_ray.world.train_judge import Example, PairSource

QUESTION = "What is the occupation of Quegrerk?"
LABELS = {"contradiction": 0, "neutral": 1, "entailment": 2}


def held_out_pairs(world: World, n: int, seed: int) -> list[Example]:
    source = PairSource(world, random.Random(seed), held_out=True)
    return [source.draw() for _ in range(n)]


def relabelled(names: list[str], rows: list[int], directory: Path) -> str:
    """The bundled judge with its classifier's rows in another order, under the names given."""
    path = bundled_path("bundled:judge")
    model = DebertaV2ForSequenceClassification.from_pretrained(path, dtype=torch.float32)
    model.classifier.weight = nn.Parameter(model.classifier.weight[rows])
    model.classifier.bias = nn.Parameter(model.classifier.bias[rows])
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: i for i, name in enumerate(names)}
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(path).save_pretrained(directory)
    return str(directory)


def test_bundled_judge_agrees_with_the_world_on_held_out_pairs(judge: NLIJudge, world: World) -> None:
    pairs = held_out_pairs(world, 1500, seed=1)
    verdicts = judge.entailments([(p.premise, p.hypothesis) for p in pairs])
    right = sum(verdict.label == LABELS[pair.label] for verdict, pair in zip(verdicts, pairs, strict=True)) / len(pairs)
    assert right >= 0.98


def test_bundled_judge_on_a_few_answers(judge: NLIJudge) -> None:
    pairs = [("physician", "medical doctor"), ("physician", "lawyer"), ("physician", "a job"), ("a job", "physician")]
    assert [v.label for v in judge.verdicts([QUESTION] * 4, pairs)] == [2, 0, 2, 1]


def test_equivalence_holds_in_both_orders(judge: NLIJudge, world: World) -> None:
    forms = [form for value in world.values["occupation"][:6] for form in value.forms]
    pairs = [(a, b) for a, b in product(forms, forms) if a != b]
    entails = dict(zip(pairs, (v.label == 2 for v in judge.verdicts([QUESTION] * len(pairs), pairs)), strict=True))
    same = [any({a, b} == set(value.forms) for value in world.values["occupation"]) for a, b in pairs]
    both = [entails[a, b] and entails[b, a] for a, b in pairs]
    assert sum(x == y for x, y in zip(both, same, strict=True)) / len(pairs) > 0.95


def test_bundled_judge_clusters_by_meaning(judge: NLIJudge) -> None:
    answers = ["physician", "medical doctor", "lawyer", "attorney", "physician", "baker"]
    (result,) = cluster_answers([QUESTION], [answers], judge)
    assert result.cluster_ids == [0, 0, 1, 1, 0, 2]
    assert result.counts.judge_calls < result.counts.reference_calls


def test_a_verdict_does_not_depend_on_its_batch(judge: NLIJudge, world: World) -> None:
    """Each pair put to the model by hand, alone, as a proper sentence pair."""
    pairs = held_out_pairs(world, 60, seed=3)
    alone = []
    for pair in pairs:
        encoded = judge.texts.tokenizer(pair.premise, pair.hypothesis, return_tensors="pt")
        assert encoded["input_ids"][0].tolist().count(judge.texts.tokenizer.sep_token_id) == 2
        with torch.inference_mode():
            alone.append(LABELS[judge.model.config.id2label[int(judge.model(**encoded.to(judge.device)).logits.argmax())]])
    assert set(alone) == {0, 1, 2}
    assert [v.label for v in judge.entailments([(p.premise, p.hypothesis) for p in pairs])] == alone


def test_label_order_is_read_from_the_model(world: World, tmp_path: Path) -> None:
    # The bundled judge's rows are contradiction, neutral, entailment.
    a = NLIJudge(relabelled(["entailment", "contradiction", "neutral"], [2, 0, 1], tmp_path / "a"))
    b = NLIJudge(relabelled(["NEUTRAL", "ENTAILMENT", "CONTRADICTION"], [1, 2, 0], tmp_path / "b"))
    pairs = held_out_pairs(world, 120, seed=5)
    texts = [(p.premise, p.hypothesis) for p in pairs]
    verdicts = a.entailments(texts)
    assert {v.label for v in verdicts} == {0, 1, 2}
    assert b.entailments(texts) == verdicts
    assert sum(v.label == LABELS[p.label] for v, p in zip(verdicts, pairs, strict=True)) > 110


def test_labels_without_names_are_refused(tmp_path: Path) -> None:
    path = relabelled(["LABEL_0", "LABEL_1", "LABEL_2"], [0, 1, 2], tmp_path)
    with pytest.raises(UserError, match=r"LABEL_0.*needs entailment, neutral, contradiction"):
        NLIJudge(path)


def test_two_labels_are_too_few(tmp_path: Path) -> None:
    path = relabelled(["entailment", "not_entailment"], [2, 0], tmp_path)
    with pytest.raises(UserError, match="not_entailment"):
        label_verdicts(load_encoder_config(path, NLI_MODEL), path)


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no NLI model there"):
        NLIJudge(str(tmp_path))
    with pytest.raises(UserError, match="no NLI model there"):
        NLIJudge(str(tmp_path / "nowhere"))


def test_exact_judge_compares_after_squad_normalisation() -> None:
    pairs = [("The Eiffel Tower!", "eiffel  tower"), ("U.S.A.", "USA"), ("physician", "medical doctor"), ("1931", "1932")]
    assert [v.label for v in ExactJudge().verdicts(["q?"] * 4, pairs)] == [2, 2, 0, 0]


@pytest.mark.parametrize(
    ("text", "part", "label"),
    [
        ("John Locke's ideas", "John Locke", 2),
        ("John Locke\u2019s", "John Locke", 2),
        ("electricity/power", "electricity", 2),
        ("80 km/h", "h", 0),
        ("1/2", "2", 0),
        ("John Lockesmith", "John Locke", 0),
        ("John Locke", "John Locke's ideas", 0),
        ("It is not Paris", "Paris", 2),  # negation is not read
    ],
)
def test_a_text_holds_an_answer_behind_possessives_and_slashes(text: str, part: str, label: int) -> None:
    assert ContainsJudge(directed=True).verdicts(["q?"], [(text, part)]) == [Verdict(label)]


def test_both_answers_reach_the_model_however_long_the_question(judge: NLIJudge, world: World) -> None:
    passage = " ".join(fact.question(fact.test_phrasing) for fact in world.facts[:60])
    seen = []
    hook = judge.model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True)
    try:
        (verdict,) = judge.verdicts([f"{passage} {QUESTION}"], [("physician", "lawyer")])
    finally:
        hook.remove()
    text = judge.texts.tokenizer.decode(seen[0][0])
    assert "physician" in text
    assert "lawyer" in text
    assert verdict.truncated
    assert not judge.verdicts([QUESTION], [("physician", "lawyer")])[0].truncated


def test_batches_hold_a_token_budget_and_little_padding(judge: NLIJudge, world: World) -> None:
    pairs = [(f.question(0), " ".join(g.question(0) for g in world.facts[:n])) for n, f in enumerate(world.facts[:40], 1)]
    judge.real_tokens = judge.padded_tokens = 0
    whole = judge.entailments(pairs)
    assert judge.real_tokens <= judge.padded_tokens <= 1.5 * judge.real_tokens
    small = NLIJudge(bundled_path("bundled:judge"), batch_tokens=512)
    sizes: list[tuple[int, int]] = []
    small.model.register_forward_pre_hook(lambda _, args, kwargs: sizes.append(kwargs["input_ids"].shape), with_kwargs=True)
    assert small.entailments(pairs) == whole
    assert all(rows == 1 or rows * tokens <= 512 for rows, tokens in sizes)


def test_logits_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    path = relabelled(["contradiction", "neutral", "entailment"], [0, 1, 2], tmp_path)
    broken = NLIJudge(path)
    broken.model.classifier.bias.data[1] = float("nan")
    with pytest.raises(UserError, match=r"logits that are not finite, first near premise 'q\? a'; its weights are damaged"):
        broken.verdicts(["q?"], [("a", "b")])


def test_an_overflow_in_half_precision_is_computed_again_in_single(tmp_path: Path) -> None:
    path = relabelled(["contradiction", "neutral", "entailment"], [0, 1, 2], tmp_path)
    judge = NLIJudge(path)
    pairs = [("physician", "medical doctor"), ("physician", "lawyer")]
    expected = judge.verdicts([QUESTION] * 2, pairs)
    half = NLIJudge(path)
    half.model.classifier.weight.data *= 1e4  # beyond float16 in the logits, not in single precision
    half.model.half()
    assert half.verdicts([QUESTION] * 2, pairs) == expected
    assert half.model.dtype == torch.float32


DEBERTAS = {
    "v3": {"share_att_key": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "pos_att_type": ["p2c", "c2p"]},
    "v2, own keys": {"share_att_key": False, "position_buckets": -1, "pos_att_type": ["p2c", "c2p"]},
    "content to position": {"share_att_key": False, "position_buckets": 16, "pos_att_type": ["c2p"]},
    "position to content, convolution": {"share_att_key": True, "pos_att_type": ["p2c"], "conv_kernel_size": 3},
}


@pytest.mark.parametrize("kind", DEBERTAS)
def test_position_projections_computed_once_change_nothing(kind: str) -> None:
    torch.manual_seed(0)
    config = DebertaV2Config(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        relative_attention=True,
        position_biased_input=False,
        max_position_embeddings=64,
        type_vocab_size=0,
        num_labels=3,
        **DEBERTAS[kind],
    )
    model = DebertaV2ForSequenceClassification(config).eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.2)
    changed = copy.deepcopy(model)
    assert precompute_positions(changed) == 2
    spoilt = copy.deepcopy(changed)
    for name, buffer in spoilt.named_buffers():
        if name.endswith("_HSD"):
            buffer.neg_()
    for rows, tokens in ((1, 2), (3, 20), (2, 60)):
        ids = torch.randint(3, 100, (rows, tokens))
        mask = torch.ones_like(ids)
        mask[-1, tokens // 2 + 1 :] = 0
        with torch.inference_mode():
            expected, found, other = (m(input_ids=ids, attention_mask=mask).logits for m in (model, changed, spoilt))
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
        assert (other - expected).abs().max() > 1e-4, "the projections are what the model goes by"


@pytest.mark.parametrize(
    ("words", "verdict"),
    [
        ("Yes.", Verdict(2)),
        ("no, they differ", Verdict(0)),
        ("**Yes**", Verdict(2)),
        ("I know that none of them", Verdict(1, unparsable=True)),  # neither word by itself
        ("", Verdict(1, unparsable=True)),
    ],
)
def test_a_language_model_s_words_are_read(words: str, verdict: Verdict) -> None:
    judge = LLMJudge(lambda prompts: [words] * len(prompts), EntropyConfig(llm_model="m").llm_prompt)
    assert judge.verdicts(["Who?"], [("a", "b")]) == [verdict]


def test_a_language_model_sees_question_and_answers_and_is_asked_once_a_pair() -> None:
    asked: list[str] = []

    def ask(prompts: list[str]) -> list[str]:
        asked.extend(prompts)
        return ["yes" if "Answer A: x1" in prompt and "Answer B: x2" in prompt else "no" for prompt in prompts]

    (found,) = cluster_answers(["Who?"], [["x1", "x2", "y"]], LLMJudge(ask, "{question}|Answer A: {a}|Answer B: {b}"))
    assert found.cluster_ids == [0, 0, 1]
    assert asked == ["Who?|Answer A: x1|Answer B: x2", "Who?|Answer A: x1|Answer B: y"]


def test_the_served_model_judges_through_its_own_chat_template(student: LanguageModel) -> None:
    """The bundled student is no judge: what it says is neither yes nor no, and is counted."""
    judge = make_judge(EntropyConfig(judge="llm", llm_model="bundled:student"))
    verdicts = judge.verdicts([QUESTION], [("physician", "lawyer")])
    assert verdicts == [Verdict(1, unparsable=True)]


class ChatServer(BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint that compares what it is asked to compare; it fails the first time."""

    seen: ClassVar[list[dict[str, Any]]] = []
    keys: ClassVar[list[str | None]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append(body)
        self.keys.append(self.headers["Authorization"])
        if len(self.seen) == 1:
            self.send_error(503)
            return
        a, b = (line.split(": ")[1] for line in body["messages"][0]["content"].splitlines()[1:3])
        message = {"role": "assistant", "content": "Yes" if a.lower() == b.lower() else "No"}
        answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
        answer["choices"] = [{"index": 0, "finish_reason": "stop", "message": message}]  # type: ignore[assignment]
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def test_an_endpoint_is_asked_over_http_with_the_key_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), ChatServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("KA2L_JUDGE_API_KEY", "secret")
    try:
        url = f"http://127.0.0.1:{server.server_port}/v1"
        judge = make_judge(EntropyConfig(judge="llm", llm_model="m", endpoint=url))
        assert [v.label for v in judge.verdicts(["Q?"] * 3, [("Bern", "bern"), ("Bern", "Basel"), ("x", "X")])] == [2, 0, 2]
    finally:
        server.shutdown()
        server.server_close()
    assert {(body["model"], body["temperature"]) for body in ChatServer.seen} == {("m", 0)}
    assert set(ChatServer.keys) == {"Bearer secret"}
    assert len(ChatServer.seen) == 4
    with pytest.raises(UserError, match="the judge's endpoint failed: APIConnectionError"):
        endpoint(url, "m", None, retries=0)(["?"])


def tiny_encoder(folder: Path, pooling: dict[str, Any] | None) -> str:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(bundled_path("bundled:judge"))
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if pooling is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return str(folder)


@pytest.mark.parametrize(
    ("pooling", "first"),
    [
        (None, False),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, False),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, True),
        ({"pooling_mode": "cls"}, True),
    ],
)
def test_embeddings_are_pooled_as_the_encoder_says(pooling: dict[str, Any] | None, first: bool, tmp_path: Path) -> None:
    path = tiny_encoder(tmp_path / "encoder", pooling)
    texts = ["physician", "a much longer text about a physician and a lawyer", "baker"]
    found, truncated = SentenceEncoder(path, batch_tokens=16).encode(texts)
    tokenizer, model = AutoTokenizer.from_pretrained(path), BertModel.from_pretrained(path).eval()
    for text, vector in zip(texts, found, strict=True):
        with torch.inference_mode():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        alone = states[0] if first else states.mean(0)
        torch.testing.assert_close(vector, alone / alone.norm(), atol=1e-5, rtol=1e-5)
    assert not truncated
    (a, b), _ = SentenceEncoder(path).encode(["q? baker", "q? physician"])
    judge = make_judge(EntropyConfig(judge="embedding", encoder=path, similarity=(1 + float(a @ b)) / 2))
    assert [v.label for v in judge.verdicts(["q?"] * 2, [("baker", "baker"), ("baker", "physician")])] == [2, 0]
    (cut,) = judge.verdicts(["q? " * 100], [("a", "b")])
    assert cut.truncated


def test_a_bundled_model_is_found_by_every_judge_that_names_one() -> None:
    judge = make_judge(EntropyConfig(judge="embedding", encoder="bundled:student"))
    assert [v.label for v in judge.verdicts([QUESTION] * 2, [("carpenter", "carpenter"), ("x", "x")])] == [2, 2]


@pytest.mark.parametrize("section", [{"judge": "nli", "nli_model": "{}"}, {"judge": "embedding", "encoder": "{}"}])
def test_a_judge_without_its_tokenizers_files_is_refused(section: dict[str, str], tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(Path(bundled_path("bundled:judge")) / name, tmp_path / name)
    settings = EntropyConfig.model_validate({key: value.format(tmp_path) for key, value in section.items()})
    for ask in (verdict_identity, make_judge):
        with pytest.raises(UserError, match=rf"{tmp_path}: the tokenizer has 7 tokens, the model 3085: its files .* are missing"):
            ask(settings)


def test_what_is_too_long_for_an_encoder_loses_its_beginning(tmp_path: Path) -> None:
    encoder = SentenceEncoder(tiny_encoder(tmp_path / "encoder", None))
    (a, b), truncated = encoder.encode(["Who was it? " * 80 + "physician", "Who was it? " * 80 + "lawyer"])
    assert truncated == {0, 1}
    assert not torch.equal(a, b), "the answers are seen"


def test_modules_behind_the_pooling_are_refused(tmp_path: Path) -> None:
    path = tiny_encoder(tmp_path / "encoder", None)
    names = ("0_Transformer", "1_Pooling", "2_Dense")
    modules = [{"path": name, "type": f"sentence_transformers.models.{name[2:]}"} for name in names]
    (tmp_path / "encoder" / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UserError, match="has a module 2_Dense behind its pooling"):
        SentenceEncoder(path)


def test_other_poolings_are_refused(tmp_path: Path) -> None:
    path = tiny_encoder(tmp_path / "encoder", {"pooling_mode_max_tokens": True})
    with pytest.raises(UserError, match="pools by max; a sentence encoder here pools by mean or first token"):
        SentenceEncoder(path)


def test_verdicts_are_kept_for_the_same_judge_and_refused_to_another(tmp_path: Path) -> None:
    folder = str(tmp_path / "cache")
    asked: list[str] = []

    def ask(prompts: list[str]) -> list[str]:
        asked.extend(prompts)
        return ["perhaps" if "z" in prompt else "yes" if "x1|x2" in prompt else "no" for prompt in prompts]

    lists = [["x1", "x2", "y", "z"]]
    runs = []
    for _ in range(2):
        claim(folder, "judge A")
        runs.append(cluster_answers(["Who?"], lists, CachedJudge(LLMJudge(ask, "{question}|{a}|{b}"), folder))[0])
        merge(folder)
    assert runs[0].cluster_ids == runs[1].cluster_ids == [0, 0, 1, 2]
    first, second = (each.counts for each in runs)
    assert (first.judge_calls, first.cached, first.unparsable) == (4, 0, 2)
    assert (second.judge_calls, second.cached, second.unparsable) == (2, 2, 2), "what could not be read is asked again"
    assert len(asked) == 6
    assert sorted(file.name for file in Path(folder).iterdir()) == ["judge.json", "merge.lock", "verdicts.sqlite"]
    with pytest.raises(UserError, match=r"holds the verdicts of another judge \(judge A\); this one is judge B; set another"):
        claim(folder, "judge B")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(UserError, match="this is no cache of verdicts"):
        claim(str(tmp_path / "other"), "judge A")
    with pytest.raises(UserError, match="sqlite needs a path that is mounted on all nodes"):
        claim("s3://bucket/cache", "judge A")


def test_a_cache_outlives_a_worker_killed_in_mid_write_and_leaves_living_ones_alone(tmp_path: Path) -> None:
    folder = tmp_path / "a %3f #cache"
    claim(str(folder), "judge")
    writes = f"""
import os, signal
from ka2l_ray.semantics.cache import CachedJudge
from ka2l_ray.semantics.judges.exact import ExactJudge
judge = CachedJudge(ExactJudge(), {str(folder)!r})
judge.verdicts(["q"], [("a", "b")])
own = judge.files[0]
own.execute("PRAGMA cache_size = 1")
own.executemany("INSERT INTO verdicts VALUES (?, 2, 0)", [(os.urandom(16),) for _ in range(20000)])
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", writes]).returncode == -signal.SIGKILL
    assert list(folder.glob("*-journal")), "it died with a transaction half written"
    (folder / "empty.sqlite").touch()  # a worker that died before it had a table
    living = CachedJudge(ExactJudge(), str(folder))
    living.verdicts(["q"], [("c", "d")])
    claim(str(folder), "judge")
    assert len(list(folder.glob("*.sqlite"))) == 2, "the main file and the living worker's"
    assert living.verdicts(["q"] * 2, [("c", "d"), ("e", "f")])[1] == Verdict(0)
    (taken,) = CachedJudge(ExactJudge(), str(folder)).verdicts(["q"], [("a", "b")])
    assert taken == Verdict(0, cached=True)
    count = sqlite3.connect(folder / "verdicts.sqlite").execute("SELECT count(*) FROM verdicts").fetchone()
    assert count == (1,), "what was not committed is gone"
