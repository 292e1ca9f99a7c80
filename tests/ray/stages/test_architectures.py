"""The stages on a hybrid model, and on one that is refused."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
import torch
from typer.testing import CliRunner

from ka2l_ray.config import ModelConfig, PromptConfig
from ka2l_ray.jobs.commands.cli import app
from ka2l_ray.models.language_model import LanguageModel
from ka2l_ray.models.prompts import Prompter
from ka2l_ray.probes import ProbeCard, make_probe, p_unknown, probe_to_bytes
from ka2l_ray.store.storage import Storage
from tests.ray.conftest import write_lines
from tests.unit.models.architecture_table import save_tiny, tokenizer
from tests.unit.models.test_self_check import save_bert

QUESTIONS = [{"id": f"q{i}", "question": f"Where was person number {i} born{', and when' * (i % 3)}?"} for i in range(6)]
ROOM = ("-o", "sampling.max_tokens=5", "-o", "sampling.stop=[]")


def save_probe(at: Path) -> torch.nn.Module:
    torch.manual_seed(0)
    probe = make_probe("linear", 32, 1)
    Storage(str(at)).write_bytes("probe.safetensors", probe_to_bytes(probe, ProbeCard("linear", 2, 32, 1)))
    Storage(str(at)).write_table("layers.parquet", pa.table({"layer": [2]}))
    return probe


def test_a_hybrid_model_is_sampled_and_scored_as_its_plain_forward_pass_says(tmp_path: Path) -> None:
    save_tiny("qwen3_next", tmp_path / "model")
    probe = save_probe(tmp_path / "probe")
    given = ("--model", str(tmp_path / "model"), "--questions", write_lines(tmp_path / "questions.jsonl", QUESTIONS))
    samples, scores = str(tmp_path / "samples"), str(tmp_path / "scores")
    for arguments in (
        ("sample", *given, "--out", samples, "--k", "3", *ROOM),
        ("score", *given, "--out", scores, "--probe", str(tmp_path / "probe")),
    ):
        result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code == 0, result.output
    model = LanguageModel(ModelConfig(path=str(tmp_path / "model")), device="cpu")
    prompter = Prompter(model.tokenizer, PromptConfig())
    p = pd.read_parquet(scores).set_index("question_id")["p_unknown"]
    for row in pd.read_parquet(samples).itertuples():
        ids = prompter.encode(row.prompt)
        for tokens, logprobs in zip(row.token_ids, row.token_logprobs, strict=True):
            with torch.inference_mode():
                out = model.causal_lm(torch.tensor([[*ids, *tokens]]), use_cache=False, output_hidden_states=True)
            log_p_TV = out.logits[0, len(ids) - 1 : -1].log_softmax(-1)
            assert list(logprobs) == pytest.approx([float(log_p_TV[i, t]) for i, t in enumerate(tokens)], abs=1e-4)
            assert p[row.question_id] == pytest.approx(float(p_unknown(probe, out.hidden_states[2][:, len(ids) - 1])), abs=1e-4)


@pytest.mark.parametrize("stage", ["sample", "score"])
def test_a_refused_architecture_is_one_line_and_exit_code_2(stage: str, tmp_path: Path) -> None:
    save_bert(tokenizer(), tmp_path / "model")
    save_probe(tmp_path / "probe")
    given = ("--model", str(tmp_path / "model"), "--questions", write_lines(tmp_path / "questions.jsonl", QUESTIONS))
    extra = ROOM if stage == "sample" else ("--probe", str(tmp_path / "probe"))
    result = CliRunner().invoke(app, [stage, *given, "--out", str(tmp_path / "out"), *extra])
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "BertLMHeadModel: the state of each layer is not" in line
    assert line.endswith("use engine.name=vllm")
