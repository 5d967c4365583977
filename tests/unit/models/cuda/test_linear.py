"""Packed linear layers: rows whose bits don't depend on their company."""

import pytest
import torch
from torch import Tensor

from specpipe.errors import UserError
from specpipe.models.cuda import linear
from specpipe.models.cuda.linear import MAX_ROWS, pack_linear

DTYPES = [torch.float32]  # on a CPU its kernels promise nothing for the others


def weight(outputs: int, inputs: int) -> Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(1))


def rows(count: int, inputs: int) -> Tensor:
    return torch.randn(count, inputs, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(96, 64), (576, 1536), (100, 33), (7, 577)])
def test_a_row_has_the_same_bits_in_any_company(threads: int, dtype, shape) -> None:
    layer, x = pack_linear(weight(*shape), dtype), rows(MAX_ROWS, shape[1])
    alone = torch.cat([layer(x[i : i + 1].clone()) for i in range(MAX_ROWS)])
    for count in range(1, MAX_ROWS + 1):
        first = (MAX_ROWS - count) // 2
        together = layer(x[first : first + count])
        assert torch.equal(together, alone[first : first + count]), f"{count} rows"


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_where_the_input_lies_in_memory(dtype) -> None:
    layer, x = pack_linear(weight(96, 64), dtype), rows(5, 64)
    expected = layer(x)
    for shift in range(1, 17):
        moved = torch.empty(x.numel() + shift)[shift:].view_as(x).copy_(x)
        assert torch.equal(layer(moved), expected), f"shifted by {shift} elements"


@pytest.mark.parametrize("dtype", DTYPES)
def test_result_is_the_product(dtype) -> None:
    w, bias, x = weight(96, 64), rows(1, 96)[0], rows(3, 64)
    exact = torch.nn.functional.linear(x, w, bias)
    close = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(pack_linear(w, dtype, bias)(x), exact, atol=close, rtol=close)


def test_many_rows_are_cut_into_tiles_without_seams() -> None:
    layer, x = pack_linear(weight(96, 64), torch.float32), rows(2 * MAX_ROWS + 3, 64)
    alone = torch.cat([layer(x[i : i + 1].clone()) for i in range(len(x))])
    assert torch.equal(layer(x), alone)


@pytest.mark.parametrize("bad", [{1, 2, 7, 14, 32}, {16, 64}, set(range(2, 65))])
def test_row_counts_that_disagree_are_avoided(monkeypatch: pytest.MonkeyPatch, bad) -> None:
    """As with kernels that sum tiles of one or two rows in another order."""
    seen: set[int] = set()

    def kernel(x: Tensor) -> Tensor:
        seen.add(len(x))
        last = torch.arange(len(x))[:, None] == len(x) - 1
        return x + (1e-3 * last if len(x) in bad and len(x) > 1 else 1e-3 * (len(x) in bad))

    monkeypatch.setattr(linear, "_pack", lambda *_: kernel)
    plan = linear._measure.__wrapped__(8, 8, torch.float32, torch.device("cpu"), 1)
    layer = linear.PackedLinear(kernel, plan, 1)
    seen.clear()
    x = rows(100, 8)
    for count in range(101):
        assert torch.equal(layer(x[:count]), x[:count])
    assert not seen & bad


def test_weights_beyond_float16_are_refused_rather_than_clipped() -> None:
    for value in (1e5, float("nan")):
        w = weight(96, 64)
        w[3, 4] = value
        with pytest.raises(UserError, match="load it as float32"):
            pack_linear(w, torch.float16)
