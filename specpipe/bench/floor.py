"""How fast this machine reads and multiplies: what no forward pass can beat.

A pass reads all weights, and the keys and values before it, at least once, and multiplies each row
by all weights. So it takes at least max(bytes / bandwidth, operations / rate), with both measured
on the same threads and at about the same time (Williams et al., the roofline model, 2009).
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from specpipe.models.interface import BLOCK_DTYPES
from specpipe.models.shape import DecoderConfig
from specpipe.models.weights import Floats

_READ_BYTES, _READ_BYTES_ON_GPU = 256 << 20, 2 << 30  # beyond any cache
_SIDE, _SIDE_ON_GPU = 1024, 8192
_REPEATS = 5


@dataclass(frozen=True, slots=True)
class Limits:
    """What some threads can do.

    Attributes:
        bandwidth: bytes read from memory in a second.
        rate: multiplications and additions in a second: of float32; of whole numbers of 16 bits
            where weights are multiplied as such; on a GPU of the dtype that weights are kept in.
    """

    bandwidth: float
    rate: float


@dataclass(frozen=True, slots=True)
class Work:
    """What a pass has to do.

    Attributes:
        reads: bytes.
        operations: multiplications and additions.
    """

    reads: float
    operations: float

    def floor(self, limits: Limits) -> float:
        """Seconds that it takes at least."""
        return max(self.reads / limits.bandwidth, self.operations / limits.rate)


def work_of(
    config: DecoderConfig,
    weight_bytes: int,
    number_bytes: int,
    *,
    context: int,
    rows: int,
    judged: int,
) -> Work:
    """What a pass of `rows` rows behind `context` tokens has to do.

    Args:
        config: the model's shape.
        weight_bytes: of all weights that it reads.
        number_bytes: of a number of the keys and values.
        context: tokens that are there before.
        rows: tokens that are fed.
        judged: rows of logits that are wanted; each is a product with the head.
    """
    matrices = sum(outputs * inputs for outputs, inputs in config.matrices().values())
    layers, head = config.layers * matrices, config.output_size * config.width
    entries = 2 * config.layers * config.kv_heads * config.head_dim
    attended = sum(context + row + 1 for row in range(rows))
    attention = 2 * config.layers * config.heads * config.head_dim * attended
    reads = weight_bytes + float(number_bytes) * entries * (context + rows)
    return Work(reads, 2.0 * (layers * rows + head * judged + attention))


def measure_limits(threads: int, dtype: str = "float32", device: str = "cpu") -> Limits:
    """Measure what `threads` threads of this process can do, or a GPU; takes about a second.

    With weights in blocks the rate is twice that of float32 where the processor has VNNI: one
    instruction takes as long, and multiplies twice as many numbers.
    """
    if device != "cpu":
        return _gpu_limits(device, dtype)
    from specpipe.models.cpu.instructions import HAS_VNNI  # noqa: PLC0415 (numba, seconds)

    pairs = 2 if HAS_VNNI and dtype in BLOCK_DTYPES else 1
    return Limits(_bandwidth(threads), _rate(threads) * pairs)


def _bandwidth(threads: int) -> float:
    """The faster of two readers: numpy's sum, and our own product with a single row."""
    from specpipe.models.cpu.instructions import LANES  # noqa: PLC0415 (numba, seconds)
    from specpipe.models.cpu.memory import reserve_weights  # noqa: PLC0415
    from specpipe.models.cpu.products import multiply  # noqa: PLC0415
    from specpipe.models.cpu.tile import BLOCK  # noqa: PLC0415

    block = reserve_weights((_READ_BYTES // 4,), np.float32)
    block[:] = 1
    depth = len(block) // threads // (BLOCK * LANES)
    row, panel = np.ones(depth, np.float32), depth * LANES

    def product(part: Floats) -> None:
        out = np.empty(BLOCK * LANES, np.float32)
        multiply(part, panel, LANES, depth, row, depth, 1, out, len(out), BLOCK, 1)

    parts = np.array_split(block, threads)
    with ThreadPoolExecutor(threads) as pool:
        times = [
            _fastest(lambda: list(pool.map(np.sum, parts))),
            _fastest(lambda: list(pool.map(product, parts))),
        ]
    return _READ_BYTES / min(times)


def _rate(threads: int) -> float:
    """Of torch's product of large matrices, which comes near to what the processor can do."""
    import torch  # noqa: PLC0415 (seconds)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        left, right = torch.ones(_SIDE, _SIDE), torch.ones(_SIDE, _SIDE)
        seconds = _fastest(lambda: left @ right)
    finally:
        torch.set_num_threads(before)
    return 2.0 * _SIDE**3 / seconds


def _gpu_limits(device: str, dtype: str) -> Limits:
    """Of a copy, which reads and writes, and of a product of large random matrices."""
    import torch  # noqa: PLC0415 (seconds)

    def wait() -> None:
        torch.cuda.synchronize(device)

    source = torch.ones(_READ_BYTES_ON_GPU, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = _fastest(lambda: target.copy_(source), wait)
    shape, kept = (_SIDE_ON_GPU, _SIDE_ON_GPU), getattr(torch, dtype)
    left, right = (torch.randn(shape, device=device).to(kept) for _ in range(2))
    multiplied = _fastest(lambda: torch.mm(left, right), wait)
    return Limits(2 * _READ_BYTES_ON_GPU / copied, 2.0 * _SIDE_ON_GPU**3 / multiplied)


def _fastest(function: Callable[[], object], wait: Callable[[], object] = lambda: None) -> float:
    function()
    wait()
    times = []
    for _ in range(_REPEATS):
        begun = time.perf_counter()
        function()
        wait()
        times.append(time.perf_counter() - begun)
    return min(times)


def resident_bytes(device: str = "cpu") -> int:
    """Memory of this process that lies in RAM, or on a GPU as torch counts it."""
    if device != "cpu":
        import torch  # noqa: PLC0415 (seconds)

        return torch.cuda.memory_reserved(device)
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
