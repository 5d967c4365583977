"""Matrices as GGUF's types of 4 to 8 bits keep them: 32 inputs of an output share a scale, or 16.

They can be multiplied as they are: see cpu/blocks.py.
Formats: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from gguf.constants import GGMLQuantizationType as Kind
from gguf.quants import Q4_K
from numpy.typing import NDArray

from specpipe.models.gguf_file import GGUFFile

Form = Literal["q4", "q8", "k4", "k6", "k8"]
INPUTS = 32
"""Of a block."""

_BYTE_MAX, _NIBBLE_MAX = 127, 15
_OF_K = 256  # inputs that a type with a K keeps together
_FORMS: dict[Kind, tuple[Form, ...]] = {
    Kind.Q4_0: ("q4", "k8"),
    Kind.Q4_1: ("q4", "k8"),
    Kind.Q5_0: ("q8", "k8"),
    Kind.Q8_0: ("q8", "k8"),
    Kind.Q4_K: ("k4", "k6", "k8"),
    Kind.Q5_K: ("k6", "k8"),
    Kind.Q6_K: ("k6", "k8"),
}
"""The forms that can hold a type, that which takes least first; the last holds all."""


@dataclass(frozen=True, slots=True)
class Scales:
    """A number for each run of an output's inputs.

    In the types with a K, that is one that 256 inputs have in common, times a small one.

    Attributes:
        large: float16 or float32[outputs, runs, or inputs / 256].
        small: int8[outputs, runs], or None.
    """

    large: NDArray[Any]
    small: NDArray[np.int8] | None = None

    def __getitem__(self, outputs: slice | NDArray[np.int64]) -> Self:
        """Those of some outputs."""
        small = None if self.small is None else self.small[outputs]
        return type(self)(self.large[outputs], small)

    def floats(self) -> NDArray[np.float32]:
        """[outputs, runs]."""
        large = self.large.astype(np.float32)
        if self.small is None:
            return large
        found: NDArray[np.float32] = large[..., None] * self.small.reshape(*large.shape, -1)
        return found.reshape(self.small.shape)


@dataclass(frozen=True, slots=True)
class Blocks:
    """A matrix [outputs, inputs]; a weight is scale * number + least, rounded to float32 once.

    Attributes:
        scale: of runs of 32 inputs, or of 16.
        least: of runs of 32; None: zero.
        numbers: [outputs, inputs]: uint8 from 0 to 15, or int8.
    """

    scale: Scales
    least: Scales | None
    numbers: NDArray[Any]

    def __len__(self) -> int:
        """How many outputs."""
        return len(self.numbers)

    def __getitem__(self, outputs: slice | NDArray[np.int64]) -> Self:
        """Some of the outputs."""
        least = None if self.least is None else self.least[outputs]
        return type(self)(self.scale[outputs], least, self.numbers[outputs])

    def floats(self) -> NDArray[np.float32]:
        """The weights: [outputs, inputs]."""
        scale = self.scale.floats()
        numbers = self.numbers.reshape(*scale.shape, -1).astype(np.float32)
        values = scale[..., None] * numbers
        if self.least is not None:
            least = self.least.floats()
            values = values.reshape(*least.shape, INPUTS) + least[..., None]
        return values.reshape(self.numbers.shape)

    def put_into(self, form: Form) -> "Blocks":
        """The same weights as a form keeps them that can hold them."""
        if form in ("q4", "q8", "k4"):
            return self
        scale, least, blocks = self.scale, self.least, self.numbers.shape[1] // INPUTS
        if form == "k8":
            zeros = np.zeros((len(self), blocks), np.float32)
            least = Scales(zeros if least is None else least.floats())
            scale = Scales(_each_half(scale.floats(), blocks))
        else:
            assert scale.small is not None
            zeros = np.zeros((len(self), blocks), np.int8)
            least = least or Scales(np.zeros_like(scale.large), zeros)
            scale = Scales(scale.large, _each_half(scale.small, blocks))
        return Blocks(scale, least, self.numbers.astype(np.int8))


def _each_half(values: NDArray[Any], blocks: int) -> NDArray[Any]:
    """[outputs, 2 * blocks], for runs of 16 inputs, from as many or one for each block."""
    return np.repeat(values, 2 * blocks // values.shape[1], axis=1)


def in_blocks(weight: NDArray[np.float32], form: Form) -> Blocks:
    """A matrix rounded to blocks, as Q4_1 or Q8_0; inputs are filled up with zeros."""
    values = np.pad(weight, ((0, 0), (0, -weight.shape[1] % INPUTS)))
    values = values.reshape(len(weight), -1, INPUTS)
    # What is no number, or too large, makes a scale that is refused where it is kept.
    with np.errstate(over="ignore", invalid="ignore"):
        if form == "q8":
            scale = (np.abs(values).max(axis=-1) / _BYTE_MAX).astype(np.float16)
            signed = _rounded(values, scale).clip(-_BYTE_MAX, _BYTE_MAX).astype(np.int8)
            return Blocks(Scales(scale), None, signed.reshape(len(weight), -1))
        least = values.min(axis=-1).astype(np.float16)
        scale = ((values.max(axis=-1) - least) / _NIBBLE_MAX).astype(np.float16)
        numbers = _rounded(values - least[..., None], scale).clip(0, _NIBBLE_MAX)
        return Blocks(
            Scales(scale), Scales(least), numbers.astype(np.uint8).reshape(len(weight), -1)
        )


def _rounded(values: NDArray[np.float32], scale: NDArray[np.float16]) -> NDArray[np.float32]:
    """Values [outputs, blocks, 32] by their block's scale; by one that is zero they are zero."""
    divisor = np.where(scale > 0, scale, np.inf).astype(np.float32)
    rounded: NDArray[np.float32] = np.rint(values / divisor[..., None])
    return rounded


