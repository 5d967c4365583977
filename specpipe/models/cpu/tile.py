"""The inner loop of all matrix products: a few panels of a matrix times a few rows.

A matrix [outputs, depth] is stored as *panels* of 16 outputs: [outputs / 16, depth, 16], or in
blocks of another form (forms.py). One vector register holds the 16 weights of a panel at one depth,
another 16 running sums. An output is the sum over the depth in rising order, one fused multiply-add
a term, whichever other rows and panels are computed beside it: so its bits depend on its own row
and weights alone.

How many sums a processor holds in registers decides how many panels and rows go together; the
instructions are generated for each count of rows.
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types

from specpipe.models.cpu.compiled import generated
from specpipe.models.cpu.forms import Form, form_of
from specpipe.models.cpu.instructions import (
    HAS_AVX512,
    INT64,
    LANES,
    VECTOR,
    call,
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
MANY_ROWS_OF_BLOCKS = 16 if HAS_AVX512 else MANY_ROWS
"""The same for blocks, whose panels are taken one by one: scales need registers too."""
BLOCK = 4
"""What both numbers of panels divide: matrices have a multiple of it."""


def _make_tile(panels: int, least_rows: int, most_rows: int, *, fetches: bool = False) -> Any:
    """A function for numba that multiplies so many panels by some number of rows.

    Its arguments: w, w_at, w_panel, w_step, depth, x, x_at, x_row, rows, out, out_at, out_row. It
    sets out[out_at + r * out_row + 16 * p + l] to the sum over k < depth of
    x[x_at + r * x_row + k] * w[w_at + p * w_panel + k * w_step + l], for r < rows, p < panels and
    l < 16. Arrays are flat; w holds float32, float16 as uint16, or int8; or blocks, q4 as uint32
    and q8 as uint8, and then w_step is from one block to the next. For any number of rows but
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

            panel_at = [start(0)]
            for _ in range(1, panels):
                panel_at.append(step(builder, panel_at[-1], values[2]))
            fetched = (start(12), values[14]) if ahead else None
            form = form_of(w.dtype)
            apart = most_rows == MANY_ROWS and form.inputs > 1
            together = [[panel] for panel in panel_at] if apart else [panel_at]
            most = MANY_ROWS_OF_BLOCKS if apart else most_rows
            loops = [_Tile(builder, form, some, values[3], values[4], fetched) for some in together]
            x_at, out_at = start(5), start(9)
            end = builder.append_basic_block("end")
            choice = builder.switch(values[8], end)
            for count in range(least_rows, most + 1):
                case = builder.append_basic_block(f"rows.{count}")
                choice.add_case(ir.Constant(values[8].type, count), case)
                builder.position_at_end(case)
                for i, loop in enumerate(loops):
                    place = step(builder, out_at, ir.Constant(INT64, i * LANES))
                    loop.emit(count, x_at, values[7], place, values[11])
                builder.branch(end)
            builder.position_at_end(end)
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
        form: Form,
        panels: list[Any],
        step: Any,
        depth: Any,
        fetched: tuple[Any, Any] | None,
    ) -> None:
        self._builder, self._form, self._panels = builder, form, panels
        self._step, self._fetched = step, fetched
        self._blocks = builder.sdiv(depth, ir.Constant(INT64, form.inputs))

    def emit(self, rows: int, x: Any, x_row: Any, out: Any, out_row: Any) -> None:
        """Code for exactly `rows` rows; the builder stands behind it afterwards."""
        builder, form = self._builder, self._form
        inputs, outputs = [x], [out]
        for _ in range(1, rows):
            inputs.append(step(builder, inputs[-1], x_row))
            outputs.append(step(builder, outputs[-1], out_row))

        def block(number: Any, sums: list[Any]) -> list[Any]:
            at = builder.mul(number, self._step)
            panels = [step(builder, panel, at) for panel in self._panels]
            shared = [form.shared(builder, panel) for panel in panels]
            first = builder.mul(number, ir.Constant(INT64, form.inputs))

            def turn(index: Any, sums: list[Any]) -> list[Any]:
                k = builder.add(first, builder.mul(index, ir.Constant(INT64, form.together)))
                places = [form.place(builder, panel, index) for panel in panels]
                self._fetch(places)
                found = [
                    form.weights(builder, common, place)
                    for common, place in zip(shared, places, strict=True)
                ]
                for i, weights in enumerate(zip(*found, strict=True)):
                    sums = self._add(weights, builder.add(k, ir.Constant(INT64, i)), inputs, sums)
                return sums

            if form.inputs == form.together:
                return turn(ir.Constant(INT64, 0), sums)
            self._fetch(panels)
            turns = ir.Constant(INT64, form.inputs // form.together)
            return repeat(builder, turns, sums, turn)

        zeros = [ir.Constant(VECTOR, [0.0] * LANES)] * (rows * len(self._panels))
        sums = iter(repeat(builder, self._blocks, zeros, block))
        for output_at in outputs:
            for panel in range(len(self._panels)):
                place = step(builder, output_at, ir.Constant(INT64, LANES * panel))
                store(builder, next(sums), place)

    def _fetch(self, places: list[Any]) -> None:
        """Send for what is further on in the panels, unless something else is to be fetched."""
        for place in [] if self._fetched else places:
            self._form.fetch(self._builder, place)

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
    """A block's weights as float32: out[out_at + 16 * k + l] is that of output l for input k."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        block, wide = (
            step(builder, pointer(context, builder, signature, values, index), values[index + 1])
            for index in (0, 2)
        )
        form = form_of(w.dtype)
        shared = form.shared(builder, block)
        for turn in range(form.inputs // form.together):
            place = form.place(builder, block, ir.Constant(INT64, turn))
            for i, weights in enumerate(form.weights(builder, shared, place)):
                at = ir.Constant(INT64, (turn * form.together + i) * LANES)
                store(builder, weights, step(builder, wide, at))
        return context.get_dummy_value()

    return types.void(w, types.int64, out, types.int64), generate


@generated
def block_inputs(_context: Any, w: Any) -> Any:
    """How many inputs a block of these weights is for."""
    return _number(w, form_of(w.dtype).inputs)


@generated
def block_elements(_context: Any, w: Any) -> Any:
    """How many elements there are from a block of these weights to the next."""
    return _number(w, form_of(w.dtype).elements)


@generated
def most_rows(_context: Any, w: Any) -> Any:
    """How many rows `many_rows_tile` takes at most with these weights."""
    return _number(w, MANY_ROWS_OF_BLOCKS if form_of(w.dtype).inputs > 1 else MANY_ROWS)


def _number(w: Any, number: int) -> Any:
    def generate(_context: Any, _builder: Any, _signature: Any, _values: Any) -> Any:
        return ir.Constant(INT64, number)

    return types.int64(w), generate


few_rows_tile = _make_tile(FEW_PANELS, 1, FEW_ROWS)
# More rows than one tile takes are cut into about equal parts: none is below half of it.
many_rows_tile = _make_tile(MANY_PANELS, MANY_ROWS // 2, MANY_ROWS)
fetching_tile = _make_tile(MANY_PANELS, MANY_ROWS // 2, MANY_ROWS, fetches=True)
