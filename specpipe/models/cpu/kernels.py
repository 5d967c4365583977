"""What a pass does besides its products: norms, rotations, gates, softmax.

Sums run in an order that the row itself determines; nothing here lets the compiler reorder them.
Loops are written for it to turn into vector instructions.
"""

from typing import Any

import numpy as np

from specpipe.models.cpu.compiled import compiled
from specpipe.models.cpu.exponential import exp, exponentials, largest
from specpipe.models.cpu.instructions import LANES

_ONE, _HALF = np.float32(1), np.float32(0.5)
_TAIL_RATE = np.float32(0.305)
_TAIL = tuple(map(np.float32, (
    0.0366991972, -0.152988338, 0.185716941, -0.0379768573,
    0.12102169, 0.103420864, 0.122466817, 0.121639733,
)))  # fmt: skip


@compiled
def normalise(x: Any, weight: Any, eps: float, out: Any) -> None:
    """RMSNorm (Zhang and Sennrich, arXiv:1910.07467); out may be x."""
    size = len(x)
    lanes = np.zeros(LANES, np.float32)
    whole = size // LANES * LANES
    for i in range(0, whole, LANES):
        for lane in range(LANES):
            lanes[lane] += x[i + lane] * x[i + lane]
    for i in range(whole, size):
        lanes[i - whole] += x[i] * x[i]
    squares = 0.0
    for lane in range(LANES):
        squares += lanes[lane]
    scale = np.float32(1.0 / np.sqrt(squares / size + eps))
    for i in range(size):
        out[i] = x[i] * scale * weight[i]


@compiled
def rotate(x: Any, turns: Any) -> None:
    """Turn interleaved pairs as complex numbers, by their cosines and sines, interleaved too."""
    for i in range(0, len(x), 2):
        real, imaginary, cosine, sine = x[i], x[i + 1], turns[i], turns[i + 1]
        x[i] = real * cosine - imaginary * sine
        x[i + 1] = real * sine + imaginary * cosine


@compiled
def gate(gates: Any, ups: Any, out: Any) -> None:
    """SwiGLU (Shazeer, arXiv:2002.05202): silu(gate) * up."""
    for i in range(len(gates)):
        out[i] = gates[i] / (_ONE + exp(-gates[i])) * ups[i]


@compiled
def gelu(x: Any, out: Any) -> None:
    """GELU (Hendrycks and Gimpel, arXiv:1606.08415): x times a normal number's chance to be below.

    max(x, 0) less |x| times the chance to be beyond |x|, so that nothing cancels.
    That chance is e^(-x^2 / 2) times a polynomial in 1 / (1 + 0.305 |x|), fitted to the error
    function to within 1e-7 of itself.
    """
    for i in range(len(x)):
        size = abs(x[i])
        t = _ONE / (_ONE + _TAIL_RATE * size)
        tail = _TAIL[0]
        for coefficient in _TAIL[1:]:
            tail = tail * t + coefficient
        positive = x[i] if x[i] > 0 else np.float32(0)
        out[i] = positive - size * (tail * t) * exp(-_HALF * size * size)


@compiled
def softmax(scores: Any, length: int) -> Any:
    """Turn the first scores into e^(score - largest), the others into 0; returns 1 / their sum.

    There are a multiple of 16. Sums run over 16 lanes, so that what stands behind `length` adds
    zeros and changes no bit.
    """
    scores[length:] = -np.inf
    return _ONE / exponentials(scores, len(scores), largest(scores, len(scores)))
