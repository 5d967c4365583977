"""How the weights of a panel lie in memory, and how they become vectors of 16 floats.

A panel is a row of *blocks*; a block has the weights of 16 outputs for some inputs. Of plain
numbers, float32, float16 and int8, it has those for one input: 16 numbers. GGUF's blocks are for 32
inputs, each output with a scale of its own and, of 4 bits, a least value:

    q4  16 scales and 16 least values, float16; then 16 times 16 bytes, one for each output, for
        two inputs each, the first of them in the lower half
    q8  16 scales, float16; then 32 times 16 bytes with a sign, one for each output

What a weight of theirs becomes is what the file says, rounded to float32 once, as whoever turns the
whole file into float32 gets it: so products have the very bits of those.
"""

from typing import Any

from llvmlite import ir
from numba import types

from specpipe.models.cpu.instructions import (
    BYTE,
    HALF,
    HAS_AVX512,
    INT32,
    INT64,
    LANES,
    VECTOR,
    call,
    declared,
    element,
    load,
    prefetch,
    step,
)

_AHEAD = 2048  # bytes that a panel is fetched ahead of its use; found by trying
_INTEGERS, _BYTES = ir.VectorType(INT32, LANES), ir.VectorType(BYTE, LANES)


class Form:
    """A form of blocks; this one is that of plain numbers, and the base of the others.

    Attributes:
        inputs: that a block is for.
        elements: of the array, from a block to the next.
        together: inputs whose weights are made in one turn of the innermost loop.
    """

    inputs, elements, together = 1, LANES, 1

    def __init__(self, kind: Any) -> None:
        self._kind = kind

    def shared(self, _builder: Any, _block: Any) -> Any:
        """What all weights of a block need."""
        return None

    def place(self, _builder: Any, block: Any, _turn: Any) -> Any:
        """Where the numbers are for a turn's inputs."""
        return block

    def weights(self, builder: Any, _shared: Any, place: Any) -> list[Any]:
        """The weights of 16 outputs as floats, for each input of a turn."""
        return [load(builder, self._kind, place)]

    def fetch(self, builder: Any, place: Any) -> None:
        """Send for what is further on."""
        bytes_ = builder.bitcast(place, BYTE.as_pointer())
        prefetch(builder, _on(builder, bytes_, _AHEAD))


class _Blocks(Form):
    """What GGUF's forms have in common.

    Attributes:
        head: bytes before the first number.
        turn: bytes of a turn's numbers.
    """

    inputs, together = 32, 2
    head, turn = 0, 0

    def place(self, builder: Any, block: Any, turn: Any) -> Any:
        numbers = _on(builder, builder.bitcast(block, BYTE.as_pointer()), self.head)
        return step(builder, numbers, builder.mul(turn, ir.Constant(INT64, self.turn)))


class _Q4(_Blocks):
    elements, head, turn = 80, 64, 16

    def shared(self, builder: Any, block: Any) -> Any:
        halves = builder.bitcast(block, HALF.as_pointer())
        return load(builder, HALF, halves), load(builder, HALF, _on(builder, halves, LANES))

    def weights(self, builder: Any, shared: Any, place: Any) -> list[Any]:
        scale, least = shared
        bytes_ = builder.load(builder.bitcast(place, _BYTES.as_pointer()), align=1)
        both = builder.zext(bytes_, _INTEGERS)
        return [
            call(builder, "llvm.fma", _number(builder, bits), scale, least)
            for bits in (both, builder.lshr(both, _integers(4)))
        ]


class _Q8(_Blocks):
    elements, head, turn = 544, 32, 32

    def shared(self, builder: Any, block: Any) -> Any:
        return load(builder, HALF, builder.bitcast(block, HALF.as_pointer()))

    def weights(self, builder: Any, shared: Any, place: Any) -> list[Any]:
        return [
            builder.fmul(load(builder, BYTE, _on(builder, place, i * LANES)), shared)
            for i in range(self.together)
        ]


def form_of(dtype: Any) -> Form:
    """The form of an array's weights, by numba's type of its elements."""
    form = {types.uint32: _Q4, types.uint8: _Q8}.get(dtype, Form)
    return form(element(dtype))


def _number(builder: Any, words: Any) -> Any:
    """The lowest 4 bits of each word, as a float."""
    if not HAS_AVX512:
        return builder.sitofp(builder.and_(words, _integers(15)), VECTOR)
    # Looked up in a register, by an instruction that ignores the other bits.
    table = ir.Constant(VECTOR, [float(number) for number in range(LANES)])
    kind = ir.FunctionType(VECTOR, [VECTOR, _INTEGERS])
    return builder.call(
        declared(builder.module, "llvm.x86.avx512.permvar.sf.512", kind), [table, words]
    )


def _integers(number: int) -> Any:
    return ir.Constant(_INTEGERS, [number] * LANES)


def _on(builder: Any, place: Any, elements: int) -> Any:
    return step(builder, place, ir.Constant(INT64, elements))
