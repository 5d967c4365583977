"""The decoder in torch, for CUDA. The path has not been run on hardware; tests run it on a CPU.

Three rules give a row the same bits whatever is computed beside it.
- Linear layers are row-invariant (`linear.py`).
- Attention runs row by row, each over exactly its own length: kernels sum a padded length, or
  several rows at once, in another order.
- Sequences are fed one after the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from specpipe.models.cuda.kv_cache import KVCache
from specpipe.models.cuda.linear import MAX_ROWS, PackedLinear, pack_linear
from specpipe.models.decoder import LAYERS_BETWEEN_QUESTIONS, Decoder, Feed, Interrupted
from specpipe.models.interface import Logits
from specpipe.models.partial_head import MOST_SEEN, SeenTokens
from specpipe.models.rotary import RotaryTable
from specpipe.models.shape import DecoderConfig
from specpipe.models.weights import DecoderWeights, Floats, LayerWeights, Linear


@dataclass(frozen=True, slots=True)
class _Layer:
    """One block; the weight of the norm before a linear layer is multiplied into it."""

    qkv: PackedLinear
    out: PackedLinear
    gate_up: PackedLinear
    down: PackedLinear
    qk_norm: Tensor | None


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
        super().__init__(config, dtype, num_slots, MAX_ROWS)
        self._device, self._kept_as = device, getattr(torch, dtype)
        self._embedding = self._tensor(weights.embedding()).to(self._kept_as)
        self._covered = min(head_tokens or config.output_size, config.output_size)
        head = self._embedding.float() if config.tied else self._tensor(weights.head())
        head = head[: config.output_size] * self._tensor(weights.head_norm())
        self._head = pack_linear(head[: self._covered], self._kept_as)
        self._seen: SeenTokens | None = None
        if self._covered < config.output_size:
            self._seen = SeenTokens(self._covered, config.output_size, kept_tokens)
            self._rows = head.to(self._kept_as)
            self._seen_rows = torch.empty(MOST_SEEN, config.width, device=device)
            self._see(())
        del head
        self._layers = [self._pack(weights.layer(index)) for index in range(config.layers)]
        self._turns = RotaryTable(config)
        self._cache = KVCache(
            layers=config.layers,
            slots=num_slots,
            kv_heads=config.kv_heads,
            context=config.context_length,
            head_dim=config.head_dim,
            dtype=self._kept_as,
            device=device,
        )

    def _tensor(self, values: Floats) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self._device)

    def _pack(self, layer: LayerWeights) -> _Layer:
        def packed(norm: Floats | None, *linears: Linear) -> PackedLinear:
            weight = self._tensor(np.concatenate([linear.weight for linear in linears]))
            if norm is not None:
                weight *= self._tensor(norm)
            bias = None
            if any(linear.bias is not None for linear in linears):
                parts = [
                    np.zeros(len(linear.weight), np.float32) if linear.bias is None else linear.bias
                    for linear in linears
                ]
                bias = self._tensor(np.concatenate(parts))
            return pack_linear(weight, self._kept_as, bias)

        return _Layer(
            qkv=packed(layer.attention_norm, layer.qkv),
            out=packed(None, layer.out),
            gate_up=packed(layer.ffn_norm, layer.gate, layer.up),
            down=packed(None, layer.down),
            qk_norm=None if layer.qk_norm is None else self._tensor(layer.qk_norm),
        )

    @torch.inference_mode()
    def _run(self, feeds: Sequence[Feed], interrupted: Interrupted) -> list[Logits] | None:
        logits = []
        for feed in feeds:
            self._see(feed.tokens)
            kept = []
            for chunk in self._chunks([feed]):
                hidden = self._run_layers(chunk[0], interrupted)
                if hidden is None:
                    return None
                kept.append(hidden[hidden.shape[0] - chunk[0].rows :])
            logits.append(self._logits(torch.cat(kept)))
        return logits

    def _run_layers(self, feed: Feed, interrupted: Interrupted) -> Tensor | None:
        """Feed at most MAX_ROWS tokens; returns the hidden states [tokens, width] after them."""
        start, count = self._lengths.of(feed.slot), len(feed.tokens)
        turns = self._tensor(self._turns.up_to(start + count)[start : start + count])
        turns = torch.view_as_complex(turns.view(count, 1, -1, 2))
        hidden = self._embedding[torch.tensor(feed.tokens, device=self._device)].float()
        for index, layer in enumerate(self._layers):
            if interrupted and index % LAYERS_BETWEEN_QUESTIONS == 0 and interrupted():
                return None
            qkv = layer.qkv(self._norm(hidden))
            hidden += layer.out(self._attention(index, feed, start, qkv, turns))
            gate, up = layer.gate_up(self._norm(hidden)).chunk(2, dim=-1)
            hidden += layer.down(functional.silu(gate).mul_(up))
        self._lengths.advance(feed.slot, count)
        return hidden

    def _norm(self, hidden: Tensor) -> Tensor:
        """RMSNorm without its weight, which lives in the linear layer that follows."""
        return functional.rms_norm(hidden, (self.config.width,), None, self.config.norm_eps)

    def _attention(self, index: int, feed: Feed, start: int, qkv: Tensor, turns: Tensor) -> Tensor:
        """Cache the rows' keys and values, and let every row attend to all up to itself."""
        config, count, qk_norm = self.config, qkv.shape[0], self._layers[index].qk_norm
        turned_heads = config.heads + config.kv_heads
        heads = qkv.view(count, turned_heads + config.kv_heads, config.head_dim)
        turned = heads[:, :turned_heads]
        if qk_norm is not None:
            turned = functional.rms_norm(turned, turned.shape[-1:], None, config.norm_eps) * qk_norm
        pairs = torch.view_as_complex(turned.reshape(*turned.shape[:-1], -1, 2))
        turned = torch.view_as_real(pairs * turns).flatten(-2)
        keys, values = self._cache.write(
            index, feed.slot, start, turned[:, config.heads :], heads[:, turned_heads:]
        )
        # The query heads that share a key head are the rows of its matrix product.
        shape = (count, config.kv_heads, -1, config.head_dim)
        queries = turned[:, : config.heads].view(shape).to(keys.dtype)
        mixed = torch.empty_like(queries, memory_format=torch.contiguous_format)
        attend = functional.scaled_dot_product_attention
        for row in range(count):
            seen = slice(start + row + 1)
            mixed[row] = attend(
                queries[row][None], keys[None, :, seen], values[None, :, seen], scale=1.0
            )[0]
        return mixed.view(count, -1).float()

    def _see(self, tokens: Sequence[int]) -> None:
        if self._seen:
            for token, place in self._seen.see(tokens):
                self._seen_rows[place] = self._rows[token].float()

    def _logits(self, hidden: Tensor) -> Logits:
        if not hidden.shape[0]:
            return np.empty((0, self.config.output_size), np.float32)
        normed = self._norm(hidden)
        covered = self._head(normed)
        if self._seen:
            logits = covered.new_full((len(hidden), self.config.output_size), -torch.inf)
            logits[:, : self._covered] = covered
            ids = self._seen.ids
            if ids:
                logits[:, ids] = normed @ self._seen_rows[: len(ids)].T
            covered = logits
        found: Logits = covered.cpu().numpy()
        return found
