"""The noise that draft and target share, and the race that turns it into a token.

Counter-based: every number is a function of (seed, sample, stream, position, token) alone, so rows
can be made in any order, ahead of time, twice, and on either side. The streams are independent.
"""

import math
import threading
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class NoiseStream(IntEnum):
    """What a number is for. No two decisions about one position may share theirs."""

    DRAW = 0  # the race for a token: plain decoding, guesses, the coupled rule, bonus tokens
    ACCEPT = 1  # whether a guess stands, by the rejection rule
    RECOVER = 2  # the race for the token that replaces one which doesn't


def noise_words(
    seed: int, sample: int, position: int, count: int, stream: NoiseStream = NoiseStream.DRAW
) -> NDArray[np.uint64]:
    """Random words of the tokens 0 to count - 1 at an absolute position: uint64[count].

    Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) under the
    key (seed, sample) and the counter (token // 4 + 1, position, stream), since numpy counts before
    it draws: word i belongs to token i, so rows of any length agree on their common part.
    """
    return _PHILOX.words((seed, sample), (0, position, stream, 0), count)


class _Philox(threading.local):
    """A generator for each thread: to make one takes longer than a row of a small vocabulary."""

    def __init__(self) -> None:
        self._generator = np.random.Philox(key=0)

    def words(
        self, key: tuple[int, int], counter: tuple[int, int, int, int], count: int
    ) -> NDArray[np.uint64]:
        """What it draws under a key from a counter on: uint64[count]."""
        self._generator.state = {
            "bit_generator": "Philox",
            "state": {"key": _words(key), "counter": _words(counter)},
            "buffer": _DRAWN,
            "buffer_pos": len(_DRAWN),
            "has_uint32": 0,
            "uinteger": 0,
        }
        words: NDArray[np.uint64] = self._generator.random_raw(count)
        return words


def _words(numbers: tuple[int, ...]) -> NDArray[np.uint64]:
    return np.array(numbers, dtype=np.uint64)


_DRAWN = np.zeros(4, np.uint64)  # all of a block of words was drawn: the next comes first
_PHILOX = _Philox()


_CELL = 2**12  # words of one number


def uniforms(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Words as numbers strictly between 0 and 1: the upper 52 bits, at the middle of their cell.

    With a bit more the last cell's middle would round to 1. Conversion goes through int64, which
    CPUs do in vector registers, unlike uint64.
    """
    return ((words >> np.uint64(12)).astype(np.int64).astype(np.float64) + 0.5) * 2.0**-52


_NEAR = 10.0
"""Of scores below the best: what lies further down wins seldom, and is looked at once it may."""


def race(scores: NDArray[np.float64], words: NDArray[np.uint64]) -> int:
    """The index i with the largest scores[i] - log E[i], where E = -log(1 - u); ties: the lowest.

    This draws i with a chance proportional to exp(scores[i]): the exponential form of the
    Gumbel-max trick. What takes time is done only where it can matter. E is at least u, so u /
    weight bounds a key E / weight from below, and one exact key, that of the smallest bound, rules
    out all but a handful. A token further down needs so small a u to come below that key that its
    word alone shows it.

    Args:
        scores: float64[n], the largest near 0; -inf cannot win.
        words: uint64[n], of which `uniforms` makes u.
    """
    near = np.flatnonzero(scores >= -_NEAR)
    u, weights = uniforms(words[near]), np.exp(scores[near])
    bounds = u / weights
    first = int(bounds.argmin())
    # The margin covers the rounding of the division and of the logarithm.
    key = -math.log1p(-u[first]) / weights[first] * (1 + 1e-9)
    near = near[bounds <= key]
    if len(scores) > len(weights):
        least = min(key * math.exp(-_NEAR) * 2.0**64 + _CELL, 2.0**64 - _CELL)
        far = np.flatnonzero(words <= np.uint64(least))
        near = np.sort(np.concatenate([near, far[scores[far] < -_NEAR]]))
    exact = scores[near] - np.log(-np.log1p(-uniforms(words[near])))
    return int(near[exact.argmax()])
