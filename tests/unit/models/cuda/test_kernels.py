"""What the kernels compute is what the reference says; where there is no GPU, Triton plays it."""

import os
from dataclasses import replace

import pytest
import torch

from specpipe.models.cuda import reference
from specpipe.models.source import open_model

DEVICE = "cuda:0" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton", reason="Triton comes with torch's CUDA builds")

from specpipe.models.cuda import kernels  # noqa: E402

TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
# bfloat16 is not what Triton plays on a CPU.
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if DEVICE != "cpu" else [])]
SHAPES = [
    pytest.param(9, 3, 64, 512, False, id="groups of three"),
    pytest.param(4, 2, 16, 1024, True, id="norms and several parts"),
    pytest.param(4, 4, 80, 300, False, id="no power of two"),
    pytest.param(8, 1, 32, 64, False, id="one key head"),
    pytest.param(2, 1, 64, 16384, False, id="parts beyond the least"),
]


@pytest.fixture
def config(tiny_gguf):
    return open_model(tiny_gguf()).config


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "kv", "dim", "context", "normed"), SHAPES)
def test_rows_of_several_sequences_turn_and_attend(
    config, heads, kv, dim, context, normed, dtype
) -> None:
    """A row that sees another's past, or a key written one place off, changes what is said."""
    shape = replace(config, heads=heads, kv_heads=kv, head_dim=dim, context_length=context)
    torch.manual_seed(0)
    rows = torch.tensor(
        [[1, 2, 3, 4, 0], [0, 0, 0, context, 2 * context], [0, context // 2, context - 1, 17, 0]],
        device=DEVICE,
    )
    qkv = torch.randn(5, (heads + 2 * kv) * dim, device=DEVICE).to(dtype)
    turns = torch.randn(context, dim, device=DEVICE)
    norms = torch.rand(heads + kv, dim, device=DEVICE) + 0.5 if normed else None
    entries = tuple(
        torch.randn(2 * context + 1, kv, dim, device=DEVICE).to(dtype) for _ in range(2)
    )
    others = tuple(each.clone() for each in entries)
    expected = reference.turn(qkv, norms, turns, rows, entries, shape)
    found = kernels.turn(qkv, norms, turns, rows, others, shape)
    close = {"atol": TOLERANCES[dtype], "rtol": TOLERANCES[dtype]}
    torch.testing.assert_close(found, expected, **close)
    torch.testing.assert_close(others, entries, **close)
    torch.testing.assert_close(
        kernels.attend(found, rows, others, shape),
        reference.attend(expected, rows, entries, shape),
        **close,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [576, 1100, 16])
def test_sums_norms_and_gates(width, dtype) -> None:
    """A last block read beyond the row takes in the next one."""
    torch.manual_seed(0)
    close = {"atol": TOLERANCES[dtype], "rtol": TOLERANCES[dtype]}
    hidden, weight = torch.randn(5, width, device=DEVICE), torch.rand(width, device=DEVICE)
    other, out = hidden.clone(), torch.empty(5, width, device=DEVICE, dtype=dtype)
    for update in (None, torch.randn(5, width, device=DEVICE).to(dtype)):
        expected = reference.add_norm(hidden, update, weight, 1e-5, out.clone())
        found = kernels.add_norm(other, update, weight, 1e-5, out)
        torch.testing.assert_close(found, expected, **close)
        torch.testing.assert_close(other, hidden)
    inner = torch.randn(5, 2 * width, device=DEVICE).to(dtype)
    for gated in (True, False):
        expected = reference.gate(inner, gated=gated)
        torch.testing.assert_close(kernels.gate(inner, gated=gated), expected, **close)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_logits_are_float32(dtype) -> None:
    """Rounded to bfloat16, the best two of 50,000 tokens are often equal."""
    normed = torch.randn(16, 576, device=DEVICE).to(dtype)
    head = torch.randn(1000, 576, device=DEVICE).to(dtype)
    found, expected = (torch.empty(16, 1000, device=DEVICE) for _ in range(2))
    kernels.judge(normed, head, found)
    reference.judge(normed, head, expected)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)
