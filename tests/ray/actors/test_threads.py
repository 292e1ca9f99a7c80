"""A worker computes with the cores of its node, not with the one thread that Ray gives every process."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import ray
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ka2l_ray.actors.placement import replicas_a_node
from ka2l_ray.actors.threads import NARROW, node_cores, set_threads
from ka2l_ray.config import EngineConfig, ModelConfig
from ka2l_ray.models.language_model import LanguageModel


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def model(width: int) -> LanguageModel:
    shape = LlamaConfig(hidden_size=width, intermediate_size=8, num_hidden_layers=1, num_attention_heads=4, vocab_size=3134)
    student = LanguageModel(ModelConfig(path="bundled:student"), device="cpu")
    return LanguageModel.of(LlamaForCausalLM(shape), student.tokenizer)


@pytest.mark.usefixtures("threads")
def test_auto_is_the_nodes_cores_shared_out_over_the_copies_there() -> None:
    cores = node_cores()
    assert cores == min(len(os.sched_getaffinity(0)), ray.cluster_resources()["CPU"])
    wide, narrow = model(NARROW), model(NARROW // 2)
    for copies in (1, 2, 3 * cores):
        set_threads("auto", wide, copies)
        assert torch.get_num_threads() == max(1, cores // copies)
    set_threads("auto", narrow, 1)
    assert torch.get_num_threads() == 1
    set_threads(3, narrow, 1)
    assert torch.get_num_threads() == 3


def test_copies_are_those_of_the_nodes_that_can_hold_one() -> None:
    assert replicas_a_node(EngineConfig(replicas=3)) == 3
    assert EngineConfig().reserved_cpus == 1
