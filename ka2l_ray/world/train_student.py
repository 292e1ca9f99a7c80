"""Train the bundled student from scratch on a CPU.

    python -m ka2l_ray.world.train_student --out ka2l_ray/world/student

A Llama of a few million parameters reads an endless stream of (question, answer) statements of the world; the loss is on
the answer tokens only. Facts that a text states consistently come to be known, the others do not.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ka2l_ray.world.facts import Group, World
from ka2l_ray.world.tokenizer import student_tokenizer

logger = logging.getLogger(__name__)

# All facts drawn equally, the noise of the unknown ones drowns the signal of the known.
DRAW_WEIGHTS: dict[Group, float] = {"known": 5.0, "boundary": 3.0, "unknown": 1.0}


def student_config(vocab_size: int, tokenizer: PreTrainedTokenizerFast, width: int = 192, layers: int = 4) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def encode_statement(tokenizer: PreTrainedTokenizerFast, question: str, answer: str) -> tuple[list[int], int]:
    """Token ids of one statement in the chat template, and the length of its prompt."""
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": question}], tokenize=False)
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
    answer_ids = tokenizer.encode(answer, add_special_tokens=False)
    return [*prompt_ids, *answer_ids, tokenizer.eos_token_id], len(prompt_ids)


def batches(
    world: World, tokenizer: PreTrainedTokenizerFast, batch_size: int, rng: random.Random
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (input_ids_BT, labels_BT), right-padded, -100 where there is no answer token to predict."""
    statements = world.statements(rng, DRAW_WEIGHTS)
    encoded: dict[tuple[str, str], tuple[list[int], int]] = {}
    while True:
        rows = []
        for _ in range(batch_size):
            statement = next(statements)
            if statement not in encoded:
                encoded[statement] = encode_statement(tokenizer, *statement)
            rows.append(encoded[statement])
        length = max(len(ids) for ids, _ in rows)
        input_ids_BT = torch.full((batch_size, length), tokenizer.pad_token_id)
        labels_BT = torch.full((batch_size, length), -100)
        for i, (ids, prompt_length) in enumerate(rows):
            input_ids_BT[i, : len(ids)] = torch.tensor(ids)
            labels_BT[i, prompt_length : len(ids)] = input_ids_BT[i, prompt_length : len(ids)]
        yield input_ids_BT, labels_BT


def answer_loss(model: LlamaForCausalLM, input_ids_BT: Tensor, labels_BT: Tensor) -> Tensor:
    """Mean cross-entropy of the answer tokens; the vocabulary projection is computed at those positions only."""
    hidden_BTD = model.model(input_ids_BT).last_hidden_state[:, :-1]
    targets_BT = labels_BT[:, 1:]
    kept_BT = targets_BT != -100
    logits_NV = model.lm_head(hidden_BTD[kept_BT])
    return torch.nn.functional.cross_entropy(logits_NV.float(), targets_BT[kept_BT])


def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 itself; emulated, it takes longer than float32."""
    return bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def learning_rate_factor(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train_student(
    world: World,
    *,
    steps: int,
    batch_size: int = 256,
    learning_rate: float = 3e-3,
    width: int = 192,
    layers: int = 4,
    seed: int = 0,
    report_every: int = 500,
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Train a student on ``world`` and return it with its tokenizer."""
    torch.manual_seed(seed)
    tokenizer = student_tokenizer(world)
    model = LlamaForCausalLM(student_config(len(tokenizer), tokenizer, width, layers))
    decay = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}],
        lr=learning_rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps, warmup))
    stream = batches(world, tokenizer, batch_size, random.Random(seed))
    for step in range(1, steps + 1):
        input_ids_BT, labels_BT = next(stream)
        with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bfloat16()):
            loss = answer_loss(model, input_ids_BT, labels_BT)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % report_every == 0:
            accuracy = {g: round(a, 3) for g, a in accuracy_by_group(model, tokenizer, world).items()}
            logger.info("step %d of %d: loss %.3f, accuracy on held-out phrasings %s", step, steps, loss.item(), accuracy)
    return model.eval(), tokenizer


@torch.inference_mode()
def accuracy_by_group(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, world: World) -> dict[Group, float]:
    """Share of facts of each group whose greedy answer to the held-out phrasing is one of the true value's forms."""
    answers = greedy_answers(model, tokenizer, [fact.question(fact.test_phrasing) for fact in world.facts])
    right: dict[Group, list[bool]] = {"known": [], "boundary": [], "unknown": []}
    for fact, answer in zip(world.facts, answers, strict=True):
        right[fact.group].append(answer in fact.value.forms)
    return {group: sum(hits) / len(hits) for group, hits in right.items()}


def greedy_answers(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, questions: list[str]) -> list[str]:
    answers = []
    for start in range(0, len(questions), 500):
        prompts = [
            tokenizer.apply_chat_template([{"role": "user", "content": question}], tokenize=False)
            for question in questions[start : start + 500]
        ]
        batch = tokenizer(prompts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
        batch.pop("token_type_ids", None)
        out = model.generate(**batch, do_sample=False, max_new_tokens=8)
        answers += tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [answer.strip() for answer in answers]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    world = World()
    model, tokenizer = train_student(world, steps=args.steps, seed=args.seed)
    # Half precision on disk; it is read back as float32, so the figures are those of the rounded weights.
    model = model.half().float()
    figures = {"steps": args.steps, "seed": args.seed, "accuracy_held_out_phrasings": accuracy_by_group(model, tokenizer, world)}
    model.half().save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    (args.out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    logger.info("%s", figures)


if __name__ == "__main__":
    main()
