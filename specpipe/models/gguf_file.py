"""A bounded reader of GGUF files, versions 2 and 3, little endian.

The file is not trusted: every count, length and offset is held against what is left of the file
before anything is allocated or looped over, so a corrupt or hostile file costs one clear line and
no time. (`gguf.GGUFReader` makes numpy arrays of each token: 1.5 s for a vocabulary of 49,152.)

This module knows the container, not what a model is made of.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize
from numpy.typing import NDArray

from specpipe.errors import UserError

MAX_VALUES = 1 << 22
"""Most metadata values, array elements included: large vocabularies need about a million."""

_MAX_NESTING = 4
_MAX_DIMENSIONS = 4
_SMALLEST_PAIR = 13
_SMALLEST_TENSOR = 32
_ROWS_AT_ONCE = 4096

_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_U32, _U64 = _SCALARS[4], _SCALARS[10]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies in the file.

    Attributes:
        name: as llama.cpp calls it, for example `blk.0.attn_q.weight`.
        shape: in torch's order, [out, in] for a matrix.
        type: ggml's name for how the numbers are stored.
        offset: first byte, counted from the start of the file.
        nbytes: length in bytes.
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int
    nbytes: int


class GGUFFile:
    """The metadata and tensors of one file; tensors are read from disk when they are asked for.

    Attributes:
        path: the file.
        metadata: numbers, booleans, strings, and lists of them.
        types: how each of them is stored; for a list, its elements' type comes second.
        tensors: by name, in the file's order.

    Raises:
        UserError: if the file can't be opened, or isn't a whole and sound GGUF file.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            self._fail("it is empty")
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror or error}") from None
        self._bytes: NDArray[np.uint8] = np.frombuffer(self._map, dtype=np.uint8)
        parser = _Parser(self._map, self._fail)
        self.metadata: dict[str, Any] = parser.metadata
        self.types: dict[str, tuple[GGUFValueType, ...]] = parser.types
        self.tensors: dict[str, TensorInfo] = parser.tensors

    def raw(self, name: str) -> NDArray[np.uint8]:
        """Return the stored bytes of a tensor: uint8[nbytes], a read-only view of the file.

        Raises:
            UserError: if the file has no such tensor.
        """
        info = self._info(name)
        return self._bytes[info.offset : info.offset + info.nbytes]

    def dequantize(self, name: str) -> NDArray[np.float32]:
        """Return a tensor as float32, in its shape.

        Raises:
            UserError: if the file has no such tensor, or its type can't be read.
        """
        info = self._info(name)
        rows = self.raw(name).reshape(math.prod(info.shape[:-1]), -1)
        values = np.empty((rows.shape[0], info.shape[-1]), dtype=np.float32)
        try:
            # In pieces, because gguf holds each result twice while it puts it together.
            for first in range(0, rows.shape[0], _ROWS_AT_ONCE):
                piece = slice(first, first + _ROWS_AT_ONCE)
                values[piece] = dequantize(rows[piece], info.type)
        except NotImplementedError:
            self._fail(f"tensor {name} has type {info.type.name}, which can't be dequantised")
        return values.reshape(info.shape)

    def _info(self, name: str) -> TensorInfo:
        info = self.tensors.get(name)
        if info is None:
            self._fail(f"it has no tensor {name}")
        return info

    def _fail(self, what: str) -> NoReturn:
        raise UserError(
            f"{self.path} is not a usable GGUF file: {what}; fetch it again or choose another file"
        )


