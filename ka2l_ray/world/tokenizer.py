"""Byte-level BPE tokenizers of the bundled world's two models: every word of the world is one token, any other text is bytes."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ka2l_ray.world.facts import World
from ka2l_ray.world.lexicon import PHRASINGS, VAGUE

# A question on a line of its own, the answer on the next: the student's whole prompt.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'user' %}{{ message.content }}\n"
    "{% elif message.role == 'assistant' %}{{ message.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


def questions_of(world: World) -> list[str]:
    """Every question that the world can ask."""
    return [
        template.format(entity=entity) for entity in world.entities for templates in PHRASINGS.values() for template in templates
    ]


def answers_of(world: World) -> list[str]:
    """Every surface form of every value."""
    return [form for values in world.values.values() for value in values for form in value.forms]


def _byte_level_bpe(texts: list[str], special_tokens: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=30_000,  # never reached: merging ends when every word is one token
        min_frequency=1,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def student_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """Tokenizer of the student, with its chat template; the pad token is not the end token."""
    tokenizer = _byte_level_bpe(questions_of(world) + answers_of(world), ["<pad>", "<s>", "</s>"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=512
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def judge_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """Tokenizer of the judge: ``[CLS] premise [SEP] hypothesis [SEP]``."""
    answers = answers_of(world) + [vague for table in VAGUE.values() for vague in table]
    tokenizer = _byte_level_bpe(questions_of(world) + [f" {answer}" for answer in answers], ["[PAD]", "[CLS]", "[SEP]"])
    ids = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", model_max_length=512
    )
