"""The inner loop of all matrix products: a few panels of a matrix times a few rows.

A matrix [outputs, depth] is stored as *panels* of 16 outputs: [outputs / 16, depth, 16]. One
vector register holds the 16 weights of a panel at one depth, another 16 running sums. An output
is the sum over the depth in rising order, one fused multiply-add a term, whichever other rows and
panels are computed beside it: so its bits depend on its own row and weights alone.

How many sums a processor holds in registers decides how many panels and rows go together; the
instructions are generated for each count of rows.
"""

from typing import Any

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import config, types

from specpipe.models.cpu.compiled import generated

LANES = 16
"""Outputs in a panel."""

# A tile's sums, its panels' weights and one input have to fit into the registers: 32 with AVX-512;
# with AVX2 there are 16, and a vector takes two.
_TOLD: str | None = vars(config)["CPU_FEATURES"]  # compiled for, if it isn't this processor
_WIDE = "+avx512f" in _TOLD if _TOLD else bool(get_host_cpu_features().get("avx512f"))
FEW_PANELS, FEW_ROWS = (4, 6) if _WIDE else (2, 3)
"""A tile where there are few rows: reading the weights takes the time."""
MANY_PANELS, MANY_ROWS = (2, 12) if _WIDE else (1, 6)
"""A tile where there are many: multiplying does."""
BLOCK = 4
"""What both numbers of panels divide: matrices have a multiple of it."""

_AHEAD = 2048  # bytes that a panel is fetched ahead of its use; found by trying

_FLOAT, _HALF, _INT64, _INT32 = ir.FloatType(), ir.HalfType(), ir.IntType(64), ir.IntType(32)
_SUMS = ir.VectorType(_FLOAT, LANES)


def _make_tile(panels: int, least_rows: int, most_rows: int) -> Any:
    """A function for numba that multiplies so many panels by some number of rows.

    Its arguments: w, w_at, w_panel, w_step, depth, x, x_at, x_row, rows, out, out_at, out_row. It
    sets out[out_at + r * out_row + 16 * p + l] to the sum over k < depth of
    x[x_at + r * x_row + k] * w[w_at + p * w_panel + k * w_step + l], for r < rows, p < panels and
    l < 16. Arrays are flat; w holds float32, or float16 as uint16. For any number of rows but
    `least_rows` to `most_rows` it does nothing.
    """

    @generated
    def tile(
        _context: Any,
        w: Any,
        w_at: Any,
        w_panel: Any,
        w_step: Any,
        depth: Any,
        x: Any,
        x_at: Any,
        x_row: Any,
        rows: Any,
        out: Any,
        out_at: Any,
        out_row: Any,
    ) -> Any:
        number = types.int64
        signature = types.void(
            w, *[number] * 4, x, *[number] * 3, out, *[number] * 2
        )  # as the arguments come
        element = _HALF if w.dtype == types.uint16 else _FLOAT

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            def start(index: int) -> Any:
                array = context.make_array(signature.args[index])(context, builder, values[index])
                return array.data

            weights = builder.bitcast(start(0), element.as_pointer())
            panel_at = [_step(builder, weights, values[1])]
            for _ in range(1, panels):
                panel_at.append(_step(builder, panel_at[-1], values[2]))
            loop = _Tile(builder, element, panel_at, values[3], values[4])
            x_at, out_at = _step(builder, start(5), values[6]), _step(builder, start(9), values[10])
            end = builder.append_basic_block("end")
            choice = builder.switch(values[8], end)
            for count in range(least_rows, most_rows + 1):
                case = builder.append_basic_block(f"rows.{count}")
                choice.add_case(ir.Constant(values[8].type, count), case)
                builder.position_at_end(case)
                loop.emit(count, x_at, values[7], out_at, values[11])
                builder.branch(end)
            builder.position_at_end(end)
            return context.get_dummy_value()

        return signature, generate

    return tile


