"""Weights in blocks, put into panels and taken out again; `blocks.py` has how they lie there."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from specpipe.models.cpu.blocks import FORMS, OFFSET, SIXES
from specpipe.models.cpu.instructions import LANES
from specpipe.models.gguf_blocks import Blocks, Form, Scales

_SHIFTS = np.array([0, 16, 4, 20, 8, 24, 12, 28], np.uint32)
"""Of 8 inputs' numbers in a word."""


def panel_shape(form: Form, inputs: int) -> tuple[int, int]:
    """Of one panel of a form: what is repeated, and elements of an array for each."""
    return -(-inputs // FORMS[form].inputs), FORMS[form].elements


def packed(blocks: Blocks, form: Form) -> NDArray[Any]:
    """Panels [panels, repeated, elements] of a matrix; zeros behind its last output."""
    count, inputs = -(-len(blocks) // LANES), blocks.numbers.shape[1]
    panels = np.zeros((count, *panel_shape(form, inputs)), FORMS[form].element)
    laid = panels.view(FORMS[form].layout)[..., 0]
    _put_scales(laid, "scale", blocks.scale)
    if blocks.least is not None:
        _put_scales(laid, "least", blocks.least)
    numbers = laid["numbers"]
    if form in ("q8", "k8"):
        pairs = blocks.numbers.reshape(len(blocks), -1, 2)
        numbers[:] = _by_panel(pairs, numbers.shape[2]).swapaxes(2, 3)
    elif form == "k6":
        sixes = _sixes((blocks.numbers + np.int8(OFFSET)).astype(np.uint16))
        found = _by_panel(sixes, sixes.shape[1] // laid.shape[1])
        numbers[:] = found.reshape(*found.shape[:3], *numbers.shape[2:4], SIXES, 2).transpose(
            0, 1, 3, 4, 5, 2, 6
        )
    else:
        _put_words(numbers, blocks.numbers, _SHIFTS)
    return panels


def unpacked(panels: NDArray[Any], lanes: NDArray[np.int64], form: Form) -> Blocks:
    """One output each of panels [number, repeated, elements]: those at `lanes`, int64[number]."""
    laid = panels.view(FORMS[form].layout)[..., 0]
    scale = _scales(laid, "scale", lanes)
    least = None if form == "q8" else _scales(laid, "least", lanes)
    numbers = laid["numbers"]
    if form in ("q8", "k8"):
        found = numbers.swapaxes(2, 3)[np.arange(len(panels)), :, lanes].reshape(len(panels), -1)
    elif form == "k6":
        sixes = numbers[np.arange(len(panels)), ..., lanes, :].reshape(len(panels), -1, SIXES, 2)
        found = _from_sixes(sixes).reshape(len(panels), -1) - np.int8(OFFSET)
    else:
        found = _from_words(numbers, lanes, _SHIFTS, 15)
    return Blocks(scale, least, found)


def _put_scales(laid: NDArray[np.void], name: str, scales: Scales) -> None:
    for field, values in ((laid, scales.large), (_small(laid), scales.small)):
        if values is not None:
            assert field is not None
            place = field[name]
            found = _by_panel(values, values.shape[1] // laid.shape[1])
            place[:] = found.swapaxes(2, 3).reshape(place.shape)


def _scales(laid: NDArray[np.void], name: str, lanes: NDArray[np.int64]) -> Scales:
    small = _small(laid)
    large = _of_lanes(laid[name], lanes)
    return Scales(large, None if small is None else _of_lanes(small[name], lanes))


def _small(laid: NDArray[np.void]) -> NDArray[np.void] | None:
    return laid["small"] if "small" in (laid.dtype.names or ()) else None


def _put_words(place: NDArray[np.uint32], numbers: NDArray[Any], shifts: NDArray[Any]) -> None:
    """Numbers [outputs, inputs], as many together in a word as there are shifts."""
    together = numbers.astype(np.uint32).reshape(len(numbers), -1, len(shifts)) << shifts
    values = together.sum(axis=-1, dtype=np.uint32)
    found = _by_panel(values, values.shape[1] // place.shape[1])
    place[:] = found.swapaxes(2, 3).reshape(place.shape)


def _from_words(
    words: NDArray[np.uint32], lanes: NDArray[np.int64], shifts: NDArray[Any], mask: int
) -> NDArray[np.uint8]:
    found = _of_lanes(words, lanes)[..., None] >> shifts & np.uint32(mask)
    bytes_: NDArray[np.uint8] = found.astype(np.uint8).reshape(len(lanes), -1)
    return bytes_


def _sixes(numbers: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """[outputs, inputs / 16 * SIXES * 2], the 2 for an input and the next, of 6-bit numbers."""
    pairs = numbers.reshape(len(numbers), -1, 8, 2)
    n = [pairs[:, :, i] for i in range(8)]
    a = n[0] | n[1] << 6 | n[6] << 12
    b = n[2] | n[3] << 6 | n[6] >> 4 << 12 | n[7] >> 4 << 14
    c = n[4] | n[5] << 6 | n[7] << 12
    return np.stack([a, b, c], axis=2).reshape(len(numbers), -1)


def _from_sixes(sixes: NDArray[np.uint16]) -> NDArray[np.int8]:
    """Numbers [outputs, inputs / 16, 8, 2] of [outputs, inputs / 16, SIXES, 2]."""
    a, b, c = (sixes[:, :, i] for i in range(SIXES))
    whole = [a, a >> 6, b, b >> 6, c, c >> 6]
    split = [a >> 12 | b >> 8 & 0x30, c >> 12 | b >> 10 & 0x30]
    found: NDArray[np.int8] = np.stack([*(n & 63 for n in whole), *split], axis=2).astype(np.int8)
    return found


def _of_lanes(values: NDArray[Any], lanes: NDArray[np.int64]) -> NDArray[Any]:
    """From [number, ..., 16] one lane of each: [number, rest]."""
    return values[np.arange(len(lanes)), ..., lanes].reshape(len(lanes), -1)


def _by_panel(values: NDArray[Any], together: int) -> NDArray[Any]:
    """From [outputs, n * together, ...] to [panels, n, 16, together, ...]."""
    if missing := -len(values) % LANES:
        values = np.pad(values, ((0, missing), *[(0, 0)] * (values.ndim - 1)))
    shape = -1, LANES, values.shape[1] // together, together, *values.shape[2:]
    return values.reshape(shape).swapaxes(1, 2)
