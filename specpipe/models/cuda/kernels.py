"""What a pass does on a GPU between its products, in Triton (which comes with torch's CUDA builds).

Six kernels a layer beside its four products, since a small model's pass takes as long as it takes
to start its kernels. Each program works for one row, in an order that the row's own position
determines: a row has the same bits whatever is beside it. `reference.py` says what they compute.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from specpipe.models.shape import DecoderConfig

_LEAST_PART, _MOST_PARTS = 256, 32  # positions that a program attends to; programs of a row
_LEAST_SIDE = 16  # of what tensor cores multiply
_BLOCK = 64  # keys at a time
_WIDE = 1024  # numbers of a gate at a time


def add_norm(
    hidden: Tensor, update: Tensor | None, weight: Tensor, eps: float, out: Tensor
) -> Tensor:
    """See reference.py."""
    rows, width = hidden.shape
    block = triton.next_power_of_2(width)
    _add_norm[rows,](
        hidden, hidden if update is None else update, weight, out, eps,
        WIDTH=width, BLOCK=block, ADDS=update is not None,
    )  # fmt: skip
    return out


def turn(
    qkv: Tensor,
    qk_norm: Tensor | None,
    turns: Tensor,
    rows: Tensor,
    entries: tuple[Tensor, Tensor],
    config: DecoderConfig,
) -> Tensor:
    """See reference.py."""
    count, heads, kv = len(qkv), config.heads, config.kv_heads
    queries = qkv.new_empty(count, heads, config.head_dim)
    _turn[count, heads + 2 * kv](
        qkv, turns if qk_norm is None else qk_norm, turns, rows, queries, *entries, config.norm_eps,
        ROWS=count, HEADS=heads, KV=kv, DIM=config.head_dim,
        BLOCK=triton.next_power_of_2(config.head_dim // 2), NORMED=qk_norm is not None,
    )  # fmt: skip
    return queries


def attend(
    queries: Tensor, rows: Tensor, entries: tuple[Tensor, Tensor], config: DecoderConfig
) -> Tensor:
    """See reference.py.

    A row's positions are cut into parts at fixed places, which are attended to at the same time
    and then put together (Dao et al., Flash-Decoding, 2023).
    """
    count, heads, dim = queries.shape
    kv, group = config.kv_heads, heads // config.kv_heads
    part = max(_LEAST_PART, triton.next_power_of_2(-(-config.context_length // _MOST_PARTS)))
    parts = -(-config.context_length // part)
    sums = torch.empty(count, heads, parts, dim, device=queries.device)
    tops = torch.empty(2, count, heads, parts, device=queries.device)
    side = max(_LEAST_SIDE, triton.next_power_of_2(dim))
    _attend[count, kv, parts](
        queries, *entries, rows, sums, tops, dim**-0.5,
        ROWS=count, KV=kv, GROUP=group, SIDE=max(_LEAST_SIDE, triton.next_power_of_2(group)),
        DIM=dim, BLOCK_DIM=side, PART=part, BLOCK=_BLOCK,
    )  # fmt: skip
    mixed = torch.empty_like(queries)
    _merge[count, heads](
        sums, tops, rows, mixed,
        ROWS=count, HEADS=heads, DIM=dim, BLOCK_DIM=side,
        PART=part, PARTS=parts, BLOCK=triton.next_power_of_2(parts),
    )  # fmt: skip
    return mixed.view(count, heads * dim)


def gate(inner: Tensor, *, gated: bool) -> Tensor:
    """See reference.py."""
    rows, width = len(inner), inner.shape[1] // (2 if gated else 1)
    out = inner.new_empty(rows, width)
    _gate[rows, triton.cdiv(width, _WIDE)](inner, out, WIDTH=width, BLOCK=_WIDE, GATED=gated)
    return out


def judge(normed: Tensor, head: Tensor, out: Tensor) -> None:
    """See reference.py."""
    if head.dtype == torch.float32:
        torch.mm(normed, head.T, out=out)
    else:
        torch.mm(normed, head.T, out_dtype=torch.float32, out=out)


@triton.jit
def _add_norm(hidden, update, weight, out, eps,
              WIDTH: tl.constexpr, BLOCK: tl.constexpr, ADDS: tl.constexpr) -> None:  # fmt: skip
    at = tl.arange(0, BLOCK)
    there = tl.program_id(0) * WIDTH + at
    inside = at < WIDTH
    x = tl.load(hidden + there, mask=inside, other=0.0)
    if ADDS:
        x += tl.load(update + there, mask=inside, other=0.0).to(tl.float32)
        tl.store(hidden + there, x, mask=inside)
    scale = 1 / tl.sqrt(tl.sum(x * x, 0) / WIDTH + eps)
    y = x * scale * tl.load(weight + at, mask=inside, other=0.0)
    tl.store(out + there, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _turn(qkv, norms, turns, rows, queries, keys, values,
          eps, ROWS: tl.constexpr, HEADS: tl.constexpr, KV: tl.constexpr, DIM: tl.constexpr,
          BLOCK: tl.constexpr, NORMED: tl.constexpr) -> None:  # fmt: skip
    row, head = tl.program_id(0), tl.program_id(1)
    at = 2 * tl.arange(0, BLOCK)
    inside = at < DIM
    source = qkv + (row * (HEADS + 2 * KV) + head) * DIM + at
    first = tl.load(source, mask=inside, other=0.0)
    second = tl.load(source + 1, mask=inside, other=0.0)
    position = tl.load(rows + 2 * ROWS + row)
    place = tl.load(rows + ROWS + row) + position
    if head < HEADS + KV:
        x, y = first.to(tl.float32), second.to(tl.float32)
        if NORMED:
            scale = 1 / tl.sqrt(tl.sum(x * x + y * y, 0) / DIM + eps)
            x *= scale * tl.load(norms + head * DIM + at, mask=inside, other=0.0)
            y *= scale * tl.load(norms + head * DIM + at + 1, mask=inside, other=0.0)
        cosine = tl.load(turns + position * DIM + at, mask=inside, other=0.0)
        sine = tl.load(turns + position * DIM + at + 1, mask=inside, other=0.0)
        first = (x * cosine - y * sine).to(first.dtype)
        second = (x * sine + y * cosine).to(second.dtype)
    if head < HEADS:
        target = queries + (row * HEADS + head) * DIM + at
    elif head < HEADS + KV:
        target = keys + (place * KV + head - HEADS) * DIM + at
    else:
        target = values + (place * KV + head - HEADS - KV) * DIM + at
    tl.store(target, first, mask=inside)
    tl.store(target + 1, second, mask=inside)


@triton.jit
def _attend(queries, keys, values, rows, sums, tops, scale,
            ROWS: tl.constexpr, KV: tl.constexpr, GROUP: tl.constexpr, SIDE: tl.constexpr,
            DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, PART: tl.constexpr,
            BLOCK: tl.constexpr) -> None:  # fmt: skip
    row, kv, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    parts = tl.num_programs(2)
    last = tl.load(rows + 2 * ROWS + row)
    begin = part * PART
    if begin <= last:
        base = tl.load(rows + ROWS + row)
        member, d = tl.arange(0, SIDE), tl.arange(0, BLOCK_DIM)
        head = (row * KV + kv) * GROUP + member
        real, inside = member < GROUP, d < DIM
        query = tl.load(queries + head[:, None] * DIM + d[None, :],
                        mask=real[:, None] & inside[None, :], other=0.0)  # fmt: skip
        top = tl.full([SIDE], float("-inf"), tl.float32)
        total = tl.zeros([SIDE], tl.float32)
        mixed = tl.zeros([SIDE, BLOCK_DIM], tl.float32)
        for start in range(begin, tl.minimum(begin + PART, last + 1), BLOCK):
            at = start + tl.arange(0, BLOCK)
            seen = at <= last
            there = ((base + at) * KV + kv) * DIM
            key = tl.load(keys + there[None, :] + d[:, None],
                          mask=seen[None, :] & inside[:, None], other=0.0)  # fmt: skip
            scores = tl.dot(query, key, input_precision="ieee") * scale
            scores = tl.where(seen[None, :], scores, float("-inf"))
            higher = tl.maximum(top, tl.max(scores, 1))
            weights = tl.exp(scores - higher[:, None])
            fade = tl.exp(top - higher)
            value = tl.load(values + there[:, None] + d[None, :],
                            mask=seen[:, None] & inside[None, :], other=0.0)  # fmt: skip
            mixed = mixed * fade[:, None] + tl.dot(
                weights.to(value.dtype), value, input_precision="ieee"
            )
            total = total * fade + tl.sum(weights, 1)
            top = higher
        place = head * parts + part
        tl.store(sums + place[:, None] * DIM + d[None, :], mixed,
                 mask=real[:, None] & inside[None, :])  # fmt: skip
        tl.store(tops + place, top, mask=real)
        tl.store(tops + ROWS * KV * GROUP * parts + place, total, mask=real)


@triton.jit
def _merge(sums, tops, rows, mixed, ROWS: tl.constexpr, HEADS: tl.constexpr,
           DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, PART: tl.constexpr, PARTS: tl.constexpr,
           BLOCK: tl.constexpr) -> None:  # fmt: skip
    row = tl.program_id(0)
    head = row * HEADS + tl.program_id(1)
    part, d = tl.arange(0, BLOCK), tl.arange(0, BLOCK_DIM)
    used = part < tl.load(rows + 2 * ROWS + row) // PART + 1
    inside = d < DIM
    top = tl.load(tops + head * PARTS + part, mask=used, other=float("-inf"))
    fade = tl.exp(top - tl.max(top, 0))
    total = tl.load(tops + (ROWS * HEADS + head) * PARTS + part, mask=used, other=0.0)
    each = tl.load(sums + (head * PARTS + part[:, None]) * DIM + d[None, :],
                   mask=used[:, None] & inside[None, :], other=0.0)  # fmt: skip
    result = tl.sum(each * fade[:, None], 0) / tl.sum(total * fade, 0)
    tl.store(mixed + head * DIM + d, result.to(mixed.dtype.element_ty), mask=inside)


@triton.jit
def _gate(inner, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
          GATED: tl.constexpr) -> None:  # fmt: skip
    row = tl.program_id(0)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < WIDTH
    if GATED:
        there = inner + row * 2 * WIDTH + at
        x = tl.load(there, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(there + WIDTH, mask=inside, other=0.0).to(tl.float32)
        y = x / (1 + tl.exp(-x)) * up
    else:
        x = tl.load(inner + row * WIDTH + at, mask=inside, other=0.0).to(tl.float32)
        y = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    tl.store(out + row * WIDTH + at, y.to(out.dtype.element_ty), mask=inside)
