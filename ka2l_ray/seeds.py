"""Seeds that depend on what is drawn for, never on which worker or batch it fell into."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def derive_seed(*parts: str | int) -> int:
    """A 64-bit seed from (run seed, purpose, round, question id, sample index, ...)."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def generator(*parts: str | int) -> np.random.Generator:
    """A counter-based generator for ``parts``."""
    return np.random.Generator(np.random.Philox(key=derive_seed(*parts)))


def prompt_seeds(seed: int, prompt_ids: Sequence[int], samples: int) -> list[int]:
    """Seeds of a prompt's samples: of the prompt itself, wherever it stands among others. Equal prompts draw equal answers."""
    prompt = ",".join(map(str, prompt_ids))
    return [derive_seed(seed, prompt, j) for j in range(samples)]
