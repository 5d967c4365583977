"""The inner loop of products with weights in blocks: whole numbers, times the scales of both.

Inputs are rounded to 16 bits, 32 of them with a scale in common: to within 2^-16 of the largest of
the 32. A block's share of an output is then a sum of products of whole numbers, which is exact, in
whatever order; it is scaled and added to those of the blocks before it, in rising order. So an
output's bits depend on its own row and weights alone, as they do in tile.py.

llama.cpp computes with such blocks in the same way, its inputs rounded to 8 bits:
https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-cpu/quants.c
"""

from functools import reduce
from typing import Any

from llvmlite import ir
from numba import types

from specpipe.models.cpu.blocks import TURNS, BlockForm, form_of
from specpipe.models.cpu.compiled import generated
from specpipe.models.cpu.instructions import (
    BYTE,
    FLOAT,
    HAS_VNNI,
    INT64,
    LANES,
    PAIRS,
    VECTOR,
    WORDS,
    add_products,
    by_count,
    call,
    load,
    places,
    pointer,
    reduced,
    repeat,
    spread,
    step,
    store,
    words,
)
from specpipe.models.gguf_blocks import INPUTS

_MOST_ROWS = {1: 16, 2: 10} if HAS_VNNI else {1: 4, 2: 4}
"""Of a tile, by parts of a block: of each row a sum of whole numbers has to stay in a register."""
ROUNDED = 2 + INPUTS // 2
"""Words of 32 inputs once they are rounded: their scale, their sum, and their numbers in pairs."""
_MOST = 32767.0
_TINY = 1e-30  # of a block of zeros


def most_rows(form: BlockForm) -> int:
    """How many rows a tile takes."""
    return _MOST_ROWS[form.parts]


