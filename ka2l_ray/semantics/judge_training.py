"""Fine-tunes an encoder into a judge of "the same answer to this question": a cross-encoder of one logit, for ``cross_encoder``.

It reads what that judge reads. The threshold is chosen on judged pairs whose questions stay out of training, and goes into the
model's ``config.json``. Answers that are equal after normalisation are the same without a model, and take no part.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification

from ka2l_ray.errors import UserError
from ka2l_ray.normalization import normalize_answer, normalize_question
from ka2l_ray.seeds import derive_seed
from ka2l_ray.semantics.clustering import joined
from ka2l_ray.semantics.encoder import SENTENCE_ENCODER, SentenceEncoder
from ka2l_ray.semantics.judges.cross_encoder import THRESHOLD_KEY, CrossEncoderJudge
from ka2l_ray.semantics.language import is_english
from ka2l_ray.semantics.texts import Texts, load_encoder, load_encoder_config
from ka2l_ray.semantics.training_pairs import TrainingPair, held, judged_pairs, pool, pool_pairs

logger = logging.getLogger(__name__)

BATCH = 32
WARM_UP = 0.1
"""Share of the steps over which the learning rate rises; then it falls, both in a line."""
SORTED_TOGETHER = 32
"""Batches whose pairs are sorted by length, so that they are little padded."""
VALIDATION = 0.15
"""Share of the questions with judged pairs that the threshold is chosen on."""
LEAST_VALIDATION = 20
REPORT_EVERY = 25


@dataclass(frozen=True)
class Fitted:
    """A judge that was trained, and how it does on the pairs that its threshold was chosen on."""

    trained_on: int
    steps: int
    tokens: int
    seconds: float
    threshold: float
    validated_on: int
    validation_accuracy: float
    """Share of those pairs that it calls as they were judged: at its best threshold, so a little too high."""


def train_from_files(
    judged: Sequence[str],
    pools: Sequence[str],
    without: Sequence[str],
    encoder: str,
    out: str,
    *,
    pool_questions: int,
    epochs: int,
    learning_rate: float,
    seed: int,
) -> Fitted:
    """``train_judge`` on all pairs of the files ``judged`` and on pairs made of ``pool_questions`` questions of the ``pools``.

    Args:
        without: files whose questions stay out of training.

    Raises:
        UserError: a file that is not there or malformed, ``out`` is not empty, or as ``train_judge``.
    """
    if Path(out).exists() and (not Path(out).is_dir() or any(Path(out).iterdir())):
        raise UserError(f"{out}: is there already; give a directory of its own with --out")
    load_encoder_config(encoder, SENTENCE_ENCODER)
    out_of_training = held(without)
    pairs = [pair for path in judged for pair in judged_pairs(path, out_of_training)]
    split(pairs, seed)  # refuses too few of them before the pools are embedded
    asked = [each for path in pools for each in pool(path, out_of_training)]
    rng = random.Random(seed)
    asked = rng.sample(asked, min(pool_questions, len(asked)))
    if asked:
        vectors = SentenceEncoder(encoder)
        pairs += pool_pairs(asked, lambda texts: vectors.encode(texts)[0], rng)
    logger.info("%d pairs, %d of them judged; %.0f %% mean the same", len(pairs), *_counts(pairs))
    fitted = train_judge(pairs, encoder, out, epochs=epochs, learning_rate=learning_rate, seed=seed)
    (Path(out) / "README.md").write_text(_card(encoder, [*judged, *pools], without, fitted))
    return fitted


def _card(encoder: str, sources: Sequence[str], without: Sequence[str], fitted: Fitted) -> str:
    names = [", ".join(Path(path).name for path in paths) or "none" for paths in (sources, without)]
    language = "---\nlanguage: en\n---\n\n" if is_english(encoder) else ""
    return f"""{language}# A judge of "the same answer to this question"

