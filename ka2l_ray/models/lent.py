"""A model that someone lends us, and gets back as it was: no adapter left on it, in the mode and with the gradients it had."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def as_it_was(model: Any) -> Iterator[None]:
    """``model`` in evaluation mode; afterwards its modules' modes, what of it is trained, and the random numbers are as before.

    An adapter that was put on it meanwhile must be off again. The dtype and the device of its weights are nobody's to change.
    """
    modes = {module: module.training for module in model.modules()}
    trained = {parameter: parameter.requires_grad for parameter in model.parameters()}
    devices = [model.device.index or 0] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            for parameter, wanted in trained.items():
                parameter.requires_grad_(wanted)
