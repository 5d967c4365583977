"""What a worker needs of a model: slots, a forward pass over one sequence, and truncation.

Nothing here knows torch, so that scripted models can stand in for real ones wherever the protocol,
rather than arithmetic, is what is tested.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
"""Unnormalised log-probabilities, one row a position: float32[rows, vocabulary].

Of a model with `output_ids`: float32[rows, output ids].
"""
OutputIds = NDArray[np.int64]
"""Which tokens the columns of logits belong to, where not all have one; rising."""


DTYPES = ("auto", "gguf", "float16", "float32", "bfloat16", "int8", "int4")
"""How weights can be held, on one device or another; see load_model."""
BLOCK_DTYPES = "gguf", "int8", "int4"
"""Those that are multiplied as whole numbers; CPUs only."""
DRAFT_DTYPE = "int4"
"""What is usual for a draft on a CPU: a guess need not be exact."""


def entry_bytes(dtype: str) -> int:
    """Bytes of a number of the keys and values, beside weights that are kept so."""
    return 4 if dtype == "float32" else 2


Interrupted = Callable[[], bool] | None
"""Asked now and then during a pass; once it says yes, the pass is given up."""


@dataclass(frozen=True, slots=True)
class Feed:
    """Tokens to be fed at the end of a slot, and after how many of the last to return logits."""

    slot: int
    tokens: Sequence[int]
    rows: int


class SequenceModel(Protocol):
    """A causal language model that keeps the K/V entries of several sequences, one a slot.

    Invariant: `length(slot)` equals the number of tokens that the slot was fed and not truncated.
    """

    @property
    def vocab_size(self) -> int:
        """Number of token ids, a padded tail included."""

    @property
    def output_ids(self) -> OutputIds | None:
        """Which tokens the latest pass's logits have columns for; None: all.

        Only a draft that was loaded to be `narrow` lacks some: see partial_head.py.
        """

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
        interrupted: Interrupted = None,
    ) -> Logits | None:
        """Feed `tokens` at the end of the slot; return the logits after each of the last `rows`.

        None if interrupted: the slot is then as it was before the call, as after an exception.
        """

    def forward_all(
        self, feeds: Sequence[Feed], interrupted: Interrupted = None
    ) -> list[Logits] | None:
        """The same for several sequences, whose slots differ: in one pass, if the model can.

        None if interrupted: all slots are then as they were before the call, as after an exception.
        """
