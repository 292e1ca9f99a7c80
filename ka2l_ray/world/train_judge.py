"""Train the bundled NLI judge from scratch on a CPU.

    python -m ka2l_ray.world.train_judge --out ka2l_ray/world/judge

A small DeBERTa reads pairs of (question + answer) and says entailment, neutral or contradiction: two forms of one value
entail each other, two values contradict, a value entails what is true of every value ("a city") and not the reverse.
One ordered pair of surface forms in ten is held out of training.

A small model does not find equality of meaning by itself, it learns pairs by heart. So the embeddings of the forms of one
value are drawn together first, and the first layer's queries and keys start as the identity: tokens attend to their like.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import random
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase

import torch
from torch import Tensor
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification, PreTrainedTokenizerFast

from ka2l_ray.world.facts import Value, World
from ka2l_ray.world.lexicon import PHRASINGS, VAGUE
from ka2l_ray.world.tokenizer import judge_tokenizer
from ka2l_ray.world.train_student import has_fast_bfloat16, learning_rate_factor

logger = logging.getLogger(__name__)

LABELS = ["contradiction", "neutral", "entailment"]
SHUFFLED_SHARE = 0.15  # questions of the world's words at random, so that the verdict rests on the answers
FOREIGN_SHARE = 0.3  # batches whose questions are no words of the world: any other text is bytes to this tokenizer
FOREIGN_BATCH = 64  # such questions are five times as long


@dataclass(frozen=True)
class Example:
    premise: str
    hypothesis: str
    label: str


def is_held_out(a: str, b: str) -> bool:
    """One ordered pair of different forms in ten, by hash; never both orders of a pair, nor equal forms."""

    def low(first: str, second: str) -> bool:
        return hashlib.sha256(f"{first}\x1f{second}".encode()).digest()[0] < 26

    return a != b and low(a, b) and not low(b, a)


class PairSource:
    """Draws labelled pairs of the world, either those held out of training or the others."""

    def __init__(self, world: World, rng: random.Random, held_out: bool) -> None:
        self.world, self.rng, self.held_out = world, rng, held_out
        self.words = world.entities + [word for templates in PHRASINGS.values() for t in templates for word in t.split()]

    def draw(self, foreign: bool = False) -> Example:
        """A pair; ``foreign``: after a question in letters that the world does not know."""
        while True:
            kind = self.rng.random()
            relation, a, b, label = self._same() if kind < 0.4 else self._different() if kind < 0.75 else self._vague()
            if is_held_out(a, b) == self.held_out:
                question = self._foreign_question() if foreign else self._question(relation)
                return Example(f"{question} {a}", f"{question} {b}", label)

    def _value(self, relation: str | None = None) -> Value:
        relation = relation or self.rng.choice(list(PHRASINGS))
        return self.rng.choice(self.world.values[relation])

    def _same(self) -> tuple[str, str, str, str]:
        value = self._value()
        return value.relation, self.rng.choice(value.forms), self.rng.choice(value.forms), "entailment"

    def _different(self) -> tuple[str, str, str, str]:
        a = self._value()
        b = self._value(a.relation if self.rng.random() < 0.8 else None)
        while b == a:
            b = self._value(a.relation)
        return a.relation, self.rng.choice(a.forms), self.rng.choice(b.forms), "contradiction"

    def _vague(self) -> tuple[str, str, str, str]:
        value = self._value()
        form, vague = self.rng.choice(value.forms), self.rng.choice(VAGUE[value.relation])
        if self.rng.random() < 0.5:
            return value.relation, form, vague, "entailment"
        return value.relation, vague, form, "neutral"

    def _question(self, relation: str) -> str:
        if self.rng.random() < SHUFFLED_SHARE:
            return " ".join(self.rng.choices(self.words, k=self.rng.randint(3, 12))) + "?"
        return self.rng.choice(PHRASINGS[relation]).format(entity=self.rng.choice(self.world.entities))

    def _foreign_question(self) -> str:
        """Words of random letters among words of the world, with now and then a capital or a mark."""
        words = []
        for _ in range(self.rng.randint(3, 14)):
            word = "".join(self.rng.choices(ascii_lowercase, k=self.rng.randint(1, 9)))
            word = self.rng.choice([word, word, word, word.capitalize(), f"{word},", f'"{word}"', f"{self.rng.randint(1, 2000)}"])
            words.append(self.rng.choice(self.words) if self.rng.random() < 0.2 else word)
        return " ".join(words) + "?"


def judge_config(tokenizer: PreTrainedTokenizerFast, width: int = 128, layers: int = 3) -> DebertaV2Config:
    return DebertaV2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=2 * width,
        max_position_embeddings=512,
        type_vocab_size=2,
        relative_attention=True,
        max_relative_positions=64,
        pos_att_type=["p2c", "c2p"],
        norm_rel_ebd="layer_norm",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
        id2label=dict(enumerate(LABELS)),
        label2id={label: i for i, label in enumerate(LABELS)},
    )


def align_embeddings(
    model: DebertaV2ForSequenceClassification, tokenizer: PreTrainedTokenizerFast, world: World, steps: int, seed: int
) -> None:
    """Phase one: InfoNCE between the mean token embeddings of two forms of one value, other values of the batch apart."""
    rng = random.Random(seed)
    values = [value for table in world.values.values() for value in table]
    embeddings = model.get_input_embeddings()
    optimizer = torch.optim.AdamW(embeddings.parameters(), lr=3e-3)

    def embed(forms: list[str]) -> Tensor:
        batch = tokenizer([f" {form}" for form in forms], add_special_tokens=False, padding=True, return_tensors="pt")
        mask_BT1 = batch["attention_mask"][..., None]
        return torch.nn.functional.normalize((embeddings(batch["input_ids"]) * mask_BT1).sum(1), dim=-1)

    for _ in range(steps):
        pairs = []
        for value in rng.sample(values, min(128, len(values))):
            a, b = rng.sample(value.forms, 2)
            if not is_held_out(a, b):
                pairs.append((a, b))
        similarity_BB = embed([a for a, _ in pairs]) @ embed([b for _, b in pairs]).T
        loss = torch.nn.functional.cross_entropy(similarity_BB / 0.1, torch.arange(len(pairs)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    logger.info("embeddings aligned: loss %.3f", loss.item())


@torch.no_grad()
def attend_to_like(model: DebertaV2ForSequenceClassification) -> None:
    """Start the first layer's queries and keys as the identity."""
    attention = model.deberta.encoder.layer[0].attention.self
    for projection in (attention.query_proj, attention.key_proj):
        projection.weight.copy_(torch.eye(projection.in_features))
        projection.bias.zero_()


