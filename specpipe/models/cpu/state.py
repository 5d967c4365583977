"""What a pass works on, as compiled functions take it."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class Shape(NamedTuple):
    """Sizes; `context` and `padded_head`, a head's share of the values, are multiples of 64."""

    heads: int
    kv_heads: int
    head_dim: int
    padded_head: int
    width: int
    ffn_width: int
    context: int
    slots: int
    eps: float


class Layers(NamedTuple):
    """The weights of all layers, one array a kind, in panels and flat; see `panels.py`.

    Attributes:
        qkv, out, gate_up, down: matrices; gate's panels come before up's.
        qkv_bias, out_bias, gate_up_bias, down_bias: [layers, outputs in panels], or [0, 0].
        attention_norm, ffn_norm: [layers, width].
        qk_norm: [layers, heads + kv_heads, head_dim], or [0, 0, 0].
    """

    qkv: NDArray[Any]
    out: NDArray[Any]
    gate_up: NDArray[Any]
    down: NDArray[Any]
    qkv_bias: Floats
    out_bias: Floats
    gate_up_bias: Floats
    down_bias: Floats
    attention_norm: Floats
    ffn_norm: Floats
    qk_norm: Floats


class Cache(NamedTuple):
    """What a pass reads of earlier ones, and adds to.

    Attributes:
        turns: [positions, head_dim], cosine and sine of each rotary pair, in turn.
        keys: flat, [layers, slots, kv heads, context / 16, head_dim, 16].
        values: flat, [layers, slots, kv heads, context, padded_head].
    """

    turns: Floats
    keys: Floats
    values: Floats


class Buffers(NamedTuple):
    """Room for what a pass computes on its way, all flat but for the first dimension.

    Attributes:
        hidden: [rows, width], what goes in and comes out.
        normed, qkv, queries, mixed, gate_up, gated, change: [rows, ...].
        scores, attended: [threads, ...].
        barrier: int64, see barrier.py.
    """

    hidden: Floats
    normed: Floats
    qkv: Floats
    queries: Floats
    mixed: Floats
    gate_up: Floats
    gated: Floats
    change: Floats
    scores: Floats
    attended: Floats
    barrier: NDArray[np.int64]
