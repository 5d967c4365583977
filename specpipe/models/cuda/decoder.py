"""The decoder for CUDA: one shape of pass, captured as a graph.

Every pass has the same number of rows, of any sequences, of which some may be of no use. A GPU
reads weights for 16 of them in the time that it takes for one; and since each product always gets
the same shape, a row has the same bits whatever is computed beside it, at prefill as in decoding.
What lies between the products works row by row (kernels.py).

Tests run it on a CPU too, where reference.py stands in for the kernels and nothing is captured.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from specpipe.errors import UserError
from specpipe.models.cuda import reference
from specpipe.models.decoder import Decoder
from specpipe.models.interface import Feed, Interrupted, Logits, OutputIds
from specpipe.models.partial_head import MOST_SEEN, SeenTokens, covered_ids
from specpipe.models.rotary import RotaryTable
from specpipe.models.shape import DecoderConfig
from specpipe.models.weights import DecoderWeights, Floats, Linear, as_floats

ROWS = 16
_FLOAT16_MAX = 65504.0

_capturing = threading.Lock()  # torch: one graph at a time in a process, whatever the stream

_Matrix = tuple[Tensor, Tensor | None]


def _operations(device: torch.device) -> ModuleType:
    """What is computed between the products: kernels, or what they are tested by."""
    if device.type != "cuda":
        return reference
    from specpipe.models.cuda import kernels  # noqa: PLC0415 (Triton comes with CUDA builds alone)

    return kernels


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
        rows: of each pass; by default ROWS.
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
        narrow: bool = False,
        rows: int | None = None,
    ) -> None:
        super().__init__(config, dtype, num_slots, rows := rows or ROWS)
        self._do = _operations(device)
        self._device, self._kept_as = device, getattr(torch, dtype)
        self._embedding = self._keep(as_floats(weights.embedding()))
        self._all = self._embedding if config.tied else self._keep(as_floats(weights.head()))
        self._head = self._all if config.head_ids is None else self._keep(weights.own_head())
        self._head_norm = self._tensor(weights.head_norm())
        self._covered = covered_ids(config, head_tokens)
        self._head = self._head[: len(self._covered)]
        self._seen: SeenTokens | None = None
        if len(self._covered) < config.output_size:
            self._seen = SeenTokens(self._covered, config.output_size, kept_tokens, narrow=narrow)
            self._seen_rows = torch.zeros_like(self._all[:1]).repeat(MOST_SEEN, 1)
            self._see(())
        self._layers = [self._load_layer(weights, index) for index in range(config.layers)]
        self._turns = self._tensor(RotaryTable(config).up_to(config.context_length))
        places = num_slots * config.context_length + 1
        kept = (2, config.layers, places, config.kv_heads, config.head_dim)
        self._keys, self._values = torch.zeros(kept, dtype=self._kept_as, device=device)
        self._rows = torch.zeros(3, rows, dtype=torch.int64, device=device)
        self._hidden = torch.zeros(rows, config.width, device=device)
        self._normed = torch.zeros_like(self._hidden, dtype=self._kept_as)
        self._logits = torch.zeros(rows, len(self._covered), device=device)
        self._seen_logits = torch.zeros(rows, MOST_SEEN, device=device)
        self._copies = [(each, self._on_host(each)) for each in (self._logits, self._seen_logits)]
        self._graphs: dict[Callable[[], None], Callable[[], None]] = {}

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

    @property
    def output_ids(self) -> OutputIds | None:
        """Which tokens logits have columns for; None: all."""
        return self._seen.output_ids if self._seen else None

    @torch.inference_mode()
    def last_logits(self, feeds: Sequence[Feed]) -> Tensor:
        """Feed several sequences; the logits after each one's last token stay on the device.

        Nothing here waits for the device: what comes is queued behind what it has to do.

        Returns:
            float32[feeds, output_size].
        """
        assert self._seen is None
        found = self._logits.new_empty(len(feeds), self.config.output_size)
        order = {feed.slot: index for index, feed in enumerate(feeds)}
        for batch in self._chunks(feeds):
            judged = self._pass(batch)
            if judged:
                pairs = [(order[feed.slot], rows.stop - 1) for feed, rows in judged]
                places, rows = torch.tensor(pairs).T.to(self._device, non_blocking=True)
                found[places] = self._logits[rows]
        return found

    @torch.inference_mode()
    def _run(self, feeds: Sequence[Feed], interrupted: Interrupted) -> list[Logits] | None:
        found: dict[int, list[Logits]] = {feed.slot: [] for feed in feeds}
        for feed in feeds:  # at once, so that all logits have the same columns
            self._see(feed.tokens)
        for batch in self._chunks(feeds):
            if interrupted:
                self._wait()
                if interrupted():
                    return None
            judged = self._pass(batch)
            parts = self._fetch([rows for _, rows in judged])
            for (fed, _), logits in zip(judged, parts, strict=True):
                found[fed.slot].append(logits)
        outputs = self.config.output_size if self.output_ids is None else len(self.output_ids)
        nothing = np.empty((0, outputs), np.float32)
        return [
            each[0] if len(each) == 1 else np.concatenate([nothing, *each])
            for each in found.values()
        ]

    def _pass(self, batch: Sequence[Feed]) -> list[tuple[Feed, slice]]:
        """Compute one pass, whose logits are left in `_logits`: rows of them for each feed."""
        tokens: list[int] = []
        slots: list[int] = []
        positions: list[int] = []
        judged = []
        for feed in batch:
            start, count = self._lengths.of(feed.slot), len(feed.tokens)
            tokens += feed.tokens
            slots += [feed.slot * self.config.context_length] * count
            positions += range(start, start + count)
            self._lengths.advance(feed.slot, count)
            if feed.rows:
                judged.append((feed, slice(len(tokens) - feed.rows, len(tokens))))
        rows = np.zeros((3, self._most_rows), np.int64)
        rows[1] = self._keys.shape[1] - 1  # rows of no use write where nothing is read
        rows[:, : len(tokens)] = tokens, slots, positions
        # What is not pinned is copied before this returns, whatever the device still does.
        self._rows.copy_(torch.from_numpy(rows), non_blocking=True)
        self._replay(self._layer_pass)
        if judged:
            self._replay(self._head_pass)
        return judged

    def _fetch(self, parts: Sequence[slice]) -> list[Logits]:
        """Logits of some rows of the pass before; the host waits once, if there are any."""
        if not parts:
            return []
        copies = self._copies if self._seen else self._copies[:1]
        for there, here in copies:
            for rows in parts:
                here[rows].copy_(there[rows], non_blocking=True)
        self._wait()
        covered, *seen = [[here[rows].numpy() for rows in parts] for _, here in copies]
        if not self._seen:
            return [each.copy() for each in covered]
        return [
            self._seen.joined(first, second) for first, second in zip(covered, *seen, strict=True)
        ]

    def _on_host(self, values: Tensor) -> Tensor:
        return torch.zeros(values.shape, pin_memory=self._device.type == "cuda")

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()

    def _replay(self, compute: Callable[[], None]) -> None:
        """Run kernels, from a graph where there can be one; it is captured when first needed."""
        if self._device.type != "cuda":
            compute()
            return
        if compute not in self._graphs:
            with _capturing:  # the other model of this process may warm up at the same time
                compute()  # compiles kernels, and makes workspaces, which a graph must not
                self._wait()
                graph = torch.cuda.CUDAGraph()
                # It may be at work, too.
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    compute()
            self._graphs[compute] = graph.replay
        self._graphs[compute]()

    # -- what a graph holds: fixed shapes and places

    def _layer_pass(self) -> None:
        do, config, rows = self._do, self.config, self._rows
        hidden = self._hidden.copy_(self._embedding[rows[0]])
        normed, update = self._normed, None
        for index, layer in enumerate(self._layers):
            do.add_norm(hidden, update, layer.attention_norm, config.norm_eps, normed)
            qkv = functional.linear(normed, *layer.qkv)
            entries = self._keys[index], self._values[index]
            queries = do.turn(qkv, layer.qk_norm, self._turns, rows, entries, config)
            update = functional.linear(do.attend(queries, rows, entries, config), *layer.out)
            do.add_norm(hidden, update, layer.ffn_norm, config.norm_eps, normed)
            inner = functional.linear(normed, *layer.gate_up)
            update = functional.linear(do.gate(inner, gated=config.gated), *layer.down)
        do.add_norm(hidden, update, self._head_norm, config.norm_eps, normed)

    def _head_pass(self) -> None:
        self._do.judge(self._normed, self._head, self._logits)
        if self._seen:
            self._do.judge(self._normed, self._seen_rows, self._seen_logits)

    def _see(self, tokens: Sequence[int]) -> None:
        if self._seen:
            for token, place in self._seen.see(tokens):
                self._seen_rows[place] = self._all[token]
