"""e^x, for one number or for 16 at once, and what a softmax does with it."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from specpipe.models.cpu.compiled import generated
from specpipe.models.cpu.instructions import (
    FLOAT,
    INT32,
    INT64,
    LANES,
    VECTOR,
    call,
    lane_by_lane,
    load,
    pointer,
    spread,
    step,
    store,
)

_LEAST, _MOST = -87.0, 88.0  # beyond, the exponent of the result is no exponent any more
_LOG2_E, _LN2_HIGH, _LN2_LOW = 1.4426950408889634, 0.693359375, -2.12194440e-4
_POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1)


@generated
def exp(_context: Any, x: Any) -> Any:
    """e^x in float32, to within 1e-6 of itself; 0 below -87, and e^88 beyond 88."""

    def generate(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return _exp(builder, values[0])

    return types.float32(types.float32), generate


@generated
def exponentials(_context: Any, x: Any, count: Any, shift: Any) -> Any:
    """Replace the first `count` numbers, a multiple of 16, by e^(x - shift); return their sum."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        shift = spread(builder, values[2])

        def body(place: Any, total: Any) -> Any:
            value = _exp(builder, builder.fsub(load(builder, FLOAT, place), shift))
            store(builder, value, place)
            return builder.fadd(total, value)

        start = ir.Constant(VECTOR, [0.0] * LANES)
        total = _over(context, builder, signature, values, start, body)
        return lane_by_lane(builder, total, builder.fadd)

    return types.float32(x, types.int64, types.float32), generate


@generated
def largest(_context: Any, x: Any, count: Any) -> Any:
    """The largest of the first `count` numbers, a multiple of 16."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        def greater(a: Any, b: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        def body(place: Any, most: Any) -> Any:
            return greater(load(builder, FLOAT, place), most)

        start = ir.Constant(VECTOR, [-np.inf] * LANES)
        most = _over(context, builder, signature, values, start, body)
        return lane_by_lane(builder, most, greater)

    return types.float32(x, types.int64), generate


def _over(context: Any, builder: Any, signature: Any, values: Any, start: Any, body: Any) -> Any:
    """A loop over the first values[1] elements of the array values[0], 16 at a time.

    `body` gets a place and what it returned before, at first `start`; the last result is returned.
    """
    array = pointer(context, builder, signature, values, 0)
    before, loop = builder.block, builder.append_basic_block("lanes")
    builder.branch(loop)
    builder.position_at_end(loop)
    at, carried = builder.phi(INT64), builder.phi(VECTOR)
    at.add_incoming(ir.Constant(INT64, 0), before)
    carried.add_incoming(start, before)
    result = body(step(builder, array, at), carried)
    following = builder.add(at, ir.Constant(INT64, LANES))
    at.add_incoming(following, loop)
    carried.add_incoming(result, loop)
    done = builder.append_basic_block("done")
    builder.cbranch(builder.icmp_signed("<", following, values[1]), loop, done)
    builder.position_at_end(done)
    return result


def _exp(builder: Any, x: Any) -> Any:
    """e^x of a float or of a vector of them.

    The polynomial is that of Cephes (Moshier, netlib.org/cephes, expf).
    """
    kind = x.type
    whole_kind = INT32 if kind is FLOAT else ir.VectorType(INT32, LANES)

    def constant(value: float) -> Any:
        number = float(np.float32(value))
        return ir.Constant(kind, number if kind is FLOAT else [number] * LANES)

    def whole_constant(value: int) -> Any:
        return ir.Constant(whole_kind, value if kind is FLOAT else [value] * LANES)

    def multiply_add(a: Any, b: Any, c: Any) -> Any:
        return call(builder, "llvm.fma", a, b, c)

    above = builder.fcmp_ordered(">", x, constant(_LEAST))
    below = builder.fcmp_ordered("<", x, constant(_MOST))
    bounded = builder.select(above, x, constant(_LEAST))
    bounded = builder.select(below, bounded, constant(_MOST))
    scaled = multiply_add(bounded, constant(_LOG2_E), constant(0.5))
    whole = call(builder, "llvm.floor", scaled)
    rest = multiply_add(whole, constant(-_LN2_HIGH), bounded)
    rest = multiply_add(whole, constant(-_LN2_LOW), rest)
    value = constant(_POLYNOMIAL[0])
    for coefficient in (*_POLYNOMIAL[1:], 0.5):
        value = multiply_add(value, rest, constant(coefficient))
    value = multiply_add(value, builder.fmul(rest, rest), builder.fadd(rest, constant(1.0)))
    exponent = builder.add(builder.fptosi(whole, whole_kind), whole_constant(127))
    power = builder.bitcast(builder.shl(exponent, whole_constant(23)), kind)
    return builder.select(above, builder.fmul(value, power), constant(0.0))
