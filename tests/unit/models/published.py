"""Chat templates as published models ship them, each on a small tokenizer with the model's own special tokens."""

# ruff: noqa: RUF001 (DeepSeek's marks are written with a wide bar)

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

TEMPLATES = Path(__file__).parents[2] / "data" / "chat_templates"
CORPUS = ["Answer the question as briefly as you can.\n\nQuestion: Who wrote Hamlet?\nAnswer: William Shakespeare\n"] * 3


@dataclass(frozen=True)
class Published:
    """What of a model's tokenizer its template relies on.

    Args:
        end: the token that ends an answer.
        special: its special tokens besides bos and eos; those of ``plain`` are tokens too, but not special.
        sentence_piece: Llama-2's kind, which puts a space before a text's first word.
        rstrip: special tokens swallow the space behind them, as Phi-3's do.
    """

    end: str
    bos: str | None
    eos: str
    special: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    sentence_piece: bool = False
    rstrip: bool = False


_LLAMA_3 = Published(
    "<|eot_id|>", "<|begin_of_text|>", "<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|python_tag|>")
)
_CHATML = Published("<|im_end|>", None, "<|im_end|>", ("<|im_start|>", "<|endoftext|>"))
_THINKING = Published("<|im_end|>", None, "<|im_end|>", ("<|im_start|>", "<|endoftext|>"), ("<think>", "</think>"))
_GLM = ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")

PUBLISHED = {
    "deepseek-r1-distill-qwen-7b": Published(
        "<｜end▁of▁sentence｜>",
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        (),
        ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"),
    ),
    "gemma-2-9b-it": Published("<end_of_turn>", "<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>")),
    "glm-4-9b-chat": Published("<|user|>", None, "<|endoftext|>", _GLM),
    "glm-4.5-air": Published("<|user|>", None, "<|endoftext|>", (*_GLM, "/nothink"), ("<think>", "</think>")),
    "gpt-oss-20b": Published(
        "<|return|>", "<|startoftext|>", "<|return|>", ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>")
    ),
    "llama-2-7b-chat": Published("</s>", "<s>", "</s>", sentence_piece=True),
    "llama-3.1-8b-instruct": _LLAMA_3,
    "llama-3.2-3b-instruct": _LLAMA_3,
    "mistral-7b-instruct-v0.1": Published("</s>", "<s>", "</s>", sentence_piece=True),
    "mistral-7b-instruct-v0.3": Published("</s>", "<s>", "</s>", ("[INST]", "[/INST]"), sentence_piece=True),
    "mistral-small-24b": Published("</s>", "<s>", "</s>", ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")),
    "phi-3.5-mini-instruct": Published(
        "<|end|>",
        "<s>",
        "<|endoftext|>",
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        sentence_piece=True,
        rstrip=True,
    ),
    "qwen1.5-7b-chat": _CHATML,
    "qwen2.5-7b-instruct": _CHATML,
    "qwen3-8b": _THINKING,
    "qwen3.6-35b-a3b": _THINKING,
    "smollm3-3b": Published("<|im_end|>", None, "<|im_end|>", ("<|im_start|>", "<think>", "</think>")),
}


def published_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A small tokenizer with the template and the special tokens of the model ``name``."""
    model = PUBLISHED[name]
    tokenizer = _sentence_piece() if model.sentence_piece else _byte_level()
    tokenizer.add_special_tokens({"eos_token": model.eos, **({"bos_token": model.bos} if model.bos else {})})
    special = [AddedToken(text, rstrip=model.rstrip, special=True, normalized=False) for text in model.special]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in model.plain])
    tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    return tokenizer


def _byte_level() -> PreTrainedTokenizerFast:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=trained)


def _sentence_piece() -> LlamaTokenizer:
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(special_tokens=special, show_progress=False, vocab_size=1000))
    model = json.loads(trained.to_str())["model"]
    return LlamaTokenizer(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])
