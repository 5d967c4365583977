"""A model's weights as the decoders want them: fused, and queries and keys arranged.

Read layer by layer, so that no more than one layer's copies are ever held: in float32, or in the
file's own blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specpipe.models.gguf_blocks import Blocks, Form, joined
from specpipe.models.rotary import from_halves
from specpipe.models.source import ModelSource

Floats = NDArray[np.float32]

EMBEDDING, HEAD = "token_embd", "output"
GROUPS = ("attn_q", "attn_k", "attn_v"), ("attn_output",), ("ffn_gate", "ffn_up"), ("ffn_down",)
"""Matrices of a block that are kept as one."""


@dataclass(frozen=True, slots=True)
class Linear:
    """A matrix [outputs, inputs], and what is added to its product: [outputs], or None."""

    weight: Floats | Blocks
    bias: Floats | None = None


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One block.

    Attributes:
        attention_norm, ffn_norm: [width].
        qkv: width -> (heads + 2 * kv_heads) * head_dim; queries and keys for interleaved rotary
            pairs.
        qk_norm: [heads + kv_heads, head_dim], the weights of the norms that query and key heads
            pass before they are rotated, or None.
        out: heads * head_dim -> width.
        gate, up: width -> ffn_width; no gate: there is none.
        down: ffn_width -> width.
    """

    attention_norm: Floats
    qkv: Linear
    qk_norm: Floats | None
    out: Linear
    ffn_norm: Floats
    gate: Linear | None
    up: Linear
    down: Linear


def find_forms(source: ModelSource) -> dict[str, Form]:
    """The matrices that can be read in blocks, by their names without number, and in which form.

    What is kept as one matrix has to have the same in all layers.
    """
    if source.blocks is None:
        return {}
    config, forms = source.config, dict[str, Form]()
    layers, there = range(config.layers), config.matrices()
    for group in GROUPS:
        names = [name for name in group if name in there]
        stored = [f"blk.{layer}.{name}.weight" for layer in layers for name in names]
        if form := source.blocks.form(stored):
            forms |= dict.fromkeys(names, form)
    for name in (EMBEDDING,) if config.tied else (EMBEDDING, HEAD):
        if form := source.blocks.form([f"{name}.weight"]):
            forms[name] = form
    return forms


class DecoderWeights:
    """Reads the weights of one model.

    Attributes:
        config: the model's shape.
        forms: of the matrices that are read as blocks, by their names without number.

    Args:
        source: where they are.
        in_blocks: whether to read in blocks what `find_forms` finds.
    """

    def __init__(self, source: ModelSource, *, in_blocks: bool = False) -> None:
        self.config = source.config
        self._read, self._blocks = source.read, source.blocks
        self.forms = find_forms(source) if in_blocks else {}

    def embedding(self) -> Floats | Blocks:
        """[vocab_size, width]."""
        return self._matrix(EMBEDDING, f"{EMBEDDING}.weight")

    def head(self) -> Floats | Blocks:
        """[vocab_size, width], where it isn't the embedding."""
        return self._matrix(HEAD, f"{HEAD}.weight")

    def own_head(self) -> Floats:
        """[head_ids, width], where the model has a head for some tokens."""
        return self._read("head.weight")

    def head_norm(self) -> Floats:
        """The norm before the head: [width]."""
        return self._read("output_norm.weight")

    def layer(self, index: int) -> LayerWeights:
        """Read a block."""
        block = f"blk.{index}"
        return LayerWeights(
            attention_norm=self._read(f"{block}.attn_norm.weight"),
            qkv=self._fused(block, "attn_q", "attn_k", "attn_v"),
            qk_norm=self._qk_norm(block) if self.config.qk_norm else None,
            out=self._fused(block, "attn_output"),
            ffn_norm=self._read(f"{block}.ffn_norm.weight"),
            gate=self._fused(block, "ffn_gate") if self.config.gated else None,
            up=self._fused(block, "ffn_up"),
            down=self._fused(block, "ffn_down"),
        )

    def _fused(self, block: str, *names: str) -> Linear:
        """One linear layer of several that read the same."""
        parts = [
            self._arranged(name, self._matrix(name, f"{block}.{name}.weight")) for name in names
        ]
        weight = _one_of(parts)
        if not self.config.biases & set(names):
            return Linear(weight)
        return Linear(weight, np.concatenate([self._bias(block, name) for name in names]))

    def _bias(self, block: str, name: str) -> Floats:
        if name in self.config.biases:
            bias = self._arranged(name, self._read(f"{block}.{name}.bias"))
            return as_floats(bias)
        return np.zeros(self.config.matrices()[name][0], np.float32)

    def _qk_norm(self, block: str) -> Floats:
        queries, keys = (
            as_floats(self._arranged(name, self._read(f"{block}.{name}_norm.weight")))
            for name in ("attn_q", "attn_k")
        )
        return np.stack([queries] * self.config.heads + [keys] * self.config.kv_heads)

    def _matrix(self, name: str, stored: str) -> Floats | Blocks:
        if self._blocks and name in self.forms:
            return self._blocks.read(stored, self.forms[name])
        return self._read(stored)

    def _arranged(self, name: str, values: Floats | Blocks) -> Floats | Blocks:
        """A weight or bias; of queries and keys for interleaved rotary pairs."""
        if not self.config.rotary_halves or name not in ("attn_q", "attn_k"):
            return values
        if not isinstance(values, Blocks):
            return from_halves(values, self.config.head_dim)
        order = from_halves(np.arange(len(values)), self.config.head_dim)
        return values[order]


def as_floats(values: Floats | Blocks) -> Floats:
    """A matrix in float32, however it was read."""
    return values.floats() if isinstance(values, Blocks) else values


def _one_of(parts: Sequence[Floats | Blocks]) -> Floats | Blocks:
    if len(parts) == 1:
        return parts[0]
    blocks = [part for part in parts if isinstance(part, Blocks)]
    return joined(blocks) if blocks else np.concatenate([as_floats(part) for part in parts])
