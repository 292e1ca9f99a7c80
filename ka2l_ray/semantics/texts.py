"""Texts, or pairs of them, on their way into an encoder model: what NLI judges and sentence encoders share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PretrainedConfig

from ka2l_ray.errors import UserError
from ka2l_ray.models.batching import batches_by_length
from ka2l_ray.models.model_files import check_tokenizer
from ka2l_ray.models.weights import check_headers, load_weights, refuse_gguf
from ka2l_ray.world import bundled_path


@dataclass(frozen=True)
class EncoderKind:
    """What an encoder model is for: its name in messages, how transformers makes it, and what of it nobody asks for."""

    name: str
    auto: Any
    unused: tuple[str, ...] = ()


def load_encoder_config(path: str, kind: EncoderKind, trust_remote_code: bool = False) -> PretrainedConfig:
    """The configuration of the model at ``path``; loads no weights, but looks at their headers.

    Raises:
        UserError: there is no such model, or its weights or its tokenizer are not whole.
    """
    refuse_gguf(path, path)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(bundled_path(path), trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no {kind.name} there ({str(error).splitlines()[0]})") from None
    check_headers(kind.auto, bundled_path(path), path, unused=kind.unused, bins=True, trust_remote_code=trust_remote_code)
    load_encoder_tokenizer(path, config, trust_remote_code)
    return config


def load_encoder_tokenizer(path: str, config: PretrainedConfig, trust_remote_code: bool = False) -> Any:
    """The tokenizer of the model at ``path``; what it truncates loses its beginning.

    Raises:
        UserError: there is none, or it is not this model's.
    """
    source: dict[str, Any] = {"trust_remote_code": trust_remote_code, "truncation_side": "left"}
    try:
        tokenizer = AutoTokenizer.from_pretrained(bundled_path(path), **source)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no tokenizer there ({str(error).splitlines()[0]}); give a complete model") from None
    check_tokenizer(tokenizer, config, path)
    return tokenizer


def load_encoder(path: str, kind: EncoderKind, trust_remote_code: bool = False, **options: Any) -> Any:
    """The model itself, every tensor of it from its files.

    Raises:
        UserError: its weights are not whole.
    """
    return load_weights(kind.auto, bundled_path(path), path, unused=kind.unused, trust_remote_code=trust_remote_code, **options)


class Texts:
    """Tokenises for one model, in padded batches of similar length. What is too long loses its beginning: the answer is last."""

    def __init__(self, path: str, config: PretrainedConfig, trust_remote_code: bool = False) -> None:
        self.tokenizer = load_encoder_tokenizer(path, config, trust_remote_code)
        # RoBERTa keeps two positions.
        self.max_length = min(self.tokenizer.model_max_length, getattr(config, "max_position_embeddings", 512) - 2)

    def encode(self, *columns: Sequence[str]) -> tuple[Any, set[int]]:
        """Token ids of each row of one column of texts, or of two (a sentence pair), and the rows that had to be cut."""
        texts = [list(column) for column in columns]
        encoded = self.tokenizer(*texts, verbose=False)
        truncated = {i for i, ids in enumerate(encoded["input_ids"]) if len(ids) > self.max_length}
        if truncated:
            encoded = self.tokenizer(*texts, truncation=True, max_length=self.max_length)
        return encoded, truncated

    def batches(self, encoded: Any, batch_tokens: int, enough: int) -> Iterator[tuple[list[int], Any]]:
        """(rows, padded tensors on the CPU); sizes as in ``batches_by_length``."""
        for rows in batches_by_length([len(ids) for ids in encoded["input_ids"]], batch_tokens, enough=enough):
            chosen = {name: [column[i] for i in rows] for name, column in encoded.items()}
            yield rows, self.tokenizer.pad(chosen, return_tensors="pt")
