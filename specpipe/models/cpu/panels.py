"""From matrices to panels, the form in which they are multiplied; `tile.py` has it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from specpipe.errors import UserError
from specpipe.models.cpu.block_panels import packed, panel_shape, unpacked
from specpipe.models.cpu.blocks import FORMS
from specpipe.models.cpu.instructions import LANES
from specpipe.models.cpu.memory import reserve_weights
from specpipe.models.cpu.state import Layers, Matrix
from specpipe.models.cpu.tile import BLOCK
from specpipe.models.gguf_blocks import Blocks, Form, in_blocks
from specpipe.models.shape import DecoderConfig
from specpipe.models.weights import DecoderWeights, Floats, Linear

_FLOAT16_MAX = 65504.0
_ROUNDED_TO = {"int8": "q8", "int4": "q4"}
_AT_ONCE = 64  # panels; a copy of a large vocabulary would be a large one


def padded(count: int) -> int:
    """The outputs of so many panels as can be multiplied: the next multiple of 64."""
    block = BLOCK * LANES
    return -(-count // block) * block


class Panels:
    """Room for one matrix of each of some layers, filled one after the other.

    Args:
        layers: how many.
        outputs: of each; there are zeros up to the next multiple of 64.
        inputs: of each.
        dtype: float32 or float16; or the form of blocks that are put there as they are, q4 or q8;
            or int8 or int4: they are rounded to blocks of the form q8 or q4.
    """

    def __init__(self, layers: int, outputs: int, inputs: int, dtype: str) -> None:
        self._inputs, kept = inputs, _ROUNDED_TO.get(dtype, dtype)
        self._form = kept if kept in FORMS else None
        panel, element = (inputs, LANES), kept
        if self._form:
            panel, element = panel_shape(self._form, inputs), FORMS[self._form].element
        self._panels = reserve_weights((layers, padded(outputs) // LANES, *panel), element)
        self._bias = np.zeros((0, 0), np.float32)

    def fill(self, layer: int, linear: Linear, first: int = 0) -> None:
        """Put a layer's matrix, or a part of it, at the output `first`, a multiple of 64.

        Raises:
            UserError: if a weight, or a block's scale, does not fit into float16.
        """
        weight, outputs = linear.weight, len(linear.weight)
        for start in range(0, outputs, _AT_ONCE * LANES):
            part = weight[start : start + _AT_ONCE * LANES]
            if self._form:
                blocks = part if isinstance(part, Blocks) else in_blocks(part, self._form)
                self._store_blocks(layer, first + start, blocks, self._form)
            else:
                assert not isinstance(part, Blocks)
                self._store(layer, first + start, part)
        if linear.bias is not None:
            if not len(self._bias):
                shape = (len(self._panels), self._panels.shape[1] * LANES)
                self._bias = np.zeros(shape, np.float32)
            self._bias[layer, first : first + outputs] = linear.bias

    def _store(self, layer: int, first: int, part: Floats) -> None:
        if self._panels.dtype == np.float16 and not (most := np.abs(part).max()) <= _FLOAT16_MAX:
            raise UserError(f"a weight of {most:g} does not fit into float16: load it as float32")
        part = part.astype(self._panels.dtype, copy=False)
        panels = self._panels[layer, first // LANES :]
        whole, inputs = len(part) // LANES, part.shape[1]
        panels[:whole] = part[: whole * LANES].reshape(whole, LANES, inputs).swapaxes(1, 2)
        if rest := len(part) % LANES:
            panels[whole, :, :rest] = part[-rest:].T

    def _store_blocks(self, layer: int, first: int, part: Blocks, form: Form) -> None:
        for scales in (part.scale, part.least):
            if scales is not None and not np.isfinite(scales.large).all():
                raise UserError("a block of weights has no number for a scale: load it as float32")
        panels = packed(part, form)
        self._panels[layer, first // LANES : first // LANES + len(panels)] = panels

    def rows(self, outputs: NDArray[np.int64]) -> Floats:
        """Rows of the first layer's matrix as they are kept: [outputs, inputs]."""
        if self._form:
            panels = self._panels[0, outputs // LANES]
            return unpacked(panels, outputs % LANES, self._form).floats()[:, : self._inputs]
        return self._panels[0, outputs // LANES, :, outputs % LANES].astype(np.float32)

    def set_row(self, output: int, row: Floats) -> None:
        """Replace a row of the first layer's matrix, which is kept as float32."""
        self._panels[0, output // LANES, :, output % LANES] = row

    def matrix(self) -> Matrix:
        """As the kernels take it; float16 as bits, since numba has no such type."""
        values: NDArray[Any] = self._panels.reshape(-1)
        bits = values.view(np.uint16) if values.dtype == np.float16 else values
        return Matrix(bits, self._bias)


def read_layers(weights: DecoderWeights, config: DecoderConfig, dtype: str) -> Layers:
    """Read all layers; matrices that are not read in blocks are kept as `dtype`.

    Raises:
        UserError: if they can't be read, or a weight does not fit into float16.
    """
    count, width = config.layers, config.width
    mixed, half = config.heads * config.head_dim, padded(config.ffn_width)

    def panels(name: str, outputs: int, inputs: int) -> Panels:
        return Panels(count, outputs, inputs, weights.forms.get(name, dtype))

    qkv = panels("attn_q", mixed + 2 * config.kv_heads * config.head_dim, width)
    out = panels("attn_output", width, mixed)
    gate_up = panels("ffn_up", 2 * half if config.gated else half, width)
    down = panels("ffn_down", width, config.ffn_width)
    norms = np.empty((2, count, width), np.float32)
    turned = config.heads + config.kv_heads if config.qk_norm else 0
    qk_norm = np.empty((count if turned else 0, turned, config.head_dim), np.float32)
    for index in range(count):
        layer = weights.layer(index)
        norms[:, index] = layer.attention_norm, layer.ffn_norm
        qkv.fill(index, layer.qkv)
        out.fill(index, layer.out)
        if layer.gate is not None:
            gate_up.fill(index, layer.gate)
        gate_up.fill(index, layer.up, 0 if layer.gate is None else half)
        down.fill(index, layer.down)
        if layer.qk_norm is not None:
            qk_norm[index] = layer.qk_norm
    return Layers(
        qkv.matrix(), out.matrix(), gate_up.matrix(), down.matrix(), norms[0], norms[1], qk_norm
    )
