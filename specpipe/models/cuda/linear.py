"""Linear layers whose every row has the same bits, however many rows stand beside it.

Losslessness rests on this: a token that is decoded alone and the same token checked as one row of a
block must get the same logits to the last bit, or near-ties flip. Matrix kernels don't promise it:
they cut the rows into tiles, and tiles of different heights may sum in different orders. Which row
counts agree depends on the kernel, the device and the shape, so it is measured when a model is
loaded, and inputs are padded to a count that agrees.

This module knows nothing of models; row counts beyond the largest good one are cut into tiles.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from specpipe.errors import UserError

MAX_ROWS = 64
"""Most rows that go through a kernel at once; more gain no speed."""

_COUNTS = (*range(1, 17), 20, 24, 32, 48, MAX_ROWS)
_PROBE_SIZE = 1 << 21
_FLOAT16_MAX = 65504.0

Kernel = Callable[[Tensor], Tensor]
"""float32[rows, in] -> float32[rows, out], its weight inside."""


@dataclass(frozen=True, slots=True)
class RowPlan:
    """Which row counts give a row the same bits.

    Attributes:
        tile: the largest of them.
        padded: for 0 to `tile` rows, the smallest such count that is not below.
    """

    tile: int
    padded: tuple[int, ...]


class PackedLinear:
    """A weight in its kernel's own layout, which is called like a function.

    Attributes:
        plan: which row counts it is called with.
        outputs: numbers in a row of its result.
    """

    def __init__(self, kernel: Kernel, plan: RowPlan, outputs: int) -> None:
        self._kernel = kernel
        self.plan = plan
        self.outputs = outputs

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply: float32[rows, in], contiguous, to float32[rows, out]."""
        rows = x.shape[0]
        if rows > self.plan.tile:
            return torch.cat([self(part) for part in torch.split(x, self.plan.tile)])
        padding = self.plan.padded[rows] - rows
        if padding:
            return self._kernel(functional.pad(x, (0, 0, 0, padding)))[:rows]
        return self._kernel(x)


def pack_linear(weight: Tensor, dtype: torch.dtype, bias: Tensor | None = None) -> PackedLinear:
    """Pack a weight for the device that it lies on.

    Args:
        weight: float32[out, in].
        dtype: how the weight is kept; activations have it too.
        bias: float32[out].

    Raises:
        UserError: if the weight does not fit into float16.
    """
    if dtype == torch.float16 and not (largest := weight.abs().max().item()) <= _FLOAT16_MAX:
        raise UserError(f"a weight of {largest:g} does not fit into float16: load it as float32")
    kernel = _pack(weight, dtype, bias)
    outputs, inputs = weight.shape
    # A shape's columns are computed alike, so a slice of a huge weight tells enough.
    probed = min(outputs, max(256, _PROBE_SIZE // inputs))
    threads, biased = torch.get_num_threads(), bias is not None
    plan = _measure(probed, inputs, dtype, weight.device, threads, biased=biased)
    return PackedLinear(kernel, plan, outputs)


def _pack(weight: Tensor, dtype: torch.dtype, bias: Tensor | None) -> Kernel:
    packed = weight.to(dtype)
    shift = None if bias is None else bias.to(dtype)
    return lambda x: functional.linear(x.to(dtype), packed, shift).float()


@cache
def _measure(
    outputs: int,
    inputs: int,
    dtype: torch.dtype,
    device: torch.device,
    threads: int,
    *,
    biased: bool = False,
) -> RowPlan:
    """Find the row counts that agree with most others, for a weight of this shape.

    All rows of the probe are the same, so within one result they must be equal as well: that
    catches a kernel whose last rows are summed unlike its first.
    """
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=random).to(device)
    probe = torch.randn(1, inputs, generator=random).to(device).repeat(MAX_ROWS, 1)
    with torch.inference_mode():
        kernel = _pack(weight, dtype, weight[:, 0].clone() if biased else None)
        bits = {count: _common_bits(kernel(probe[:count])) for count in _COUNTS}
    # A single row always agrees with itself, so the worst case is: row by row.
    votes = Counter(value for value in bits.values() if value is not None)
    elected = votes.most_common(1)[0][0]
    good = [count for count in _COUNTS if bits[count] == elected]
    padded = (next(count for count in good if count >= rows) for rows in range(good[-1] + 1))
    return RowPlan(good[-1], tuple(padded))


def _common_bits(result: Tensor) -> bytes | None:
    """The bytes that all rows of a result share, or None."""
    if not torch.equal(result, result[:1].expand_as(result)):
        return None
    return result[0].cpu().numpy().tobytes()
