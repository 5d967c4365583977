"""A pass through a decoder's layers, as one compiled function.

Several threads may run it together: each calls it with a `part` of its own.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from specpipe.models.cpu.attention import attend, take_in
from specpipe.models.cpu.barrier import wait_for_all
from specpipe.models.cpu.compiled import compiled
from specpipe.models.cpu.kernels import gate, multiply, normalise, share
from specpipe.models.cpu.state import Buffers, Cache, Floats, Layers, Shape
from specpipe.models.cpu.tile import LANES

_LANES: Any = np.int64(LANES)  # a number to numba, and no type for which to compile again


@compiled
def run_layers(
    part: int,
    parts: int,
    first: int,
    last: int,
    rows: int,
    segments: NDArray[np.int64],
    shape: Shape,
    layers: Layers,
    cache: Cache,
    b: Buffers,
) -> None:
    """Take `rows` rows of hidden states through the layers from `first` up to `last`.

    Args:
        part: which thread this is.
        parts: of how many.
        first: layer.
        last: layer, exclusive.
        rows: how many.
        segments: [number, 4], rows of the same sequence: slot, position of the first row, the
            first row, how many.
        shape: the model's.
        layers: its weights.
        cache: what was there before, and what comes to be.
        b: the hidden states are in it.
    """
    for layer in range(first, last):
        normalise_rows(part, parts, rows, shape, b.hidden, layers.attention_norm[layer], b.normed)
        wait_for_all(b.barrier, parts)
        _linear(part, parts, layers.qkv, layers.qkv_bias, layer, shape.width, b.normed, rows, b.qkv)
        wait_for_all(b.barrier, parts)
        take_in(part, parts, layer, segments, shape, layers.qk_norm, cache, b)
        wait_for_all(b.barrier, parts)
        attend(part, parts, layer, segments, shape, cache, b)
        wait_for_all(b.barrier, parts)
        query_width = shape.heads * shape.head_dim
        _add_linear(part, parts, layers.out, layers.out_bias, layer, query_width, b.mixed, rows, b)
        wait_for_all(b.barrier, parts)
        normalise_rows(part, parts, rows, shape, b.hidden, layers.ffn_norm[layer], b.normed)
        wait_for_all(b.barrier, parts)
        _gated(part, parts, layer, layers, shape, rows, b)
        wait_for_all(b.barrier, parts)
        _add_linear(
            part, parts, layers.down, layers.down_bias, layer, shape.ffn_width, b.gated, rows, b
        )
        wait_for_all(b.barrier, parts)


@compiled
def run_head(
    part: int,
    parts: int,
    panels: NDArray[Any],
    shape: Shape,
    normed: Floats,
    rows: int,
    logits: Floats,
) -> None:
    """Logits [rows, outputs in panels] of normalised rows; panels: flat."""
    first, last = share(logits.shape[1] // LANES, part, parts)
    size = shape.width * _LANES
    multiply(
        panels[first * size :], size, _LANES, shape.width,
        normed.reshape(-1), shape.width, rows,
        logits.reshape(-1)[first * LANES :], logits.shape[1], last - first,
    )  # fmt: skip


@compiled
def normalise_rows(
    part: int, parts: int, rows: int, shape: Shape, x: Floats, weight: Floats, out: Floats
) -> None:
    """RMSNorm of this thread's share of `rows` rows."""
    for row in range(part, rows, parts):
        normalise(x[row], weight, shape.eps, out[row])


@compiled
def _linear(
    part: int,
    parts: int,
    panels: NDArray[Any],
    bias: Floats,
    layer: int,
    depth: int,
    x: Floats,
    rows: int,
    out: Floats,
) -> None:
    """This thread's panels of a layer's matrix, times `rows` rows."""
    stride, size = out.shape[1], depth * _LANES
    first, last = share(stride // LANES, part, parts)
    multiply(
        panels[layer * stride * depth + first * size :], size, _LANES, depth,
        x.reshape(-1), x.shape[1], rows,
        out.reshape(-1)[first * LANES :], stride, last - first,
    )  # fmt: skip
    if bias.shape[0]:
        for row in range(rows):
            for i in range(first * LANES, last * LANES):
                out[row, i] += bias[layer, i]


@compiled
def _add_linear(
    part: int,
    parts: int,
    panels: NDArray[Any],
    bias: Floats,
    layer: int,
    depth: int,
    x: Floats,
    rows: int,
    b: Buffers,
) -> None:
    """The same, added to the hidden states."""
    _linear(part, parts, panels, bias, layer, depth, x, rows, b.change)
    first, last = share(b.change.shape[1] // LANES, part, parts)
    last_column = min(last * LANES, b.hidden.shape[1])
    for row in range(rows):
        for i in range(first * LANES, last_column):
            b.hidden[row, i] += b.change[row, i]


@compiled
def _gated(
    part: int, parts: int, layer: int, layers: Layers, shape: Shape, rows: int, b: Buffers
) -> None:
    """This thread's share of the feed-forward layer's inner values: of gate, and the same of up."""
    half = b.gate_up.shape[1] // 2
    first, last = share(half // LANES, part, parts)
    size = shape.width * _LANES
    for begin in (0, half):
        at = (layer * 2 * half + begin) * shape.width + first * size
        multiply(
            layers.gate_up[at:], size, _LANES, shape.width,
            b.normed.reshape(-1), shape.width, rows,
            b.gate_up.reshape(-1)[begin + first * LANES :], 2 * half, last - first,
        )  # fmt: skip
    first_column, last_column = first * LANES, min(last * LANES, shape.ffn_width)
    for row in range(rows):
        if layers.gate_up_bias.shape[0]:
            for i in range(first_column, last_column):
                b.gate_up[row, i] += layers.gate_up_bias[layer, i]
                b.gate_up[row, half + i] += layers.gate_up_bias[layer, half + i]
        gate(
            b.gate_up[row, first_column:last_column],
            b.gate_up[row, half + first_column : half + last_column],
            b.gated[row, first_column:last_column],
        )
