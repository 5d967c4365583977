"""The decoder on a CPU: compiled kernels over panels of weights, sums in float32."""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from specpipe.models.cpu.attention import scores_row
from specpipe.models.cpu.barrier import SIZE as BARRIER_SIZE
from specpipe.models.cpu.head import Vocabulary
from specpipe.models.cpu.layers import run_layers
from specpipe.models.cpu.memory import reserve_entries
from specpipe.models.cpu.panels import padded, read_layers
from specpipe.models.cpu.products import scratch_size
from specpipe.models.cpu.state import Buffers, Cache, Shape
from specpipe.models.cpu.team import Team
from specpipe.models.cpu.tile import MANY_ROWS
from specpipe.models.decoder import LAYERS_BETWEEN_QUESTIONS, Decoder
from specpipe.models.interface import Feed, Interrupted, Logits, OutputIds, entry_bytes
from specpipe.models.rotary import RotaryTable
from specpipe.models.shape import DecoderConfig
from specpipe.models.weights import DecoderWeights, Floats

MOST_ROWS = 96
"""Tokens in one pass: more do not fit into a core's cache beside the weights."""


class CpuDecoder(Decoder):
    """A `SequenceModel` on the cores that its process is pinned to.

    Args:
        config: the model's shape, as it is to be used.
        weights: where to read its weights.
        dtype: float16, float32, int8 or int4; or gguf: `weights` come in blocks where the file has
            such, and others are kept as float16.
        num_slots: sequences that can be held at once.
        threads: how many compute.
        head_tokens, kept_tokens, narrow: see `load_model`.
    """

    def __init__(
        self,
        config: DecoderConfig,
        weights: DecoderWeights,
        *,
        dtype: str,
        num_slots: int = 1,
        threads: int = 1,
        head_tokens: int = 0,
        kept_tokens: Sequence[int] = (),
        narrow: bool = False,
    ) -> None:
        super().__init__(config, dtype, num_slots, MOST_ROWS)
        self._team = Team(threads)
        others = "float16" if dtype == "gguf" else dtype
        self._vocabulary = Vocabulary(
            weights, config, others, head_tokens, kept_tokens, narrow=narrow
        )
        self._layers = read_layers(weights, config, others)
        self._shape = _shape(config, num_slots)
        self._turns = RotaryTable(config)
        shape = self._shape
        places = config.layers * num_slots * config.kv_heads * shape.context
        # float16 as bits, since numba has no such type.
        kept = np.float32 if entry_bytes(dtype) == 4 else np.uint16
        self._keys = reserve_entries((places * config.head_dim,), kept)
        self._values = reserve_entries((places * shape.padded_head,), kept)
        self._buffers = _buffers(shape, threads)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights that a pass reads."""
        layers = self._layers
        kept = (layers.qkv, layers.out, layers.gate_up, layers.down)
        return sum(matrix.panels.nbytes for matrix in kept) + self._vocabulary.head_bytes

    @property
    def output_ids(self) -> OutputIds | None:
        """As the head's."""
        return self._vocabulary.output_ids

    def _run(self, feeds: Sequence[Feed], interrupted: Interrupted) -> list[Logits] | None:
        for feed in feeds:
            self._vocabulary.see(feed.tokens)
        ends = list(accumulate(feed.rows for feed in feeds))
        normed, done = np.empty((ends[-1], self._shape.width), np.float32), 0
        for chunk in self._chunks(feeds):
            if not self._pass(chunk, interrupted):
                return None
            row = 0
            for part in chunk:
                row += len(part.tokens)
                hidden = self._buffers.hidden[row - part.rows : row]
                self._vocabulary.normalise(self._shape, hidden, normed[done : done + part.rows])
                done += part.rows
        logits = self._vocabulary.logits(self._team, normed, self._buffers.scratch)
        return [logits[end - feed.rows : end] for feed, end in zip(feeds, ends, strict=True)]

    def _pass(self, feeds: Sequence[Feed], interrupted: Interrupted) -> bool:
        """Take at most MOST_ROWS tokens through the layers; False if interrupted."""
        tokens = [token for feed in feeds for token in feed.tokens]
        self._vocabulary.embed(tokens, self._buffers.hidden[: len(tokens)])
        segments, end = self._segments(feeds)
        cache = Cache(self._turns.up_to(end), self._keys, self._values)
        step = LAYERS_BETWEEN_QUESTIONS if interrupted else self.config.layers
        for first in range(0, self.config.layers, step):
            if interrupted and interrupted():
                return False
            self._team.run(
                run_layers,
                first,
                min(first + step, self.config.layers),
                len(tokens),
                segments,
                self._shape,
                self._layers,
                cache,
                self._buffers,
            )
        for feed in feeds:
            self._lengths.advance(feed.slot, len(feed.tokens))
        return True

    def _segments(self, feeds: Sequence[Feed]) -> tuple[NDArray[np.int64], int]:
        """Which rows belong to which slot and position, and the position after the last."""
        segments, row = [], 0
        for feed in feeds:
            segments.append((feed.slot, self._lengths.of(feed.slot), row, len(feed.tokens)))
            row += len(feed.tokens)
        return np.array(segments), max(start + count for _, start, _, count in segments)


def _shape(config: DecoderConfig, num_slots: int) -> Shape:
    return Shape(
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        padded_head=padded(config.head_dim),
        width=config.width,
        ffn_width=config.ffn_width,
        gated=config.gated,
        context=padded(config.context_length),
        slots=num_slots,
        eps=config.norm_eps,
    )


def _buffers(shape: Shape, threads: int) -> Buffers:
    mixed, ffn = shape.heads * shape.head_dim, padded(shape.ffn_width)

    deepest = max(shape.width, mixed, shape.ffn_width)

    def rows(width: int) -> Floats:
        return np.zeros((MOST_ROWS, width), np.float32)

    return Buffers(
        hidden=rows(shape.width),
        normed=rows(shape.width),
        qkv=rows(padded(mixed + 2 * shape.kv_heads * shape.head_dim)),
        queries=rows(mixed).reshape(-1),
        mixed=rows(mixed),
        gate_up=rows(2 * ffn if shape.gated else ffn),
        inner=rows(ffn),
        change=rows(padded(shape.width)),
        scores=reserve_entries((threads * MANY_ROWS * scores_row(shape.context),), np.float32),
        attended=np.zeros(threads * MANY_ROWS * shape.padded_head, np.float32),
        scratch=np.zeros((threads, scratch_size(deepest)), np.float32),
        barrier=np.zeros(BARRIER_SIZE, np.int64),
    )
