"""The inner loop of products with plain numbers: a few panels of a matrix times a few rows.

A matrix [outputs, depth] is stored as *panels* of 16 outputs: [outputs / 16, depth, 16]. (For
matrices in blocks see block_tile.py.) One vector register holds the 16 weights of a panel at one
depth, another 16 running sums. An output is the sum over the depth in rising order, one fused
multiply-add a term, whichever other rows and panels are computed beside it: so its bits depend on
its own row and weights alone.

How many sums a processor holds in registers decides how many panels and rows go together; the
instructions are generated for each count of rows.
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types

from specpipe.models.cpu.compiled import generated
from specpipe.models.cpu.instructions import (
    BYTE,
    HAS_AVX512,
    INT64,
    LANES,
    VECTOR,
    by_count,
    call,
    element,
    load,
    places,
    pointer,
    prefetch,
    repeat,
    spread,
    step,
    store,
)

# A tile's sums, its panels' weights and one input have to fit into the registers: 32 with AVX-512;
# with AVX2 there are 16, and a vector takes two.
FEW_PANELS, FEW_ROWS = (4, 6) if HAS_AVX512 else (2, 3)
"""A tile where there are few rows: reading the weights takes the time."""
MANY_PANELS, MANY_ROWS = (2, 12) if HAS_AVX512 else (1, 6)
"""A tile where there are many: multiplying does."""
BLOCK = 4
"""What both numbers of panels divide: matrices have a multiple of it."""
_AHEAD = 2048  # bytes that a panel is fetched ahead of its use; found by trying


def _make_tile(panels: int, least_rows: int, most_rows: int, *, fetches: bool = False) -> Any:
    """A function for numba that multiplies so many panels by some number of rows.

    Its arguments: w, w_at, w_panel, w_step, depth, x, x_at, x_row, rows, out, out_at, out_row. It
    sets out[out_at + r * out_row + 16 * p + l] to the sum over k < depth of
    x[x_at + r * x_row + k] * w[w_at + p * w_panel + k * w_step + l], for r < rows, p < panels and
    l < 16. Arrays are flat; w holds float32, or float16 as uint16. For any number of rows but
    `least_rows` to `most_rows` it does nothing.

    With `fetches`, arguments follow that say what to bring into the cache meanwhile: an array, the
    first element, and how many there are from one depth to the next.
    """

    def build(w: Any, x: Any, out: Any, *ahead: Any) -> Any:
        number = types.int64
        given = [w, *[number] * 4, x, *[number] * 3, out, *[number] * 2]
        if ahead:
            given += [ahead[0], number, number]

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            def start(index: int) -> Any:
                array = pointer(context, builder, signature, values, index)
                return step(builder, array, values[index + 1])

            panel_at = places(builder, start(0), values[2], panels)
            fetched = (start(12), values[14]) if ahead else None
            loop = _Tile(builder, element(w.dtype), panel_at, values[3], values[4], fetched)
            x_at, out_at = start(5), start(9)
            by_count(
                builder,
                values[8],
                range(least_rows, most_rows + 1),
                lambda count: loop.emit(count, x_at, values[7], out_at, values[11]),
            )
            return context.get_dummy_value()

        return types.void(*given), generate

    # numba wants to see the arguments.
    def tile(
        _context: Any, w: Any, w_at: Any, w_panel: Any, w_step: Any, depth: Any,
        x: Any, x_at: Any, x_row: Any, rows: Any, out: Any, out_at: Any, out_row: Any,
    ) -> Any:  # fmt: skip
        return build(w, x, out)

    def fetching_tile(
        _context: Any, w: Any, w_at: Any, w_panel: Any, w_step: Any, depth: Any,
        x: Any, x_at: Any, x_row: Any, rows: Any, out: Any, out_at: Any, out_row: Any,
        ahead: Any, ahead_at: Any, ahead_step: Any,
    ) -> Any:  # fmt: skip
        return build(w, x, out, ahead)

    return generated(fetching_tile if fetches else tile)


class _Tile:
    """Emits the loop over the depth, for some number of rows."""

    def __init__(
        self,
        builder: Any,
        kind: Any,
        panels: list[Any],
        step: Any,
        depth: Any,
        fetched: tuple[Any, Any] | None,
    ) -> None:
        self._builder, self._kind, self._panels = builder, kind, panels
        self._step, self._depth, self._fetched = step, depth, fetched

    def emit(self, rows: int, x: Any, x_row: Any, out: Any, out_row: Any) -> None:
        """Code for exactly `rows` rows; the builder stands behind it afterwards."""
        builder = self._builder
        inputs = places(builder, x, x_row, rows)

        def turn(k: Any, sums: list[Any]) -> list[Any]:
            at = builder.mul(k, self._step)
            found = [step(builder, panel, at) for panel in self._panels]
            self._fetch(found)
            weights = [load(builder, self._kind, place) for place in found]
            return self._add(weights, k, inputs, sums)

        zeros = [ir.Constant(VECTOR, [0.0] * LANES)] * (rows * len(self._panels))
        sums = iter(repeat(builder, self._depth, zeros, turn))
        for output_at in places(builder, out, out_row, rows):
            for panel in range(len(self._panels)):
                place = step(builder, output_at, ir.Constant(INT64, LANES * panel))
                store(builder, next(sums), place)

    def _fetch(self, found: list[Any]) -> None:
        """Send for what is further on in the panels, unless something else is to be fetched."""
        builder = self._builder
        for place in [] if self._fetched else found:
            bytes_ = builder.bitcast(place, BYTE.as_pointer())
            prefetch(builder, step(builder, bytes_, ir.Constant(INT64, _AHEAD)))

    def _add(self, weights: Sequence[Any], k: Any, inputs: list[Any], sums: list[Any]) -> list[Any]:
        """Each row's input k times the panels' weights, added to its sums."""
        builder, old = self._builder, iter(sums)
        if self._fetched:
            place, stride = self._fetched
            prefetch(builder, step(builder, place, builder.mul(k, stride)))
        new = []
        for input_at in inputs:
            value = spread(builder, builder.load(step(builder, input_at, k)))
            new += [call(builder, "llvm.fma", weight, value, next(old)) for weight in weights]
        return new


@generated
def widen(_context: Any, w: Any, w_at: Any, out: Any, out_at: Any) -> Any:
    """16 weights as float32."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        place, wide = (
            step(builder, pointer(context, builder, signature, values, index), values[index + 1])
            for index in (0, 2)
        )
        store(builder, load(builder, element(w.dtype), place), wide)
        return context.get_dummy_value()

    return types.void(w, types.int64, out, types.int64), generate


few_rows_tile = _make_tile(FEW_PANELS, 1, FEW_ROWS)
# More rows than one tile takes are cut into about equal parts: none is below half of it.
many_rows_tile = _make_tile(MANY_PANELS, MANY_ROWS // 2, MANY_ROWS)
fetching_tile = _make_tile(MANY_PANELS, MANY_ROWS // 2, MANY_ROWS, fetches=True)
