"""Attention: keys and values come into the cache, and each row reads what is there up to itself.

The two products are those of `multiply`: a query times the keys, which lie in panels of 16
positions; and its weights times the values, whose panels are 16 elements of a head.
"""

from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from specpipe.models.cpu.compiled import compiled, generated
from specpipe.models.cpu.instructions import HALF, LANES, element, pointer, step
from specpipe.models.cpu.kernels import normalise, rotate, softmax
from specpipe.models.cpu.products import multiply
from specpipe.models.cpu.state import Buffers, Cache, Floats, Shape
from specpipe.models.cpu.tile import BLOCK, MANY_ROWS

_LANES: Any = np.int64(LANES)  # a number to numba, and no type for which to compile again
# From half a tile on it's faster to take half as many panels: strides that differ from layer to
# layer want registers, too.
_FEW_QUERIES = MANY_ROWS // 2 - 1


@compiled
def scores_row(context: int) -> int:
    """Elements from one query's scores to the next's: not all at the same place in the cache."""
    return context + LANES


@compiled
def take_in(
    part: int,
    parts: int,
    layer: int,
    segments: NDArray[np.int64],
    shape: Shape,
    qk_norm: Floats,
    cache: Cache,
    b: Buffers,
) -> None:
    """Rotate queries and keys; put queries by key head, and keys and values into the cache.

    Queries are divided by sqrt(head_dim), as all scores have to be.
    """
    dim, group = shape.head_dim, shape.heads // shape.kv_heads
    scale = np.float32(1 / np.sqrt(dim))
    for s in range(segments.shape[0]):
        slot, start, first_row, count = segments[s]
        for i in range(part, count, parts):
            position, line = start + i, b.qkv[first_row + i]
            for head in range(shape.heads + shape.kv_heads):
                vector = line[head * dim : (head + 1) * dim]
                if qk_norm.shape[0]:
                    normalise(vector, qk_norm[layer, head], shape.eps, vector)
                rotate(vector, cache.turns[position])
            for g in range(shape.kv_heads):
                # A sequence's queries for one key head stand together, as the rows of a product.
                at = (first_row * shape.heads + g * count * group + i * group) * dim
                for j in range(group * dim):
                    b.queries[at + j] = line[g * group * dim + j] * scale
                place = (layer * shape.slots + slot) * shape.kv_heads + g
                key = line[(shape.heads + g) * dim : (shape.heads + g + 1) * dim]
                value = line[(shape.heads + shape.kv_heads + g) * dim :]
                at = place * shape.context * dim
                at += (position // LANES) * dim * LANES + position % LANES
                for j in range(dim):
                    _keep(cache.keys, at + j * LANES, key[j])
                at = (place * shape.context + position) * shape.padded_head
                for j in range(dim):
                    _keep(cache.values, at + j, value[j])


@generated
def _keep(_context: Any, entries: Any, place: Any, number: Any) -> Any:
    """Write a float where others of its kind are, rounded to float16 where these are."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        at = step(builder, pointer(context, builder, signature, values, 0), values[1])
        half = element(entries.dtype) is HALF
        builder.store(builder.fptrunc(values[2], HALF) if half else values[2], at)
        return context.get_dummy_value()

    return types.void(entries, types.int64, types.float32), generate


@compiled
def attend(
    part: int,
    parts: int,
    layer: int,
    segments: NDArray[np.int64],
    shape: Shape,
    cache: Cache,
    b: Buffers,
) -> None:
    """Let every row attend to all positions up to its own.

    The queries of several rows and heads that read the same keys go together, as far as a tile
    reaches. Each is computed over the longest length among them, and counts its own.
    """
    group, turn = shape.heads // shape.kv_heads, 0
    for s in range(segments.shape[0]):
        slot, start, first_row, count = segments[s]
        queries = count * group
        tiles = (queries + MANY_ROWS - 1) // MANY_ROWS
        for g in range(shape.kv_heads):
            place = (layer * shape.slots + slot) * shape.kv_heads + g
            at = (first_row * shape.heads + g * queries) * shape.head_dim
            for t in range(tiles):
                first, last = queries * t // tiles, queries * (t + 1) // tiles
                if turn % parts == part:
                    _attend_tile(
                        part, place, start, first_row, g, first, last - first, at,
                        shape, cache, b,
                    )  # fmt: skip
                turn += 1


@compiled
def _attend_tile(
    part: int,
    place: int,
    start: int,
    first_row: int,
    g: int,
    query: int,
    together: int,
    queries_at: int,
    shape: Shape,
    cache: Cache,
    b: Buffers,
) -> None:
    """The attention of queries `query` to `query + together` of one key head and sequence.

    Positions behind a query's own get a score that is not used, and a weight of zero.
    """
    dim, group = shape.head_dim, shape.heads // shape.kv_heads
    length = start + (query + together - 1) // group + 1
    panels = (length + BLOCK * LANES - 1) // (BLOCK * LANES) * BLOCK
    row = scores_row(shape.context)
    scores = b.scores[part * MANY_ROWS * row :]
    multiply(
        cache.keys[place * shape.context * dim :], dim * _LANES, _LANES, dim,
        b.queries[queries_at + query * dim :], dim, together, scores, row, panels, _FEW_QUERIES,
    )  # fmt: skip
    scale = np.empty(MANY_ROWS, np.float32)
    for i in range(together):
        own = start + (query + i) // group + 1
        scale[i] = softmax(scores[i * row : i * row + panels * LANES], own)
    head = shape.padded_head
    attended = b.attended[part * MANY_ROWS * head :]
    multiply(
        cache.values[place * shape.context * head :], _LANES, head, length,
        scores, row, together, attended, head, head // LANES, _FEW_QUERIES,
    )  # fmt: skip
    for i in range(together):
        line = b.mixed[first_row + (query + i) // group]
        at = (g * group + (query + i) % group) * dim
        for j in range(dim):
            line[at + j] = attended[i * head + j] * scale[i]
