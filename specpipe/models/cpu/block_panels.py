"""Weights in blocks, put into panels and taken out again; `blocks.py` has how they lie there."""

from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from specpipe.models.cpu.blocks import form_of
from specpipe.models.cpu.instructions import LANES
from specpipe.models.gguf_blocks import INPUTS, Blocks, Form

ELEMENTS: dict[str, str] = {"q4": "uint32", "q8": "uint8", "k4": "int32", "k8": "int8"}
"""The type of an array that has blocks of a form; the kernels tell forms by it."""

_OF_BYTES = "q8", "k8"
_PAIRS = INPUTS // 2
_SHIFTS = np.array([0, 16, 4, 20, 8, 24, 12, 28], np.uint32)
"""Of 8 inputs' numbers in a word."""


def panel_shape(form: str, inputs: int) -> tuple[int, int]:
    """Of one panel of a form: [blocks, elements]."""
    found = form_of(getattr(types, ELEMENTS[form]))
    assert found
    return -(-inputs // INPUTS), found.elements


def packed(blocks: Blocks, form: Form) -> NDArray[Any]:
    """Panels [panels, blocks, elements] of a matrix; zeros behind its last output."""
    count, inputs = -(-len(blocks) // LANES), blocks.numbers.shape[1]
    panels = np.zeros((count, *panel_shape(form, inputs)), ELEMENTS[form])
    scales = panels.view(blocks.scale.dtype)
    parts = blocks.scale.shape[1] * INPUTS // inputs
    for part in range(parts):
        at = slice(part * LANES, (part + 1) * LANES)
        scales[..., at] = _by_panel(blocks.scale, parts)[..., part]
    if blocks.least is not None:
        at = slice(parts * LANES, (parts + 1) * LANES)
        scales[..., at] = _by_panel(blocks.least, 1)[..., 0]
    numbers, stored = _by_panel(blocks.numbers, INPUTS), _numbers(panels, form)
    if form in _OF_BYTES:
        stored[:] = numbers.reshape(*numbers.shape[:3], _PAIRS, 2).swapaxes(2, 3)
    else:
        eights = numbers.reshape(*numbers.shape[:3], -1, 8).astype(np.uint32) << _SHIFTS
        stored[:] = eights.sum(axis=-1, dtype=np.uint32).swapaxes(2, 3)
    return panels


def unpacked(panels: NDArray[Any], lanes: NDArray[np.int64], form: Form) -> Blocks:
    """One output each of panels [number, blocks, elements]: those at `lanes`, int64[number]."""
    number = np.arange(len(panels))
    kind = np.float16 if form in ("q4", "q8") else np.float32
    parts = 2 if form == "k8" else 1
    floats = panels.view(kind)[..., : (parts + 1) * LANES]
    floats = floats.reshape(*panels.shape[:2], -1, LANES)[number, :, :, lanes]
    scale = floats[..., :parts].reshape(len(panels), -1)
    least = None if form == "q8" else floats[..., parts]
    found = _numbers(panels, form)[number, :, :, lanes]
    if form not in _OF_BYTES:
        found = (found[..., None] >> _SHIFTS & 15).astype(np.uint8)
    return Blocks(scale, least, found.reshape(len(panels), -1))


def _numbers(panels: NDArray[Any], form: Form) -> NDArray[Any]:
    """What panels have behind the scales: [..., 16 pairs, 16, 2] bytes, or [..., 4, 16] words."""
    kind: type[np.generic] = np.int8 if form in _OF_BYTES else np.uint32
    size = INPUTS * LANES if form in _OF_BYTES else INPUTS * LANES // 8
    numbers = panels.view(kind)[..., -size:]
    shape = (_PAIRS, LANES, 2) if form in _OF_BYTES else (INPUTS // 8, LANES)
    return numbers.reshape(*panels.shape[:2], *shape)


def _by_panel(values: NDArray[Any], of_block: int) -> NDArray[Any]:
    """From [outputs, blocks * of_block] to [panels, blocks, 16, of_block]."""
    if missing := -len(values) % LANES:
        values = np.pad(values, ((0, missing), (0, 0)))
    return values.reshape(-1, LANES, values.shape[1] // of_block, of_block).swapaxes(1, 2)