def train_judge(
    world: World,
    *,
    steps: int,
    batch_size: int = 192,
    learning_rate: float = 1e-3,
    seed: int = 0,
    report_every: int = 250,
) -> tuple[DebertaV2ForSequenceClassification, PreTrainedTokenizerFast]:
    """Train a judge on ``world`` and return it with its tokenizer."""
    torch.manual_seed(seed)
    tokenizer = judge_tokenizer(world)
    model = DebertaV2ForSequenceClassification(judge_config(tokenizer))
    align_embeddings(model, tokenizer, world, steps=min(steps, 400), seed=seed)
    attend_to_like(model)
    model.get_input_embeddings().requires_grad_(False)
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=learning_rate, weight_decay=0.01, fused=True)
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps, warmup))
    source = PairSource(world, random.Random(seed), held_out=False)
    for step in range(1, steps + 1):
        model.train()
        foreign = step > steps // 3 and source.rng.random() < FOREIGN_SHARE
        examples = [source.draw(foreign) for _ in range(FOREIGN_BATCH if foreign else batch_size)]
        batch = tokenizer([e.premise for e in examples], [e.hypothesis for e in examples], padding=True, return_tensors="pt")
        targets = torch.tensor([LABELS.index(e.label) for e in examples])
        with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bfloat16()):
            logits = model(**batch).logits
        loss = torch.nn.functional.cross_entropy(logits.float(), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % report_every == 0:
            agreement, elsewhere = (held_out_agreement(model, tokenizer, world, n=500, foreign=f) for f in (False, True))
            logger.info("step %d of %d: held-out pairs right %.4f, after foreign text %.4f", step, steps, agreement, elsewhere)
    return model.eval(), tokenizer


@torch.inference_mode()
def held_out_agreement(
    model: DebertaV2ForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
    world: World,
    n: int = 4000,
    seed: int = 1,
    foreign: bool = False,
) -> float:
    """Share of held-out pairs whose verdict (of three) is right; ``foreign``: after questions of another text."""
    model.eval()
    source = PairSource(world, random.Random(seed), held_out=True)
    examples = [source.draw(foreign) for _ in range(n)]
    right = 0
    for start in range(0, n, 500):
        part = examples[start : start + 500]
        batch = tokenizer([e.premise for e in part], [e.hypothesis for e in part], padding=True, return_tensors="pt")
        verdicts = model(**batch).logits.argmax(-1).tolist()
        right += sum(LABELS[v] == e.label for v, e in zip(verdicts, part, strict=True))
    return right / n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    world = World()
    model, tokenizer = train_judge(world, steps=args.steps, seed=args.seed)
    model = model.half().float()  # half precision on disk: the figures are those of the rounded weights
    figures = {
        "steps": args.steps,
        "seed": args.seed,
        "held_out_pairs_right": held_out_agreement(model, tokenizer, world),
        "held_out_pairs_right_after_foreign_questions": held_out_agreement(model, tokenizer, world, foreign=True),
    }
    model.half().save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    (args.out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    logger.info("%s", figures)


if __name__ == "__main__":
    main()
