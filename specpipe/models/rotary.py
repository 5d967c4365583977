"""Rotary positions: a table that grows with the positions in use.

A file says how long its context is, and files are not trusted: a table for all that one claims
could take any amount of memory. So it is made in steps, each when it is first needed.
"""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from specpipe.models.shape import DecoderConfig

Number = TypeVar("Number", bound=np.generic)

_STEP = 1024  # positions; at fixed places, so that a position has the same bits however it grew


class RotaryTable:
    """Rotations e^(i * position * frequency) of a model's queries and keys.

    Source: Su et al., RoFormer, arXiv:2104.09864. Angles are made in float64: far into a context,
    float32 would be off in the fourth digit.
    """

    def __init__(self, config: DecoderConfig) -> None:
        exponents = np.arange(0, config.head_dim, 2) / config.head_dim
        self._frequencies = config.rope_base**-exponents
        if config.rope_divisors is not None:
            self._frequencies /= np.array(config.rope_divisors)
        self._turns = np.empty((0, config.head_dim), np.float32)

    def up_to(self, positions: int) -> NDArray[np.float32]:
        """Cosine and sine of each pair's angle, in turn: float32[at least positions, head_dim]."""
        if positions > len(self._turns):
            self._grow(max(positions, 2 * len(self._turns)))
        return self._turns

    def _grow(self, least: int) -> None:
        parts = [self._turns]
        for start in range(len(self._turns), least, _STEP):
            angles = np.arange(start, start + _STEP)[:, None] * self._frequencies
            pairs = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
            parts.append(pairs.reshape(_STEP, -1).astype(np.float32))
        self._turns = np.concatenate(parts)


def to_halves(values: NDArray[np.float32], head_dim: int) -> NDArray[np.float32]:
    """Rows of queries or keys, [rows, ...], whose pairs lie side by side: arranged as halves."""
    pairs = values.reshape(-1, head_dim // 2, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def from_halves(values: NDArray[Number], head_dim: int) -> NDArray[Number]:
    """Rows of queries or keys whose pairs lie half a head apart: arranged side by side."""
    halves = values.reshape(-1, 2, head_dim // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)
