"""Weights in blocks, put into panels and taken out again; `blocks.py` has how they lie there."""

from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from specpipe.models.cpu.blocks import form_of
from specpipe.models.cpu.instructions import LANES
from specpipe.models.gguf_blocks import INPUTS, Blocks, Form

ELEMENTS: dict[str, str] = {"q4": "uint32", "q8": "uint8"}
"""The type of an array that has blocks of a form; the kernels tell forms by it."""

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
    halves = panels.view(np.float16)
    halves[..., :LANES] = _by_panel(blocks.scale, 1)[..., 0]
    numbers = _by_panel(blocks.numbers, INPUTS)
    if form == "q8":
        pairs = numbers.reshape(*numbers.shape[:3], _PAIRS, 2).swapaxes(2, 3)
        panels[..., 2 * LANES :] = pairs.reshape(*panels.shape[:2], -1).view(np.uint8)
        return panels
    assert blocks.least is not None
    halves[..., LANES : 2 * LANES] = _by_panel(blocks.least, 1)[..., 0]
    eights = numbers.reshape(*numbers.shape[:3], -1, 8).astype(np.uint32) << _SHIFTS
    panels[..., LANES:] = (
        eights.sum(axis=-1, dtype=np.uint32).swapaxes(2, 3).reshape(*panels.shape[:2], -1)
    )
    return panels


def unpacked(panels: NDArray[Any], lanes: NDArray[np.int64], form: Form) -> Blocks:
    """One output each of panels [number, blocks, elements]: those at `lanes`, int64[number]."""
    number = np.arange(len(panels))
    halves = panels.view(np.float16)
    scale = halves[number, :, lanes]
    if form == "q8":
        pairs = panels[..., 2 * LANES :].view(np.int8)
        pairs = pairs.reshape(*panels.shape[:2], _PAIRS, LANES, 2)[number, :, :, lanes]
        return Blocks(scale, None, pairs.reshape(len(panels), -1))
    eights = panels[..., LANES:].reshape(*panels.shape[:2], -1, LANES)[number, :, :, lanes]
    numbers = (eights[..., None] >> _SHIFTS & 15).astype(np.uint8)
    return Blocks(scale, halves[number, :, LANES + lanes], numbers.reshape(len(panels), -1))


def _by_panel(values: NDArray[Any], of_block: int) -> NDArray[Any]:
    """From [outputs, blocks * of_block] to [panels, blocks, 16, of_block]."""
    if missing := -len(values) % LANES:
        values = np.pad(values, ((0, missing), (0, 0)))
    return values.reshape(-1, LANES, values.shape[1] // of_block, of_block).swapaxes(1, 2)
