"""What the kernels compute, in torch: for tests, on any device.

A row never meets another, and attention has the shape that the row's position gives it.
"""

import torch
from torch import Tensor
from torch.nn import functional

from specpipe.models.shape import DecoderConfig


def add_norm(
    hidden: Tensor, update: Tensor | None, weight: Tensor, eps: float, out: Tensor
) -> Tensor:
    """Add to the hidden states, in place, and normalise them.

    Source: RMSNorm (Zhang and Sennrich, arXiv:1910.07467).

    Args:
        hidden: float32[rows, width].
        update: [rows, width], of the weights' dtype.
        weight: float32[width].
        eps: added to the mean of the squares.
        out: [rows, width], of the weights' dtype, to be filled.

    Returns:
        `out`.
    """
    if update is not None:
        hidden += update
    return out.copy_(_norm(hidden, eps) * weight)


def turn(
    qkv: Tensor,
    qk_norm: Tensor | None,
    turns: Tensor,
    rows: Tensor,
    entries: tuple[Tensor, Tensor],
    config: DecoderConfig,
) -> Tensor:
    """Rotate queries and keys (Su et al., arXiv:2104.09864), and cache keys and values.

    Args:
        qkv: [rows, (heads + 2 * kv_heads) * head_dim]; rotary pairs lie side by side.
        qk_norm: float32[heads + kv_heads, head_dim], if queries and keys are normalised before.
        turns: float32[positions, head_dim], cosine and sine of each pair's angle.
        rows: int64[3, rows]: each row's token, its sequence's first place, and its position.
        entries: keys and values, each [places, kv_heads, head_dim].
        config: the model's shape.

    Returns:
        [rows, heads, head_dim], the queries.
    """
    heads = qkv.view(len(qkv), -1, config.head_dim)
    turned, values = heads[:, : -config.kv_heads].float(), heads[:, -config.kv_heads :]
    if qk_norm is not None:
        turned = _norm(turned, config.norm_eps) * qk_norm
    pairs = torch.view_as_complex(turned.reshape(*turned.shape[:2], -1, 2).contiguous())
    angles = torch.view_as_complex(turns[rows[2]].view(len(qkv), 1, -1, 2))
    turned = torch.view_as_real(pairs * angles).flatten(-2).to(qkv.dtype)
    entries[0][rows[1] + rows[2]] = turned[:, config.heads :]
    entries[1][rows[1] + rows[2]] = values
    return turned[:, : config.heads]


def attend(
    queries: Tensor, rows: Tensor, entries: tuple[Tensor, Tensor], config: DecoderConfig
) -> Tensor:
    """Let every row attend to all of its sequence up to itself.

    Args:
        queries: [rows, heads, head_dim].
        rows: as above.
        entries: as above.
        config: the model's shape.

    Returns:
        [rows, heads * head_dim].
    """
    mixed = torch.empty_like(queries)
    for row, (base, position) in enumerate(rows[1:].T.tolist()):
        keys, values = (each[base : base + position + 1].transpose(0, 1) for each in entries)
        grouped = queries[row].view(config.kv_heads, -1, config.head_dim)
        found = functional.scaled_dot_product_attention(grouped, keys, values)
        mixed[row] = found.flatten(0, 1)
    return mixed.flatten(1)


def gate(inner: Tensor, *, gated: bool) -> Tensor:
    """SwiGLU (Shazeer, arXiv:2002.05202) of [rows, 2 * width], gates first; or GELU, by erf."""
    if not gated:
        return functional.gelu(inner.float()).to(inner.dtype)
    gates, ups = inner.float().chunk(2, dim=-1)
    return (functional.silu(gates) * ups).to(inner.dtype)


def judge(normed: Tensor, head: Tensor, out: Tensor) -> None:
    """The product with the head, float32[rows, outputs], into `out`."""
    torch.mm(normed.float(), head.float().T, out=out)


def _norm(x: Tensor, eps: float) -> Tensor:
    return functional.rms_norm(x, x.shape[-1:], None, eps)
