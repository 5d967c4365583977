"""Rotary positions: a table that grows with the positions in use.

A file says how long its context is, and files are not trusted: a table for all that one claims
could take any amount of memory. So it is made in steps, each when it is first needed.
"""

import torch
from torch import Tensor

from specpipe.models.shape import DecoderConfig

ELEMENTS_AT_ONCE = 32767
"""One less than at::internal::GRAIN_SIZE, from which torch uses several threads."""

_MOST_POSITIONS = 1024


class RotaryTable:
    """Rotations e^(i * position * frequency) of a model's queries and keys.

    Source: Su et al., RoFormer, arXiv:2104.09864. Angles are made in float64: far into a context,
    float32 would be off in the fourth digit.
    """

    def __init__(self, config: DecoderConfig, device: torch.device) -> None:
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
        self._frequencies = config.rope_base**-exponents
        if config.rope_divisors is not None:
            self._frequencies /= torch.tensor(config.rope_divisors, dtype=torch.float64)
        # What torch computes at once may be rounded otherwise at its end than in its middle. Steps
        # of one thread, at fixed places, give a position the same bits however the table grew.
        self._step = max(1, min(_MOST_POSITIONS, ELEMENTS_AT_ONCE // (config.head_dim // 2)))
        self._turns = torch.empty(0, 1, config.head_dim // 2, dtype=torch.complex64, device=device)

    def __call__(self, start: int, count: int) -> Tensor:
        """Rotations of the positions from `start` on: complex64[count, 1, head_dim / 2]."""
        if start + count > len(self._turns):
            self._grow(max(start + count, 2 * len(self._turns)))
        return self._turns[start : start + count]

    def _grow(self, least: int) -> None:
        parts = [self._turns]
        for start in range(len(self._turns), least, self._step):
            positions = torch.arange(start, start + self._step, dtype=torch.float64)
            angles = positions[:, None] * self._frequencies
            turns = torch.polar(torch.ones_like(angles), angles).to(torch.complex64)
            parts.append(turns[:, None].to(self._turns.device))
        self._turns = torch.cat(parts)
