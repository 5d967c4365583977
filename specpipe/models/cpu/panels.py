"""From matrices to panels, the form in which they are multiplied; `tile.py` has it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from specpipe.errors import UserError
from specpipe.models.cpu.memory import reserve_weights
from specpipe.models.cpu.state import Layers
from specpipe.models.cpu.tile import BLOCK, LANES
from specpipe.models.shape import DecoderConfig
from specpipe.models.weights import DecoderWeights, Floats, Linear

_FLOAT16_MAX = 65504.0
_AT_ONCE = 64  # panels; a copy of a large vocabulary would be a large one


def padded(count: int) -> int:
    """The outputs of so many panels as can be multiplied: the next multiple of 64."""
    block = BLOCK * LANES
    return -(-count // block) * block


def store(weight: Floats, panels: NDArray[Any]) -> None:
    """Put a matrix [outputs, inputs] into panels.

    Args:
        weight: the matrix.
        panels: [outputs / 16, inputs, 16], float32 or float16; zeros where no output is.

    Raises:
        UserError: if a weight does not fit into float16.
    """
    inputs = weight.shape[1]
    for first in range(0, len(panels), _AT_ONCE):
        part = weight[first * LANES : (first + _AT_ONCE) * LANES]
        if panels.dtype == np.float16:
            largest = np.abs(part).max()
            if not largest <= _FLOAT16_MAX:
                raise UserError(
                    f"a weight of {largest:g} does not fit into float16: load it as float32"
                )
            part = part.astype(np.float16)
        whole = len(part) // LANES
        into = panels[first : first + whole]
        into[:] = part[: whole * LANES].reshape(whole, LANES, inputs).swapaxes(1, 2)
        if rest := len(part) % LANES:
            panels[first + whole, :, :rest] = part[-rest:].T


def flat(panels: NDArray[Any]) -> NDArray[Any]:
    """Panels as the kernels read them; float16 as bits, since numba has no such type."""
    values = panels.reshape(-1)
    return values.view(np.uint16) if values.dtype == np.float16 else values


class LayerPanels:
    """Room for the matrices of all layers, filled one layer after the other."""

    def __init__(self, config: DecoderConfig, dtype: str) -> None:
        count, width = config.layers, config.width
        mixed = config.heads * config.head_dim
        qkv = mixed + 2 * config.kv_heads * config.head_dim

        def panels(outputs: int, inputs: int) -> NDArray[Any]:
            return reserve_weights((count, padded(outputs) // LANES, inputs, LANES), dtype)

        self._gate_panels = padded(config.ffn_width) // LANES
        self._qkv, self._out = panels(qkv, width), panels(width, mixed)
        self._gate_up = panels(2 * self._gate_panels * LANES, width)
        self._down = panels(width, config.ffn_width)
        self._biases: dict[str, Floats] = {}
        self._norms = np.empty((2, count, width), np.float32)
        turned = config.heads + config.kv_heads if config.qk_norm else 0
        self._qk_norm = np.empty((count if turned else 0, turned, config.head_dim), np.float32)

    def fill(self, weights: DecoderWeights) -> Layers:
        """Read all layers.

        Raises:
            UserError: if they can't be read, or a weight does not fit into float16.
        """
        for index in range(weights.config.layers):
            layer = weights.layer(index)
            self._norms[:, index] = layer.attention_norm, layer.ffn_norm
            self._keep("qkv", index, layer.qkv, self._qkv[index])
            self._keep("out", index, layer.out, self._out[index])
            self._keep("gate", index, layer.gate, self._gate_up[index, : self._gate_panels])
            self._keep("up", index, layer.up, self._gate_up[index, self._gate_panels :])
            self._keep("down", index, layer.down, self._down[index])
            if layer.qk_norm is not None:
                self._qk_norm[index] = layer.qk_norm
        none = np.empty((0, 0), np.float32)
        gate_up = [self._biases.get(name) for name in ("gate", "up")]
        biased = [bias for bias in gate_up if bias is not None]
        half = np.zeros((weights.config.layers, self._gate_panels * LANES), np.float32)
        return Layers(
            qkv=flat(self._qkv),
            out=flat(self._out),
            gate_up=flat(self._gate_up),
            down=flat(self._down),
            qkv_bias=self._biases.get("qkv", none),
            out_bias=self._biases.get("out", none),
            gate_up_bias=np.hstack([half if bias is None else bias for bias in gate_up])
            if biased
            else none,
            down_bias=self._biases.get("down", none),
            attention_norm=self._norms[0],
            ffn_norm=self._norms[1],
            qk_norm=self._qk_norm,
        )

    def _keep(self, name: str, index: int, linear: Linear, panels: NDArray[Any]) -> None:
        store(linear.weight, panels)
        if linear.bias is not None:
            shape = (len(self._qkv), len(panels) * LANES)
            biases = self._biases.setdefault(name, np.zeros(shape, np.float32))
            biases[index, : len(linear.bias)] = linear.bias