def joined(parts: Sequence[Blocks]) -> Blocks:
    """The outputs of several matrices of one form, one after the other."""
    leasts = [part.least for part in parts if part.least is not None]
    return Blocks(
        _joined_scales([part.scale for part in parts]),
        _joined_scales(leasts) if leasts else None,
        np.concatenate([part.numbers for part in parts]),
    )


def _joined_scales(parts: Sequence[Scales]) -> Scales:
    small = [part.small for part in parts if part.small is not None]
    large = np.concatenate([part.large for part in parts])
    return Scales(large, np.concatenate(small) if small else None)


class BlockReader:
    """What a file has in blocks.

    Args:
        file: the file.
    """

    def __init__(self, file: GGUFFile) -> None:
        self._file = file

    def form(self, names: Iterable[str]) -> Form | None:
        """The smallest form that can hold all these tensors, or None."""
        kinds = {self._file.tensors[name].type for name in names}
        forms = [_FORMS.get(kind, ()) for kind in kinds]
        common = (form for form in forms[0] if all(form in others for others in forms))
        return next(common, None)

    def read(self, name: str, form: Form) -> Blocks:
        """Read a matrix as a form keeps it that can hold it."""
        info = self._file.tensors[name]
        outputs, inputs = info.shape
        of_block = INPUTS if inputs % _OF_K or info.type not in _READERS else _OF_K
        stored = self._file.raw(name).reshape(outputs, inputs // of_block, -1)
        with np.errstate(over="ignore", invalid="ignore"):  # refused where it is kept
            found = _READERS.get(info.type, _plain)(stored, info.type)
        return found.put_into(form)


def _plain(stored: NDArray[np.uint8], kind: Kind) -> Blocks:
    """Blocks of 32: a scale, perhaps a least value, the numbers."""
    outputs = len(stored)
    scale = _halves(stored[..., :2])
    if kind == Kind.Q8_0:
        return Blocks(Scales(scale), None, stored[..., 2:].view(np.int8).reshape(outputs, -1))
    if kind == Kind.Q4_1:
        least, bytes_ = _halves(stored[..., 2:4]), stored[..., 4:]
    else:
        least, bytes_ = scale * np.float16(-8), stored[..., -16:]
    # Input i in a byte's low half, input i + 16 in its high half.
    numbers = np.concatenate([bytes_ & 15, bytes_ >> 4], axis=-1)
    if kind == Kind.Q5_0:
        fifth = np.unpackbits(stored[..., 2:6], axis=-1, bitorder="little")
        signed = (numbers | fifth << 4).astype(np.int8) - np.int8(16)
        return Blocks(Scales(scale), None, signed.reshape(outputs, -1))
    return Blocks(Scales(scale), Scales(least), numbers.reshape(outputs, -1))


def _q4_k(stored: NDArray[np.uint8], _kind: Kind) -> Blocks:
    scale, least = _scales_of_k(stored)
    return Blocks(scale, least, _nibbles(stored[..., 16:], 32).reshape(len(stored), -1))


def _q5_k(stored: NDArray[np.uint8], _kind: Kind) -> Blocks:
    scale, least = _scales_of_k(stored)
    fifth = stored[..., None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    numbers = _nibbles(stored[..., 48:], 32) | fifth << 4
    return Blocks(scale, least, numbers.astype(np.int8).reshape(len(stored), -1))


def _q6_k(stored: NDArray[np.uint8], _kind: Kind) -> Blocks:
    lower = _nibbles(stored[..., :128], 64).reshape(*stored.shape[:2], 8, 32)
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    upper = stored[..., 128:192].reshape(*stored.shape[:2], 2, 1, 32) >> shifts & 3
    numbers = lower | upper.reshape(lower.shape) << 4
    small = stored[..., 192:208].view(np.int8).reshape(len(stored), -1)
    signed = numbers.astype(np.int8) - np.int8(32)
    scale = Scales(_halves(stored[..., 208:]), small)
    return Blocks(scale, None, signed.reshape(len(stored), -1))


_READERS = {Kind.Q4_K: _q4_k, Kind.Q5_K: _q5_k, Kind.Q6_K: _q6_k}


def _scales_of_k(stored: NDArray[np.uint8]) -> tuple[Scales, Scales]:
    """Scales and least values of 8 times 32 inputs: 6 bits each, times those of all 256."""
    small, less = Q4_K.get_scale_min(stored[..., 4:16].reshape(-1, 12))
    scale, least = (
        Scales(large, factors.astype(np.int8).reshape(len(stored), -1))
        for large, factors in (
            (_halves(stored[..., :2]), small),
            (-_halves(stored[..., 2:4]), less),
        )
    )
    return scale, least


def _nibbles(bytes_: NDArray[np.uint8], run: int) -> NDArray[np.uint8]:
    """[..., runs, run]: the low halves of so many bytes, then their high halves, and so on."""
    runs = bytes_.reshape(*bytes_.shape[:2], -1, 1, run)
    halves: NDArray[np.uint8] = (runs >> np.array([[0], [4]], np.uint8)) & np.uint8(15)
    return halves.reshape(*bytes_.shape[:2], -1, run)


def _halves(stored: NDArray[np.uint8]) -> NDArray[np.float16]:
    return np.ascontiguousarray(stored).view("<f2")[..., 0].astype(np.float16)
