"""Whether the engine computes what the model's own forward pass does: looked at when a model is loaded, before anything is paid.

Two prompts of different lengths and two samples of each go through the engine (padded, batched, cached, stopped at a layer), and
one at a time through the plain forward pass (no padding, no cache). What does not agree is done another way, slower and simpler;
what agrees in no way is refused. Tokens are few: the cost is that of some ten short prompts.

Agreement is relative: the norm of the difference over the norm of what is expected. Reduced precision rounds otherwise in other
batches, and where experts are chosen by a hair, rounding chooses; so a model may differ as much, some times over, as it differs
from itself when its embeddings are rounded otherwise. A wrong mask, cache or scale differs by far more. In full precision the
tolerance is tight, so that what is only nearly right (some recurrences step by step) gives way to what is right.

Shape suffixes: T tokens of a sample, L layers, V vocabulary, D hidden width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import torch
from torch import Tensor

from ka2l_ray.errors import UserError
from ka2l_ray.models.lent import as_it_was
from ka2l_ray.models.plain_forward import NoStates, plain_forward

if TYPE_CHECKING:
    from ka2l_ray.models.language_model import LanguageModel

logger = logging.getLogger(__name__)

TOLERANCE = {torch.bfloat16: 0.03, torch.float16: 0.01}
FULL_PRECISION = 1e-5  # tolerance
NOISE = 3  # times what the model differs from itself
LOOSE = 100  # times the tolerance, in full precision: what is no closer in any way is still no other model
LONG, SHORT, SHARED = 40, 18, 17  # tokens of the two prompts, and how many they begin with in common
FORCED = 8  # tokens of each sample
TEXT = (
    "Question: In which year did the first railway between two towns of that country open to the public, and who had paid for "
    "its bridges? Answer: Nobody wrote down the year; the merchants of the harbour paid, as they had done for the old road. "
)

Decode = Literal["padded", "equal lengths", "repeated rows", "recomputed"]
DECODINGS: tuple[Decode, ...] = ("padded", "equal lengths", "repeated rows", "recomputed")  # fastest first


@dataclass(frozen=True)
class Ways:
    """How the engine runs a model."""

    decoding: Decode = "padded"
    """Prompts are prefilled once and fanned out to their samples, in batches of any lengths, or of one length; prompts of one
    length are prefilled once for each sample; or no cache is kept and each step runs all tokens."""
    shared_prefix: bool = True
    """What all prompts begin with is run once, where states are read and padded batches prefilled."""
    early_exit: bool = True
    """The forward pass ends at the deepest layer whose state is wanted; else transformers' record of a whole one is read."""
    stream_axis: int | None = None
    """Of a block's input, where blocks hand on several streams: the state is their mean."""


class Disagreement(Exception):
    """The engine's numbers are not the model's."""


@torch.inference_mode()
def find_ways(language_model: LanguageModel) -> Ways:
    """The fastest ways that agree with the model's own forward pass.

    Raises:
        UserError: an operation agrees in none.
    """
    with as_it_was(language_model.model):
        check = _Check(language_model)
        ways = check.first_right("the state of each layer", check.states, [check.ways, replace(check.ways, shared_prefix=False)])
        check.first_right("the log-likelihood of given tokens", check.log_likelihood, [ways])
        candidates = [replace(ways, decoding=kind) for kind in DECODINGS]
        candidates.insert(1, replace(ways, shared_prefix=False))
        ways = check.first_right("sampling", check.sampling, candidates)
    if ways != Ways():
        logger.info("%s (%s): %s", language_model.name, check.architecture, ways)
    return ways


