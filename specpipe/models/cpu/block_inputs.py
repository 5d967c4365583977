"""Inputs of products with weights in blocks: rounded to whole numbers, 32 with a scale in common.

To within 2^-16 of the largest of the 32. Where weights are multiplied as bytes, inputs lie as two
planes of bytes: 256 times the upper one and the lower one, both with a sign, make a number. Else
they lie as pairs of 16 bits.
"""

from typing import Any, TypeGuard

from llvmlite import ir
from numba import types

from specpipe.models.cpu.blocks import BYTE_ORDER, TURNS, BlockForm, NibbleForm, form_of
from specpipe.models.cpu.compiled import generated
from specpipe.models.cpu.instructions import (
    BYTE,
    FLOAT,
    HAS_VNNI,
    INT32,
    INT64,
    LANES,
    SHORT,
    WORDS,
    call,
    load,
    pointer,
    reduced,
    spread,
    step,
    words,
)
from specpipe.models.gguf_blocks import INPUTS

NUMBERS = 2
"""Words before the numbers of 32 inputs once they are rounded: their scale, and their sum."""
PLANE = INPUTS // 4
"""Words of a plane of bytes; of pairs there are twice as many."""
ROUNDED = NUMBERS + 2 * PLANE
_MOST = 127.0 * 256 + 127  # what two bytes with a sign can hold
_TINY = 1e-30  # of a block of zeros


def by_bytes(form: BlockForm) -> TypeGuard[NibbleForm]:
    """Whether weights of a form are multiplied as bytes."""
    return HAS_VNNI and isinstance(form, NibbleForm)


@generated
def round_inputs(_context: Any, w: Any, x: Any, x_at: Any, out: Any, out_at: Any) -> Any:
    """Round the 32 inputs at x[x_at], for weights as w has them.

    They come to out[out_at : out_at + ROUNDED]. What is no number makes their scale none either,
    and so the products.
    """
    form = form_of(w.dtype)
    assert form
    put = _put_bytes if by_bytes(form) else _put_pairs

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        x_place, out_place = (
            step(builder, pointer(context, builder, signature, values, index), values[index + 1])
            for index in (1, 3)
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
        put(builder, numbers, step(builder, out_place, ir.Constant(INT64, NUMBERS)))
        return context.get_dummy_value()

    return types.void(w, x, types.int64, out, types.int64), generate


def _put_pairs(builder: Any, halves: list[Any], place: Any) -> None:
    """Write 32 numbers as they come."""
    short = ir.VectorType(SHORT, LANES)
    for i, half in enumerate(halves):
        at = step(builder, place, ir.Constant(INT64, i * LANES // 2))
        builder.store(builder.trunc(half, short), builder.bitcast(at, short.as_pointer()), align=2)


def _put_bytes(builder: Any, halves: list[Any], place: Any) -> None:
    """Write the upper bytes of 32 numbers, then the lower ones, both with a sign."""
    upper = [builder.ashr(builder.add(half, words(128)), words(8)) for half in halves]
    lower = [
        builder.sub(half, builder.shl(byte, words(8)))
        for half, byte in zip(halves, upper, strict=True)
    ]
    order = [8 * turn + at for turn in range(TURNS) for at in BYTE_ORDER]
    lanes = ir.Constant(ir.VectorType(INT32, INPUTS), order)
    kind = ir.VectorType(BYTE, INPUTS)
    for i, plane in enumerate((upper, lower)):
        found = builder.trunc(builder.shuffle_vector(*plane, lanes), kind)
        at = step(builder, place, ir.Constant(INT64, i * PLANE))
        builder.store(found, builder.bitcast(at, kind.as_pointer()), align=4)