@generated
def round_inputs(_context: Any, x: Any, x_at: Any, out: Any, out_at: Any) -> Any:
    """Round the 32 inputs at x[x_at]; they come to out[out_at : out_at + ROUNDED].

    What is no number makes their scale none either, and so the products.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        x_place, out_place = (
            step(builder, pointer(context, builder, signature, values, index), values[index + 1])
            for index in (0, 2)
        )
        halves = [
            load(builder, FLOAT, step(builder, x_place, ir.Constant(INT64, i * LANES)))
            for i in range(2)
        ]
        sizes = [call(builder, "llvm.fabs", half) for half in halves]
        largest = reduced(builder, "fmaximum", call(builder, "llvm.maximum", *sizes))
        largest = call(builder, "llvm.maximum", largest, ir.Constant(FLOAT, _TINY))
        up = spread(builder, builder.fdiv(ir.Constant(FLOAT, _MOST), largest))
        scale = builder.fdiv(largest, ir.Constant(FLOAT, _MOST))
        numbers = [
            builder.fptosi(call(builder, "llvm.rint", builder.fmul(half, up)), WORDS)
            for half in halves
        ]
        total = reduced(builder, "add", builder.add(*numbers))
        builder.store(scale, out_place)
        total = builder.fmul(builder.sitofp(total, FLOAT), scale)
        builder.store(total, step(builder, out_place, ir.Constant(INT64, 1)))
        short = ir.VectorType(PAIRS.element, LANES)
        for i, half in enumerate(numbers):
            place = step(builder, out_place, ir.Constant(INT64, 2 + i * LANES // 2))
            place = builder.bitcast(place, short.as_pointer())
            builder.store(builder.trunc(half, short), place, align=2)
        return context.get_dummy_value()

    return types.void(x, types.int64, out, types.int64), generate


@generated
def block_tile(
    _context: Any, w: Any, w_at: Any, blocks: Any,
    x: Any, x_at: Any, x_row: Any, rows: Any, out: Any, out_at: Any, out_row: Any,
) -> Any:  # fmt: skip
    """Multiply the panel at w[w_at] by 1 to `most_rows` rows.

    Row r's inputs are at x[x_at + r * x_row], `blocks` times ROUNDED words; its outputs come to
    out[out_at + r * out_row] and the next 15. For other numbers of rows it does nothing.
    """
    number = types.int64
    given = w, number, number, x, number, number, number, out, number, number
    form = form_of(w.dtype)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        assert form
        w_place, x_place, out_place = (
            step(builder, pointer(context, builder, signature, values, index), values[index + 1])
            for index in (0, 3, 7)
        )
        tile = _Tile(builder, form, w_place, values[2])
        by_count(
            builder,
            values[6],
            range(1, most_rows(form) + 1),
            lambda count: tile.emit(count, x_place, values[5], out_place, values[9]),
        )
        return context.get_dummy_value()

    return types.void(*given), generate


class _Tile:
    """Emits the loop over a panel's blocks, for some number of rows."""

    def __init__(self, builder: Any, form: BlockForm, panel: Any, blocks: Any) -> None:
        self._builder, self._form, self._blocks = builder, form, blocks
        self._panel = builder.bitcast(panel, BYTE.as_pointer())

    def emit(self, rows: int, x: Any, x_row: Any, out: Any, out_row: Any) -> None:
        """Code for exactly `rows` rows."""
        builder = self._builder
        inputs = places(builder, x, x_row, rows)
        outputs = places(builder, out, out_row, rows)

        def block(number: Any, sums: list[Any]) -> list[Any]:
            self._form.fetch(builder, self._panel, number)
            found = self._form.find(builder, self._panel, number)
            at = builder.mul(number, ir.Constant(INT64, ROUNDED))
            return self._add(found, [step(builder, row, at) for row in inputs], sums)

        zeros = [ir.Constant(VECTOR, [0.0] * LANES)] * rows
        for found, place in zip(repeat(builder, self._blocks, zeros, block), outputs, strict=True):
            store(builder, found, place)

    def _add(self, block: Any, rows: list[Any], sums: list[Any]) -> list[Any]:
        """A block's share of each row's sums, added to them."""
        builder, form = self._builder, self._form
        shares: list[Any] = []
        for part in range(form.parts):
            shares = self._add_part(block, part, rows, shares)
        scales = [spread(builder, builder.load(row)) for row in rows]
        sums = [
            call(builder, "llvm.fma", share, scale, found)
            for share, scale, found in zip(shares, scales, sums, strict=True)
        ]
        least = form.least(builder, block)
        if least is None:
            return sums
        totals = [builder.load(step(builder, row, ir.Constant(INT64, 1))) for row in rows]
        return [
            call(builder, "llvm.fma", least, spread(builder, total), found)
            for total, found in zip(totals, sums, strict=True)
        ]

    def _add_part(self, block: Any, part: int, rows: list[Any], shares: list[Any]) -> list[Any]:
        """Those inputs of a block that have a scale in common, added to each row's share, if any.

        Shares are still to be multiplied by the rows' own scales.
        """
        builder, form = self._builder, self._form
        chains = 2 if len(rows) <= 2 else 1  # an addition waits for the last one to the same sum
        products = [[words(0)] * chains for _ in rows]
        turns = TURNS // form.parts
        for turn in range(part * turns, (part + 1) * turns):
            numbers = form.numbers(builder, block, turn)
            for pair, weights in enumerate(numbers):
                for i, row in enumerate(rows):
                    place = step(builder, row, ir.Constant(INT64, 2 + turn * TURNS + pair))
                    chain = products[i][pair % chains]
                    products[i][pair % chains] = add_products(builder, weights, place, chain)
        scale = form.scale(builder, block, part)
        found = [builder.sitofp(reduce(builder.add, chained), VECTOR) for chained in products]
        if not shares:
            return [builder.fmul(number, scale) for number in found]
        return [
            call(builder, "llvm.fma", number, scale, share)
            for number, share in zip(found, shares, strict=True)
        ]
