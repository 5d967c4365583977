"""What a worker needs of a model: slots, a forward pass over one sequence, and truncation.

Nothing here knows torch, so that scripted models can stand in for real ones wherever the protocol,
rather than arithmetic, is what is tested.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
"""Unnormalised log-probabilities, one row a position: float32[rows, vocabulary]."""


class SequenceModel(Protocol):
    """A causal language model that keeps the K/V entries of several sequences, one a slot.

    Invariant: `length(slot)` equals the number of tokens that the slot was fed and not truncated.
    """

    @property
    def vocab_size(self) -> int:
        """Number of token ids, a padded tail included."""

    @property
    def context_length(self) -> int:
        """Most tokens that a slot can hold."""

    @property
    def num_slots(self) -> int:
        """Sequences that can be held at once."""

    def open(self) -> int:
        """Take a free slot, of length 0; raises RuntimeError when none is free."""

    def close(self, slot: int) -> None:
        """Give a slot back."""

    def length(self, slot: int) -> int:
        """Tokens that the slot holds."""

    def truncate(self, slot: int, length: int) -> None:
        """Forget all but the first `length` tokens of the slot, in O(1)."""

    def forward(
        self,
        slot: int,
        tokens: Sequence[int],
        rows: int,
        interrupted: Callable[[], bool] | None = None,
    ) -> Logits | None:
        """Feed `tokens` at the end of the slot; return the logits after each of the last `rows`.

        `interrupted` is asked now and then; once it says yes, the slot is as it was before the
        call, and None is returned.
        """
