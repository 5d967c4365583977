"""e^x, in operations that a compiler can apply to many numbers at once."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from specpipe.models.cpu.compiled import generated

_LEAST, _MOST = -87.0, 88.0  # beyond, the exponent of the result is no exponent any more
_LOG2_E, _LN2_HIGH, _LN2_LOW = 1.4426950408889634, 0.693359375, -2.12194440e-4
_POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1)


@generated
def exp(_context: Any, x: Any) -> Any:
    """e^x in float32, to within 1e-6 of itself; 0 below -87, and e^88 beyond 88.

    The polynomial is that of Cephes (Moshier, netlib.org/cephes, expf).
    """

    def generate(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        whole_number = ir.IntType(32)
        fma = _declared(builder.module, "llvm.fma.f32", 3)
        floor = _declared(builder.module, "llvm.floor.f32", 1)

        def multiply_add(a: Any, b: Any, c: Any) -> Any:
            return builder.call(fma, [a, b, c])

        above = builder.fcmp_ordered(">", values[0], _constant(_LEAST))
        below = builder.fcmp_ordered("<", values[0], _constant(_MOST))
        bounded = builder.select(above, values[0], _constant(_LEAST))
        bounded = builder.select(below, bounded, _constant(_MOST))
        scaled = multiply_add(bounded, _constant(_LOG2_E), _constant(0.5))
        whole = builder.call(floor, [scaled])
        rest = multiply_add(whole, _constant(-_LN2_HIGH), bounded)
        rest = multiply_add(whole, _constant(-_LN2_LOW), rest)
        value = _constant(_POLYNOMIAL[0])
        for coefficient in (*_POLYNOMIAL[1:], 0.5):
            value = multiply_add(value, rest, _constant(coefficient))
        one_more = builder.fadd(rest, _constant(1.0))
        value = multiply_add(value, builder.fmul(rest, rest), one_more)
        exponent = builder.fptosi(whole, whole_number)
        exponent = builder.add(exponent, ir.Constant(whole_number, 127))
        exponent = builder.shl(exponent, ir.Constant(whole_number, 23))
        power = builder.bitcast(exponent, ir.FloatType())
        return builder.select(above, builder.fmul(value, power), _constant(0.0))

    return types.float32(types.float32), generate


def _constant(value: float) -> Any:
    return ir.Constant(ir.FloatType(), float(np.float32(value)))


def _declared(module: Any, name: str, arguments: int) -> Any:
    kind = ir.FunctionType(ir.FloatType(), [ir.FloatType()] * arguments)
    return module.globals.get(name) or ir.Function(module, kind, name)
