"""The inner loop of products with weights in blocks: whole numbers, times the scales of both.

Inputs are rounded as in block_inputs.py. A block's share of an output is then a sum of products of
whole numbers, which is exact, in whatever order; it is scaled and added to those of the blocks
before it, in rising order. So an output's bits depend on its own row and weights alone, as they do
in tile.py, and not on the instructions that the products are made by.

llama.cpp computes with such blocks in the same way, its inputs rounded to 8 bits:
https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-cpu/quants.c
"""

from functools import reduce
from typing import Any

from llvmlite import ir
from numba import types

from specpipe.models.cpu.block_inputs import NUMBERS, PLANE, ROUNDED, by_bytes
from specpipe.models.cpu.blocks import TURNS, BlockForm, NibbleForm, form_of
from specpipe.models.cpu.compiled import generated
from specpipe.models.cpu.instructions import (
    BYTE,
    HAS_VNNI,
    INT64,
    LANES,
    VECTOR,
    add_byte_products,
    add_products,
    by_count,
    call,
    places,
    pointer,
    repeat,
    spread,
    step,
    store,
    words,
)

_MOST_ROWS = {1: 16, 2: 10} if HAS_VNNI else {1: 4, 2: 4}
_MOST_ROWS_BY_BYTES = 8
"""Of a tile: of each row a sum of whole numbers has to stay in a register, or one of each plane."""


def most_rows(form: BlockForm) -> int:
    """How many rows a tile takes."""
    return _MOST_ROWS_BY_BYTES if by_bytes(form) else _MOST_ROWS[form.parts]


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
        if by_bytes(form):
            sums = self._by_bytes(form, block, rows)
        else:
            sums = self._by_pairs(block, part, rows)
        scale = form.scale(builder, block, part)
        found = [builder.sitofp(each, VECTOR) for each in sums]
        if not shares:
            return [builder.fmul(number, scale) for number in found]
        return [
            call(builder, "llvm.fma", number, scale, share)
            for number, share in zip(found, shares, strict=True)
        ]

    def _by_pairs(self, block: Any, part: int, rows: list[Any]) -> list[Any]:
        """Of each row, the sum of products of a part of a block's inputs."""
        builder, form = self._builder, self._form
        chains = 2 if len(rows) <= 2 else 1  # an addition waits for the last one to the same sum
        sums = [[words(0)] * chains for _ in rows]
        turns = TURNS // form.parts
        for turn in range(part * turns, (part + 1) * turns):
            for pair, weights in enumerate(form.numbers(builder, block, turn), turn * TURNS):
                for row, chained in zip(rows, sums, strict=True):
                    place = step(builder, row, ir.Constant(INT64, NUMBERS + pair))
                    chain = pair % chains
                    chained[chain] = add_products(builder, weights, place, chained[chain])
        return [reduce(builder.add, chained) for chained in sums]

    def _by_bytes(self, form: NibbleForm, block: Any, rows: list[Any]) -> list[Any]:
        """Of each row, the sum of products of all inputs of a block."""
        builder = self._builder
        sums = [[words(0)] * 2 for _ in rows]
        numbers = [each for turn in range(TURNS) for each in form.bytes_of(builder, block, turn)]
        for word, weights in enumerate(numbers, NUMBERS):
            for row, by_plane in zip(rows, sums, strict=True):
                for plane, found in enumerate(by_plane):
                    place = step(builder, row, ir.Constant(INT64, word + plane * PLANE))
                    by_plane[plane] = add_byte_products(builder, weights, place, found)
        return [builder.add(builder.shl(upper, words(8)), lower) for upper, lower in sums]
