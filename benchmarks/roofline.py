"""The least time that a device can take for what the engine does, from its peak arithmetic and its memory bandwidth.

Prefill is bound by arithmetic, 2 operations a weight and token, and 4 x width a layer for each earlier token attended to. A
decoding step is bound by memory: every weight is read once for the whole batch, and every row reads its own cache.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """Peaks as the maker gives them: dense bfloat16 operations and bytes a second."""

    name: str
    flops: float
    bandwidth: float


DEVICES = {
    "A100": Device("A100 80GB SXM", 312e12, 2.039e12),
    "H100": Device("H100 80GB SXM", 989e12, 3.35e12),
    "H200": Device("H200 141GB SXM", 989e12, 4.8e12),
}


@dataclass(frozen=True)
class Shape:
    """Of a Llama-like decoder."""

    layers: int
    width: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    bytes_a_value: int = 2

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def block_weights(self) -> int:
        """Matrix weights of one block: queries, keys, values, output, and the three of the gated MLP."""
        kv_width = self.kv_heads * self.head_width
        return 2 * self.width * self.width + 2 * self.width * kv_width + 3 * self.width * self.intermediate

    @property
    def vocabulary_weights(self) -> int:
        return self.width * self.vocabulary

    @property
    def cache_bytes_a_token(self) -> int:
        """Keys and values of all layers."""
        return 2 * self.layers * self.kv_heads * self.head_width * self.bytes_a_value


LLAMA_8B = Shape(layers=32, width=4096, intermediate=14336, heads=32, kv_heads=8, vocabulary=128256)


def prefill_seconds(shape: Shape, lengths: list[int], device: Device, *, layers: int | None = None, heads: int = 0) -> float:
    """Of prompts of ``lengths`` tokens through ``layers`` blocks (all when left out); ``heads`` rows get logits."""
    depth = shape.layers if layers is None else layers
    tokens, pairs = sum(lengths), sum(n * (n + 1) / 2 for n in lengths)
    operations = depth * (2 * shape.block_weights * tokens + 4 * shape.width * pairs) + 2 * shape.vocabulary_weights * heads
    return operations / device.flops


def decode_seconds(shape: Shape, rows: int, context: float, steps: int, device: Device) -> float:
    """``steps`` tokens for each of ``rows`` sequences whose cache holds ``context`` tokens on average."""
    weights = shape.layers * shape.block_weights + shape.vocabulary_weights
    moved = weights * shape.bytes_a_value + rows * context * shape.cache_bytes_a_token
    operations = 2 * weights * rows + 4 * shape.width * shape.layers * context * rows
    return steps * max(moved / device.bandwidth, operations / device.flops)
