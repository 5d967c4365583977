"""How weights that are kept in blocks lie in memory, and how they become whole numbers.

A panel is a row of blocks; a block has the weights of 16 outputs for 32 inputs. Each form has a
layout of what an array repeats: one block, or eight that share numbers, as GGUF's types with a K
do. `scale` and `least` are those of `Blocks`, for each of the 16 outputs; `small` has the whole
numbers by which they are multiplied. The numbers stand in the order in which they are multiplied,
one input's after the other's, two at a time: as pairs of bytes with a sign; or as words of 32 bits
for 8 inputs, inputs 0, 2, 4, 6 in the lower half, 1, 3, 5, 7 in the upper. Numbers of 6 bits, to
which 32 was added, take three such words for 16 inputs: of those in the lower half, 0 and 2, 4 and
6, 8 and 10 have 12 bits of a word each, and 12 and 14 the four that are left of each.
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types

from specpipe.models.cpu.instructions import (
    BYTE,
    FLOAT,
    HALF,
    INT64,
    IS_ZEN,
    LANES,
    PAIRS,
    VECTOR,
    WORDS,
    load,
    prefetch,
    step,
    words,
)
from specpipe.models.gguf_blocks import INPUTS, Form

TURNS = 4
"""In which a block's numbers are made, for 8 inputs each."""
# Bytes that a panel is fetched ahead of its use, and into which cache; found by trying. Intel's
# processors await few lines at once for the first (16 are too few to fill a latency), many for the
# second.
_AHEAD = [(8192, 1)] if IS_ZEN else [(8192, 2), (6144, 1)]
_LINE = 64  # bytes that are fetched together
_TOGETHER = 8  # blocks that share numbers, where any do
BYTE_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""The order of a turn's inputs in the bytes of a word of 4 bits each, the lower halves first."""
OFFSET, SIXES = 32, 3
"""Of numbers of 6 bits: what is added to them, and how many words have those of 16 inputs."""


class BlockForm(ABC):
    """A form of blocks.

    Attributes:
        element: numpy's name for the type of an array that has it; it tells forms apart.
        layout: of what is repeated.
        blocks: how many that has.
        parts: how many of a block's inputs' parts have scales of their own.
    """

    element: str
    layout: np.dtype[np.void]
    blocks, parts = 1, 1

    @property
    def elements(self) -> int:
        """Of an array, for what is repeated."""
        return self.layout.itemsize // np.dtype(self.element).itemsize

    @property
    def inputs(self) -> int:
        """Of what is repeated."""
        return self.blocks * INPUTS

    def find(self, builder: Any, panel: Any, number: Any) -> Any:
        """A block, as the other methods take it."""
        return step(builder, panel, builder.mul(number, ir.Constant(INT64, self.layout.itemsize)))

    @abstractmethod
    def scale(self, builder: Any, block: Any, part: int) -> Any:
        """The 16 scales of a part of a block, as floats."""

    def least(self, _builder: Any, _block: Any) -> Any:
        """The 16 least values, or None."""
        return None

    @abstractmethod
    def numbers(self, builder: Any, block: Any, turn: int) -> list[Any]:
        """A turn's numbers: 4 vectors of pairs, 16 bits each, one pair for each output."""

    def fetch(self, builder: Any, panel: Any, number: Any) -> None:
        """Send for a block's share of what is further on: line by line, in rising order.

        Processors find out such a row, and fetch for themselves what is behind it.
        """
        share = self.layout.itemsize // self.blocks
        first = step(builder, panel, builder.mul(number, ir.Constant(INT64, share)))
        for line in range(0, share, _LINE):
            for ahead, cache in _AHEAD:
                prefetch(builder, _on(builder, first, ahead + line), cache)

    def _at(self, field: str) -> int:
        """Where a field begins."""
        return _offset(self.layout, field)


