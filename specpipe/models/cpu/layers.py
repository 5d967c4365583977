"""A pass through a decoder's layers, as one compiled function.

Several threads may run it together: each calls it with a `part` of its own.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from specpipe.models.cpu.attention import attend, take_in
from specpipe.models.cpu.barrier import wait_for_all
from specpipe.models.cpu.compiled import compiled
from specpipe.models.cpu.instructions import LANES
from specpipe.models.cpu.kernels import gate, gelu, normalise
from specpipe.models.cpu.products import multiply_kept, panel_size, share
from specpipe.models.cpu.state import Buffers, Cache, Floats, Layers, Matrix, Shape


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
        _linear(part, parts, layers.qkv, layer, shape.width, b.normed, rows, b.qkv, b.scratch[part])
        wait_for_all(b.barrier, parts)
        take_in(part, parts, layer, segments, shape, layers.qk_norm, cache, b)
        wait_for_all(b.barrier, parts)
        attend(part, parts, layer, segments, shape, cache, b)
        wait_for_all(b.barrier, parts)
        query_width = shape.heads * shape.head_dim
        _add_linear(part, parts, layers.out, layer, query_width, b.mixed, rows, b)
        wait_for_all(b.barrier, parts)
        normalise_rows(part, parts, rows, shape, b.hidden, layers.ffn_norm[layer], b.normed)
        wait_for_all(b.barrier, parts)
        _inner(part, parts, layer, layers, shape, rows, b)
        wait_for_all(b.barrier, parts)
        _add_linear(part, parts, layers.down, layer, shape.ffn_width, b.inner, rows, b)
        wait_for_all(b.barrier, parts)


@compiled
def run_head(
    part: int,
    parts: int,
    panels: NDArray[Any],
    normed: Floats,
    rows: int,
    logits: Floats,
    scratch: Floats,
) -> None:
    """Logits [rows, outputs in panels] of normalised rows."""
    depth, stride = normed.shape[1], logits.shape[1]
    first, last = share(stride // LANES, part, parts)
    multiply_kept(
        panels[first * panel_size(panels, depth) :], depth, normed.reshape(-1), depth, rows,
        logits.reshape(-1)[first * LANES :], stride, last - first, scratch[part],
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
    matrix: Matrix,
    layer: int,
    depth: int,
    x: Floats,
    rows: int,
    out: Floats,
    scratch: Floats,
) -> None:
    """This thread's panels of a layer's matrix, times `rows` rows."""
    stride, panels = out.shape[1], matrix.panels
    first, last = share(stride // LANES, part, parts)
    multiply_kept(
        panels[(layer * stride // LANES + first) * panel_size(panels, depth) :], depth,
        x.reshape(-1), x.shape[1], rows,
        out.reshape(-1)[first * LANES :], stride, last - first, scratch,
    )  # fmt: skip
    _add_bias(matrix, layer, rows, out, first * LANES, last * LANES)


@compiled
def _add_bias(matrix: Matrix, layer: int, rows: int, out: Floats, first: int, last: int) -> None:
    """Add a matrix's bias, if it has one, to the columns from `first` up to `last`."""
    if not matrix.bias.shape[0]:
        return
    for row in range(rows):
        for i in range(first, last):
            out[row, i] += matrix.bias[layer, i]


@compiled
def _add_linear(
    part: int, parts: int, matrix: Matrix, layer: int, depth: int, x: Floats, rows: int, b: Buffers
) -> None:
    """The same, added to the hidden states."""
    _linear(part, parts, matrix, layer, depth, x, rows, b.change, b.scratch[part])
    first, last = share(b.change.shape[1] // LANES, part, parts)
    last_column = min(last * LANES, b.hidden.shape[1])
    for row in range(rows):
        for i in range(first * LANES, last_column):
            b.hidden[row, i] += b.change[row, i]


@compiled
def _inner(
    part: int, parts: int, layer: int, layers: Layers, shape: Shape, rows: int, b: Buffers
) -> None:
    """This thread's share of the feed-forward layer's inner values: of gate, and the same of up."""
    stride, size = b.gate_up.shape[1], b.inner.shape[1]
    panels, width = layers.gate_up.panels, shape.width
    first, last = share(size // LANES, part, parts)
    for begin in range(0, stride, size):
        columns = begin + first * LANES, begin + last * LANES
        multiply_kept(
            panels[(layer * stride + columns[0]) // LANES * panel_size(panels, width) :], width,
            b.normed.reshape(-1), width, rows,
            b.gate_up.reshape(-1)[columns[0] :], stride, last - first, b.scratch[part],
        )  # fmt: skip
        _add_bias(layers.gate_up, layer, rows, b.gate_up, columns[0], columns[1])
    first_column, last_column = first * LANES, min(last * LANES, shape.ffn_width)
    for row in range(rows):
        found = b.gate_up[row, first_column:last_column]
        out = b.inner[row, first_column:last_column]
        if shape.gated:
            gate(found, b.gate_up[row, size + first_column : size + last_column], out)
        else:
            gelu(found, out)
