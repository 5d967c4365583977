"""What a pass is made of: products, norms, rotations, attention, for rows that stand in arrays.

Each gives a row the same bits whichever rows are beside it. Sums run in an order that the row
itself determines; nothing here lets the compiler reorder them.

Loops are written for the compiler to turn into vector instructions. `part` of `parts` threads
each do their share; what they hand each other over is for the caller to order.
"""

from typing import Any

import numpy as np

from specpipe.models.cpu.compiled import compiled
from specpipe.models.cpu.exponential import exp, exponentials, largest
from specpipe.models.cpu.instructions import LANES
from specpipe.models.cpu.tile import (
    BLOCK,
    FEW_PANELS,
    FEW_ROWS,
    MANY_PANELS,
    MANY_ROWS,
    block_elements,
    block_inputs,
    fetching_tile,
    few_rows_tile,
    many_rows_tile,
    most_rows,
    widen,
)

_ONE, _HALF = np.float32(1), np.float32(0.5)
_TAIL_RATE = np.float32(0.305)
_TAIL = tuple(map(np.float32, (
    0.0366991972, -0.152988338, 0.185716941, -0.0379768573,
    0.12102169, 0.103420864, 0.122466817, 0.121639733,
)))  # fmt: skip


@compiled
def multiply(
    w: Any,
    w_panel: int,
    w_step: int,
    depth: int,
    x: Any,
    x_row: int,
    rows: int,
    out: Any,
    out_row: int,
    panels: int,
) -> None:
    """Multiply panels by rows.

    out[r * out_row + 16 * p + l] becomes the sum over k < depth of
    x[r * x_row + k] * w[p * w_panel + k * w_step + l].

    Args:
        w: weights, flat; of any form that a tile takes.
        w_panel: elements from a panel to the next.
        w_step: elements from a depth, or block, to the next.
        depth: terms of a sum.
        x: inputs, flat.
        x_row: elements from a row to the next.
        rows: how many.
        out: results, flat.
        out_row: elements from a row to the next.
        panels: how many, a multiple of BLOCK.
    """
    if rows <= FEW_ROWS:
        for panel in range(0, panels, FEW_PANELS):
            few_rows_tile(
                w, panel * w_panel, w_panel, w_step, depth,
                x, 0, x_row, rows, out, panel * LANES, out_row,
            )  # fmt: skip
        return
    for panel in range(0, panels, MANY_PANELS):
        row = 0
        while row < rows:
            height = tile_height(rows - row, most_rows(w))
            many_rows_tile(
                w, panel * w_panel, w_panel, w_step, depth,
                x, row * x_row, x_row, height, out, row * out_row + panel * LANES, out_row,
            )  # fmt: skip
            row += height


@compiled
def multiply_kept(
    w: Any,
    depth: int,
    x: Any,
    x_row: int,
    rows: int,
    out: Any,
    out_row: int,
    panels: int,
    wide: Any,
) -> None:
    """Multiply a model's panels, which lie one after the other, by rows; as `multiply`.

    Where three tiles and more need the same weights, these are converted to float32 once, into
    `wide`, of at least MANY_PANELS * depth * 16 elements; the next are fetched meanwhile.
    """
    size, block, inputs = panel_size(w, depth), block_elements(w), block_inputs(w)
    if rows <= 2 * MANY_ROWS or w.dtype == wide.dtype:
        multiply(w, size, block, depth, x, x_row, rows, out, out_row, panels)
        return
    for panel in range(0, panels, MANY_PANELS):
        for i in range(MANY_PANELS * depth // inputs):
            widen(w, panel * size + i * block, wide, i * inputs * LANES)
        row = 0
        fetched, step = (panel + MANY_PANELS) * size, (size + depth - 1) // depth
        while row < rows:
            height = tile_height(rows - row, most_rows(wide))
            fetching_tile(
                wide, 0, depth * LANES, LANES, depth,
                x, row * x_row, x_row, height, out, row * out_row + panel * LANES, out_row,
                w, fetched, step,
            )  # fmt: skip
            row += height
            fetched += depth * step
            if fetched >= (panel + 2 * MANY_PANELS) * size:  # all are on their way
                step = 0


@compiled
def panel_size(w: Any, depth: int) -> int:
    """Elements of a panel of these weights."""
    blocks: int = depth // block_inputs(w)
    return blocks * int(block_elements(w))


@compiled
def tile_height(rows: int, most: int) -> int:
    """How many of `rows` rows go into the next tile: so that all are about equally high."""
    tiles = (rows + most - 1) // most
    return (rows + tiles - 1) // tiles


@compiled
def share(panels: int, part: int, parts: int) -> tuple[int, int]:
    """The first and the last (exclusive) of the panels that are a thread's; multiples of BLOCK."""
    blocks = panels // BLOCK
    return blocks * part // parts * BLOCK, blocks * (part + 1) // parts * BLOCK


@compiled
def normalise(x: Any, weight: Any, eps: float, out: Any) -> None:
    """RMSNorm (Zhang and Sennrich, arXiv:1910.07467); out may be x."""
    size = len(x)
    lanes = np.zeros(LANES, np.float32)
    whole = size // LANES * LANES
    for i in range(0, whole, LANES):
        for lane in range(LANES):
            lanes[lane] += x[i + lane] * x[i + lane]
    for i in range(whole, size):
        lanes[i - whole] += x[i] * x[i]
    squares = 0.0
    for lane in range(LANES):
        squares += lanes[lane]
    scale = np.float32(1.0 / np.sqrt(squares / size + eps))
    for i in range(size):
        out[i] = x[i] * scale * weight[i]


@compiled
def rotate(x: Any, turns: Any) -> None:
    """Turn interleaved pairs as complex numbers, by their cosines and sines, interleaved too."""
    for i in range(0, len(x), 2):
        real, imaginary, cosine, sine = x[i], x[i + 1], turns[i], turns[i + 1]
        x[i] = real * cosine - imaginary * sine
        x[i + 1] = real * sine + imaginary * cosine


@compiled
def gate(gates: Any, ups: Any, out: Any) -> None:
    """SwiGLU (Shazeer, arXiv:2002.05202): silu(gate) * up."""
    for i in range(len(gates)):
        out[i] = gates[i] / (_ONE + exp(-gates[i])) * ups[i]


@compiled
def gelu(x: Any, out: Any) -> None:
    """GELU (Hendrycks and Gimpel, arXiv:1606.08415): x times a normal number's chance to be below.

    max(x, 0) less |x| times the chance to be beyond |x|, so that nothing cancels.
    That chance is e^(-x^2 / 2) times a polynomial in 1 / (1 + 0.305 |x|), fitted to the error
    function to within 1e-7 of itself.
    """
    for i in range(len(x)):
        size = abs(x[i])
        t = _ONE / (_ONE + _TAIL_RATE * size)
        tail = _TAIL[0]
        for coefficient in _TAIL[1:]:
            tail = tail * t + coefficient
        positive = x[i] if x[i] > 0 else np.float32(0)
        out[i] = positive - size * (tail * t) * exp(-_HALF * size * size)


@compiled
def softmax(scores: Any, length: int) -> Any:
    """Turn the first scores into e^(score - largest), the others into 0; returns 1 / their sum.

    There are a multiple of 16. Sums run over 16 lanes, so that what stands behind `length` adds
    zeros and changes no bit.
    """
    scores[length:] = -np.inf
    return _ONE / exponentials(scores, len(scores), largest(scores, len(scores)))
