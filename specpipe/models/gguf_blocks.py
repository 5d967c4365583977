"""Matrices as GGUF's 4- and 8-bit types keep them: 32 inputs of an output share a scale.

The types Q4_0, Q4_1 and Q8_0, which can be multiplied as they are: see cpu/blocks.py.
Formats: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray

from specpipe.models.gguf_file import GGUFFile

Form = Literal["q4", "q8"]
INPUTS = 32
"""Of a block."""

_BYTE_MAX, _NIBBLE_MAX = 127, 15
_FORMS: dict[GGMLQuantizationType, Form] = {
    GGMLQuantizationType.Q4_0: "q4",
    GGMLQuantizationType.Q4_1: "q4",
    GGMLQuantizationType.Q8_0: "q8",
}


@dataclass(frozen=True, slots=True)
class Blocks:
    """A matrix [outputs, inputs]; a weight is scale * number + least, rounded to float32 once.

    Attributes:
        scale: float16[outputs, inputs / 32].
        least: the same; None: zero.
        numbers: [outputs, inputs]: uint8 from 0 to 15, or int8 where there is no `least`.
    """

    scale: NDArray[np.float16]
    least: NDArray[np.float16] | None
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
        numbers = self.numbers.reshape(*self.scale.shape, INPUTS).astype(np.float32)
        values = self.scale[..., None].astype(np.float32) * numbers
        if self.least is not None:
            values += self.least[..., None]
        return values.reshape(self.numbers.shape)


def in_blocks(weight: NDArray[np.float32], form: Form) -> Blocks:
    """A matrix rounded to blocks, as Q4_1 or Q8_0; inputs are filled up with zeros."""
    values = np.pad(weight, ((0, 0), (0, -weight.shape[1] % INPUTS)))
    values = values.reshape(len(weight), -1, INPUTS)
    # What is no number, or too large, makes a scale that is refused where it is kept.
    with np.errstate(over="ignore", invalid="ignore"):
        if form == "q8":
            scale = (np.abs(values).max(axis=-1) / _BYTE_MAX).astype(np.float16)
            signed = _rounded(values, scale).clip(-_BYTE_MAX, _BYTE_MAX).astype(np.int8)
            return Blocks(scale, None, signed.reshape(len(weight), -1))
        least = values.min(axis=-1).astype(np.float16)
        scale = ((values.max(axis=-1) - least) / _NIBBLE_MAX).astype(np.float16)
        numbers = _rounded(values - least[..., None], scale).clip(0, _NIBBLE_MAX)
        return Blocks(scale, least, numbers.astype(np.uint8).reshape(len(weight), -1))


def _rounded(values: NDArray[np.float32], scale: NDArray[np.float16]) -> NDArray[np.float32]:
    """Values [outputs, blocks, 32] by their block's scale; by one that is zero they are zero."""
    divisor = np.where(scale > 0, scale, np.inf).astype(np.float32)
    rounded: NDArray[np.float32] = np.rint(values / divisor[..., None])
    return rounded


def joined(parts: Sequence[Blocks]) -> Blocks:
    """The outputs of several matrices of one form, one after the other."""
    leasts = [part.least for part in parts if part.least is not None]
    return Blocks(
        np.concatenate([part.scale for part in parts]),
        np.concatenate(leasts) if leasts else None,
        np.concatenate([part.numbers for part in parts]),
    )


class BlockReader:
    """What a file has in blocks.

    Args:
        file: the file.
    """

    def __init__(self, file: GGUFFile) -> None:
        self._file = file

    def form(self, names: Iterable[str]) -> Form | None:
        """The form that all these tensors have; None if there is no such."""
        forms = {_FORMS.get(self._file.tensors[name].type) for name in names}
        return forms.pop() if len(forms) == 1 else None

    def read(self, name: str) -> Blocks:
        """Read a matrix that has a form."""
        info = self._file.tensors[name]
        outputs, inputs = info.shape
        stored = self._file.raw(name).reshape(outputs, inputs // INPUTS, -1)
        scale = _halves(stored[..., :2])
        if info.type == GGMLQuantizationType.Q8_0:
            return Blocks(scale, None, stored[..., 2:].view(np.int8).reshape(outputs, inputs))
        if info.type == GGMLQuantizationType.Q4_0:
            with np.errstate(over="ignore"):  # refused where it is kept
                least, bytes_ = scale * np.float16(-8), stored[..., 2:]
        else:
            least, bytes_ = _halves(stored[..., 2:4]), stored[..., 4:]
        # Input i in a byte's low half, input i + 16 in its high half.
        numbers = np.concatenate([bytes_ & 15, bytes_ >> 4], axis=-1)
        return Blocks(scale, least, numbers.reshape(outputs, inputs))


def _halves(stored: NDArray[np.uint8]) -> NDArray[np.float16]:
    return np.ascontiguousarray(stored).view("<f2")[..., 0].astype(np.float16)
