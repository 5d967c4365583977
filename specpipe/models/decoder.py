"""A decoder of the llama family, made for few rows at a time and for bits that can be relied on.

The logits of a position depend on the tokens up to it, and on nothing else: not on how many rows
were computed together, in which chunks, or beside whom. Three rules make that so.
- Linear layers are row-invariant (`linear.py`).
- Attention runs row by row, each over exactly its own length: kernels sum a padded length, or
  several rows at once, in another order.
- Elementwise operations stay below the size from which torch cuts them up for its threads: the
  ends of the pieces are computed by other code than their middle.

Prefill follows the same rules, so that a cache that was rebuilt equals the one that was lost.

This module does not know files (`loader.py`), nor what its logits are for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from specpipe.models.interface import Logits
from specpipe.models.kv_cache import KVCache
from specpipe.models.linear import MAX_ROWS, PackedLinear
from specpipe.models.partial_head import PartialHead
from specpipe.models.rotary import ELEMENTS_AT_ONCE, RotaryTable
from specpipe.models.shape import DecoderConfig

_LAYERS_BETWEEN_QUESTIONS = 4


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One block; the weight of the norm before a linear layer is multiplied into it.

    Attributes:
        qkv: width -> (heads + 2 * kv_heads) * head_dim; queries and keys for interleaved rotary
            pairs, and queries already divided by sqrt(head_dim) unless qk_norm does it.
        out: heads * head_dim -> width.
        gate_up: width -> 2 * ffn_width.
        down: ffn_width -> width.
        qk_norm: float32[heads + kv_heads, head_dim], the weights of the norms that query and key
            heads pass before they are rotated, or None; the division by sqrt(head_dim) is in it.
    """

    qkv: PackedLinear
    out: PackedLinear
    gate_up: PackedLinear
    down: PackedLinear
    qk_norm: Tensor | None = None


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """All weights.

    Attributes:
        embedding: [vocab_size, width], in the model's dtype.
        layers: the blocks.
        head: width -> output_size, the final norm's weight in it.
    """

    embedding: Tensor
    layers: Sequence[LayerWeights]
    head: PackedLinear | PartialHead