class NibbleForm(BlockForm):
    """A form with numbers of 4 bits, which become bytes in fewer instructions than pairs."""

    @abstractmethod
    def _first_word(self, builder: Any, block: Any) -> Any:
        """Where a block's numbers begin."""

    def numbers(self, builder: Any, block: Any, turn: int) -> list[Any]:
        """See BlockForm."""
        found = self._words_of(builder, block, turn)
        shifted = [found, *(builder.lshr(found, words(4 * i)) for i in range(1, 4))]
        return [builder.and_(each, words(0x000F000F)) for each in shifted]

    def bytes_of(self, builder: Any, block: Any, turn: int) -> list[Any]:
        """The same without a sign as 2 vectors of words of 4 bytes, in the order of BYTE_ORDER."""
        found = self._words_of(builder, block, turn)
        halves = found, builder.lshr(found, words(4))
        return [builder.and_(half, words(0x0F0F0F0F)) for half in halves]

    def _words_of(self, builder: Any, block: Any, turn: int) -> Any:
        return _words(builder, _on(builder, self._first_word(builder, block), turn * 4 * LANES))


class _Q4(NibbleForm):
    element = "uint32"
    layout = np.dtype(
        [("scale", "<f2", LANES), ("least", "<f2", LANES), ("numbers", "<u4", (TURNS, LANES))]
    )

    def scale(self, builder: Any, block: Any, _part: int) -> Any:
        return _floats(builder, block, HALF)

    def least(self, builder: Any, block: Any) -> Any:
        return _floats(builder, _on(builder, block, self._at("least")), HALF)

    def _first_word(self, builder: Any, block: Any) -> Any:
        return _on(builder, block, self._at("numbers"))


