"""What a pass works on, as compiled functions take it."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class Shape(NamedTuple):
    """Sizes; `context` and `padded_head`, a head's share of the values, are multiples of 64.

    `gated`: the feed-forward layer is SwiGLU, and not GELU without a gate.
    """

    heads: int
    kv_heads: int
    head_dim: int
    padded_head: int
    width: int
    ffn_width: int
    gated: bool
    context: int
    slots: int
    eps: float


class Matrix(NamedTuple):
    """One matrix of each layer.

    Attributes:
        panels: flat, [layers, panels, inputs, 16], float32, or float16 as uint16; or
            [layers, panels, blocks, elements], see blocks.py.
        bias: [layers, outputs in panels], or [0, 0].
    """

    panels: NDArray[Any]
    bias: Floats


class Layers(NamedTuple):
    """The weights of all layers; see `weights.py` for what each is.

    Attributes:
        qkv, out, gate_up, down: matrices; gate's panels, if there are any, come before up's.
        attention_norm, ffn_norm: [layers, width].
        qk_norm: [layers, heads + kv_heads, head_dim], or [0, 0, 0].
    """

    qkv: Matrix
    out: Matrix
    gate_up: Matrix
    down: Matrix
    attention_norm: Floats
    ffn_norm: Floats
    qk_norm: Floats


class Cache(NamedTuple):
    """What a pass reads of earlier ones, and adds to.

    Attributes:
        turns: [positions, head_dim], cosine and sine of each rotary pair, in turn.
        keys: flat, [layers, slots, kv heads, context / 16, head_dim, 16], float32, or float16 as
            uint16.
        values: flat, [layers, slots, kv heads, context, padded_head], of the same kind.
    """

    turns: Floats
    keys: NDArray[Any]
    values: NDArray[Any]


class Buffers(NamedTuple):
    """Room for what a pass computes on its way, all flat but for the first dimension.

    Attributes:
        hidden: [rows, width], what goes in and comes out.
        normed, qkv, queries, mixed, gate_up, inner, change: [rows, ...].
        scores, attended, scratch: [threads, ...].
        barrier: int64, see barrier.py.
    """

    hidden: Floats
    normed: Floats
    qkv: Floats
    queries: Floats
    mixed: Floats
    gate_up: Floats
    inner: Floats
    change: Floats
    scores: Floats
    attended: Floats
    scratch: Floats
    barrier: NDArray[np.int64]
