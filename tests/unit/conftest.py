"""Fixtures of the unit tests: real models, small. Nothing here needs ray or a network."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

from pathlib import Path

import pytest
import torch
from hypothesis import settings
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from ka2l_ray.config import ModelConfig
from ka2l_ray.models.language_model import LanguageModel
from ka2l_ray.semantics.judges.nli import NLIJudge
from ka2l_ray.world import bundled_path
from ka2l_ray.world.facts import World

MODELS = Path(__file__).resolve().parents[2] / "models"
"""Real models, where ``make models`` has put them."""

torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other
transformers_logging.disable_progress_bar()
settings.register_profile("unit", deadline=None, derandomize=True, max_examples=100)
settings.load_profile("unit")


@pytest.fixture(scope="session")
def world() -> World:
    return World()


@pytest.fixture(scope="session")
def student() -> LanguageModel:
    """The bundled student on the CPU, as float32."""
    return LanguageModel(ModelConfig(path="bundled:student"), device="cpu")


@pytest.fixture(scope="session")
def smollm2_path() -> str:
    """Directory of SmolLM2-135M-Instruct."""
    return _real_model("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def minilm_path() -> str:
    """Directory of the sentence encoder all-MiniLM-L6-v2."""
    return _real_model("all-minilm-l6-v2")


@pytest.fixture(scope="session")
def smollm2(smollm2_path: str) -> LanguageModel:
    """A real instruct model of 135 million parameters, on the CPU. Do not change it."""
    return LanguageModel(ModelConfig(path=smollm2_path), device="cpu")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """The bundled student's tokenizer. Do not change it; ``plain_tokenizer`` is a copy without a chat template."""
    return AutoTokenizer.from_pretrained(bundled_path("bundled:student"))


@pytest.fixture
def plain_tokenizer() -> PreTrainedTokenizerBase:
    """A fresh copy of the bundled student's tokenizer, without its chat template."""
    fresh = AutoTokenizer.from_pretrained(bundled_path("bundled:student"))
    fresh.chat_template = None
    return fresh


@pytest.fixture(scope="session")
def judge() -> NLIJudge:
    """The bundled NLI judge, strict."""
    return NLIJudge("bundled:judge")


@pytest.fixture(scope="session")
def tiny_llama(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-block Llama with random weights and the student's tokenizer, saved."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.3,
        **_sizes(tokenizer),
    )
    return _save(LlamaForCausalLM(config), tokenizer, tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def tiny_gpt2(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A three-block GPT-2 (learned absolute positions, tied head, Conv1D layers) with random weights."""
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=3, n_head=2, initializer_range=0.3, **_sizes(tokenizer))
    return _save(GPT2LMHeadModel(config), tokenizer, tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="session")
def tiny_mistral(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-block Mistral whose attention sees the last 6 tokens only, with random weights."""
    torch.manual_seed(0)
    config = MistralConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=6,
        initializer_range=0.3,
        **_sizes(tokenizer),
    )
    return _save(MistralForCausalLM(config), tokenizer, tmp_path_factory.mktemp("mistral"))


def _real_model(name: str) -> str:
    if not (MODELS / name / ".fetched").is_file():
        pytest.skip(f"models/{name} is not there; make models fetches it")
    return str(MODELS / name)


def _sizes(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    return {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 128,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _save(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, directory: Path) -> Path:
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
