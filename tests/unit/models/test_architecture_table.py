"""Each architecture agrees with its plain forward pass in all that the engine does with it, or is refused by name."""

from __future__ import annotations

import pytest

from tests.unit.models.architecture_table import ARCHITECTURES, FOUND_RIGHT, ONE_A_MECHANISM, PAGE, TOLERANCE, hold, page

OPERATIONS = {"sampling", "states", "log-likelihood", "score", "LoRA step", "adapter"}
NAMES = [name if name in ONE_A_MECHANISM else pytest.param(name, marks=pytest.mark.check) for name in ARCHITECTURES]


@pytest.mark.parametrize("name", NAMES)
def test_an_architecture_agrees_with_its_plain_forward_pass_or_is_refused(name: str) -> None:
    found = hold(name)
    if found.ways is None:
        assert name not in FOUND_RIGHT
        assert found.refusal
        return
    assert found.off.keys() == OPERATIONS
    assert max(found.off.values()) <= TOLERANCE, found.off


@pytest.mark.check
def test_the_page_is_what_this_test_finds_and_few_are_refused() -> None:
    assert sum(hold(name).ways is None for name in ARCHITECTURES) <= 6
    assert PAGE.read_text() == page(), "write it again: python -m tests.unit.models.architecture_table"
