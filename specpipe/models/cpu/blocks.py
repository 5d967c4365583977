"""How weights that are kept in blocks lie in memory, and how they become whole numbers.

A panel is a row of blocks; a block has the weights of 16 outputs for 32 inputs, each output with
a scale of its own and, of 4 bits, a least value. Its numbers stand in the order in which they are
multiplied: one input's after the other's, two at a time.

    q4  16 scales and 16 least values, float16; then 4 times 16 words of 32 bits, one for each
        output, for 8 inputs each: inputs 0, 2, 4, 6 in the lower half, 1, 3, 5, 7 in the upper
    q8  16 scales, float16; then 16 times 16 pairs of bytes with a sign, one for each output
    k4  as q4, in float32
    k8  16 scales for the first 16 inputs, 16 for the others, 16 least values, float32; then as q8
"""

from abc import ABC, abstractmethod
from typing import Any

from llvmlite import ir
from numba import types

from specpipe.models.cpu.instructions import (
    BYTE,
    FLOAT,
    HALF,
    INT64,
    LANES,
    PAIRS,
    WORDS,
    load,
    prefetch,
    step,
    words,
)

TURNS = 4
"""In which a block's numbers are made, for 8 inputs each."""
_AHEAD = 8192  # bytes that a panel is fetched ahead of its use; found by trying
_LINE = 64  # bytes that are fetched together


class BlockForm(ABC):
    """A form of blocks.

    Attributes:
        bytes: of a block.
        elements: of an array that has it.
        head: bytes before the first number.
        parts: how many of its inputs' parts have scales of their own.
    """

    bytes, elements, head, parts = 0, 0, 0, 1

    def scale(self, builder: Any, block: Any, _part: int) -> Any:
        """The 16 scales of a part of a block, as floats."""
        return load(builder, HALF, builder.bitcast(block, HALF.as_pointer()))

    def least(self, _builder: Any, _block: Any) -> Any:
        """The 16 least values, or None."""
        return None

    @abstractmethod
    def numbers(self, builder: Any, block: Any, turn: int) -> list[Any]:
        """A turn's numbers: 4 vectors of pairs, 16 bits each, one pair for each output."""

    def fetch(self, builder: Any, block: Any) -> None:
        """Send for what is further on."""
        for line in range(0, self.bytes, _LINE):
            prefetch(builder, _on(builder, block, _AHEAD + line))


class _Q4(BlockForm):
    bytes, elements, head = 320, 80, 64

    def least(self, builder: Any, block: Any) -> Any:
        halves = builder.bitcast(_on(builder, block, 2 * LANES), HALF.as_pointer())
        return load(builder, HALF, halves)

    def numbers(self, builder: Any, block: Any, turn: int) -> list[Any]:
        place = _on(builder, block, self.head + turn * 4 * LANES)
        found = builder.load(builder.bitcast(place, WORDS.as_pointer()), align=1)
        shifted = [found, *(builder.lshr(found, words(4 * i)) for i in range(1, 4))]
        return [builder.and_(numbers, words(0x000F000F)) for numbers in shifted]


class _Q8(BlockForm):
    bytes, elements, head = 544, 544, 32

    def numbers(self, builder: Any, block: Any, turn: int) -> list[Any]:
        bytes_ = ir.VectorType(BYTE, 2 * LANES)
        found = []
        for pair in range(4 * turn, 4 * turn + 4):
            place = _on(builder, block, self.head + pair * 2 * LANES)
            numbers = builder.load(builder.bitcast(place, bytes_.as_pointer()), align=1)
            found.append(builder.bitcast(builder.sext(numbers, PAIRS), WORDS))
        return found


class _K4(_Q4):
    bytes, elements, head = 384, 96, 128

    def scale(self, builder: Any, block: Any, _part: int) -> Any:
        return load(builder, FLOAT, builder.bitcast(block, FLOAT.as_pointer()))

    def least(self, builder: Any, block: Any) -> Any:
        return self.scale(builder, _on(builder, block, 4 * LANES), 0)


class _K8(_Q8):
    bytes, elements, head, parts = 704, 704, 192, 2

    def scale(self, builder: Any, block: Any, part: int) -> Any:
        place = _on(builder, block, 4 * LANES * part)
        return load(builder, FLOAT, builder.bitcast(place, FLOAT.as_pointer()))

    def least(self, builder: Any, block: Any) -> Any:
        return self.scale(builder, block, self.parts)


_FORMS: dict[Any, type[BlockForm]] = {
    types.uint32: _Q4,
    types.uint8: _Q8,
    types.int32: _K4,
    types.int8: _K8,
}


def form_of(dtype: Any) -> BlockForm | None:
    """The form of an array's blocks, by numba's type of its elements; None: plain numbers."""
    form = _FORMS.get(dtype)
    return form() if form else None


def _on(builder: Any, place: Any, bytes_: int) -> Any:
    return step(builder, place, ir.Constant(INT64, bytes_))
