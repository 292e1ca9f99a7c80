"""A language model behind vLLM's own server judges meaning as the same model held by our workers does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from ka2l_ray.config import EntropyConfig
from ka2l_ray.errors import UserError
from ka2l_ray.semantics.judges import make_judge
from ka2l_ray.world import bundled_path
from ka2l_ray.world.facts import World

pytestmark = [pytest.mark.servers, pytest.mark.timeout(900)]

KEY = "local-test-key"
START_SECONDS = 300


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Base URL of vLLM's OpenAI-compatible server with the bundled student, on the loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", bundled_path("bundled:student")]
    command += ["--served-model-name", "student", "--host", "127.0.0.1", "--port", str(port), "--api-key", KEY]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "96"]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        try:
            _wait(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait(60)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(START_SECONDS):
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise AssertionError(f"the server does not answer: {log.read_text()[-3000:]}")


def test_an_endpoint_says_what_the_same_model_says_in_a_worker(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KA2L_JUDGE_API_KEY", KEY)
    prompt = "{question} {a} {b}"
    rows = World().rows("pool")[:16]
    questions = [row["question"] for row in rows]
    pairs = [(row["answers"][0], rows[i - 1]["answers"][0]) for i, row in enumerate(rows)]
    settings = {"judge": "llm", "llm_prompt": prompt}
    there = make_judge(EntropyConfig(**settings, llm_model="student", endpoint=server))
    here = make_judge(EntropyConfig(**settings, llm_model="bundled:student"))
    asked = [prompt.format(question=q, a=a, b=b) for q, (a, b) in zip(questions, pairs, strict=True)]
    words = there.ask(asked)
    assert [text.strip() for text in words] == [text.strip() for text in here.ask(asked)]
    assert len(set(words)) > 4, "the student answers the questions it is asked"
    assert there.verdicts(questions, pairs) == here.verdicts(questions, pairs)


def test_a_wrong_key_is_said_in_one_line(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KA2L_JUDGE_API_KEY", "another")
    judge = make_judge(EntropyConfig(judge="llm", llm_model="student", endpoint=server))
    with pytest.raises(UserError, match="the judge's endpoint failed: AuthenticationError") as caught:
        judge.verdicts(["Who?"], [("a", "b")])
    assert len(str(caught.value).splitlines()) == 1
    assert KEY not in json.dumps(str(caught.value))