class Decoder:
    """A `SequenceModel` (see interface.py) around packed weights and a `KVCache`.

    Attributes:
        config: the model's shape.
        dtype: how the weights are kept.
    """

    def __init__(self, config: DecoderConfig, weights: DecoderWeights, num_slots: int = 1) -> None:
        self.config = config
        self.dtype = weights.embedding.dtype
        self._device = weights.embedding.device
        self._weights = weights
        self._attend = _attend_cpu if self._device.type == "cpu" else _attend_cuda
        self._turns = RotaryTable(config, self._device)
        self._cache = KVCache(
            layers=config.layers,
            slots=num_slots,
            kv_heads=config.kv_heads,
            context=config.context_length,
            head_dim=config.head_dim,
            dtype=torch.float32 if self._device.type == "cpu" else self.dtype,
            device=self._device,
        )

    @property
    def vocab_size(self) -> int:
        """Number of token ids, a padded tail included."""
        return self.config.vocab_size

    @property
    def context_length(self) -> int:
        """Most tokens that a slot can hold."""
        return self.config.context_length

    @property
    def num_slots(self) -> int:
        """Sequences that can be held at once."""
        return self._cache.num_slots

    def open(self) -> int:
        """Take a free slot, of length 0; raises RuntimeError when none is free."""
        return self._cache.open()

    def close(self, slot: int) -> None:
        """Give a slot back."""
        self._cache.close(slot)

    def length(self, slot: int) -> int:
        """Tokens that the slot holds."""
        return self._cache.length(slot)

    def truncate(self, slot: int, length: int) -> None:
        """Forget all but the first `length` tokens of the slot, in O(1)."""
        self._cache.truncate(slot, length)

    def forward(
        self,
        slot: int,
        tokens: Sequence[int],
        rows: int,
        interrupted: Callable[[], bool] | None = None,
    ) -> Logits | None:
        """Feed `tokens` at the end of the slot; return the logits after each of the last `rows`.

        `interrupted` is asked every few layers; once it says yes, the slot is as it was before
        the call, and None is returned.

        Returns:
            float32[rows, output_size].

        Raises:
            ValueError: for no tokens, too many, ids outside the vocabulary, or too many rows.
        """
        self._check(slot, tokens, rows)
        if isinstance(self._weights.head, PartialHead):
            self._weights.head.see(tokens)
        start, count = self._cache.length(slot), len(tokens)
        try:
            with torch.inference_mode():
                ids = torch.tensor(tokens, dtype=torch.int64, device=self._device)
                kept = []
                for first in range(0, count, MAX_ROWS):
                    hidden = self._run_layers(slot, ids[first : first + MAX_ROWS], interrupted)
                    if hidden is None:
                        self._cache.truncate(slot, start)
                        return None
                    kept.append(hidden[max(0, count - rows - first) :])
                return self._logits(torch.cat(kept))
        except BaseException:
            self._cache.truncate(slot, start)
            raise

    def _check(self, slot: int, tokens: Sequence[int], rows: int) -> None:
        if not 0 <= rows <= len(tokens) or not tokens:
            raise ValueError(f"{rows} rows of {len(tokens)} tokens cannot be had")
        if len(tokens) > self._cache.room(slot):
            raise ValueError(
                f"{len(tokens)} tokens do not fit into the {self._cache.room(slot)} places left of "
                f"a context of {self.context_length}"
            )
        if min(tokens) < 0 or max(tokens) >= self.vocab_size:
            raise ValueError(f"token ids must lie between 0 and {self.vocab_size - 1}")

    def _run_layers(
        self, slot: int, ids: Tensor, interrupted: Callable[[], bool] | None
    ) -> Tensor | None:
        """Feed at most MAX_ROWS tokens; returns the hidden states [tokens, width] after them."""
        start, count = self._cache.length(slot), ids.shape[0]
        turns = self._turns(start, count)
        hidden = self._weights.embedding[ids].float()
        for index, layer in enumerate(self._weights.layers):
            if interrupted and index % _LAYERS_BETWEEN_QUESTIONS == 0 and interrupted():
                return None
            qkv = layer.qkv(self._norm(hidden))
            hidden += layer.out(self._attention(index, slot, qkv, turns, layer.qk_norm))
            gate_up = layer.gate_up(self._norm(hidden))
            hidden += layer.down(_by_rows(_gated, self.config.ffn_width, gate_up))
        self._cache.advance(slot, count)
        return hidden

    def _norm(self, hidden: Tensor) -> Tensor:
        """RMSNorm without its weight, which lives in the linear layer that follows."""
        return functional.rms_norm(hidden, (self.config.width,), None, self.config.norm_eps)

    def _attention(
        self, layer: int, slot: int, qkv: Tensor, turns: Tensor, qk_norm: Tensor | None
    ) -> Tensor:
        """Cache the rows' keys and values, and let every row attend to all up to itself."""
        config, count = self.config, qkv.shape[0]
        start = self._cache.length(slot)
        turned_heads = config.heads + config.kv_heads
        heads = qkv.view(count, turned_heads + config.kv_heads, config.head_dim)
        turned = heads[:, :turned_heads]
        if qk_norm is not None:
            turned = functional.rms_norm(turned, turned.shape[-1:], None, config.norm_eps) * qk_norm
        turned = _by_rows(_turn, turned_heads * config.head_dim, turned, turns)
        keys, values = self._cache.write(
            layer, slot, turned[:, config.heads :], heads[:, turned_heads:]
        )
        # The query heads that share a key head are the rows of its matrix product.
        shape = (count, config.kv_heads, -1, config.head_dim)
        queries = turned[:, : config.heads].view(shape).to(keys.dtype)
        mixed = torch.empty_like(queries, memory_format=torch.contiguous_format)
        for row in range(count):
            length = start + row + 1
            self._attend(queries[row], keys[:, :length], values[:, :length], mixed[row])
        return mixed.view(count, -1).float()

    def _logits(self, hidden: Tensor) -> Logits:
        if not hidden.shape[0]:
            return torch.empty(0, self.config.output_size).numpy()
        logits: Logits = self._weights.head(self._norm(hidden)).cpu().numpy()
        return logits


def _turn(heads: Tensor, turns: Tensor) -> Tensor:
    """Rotate interleaved pairs of [rows, heads, head_dim] as complex numbers."""
    pairs = torch.view_as_complex(heads.view(*heads.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns).flatten(-2)


def _attend_cpu(queries: Tensor, keys: Tensor, values: Tensor, out: Tensor) -> None:
    """One row's attention: queries and out [kv heads, group, head_dim], rest [kv heads, n, ...]."""
    scores = torch.bmm(queries, keys.transpose(1, 2))
    torch.bmm(torch.softmax(scores, -1), values, out=out)


def _attend_cuda(queries: Tensor, keys: Tensor, values: Tensor, out: Tensor) -> None:
    """The same with a kernel that keeps its sums in float32; not yet run on hardware."""
    attention = functional.scaled_dot_product_attention
    out.copy_(attention(queries[None], keys[None], values[None], scale=1.0)[0])


def _gated(gate_up: Tensor) -> Tensor:
    """SwiGLU: [rows, 2 * n] to [rows, n]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate).mul_(up)


def _by_rows(operation: Callable[..., Tensor], width: int, *inputs: Tensor) -> Tensor:
    """Apply an elementwise operation to so few rows at once that torch uses one thread."""
    rows = max(1, ELEMENTS_AT_ONCE // width)
    if inputs[0].shape[0] <= rows:
        return operation(*inputs)
    parts = zip(*(torch.split(x, rows) for x in inputs), strict=True)
    return torch.cat([operation(*part) for part in parts])
