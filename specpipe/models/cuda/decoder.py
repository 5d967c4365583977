"""The decoder in torch, for CUDA: one shape of pass, captured as a graph.

Every pass has ROWS rows, of which some may be of no use. A GPU reads weights for so many rows in
the time that it takes for one; and since each kernel always gets the same shape, a row has the same
bits whatever is computed beside it, at prefill as in decoding. The length that attention covers
depends on a row's own position alone; what lies behind the position is masked.

Tests run all of it on a CPU, where nothing is captured. It has not been run on a GPU yet.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from specpipe.errors import UserError
from specpipe.models.decoder import Decoder
from specpipe.models.interface import Feed, Interrupted, Logits
from specpipe.models.partial_head import MOST_SEEN, SeenTokens, covered_ids, spread
from specpipe.models.rotary import RotaryTable
from specpipe.models.shape import DecoderConfig
from specpipe.models.weights import DecoderWeights, Floats, Linear, as_floats

ROWS = 16
_LEAST_REACH = 256
_FLOAT16_MAX = 65504.0

_Matrix = tuple[Tensor, Tensor | None]


@dataclass(frozen=True, slots=True)
class _Layer:
    """One block: weights and biases as `functional.linear` takes them, and the norms' weights."""

    attention_norm: Tensor
    qkv: _Matrix
    qk_norm: Tensor | None
    out: _Matrix
    ffn_norm: Tensor
    gate_up: _Matrix
    down: _Matrix