A cross-encoder, fine-tuned from {Path(encoder).name} by `ka2l judge-train`. It judges with `-o entropy.judge=cross_encoder
-o entropy.cross_encoder=DIR`, and of correctness with the same keys of `evaluation`.

* learned from {fitted.trained_on} pairs of: {names[0]}
* no question of these files among them: {names[1]}
* threshold {fitted.threshold:.3f}, the best on {fitted.validated_on} judged pairs on other questions: it calls
  {fitted.validation_accuracy:.1%} of them as they were judged, a little too high a figure therefore

Its licence is that of the encoder and of what it learned from; look at both before you pass it on.
"""


def _counts(pairs: Sequence[TrainingPair]) -> tuple[int, float]:
    return sum(pair.judged for pair in pairs), 100 * sum(pair.same for pair in pairs) / max(1, len(pairs))


def train_judge(
    pairs: Sequence[TrainingPair],
    encoder: str,
    out: str,
    *,
    epochs: int,
    learning_rate: float,
    max_tokens: int = 48,
    seed: int,
) -> Fitted:
    """Fine-tune ``encoder`` on ``pairs`` and save the judge in directory ``out``.

    Args:
        encoder: directory or hub name of any encoder that transformers knows.
        max_tokens: of a pair; what is longer loses its beginning.

    Raises:
        UserError: too few judged pairs to choose a threshold on, or all of one kind, or no encoder there.
    """
    learned, held_out = split(pairs, seed)
    started = time.monotonic()
    judge = _Trainee(encoder, max_tokens, seed)
    steps, tokens = judge.learn(learned, epochs, learning_rate, seed)
    partial = Path(f"{out}.partial")  # until the threshold is in it
    judge.save(str(partial), None)
    p = of_the_best(CrossEncoderJudge(str(partial)), held_out)
    at, accuracy = best_threshold(p, np.array([pair.same for pair in held_out]))
    judge.save(str(partial), at)
    fitted = Fitted(len(learned), steps, tokens, time.monotonic() - started, at, len(held_out), accuracy)
    (partial / "training.json").write_text(json.dumps(asdict(fitted), indent=1) + "\n")
    partial.rename(out)
    return fitted


def split(pairs: Sequence[TrainingPair], seed: int) -> tuple[list[TrainingPair], list[TrainingPair]]:
    """(pairs to learn from, judged pairs to choose the threshold on): no question stands in both; equal answers in neither.

    Raises:
        UserError: too few judged pairs, or all of one kind.
    """

    def held_out(question: str) -> bool:
        return bool(question) and derive_seed(seed, "threshold", normalize_question(question)) < VALIDATION * 2**64

    unequal = [pair for pair in pairs if normalize_answer(pair.a) != normalize_answer(pair.b)]
    validation = list(dict.fromkeys(pair for pair in unequal if pair.judged and held_out(pair.question)))
    if len(validation) < LEAST_VALIDATION or len({pair.same for pair in validation}) < 2:
        raise UserError(
            f"{len(validation)} judged pairs to choose the threshold on (those of {VALIDATION:.0%} of the questions), and "
            f"{LEAST_VALIDATION} of both kinds are needed; give more judged pairs that have a question"
        )
    return [pair for pair in unequal if not held_out(pair.question)], validation


def of_the_best(judge: CrossEncoderJudge, judged: Sequence[TrainingPair]) -> NDArray[np.float64]:
    """Greatest probability of each judged answer over all that it may mean, as correctness asks: with nine aliases a judge has
    nine chances to say yes, and needs a higher threshold than with one."""
    asked = [(i, accepted) for i, pair in enumerate(judged) for accepted in pair.accepted or (pair.a,)]
    pairs = [(accepted, judged[i].b) for i, accepted in asked]
    found = np.zeros(len(judged))
    np.maximum.at(found, [i for i, _ in asked], judge.probabilities([judged[i].question for i, _ in asked], pairs)[0])
    return found


def best_threshold(p: NDArray[np.float64], same: NDArray[np.bool_]) -> tuple[float, float]:
    """(threshold between two probabilities, or beside the outermost, that calls most pairs as they are; share that it does)."""
    values = np.unique(p)
    cuts = np.concatenate([[values[0] / 2], (values[1:] + values[:-1]) / 2, [(values[-1] + 1) / 2]])
    right = np.array([np.mean((p >= cut) == same) for cut in cuts])
    best = int(right.argmax())
    return float(cuts[best]), float(right[best])


class _Trainee:
    """The encoder with a fresh head, and its tokenizer."""

    def __init__(self, encoder: str, max_tokens: int, seed: int) -> None:
        config = load_encoder_config(encoder, SENTENCE_ENCODER)
        self.texts = Texts(encoder, config)
        self.max_tokens = min(max_tokens, self.texts.max_length)
        config.num_labels = 1
        torch.manual_seed(seed)  # of the head
        self.model = AutoModelForSequenceClassification.from_config(config)
        body = load_encoder(encoder, SENTENCE_ENCODER).state_dict()
        getattr(self.model, self.model.base_model_prefix).load_state_dict(body, strict=False)  # which of them pools, differs
        self.model.get_input_embeddings().requires_grad_(False)  # half of a small encoder's weights, and words stay words

    def learn(self, pairs: Sequence[TrainingPair], epochs: int, learning_rate: float, seed: int) -> tuple[int, int]:
        """(steps, tokens with padding) of AdamW on the cross-entropy."""
        both = joined([pair.question for pair in pairs], [(pair.a, pair.b) for pair in pairs])
        encoded = self.texts.tokenizer(
            [a for a, _ in both], [b for _, b in both], truncation="longest_first", max_length=self.max_tokens
        )
        rows = [{name: column[i] for name, column in encoded.items()} for i in range(len(pairs))]
        batches = list(_batches([len(row["input_ids"]) for row in rows], epochs, random.Random(seed)))
        learned = [weights for weights in self.model.parameters() if weights.requires_grad]
        optimizer = torch.optim.AdamW(learned, lr=learning_rate, weight_decay=0.01, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rise_and_fall(step, len(batches)))
        self.model.train()
        tokens, loss_sum, started = 0, 0.0, time.monotonic()
        for step, chosen in enumerate(batches, 1):
            batch = self.texts.tokenizer.pad([rows[i] for i in chosen], return_tensors="pt")
            targets = torch.tensor([float(pairs[i].same) for i in chosen])
            loss = torch.nn.functional.binary_cross_entropy_with_logits(self.model(**batch).logits[:, 0], targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learned, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            tokens += batch["input_ids"].numel()
            loss_sum += loss.item()
            if step % REPORT_EVERY == 0:
                each = (time.monotonic() - started) / step
                logger.info("step %d of %d: loss %.3f, %.2f s a step", step, len(batches), loss_sum / REPORT_EVERY, each)
                loss_sum = 0.0
        self.model.eval()
        return len(batches), tokens

    def save(self, out: str, threshold: float | None) -> None:
        setattr(self.model.config, THRESHOLD_KEY, 0.5 if threshold is None else threshold)
        self.model.save_pretrained(out)
        self.texts.tokenizer.save_pretrained(out)


def _batches(lengths: Sequence[int], epochs: int, rng: random.Random) -> Iterator[list[int]]:
    for _ in range(epochs):
        order = list(range(len(lengths)))
        rng.shuffle(order)
        for start in range(0, len(order), BATCH * SORTED_TOGETHER):
            chunk = sorted(order[start : start + BATCH * SORTED_TOGETHER], key=lambda i: lengths[i])
            batches = [chunk[i : i + BATCH] for i in range(0, len(chunk), BATCH)]
            rng.shuffle(batches)
            yield from batches


def _rise_and_fall(step: int, steps: int) -> float:
    rising = max(1, round(WARM_UP * steps))
    return (step + 1) / rising if step < rising else max(0.0, (steps - step) / max(1, steps - rising))
