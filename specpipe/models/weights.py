"""A model's weights as the decoders want them: fused, and queries and keys arranged.

Read layer by layer, in float32, so that no more than one layer's copies are ever held.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specpipe.models.rotary import from_halves
from specpipe.models.source import ModelSource

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Linear:
    """A matrix [outputs, inputs], and what is added to its product: [outputs], or None."""

    weight: Floats
    bias: Floats | None = None


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One block.

    Attributes:
        attention_norm, ffn_norm: [width].
        qkv: width -> (heads + 2 * kv_heads) * head_dim; queries and keys for interleaved rotary
            pairs, and queries already divided by sqrt(head_dim) unless qk_norm does it.
        qk_norm: [heads + kv_heads, head_dim], the weights of the norms that query and key heads
            pass before they are rotated, or None; the division by sqrt(head_dim) is in it.
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


class DecoderWeights:
    """Reads the weights of one model."""

    def __init__(self, source: ModelSource) -> None:
        self.config = source.config
        self._read = source.read

    def embedding(self) -> Floats:
        """[vocab_size, width]."""
        return self._read("token_embd.weight")

    def head(self) -> Floats:
        """[vocab_size, width], where it isn't the embedding."""
        return self._read("output.weight")

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
        parts = [self._arranged(block, name, "weight") for name in names]
        weight = np.concatenate(parts) if len(parts) > 1 else parts[0]
        if not self.config.biases & set(names):
            return Linear(weight)
        return Linear(weight, np.concatenate([self._bias(block, name) for name in names]))

    def _bias(self, block: str, name: str) -> Floats:
        if name in self.config.biases:
            return self._arranged(block, name, "bias")
        return np.zeros(self.config.matrices()[name][0], np.float32)

    def _qk_norm(self, block: str) -> Floats:
        queries = self._arranged(block, "attn_q_norm", "weight")
        keys = self._arranged(block, "attn_k_norm", "weight")
        return np.stack([queries] * self.config.heads + [keys] * self.config.kv_heads)

    def _arranged(self, block: str, name: str, kind: str) -> Floats:
        """A weight or bias; of queries and keys as the decoder wants them.

        That is for interleaved rotary pairs, and queries divided by sqrt(head_dim) at the last
        place that scales them.
        """
        config, values = self.config, self._read(f"{block}.{name}.{kind}")
        is_query, is_key = name.startswith("attn_q"), name.startswith("attn_k")
        if config.rotary_halves and (is_query or is_key):
            values = from_halves(values, config.head_dim)
        if is_query and config.qk_norm == name.endswith("_norm"):
            values = values * np.float32(config.head_dim**-0.5)
        return values