class CudaDecoder(Decoder):
    """A `SequenceModel` on one device.

    Args:
        config: the model's shape, as it is to be used.
        weights: where to read its weights.
        dtype: a dtype of torch.
        device: where it computes.
        num_slots: sequences that can be held at once.
        head_tokens, kept_tokens: see `load_model`.
    """

    @torch.inference_mode()
    def __init__(
        self,
        config: DecoderConfig,
        weights: DecoderWeights,
        *,
        dtype: str,
        device: torch.device,
        num_slots: int = 1,
        head_tokens: int = 0,
        kept_tokens: Sequence[int] = (),
    ) -> None:
        super().__init__(config, dtype, num_slots, ROWS)
        self._device, self._kept_as = device, getattr(torch, dtype)
        self._embedding = self._keep(as_floats(weights.embedding()))
        self._all = self._embedding if config.tied else self._keep(as_floats(weights.head()))
        self._head = self._all if config.head_ids is None else self._keep(weights.own_head())
        self._head_norm = self._tensor(weights.head_norm())
        self._covered = covered_ids(config, head_tokens)
        self._head = self._head[: len(self._covered)]
        self._seen: SeenTokens | None = None
        if len(self._covered) < config.output_size:
            self._seen = SeenTokens(self._covered.tolist(), config.output_size, kept_tokens)
            self._seen_rows = torch.zeros_like(self._all[:1]).repeat(MOST_SEEN, 1)
            self._see(())
        self._layers = [self._load_layer(weights, index) for index in range(config.layers)]
        turns = self._tensor(RotaryTable(config).up_to(config.context_length))
        self._turns = torch.view_as_complex(turns.view(len(turns), 1, -1, 2))
        # Rows of no use write behind the context.
        places = config.context_length + ROWS
        kept = (2, config.layers, num_slots, config.kv_heads, places, config.head_dim)
        self._keys, self._values = torch.zeros(kept, dtype=self._kept_as, device=device)
        self._ids = torch.zeros(ROWS, dtype=torch.int64, device=device)
        self._positions, self._places = torch.zeros_like(self._ids), torch.zeros_like(self._ids)
        self._hidden = torch.zeros(ROWS, config.width, device=device)
        self._logits = torch.zeros(ROWS, len(self._covered), device=device)
        self._seen_logits = torch.zeros(ROWS, MOST_SEEN, device=device)
        self._graphs: dict[tuple[int, int] | None, Callable[[], None]] = {}

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights that a pass reads."""
        kept = [
            matrix[0]
            for layer in self._layers
            for matrix in (layer.qkv, layer.out, layer.gate_up, layer.down)
        ]
        return sum(weight.nbytes for weight in [*kept, self._head])

    # -- loading

    def _tensor(self, values: Floats) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self._device)

    def _keep(self, values: Floats) -> Tensor:
        """A matrix in the model's dtype.

        Raises:
            UserError: if a weight does not fit into float16.
        """
        largest = np.abs(values).max()
        if self._kept_as == torch.float16 and not largest <= _FLOAT16_MAX:
            raise UserError(
                f"a weight of {largest:g} does not fit into float16: load it as float32"
            )
        return self._tensor(values).to(self._kept_as)

    def _load_layer(self, weights: DecoderWeights, index: int) -> _Layer:
        layer = weights.layer(index)
        return _Layer(
            self._tensor(layer.attention_norm),
            self._matrix(layer.qkv),
            None if layer.qk_norm is None else self._tensor(layer.qk_norm),
            self._matrix(layer.out),
            self._tensor(layer.ffn_norm),
            self._matrix(*([] if layer.gate is None else [layer.gate]), layer.up),
            self._matrix(layer.down),
        )

    def _matrix(self, *linears: Linear) -> _Matrix:
        weight = self._keep(np.concatenate([as_floats(linear.weight) for linear in linears]))
        if all(linear.bias is None for linear in linears):
            return weight, None
        biases = [
            np.zeros(len(linear.weight), np.float32) if linear.bias is None else linear.bias
            for linear in linears
        ]
        return weight, self._tensor(np.concatenate(biases)).to(self._kept_as)

    # -- passes

    @torch.inference_mode()
    def _run(self, feeds: Sequence[Feed], interrupted: Interrupted) -> list[Logits] | None:
        logits = []
        for feed in feeds:
            self._see(feed.tokens)
            wanted = [np.empty((0, self.config.output_size), np.float32)]
            for piece, reach in self._pieces(feed):
                if interrupted and interrupted():
                    return None
                self._feed(piece, reach)
                if piece.rows:
                    wanted.append(self._judge(len(piece.tokens), piece.rows))
            logits.append(np.concatenate(wanted))
        return logits

    def _pieces(self, feed: Feed) -> Iterator[tuple[Feed, int]]:
        """Cut tokens into passes, each of whose rows have the same reach."""
        start, count, first = self._lengths.of(feed.slot), len(feed.tokens), 0
        while first < count:
            reach = self._reach(start + first)
            last = min(count, first + ROWS, reach - start)
            rows = max(0, last - max(first, count - feed.rows))
            yield Feed(feed.slot, feed.tokens[first:last], rows), reach
            first = last

    def _reach(self, position: int) -> int:
        """How many positions attention covers for a row: a power of two, or all there are."""
        return min(max(_LEAST_REACH, 1 << position.bit_length()), self.config.context_length)

    def _feed(self, feed: Feed, reach: int) -> None:
        """Take one pass through the layers, which leaves the hidden states in `_hidden`."""
        start, count = self._lengths.of(feed.slot), len(feed.tokens)
        useless = ROWS - count
        behind = self.config.context_length
        places = [*range(start, start + count), *range(behind, behind + useless)]
        self._ids.copy_(torch.tensor([*feed.tokens, *[0] * useless]))
        self._positions.copy_(torch.tensor([*places[:count], *[0] * useless]))
        self._places.copy_(torch.tensor(places))
        self._replay((feed.slot, reach), lambda: self._layer_pass(feed.slot, reach))
        self._lengths.advance(feed.slot, count)

    def _judge(self, count: int, rows: int) -> Logits:
        """Logits of the last `rows` of the `count` tokens just fed."""
        self._replay(None, self._head_pass)
        wanted = slice(count - rows, count)
        covered: Logits = self._logits[wanted].cpu().numpy()
        if not self._seen:
            return covered.copy()
        seen = self._seen_logits[wanted, : len(self._seen.ids)].cpu().numpy()
        return spread(covered, self._covered, seen, self._seen.ids, self.config.output_size)

    def _replay(self, key: tuple[int, int] | None, compute: Callable[[], None]) -> None:
        """Run kernels, from a graph where there can be one; it is captured when first needed."""
        if self._device.type != "cuda":
            compute()
            return
        if key not in self._graphs:
            compute()  # workspaces come into being, which a graph must not make
            torch.cuda.current_stream().synchronize()
            graph = torch.cuda.CUDAGraph()
            # Another thread of this process may be at work on the same GPU.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                compute()
            self._graphs[key] = graph.replay
        self._graphs[key]()

    # -- what a graph holds: fixed shapes and places

    def _layer_pass(self, slot: int, reach: int) -> None:
        turns = self._turns[self._positions]
        seen = torch.arange(reach, device=self._device) <= self._positions[:, None]
        mask = seen.repeat_interleave(self.config.heads // self.config.kv_heads, 0)
        hidden = self._embedding[self._ids].float()
        for index, layer in enumerate(self._layers):
            qkv = self._linear(self._norm(hidden, layer.attention_norm), layer.qkv)
            entries = self._keys[index, slot], self._values[index, slot]
            mixed = self._attention(self._turned(qkv, layer.qk_norm, turns), entries, mask)
            hidden += self._linear(mixed, layer.out)
            inner = self._linear(self._norm(hidden, layer.ffn_norm), layer.gate_up)
            hidden += self._linear(self._activated(inner), layer.down)
        self._hidden.copy_(hidden)

    def _head_pass(self) -> None:
        normed = self._norm(self._hidden, self._head_norm)
        self._logits.copy_(self._linear(normed, (self._head, None)))
        if self._seen:
            self._seen_logits.copy_(self._linear(normed, (self._seen_rows, None)))

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(x, x.shape[-1:], None, self.config.norm_eps) * weight

    def _activated(self, inner: Tensor) -> Tensor:
        if not self.config.gated:
            return functional.gelu(inner)
        gate, up = inner.chunk(2, dim=-1)
        return functional.silu(gate) * up

    def _linear(self, x: Tensor, matrix: _Matrix) -> Tensor:
        return functional.linear(x.to(self._kept_as), *matrix).float()

    def _turned(self, qkv: Tensor, qk_norm: Tensor | None, turns: Tensor) -> Tensor:
        """Queries, keys and values, the former two rotated: [ROWS, heads, head_dim]."""
        config = self.config
        heads = qkv.view(ROWS, config.heads + 2 * config.kv_heads, config.head_dim)
        turned, values = heads[:, : -config.kv_heads], heads[:, -config.kv_heads :]
        if qk_norm is not None:
            turned = self._norm(turned, qk_norm)
        pairs = torch.view_as_complex(turned.reshape(*turned.shape[:2], -1, 2))
        turned = torch.view_as_real(pairs * turns).flatten(-2)
        return torch.cat([turned, values], 1).to(self._kept_as)

    def _attention(self, heads: Tensor, entries: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        """Cache the rows' keys and values, and let every row attend to all up to itself.

        Args:
            heads: [ROWS, heads, head_dim], of queries, keys and values.
            entries: keys and values of the slot, each [kv heads, places, head_dim].
            mask: [ROWS * query heads of a key head, reach], what each query may see.
        """
        config, seen = self.config, slice(mask.shape[1])
        sizes = [config.heads, config.kv_heads, config.kv_heads]
        queries, *new = torch.split(heads, sizes, 1)
        for kept, rows in zip(entries, new, strict=True):
            kept.index_copy_(1, self._places, rows.transpose(0, 1))
        # The query heads that share a key head are rows of its product, beside those of others.
        queries = queries.reshape(ROWS, config.kv_heads, -1, config.head_dim)
        keys, values = (kept[None, :, seen] for kept in entries)
        mixed = functional.scaled_dot_product_attention(
            queries.transpose(0, 1).flatten(1, 2)[None], keys, values, mask
        )
        mixed = mixed.view(config.kv_heads, ROWS, -1, config.head_dim).transpose(0, 1)
        return mixed.reshape(ROWS, -1).float()

    def _see(self, tokens: Sequence[int]) -> None:
        if self._seen:
            for token, place in self._seen.see(tokens):
                self._seen_rows[place] = self._all[token]
