"""Which samples share one request of vLLM; vLLM itself is not needed."""

from __future__ import annotations

from ka2l_ray.actors.vllm_engine import _requests

FREELY, FILTERED, GREEDY = (1.0, 1.0, 0), (1.0, 0.9, 50), (0.1, 1.0, 0)


def test_samples_drawn_in_one_way_with_consecutive_seeds_are_one_request() -> None:
    assert _requests([FREELY, FREELY, FREELY, GREEDY], [5, 6, 7, 8]) == [[0, 1, 2], [3]]
    assert _requests([FILTERED, FILTERED, FREELY], [5, 6, 7]) == [[0, 1], [2]]


def test_a_gap_between_seeds_begins_a_request() -> None:
    """As after the first wave, when the greedy-like answer has the temperature of the others."""
    assert _requests([FREELY, FREELY, FREELY], [5, 6, 15]) == [[0, 1], [2]]
