"""Seeds: a function of what is drawn for, and of nothing else."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ka2l_ray.seeds import derive_seed, generator


def test_a_seed_is_the_head_of_a_sha_256() -> None:
    head = hashlib.sha256(b"0\x1fsample\x1f3\x1fq-7").digest()[:8]
    assert derive_seed(0, "sample", 3, "q-7") == int.from_bytes(head, "big") < 2**64


@given(st.lists(st.text(max_size=5), min_size=2, max_size=4))
def test_parts_do_not_run_into_each_other(parts: list[str]) -> None:
    joined = [parts[0] + parts[1], *parts[2:]]
    assert derive_seed(*parts) != derive_seed(*joined)


def test_seeds_of_a_pool_are_distinct() -> None:
    assert len({derive_seed(0, 0, f"q{i}", j) for i in range(2000) for j in range(11)}) == 22000


def test_generators_repeat_and_differ_by_their_parts() -> None:
    assert generator(1, "select").random(4).tolist() == generator(1, "select").random(4).tolist()
    assert generator(1, "select").random() != generator(2, "select").random()


def test_uniforms_over_questions_are_uniform() -> None:
    """One number from each of many seeds: what sampling draws its tokens with."""
    draws = np.sort([generator(0, i).random() for i in range(2000)])
    distance = np.abs(draws - (np.arange(2000) + 0.5) / 2000).max()
    assert distance < 1.95 / np.sqrt(2000)  # Kolmogorov-Smirnov, 0.999 quantile


def test_seeds_are_the_same_in_another_process() -> None:
    """Unlike ``hash``, which Python salts."""
    script = "from ka2l_ray.seeds import derive_seed; print(derive_seed(3, 'probe', 'a question'))"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert int(printed) == derive_seed(3, "probe", "a question")