class _Tile:
    """Emits the loop over the depth, for some number of rows."""

    def __init__(
        self, builder: Any, element: Any, panels: list[Any], step: Any, depth: Any
    ) -> None:
        self._builder, self._element, self._panels = builder, element, panels
        self._step, self._depth = step, depth

    def emit(self, rows: int, x: Any, x_row: Any, out: Any, out_row: Any) -> None:
        """Code for exactly `rows` rows; the builder stands behind it afterwards."""
        builder = self._builder
        inputs, outputs = [x], [out]
        for _ in range(1, rows):
            inputs.append(_step(builder, inputs[-1], x_row))
            outputs.append(_step(builder, outputs[-1], out_row))
        before, loop = builder.block, builder.append_basic_block(f"depth.{rows}")
        builder.branch(loop)
        builder.position_at_end(loop)
        k = builder.phi(_INT64)
        k.add_incoming(ir.Constant(_INT64, 0), before)
        sums = [[builder.phi(_SUMS) for _ in self._panels] for _ in range(rows)]
        for phi in (phi for row in sums for phi in row):
            phi.add_incoming(ir.Constant(_SUMS, [0.0] * LANES), before)
        weights = [self._load(panel, k) for panel in self._panels]
        sums_after = []
        for input_at, row in zip(inputs, sums, strict=True):
            value = _spread(builder, builder.load(_step(builder, input_at, k)))
            sums_after.append(
                [_fma(builder, weight, value, s) for weight, s in zip(weights, row, strict=True)]
            )
        following = builder.add(k, ir.Constant(_INT64, 1))
        k.add_incoming(following, loop)
        for row, row_after in zip(sums, sums_after, strict=True):
            for phi, value in zip(row, row_after, strict=True):
                phi.add_incoming(value, loop)
        done = builder.append_basic_block(f"done.{rows}")
        builder.cbranch(builder.icmp_signed("<", following, self._depth), loop, done)
        builder.position_at_end(done)
        for output_at, row_after in zip(outputs, sums_after, strict=True):
            for panel, value in enumerate(row_after):
                place = _step(builder, output_at, ir.Constant(_INT64, LANES * panel))
                builder.store(value, builder.bitcast(place, _SUMS.as_pointer()), align=4)

    def _load(self, panel: Any, k: Any) -> Any:
        """A panel's weights at depth k, as float32; those further on are sent for."""
        builder, size = self._builder, 2 if self._element is _HALF else 4
        place = _step(builder, panel, builder.mul(k, self._step))
        _prefetch(builder, _step(builder, place, ir.Constant(_INT64, _AHEAD // size)))
        vector = ir.VectorType(self._element, LANES)
        weights = builder.load(builder.bitcast(place, vector.as_pointer()), align=size)
        return builder.fpext(weights, _SUMS) if self._element is _HALF else weights


def _step(builder: Any, pointer: Any, elements: Any) -> Any:
    return builder.gep(pointer, [elements])


def _spread(builder: Any, number: Any) -> Any:
    """A vector of one number."""
    undefined = ir.Constant(_SUMS, ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(_INT32, 0))
    lanes = ir.Constant(ir.VectorType(_INT32, LANES), [0] * LANES)
    return builder.shuffle_vector(first, undefined, lanes)


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    kind = ir.FunctionType(_SUMS, [_SUMS] * 3)
    return builder.call(_declared(builder.module, f"llvm.fma.v{LANES}f32", kind), [a, b, c])


def _prefetch(builder: Any, pointer: Any) -> None:
    anything = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [anything, _INT32, _INT32, _INT32])
    function = _declared(builder.module, "llvm.prefetch.p0", kind)
    read, keep, data = (ir.Constant(_INT32, value) for value in (0, 3, 1))
    builder.call(function, [builder.bitcast(pointer, anything), read, keep, data])


def _declared(module: Any, name: str, kind: Any) -> Any:
    return module.globals.get(name) or ir.Function(module, kind, name)


few_rows_tile = _make_tile(FEW_PANELS, 1, FEW_ROWS)
# More rows than one tile takes are cut into about equal parts: none is below half of it.
many_rows_tile = _make_tile(MANY_PANELS, MANY_ROWS // 2, MANY_ROWS)
