"""Which samples share one request of vLLM, and what becomes of its answers; vLLM itself is not needed."""

from __future__ import annotations

from types import SimpleNamespace

from transformers import PreTrainedTokenizerBase

from ka2l_ray.actors.vllm_engine import VLLMEngine, _requests
from ka2l_ray.models.thinking import Thinking

FREELY, FILTERED, GREEDY = (1.0, 1.0, 0), (1.0, 0.9, 50), (0.1, 1.0, 0)


def test_samples_drawn_in_one_way_with_consecutive_seeds_are_one_request() -> None:
    assert _requests([FREELY, FREELY, FREELY, GREEDY], [5, 6, 7, 8]) == [[0, 1, 2], [3]]
    assert _requests([FILTERED, FILTERED, FREELY], [5, 6, 7]) == [[0, 1], [2]]


def test_a_gap_between_seeds_begins_a_request() -> None:
    """As after the first wave, when the greedy-like answer has the temperature of the others."""
    assert _requests([FREELY, FREELY, FREELY], [5, 6, 15]) == [[0, 1], [2]]


def completion(engine: VLLMEngine, said: str, text: str | None = None) -> SimpleNamespace:
    """As vLLM gives one; ``text`` is what it made of the tokens."""
    ids = engine.tokenizer.encode(said, add_special_tokens=False)
    logprobs = [{token: SimpleNamespace(logprob=-0.5)} for token in ids]
    return SimpleNamespace(token_ids=ids, logprobs=logprobs, text=said if text is None else text, finish_reason="length")


def test_an_answer_is_cut_behind_its_think_block(tokenizer: PreTrainedTokenizerBase) -> None:
    engine = VLLMEngine.__new__(VLLMEngine)
    engine.tokenizer, engine.end_ids = tokenizer, {tokenizer.eos_token_id}
    said = completion(engine, "<think>\nFra.\n</think>\n\nthe city\nWhere next")
    found = engine._cut(said, ("\n",), Thinking(strip=True))
    assert (found.text, found.finish_reason, found.thought) == ("the city", "stop", "closed")
    assert found.token_logprobs == [-0.5] * len(found.token_ids)
    assert tokenizer.decode(found.token_ids).endswith("the city\n")
    unasked = engine._generation(completion(engine, "<think>\n", "<think>"))
    assert (unasked.text, unasked.thought) == ("", "open")