class _Check:
    def __init__(self, language_model: LanguageModel) -> None:
        self.engine = language_model
        self.architecture = type(language_model.causal_lm).__name__
        self.tolerance = 0.0
        self.noise: float | None = None
        tokens = _some_tokens(language_model)
        room = language_model.max_length - FORCED
        shared = [next(tokens) for _ in range(min(SHARED, room - 1))]
        self.prompts = [[*shared, *islice(tokens, min(n, room) - len(shared))] for n in (LONG, SHORT)]
        self.samples = [list(islice(tokens, FORCED)) for _ in range(2 * len(self.prompts))]
        try:
            self.expected = [self._plain([*self.prompts[i // 2], *sample]) for i, sample in enumerate(self.samples)]
        except (torch.AcceleratorError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            self._refuse("the plain forward pass", error)

    def first_right(self, operation: str, check: Callable[[Ways], None], candidates: Sequence[Ways]) -> Ways:
        """The first of ``candidates`` with which ``check`` raises nothing."""
        failure: Exception | None = None
        tight = TOLERANCE.get(self.engine.dtype, FULL_PRECISION)
        for tolerance in (tight,) if self.engine.dtype in TOLERANCE else (tight, LOOSE * tight):
            self.tolerance = tolerance
            for ways in candidates:
                try:
                    check(ways)
                    return ways
                except (torch.AcceleratorError, torch.OutOfMemoryError):
                    raise
                except Exception as error:  # whatever a model's code raises where it is used as it was not meant to be
                    logger.debug("%s: %s with %s: %r", self.architecture, operation, ways, error)
                    failure = failure or error
        assert failure is not None
        self._refuse(operation, failure)

    def states(self, ways: Ways) -> None:
        layers = range(self.engine.n_layers + 1)
        for rows, states in self.engine.last_token_states(self.prompts, layers, ways=ways):
            for b, row in enumerate(rows):
                for layer in layers:
                    self._compare(states[layer][b], self.expected[2 * row][1][layer], f"layer {layer}")

    def log_likelihood(self, ways: Ways) -> None:
        prompts = [self.prompts[i // 2] for i in range(len(self.samples))]
        for i, found in enumerate(self.engine.log_likelihood(prompts, self.samples)):
            log_p_TV = self.expected[i][0].log_softmax(-1)
            wanted_T = log_p_TV.gather(1, torch.tensor(self.samples[i], device=log_p_TV.device)[:, None]).squeeze(1)
            self._compare(torch.tensor(found, device=wanted_T.device), wanted_T, "log-probabilities")

    def sampling(self, ways: Ways) -> None:
        """Each step's logits; the second sample ends after the first step, as an answer might."""
        batches = [self.prompts] if ways.decoding in ("padded", "recomputed") else [[prompt] for prompt in self.prompts]
        first = 0
        for prompts in batches:
            rows = list(range(first, first + 2 * len(prompts)))
            first += len(rows)
            decoding = self.engine.decoding(prompts, 2, ways)
            for step in range(FORCED):
                for logits_V, row in zip(decoding.logits_RV, rows, strict=True):
                    self._compare(logits_V.float().log_softmax(-1), self.expected[row][0][step].log_softmax(-1), f"step {step}")
                if step == 1:
                    decoding.keep(torch.tensor([r for r in range(len(rows)) if r != 1]))
                    del rows[1]
                decoding.step(torch.tensor([self.samples[row][step] for row in rows], device=self.engine.device))

    def _plain(self, ids: list[int]) -> tuple[Tensor, Tensor]:
        """(logits_TV before each token of the sample, state_LD of the prompt's last token)."""
        device = self.engine.device
        plain = plain_forward(self.engine.causal_lm, torch.tensor([ids], device=device))
        self.ways = Ways(shared_prefix=plain.by_blocks, early_exit=plain.by_blocks, stream_axis=plain.stream_axis)
        at = len(ids) - FORCED - 1
        state_LD = torch.stack([state_BTD[0, at].to(device).float() for state_BTD in plain.states])
        return plain.logits_BTV[0, at:-1].to(device).float(), state_LD

    def _compare(self, found: Tensor, wanted: Tensor, what: str) -> None:
        error = _relative(found, wanted)
        if error <= self.tolerance:
            return
        limit = max(self.tolerance, NOISE * self._own_noise())
        if not error <= limit:  # nor NaN
            raise Disagreement(f"{what} differs by {error:.2g} of its norm, {limit:.2g} is allowed")

    def _own_noise(self) -> float:
        """How much the first row differs from itself with each value of its embeddings moved by the precision it has."""
        if self.noise is None:
            step = torch.finfo(self.engine.dtype).eps

            def nudge(_: Any, __: Any, embedded: Tensor) -> Tensor:
                signs = torch.Generator().manual_seed(0)
                return embedded * (1 + step * torch.randint(-1, 2, embedded.shape, generator=signs).to(embedded))

            hook = self.engine.causal_lm.get_input_embeddings().register_forward_hook(nudge)
            try:
                moved_TV, moved_LD = self._plain([*self.prompts[0], *self.samples[0]])
            finally:
                hook.remove()
            logits_TV, state_LD = self.expected[0]
            of_states = [_relative(a, b) for a, b in zip(moved_LD, state_LD, strict=True)]
            self.noise = max(_relative(moved_TV.log_softmax(-1), logits_TV.log_softmax(-1)), *of_states)
        return self.noise

    def _refuse(self, operation: str, error: Exception) -> NoReturn:
        reason = str(error) if isinstance(error, (Disagreement, NoStates)) else f"{type(error).__name__}: {error}"
        raise UserError(
            f"{self.engine.name}: {self.architecture}: {operation} is not what the model's own forward pass gives "
            f"({' '.join(reason.split())[:200]}); use engine.name=vllm"
        ) from error


def _relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


def _some_tokens(language_model: LanguageModel) -> Any:
    """Tokens of ordinary text, over and over."""
    ids = language_model.tokenizer.encode(TEXT, add_special_tokens=False)
    rows = language_model.causal_lm.get_input_embeddings().weight.shape[0]
    return cycle([i for i in ids if i < rows])