class _Parser:
    """One pass over header, metadata and tensor directory, with a cursor that can't overrun."""

    def __init__(self, data: mmap.mmap, fail: Callable[[str], NoReturn]) -> None:
        self._data = data
        self._size = len(data)
        self._at = 0
        self._budget = MAX_VALUES
        self._fail = fail
        self.types: dict[str, tuple[GGUFValueType, ...]] = {}
        if data[:4] != b"GGUF":
            fail("it does not begin with the letters GGUF")
        self._at = 4
        version = self._scalar(_U32)
        if version not in (2, 3):
            fail(f"version {version} is neither 2 nor 3, little endian")
        tensor_count = self._count("tensors", _SMALLEST_TENSOR)
        pair_count = self._count("metadata entries", _SMALLEST_PAIR)
        self.metadata = self._read_metadata(pair_count)
        self.tensors = self._read_tensors(tensor_count)

    def _scalar(self, form: struct.Struct) -> Any:
        at = self._at
        if form.size > self._size - at:
            self._fail(f"it ends at byte {self._size}, in the middle of its header")
        self._at = at + form.size
        return form.unpack_from(self._data, at)[0]

    def _count(self, what: str, smallest: int) -> int:
        """Read a count of things of which each takes at least `smallest` bytes."""
        count: int = self._scalar(_U64)
        if count > (self._size - self._at) // smallest:
            self._fail(f"it claims {count} {what}, more than fit into its {self._size} bytes")
        if count > self._budget:
            self._fail(f"it claims {count} {what}, more than the {MAX_VALUES} values allowed")
        self._budget -= count
        return count

    def _string(self) -> str:
        length = self._scalar(_U64)
        first = self._at
        if length > self._size - first:
            self._fail(f"a text at byte {first} claims {length} bytes, more than are left")
        self._at = first + length
        try:
            return self._data[first : self._at].decode()
        except UnicodeDecodeError:
            self._fail(f"the text at byte {first} is not UTF-8")

    def _value(self, kind: int, nesting: int = 0) -> Any:
        if form := _SCALARS.get(kind):
            return self._scalar(form)
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY or nesting == _MAX_NESTING:
            self._fail(f"the metadata before byte {self._at} has unknown type {kind}")
        kind = self._scalar(_U32)
        form = _SCALARS.get(kind)
        count = self._count("array elements", form.size if form else 8)
        if form is None:
            return [self._value(kind, nesting + 1) for _ in range(count)]
        first, self._at = self._at, self._at + count * form.size
        return list(struct.unpack_from(f"<{count}{form.format[1:]}", self._data, first))

    def _read_metadata(self, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for _ in range(count):
            key = self._string()
            if key in metadata:
                self._fail(f"the metadata key {key!r} occurs twice")
            kind = self._scalar(_U32)
            first = self._at
            metadata[key] = self._value(kind)
            self.types[key] = (GGUFValueType(kind),)
            if kind == _ARRAY:
                self.types[key] += (GGUFValueType(_U32.unpack_from(self._data, first)[0]),)
        return metadata

    def _read_tensors(self, count: int) -> dict[str, TensorInfo]:
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            self._fail(f"general.alignment is {alignment!r}, not a power of two")
        found = [self._read_tensor() for _ in range(count)]
        origin = -(-self._at // alignment) * alignment
        tensors: dict[str, TensorInfo] = {}
        end = origin
        for name, shape, kind, offset, nbytes in sorted(found, key=lambda tensor: tensor[3]):
            first = origin + offset
            if name in tensors:
                self._fail(f"tensor {name!r} occurs twice")
            if offset % alignment or first < end:
                self._fail(f"tensor {name!r} at offset {offset} is misaligned or overlaps another")
            end = first + nbytes
            if end > self._size:
                self._fail(f"tensor {name!r} ends at byte {end}, the file at {self._size}")
            tensors[name] = TensorInfo(name, shape, kind, first, nbytes)
        return {name: tensors[name] for name, *_ in found}

    def _read_tensor(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int, int]:
        name = self._string()
        dimensions = self._scalar(_U32)
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            self._fail(f"tensor {name!r} claims {dimensions} dimensions")
        shape = tuple(self._scalar(_U64) for _ in range(dimensions))[::-1]
        kind = self._scalar(_U32)
        offset = self._scalar(_U64)
        try:
            quantization = GGMLQuantizationType(kind)
            block, block_bytes = GGML_QUANT_SIZES[quantization]
        except (ValueError, KeyError):
            self._fail(f"tensor {name!r} has unknown type {kind}")
        if min(shape) < 1 or shape[-1] % block:
            self._fail(f"tensor {name!r} has shape {list(shape)}, not whole blocks of {block}")
        return name, shape, quantization, offset, math.prod(shape) // block * block_bytes
