"""GGUF's blocks, put into panels and taken out again; `forms.py` has how they lie there."""

from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from specpipe.models.cpu.forms import form_of
from specpipe.models.cpu.instructions import LANES
from specpipe.models.gguf_blocks import INPUTS, Blocks, Form

ELEMENTS: dict[str, str] = {"q4": "uint32", "q8": "uint8"}
"""The type of an array that has blocks of a form; the kernels tell forms by it."""


def panel_shape(form: str, inputs: int) -> tuple[int, int]:
    """Of one panel of a form: [blocks, elements]."""
    return inputs // INPUTS, form_of(getattr(types, ELEMENTS[form])).elements


def packed(blocks: Blocks, form: Form) -> NDArray[Any]:
    """Panels [panels, blocks, elements] of a matrix; zeros behind its last output."""
    count = -(-len(blocks) // LANES)
    panels = np.zeros((count, *panel_shape(form, blocks.numbers.shape[1])), ELEMENTS[form])
    halves = panels.view(np.float16)
    halves[..., :LANES] = _by_panel(blocks.scale, 1)[..., 0, :]
    if blocks.least is None:
        panels[..., 2 * LANES :] = _flat(_by_panel(blocks.numbers.view(np.uint8), INPUTS))
        return panels
    halves[..., LANES : 2 * LANES] = _by_panel(blocks.least, 1)[..., 0, :]
    pairs = blocks.numbers[:, ::2] | blocks.numbers[:, 1::2] << 4
    panels.view(np.uint8)[..., 4 * LANES :] = _flat(_by_panel(pairs, INPUTS // 2))
    return panels


def unpacked(panels: NDArray[Any], lanes: NDArray[np.int64], form: Form) -> Blocks:
    """One output each of panels [number, blocks, elements]: those at `lanes`, int64[number]."""
    number = np.arange(len(panels))
    halves = panels.view(np.float16)
    scale = halves[number, :, lanes]
    if form == "q8":
        numbers = panels[..., 2 * LANES :].view(np.int8)
        numbers = numbers.reshape(*panels.shape[:2], INPUTS, LANES)[number, :, :, lanes]
        return Blocks(scale, None, numbers.reshape(len(panels), -1))
    pairs = panels.view(np.uint8)[..., 4 * LANES :]
    pairs = pairs.reshape(*panels.shape[:2], INPUTS // 2, LANES)[number, :, :, lanes]
    numbers = np.stack([pairs & 15, pairs >> 4], axis=-1)
    return Blocks(scale, halves[number, :, LANES + lanes], numbers.reshape(len(panels), -1))


def _by_panel(values: NDArray[Any], of_block: int) -> NDArray[Any]:
    """From [outputs, blocks * of_block] to [panels, blocks, of_block, 16]."""
    if missing := -len(values) % LANES:
        values = np.pad(values, ((0, missing), (0, 0)))
    return values.reshape(-1, LANES, values.shape[1] // of_block, of_block).transpose(0, 2, 3, 1)


def _flat(values: NDArray[Any]) -> NDArray[Any]:
    return values.reshape(*values.shape[:2], -1)
