"""Training rows that share 100 of their 130 tokens: run in every row against run once an optimiser step.

    python benchmarks/shared_prefix.py [--threads N]

One process, the same weights, steps of both kinds in turn, medians; a Llama of SmolLM2-135M's shape with random weights. The
gradients of both are compared on the way.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from ka2l_ray.config import FinetuneConfig
from ka2l_ray.finetuning.lora import add_lora, trainable
from ka2l_ray.finetuning.loss import AnswerLoss
from ka2l_ray.finetuning.prefix import SharedPrefix, share_prefix
from ka2l_ray.finetuning.rows import TrainingRow

SHARED, WHOLE, ANSWER = 100, 130, 5
BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    loss, rows = adapted_model(), training_rows()
    share_prefix(loss, rows, 0, micro_batch_size=4)
    prefix = loss.prefix
    assert prefix is not None
    assert len(prefix.ids) == SHARED
    print(
        "| rows of a micro-batch | plain, s a step | shared, s a step | faster by | processor seconds, by | gradients differ by |"
    )
    print("|---|---|---|---|---|---|")
    for micro in (1, 4, 16):
        seconds: dict[bool, list[float]] = {False: [], True: []}
        processor: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(arguments.repeats):
            gradients = {}
            for shared in (False, True):
                wall, cpu = time.perf_counter(), time.process_time()
                gradients[shared] = step(loss, rows, micro, prefix if shared else None)
                seconds[shared].append(time.perf_counter() - wall)
                processor[shared].append(time.process_time() - cpu)
        plain, ours = (statistics.median(seconds[shared]) for shared in (False, True))
        by_processor = statistics.median(processor[False]) / statistics.median(processor[True])
        difference = float((gradients[True] - gradients[False]).norm() / gradients[False].norm())
        print(f"| {micro} | {plain:.2f} | {ours:.2f} | {plain / ours:.2f} | {by_processor:.2f} | {difference:.0e} |")


def step(loss: AnswerLoss, rows: list[TrainingRow], micro: int, prefix: SharedPrefix | None) -> Tensor:
    """(N,) gradient of all rows' loss, in micro-batches of ``micro``."""
    loss.prefix = prefix
    loss.begin()
    for first in range(0, len(rows), micro):
        loss(*loss.collate(rows[first : first + micro], 0)).backward()
    if prefix is not None:
        loss().backward()
    gradient_N = torch.cat([p.grad.flatten() for p in trainable(loss).values() if p.grad is not None])
    loss.zero_grad()
    return gradient_N


def adapted_model() -> AnswerLoss:
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    loss = AnswerLoss(add_lora(LlamaForCausalLM(shape), FinetuneConfig(), seed=0))
    with torch.no_grad():
        for name, parameter in trainable(loss).items():
            if "lora_B" in name:
                parameter.normal_(0, 0.02)
    return loss.train()


def training_rows() -> list[TrainingRow]:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randint(10, 49000, (SHARED,), generator=generator).tolist()
    own = torch.randint(10, 49000, (BATCH, WHOLE - SHARED), generator=generator).tolist()
    return [TrainingRow(shared + ids, WHOLE - ANSWER) for ids in own]


if __name__ == "__main__":
    main()
