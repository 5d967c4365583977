"""Products of matrices in panels with rows that stand in arrays.

Each row gets the same bits whichever rows are beside it.
"""

from typing import Any

import numpy as np
from numba.extending import overload

from specpipe.models.cpu.block_inputs import ROUNDED, round_inputs
from specpipe.models.cpu.block_tile import block_tile, most_rows
from specpipe.models.cpu.blocks import form_of
from specpipe.models.cpu.compiled import OPTIONS, compiled
from specpipe.models.cpu.instructions import IS_ZEN, LANES
from specpipe.models.cpu.tile import (
    BLOCK,
    FEW_PANELS,
    FEW_ROWS,
    MANY_PANELS,
    MANY_ROWS,
    fetching_tile,
    few_rows_tile,
    many_rows_tile,
    widen,
)
from specpipe.models.gguf_blocks import INPUTS

_ROUNDED_ROWS = 96  # that are multiplied at once by weights in blocks: a core's cache has room


def scratch_size(depth: int) -> int:
    """Elements that `multiply_kept` wants for sums of so many terms."""
    blocks = -(-depth // INPUTS)
    return max(MANY_PANELS * LANES * depth, _ROUNDED_ROWS * blocks * ROUNDED)


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
    few_rows: int,
) -> None:
    """Multiply panels by rows.

    out[r * out_row + 16 * p + l] becomes the sum over k < depth of
    x[r * x_row + k] * w[p * w_panel + k * w_step + l].

    Args:
        w: weights, flat; plain numbers.
        w_panel: elements from a panel to the next.
        w_step: elements from a depth to the next.
        depth: terms of a sum.
        x: inputs, flat.
        x_row: elements from a row to the next.
        rows: how many.
        out: results, flat.
        out_row: elements from a row to the next.
        panels: how many, a multiple of BLOCK.
        few_rows: up to so many of them, at most FEW_ROWS, reading takes the time.
    """
    if rows <= few_rows:
        for panel in range(0, panels, FEW_PANELS):
            few_rows_tile(
                w, panel * w_panel, w_panel, w_step, depth,
                x, 0, x_row, rows, out, panel * LANES, out_row,
            )  # fmt: skip
        return
    for panel in range(0, panels, MANY_PANELS):
        row = 0
        while row < rows:
            height = tile_height(rows - row, MANY_ROWS)
            many_rows_tile(
                w, panel * w_panel, w_panel, w_step, depth,
                x, row * x_row, x_row, height, out, row * out_row + panel * LANES, out_row,
            )  # fmt: skip
            row += height


def multiply_kept(
    w: Any,
    depth: int,
    x: Any,
    x_row: int,
    rows: int,
    out: Any,
    out_row: int,
    panels: int,
    scratch: Any,
) -> None:
    """Multiply a model's panels, which lie one after the other, by rows.

    As `multiply`, with weights that are plain numbers or blocks, and with `scratch` of at least
    `scratch_size(depth)` floats. For compiled code, in which it becomes one of the next two.
    """
    raise NotImplementedError


def _multiply_numbers(
    w: Any, depth: int, x: Any, x_row: int, rows: int, out: Any, out_row: int, panels: int,
    scratch: Any,
) -> None:  # fmt: skip
    """Where three tiles and more need the same weights, these are converted to float32 once.

    They come into `scratch`; the next are fetched meanwhile. Unless converting costs nothing: Zen
    does it on other ports than those that multiply.
    """
    size = depth * LANES
    if rows <= 2 * MANY_ROWS or w.dtype == scratch.dtype or IS_ZEN:
        multiply(w, size, LANES, depth, x, x_row, rows, out, out_row, panels, FEW_ROWS)
        return
    for panel in range(0, panels, MANY_PANELS):
        for i in range(MANY_PANELS * depth):
            widen(w, panel * size + i * LANES, scratch, i * LANES)
        row = 0
        fetched, step = (panel + MANY_PANELS) * size, LANES
        while row < rows:
            height = tile_height(rows - row, MANY_ROWS)
            fetching_tile(
                scratch, 0, size, LANES, depth,
                x, row * x_row, x_row, height, out, row * out_row + panel * LANES, out_row,
                w, fetched, step,
            )  # fmt: skip
            row += height
            fetched += depth * step
            if fetched >= (panel + 2 * MANY_PANELS) * size:  # all are on their way
                step = 0


def _multiply_blocks(
    w: Any, depth: int, x: Any, x_row: int, rows: int, out: Any, out_row: int, panels: int,
    scratch: Any,
) -> None:  # fmt: skip
    """Inputs are rounded into `scratch`, those of as many rows at once as have room there."""
    size, blocks = panel_size(w, depth), (depth + INPUTS - 1) // INPUTS
    row_size = blocks * ROUNDED
    for first in range(0, rows, _ROUNDED_ROWS):
        count = min(_ROUNDED_ROWS, rows - first)
        for row in range(count):
            _round_row(w, x, (first + row) * x_row, depth, scratch, row * row_size)
        for panel in range(panels):
            row = 0
            while row < count:
                height = tile_height(count - row, _most_rows(w))
                block_tile(
                    w, panel * size, blocks, scratch, row * row_size, row_size, height,
                    out, (first + row) * out_row + panel * LANES, out_row,
                )  # fmt: skip
                row += height


@overload(multiply_kept, jit_options=OPTIONS, strict=False)
def _by_form(
    w: Any, depth: Any, x: Any, x_row: Any, rows: Any, out: Any, out_row: Any, panels: Any,
    scratch: Any,
) -> Any:  # fmt: skip
    return _multiply_blocks if form_of(w.dtype) else _multiply_numbers


@compiled
def _round_row(w: Any, x: Any, x_at: int, depth: int, out: Any, out_at: int) -> None:
    """A row's inputs in blocks; those that are missing from the last one are zero."""
    whole = depth // INPUTS
    for block in range(whole):
        round_inputs(w, x, x_at + block * INPUTS, out, out_at + block * ROUNDED)
    if whole * INPUTS < depth:
        last = np.zeros(INPUTS, np.float32)
        for i in range(whole * INPUTS, depth):
            last[i - whole * INPUTS] = x[x_at + i]
        round_inputs(w, last, 0, out, out_at + whole * ROUNDED)


def panel_size(w: Any, depth: Any) -> int:
    """Elements of a panel of these weights; for compiled code."""
    raise NotImplementedError


@overload(panel_size, jit_options=OPTIONS, strict=False)
def _panel_size(w: Any, depth: Any) -> Any:
    inputs, elements = 1, LANES
    if form := form_of(w.dtype):
        inputs, elements = form.inputs, form.elements
    return lambda w, depth: (depth + inputs - 1) // inputs * elements


def _most_rows(w: Any) -> int:
    """How many rows a tile of these weights takes; for compiled code."""
    raise NotImplementedError


@overload(_most_rows, jit_options=OPTIONS, strict=False)
def _most_rows_of_form(w: Any) -> Any:
    form = form_of(w.dtype)
    most = most_rows(form) if form else 0
    return lambda w: most


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
