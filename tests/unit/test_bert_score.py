"""BERTScore over an encoder on this machine: against the definition, and what says nothing."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from ka2l_ray.bert_score import BertScore, bert_score_layer
from ka2l_ray.errors import UserError


@pytest.fixture(scope="module")
def scorer(minilm_path: str) -> BertScore:
    return BertScore(minilm_path, 4)


def by_definition(path: str, layer: int, said: str, wanted: str) -> float:
    """Greedy matching of word pieces by cosine, the framing ones weighing nothing but there to be matched."""
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path)
    states = []
    for text in (said, wanted):
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states[layer][0]
        states.append(torch.nn.functional.normalize(hidden, dim=-1))
    cosines = states[0] @ states[1].T
    precision, recall = cosines.max(1).values[1:-1].mean(), cosines.max(0).values[1:-1].mean()
    return float(2 * precision * recall / (precision + recall))


def test_f1_is_that_of_the_definition(scorer: BertScore, minilm_path: str) -> None:
    said, wanted = "the city of Quast", "Quast, a town"
    assert scorer.f1([said], [[wanted]]) == pytest.approx([by_definition(minilm_path, 4, said, wanted)], abs=1e-5)


def test_the_best_alias_counts_and_nothing_is_nothing(scorer: BertScore) -> None:
    both, far, empty, unaliased = scorer.f1(["Paris", "Paris", " ", "Paris"], [["London", "Paris"], ["London"], ["Paris"], []])
    assert both == pytest.approx(1, abs=1e-5)
    assert 0 < far < 0.95
    assert empty == unaliased == 0.0


def test_the_layer_is_the_packages_for_a_name_it_knows_else_two_thirds(minilm_path: str) -> None:
    assert bert_score_layer(minilm_path) == 4
    assert bert_score_layer(minilm_path, 6) == 6
    with pytest.raises(UserError, match=r"bert_score_layer is 7, .* has layers 0 to 6; give one of them"):
        bert_score_layer(minilm_path, 7)


def test_no_encoder_there(tmp_path: str) -> None:
    with pytest.raises(UserError, match="no encoder for BERTScore there"):
        BertScore(str(tmp_path))