class _Q8(BlockForm):
    element = "uint8"
    layout = np.dtype([("scale", "<f2", LANES), ("numbers", "i1", (INPUTS // 2, LANES, 2))])

    def scale(self, builder: Any, block: Any, _part: int) -> Any:
        return _floats(builder, block, HALF)

    def numbers(self, builder: Any, block: Any, turn: int) -> list[Any]:
        bytes_, first = ir.VectorType(BYTE, 2 * LANES), self._at("numbers")
        found = []
        for pair in range(4 * turn, 4 * turn + 4):
            place = _on(builder, block, first + pair * 2 * LANES)
            numbers = builder.load(builder.bitcast(place, bytes_.as_pointer()), align=1)
            found.append(builder.bitcast(builder.sext(numbers, PAIRS), WORDS))
        return found


class _K8(_Q8):
    element, parts = "int8", 2
    layout = np.dtype(
        [
            ("scale", "<f4", (2, LANES)),
            ("least", "<f4", LANES),
            ("numbers", "i1", (INPUTS // 2, LANES, 2)),
        ]
    )

    def scale(self, builder: Any, block: Any, part: int) -> Any:
        return _floats(builder, _on(builder, block, 4 * LANES * part), FLOAT)

    def least(self, builder: Any, block: Any) -> Any:
        return _floats(builder, _on(builder, block, self._at("least")), FLOAT)


class _Inner(NamedTuple):
    """One of the blocks that share numbers: where those are, which it is, and its own numbers."""

    shared: Any
    index: Any
    numbers: Any


class _Together(BlockForm):
    """A form of blocks that share numbers."""

    blocks = _TOGETHER

    def find(self, builder: Any, panel: Any, number: Any) -> _Inner:
        outer = builder.udiv(number, ir.Constant(INT64, _TOGETHER))
        shared = super().find(builder, panel, outer)
        index = builder.urem(number, ir.Constant(INT64, _TOGETHER))
        at = builder.mul(index, ir.Constant(INT64, self._inner("numbers").itemsize))
        first = _on(builder, shared, self._at("numbers"))
        return _Inner(shared, index, step(builder, first, at))

    def scale(self, builder: Any, block: _Inner, part: int) -> Any:
        small = self._small(builder, block, LANES * part)
        return builder.fmul(_floats(builder, block.shared, HALF), small)

    def least(self, builder: Any, block: _Inner) -> Any:
        small = self._small(builder, block, _offset(self._inner("small"), "least"))
        large = _floats(builder, _on(builder, block.shared, self._at("least")), HALF)
        return builder.fmul(large, small)

    def _small(self, builder: Any, block: _Inner, offset: int) -> Any:
        """16 small numbers of a block, as floats."""
        at = builder.mul(block.index, ir.Constant(INT64, self._inner("small").itemsize))
        place = step(builder, _on(builder, block.shared, self._at("small") + offset), at)
        kind = ir.VectorType(BYTE, LANES)
        found = builder.load(builder.bitcast(place, kind.as_pointer()), align=1)
        return builder.sitofp(builder.sext(found, WORDS), VECTOR)

    def _inner(self, field: str) -> np.dtype[Any]:
        """A field's type for one of the blocks."""
        return np.dtype((self.layout[field].base, self.layout[field].shape[1:]))


class _K4(_Together, NibbleForm):
    element = "int32"
    layout = np.dtype(
        [
            ("scale", "<f2", LANES),
            ("least", "<f2", LANES),
            ("small", [("scale", "i1", (1, LANES)), ("least", "i1", LANES)], _TOGETHER),
            ("numbers", "<u4", (_TOGETHER, TURNS, LANES)),
        ]
    )

    def _first_word(self, _builder: Any, block: _Inner) -> Any:
        return block.numbers


class _K6(_Together):
    element, parts = "int16", 2
    layout = np.dtype(
        [
            ("scale", "<f2", LANES),
            ("least", "<f2", LANES),
            ("small", [("scale", "i1", (2, LANES)), ("least", "i1", LANES)], _TOGETHER),
            ("numbers", "<u2", (_TOGETHER, 2, SIXES, LANES, 2)),
        ]
    )

    def numbers(self, builder: Any, block: _Inner, turn: int) -> list[Any]:
        first = turn // 2 * SIXES * 4 * LANES
        a, b, c = (
            builder.bitcast(
                _words(builder, _on(builder, block.numbers, first + i * 4 * LANES)), PAIRS
            )
            for i in range(SIXES)
        )

        def right(numbers: Any, bits: int) -> Any:
            return builder.lshr(numbers, _pairs(bits)) if bits else numbers

        def six(numbers: Any, bits: int) -> Any:
            return builder.and_(right(numbers, bits), _pairs(0x3F))

        def split(lower: Any, bits: int) -> Any:
            upper = builder.and_(right(b, bits), _pairs(0x30))
            return builder.or_(right(lower, 12), upper)

        if turn % 2 == 0:
            found = [six(a, 0), six(a, 6), six(b, 0), six(b, 6)]
        else:
            found = [six(c, 0), six(c, 6), split(a, 8), split(c, 10)]
        return [builder.bitcast(builder.sub(pairs, _pairs(OFFSET)), WORDS) for pairs in found]


FORMS: dict[Form, BlockForm] = {
    "q4": _Q4(),
    "q8": _Q8(),
    "k4": _K4(),
    "k6": _K6(),
    "k8": _K8(),
}
_BY_TYPE: dict[Any, BlockForm] = {getattr(types, form.element): form for form in FORMS.values()}


def form_of(dtype: Any) -> BlockForm | None:
    """The form of an array's blocks, by numba's type of its elements; None: plain numbers."""
    return _BY_TYPE.get(dtype)


def _offset(layout: np.dtype[Any], field: str) -> int:
    assert layout.fields
    return layout.fields[field][1]


def _pairs(number: int) -> Any:
    return ir.Constant(PAIRS, [number] * 2 * LANES)


def _words(builder: Any, place: Any) -> Any:
    return builder.load(builder.bitcast(place, WORDS.as_pointer()), align=1)


def _floats(builder: Any, place: Any, kind: Any) -> Any:
    return load(builder, kind, builder.bitcast(place, kind.as_pointer()))


def _on(builder: Any, place: Any, bytes_: int) -> Any:
    return step(builder, place, ir.Constant(INT64, bytes_))
